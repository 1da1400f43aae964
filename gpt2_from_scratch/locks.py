"""One process at a time at one piece of work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2_from_scratch.errors import ResourceError, UsageError


@contextmanager
def locked(path: Path, *, wait: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path` during the block; no other process or thread holds it meanwhile.

    If another one does, `say` so and wait for it; without `wait` raise UsageError. The lock of a
    process that was killed is free. Raises ResourceError where no lock file can be made.
    """
    from filelock import FileLock, Timeout  # here, as it takes a twentieth of a second

    lock, busy = FileLock(path), f"another process is at work in {path.parent}"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise UsageError(f"{busy}; let it end first, or choose another folder") from None
        say(f"{busy}; waiting for it to end")
        lock.acquire()
    except OSError as error:
        raise ResourceError(f"{path} cannot be made: {error.strerror or error}") from error
    try:
        yield
    finally:
        # Removed while it is held: who waits for this file sees that it has no name any more and
        # makes a new one. After the release it might be another's. Needs filelock 4: earlier ones
        # do not look whether it has a name, or remove it themselves too, which may be another's.
        with suppress(OSError):  # Windows removes no open file; then it stays
            path.unlink()
        lock.release()
