"""Features on disk: what frozen blocks made of a text, kept for the next run.

A space is a folder for one kind of features (these weights, this depth, this arithmetic); in it lie
shards, files of some tens of megabytes that are written once, whole, under a name made from what is
in them, and never changed. So two processes can use the store at once, and a kill or a full disk
leaves at worst a temporary file. A shard is a safetensors file of `states` (tokens, C), `ends` (N,)
and `keys` (N, 32). It is a cache: whatever is damaged is thrown away and computed again, and the
shards used longest ago go when the limit is reached.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2_from_scratch.errors import CheckpointError, ResourceError, UsageError
from gpt2_from_scratch.storage.files import STALE, atomic_path, sweep
from gpt2_from_scratch.storage.paths import features_folder
from gpt2_from_scratch.storage.tensors import check_header, write_tensors

log = logging.getLogger(__name__)

LIMIT_VARIABLE = "GPT2_FROM_SCRATCH_CACHE_GB"
GB = 1e9
DEFAULT_LIMIT = 20 * GB
NAME = "[0-9a-f]" * 64  # no file of another name is ever removed: the folder may be anybody's
SHARDS, PLANS, TEMPORARY = f"{NAME}.safetensors", f"{NAME}.plan", f".{NAME}.*.tmp"
OURS = f"*{NAME}.*"
SPARE = 1 * GB  # of the disk, which the store never takes


@dataclass
class Shard:
    """Features of some texts: held in memory, or read from their file one text at a time."""

    places: dict[bytes, slice]  # of each text's rows in `states`
    path: Path | None = None
    held: Tensor | None = field(default=None, repr=False)  # (tokens, C)

    @classmethod
    def of(cls, texts: Mapping[bytes, Tensor]) -> "Shard":
        """A shard in memory alone, of each text's features (T, C)."""
        return cls(_places(texts, _ends(texts)), None, torch.cat(list(texts.values())))

    def states(self, key: bytes) -> Tensor:
        """The features of one text: (T, C). Raises OSError where the file is gone."""
        if self.held is not None:
            return self.held[self.places[key]]
        # mapped for as long as it is read: touching one text's pages brings in megabytes around
        return self._from_file(self.places[key])

    def hold(self, device: torch.device | str = "cpu") -> None:
        """Keep all of it in a device's memory from now on. Raises OSError where the file is gone."""
        if self.held is None:
            self.held = self._from_file(slice(None)).clone()
        self.held = self.held.to(device)

    def _from_file(self, rows: slice) -> Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                return file.get_slice("states")[rows]
        except SafetensorError as error:
            raise OSError(f"{self.path}: {error}") from None

    @property
    def nbytes(self) -> int:
        """How much memory it takes to hold it, to within its small index."""
        return self.held.nbytes if self.held is not None else _size(self.path)


class FeatureStore:
    """A folder of features, with a limit to its size in bytes.

    Its default place is `paths.features_folder()`, its default limit 20 GB or
    $GPT2_FROM_SCRATCH_CACHE_GB.
    """

    def __init__(self, folder: Path | None = None, limit: float | None = None):
        self.folder = folder or features_folder()
        self.limit = _limit_from_environment() if limit is None else limit
        self._used: set[Path] = set()  # by this process, so not to be removed by it
        self._full = False

    def find(self, space: str, keys: Collection[bytes]) -> list[Shard]:
        """The shards of a space that hold any of these texts; damaged ones are removed."""
        shards = []
        try:
            paths = sorted((self.folder / space).glob(SHARDS))
        except OSError as error:
            log.warning(f"features in {self.folder} cannot be read: {error}")
            return []
        for path in paths:
            shard = self._read(path, keys)
            if shard is not None:
                self._used.add(path)
                shards.append(shard)
        return shards

    def save(self, space: str, texts: Mapping[bytes, Tensor]) -> Shard | None:
        """Write features (T, C) of texts as one shard; None, with a word why, if there is no room."""
        ends, states = _ends(texts), torch.cat(list(texts.values()))
        keys = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8).view(-1, 32)
        path = self.folder / space / f"{hashlib.sha256(b''.join(texts)).hexdigest()}.safetensors"
        if self._full or not self._make_room(states.nbytes):
            return None
        try:
            tensors = {"states": states, "ends": ends, "keys": keys}
            metadata = {"crc32c": _checksum(states, ends, keys)}  # ten times as fast as a SHA-256
            write_tensors(path, tensors, metadata, checksum=False)
        except ResourceError as error:
            self._no_room(f"features cannot be kept in {self.folder}: {error}")
            return None
        self._used.add(path)
        return Shard(_places(texts, ends), path)

    def plan(self, space: str, texts: Collection[bytes], missing: Collection[bytes]) -> set[bytes]:
        """The texts of this row that were missing when it was first asked for.

        To compute texts in batches of the same make-up after a kill, and so to the same bits: a
        matrix product's last bits depend on the rows beside. Kept until `done` with the row.
        """
        path = self._plan_path(space, texts)
        try:
            raw = path.read_bytes()
        except OSError:
            raw = b"".join(missing)
            with suppress(ResourceError), atomic_path(path) as temporary:
                temporary.write_bytes(raw)
        return {*_keys_in(raw), *missing}

    def done(self, space: str, texts: Collection[bytes]) -> None:
        """Forget the plan of a row: all of it is computed."""
        _remove(self._plan_path(space, texts))

    def clear(self) -> int:
        """Remove every space; returns the bytes that were freed."""
        freed = 0
        for space in self._spaces():
            sweep(space, pattern=TEMPORARY)
            for path in [*space.glob(SHARDS), *space.glob(PLANS)]:
                size = _size(path)
                freed += size if _remove(path) else 0
            with suppress(OSError):  # something of somebody else's lies there
                space.rmdir()
        return freed

    def spaces(self) -> list[tuple[str, int, int, float]]:
        """(name, shards, bytes, when last used) of each space, the latest first."""
        rows = []
        for space in self._spaces():
            shards = list(space.glob(SHARDS))
            used = max((_modified(path) for path in shards), default=0.0)
            rows.append((space.name, len(shards), sum(map(_size, shards)), used))
        return sorted(rows, key=lambda row: -row[3])

    def _read(self, path: Path, keys: Collection[bytes]) -> Shard | None:
        try:
            check_header(path)
            with safe_open(path, framework="pt") as file:
                tensors = [file.get_tensor(name) for name in ("states", "ends", "keys")]
                expected = file.metadata()["crc32c"]
            found = _keys_in(tensors[2].numpy().tobytes())
            if not any(key in keys for key in found):
                return None
            if _checksum(*tensors) != expected:
                raise ValueError("its checksum is not that of its numbers")
            with suppress(OSError):  # a folder of somebody else's
                os.utime(path)  # used now: others go first
            return Shard(_places(found, tensors[1]), path)
        except FileNotFoundError:  # another process made room
            return None
        except (CheckpointError, SafetensorError, KeyError, TypeError, ValueError) as error:
            log.info(f"damaged features, computed again: {path}: {error}")
            _remove(path)
            return None
        except OSError as error:
            log.warning(f"features in {path} cannot be read: {error}")
            return None

    def _plan_path(self, space: str, texts: Collection[bytes]) -> Path:
        return self.folder / space / f"{hashlib.sha256(b''.join(texts)).hexdigest()}.plan"

    def _make_room(self, needed: int) -> bool:
        """Remove what killed writers left, and shards used longest ago until there is room."""
        for space in self._spaces():
            sweep(space, STALE, TEMPORARY)
        files = sorted(self._files(), key=_modified)
        sizes = {path: _size(path) for path in files}
        being_written = [path for space in self._spaces() for path in space.glob(f"{TEMPORARY}/*")]
        total = sum(sizes.values()) + sum(map(_size, being_written))
        mine = sum(size for path, size in sizes.items() if path in self._used)
        for path in files:
            superfluous = path not in self._used and mine + needed <= self.limit < total + needed
            if superfluous and _remove(path):
                total -= sizes[path]
        if total + needed > self.limit:
            self._no_room(
                f"the features need more than the {self.limit / GB:.1f} GB that the cache may hold; "
                f"set {LIMIT_VARIABLE} to allow more"
            )
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            self._no_room(f"features cannot be kept in {self.folder}: {error}")
            return False
        if free < needed + SPARE:
            self._no_room(
                f"features are not kept: less than {SPARE / GB:.0f} GB is free on {self.folder}"
            )
            return False
        return True

    def _no_room(self, why: str) -> None:
        self._full = True  # said once, and not tried again
        log.info(why)

    def _spaces(self) -> list[Path]:
        try:
            folders = [path for path in self.folder.glob("*") if path.is_dir()]
            return [path for path in folders if any(path.glob(OURS))]
        except OSError:
            return []

    def _files(self) -> Iterator[Path]:
        for space in self._spaces():
            with suppress(OSError):
                yield from space.glob(SHARDS)


def _keys_in(raw: bytes) -> list[bytes]:
    return [raw[n : n + 32] for n in range(0, len(raw), 32)]


def _ends(texts: Mapping[bytes, Tensor]) -> Tensor:
    return torch.tensor([len(states) for states in texts.values()]).cumsum(0)


def _places(keys: Iterable[bytes], ends: Tensor) -> dict[bytes, slice]:
    return {
        key: slice(start, end)
        for key, (start, end) in zip(keys, pairwise([0, *ends.tolist()]), strict=True)
    }


def _checksum(*tensors: Tensor) -> str:
    crc = 0
    for tensor in tensors:
        crc = google_crc32c.extend(crc, f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        crc = google_crc32c.extend(crc, tensor.contiguous().view(torch.uint8).numpy())
    return str(crc)


def _remove(path: Path) -> bool:
    """Whether a file could be removed."""
    try:
        path.unlink(missing_ok=True)
        return True
    except OSError:  # a folder of somebody else's
        return False


def _limit_from_environment() -> float:
    value = os.environ.get(LIMIT_VARIABLE)
    if value is None:
        return DEFAULT_LIMIT
    try:
        limit = float(value) * GB
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise UsageError(f"{LIMIT_VARIABLE} = {value!r} must be a number of gigabytes from 0 up")
    return limit


def _size(path: Path | None) -> int:
    if path is None:
        return 0
    try:
        return path.stat().st_size
    except OSError:  # gone meanwhile
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
