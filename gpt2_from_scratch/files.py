"""Writing files so that nothing is lost, and naming their bytes."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from gpt2_from_scratch.errors import CheckpointError, ResourceError
from gpt2_from_scratch.kinds import and_is

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
