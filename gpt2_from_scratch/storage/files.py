"""Files that are written completely or not at all, JSON of bounded size, checksums, manifests, locks."""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from gpt2_from_scratch.errors import CheckpointError, ResourceError, UsageError

log = logging.getLogger(__name__)

# --- What a file is that came instead of the one that should be there, by its first bytes. ---


HEAD = 64  # bytes to look at
LFS = "a git-LFS pointer; `git lfs pull` fetches the file itself"
PAGE = "a web page"
PICKLE = "a Python pickle, perhaps PyTorch's, which could run a stranger's code and is never read"
ZIP = "a zip archive, perhaps PyTorch's or a spreadsheet's"
KINDS = {  # how it begins (in lower case, white space before it left out), what it is
    b"version https://git-lfs": LFS,
    b"<!doctype": PAGE,
    b"<html": PAGE,
    b"<?xml": PAGE,
    b"pk\x03\x04": ZIP,
    b"\x80\x02": PICKLE,
    b"\x80\x03": PICKLE,
    b"\x80\x04": PICKLE,
    b"\x80\x05": PICKLE,
    b"\x1f\x8b": "a gzip archive",
    b"\x89hdf": "an HDF5 file, perhaps Keras's",
    b"gguf": "a GGUF model",
    b"par1": "a Parquet table",
    b"%pdf": "a PDF document",
}


def and_is(head: bytes) -> str:
    """A clause such as " and is a web page" for a message; empty if the first bytes say nothing."""
    if not head:
        return " and is empty"
    start = head[:HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kinds = [f" and is {kind}" for begins, kind in KINDS.items() if start.startswith(begins)]
    return kinds[0] if kinds else ""


# --- Writing files so that nothing is lost, and naming their bytes. ---


LARGEST_JSON = 1 << 25  # bytes; OpenAI's encoder.json has a million
STALE = 3600  # seconds after which a temporary folder belongs to nobody


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write to in a temporary folder; when the block ends well, it becomes `path`.

    The file is synced and renamed, then its folder is synced, so a reader sees the old file or the
    new one, never a part. When the block raises, the old file stands and the temporary one is gone.
    Only a kill leaves the temporary folder, `.NAME.*.tmp` beside `path`, for `sweep` to remove.
    Raises ResourceError when there is no room or no permission.
    """
    try:
        with _temporary_folder(path) as folder:
            temporary = folder / path.name
            yield temporary
            # a library may make files only their owner can read; give what umask would have given
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    except OSError as error:
        raise ResourceError(
            f"{path} could not be written: {error.strerror or error}; what was there before stands"
        ) from error


def sweep(folder: Path, older_than: float = 0.0, pattern: str = ".*.tmp") -> None:
    """Remove the temporary folders that killed writers left, if untouched for so many seconds.

    With 0 only where no other process may be writing.
    """
    for left in folder.glob(pattern):
        with suppress(OSError):  # its writer was quicker, or it is somebody else's
            touched = max(path.stat().st_mtime for path in (left, *left.glob("*")))
            if time.time() - touched >= older_than:
                shutil.rmtree(left)


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read bytes; a pipe or a device, which may never end, raises OSError."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.open("rb")


def read_bounded(path: Path, most: int) -> bytes:
    """All bytes of a small file of a model's or a run's folder.

    Raises CheckpointError where there is none, or more than `most` bytes.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(most + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} needs it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > most:
        raise CheckpointError(f"{path} has more than {most:,} bytes")
    return raw


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model's or a run's folder; a key twice or NaN is no JSON here.

    Raises CheckpointError that names what it is instead.
    """
    raw = read_bounded(path, LARGEST_JSON)
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=each_once, parse_constant=no_number
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON{and_is(raw)}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, found {raw[:80]!r}")
    return value


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of these pairs, for json.loads; raises ValueError for a key that is there twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands there twice")
        found[key] = value
    return found


def no_number(name: str) -> float:
    """For json.loads, which would take NaN and Infinity: raises ValueError."""
    raise ValueError(f"{name} is no value in JSON")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder to sync it
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- `SHA256SUMS` in a model's folder: what its files should be, as the program sha256sum writes it. ---


SUMS = "SHA256SUMS"
LARGEST_SUMS = 1 << 20  # bytes


def check_sums(folder: Path, names: Sequence[str]) -> None:
    """Raise CheckpointError where a file is there, listed, and not what the list says."""
    listed = read_sums(folder)
    for name in names:
        if name in listed and (folder / name).is_file():
            if (digits := sha256_of(folder / name)) != listed[name]:
                raise CheckpointError(
                    f"{folder / name} has sha256 {digits}, {SUMS} says {listed[name]}: it was changed"
                )


def read_sums(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of `SHA256SUMS`, as the program sha256sum writes it; {} if there is none."""
    if not (folder / SUMS).exists():
        return {}
    try:
        lines = read_bounded(folder / SUMS, LARGEST_SUMS).decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / SUMS} cannot be read: {error}") from None
    sums = {}
    for line in lines[:-1]:
        digits, name = line[:64], line[66:]
        whole = len(digits) == 64 and set(digits) <= set("0123456789abcdef")
        if not whole or line[64:66] not in ("  ", " *") or Path(name).name != name:
            raise CheckpointError(f"{folder / SUMS} has the line {line!r:.100}")
        sums[name] = digits
    if lines[-1] or not sums:
        raise CheckpointError(f"{folder / SUMS} is cut off")
    return sums


# --- One process at a time at one piece of work. ---


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
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
        log.info(f"{busy}; waiting for it to end")
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


MANIFEST = "MANIFEST.json"


def write_manifest(folder: Path) -> None:
    """List every file of a folder, but hidden ones, what was put aside, and the manifest itself."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    listed = {
        path.name: sha256_of(path)
        for path in files
        if path.name[0] != "." and path.suffix != ".bad"
    }
    listed.pop(MANIFEST, None)
    write_json(folder / MANIFEST, {"sha256": listed})


def add_to_manifest(folder: Path, names: Sequence[str]) -> None:
    """List these files of a complete run too; what the manifest says of others stays."""
    listed = read_manifest(folder) | {name: sha256_of(folder / name) for name in names}
    write_json(folder / MANIFEST, {"sha256": dict(sorted(listed.items()))})


def is_complete(folder: Path) -> bool:
    """Whether the run in this folder came to its end."""
    return (folder / MANIFEST).exists()


def read_manifest(folder: Path) -> dict[str, str]:
    """{file: SHA-256}, in order of names; raises CheckpointError for anything else."""
    path = folder / MANIFEST
    listed = read_json(path).get("sha256")
    if not isinstance(listed, dict) or not all(type(digits) is str for digits in listed.values()):
        raise CheckpointError(f"{path} lists no files with their sha256")
    if foreign := [name for name in listed if Path(name).name != name]:
        raise CheckpointError(f"{path} names what is no file of its folder: {foreign[0]!r:.100}")
    return dict(sorted(listed.items()))


def check_listed(path: Path) -> None:
    """Raise CheckpointError where a file is not as its folder's manifest has it, if it has one."""
    if not is_complete(path.parent):
        return
    expected = read_manifest(path.parent).get(path.name)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if expected is None:
        raise CheckpointError(f"{path} is not in {MANIFEST}: it came after the run was complete")
    if sha256_of(path) != expected:
        raise CheckpointError(
            f"{path} is not what {MANIFEST} has: changed since the run was complete"
        )
