"""Write files atomically, read them with limits, and verify their checksums.

Five sections: atomic writes; reading with limits; the checksums in a model folder (`SHA256SUMS`);
the manifest of a finished run (`MANIFEST.json`); locks.
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

SURROGATES = re.compile("[\ud800-\udfff]")
STALE = 3600  # seconds after which a temporary folder must belong to a process that was killed


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to `path` after the block.

    The file is synced before it is renamed, and the folder is synced afterwards. A reader therefore
    sees the old file or the new one, never a partial one. If the block raises an error, the old file
    stays and the temporary file is removed. A temporary folder, `.NAME.*.tmp` next to `path`, is left
    over only if the process is killed; `sweep` removes it. Raises ResourceError if there is no space
    or no permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            temporary = folder / path.name
            yield temporary
            # some libraries make the file readable by its owner only; apply the umask instead
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
            f"{path} could not be written: {error.strerror or error}. An existing file is unchanged."
        ) from error


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write files to, and rename it to `folder` after the block.

    If the block raises an error, nothing is left. Raises UsageError if something exists at `folder`,
    and ResourceError if there is no space or no permission.
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists already; choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        around = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
        try:
            temporary = around / folder.name
            temporary.mkdir()
            yield temporary
            _sync(temporary)
            temporary.rename(folder)
            _sync(folder.parent)
        finally:
            shutil.rmtree(around, ignore_errors=True)
    except OSError as error:
        raise ResourceError(f"{folder} could not be written: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder to sync it
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder if it is missing, and check that it is writable.

    Raises ResourceError if the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written to: {error.strerror or error}. Choose another folder."
        ) from error


def sweep(folder: Path, older_than: float = 0.0, pattern: str = ".*.tmp") -> None:
    """Remove temporary folders left over by killed processes.

    Only folders that have not changed for `older_than` seconds are removed. Use 0 only if no other
    process can be writing.
    """
    for leftover in folder.glob(pattern):
        with suppress(OSError):  # already removed by its own process, or owned by another user
            touched = max(path.stat().st_mtime for path in (leftover, *leftover.glob("*")))
            if time.time() - touched >= older_than:
                shutil.rmtree(leftover)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    path = expanded(path)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError for NaN and infinities.

    Lone surrogates, which occur in file names that are not UTF-8, are written as escapes.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


# --- Reading with limits, and naming the kind of an unexpected file. ---

LARGEST_JSON = 1 << 25  # bytes; OpenAI's encoder.json has one million
DEEPEST = 50  # nested levels of lists and objects in JSON
HEAD = 64  # number of leading bytes that are compared with KINDS
LFS = "a git-LFS pointer; `git lfs pull` downloads the file itself"
PAGE = "a web page"
PICKLE = "a Python pickle, perhaps from PyTorch; pickles can run code and are never read"
ZIP = "a zip archive, perhaps from PyTorch or a spreadsheet program"
KINDS = {  # {first bytes in lower case, after any white space: kind of file}
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
    b"\x89hdf": "an HDF5 file, perhaps from Keras",
    b"gguf": "a GGUF model",
    b"par1": "a Parquet table",
    b"%pdf": "a PDF document",
}


def and_is(head: bytes) -> str:
    """Describe an unexpected file by its first bytes.

    The result is, for example, " and is a web page". Returns an empty string if the kind is not
    recognised.
    """
    if not head:
        return " and is empty"
    start = head[:HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kinds = [f" and is {kind}" for begins, kind in KINDS.items() if start.startswith(begins)]
    return kinds[0] if kinds else ""


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read bytes. Raises OSError for a pipe or device, which may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path.open("rb")


def read_bounded(path: Path, most: int) -> bytes:
    """Read all bytes of a small file of a model or run.

    Raises CheckpointError if the file is missing or has more than `most` bytes.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(most + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > most:
        raise CheckpointError(f"{path} has more than {most:,} bytes")
    return raw


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object from a file of a model or run.

    Raises CheckpointError if the file is not a JSON object, repeats a key or contains NaN. The
    message names the kind of file that was found.
    """
    path = expanded(path)
    raw = read_bounded(path, LARGEST_JSON)
    try:
        value = parse_json(raw.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON{and_is(raw)}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {raw[:80]!r}")
    return value


def parse_json(text: str) -> Any:
    """Parse JSON that comes from an untrusted file.

    Raises ValueError for invalid JSON, repeated keys, more than 50 nested levels, and numbers that do
    not fit in 64 bits.
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
    """Build the dictionary of a JSON object for json.loads. Raises ValueError for a repeated key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} appears twice")
        found[key] = value
    return found


def no_number(name: str) -> float:
    """Raise ValueError for NaN and Infinity, which json.loads would accept."""
    raise ValueError(f"{name} is not a value in JSON")


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    path = expanded(path)
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


# --- `SHA256SUMS` in a model folder, in the format of the program sha256sum. ---

SUMS = "SHA256SUMS"
LARGEST_SUMS = 1 << 20  # bytes


def check_sums(folder: str | Path, names: Sequence[str]) -> None:
    """Compare the SHA-256 of files with those listed in `SHA256SUMS`.

    Raises CheckpointError if a file differs. Files that are not listed are not checked.
    """
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
    """Read `SHA256SUMS` as {file: SHA-256}. Returns {} if the folder has no such file."""
    if not (folder / SUMS).exists():
        return {}
    try:
        lines = read_bounded(folder / SUMS, LARGEST_SUMS).decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / SUMS} cannot be read: {error}") from None
    sums = {}
    for line in lines[:-1]:
        digits, name = line[:64], line[66:]
        valid = len(digits) == 64 and set(digits) <= set("0123456789abcdef")
        if not valid or line[64:66] not in ("  ", " *") or Path(name).name != name:
            raise CheckpointError(f"{folder / SUMS} has the invalid line {line!r:.100}")
        sums[name] = digits
    if lines[-1] or not sums:
        raise CheckpointError(f"{folder / SUMS} is cut off")
    return sums


# --- The manifest of a finished run, which shows whether a file was changed afterwards. ---

MANIFEST = "MANIFEST.json"


def write_manifest(folder: str | Path, names: Sequence[str]) -> None:
    """Write the manifest of a folder.

    The manifest contains the SHA-256 of each file in `names` that exists. Other files in the folder
    belong to the user and are not listed.
    """
    folder = expanded(folder)
    listed = {name: sha256_of(folder / name) for name in sorted(names) if (folder / name).is_file()}
    write_json(folder / MANIFEST, {"sha256": listed})


def add_to_manifest(folder: Path, names: Sequence[str]) -> None:
    """Add files to the manifest of a complete run. The other entries do not change."""
    listed = read_manifest(folder) | {name: sha256_of(folder / name) for name in names}
    write_json(folder / MANIFEST, {"sha256": dict(sorted(listed.items()))})


def is_complete(folder: str | Path) -> bool:
    """Return whether the run in this folder has finished."""
    return os.path.exists(expanded(folder) / MANIFEST)  # also False if the folder is unreadable


def read_manifest(folder: Path) -> dict[str, str]:
    """Read the manifest as {file: SHA-256}, sorted by name.

    Raises CheckpointError if the manifest is missing or invalid.
    """
    path = folder / MANIFEST
    listed = read_json(path).get("sha256")
    if not isinstance(listed, dict) or not all(type(digits) is str for digits in listed.values()):
        raise CheckpointError(f"{path} does not list files with their sha256")
    if foreign := [name for name in listed if Path(name).name != name]:
        raise CheckpointError(f"{path} lists a file outside its folder: {foreign[0]!r:.100}")
    return dict(sorted(listed.items()))


def check_listed(path: Path) -> None:
    """Compare a file with the manifest of its folder.

    Raises CheckpointError if the file is missing, differs from the manifest or is not listed in
    it. Without a manifest nothing is checked.
    """
    if not is_complete(path.parent):
        return
    expected = read_manifest(path.parent).get(path.name)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if expected is None:
        raise CheckpointError(f"{path} is not in {MANIFEST}: it was added after the run finished")
    if _digest(path) != expected:
        raise CheckpointError(f"{path} differs from {MANIFEST}: it was changed after the run")


# --- Locks, which let only one process at a time work in a folder. ---


@contextmanager
def locked(path: str | Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock file `path` during the block.

    No other process or thread can hold it at the same time. If another process already holds the
    lock, this logs a line and waits, or raises UsageError if `wait` is false. The lock of a killed
    process is released by the system. Raises ResourceError if the lock file cannot be created.
    """
    from filelock import FileLock, Timeout  # imported here, because it takes 50 ms

    path = expanded(path)
    lock, busy = FileLock(path), f"another process is working in {path.parent}"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise UsageError(
                f"{busy}. Wait until it has finished, or choose another folder."
            ) from None
        log.info(f"{busy}; waiting for it to finish")
        lock.acquire()
    except OSError as error:
        raise ResourceError(f"{path} cannot be created: {error.strerror or error}") from error
    try:
        yield
    finally:
        # Remove the file before releasing the lock, because another process may hold the file right
        # after the release. A waiting process notices that the file is gone and creates a new one.
        # This needs filelock 4. Some earlier versions do not notice it, and others remove the file
        # themselves.
        with suppress(OSError):  # Windows cannot remove an open file, so the file stays
            path.unlink()
        lock.release()
