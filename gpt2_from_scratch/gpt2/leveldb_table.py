"""A LevelDB table -> its records, sorted (key, value) pairs of bytes; every byte is checked.

TensorFlow keeps the index of a checkpoint in this form. It is read from its end:

    data blocks     the records
    metaindex block empty here
    index block     records too: a key that closes a data block -> where that block lies
    footer          48 bytes: where metaindex and index lie, zeros up to byte 40, the magic number

Each block is followed by 5 bytes, its compression type and a CRC-32C of all before. Nothing is left
unchecked, since blocks and footer fill the file without a gap. (A CRC finds accidents; against
malice pin the SHA-256 of the file.) Every function raises ValueError, saying what is wrong.

Source: LevelDB, doc/table_format.md.
"""

from gpt2_from_scratch.gpt2.crc32c import crc32c, masked
from gpt2_from_scratch.gpt2.protobuf import read_varints

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48  # bytes
TRAILER = 5  # bytes after each block: compression type, masked CRC-32C
LONGEST_KEY = 256  # bytes


def read_table(raw: bytes) -> list[tuple[bytes, bytes]]:
    """All records of a table, in order; its footer and blocks must fill `raw` without a gap."""
    footer = len(raw) - FOOTER
    if footer < 0 or not raw.endswith(MAGIC):
        raise ValueError(f"no LevelDB table: it has {len(raw):,} bytes")
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
    """The contents of one block, its CRC checked."""
    offset, size = handle
    end = offset + size
    if end + TRAILER > len(raw) - FOOTER:
        raise ValueError(f"a block at byte {offset} of {size} bytes goes beyond the file")
    found = masked(crc32c(raw[offset : end + 1]))  # the type is covered too
    expected = int.from_bytes(raw[end + 1 : end + TRAILER], "little")
    if found != expected:
        raise ValueError(
            f"the block at byte {offset} is damaged: CRC-32C {found:08x} instead of {expected:08x}"
        )
    if raw[end] != 0:
        raise ValueError(f"the block at byte {offset} is compressed (type {raw[end]})")
    return raw[offset:end]


def _records(block: bytes) -> list[tuple[bytes, bytes]]:
    """The keys and values of a block; each key is stored as what differs from the one before."""
    # Behind the records stand the offsets of some keys that are stored whole, for searching, and
    # how many these are. All records are wanted here, so they are skipped.
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
            raise ValueError(f"a name of {len(key)} bytes; {LONGEST_KEY} are the most")
        records.append((key, block[middle:position]))
    return records
