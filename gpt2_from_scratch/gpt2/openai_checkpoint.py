"""OpenAI's TensorFlow checkpoint -> {name: numpy array}, with numpy alone.

A TensorFlow "tensor bundle" is two files. `model.ckpt.data-00000-of-00001` holds the bare numbers
of all tensors, one after the other. `model.ckpt.index` says where each one lies. It is a LevelDB
table (`leveldb_table.py`) of protobuf messages (`protobuf.py`):

    ""             -> BundleHeaderProto: how many data files, which byte order
    <tensor name>  -> BundleEntryProto: type, shape, place in the data file, CRC-32C of the data

So 5 kB of index vouch for 498 MB of data. Nothing is left unchecked, since the tensors must fill
the data file without a gap. (A CRC finds accidents; against malice pin the SHA-256 of the files.)

Oddities of OpenAI's files: the names are `model/h0/attn/c_attn/w` and the like; the matrices of the
blocks are written as convolutions, [1, in, out]; there is no output matrix, `model/wte` is used.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc, core/protobuf/tensor_bundle.proto.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.gpt2.crc32c import crc32c, masked
from gpt2_from_scratch.gpt2.leveldb_table import read_table
from gpt2_from_scratch.gpt2.protobuf import read_fields, read_message
from gpt2_from_scratch.storage.files import HEAD, and_is, open_regular

LARGEST_INDEX = 1 << 20  # bytes; the index of the largest GPT-2, 1558M, has about 21,000
MOST_DIMENSIONS = 8

# the numbers of TensorFlow's types.proto that a GPT-2 may be stored in; "<" is little endian
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}

# the messages' fields, {tag: name}
HEADER = {0o10: "num_shards", 0o20: "endianness", 0o32: "version"}
ENTRY = {0o10: "dtype", 0o22: "shape", 0o30: "shard", 0o40: "offset", 0o50: "size", 0o65: "crc32c"}
SHAPE = {0o22: "dimension"}  # may come many times, the other fields once
DIMENSION = {0o10: "size", 0o22: "name"}


@dataclass(frozen=True)
class TensorEntry:
    """One record of the index: what a tensor is, where its bytes lie, and their checksum."""

    name: str  # as on disk: "model/h0/attn/c_attn/w"
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the data file
    size: int  # bytes
    crc32c: int  # as on disk, that is, masked


class Arrays(Mapping[str, np.ndarray]):
    """A checkpoint's arrays by name, in the data's order; each look-up maps that one from the file.

    An array that is dropped gives back the memory its bytes took, so a loader that copies one after
    the other never holds the checkpoint twice. Arrays may be changed; the file never is. Raises
    CheckpointError when the file has become shorter.
    """

    def __init__(self, entries: dict[str, TensorEntry], path: Path):
        self.entries, self.path = entries, path

    def __getitem__(self, name: str) -> np.ndarray:
        e = self.entries[name]
        try:
            # "c", copy on write: torch warns about arrays that must not be written to
            mapped = np.memmap(self.path, e.dtype, mode="c", offset=e.offset, shape=e.shape)
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from None
        return np.asarray(mapped)  # a plain array, for np.memmap's own methods are not needed

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_index(path: Path | str) -> dict[str, TensorEntry]:
    """Read `model.ckpt.index` and check every byte of it; the entries come in the data's order.

    Raises CheckpointError, naming the file and what is wrong with it.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            raw = file.read(LARGEST_INDEX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(path, error) from None
    if len(raw) > LARGEST_INDEX:
        raise CheckpointError(f"{path} has too many bytes for the index of a GPT-2{and_is(raw)}")
    try:
        return _read_entries(read_table(raw))
    except ValueError as error:  # the parsers say what is wrong, here is added where
        raise CheckpointError(f"{path}: {error}{and_is(raw)}. Fetch the file again") from None


def open_arrays(folder: Path | str) -> Arrays:
    """Open a checkpoint as {name: array, in the shape it has on disk}, none of it read yet.

    `folder` holds `model.ckpt.*`; a path like `folder/model.ckpt` is also understood. The index is
    checked, and the data file's size; to check the data themselves use `check_tensors`.
    Raises CheckpointError. The files must not be shortened while the arrays are in use.
    """
    index, data = _files(folder)
    return _open(read_index(index), data)


def check_tensors(
    folder: Path | str, data: Path | None = None
) -> Iterator[tuple[TensorEntry, bool, int, int]]:
    """Check the data tensor by tensor: yields (entry, undamaged?, expected CRC, found CRC).

    Both CRCs are in the masked form in which they stand on disk. `data` is another data file to
    check, instead of the folder's own. Raises CheckpointError, before the first tensor, if the
    files cannot be opened as a checkpoint at all.
    """
    index, own_data = _files(folder)
    arrays = _open(read_index(index), data or own_data)
    for name, entry in arrays.entries.items():
        found = masked(crc32c(arrays[name]))
        yield entry, found == entry.crc32c, entry.crc32c, found


def _files(folder: Path | str) -> tuple[Path, Path]:
    prefix = Path(folder) / "model.ckpt" if os.path.isdir(folder) else Path(folder)
    return Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001")


def _open(entries: dict[str, TensorEntry], path: Path) -> Arrays:
    """The arrays of a data file, which must have the size that the index describes."""
    expected = sum(entry.size for entry in entries.values())  # they lie without a gap
    try:
        with open_regular(path) as file:
            found, kind = os.fstat(file.fileno()).st_size, and_is(file.read(HEAD))
    except OSError as error:
        raise _unreadable(path, error) from None
    if found != expected:
        raise CheckpointError(
            f"{path} has {found:,} bytes{kind}; its index describes {expected:,}. "
            "Fetch the file again"
        )
    return Arrays(entries, path)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(f"{path} cannot be read ({reason}); a model folder needs it")


def _read_entries(records: list[tuple[bytes, bytes]]) -> dict[str, TensorEntry]:
    """The table's records as entries; the tensors must follow one another without a gap."""
    if not records or records[0][0] != b"":
        raise ValueError("it has no header")
    header = read_fields(records[0][1], HEADER)
    if header["num_shards"] != 1 or header["endianness"] != 0:
        raise ValueError("the tensors are not in one file of little-endian numbers")
    entries, end, previous = {}, 0, b""
    for key, value in records[1:]:
        if key <= previous:
            raise ValueError(f"{key!r} follows {previous!r}: a name is twice or out of order")
        try:
            entry = _read_entry(key.decode(), value)
        except ValueError as error:
            raise ValueError(f"tensor {key!r}: {error}") from None
        if entry.offset != end:
            raise ValueError(f"{key!r} begins at byte {entry.offset}, the one before ends at {end}")
        entries[entry.name] = entry
        end, previous = end + entry.size, key
    if not entries:
        raise ValueError("it describes no tensors")
    return entries


def _read_entry(name: str, raw: bytes) -> TensorEntry:
    fields = read_fields(raw, ENTRY)
    if fields["dtype"] not in DTYPES:
        raise ValueError(f"TensorFlow's type number {fields['dtype']} is none of {DTYPES}")
    dtype = np.dtype(DTYPES[fields["dtype"]])
    dimensions = read_message(fields["shape"], SHAPE)
    shape = tuple(read_fields(dimension, DIMENSION)["size"] for _, dimension in dimensions)
    if len(shape) > MOST_DIMENSIONS or 0 in shape:
        raise ValueError(f"a shape of {shape} is not expected in a GPT-2")
    if math.prod(shape) * dtype.itemsize != fields["size"]:
        raise ValueError(f"{fields['size']} bytes do not make {dtype} of the shape {shape}")
    if fields["shard"] != 0:
        raise ValueError(f"in shard {fields['shard']}, but there is only shard 0")
    crc = int.from_bytes(fields["crc32c"], "little")
    return TensorEntry(name, dtype, shape, fields["offset"], fields["size"], crc)
