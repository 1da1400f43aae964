"""OpenAI's TensorFlow checkpoint -> {name: numpy array}, without TensorFlow.

A TensorFlow "tensor bundle" is two files. `model.ckpt.data-00000-of-00001` holds the bare numbers
of all tensors, one after the other. `model.ckpt.index` says where each one is. It is a LevelDB
table of protobuf messages:

    ""             -> BundleHeaderProto: number of data files, byte order
    <tensor name>  -> BundleEntryProto: type, shape, place in the data file, CRC-32C of the data

So 5 kB of index verify 498 MB of data. Nothing is left unchecked, because the tensors must fill the
data file without a gap. (A CRC detects accidents; against malice pin the SHA-256 of the files.)

Particularities of OpenAI's files: the names look like `model/h0/attn/c_attn/w`; the matrices of the
blocks are stored as convolutions, [1, in, out]; there is no output matrix, `model/wte` is used.

This file has three sections: the tensor bundle, the LevelDB table, the protobuf messages. Functions
of the last two raise ValueError with what is wrong; the first adds where, as a CheckpointError.

Sources: tensorflow/core/util/tensor_bundle/tensor_bundle.cc, core/protobuf/tensor_bundle.proto;
LevelDB, doc/table_format.md; https://protobuf.dev/programming-guides/encoding.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.storage.files import HEAD, and_is, open_regular
from gpt2_from_scratch.storage.paths import expanded

# --- The tensor bundle: an index of tensors, and their numbers. ---

LARGEST_INDEX = 1 << 20  # bytes; the index of the largest GPT-2, 1558M, has about 21,000
MOST_DIMENSIONS = 8

# {number in TensorFlow's types.proto: numpy's type}, as far as a GPT-2 may use them; "<" is little
# endian
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}

# the messages' fields, {tag: name}
HEADER = {0o10: "num_shards", 0o20: "endianness", 0o32: "version"}
ENTRY = {0o10: "dtype", 0o22: "shape", 0o30: "shard", 0o40: "offset", 0o50: "size", 0o65: "crc32c"}
SHAPE = {0o22: "dimension"}  # may be repeated; the fields of the other messages may not
DIMENSION = {0o10: "size", 0o22: "name"}


@dataclass(frozen=True)
class TensorEntry:
    """One record of the index: type, shape, place and checksum of a tensor."""

    name: str  # as on disk: "model/h0/attn/c_attn/w"
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the data file
    size: int  # bytes
    crc32c: int  # as on disk, that is, masked


class Arrays(Mapping[str, np.ndarray]):
    """A checkpoint's arrays by name, in the data's order; each look-up maps one from the file.

    An array that is dropped frees its memory, so a loader that copies one array after the other
    never holds the checkpoint twice. Arrays may be changed; the file does not change. Raises
    CheckpointError if the file has become shorter.
    """

    def __init__(self, entries: dict[str, TensorEntry], path: Path):
        self.entries, self.path = entries, path

    def __getitem__(self, name: str) -> np.ndarray:
        e = self.entries[name]
        try:
            # "c", copy on write: torch warns about read-only arrays
            mapped = np.memmap(self.path, e.dtype, mode="c", offset=e.offset, shape=e.shape)
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from None
        return np.asarray(mapped)  # a plain array, because np.memmap's own methods are not needed

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_index(path: Path | str) -> dict[str, TensorEntry]:
    """Read `model.ckpt.index` and check every byte of it.

    Returns the entries in the order of the data. Raises CheckpointError with the file and what is
    wrong with it.
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
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}{and_is(raw)}. Download the file again") from None


def open_arrays(folder: Path | str) -> Arrays:
    """Open a checkpoint as {name: array, in the shape it has on disk}; reads no array yet.

    `folder` holds `model.ckpt.*`; a path like `folder/model.ckpt` is also accepted. The index and
    the size of the data file are checked; `check_tensors` checks the data themselves. Raises
    CheckpointError. The files must not become shorter while the arrays are in use.
    """
    folder = expanded(folder)
    index, data = _files(folder)
    return _open(read_index(index), data)


def check_tensors(
    folder: Path | str, data: Path | None = None
) -> Iterator[tuple[TensorEntry, bool, int, int]]:
    """Check the data tensor by tensor: yields (entry, undamaged?, expected CRC, found CRC).

    Both CRCs are masked, as on disk. If `data` is given, that file is checked instead of the
    folder's own. Raises CheckpointError before the first tensor if the files cannot be opened as a
    checkpoint.
    """
    index, own_data = _files(folder)
    arrays = _open(read_index(index), data or own_data)
    for name, entry in arrays.entries.items():
        found = masked_crc32c(arrays[name])
        yield entry, found == entry.crc32c, entry.crc32c, found


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """CRC-32C of some bytes, masked as LevelDB and TensorFlow store it next to these bytes.

    The CRC of bytes that contain their own CRC is a constant; the mask breaks that. An array in C
    order is not copied, so a mapped one of any size takes no memory of its own.

    Source: LevelDB, util/crc32c.h.
    """
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _files(folder: Path | str) -> tuple[Path, Path]:
    prefix = Path(folder) / "model.ckpt" if os.path.isdir(folder) else Path(folder)
    return Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001")


def _open(entries: dict[str, TensorEntry], path: Path) -> Arrays:
    """The arrays of a data file, which must have the size that the index describes."""
    expected = sum(entry.size for entry in entries.values())  # there is no gap between them
    try:
        with open_regular(path) as file:
            found, kind = os.fstat(file.fileno()).st_size, and_is(file.read(HEAD))
    except OSError as error:
        raise _unreadable(path, error) from None
    if found != expected:
        raise CheckpointError(
            f"{path} has {found:,} bytes{kind}; its index describes {expected:,}. "
            "Download the file again"
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
            raise ValueError(f"{key!r} follows {previous!r}: a name is repeated or out of order")
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
        raise ValueError(f"unknown TensorFlow type number {fields['dtype']}; known are {DTYPES}")
    dtype = np.dtype(DTYPES[fields["dtype"]])
    dimensions = read_message(fields["shape"], SHAPE)
    shape = tuple(read_fields(dimension, DIMENSION)["size"] for _, dimension in dimensions)
    if len(shape) > MOST_DIMENSIONS or 0 in shape:
        raise ValueError(f"a shape of {shape} is not expected in a GPT-2")
    if math.prod(shape) * dtype.itemsize != fields["size"]:
        raise ValueError(f"{fields['size']} bytes do not make {dtype} of the shape {shape}")
    if fields["shard"] != 0:
        raise ValueError(f"it is in shard {fields['shard']}, but there is only shard 0")
    crc = int.from_bytes(fields["crc32c"], "little")
    return TensorEntry(name, dtype, shape, fields["offset"], fields["size"], crc)


# --- The LevelDB table: sorted (key, value) pairs of bytes. ---
#
# It is read from its end:
#
#     data blocks     the records
#     metaindex block empty here
#     index block     records too: a key that closes a data block -> where that block is
#     footer          48 bytes: where metaindex and index are, zeros up to byte 40, the magic number
#
# After each block come 5 bytes, its compression type and a CRC-32C of everything before. Nothing is
# left unchecked, because blocks and footer fill the file without a gap.

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48  # bytes
TRAILER = 5  # bytes after each block: compression type, masked CRC-32C
LONGEST_KEY = 256  # bytes


def read_table(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Read all records of a table, in order; its blocks and footer must fill `raw`."""
    footer = len(raw) - FOOTER
    if footer < 0 or not raw.endswith(MAGIC):
        raise ValueError(f"not a LevelDB table; it has {len(raw):,} bytes")
    handles, position = read_varints(raw, footer, 4)  # a handle: offset and size of a block
    metaindex, index = handles[:2], handles[2:]
    if any(raw[position : -len(MAGIC)]):
        raise ValueError("the footer is not padded with zeros")
    blocks = [read_varints(value, 0, 2)[0] for _, value in _records(_block(raw, index))]
    end = 0
    for offset, size in [*blocks, metaindex, index]:
        if offset != end:
            raise ValueError(f"a block begins at byte {offset}, but the one before ends at {end}")
        end += size + TRAILER
    if end != footer:
        raise ValueError(f"the blocks end at byte {end}, but the footer begins at {footer}")
    if _records(_block(raw, metaindex)):
        raise ValueError("the metaindex block is not empty")
    return [record for block in blocks for record in _records(_block(raw, block))]


def _block(raw: bytes, handle: list[int]) -> bytes:
    """The contents of one block, after a check of its CRC."""
    offset, size = handle
    end = offset + size
    if end + TRAILER > len(raw) - FOOTER:
        raise ValueError(f"a block at byte {offset} of {size} bytes goes beyond the file")
    found = masked_crc32c(raw[offset : end + 1])  # the CRC covers the type too
    expected = int.from_bytes(raw[end + 1 : end + TRAILER], "little")
    if found != expected:
        raise ValueError(
            f"the block at byte {offset} is damaged: CRC-32C {found:08x} instead of {expected:08x}"
        )
    if raw[end] != 0:
        raise ValueError(f"the block at byte {offset} is compressed (type {raw[end]})")
    return raw[offset:end]


def _records(block: bytes) -> list[tuple[bytes, bytes]]:
    """The keys and values of a block; each key is stored as its difference from the one before."""
    # After the records come the offsets of some keys that are stored whole, for searching, and
    # their number. They are skipped, because all records are read.
    end = len(block) - 4 * (int.from_bytes(block[-4:], "little") + 1)
    if end < 0:
        raise ValueError("a block is shorter than its list of restarts")
    records, key, position = [], b"", 0
    while position < end:
        (shared, unshared, length), start = read_varints(block, position, 3)
        middle, position = start + unshared, start + unshared + length
        if shared > len(key) or position > end:
            raise ValueError("a record goes beyond its block")
        key = key[:shared] + block[start:middle]
        if len(key) > LONGEST_KEY:
            raise ValueError(f"a name has {len(key)} bytes; at most {LONGEST_KEY} are allowed")
        records.append((key, block[middle:position]))
    return records


# --- Protobuf messages, as far as TensorFlow's checkpoints use them. ---
#
# A message is a sequence of tags and values. In octal a tag reads: the number of the field, then
# how its value is stored: 0 as a varint, 5 as four bytes, 2 as a length and that many bytes. A
# schema says which tags are allowed and what they mean, {0o10: "dtype", ...}; any other tag is an
# error.

VARINT, FOUR_BYTES = 0, 5


def read_fields(raw: bytes, schema: dict[int, str]) -> dict[str, Any]:
    """Read a message without repeated fields; a missing one is zero or empty, as in proto3."""
    pairs = read_message(raw, schema)
    if len(pairs) != len(dict(pairs)):
        raise ValueError("a field is repeated")
    return {name: 0 if tag & 7 == VARINT else b"" for tag, name in schema.items()} | dict(pairs)


def read_message(raw: bytes, schema: dict[int, str]) -> list[tuple[str, Any]]:
    """Read the (name, value) pairs of a message, in order; values are numbers or bytes."""
    pairs: list[tuple[str, Any]] = []
    position = 0
    while position < len(raw):
        (tag,), position = read_varints(raw, position, 1)
        if tag not in schema:
            raise ValueError(f"unknown tag 0o{tag:o}; the fields are {sorted(schema.values())}")
        value: Any = 4
        if tag & 7 != FOUR_BYTES:
            (value,), position = read_varints(raw, position, 1)
        if tag & 7 != VARINT:  # then that is the length of the value
            value, position = raw[position : position + value], position + value
        if position > len(raw):
            raise ValueError("a field goes beyond its message")
        pairs.append((schema[tag], value))
    return pairs


def read_varints(raw: bytes, position: int, count: int) -> tuple[list[int], int]:
    """Read `count` varints from `position` on; returns them and the position after them.

    A varint has 7 bits of the number in each byte, the lowest first; the top bit says that another
    byte follows.
    """
    numbers = []
    for _ in range(count):
        end = position + 1
        while raw[end - 1 : end] >= b"\x80":
            end += 1
        digits = raw[position:end]
        # zeros at the end would be a second spelling of the same number, which could hide a flip
        if end > len(raw) or len(digits) > 10 or digits[1:].endswith(b"\0"):
            raise ValueError("a number is cut off or too long")
        numbers.append(sum((digit & 0x7F) << 7 * i for i, digit in enumerate(digits)))
        position = end
    return numbers, position
