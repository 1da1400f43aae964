"""Write checkpoints in OpenAI's format, TensorFlow's "tensor bundle", for tests and benchmarks.

The module that reads the format, `gpt2_from_scratch/gpt2/openai_checkpoint.py`, explains it. The
bytes are those that TensorFlow itself would write: tests compare them with TensorFlow's and
OpenAI's
files.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gpt2_from_scratch.gpt2.openai_checkpoint import (
    BFLOAT16,
    DTYPES,
    FOOTER,
    MAGIC,
    TensorEntry,
    masked_crc32c,
)

BLOCK_SIZE = 262_144  # after this many bytes, TensorFlow begins a new block
RESTART_EVERY = 16  # after this many records, a key is stored completely again
HEADER = bytes.fromhex("0801 1a02 0801")  # 1 shard, little endian, version {producer: 1}
NUMBER_OF = {np.dtype(name): number for number, name in DTYPES.items()}


def write_bundle(
    folder: Path, arrays: dict[str, np.ndarray], prefix: str = "model.ckpt", shards: int = 1
) -> None:
    """Write `model.ckpt.index` and `model.ckpt.data-00000-of-00001` into `folder`.

    With more shards, each array is in the next data file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries, offsets = [], [0] * shards
    paths = [folder / f"{prefix}.data-{n:05d}-of-{shards:05d}" for n in range(shards)]
    for path in paths:
        path.write_bytes(b"")
    ordered = sorted(arrays.items(), key=lambda item: item[0].encode())
    for number, (name, array) in enumerate(ordered):
        shape, raw = array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        shard = number % shards
        with paths[shard].open("ab") as file:
            file.write(raw.data)
        crc = masked_crc32c(raw)
        entry = TensorEntry(name, array.dtype, shape, offsets[shard], len(raw), crc, shard)
        entries.append(entry)
        offsets[shard] += len(raw)
    (folder / f"{prefix}.index").write_bytes(index_bytes(entries, shards=shards))


def as_bfloat16(array: np.ndarray) -> np.ndarray:
    """Return float32 values cut to bfloat16, as `write_bundle` writes them."""
    upper = (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2")
    return upper.view(BFLOAT16)


def write_random_gpt2(folder: Path, hparams: dict[str, int], seed: int = 0) -> None:
    """Write a folder like OpenAI's, but without the vocabulary: random weights, `hparams.json`."""
    write_bundle(folder, random_gpt2(hparams, seed))
    (folder / "hparams.json").write_text(json.dumps(hparams, indent=2) + "\n", encoding="utf-8")


def random_gpt2(hparams: dict[str, int], seed: int = 0, std: float = 0.2) -> dict[str, np.ndarray]:
    """Random float32 weights with OpenAI's names and shapes, including biases; gains are around 1.

    With a std of 0.2, instead of GPT-2's 0.02, each part of the network matters, so that mistakes
    show.
    """
    C = hparams["n_embd"]
    block = {
        "ln_1/g": (C,),
        "ln_1/b": (C,),
        "attn/c_attn/w": (1, C, 3 * C),
        "attn/c_attn/b": (3 * C,),
        "attn/c_proj/w": (1, C, C),
        "attn/c_proj/b": (C,),
        "ln_2/g": (C,),
        "ln_2/b": (C,),
        "mlp/c_fc/w": (1, C, 4 * C),
        "mlp/c_fc/b": (4 * C,),
        "mlp/c_proj/w": (1, 4 * C, C),
        "mlp/c_proj/b": (C,),
    }
    shapes = {"model/wte": (hparams["n_vocab"], C), "model/wpe": (hparams["n_ctx"], C)}
    for i in range(hparams["n_layer"]):
        shapes |= {f"model/h{i}/{name}": shape for name, shape in block.items()}
    shapes |= {"model/ln_f/g": (C,), "model/ln_f/b": (C,)}
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        arrays[name] = rng.standard_normal(shape, dtype=np.float32)
        arrays[name] *= np.float32(std)
        if name.endswith("/g"):
            arrays[name] += 1
    return arrays


def index_bytes(
    entries: Iterable[TensorEntry], block_size: int = BLOCK_SIZE, shards: int = 1
) -> bytes:
    """The index file of these entries, which are sorted by name."""
    header = HEADER[:1] + varint(shards) + HEADER[2:]
    records = [(b"", header)] + [(entry.name.encode(), _entry(entry)) for entry in entries]
    return table_bytes(records, block_size)


def table_bytes(records: list[tuple[bytes, bytes]], block_size: int = BLOCK_SIZE) -> bytes:
    """A LevelDB table of these records, cut into blocks in the same way as TensorFlow's."""
    blocks, pending = [], []
    for i, (key, value) in enumerate(records):
        pending.append((key, value))
        last = i + 1 == len(records)
        if last or len(block_bytes(pending)) >= block_size:
            bound = _successor(key) if last else _separator(key, records[i + 1][0])
            blocks.append((bound, block_bytes(pending)))
            pending = []
    return join_blocks(blocks)


def join_blocks(blocks: list[tuple[bytes, bytes]]) -> bytes:
    """Data blocks, each with a closing key; then the metaindex block, index block and footer."""
    raw, index = b"", []
    for bound, block in blocks:
        raw, handle = _append(raw, block)
        index.append((bound, handle))
    raw, metaindex = _append(raw, block_bytes([]))
    raw, handle = _append(raw, block_bytes(index, restart_every=1))
    return raw + (metaindex + handle).ljust(FOOTER - len(MAGIC), b"\0") + MAGIC


def block_bytes(records: list[tuple[bytes, bytes]], restart_every: int = RESTART_EVERY) -> bytes:
    """One block: records, offsets of the keys that are stored completely, and their number."""
    raw, restarts, previous = b"", [0], b""
    for i, (key, value) in enumerate(records):
        shared = 0
        if i % restart_every == 0:
            restarts += [len(raw)] if i else []
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        lengths = (shared, len(key) - shared, len(value))
        raw += b"".join(varint(length) for length in lengths) + key[shared:] + value
        previous = key
    return raw + b"".join(n.to_bytes(4, "little") for n in [*restarts, len(restarts)])


def trailer(block: bytes, compression: int = 0) -> bytes:
    """The 5 bytes after a block."""
    kind = bytes([compression])
    return kind + masked_crc32c(block + kind).to_bytes(4, "little")


def varint(number: int) -> bytes:
    raw = b""
    while number > 0x7F:
        raw += bytes([number & 0x7F | 0x80])
        number >>= 7
    return raw + bytes([number])


def _append(raw: bytes, block: bytes) -> tuple[bytes, bytes]:
    """`raw` with a block appended, and the handle with the block's position."""
    return raw + block + trailer(block), varint(len(raw)) + varint(len(block))


def _entry(entry: TensorEntry) -> bytes:
    """BundleEntryProto; as in all proto3 messages, zero fields are left out."""
    sizes = [b"\x08" + varint(size) for size in entry.shape]
    shape = b"".join(b"\x12" + varint(len(size)) + size for size in sizes)
    raw = b"\x08" + varint(NUMBER_OF[entry.dtype]) + b"\x12" + varint(len(shape)) + shape
    if entry.shard:
        raw += b"\x18" + varint(entry.shard)
    if entry.offset:
        raw += b"\x20" + varint(entry.offset)
    raw += b"\x28" + varint(entry.size)
    return raw + (b"\x35" + entry.crc32c.to_bytes(4, "little") if entry.crc32c else b"")


def _separator(key: bytes, after: bytes) -> bytes:
    """A short key that is at least `key` and less than `after`, chosen as in LevelDB."""
    same = 0
    while same < min(len(key), len(after)) and key[same] == after[same]:
        same += 1
    if same < min(len(key), len(after)) and key[same] + 1 < after[same]:
        return key[:same] + bytes([key[same] + 1])
    return key


def _successor(key: bytes) -> bytes:
    """A short key that is at least `key`."""
    return bytes([key[0] + 1]) if key and key[0] < 0xFF else key
