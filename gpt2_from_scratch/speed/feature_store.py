"""Features on disk: the frozen blocks' output for each text, kept for the next run.

A space is a folder for one kind of features: the same weights, depth and arithmetic. It holds
shards, files of some tens of megabytes. A shard is written once, atomically, under a name made from
its contents, and never changed. So two processes can use the store at the same time, and a kill or a
full disk leaves at most a temporary file. A shard is a safetensors file of `states` (tokens, C),
`ends` (N,) and `keys` (N, 32). The store is a cache: damaged shards are removed and their texts
computed again, and the shards used longest ago are removed when the limit is reached.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2_from_scratch.errors import CheckpointError, ResourceError, UsageError
from gpt2_from_scratch.storage.files import STALE, sweep
from gpt2_from_scratch.storage.paths import expanded, features_folder
from gpt2_from_scratch.storage.tensors import check_header, write_tensors

log = logging.getLogger(__name__)

LIMIT_VARIABLE = "GPT2_FROM_SCRATCH_CACHE_GB"
GB = 1e9
DEFAULT_LIMIT = 20 * GB
SPARE = 1 * GB  # free disk space that the store leaves to others
# The folder may belong to somebody else, so no file with another kind of name is ever removed.
NAME = "[0-9a-f]" * 64
SHARDS, TEMPORARY = f"{NAME}.safetensors", f".{NAME}.*.tmp"
PLANS = f"{NAME}.plan"  # written by earlier versions
OURS = (SHARDS, TEMPORARY, PLANS)


@dataclass
class Shard:
    """Features of some texts, held in memory or read from a file one text at a time."""

    places: dict[bytes, slice]  # the rows of each text in `states`
    path: Path | None = None
    held: Tensor | None = field(default=None, repr=False)  # (tokens, C)

    @classmethod
    def of(cls, texts: Mapping[bytes, Tensor]) -> "Shard":
        """Make a shard in memory alone from the features (T, C) of each text."""
        return cls(_places(texts, _ends(texts)), None, torch.cat(list(texts.values())))

    def states(self, key: bytes) -> Tensor:
        """Return the features of one text: (T, C). Raises OSError if the file is gone."""
        if self.held is not None:
            return self.held[self.places[key]]
        # opened for each text: a page that is read stays in memory while the file is mapped
        return self._from_file(self.places[key])

    def hold(self, device: torch.device | str = "cpu") -> None:
        """Hold all features in a device's memory. Raises OSError if the file is gone."""
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
        """The memory that holding it takes, apart from its small index."""
        if self.held is not None:
            return self.held.nbytes
        return _size(self.path) if self.path else 0


class FeatureStore:
    """A folder of features with a limit on its size in bytes.

    The default folder is `paths.features_folder()`. The default limit is 20 GB, or the value of
    $GPT2_FROM_SCRATCH_CACHE_GB.
    """

    def __init__(self, folder: str | Path | None = None, limit: float | None = None):
        self.folder = features_folder() if folder is None else expanded(folder)
        self.limit = _limit_from_environment() if limit is None else limit
        self._used: set[Path] = set()  # shards that this process uses, and so does not remove
        self._full = False

    def find(self, space: str, keys: Collection[bytes]) -> list[Shard]:
        """Find the shards of a space that hold any of these texts, and remove damaged ones."""
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

        Returns None if there is no room for it; the reason is logged once.
        """
        if self._full:
            return None
        ends, states = _ends(texts), torch.cat(list(texts.values()))
        keys = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8).view(-1, 32)
        path = self.folder / space / f"{hashlib.sha256(b''.join(texts)).hexdigest()}.safetensors"
        tensors = {"states": states, "ends": ends, "keys": keys}
        try:
            self._make_room(states.nbytes)
            metadata = {"crc32c": _checksum(states, ends, keys)}  # ten times as fast as a SHA-256
            write_tensors(path, tensors, metadata, checksum=False)
        except (OSError, ResourceError) as error:
            log.info(f"features are not kept: {error}")
            self._full = True
            return None
        self._used.add(path)
        return Shard(_places(texts, ends), path)

    def clear(self) -> int:
        """Remove every space, and return the number of bytes that were freed."""
        freed = 0
        for space in self._spaces():
            sweep(space, pattern=TEMPORARY)
            for path in [*space.glob(SHARDS), *space.glob(PLANS)]:
                size = _size(path)
                freed += size if _remove(path) else 0
            with suppress(OSError):  # it holds files of somebody else
                space.rmdir()
        return freed

    def spaces(self) -> list[tuple[str, int, int, float]]:
        """List (name, shards, bytes, when last used) of each space, the latest first."""
        rows = []
        for space in self._spaces():
            shards = list(space.glob(SHARDS))
            used = max(map(_modified, shards), default=0.0)
            rows.append((space.name, len(shards), sum(map(_size, shards)), used))
        return sorted(rows, key=lambda row: -row[3])

    def _read(self, path: Path, keys: Collection[bytes]) -> Shard | None:
        """Read a shard's index and check its contents; None if it has none of the texts."""
        try:
            check_header(path)
            with safe_open(path, framework="pt") as file:
                tensors = [file.get_tensor(name) for name in ("states", "ends", "keys")]
                expected = file.metadata()["crc32c"]
            raw = tensors[2].numpy().tobytes()
            found = [raw[n : n + 32] for n in range(0, len(raw), 32)]
            if not any(key in keys for key in found):
                return None
            if _checksum(*tensors) != expected:
                raise ValueError("its contents do not match its checksum")
            with suppress(OSError):  # a folder of somebody else
                os.utime(path)  # used now, so others are removed first
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

    def _make_room(self, needed: int) -> None:
        """Remove the shards used longest ago until there is room for a new one.

        Also removes what killed writers left. Raises ResourceError or OSError if there is no room.
        """
        sweep(self.folder, STALE, f"*/{TEMPORARY}")
        sizes = {path: _size(path) for path in sorted(self._paths(SHARDS), key=_modified)}
        total = sum(sizes.values()) + sum(map(_size, self._paths(f"{TEMPORARY}/*")))
        mine = sum(size for path, size in sizes.items() if path in self._used)
        if mine + needed <= self.limit:  # otherwise removing the others would not be enough
            for path, size in sizes.items():
                if total + needed > self.limit and path not in self._used and _remove(path):
                    total -= size
        if total + needed > self.limit:
            raise ResourceError(
                f"they need more than the {self.limit / GB:.1f} GB that the cache may hold; "
                f"set {LIMIT_VARIABLE} to allow more"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free < needed + SPARE:
            raise ResourceError(f"less than {SPARE / GB:.0f} GB is free on {self.folder}")

    def _spaces(self) -> list[Path]:
        return sorted({path.parent for ours in OURS for path in self._paths(ours)})

    def _paths(self, pattern: str) -> list[Path]:
        """The paths in all spaces that match; none if the folder cannot be read."""
        try:
            return list(self.folder.glob(f"*/{pattern}"))
        except OSError:
            return []


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
    """Remove a file; returns False if that is not possible."""
    try:
        path.unlink(missing_ok=True)
        return True
    except OSError:  # a folder of somebody else
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed meanwhile
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
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
        raise UsageError(f"{LIMIT_VARIABLE} = {value!r} must be a number of gigabytes from 0 up")
    return limit
