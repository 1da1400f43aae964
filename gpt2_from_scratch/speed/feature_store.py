"""A cache on disk for features.

Features are the frozen blocks' output for each text. A space is a folder for features that were
computed with the same weights, number of blocks and arithmetic. It contains shards, which are files
of some tens of megabytes. The name of a shard is a hash of the texts in it. A shard is written once,
atomically, and never changed. So several processes can use the store at the same time. If a process is
killed or the disk is full, at most a temporary file is left over.

A shard is a safetensors file with four tensors for N texts: `states` (tokens, C), `ends` (N,),
`keys` (N, 32) and `checksums` (N,), one for the states of each text. Damaged shards are removed, and
their texts are computed again. When the limit is reached, the least recently used shards are removed.

Files are read and not mapped into memory. If another process shortened a mapped file, this process
would crash.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from torch import Tensor

from gpt2_from_scratch.errors import ResourceError, UsageError
from gpt2_from_scratch.storage.files import STALE, each_once, sweep
from gpt2_from_scratch.storage.paths import expanded, features_folder
from gpt2_from_scratch.storage.tensors import LARGEST_HEADER, write_tensors

log = logging.getLogger(__name__)

LIMIT_VARIABLE = "GPT2_FROM_SCRATCH_CACHE_GB"
GB = 1e9
DEFAULT_LIMIT = 20 * GB
LARGEST = 1 << 30  # bytes of a shard; this package writes at most half of that
TENSORS = ("states", "ends", "keys", "checksums")
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
SPARE = 1 * GB  # disk space that the store leaves free
# The folder may also contain other files, so only files with the names below are ever removed.
NAME = "[0-9a-f]" * 64
SHARDS, TEMPORARY = f"{NAME}.safetensors", f".{NAME}.*.tmp"
PLANS = f"{NAME}.plan"  # written by earlier versions
OURS = (SHARDS, TEMPORARY, PLANS)


@dataclass
class Shard:
    """Features of some texts, in memory or in a file.

    A file is read one text at a time.
    """

    places: dict[bytes, slice]  # the rows of each text in `states`
    width: int  # C
    dtype: torch.dtype
    path: Path | None = None
    start: int = 0  # where `states` begins in the file, in bytes
    checksums: dict[bytes, int] = field(default_factory=dict, repr=False)  # of each text's states
    held: Tensor | None = field(default=None, repr=False)  # the states in memory, (tokens, C)

    @classmethod
    def of(cls, texts: Mapping[bytes, Tensor]) -> "Shard":
        """Make a shard in memory from the features (T, C) of texts."""
        states = torch.cat(list(texts.values()))
        ends = accumulate(len(rows) for rows in texts.values())
        places = {
            key: slice(end - len(texts[key]), end) for key, end in zip(texts, ends, strict=True)
        }
        return cls(places, states.shape[1], states.dtype, held=states)

    def states(self, key: bytes) -> Tensor:
        """Return the features of one text: (T, C).

        Raises OSError if the file was removed, and ValueError if it was changed after it was found.
        """
        if self.held is not None:
            return self.held[self.places[key]]
        assert self.path is not None
        with open_plain(self.path) as file:
            return self._read(file, key)

    def hold(self, device: torch.device | str = "cpu") -> None:
        """Load all features into a device's memory. Raises the same errors as `states`."""
        if self.held is None:
            assert self.path is not None
            with open_plain(self.path) as file:
                self.held = torch.cat([self._read(file, key) for key in self.places])
        self.held = self.held.to(device)

    def _read(self, file: BufferedReader, key: bytes) -> Tensor:
        rows, size = self.places[key], self.width * self.dtype.itemsize
        file.seek(self.start + rows.start * size)
        raw = file.read((rows.stop - rows.start) * size)
        if google_crc32c.value(raw) != self.checksums[key]:
            raise ValueError("it was changed after it was found")
        return torch.frombuffer(bytearray(raw), dtype=self.dtype).view(-1, self.width)

    @property
    def nbytes(self) -> int:
        """The size of the features in bytes."""
        if self.held is not None:
            return self.held.nbytes
        return _size(self.path) if self.path else 0


class FeatureStore:
    """A folder of features, with a limit on its size in bytes.

    The default folder is `paths.features_folder()`. The default limit is the value of
    $GPT2_FROM_SCRATCH_CACHE_GB in gigabytes, or 20 GB.
    """

    def __init__(self, folder: str | Path | None = None, limit: float | None = None):
        self.folder = features_folder() if folder is None else expanded(folder)
        self.limit = _limit_from_environment() if limit is None else limit
        self._used: set[Path] = set()  # shards that this process uses, which it must not remove
        self._full = False

    def find(self, space: str, keys: Collection[bytes]) -> list[Shard]:
        """Find the shards of a space that contain any of these texts.

        Damaged shards are removed.
        """
        try:
            paths = sorted((self.folder / space).glob(SHARDS))
        except OSError as error:
            log.warning(f"features in {self.folder} cannot be read: {error}")
            return []
        shards = [shard for path in paths if (shard := self._read(path, keys))]
        self._used |= {shard.path for shard in shards if shard.path}
        return shards

    def save(self, space: str, texts: Mapping[bytes, Tensor]) -> Shard | None:
        """Write the features (T, C) of texts as one shard.

        Returns None if there is not enough space. The reason is logged once.
        """
        if self._full:
            return None
        states, name = torch.cat(list(texts.values())), hashlib.sha256(b"".join(texts))
        tensors = {
            "states": states,
            "ends": torch.tensor([len(rows) for rows in texts.values()]).cumsum(0),
            "keys": torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8).view(-1, 32),
            "checksums": torch.tensor([_crc32c(rows) for rows in texts.values()]),
        }
        try:
            while (path := self.folder / space / f"{name.hexdigest()}.safetensors").is_dir():
                name.update(b"+")  # a folder, which is not ours, already has that name
            self._make_room(states.nbytes)
            # with CRCs instead of a SHA-256, because they are ten times as fast
            write_tensors(path, tensors, {"crc32c": _index_checksum(tensors)}, checksum=False)
            with open_plain(path) as file:
                shard = _shard(path, tensors, _header(file))
        except (OSError, ResourceError) as error:
            log.info(f"features are not saved: {error}")
            self._full = True
            return None
        self._used.add(path)
        return shard

    def discard(self, shard: Shard, error: Exception) -> None:
        """Log that a shard cannot be used, and remove it.

        It is not removed if it was merely unreadable.
        """
        log.info(f"damaged features are computed again: {shard.path}: {error}")
        if shard.path and not isinstance(error, OSError):
            _remove(shard.path)

    def clear(self) -> int:
        """Remove every space, and return the number of bytes freed."""
        freed = 0
        for space in self._spaces():
            sweep(space, pattern=TEMPORARY)
            for path in [*space.glob(SHARDS), *space.glob(PLANS)]:
                size = _size(path)
                freed += size if _remove(path) else 0
            with suppress(OSError):  # the folder contains other files
                space.rmdir()
        return freed

    def spaces(self) -> list[tuple[str, int, int, float]]:
        """List the spaces, most recently used first.

        Each is a tuple (name, number of shards, bytes, time of last use).
        """
        rows = []
        for space in self._spaces():
            shards = list(space.glob(SHARDS))
            used = max(map(_modified, shards), default=0.0)
            rows.append((space.name, len(shards), sum(map(_size, shards)), used))
        return sorted(rows, key=lambda row: -row[3])

    def _read(self, path: Path, keys: Collection[bytes]) -> Shard | None:
        """Read and check a shard.

        Returns None if it is damaged or contains none of the texts.
        """
        try:
            with open_plain(path) as file:
                header = _header(file)
                tensors = {name: header.tensor(file, name) for name in TENSORS}
            shard = _shard(path, tensors, header)
            if not any(key in keys for key in shard.places):
                return None
            if header.metadata["crc32c"] != _index_checksum(tensors):
                raise ValueError("its index does not match its checksum")
            states = tensors["states"]
            if any(_crc32c(states[rows]) != shard.checksums[k] for k, rows in shard.places.items()):
                raise ValueError("its contents do not match their checksums")
            if not torch.stack(torch.aminmax(states)).isfinite().all():
                raise ValueError("it contains NaN or infinity")
            with suppress(OSError):  # the folder belongs to another user
                os.utime(path)  # marks it as recently used
            return shard
        except FileNotFoundError:  # another process removed it to free space
            return None
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            log.info(f"damaged features are computed again: {path}: {error}")
            _remove(path)
            return None
        except OSError as error:
            log.warning(f"features in {path} cannot be read: {error}")
            return None

    def _make_room(self, needed: int) -> None:
        """Remove the least recently used shards to make space.

        This also removes temporary files of killed processes. Raises ResourceError or OSError if there
        is not enough space.
        """
        sweep(self.folder, STALE, f"*/{TEMPORARY}")
        sizes = {path: _size(path) for path in sorted(self._paths(SHARDS), key=_modified)}
        total = sum(sizes.values()) + sum(map(_size, self._paths(f"{TEMPORARY}/*")))
        mine = sum(size for path, size in sizes.items() if path in self._used)
        if mine + needed <= self.limit:  # otherwise removing all other shards would not be enough
            for path, size in sizes.items():
                if total + needed > self.limit and path not in self._used and _remove(path):
                    total -= size
        if total + needed > self.limit:
            raise ResourceError(
                f"they do not fit into the cache, whose limit is {self.limit / GB:.1f} GB. "
                f"Set {LIMIT_VARIABLE} to raise it."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free < needed + SPARE:
            raise ResourceError(
                f"they would leave less than {SPARE / GB:.0f} GB of free disk space in {self.folder}"
            )

    def _spaces(self) -> list[Path]:
        return sorted({path.parent for ours in OURS for path in self._paths(ours)})

    def _paths(self, pattern: str) -> list[Path]:
        """Return the paths in all spaces that match a pattern.

        The list is empty if the folder is unreadable.
        """
        try:
            return list(self.folder.glob(f"*/{pattern}"))
        except OSError:
            return []


def open_plain(path: Path) -> BufferedReader:
    """Open a shard to read bytes. Raises ValueError for a pipe, a folder or a symbolic link."""
    if path.is_symlink() and path.exists():
        raise ValueError("it is a symbolic link")
    try:  # a pipe without a writer would block
        file = open(path, "rb", opener=lambda p, flags: os.open(p, flags | NO_WAIT))
    except IsADirectoryError:
        raise ValueError("it is a folder") from None
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise ValueError("it is a socket") from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


@dataclass(frozen=True)
class _Header:
    """The header of a shard, which describes its tensors."""

    entries: Mapping[str, Any]
    end: int  # bytes of the header; the tensors follow
    size: int  # bytes of the file

    @property
    def metadata(self) -> Any:
        return self.entries["__metadata__"]

    def place(self, name: str) -> tuple[int, int]:
        """Return where a tensor begins and ends in the file, in bytes."""
        start, end = (self.end + n for n in self.entries[name]["data_offsets"])
        if not self.end <= start <= end <= self.size:
            raise ValueError(f"{name} is not inside the file")
        return start, end

    def tensor(self, file: BufferedReader, name: str) -> Tensor:
        """Read a tensor."""
        start, end = self.place(name)
        file.seek(start)
        raw, entry = bytearray(end - start), self.entries[name]
        file.readinto(raw)
        return torch.frombuffer(raw, dtype=DTYPES[entry["dtype"]]).view(entry["shape"])


def _header(file: BufferedReader) -> _Header:
    """Read a shard's header. Raises ValueError or a similar error if the file is not a shard."""
    length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    if length > LARGEST_HEADER or size > LARGEST:
        raise ValueError("it is larger than any shard")
    entries = json.loads(file.read(length), object_pairs_hook=each_once)
    return _Header(entries, 8 + length, size)


def _shard(path: Path, tensors: Mapping[str, Tensor], header: _Header) -> Shard:
    """Make a shard from the tensors of its file. Raises ValueError if they do not fit together."""
    states, ends, keys, checksums = (tensors[name] for name in TENSORS)
    n = len(ends)
    shapes = states.dim() == 2 and (ends.shape, checksums.shape) == ((n,), (n,))
    if not shapes or keys.shape != (n, 32) or keys.dtype != torch.uint8:
        raise ValueError("its tensors do not have the shapes of a shard")
    bounds, names = [0, *ends.tolist()], [key.tobytes() for key in keys.numpy()]
    if sorted(set(bounds)) != bounds or len(set(names)) < n or bounds[-1] != len(states):
        raise ValueError("its texts do not fit its states")
    places = {
        key: slice(start, end) for key, (start, end) in zip(names, pairwise(bounds), strict=True)
    }
    found = dict(zip(names, checksums.tolist(), strict=True))
    return Shard(places, states.shape[1], states.dtype, path, header.place("states")[0], found)


def _crc32c(tensor: Tensor) -> int:
    return google_crc32c.extend(0, tensor.contiguous().view(torch.uint8).numpy())


def _index_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Compute a checksum of everything but the states.

    The states have checksums of their own.
    """
    states = tensors["states"]
    found = [f"{states.dtype} {tuple(states.shape)}"]
    found += [f"{_crc32c(tensors[name]):08x}" for name in TENSORS[1:]]
    return " ".join(found)


def _remove(path: Path) -> bool:
    """Remove a file. Returns False if that is not possible."""
    try:
        path.unlink(missing_ok=True)
        return True
    except OSError:  # the folder belongs to another user
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed by another process
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed by another process
        return 0.0


def _limit_from_environment() -> float:
    value = os.environ.get(LIMIT_VARIABLE)
    if value is None:
        return DEFAULT_LIMIT
    try:
        limit = float(value) * GB
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise UsageError(f"{LIMIT_VARIABLE} = {value!r} must be a number of gigabytes, at least 0")
    return limit
