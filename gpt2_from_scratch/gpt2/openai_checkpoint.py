"""Read OpenAI's TensorFlow checkpoint as {name: numpy array}, without TensorFlow.

A TensorFlow "tensor bundle" consists of two files. `model.ckpt.data-00000-of-00001` contains the
values of all tensors, one after the other. `model.ckpt.index` describes where each tensor is. It is a
LevelDB table of protobuf messages:

    ""             -> BundleHeaderProto: number of data files, byte order
    <tensor name>  -> BundleEntryProto: type, shape, offset in the data file, CRC-32C of the data

A large checkpoint can have several data files, called shards. Other programs use other names in place
of `model.ckpt`, for example `model-1000`.

An index of 5 kB thus verifies 498 MB of data. Every byte is checked, because the tensors must fill
the data files without a gap. A CRC detects accidental changes only; a SHA-256 of the files also
detects deliberate ones.

In OpenAI's files, names look like `model/h0/attn/c_attn/w`. The matrices of the blocks are stored as
convolutions, [1, in, out]. There is no output matrix, because `model/wte` is also used as the output
matrix.

This file has three sections: the tensor bundle, the LevelDB table and the protobuf messages.
Functions of the last two sections raise ValueError with the reason. Functions of the first section
turn that into a CheckpointError that names the file.

Sources: tensorflow/core/util/tensor_bundle/tensor_bundle.cc, core/protobuf/tensor_bundle.proto;
LevelDB, doc/table_format.md; https://protobuf.dev/programming-guides/encoding.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.gpt2.folders import tensorflow_prefix
from gpt2_from_scratch.storage.files import HEAD, and_is, open_regular
from gpt2_from_scratch.storage.paths import expanded

# --- The tensor bundle: an index of tensors, and their values. ---

LARGEST_INDEX = 1 << 20  # bytes; the index of the largest GPT-2, 1558M, has about 21,000
MOST_DIMENSIONS = 8

# {number in TensorFlow's types.proto: numpy type}, for the types allowed here; "<" is little-endian
BFLOAT16 = np.dtype([("bfloat16", "<u2")])  # numpy has no such type: the upper half of a float32
DTYPES: dict[int, Any] = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 14: BFLOAT16, 19: "<f2"}
MOST_SHARDS = 1000

# fields of the messages, {tag: name}
HEADER = {0o10: "num_shards", 0o20: "endianness", 0o32: "version"}
ENTRY = {0o10: "dtype", 0o22: "shape", 0o30: "shard", 0o40: "offset", 0o50: "size", 0o65: "crc32c"}
SHAPE = {0o22: "dimension"}  # may be repeated; the fields of the other messages may not
DIMENSION = {0o10: "size", 0o22: "name"}


@dataclass(frozen=True)
class TensorEntry:
    """The type, shape, position and checksum of a tensor in the index."""

    name: str  # as on disk, for example "model/h0/attn/c_attn/w"
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the data file
    size: int  # bytes
    crc32c: int  # masked, as on disk
    shard: int = 0  # number of the data file


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a checkpoint by name, ordered as on disk.

    Each look-up maps one array from the file, and its memory is freed when the array is no longer
    used. A loader that copies the arrays one after the other therefore never has the checkpoint in
    memory twice. Changing an array does not change the file. Raises CheckpointError if the file has
    become shorter.
    """

    def __init__(self, entries: dict[str, TensorEntry], paths: Sequence[Path]):
        self.entries, self.paths = entries, paths

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values_of(self.raw(name))

    def raw(self, name: str) -> np.ndarray:
        """Map an array as it is stored. Its bytes are those of the checksum."""
        e = self.entries[name]
        path = self.paths[e.shard]
        try:
            # copy on write ("c"), because torch warns about read-only arrays
            mapped = np.memmap(path, e.dtype, mode="c", offset=e.offset, shape=e.shape)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        return np.asarray(mapped)  # as an ordinary array

    @staticmethod
    def values_of(raw: np.ndarray) -> np.ndarray:
        """Return the values of a stored array. bfloat16 becomes float32, without rounding."""
        if raw.dtype != BFLOAT16:
            return raw
        return (raw["bfloat16"].astype("<u4") << 16).view("<f4")

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_index(path: Path | str) -> dict[str, TensorEntry]:
    """Read `model.ckpt.index` and check every byte of it.

    Returns the entries in the order of the data file. Raises CheckpointError if the index is damaged.
    """
    return _read_index(Path(path))[0]


def _read_index(path: Path) -> tuple[dict[str, TensorEntry], int]:
    """Read an index. Returns its entries and the number of data files."""
    try:
        with open_regular(path) as file:
            raw = file.read(LARGEST_INDEX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(path, error) from None
    if len(raw) > LARGEST_INDEX:
        raise CheckpointError(f"{path} is too large for the index of a GPT-2{and_is(raw)}")
    try:
        records = read_table(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}{and_is(raw)}. Download the file again.") from None
    try:
        return _read_entries(records)
    except ValueError as error:  # the CRCs are correct, so another file would not help
        raise CheckpointError(f"{path}: {error}") from None


def open_arrays(folder: Path | str) -> Arrays:
    """Open a checkpoint as {name: array in the shape on disk}.

    The arrays are read later, when they are used. `folder` contains `model.ckpt.*`; a path such as
    `folder/model.ckpt` or `folder/model-1000` is also accepted. This checks the index and the size of
    the data files, but not the data (see `check_tensors`). The files must not become shorter while the
    arrays are in use. Raises CheckpointError if a file is missing or damaged.
    """
    return _open(_prefix(expanded(folder)))


def check_tensors(
    folder: Path | str, data: Path | None = None
) -> Iterator[tuple[TensorEntry, bool, int, int]]:
    """Check the data tensor by tensor. Yields (entry, is it undamaged, expected CRC, found CRC).

    Both CRCs are masked, as on disk. If `data` is given, that file is checked instead of the data
    file in the folder. Raises CheckpointError before the first tensor if the files are not a valid
    checkpoint.
    """
    arrays = _open(_prefix(Path(folder)), data)
    for name, entry in arrays.entries.items():
        found = masked_crc32c(arrays.raw(name))
        yield entry, found == entry.crc32c, entry.crc32c, found


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """Compute the masked CRC-32C of bytes, as LevelDB and TensorFlow store it.

    The CRC of bytes that contain their own CRC is a constant. Masking the stored CRC avoids that. An
    array in C order is not copied, so a mapped array of any size needs no memory.

    Source: LevelDB, util/crc32c.h.
    """
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _prefix(folder: Path) -> Path:
    """Return the path of a checkpoint without the endings of its files."""
    if not os.path.isdir(folder):
        return folder
    return folder / (tensorflow_prefix(folder) or "model.ckpt")


def data_files(prefix: Path, shards: int) -> list[Path]:
    """Return the paths of a checkpoint's data files."""
    return [Path(f"{prefix}.data-{n:05d}-of-{shards:05d}") for n in range(shards)]


def _open(prefix: Path, data: Path | None = None) -> Arrays:
    """Open the arrays of a checkpoint, and check the sizes of its data files."""
    entries, shards = _read_index(Path(f"{prefix}.index"))
    paths = data_files(prefix, shards) if data is None else [data]
    for shard, path in enumerate(paths):
        # there are no gaps between tensors
        expected = sum(entry.size for entry in entries.values() if entry.shard == shard)
        try:
            with open_regular(path) as file:
                found, kind = os.fstat(file.fileno()).st_size, and_is(file.read(HEAD))
        except OSError as error:
            raise _unreadable(path, error) from None
        if found != expected:
            raise CheckpointError(
                f"{path} has {found:,} bytes{kind}, but its index describes {expected:,}. "
                "Download the file again."
            )
    return Arrays(entries, paths)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(f"{path} cannot be read: {reason}")


def _read_entries(records: list[tuple[bytes, bytes]]) -> tuple[dict[str, TensorEntry], int]:
    """Convert the table's records to entries, and return the number of data files.

    The tensors of a data file must not have gaps between them.
    """
    if not records or records[0][0] != b"":
        raise ValueError("it has no header")
    header = read_fields(records[0][1], HEADER)
    shards = header["num_shards"]
    if not 1 <= shards <= MOST_SHARDS or header["endianness"] != 0:
        raise ValueError(
            f"there must be 1 to {MOST_SHARDS} data files, and values in little-endian byte order"
        )
    entries, previous = {}, b""
    ends, last = [0] * shards, [b""] * shards  # of each data file
    for key, value in records[1:]:
        if key <= previous:
            raise ValueError(f"{key!r} follows {previous!r}: a name is repeated or out of order")
        try:
            entry = _read_entry(key.decode(), value, shards)
        except ValueError as error:
            raise ValueError(f"tensor {key!r}: {error}") from None
        shard = entry.shard
        if entry.offset != ends[shard]:
            raise ValueError(
                f"{key!r} begins at byte {entry.offset}, but {last[shard]!r} ends at {ends[shard]}"
            )
        entries[entry.name] = entry
        ends[shard], last[shard], previous = ends[shard] + entry.size, key, key
    if not entries:
        raise ValueError("it describes no tensors")
    return entries, shards


def _read_entry(name: str, raw: bytes, shards: int) -> TensorEntry:
    fields = read_fields(raw, ENTRY)
    if fields["dtype"] not in DTYPES:
        raise ValueError(f"unknown TensorFlow type {fields['dtype']}; known types: {DTYPES}")
    dtype = np.dtype(DTYPES[fields["dtype"]])
    dimensions = read_message(fields["shape"], SHAPE)
    shape = tuple(read_fields(dimension, DIMENSION)["size"] for _, dimension in dimensions)
    if len(shape) > MOST_DIMENSIONS or 0 in shape:
        raise ValueError(f"a shape of {shape} is not expected in a GPT-2")
    if math.prod(shape) * dtype.itemsize != fields["size"]:
        raise ValueError(f"{fields['size']} bytes do not fit {dtype} values of shape {shape}")
    if fields["shard"] >= shards:
        raise ValueError(f"it is in shard {fields['shard']}, but the last one is {shards - 1}")
    crc = int.from_bytes(fields["crc32c"], "little")
    return TensorEntry(name, dtype, shape, fields["offset"], fields["size"], crc, fields["shard"])


# --- The LevelDB table: sorted (key, value) pairs of bytes. ---
#
# Its parts, in the order of the file. Reading starts with the footer.
#
#     data blocks     the records
#     metaindex block empty in these files
#     index block     one record per data block: (a key >= all keys in the block, its position)
#     footer          48 bytes: positions of metaindex and index, zeros up to byte 40, magic number
#
# Each block is followed by 5 bytes: its compression type and a CRC-32C of the block and that type.
# Every byte is checked, because blocks and footer must fill the file without a gap.

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48  # bytes
TRAILER = 5  # bytes after each block: compression type and masked CRC-32C
LONGEST_KEY = 256  # bytes


def read_table(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Read all records of a table, in order. Its blocks and footer must fill `raw`."""
    footer = len(raw) - FOOTER
    if footer < 0 or not raw.endswith(MAGIC):
        raise ValueError(f"it is not a LevelDB table; it has {len(raw):,} bytes")
    handles, position = read_varints(raw, footer, 4)  # a handle is the offset and size of a block
    metaindex, index = handles[:2], handles[2:]
    if any(raw[position : -len(MAGIC)]):
        raise ValueError("the footer is not padded with zeros")
    blocks = [read_varints(value, 0, 2)[0] for _, value in _records(_block(raw, index))]
    end = 0
    for offset, size in [*blocks, metaindex, index]:
        if offset != end:
            raise ValueError(f"a block begins at byte {offset}, but the previous one ends at {end}")
        end += size + TRAILER
    if end != footer:
        raise ValueError(f"the blocks end at byte {end}, but the footer begins at {footer}")
    if _records(_block(raw, metaindex)):
        raise ValueError("the metaindex block is not empty")
    return [record for block in blocks for record in _records(_block(raw, block))]


def _block(raw: bytes, handle: list[int]) -> bytes:
    """Return the contents of a block, after checking its CRC."""
    offset, size = handle
    end = offset + size
    if end + TRAILER > len(raw) - FOOTER:
        raise ValueError(f"the block of {size} bytes at byte {offset} extends beyond the file")
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
    """Return the keys and values of a block.

    A key is not stored completely: the block contains the number of bytes that the key shares with
    the previous one, and its other bytes.
    """
    # The records are followed by restart points for searching: the offsets of some keys that are
    # stored completely, and their number. They are skipped, because all records are read.
    end = len(block) - 4 * (int.from_bytes(block[-4:], "little") + 1)
    if end < 0:
        raise ValueError("a block is shorter than its list of restart points")
    records, key, position = [], b"", 0
    while position < end:
        (shared, unshared, length), start = read_varints(block, position, 3)
        middle, position = start + unshared, start + unshared + length
        if shared > len(key) or position > end:
            raise ValueError("a record extends beyond its block")
        key = key[:shared] + block[start:middle]
        if len(key) > LONGEST_KEY:
            raise ValueError(f"a name has {len(key)} bytes; at most {LONGEST_KEY} are allowed")
        records.append((key, block[middle:position]))
    return records


# --- Protobuf messages, as far as TensorFlow's checkpoints use them. ---
#
# A message is a sequence of tags and values. The last octal digit of a tag is the type of its value:
# 0 is a varint, 5 is four bytes, 2 is a length followed by that number of bytes. The digits before it
# are the number of the field. A schema {0o10: "dtype", ...} lists the allowed tags and their names.
# Any other tag is an error.

VARINT, FOUR_BYTES = 0, 5


def read_fields(raw: bytes, schema: dict[int, str]) -> dict[str, Any]:
    """Read a message without repeated fields. A missing field is zero or empty, as in proto3."""
    pairs = read_message(raw, schema)
    if len(pairs) != len(dict(pairs)):
        raise ValueError("a field is repeated")
    return {name: 0 if tag & 7 == VARINT else b"" for tag, name in schema.items()} | dict(pairs)


def read_message(raw: bytes, schema: dict[int, str]) -> list[tuple[str, Any]]:
    """Read the (name, value) pairs of a message, in order. Values are integers or bytes."""
    pairs: list[tuple[str, Any]] = []
    position = 0
    while position < len(raw):
        (tag,), position = read_varints(raw, position, 1)
        if tag not in schema:
            raise ValueError(f"unknown tag 0o{tag:o}; the fields are {sorted(schema.values())}")
        value: Any = 4
        if tag & 7 != FOUR_BYTES:
            (value,), position = read_varints(raw, position, 1)
        if tag & 7 != VARINT:  # so far, `value` is only the length of the value
            value, position = raw[position : position + value], position + value
        if position > len(raw):
            raise ValueError("a field extends beyond its message")
        pairs.append((schema[tag], value))
    return pairs


def read_varints(raw: bytes, position: int, count: int) -> tuple[list[int], int]:
    """Read `count` varints, starting at `position`. Returns them and the position after them.

    Each byte of a varint contains 7 bits of the number, lowest bits first. Its top bit is set if
    another byte follows.
    """
    numbers = []
    for _ in range(count):
        end = position + 1
        while raw[end - 1 : end] >= b"\x80":
            end += 1
        digits = raw[position:end]
        # a number with zero bytes at the end has a shorter form; accepting both could hide damage
        if end > len(raw) or len(digits) > 10 or digits[1:].endswith(b"\0"):
            raise ValueError("a number is cut off or too long")
        numbers.append(sum((digit & 0x7F) << 7 * i for i, digit in enumerate(digits)))
        position = end
    return numbers, position
