"""What the long campaigns share: each runs in a process of its own, COUNT times from a SEED.

A process of its own, because forks need one without threads. `python tests/campaigns/NAME_campaign.py 300 1`
prints its progress and, as its last line, its counts as JSON. Processes are stopped at the n-th change
of a file or at a byte of it, not after a time: what a seed tries is the same on a slow machine.
"""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Counts = dict[str, int]
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "campaign.fsync"}
DEATHS = (
    -signal.SIGKILL,
    -signal.SIGXFSZ,
)  # exit codes of children that `die` or `die_at_byte` ended
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # where the helpers of several rooms are


def run(name: str, count: int, seed: int, say: Callable[[str], None] = print) -> Counts:
    """Run `NAME_campaign.py`; what it counted. AssertionError if it found what must not be."""
    words = [sys.executable, str(HERE / f"{name}_campaign.py"), str(count), str(seed)]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    line = "{}"
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=settings) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                say(line.rstrip("\n"))
    assert process.returncode == 0, f"{name}: the campaign ended with {process.returncode}"
    return json.loads(line)


def main(campaign: Callable[[int, int, Path], Counts]) -> None:
    """The command line of one campaign, which gets an empty folder."""
    folder, begun = Path(tempfile.mkdtemp(prefix="campaign.")), time.monotonic()
    try:
        counts = dict(campaign(int(sys.argv[1]), int(sys.argv[2]), folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(counts | {"seconds": round(time.monotonic() - begun)}))


class Progress:
    """Prints how far it is, now and then."""

    def __init__(self, total: int, what: str):
        self.total, self.what = total, what
        self.begun = self.told = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.told > 20:
            self.told = now
            print(f"{done:,} of {self.total:,} {self.what}, {now - self.begun:.0f} s", flush=True)


def fork(work: Callable[[], None]) -> int:
    """A child that does the work and ends with 0, with its error's exit code, 130 or 99."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    try:
        work()
        os._exit(0)
    except KeyboardInterrupt:
        os._exit(130)  # as the command does
    except BaseException as error:
        if not hasattr(error, "exit_code"):
            print(f"in a child: {error!r}", file=sys.stderr)
        os._exit(getattr(error, "exit_code", 99))


def end_of(child: int) -> int:
    """Wait for a child; its exit code, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- in a child ---


def at_change(number: int, action: Callable[[], None]) -> Callable[[], int]:
    """Act just before this process changes a file or a folder for the n-th time; 0 is never.

    A change is a file opened for writing, synced, renamed or removed, a folder made or removed.
    Nothing takes this back, so it is for a child. Returns a function that counts the changes so far.
    """
    numbers, seen, sync = itertools.count(1), [0], os.fsync

    def fsync(descriptor: int) -> None:
        sys.audit("campaign.fsync")
        sync(descriptor)

    def see(event: str, arguments: tuple) -> None:
        if event in CHANGES or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            seen[0] = next(numbers)
            if seen[0] == number:
                action()

    os.fsync = fsync
    sys.addaudithook(see)
    return lambda: seen[0]


def die() -> None:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_byte(size: int) -> None:
    """End this process, as abruptly, when a file that it writes becomes larger than so many bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
