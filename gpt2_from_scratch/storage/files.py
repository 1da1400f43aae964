"""Files that are written completely or not at all, and files that are what they should be.

Five sections: atomic writes; reading with limits; checksums of a model's folder (`SHA256SUMS`); the
manifest of a finished run (`MANIFEST.json`); locks.
"""

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from gpt2_from_scratch.errors import CheckpointError, ResourceError, UsageError
from gpt2_from_scratch.storage.paths import expanded

log = logging.getLogger(__name__)

# --- Atomic writes. ---

HALVES = re.compile("[\ud800-\udfff]")
STALE = 3600  # seconds after which a temporary folder has no writer any more


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` when the block ends.

    The file is synced and renamed, then its folder is synced, so a reader sees the old file or the
    new one, never a part. If the block raises, the old file stays and the temporary one is removed.
    Only a kill leaves the temporary folder, `.NAME.*.tmp` next to `path`, for `sweep` to remove.
    Raises ResourceError if there is no space or no permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            temporary = folder / path.name
            yield temporary
            # a library may write files that only their owner can read; the umask decides instead
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ResourceError(
            f"{path} could not be written: {error.strerror or error}; the file before is unchanged"
        ) from error


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder to sync it
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents if they are missing, and try to write there.

    Raises ResourceError if that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be a folder to write in: {error.strerror or error}. Choose another."
        ) from error


def sweep(folder: Path, older_than: float = 0.0, pattern: str = ".*.tmp") -> None:
    """Remove the temporary folders of killed writers that were not touched for `older_than` seconds.

    Use 0 only if no other process can be writing.
    """
    for left in folder.glob(pattern):
        with suppress(OSError):  # its writer was faster, or it belongs to somebody else
            touched = max(path.stat().st_mtime for path in (left, *left.glob("*")))
            if time.time() - touched >= older_than:
                shutil.rmtree(left)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    path = expanded(path)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; refuses NaN and infinities.

    Halves of characters, as in a file's name that is not UTF-8, are written escaped.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, HALVES.sub(lambda half: f"\\u{ord(half[0]):04x}", text) + "\n")


# --- Reading with limits, and a word for a file of another kind. ---

LARGEST_JSON = 1 << 25  # bytes; OpenAI's encoder.json has a million
DEEPEST = 50  # levels of lists and objects in JSON
HEAD = 64  # bytes that show the kind of a file
LFS = "a git-LFS pointer; `git lfs pull` downloads the file itself"
PAGE = "a web page"
PICKLE = "a Python pickle, perhaps PyTorch's, which can run foreign code and is never read"
ZIP = "a zip archive, perhaps PyTorch's or a spreadsheet's"
KINDS = {  # {first bytes, in lower case and without leading white space: kind of file}
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
    """Name the kind of an unexpected file by its first bytes, as " and is a web page".

    Empty if they do not show one.
    """
    if not head:
        return " and is empty"
    start = head[:HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kinds = [f" and is {kind}" for begins, kind in KINDS.items() if start.startswith(begins)]
    return kinds[0] if kinds else ""


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read bytes; raises OSError for a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path.open("rb")


def read_bounded(path: Path, most: int) -> bytes:
    """Read all bytes of a small file of a model's or a run's folder.

    Raises CheckpointError if it is missing or has more than `most` bytes.
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


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object of a model's or a run's folder; refuses repeated keys and NaN.

    Raises CheckpointError that names what the file is instead.
    """
    path = expanded(path)
    raw = read_bounded(path, LARGEST_JSON)
    try:
        value = parse_json(raw.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON{and_is(raw)}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, found {raw[:80]!r}")
    return value


def parse_json(text: str) -> Any:
    """Parse JSON of a file that anybody may have written.

    Raises ValueError for anything else, repeated keys, lists within lists within ... 50 times, and
    numbers that do not fit in 64 bits.
    """
    try:
        value = json.loads(text, object_pairs_hook=each_once, parse_constant=no_number)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    level = [value]
    for _ in range(DEEPEST):
        for number in level:
            large = type(number) is int and not -(2**63) <= number < 2**63
            if large or (type(number) is float and math.isinf(number)):
                raise ValueError(f"the number {number!s:.40} does not fit in 64 bits")
        lists = [each for each in level if isinstance(each, list | dict)]
        level = [x for each in lists for x in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: the object of these pairs; raises ValueError for a repeated key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} appears twice")
        found[key] = value
    return found


def no_number(name: str) -> float:
    """For json.loads, which accepts NaN and Infinity: raises ValueError."""
    raise ValueError(f"{name} is not a value in JSON")


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    path = expanded(path)
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


# --- `SHA256SUMS` in a model's folder, as the program sha256sum writes it. ---

SUMS = "SHA256SUMS"
LARGEST_SUMS = 1 << 20  # bytes


def check_sums(folder: str | Path, names: Sequence[str]) -> None:
    """Raise CheckpointError if one of these files is listed with another SHA-256 than it has."""
    folder = expanded(folder)
    listed = read_sums(folder)
    for name in names:
        if name in listed and (folder / name).is_file():
            if (digits := _digest(folder / name)) != listed[name]:
                raise CheckpointError(
                    f"{folder / name} has sha256 {digits}, but {SUMS} lists {listed[name]}: "
                    "the file was changed"
                )


def read_sums(folder: Path) -> dict[str, str]:
    """Read `SHA256SUMS` as {file: SHA-256}; {} if there is none."""
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
            raise CheckpointError(f"{folder / SUMS} has the invalid line {line!r:.100}")
        sums[name] = digits
    if lines[-1] or not sums:
        raise CheckpointError(f"{folder / SUMS} is cut off")
    return sums


# --- The manifest of a finished run: any file changed since then is reported before it is used. ---

MANIFEST = "MANIFEST.json"


def write_manifest(folder: str | Path, names: Sequence[str]) -> None:
    """List those of these files that a folder has; other files there are the user's."""
    folder = expanded(folder)
    listed = {name: sha256_of(folder / name) for name in sorted(names) if (folder / name).is_file()}
    write_json(folder / MANIFEST, {"sha256": listed})


def add_to_manifest(folder: Path, names: Sequence[str]) -> None:
    """List these files of a complete run too; what the manifest says of others stays."""
    listed = read_manifest(folder) | {name: sha256_of(folder / name) for name in names}
    write_json(folder / MANIFEST, {"sha256": dict(sorted(listed.items()))})


def is_complete(folder: str | Path) -> bool:
    """Whether the run in this folder has finished."""
    return os.path.exists(expanded(folder) / MANIFEST)  # False, too, where nobody may look


def read_manifest(folder: Path) -> dict[str, str]:
    """Read the manifest as {file: SHA-256}, sorted by name.

    Raises CheckpointError for anything else.
    """
    path = folder / MANIFEST
    listed = read_json(path).get("sha256")
    if not isinstance(listed, dict) or not all(type(digits) is str for digits in listed.values()):
        raise CheckpointError(f"{path} does not list files with their sha256")
    if foreign := [name for name in listed if Path(name).name != name]:
        raise CheckpointError(f"{path} names a file outside its folder: {foreign[0]!r:.100}")
    return dict(sorted(listed.items()))


def check_listed(path: Path) -> None:
    """Raise CheckpointError if a file differs from the manifest of its folder, if there is one."""
    if not is_complete(path.parent):
        return
    expected = read_manifest(path.parent).get(path.name)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if expected is None:
        raise CheckpointError(f"{path} is not in {MANIFEST}: it came after the run was complete")
    if _digest(path) != expected:
        raise CheckpointError(f"{path} differs from {MANIFEST}: changed since the run was complete")


# --- Locks: one process at a time does one piece of work. ---


@contextmanager
def locked(path: str | Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock file `path` during the block; no other process or thread holds it meanwhile.

    If another one holds it, waits for it and logs that, or raises UsageError if `wait` is false. The
    lock of a killed process is free. Raises ResourceError if no lock file can be made.
    """
    from filelock import FileLock, Timeout  # here, because it takes a twentieth of a second

    path = expanded(path)
    lock, busy = FileLock(path), f"another process is at work in {path.parent}"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise UsageError(
                f"{busy}; wait until it has finished, or choose another folder"
            ) from None
        log.info(f"{busy}; waiting for it to finish")
        lock.acquire()
    except OSError as error:
        raise ResourceError(f"{path} cannot be made: {error.strerror or error}") from error
    try:
        yield
    finally:
        # Removed while it is held: a process that waits for this file sees that it has no name any
        # more and makes a new one. After the release it might be another process's. This needs
        # filelock 4: earlier versions do not look for the name, or remove the file themselves.
        with suppress(OSError):  # Windows does not remove an open file; then it stays
            path.unlink()
        lock.release()
