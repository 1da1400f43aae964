"""OpenAI's and TensorFlow's checkpoints are read, and damage is noticed."""

import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from write_bundle import (
    HEADER,
    block_bytes,
    index_bytes,
    join_blocks,
    random_gpt2,
    table_bytes,
    trailer,
    varint,
    write_bundle,
    write_random_gpt2,
)

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.openai_checkpoint import (
    check_tensors,
    masked_crc32c,
    open_arrays,
    read_index,
)

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tf_checkpoint"
OPENAI = Path(__file__).parents[3] / "shared" / "openai_124M" / "model.ckpt.index"
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
HPARAMS = {"n_vocab": 277, "n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of TensorFlow's checkpoint that a test may damage."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "checkpoint"))


def outcome(path: Path, raw: bytes) -> dict | str:
    """Return the entries that read_index finds, or its error message. Other errors propagate."""
    path.unlink(missing_ok=True)  # overwriting a file would wait for the disk each time
    path.write_bytes(raw)
    try:
        return read_index(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return str(error)


# --- genuine files ---


def test_tensorflows_checkpoint_is_read_as_tensorflow_reads_it():
    expected = json.loads((FIXTURE / "expected.json").read_text())["tensors"]
    arrays = open_arrays(FIXTURE)
    assert list(arrays) == sorted(expected)
    for name, array in arrays.items():
        assert array.dtype.name == expected[name]["dtype"]
        assert list(array.shape) == expected[name]["shape"]
        assert array.reshape(-1)[:3].tolist() == expected[name]["first"]
        assert float(array.sum(dtype="float64")) == expected[name]["sum"]
        assert hashlib.sha256(array.tobytes()).hexdigest() == expected[name]["sha256"]


def test_openais_index():
    if not OPENAI.exists():
        pytest.skip(f"{OPENAI} is not here")
    raw = OPENAI.read_bytes()
    assert hashlib.sha256(raw).hexdigest().startswith("71916f763f9746f9")
    entries = read_index(OPENAI)
    assert len(entries) == 148
    end = 0
    for entry in entries.values():
        assert (entry.dtype, entry.offset) == (np.float32, end)
        end += entry.size
    assert end == 497_759_232 == 4 * 124_439_808
    assert entries["model/h0/attn/c_attn/b"].offset == 0
    assert entries["model/h0/attn/c_attn/w"].shape == (1, 768, 2304)
    wte, wpe = entries["model/wte"], entries["model/wpe"]
    assert (wpe.shape, wpe.offset, wpe.crc32c) == ((1024, 768), 340_224_000, 0x2ACFB8F1)
    assert (wte.shape, wte.offset, wte.crc32c) == ((50257, 768), 343_369_728, 0x0E298522)
    assert entries["model/h0/attn/c_attn/b"].crc32c == 0x8C273D74
    # our writer produces the same 5,215 bytes, so tests and benchmarks can rely on its files
    assert index_bytes(entries.values()) == raw


def test_our_writer_produces_tensorflows_bytes(tmp_path):
    write_bundle(tmp_path, random_gpt2(HPARAMS, seed=20190214))
    for name in (INDEX, DATA):
        assert (tmp_path / name).read_bytes() == (FIXTURE / name).read_bytes()


def test_tensorflow_reads_what_our_writer_wrote(tmp_path):
    tf = pytest.importorskip("tensorflow")
    arrays = various_arrays()
    write_bundle(tmp_path, arrays)
    entries = list(read_index(tmp_path / INDEX).values())
    for block_size in (262_144, 100):  # one block, and many blocks
        (tmp_path / INDEX).write_bytes(index_bytes(entries, block_size))
        names = [name for name, _ in tf.train.list_variables(str(tmp_path / "model.ckpt"))]
        assert names == sorted(arrays)
        for name, array in arrays.items():
            found = tf.train.load_variable(str(tmp_path / "model.ckpt"), name)
            assert found.dtype == array.dtype and np.array_equal(found, array)


# --- round trip ---


def various_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {f"layer{i}/w": rng.standard_normal((2, i + 1)).astype("f4") for i in range(40)}
    for name in ("f8", "i4", "i8", "f2"):  # float16 arrays of odd size make later offsets unaligned
        arrays[f"a/{name}"] = rng.integers(-9, 9, (3, 1, 5)).astype(name)
    arrays["scalar"] = np.float32(3.5).reshape(())
    arrays["transposed"] = rng.standard_normal((3, 4)).astype("f4").T
    arrays["größe"] = np.ones(1, "f4")
    return arrays


@pytest.mark.parametrize("block_size", [262_144, 1_000, 1])
def test_round_trip(tmp_path, block_size):
    arrays = various_arrays()
    write_bundle(tmp_path, arrays)
    entries = read_index(tmp_path / INDEX)
    (tmp_path / INDEX).write_bytes(index_bytes(entries.values(), block_size))
    assert read_index(tmp_path / INDEX) == entries
    for folder in (tmp_path, str(tmp_path), tmp_path / "model.ckpt"):
        found = open_arrays(folder)
        assert list(found) == sorted(arrays)
        for name, array in arrays.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(found[name], array)
            assert found[name].flags.writeable  # torch.from_numpy warns about read-only arrays
    assert all(ok for _, ok, _, _ in check_tensors(tmp_path))


def test_a_folder_of_random_weights(tmp_path):
    write_random_gpt2(tmp_path / "random", HPARAMS, seed=1)
    arrays = open_arrays(tmp_path / "random")
    assert {name: a.shape for name, a in arrays.items()} == {
        name: a.shape for name, a in open_arrays(FIXTURE).items()
    }
    assert json.loads((tmp_path / "random" / "hparams.json").read_text()) == HPARAMS


def test_each_array_is_mapped_alone_and_not_read(folder):
    arrays = open_arrays(folder)
    for name, entry in read_index(folder / INDEX).items():
        array = arrays[name]
        while not isinstance(array, np.memmap):  # follow the views to the mapped file
            array = array.base
        assert (array.nbytes, array.mode) == (entry.size, "c")


def test_a_changed_array_changes_neither_the_file_nor_the_next_look_up(folder):
    arrays, raw = open_arrays(folder), (folder / DATA).read_bytes()
    array = arrays["model/wte"]
    before = array.copy()
    array += 1
    assert np.array_equal(arrays["model/wte"], before)
    assert (folder / DATA).read_bytes() == raw


def test_a_data_file_that_becomes_shorter_is_reported(folder):
    arrays = open_arrays(folder)
    (folder / DATA).write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{DATA} cannot be read"):
        arrays["model/wte"]


# --- the checksum ---


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the standard check value of CRC-32C
        (bytes(32), 0x8A9136AA),  # this value and the next three are from RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_crc32c_under_leveldbs_mask(data, crc):
    rotated = (masked_crc32c(data) - 0xA282EAD8) & 0xFFFFFFFF  # LevelDB's Unmask
    assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == crc


def test_the_checksum_of_an_array_is_that_of_its_bytes(tmp_path):
    array = np.random.default_rng(2).standard_normal((60, 1000, 7)).astype("<f4")
    array.tofile(tmp_path / "data")
    mapped = np.memmap(tmp_path / "data", "<f4", mode="c", shape=array.shape)
    expected = masked_crc32c(array.tobytes())
    tracemalloc.start()
    assert masked_crc32c(array) == masked_crc32c(mapped) == expected
    assert tracemalloc.get_traced_memory()[1] < array.nbytes / 10  # the array is not copied
    tracemalloc.stop()


# --- damage ---


def test_a_flipped_bit_in_any_byte_of_the_index_raises(tmp_path):
    raw = (FIXTURE / INDEX).read_bytes()
    for place in range(len(raw)):
        for bit in (0, 7):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << bit
            message = outcome(tmp_path / INDEX, damaged)
            assert isinstance(message, str), f"bit {bit} of byte {place} went unnoticed"


def test_every_truncation_and_any_extra_byte_of_the_index_raises(tmp_path):
    raw = (FIXTURE / INDEX).read_bytes()
    for length in range(len(raw)):
        assert isinstance(outcome(tmp_path / INDEX, raw[:length]), str), length
        assert isinstance(outcome(tmp_path / INDEX, raw[length:][1:]), str), length
        assert isinstance(outcome(tmp_path / INDEX, raw[:length] + b"\0" + raw[length:]), str)


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """Change bytes, remove a slice, or insert it at another place."""
    a, b, c = sorted(rng.integers(0, len(raw) + 1, 3).tolist())
    kind = rng.integers(4)
    if kind == 0:
        return raw[:a] + raw[b:]
    if kind == 1:
        return raw[:b] + raw[a : min(c, a + 40)] + raw[b:]
    mutated = bytearray(raw)
    for place in rng.integers(0, len(raw), 1 + rng.integers(3)).tolist():
        mutated[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
    return bytes(mutated)


def test_random_mutations_of_the_index_raise_or_change_nothing(tmp_path):
    raw, rng = (FIXTURE / INDEX).read_bytes(), np.random.default_rng(4)
    expected = read_index(FIXTURE / INDEX)
    for _ in range(2_000):
        found = outcome(tmp_path / INDEX, mutate(raw, rng))
        assert isinstance(found, str) or found == expected


@pytest.mark.slow
def test_mutations_with_a_correct_checksum_raise_only_checkpoint_errors(tmp_path):
    """With a wrong CRC, mutated blocks would not reach the parser. So the CRC is corrected."""
    raw, rng = (FIXTURE / INDEX).read_bytes(), np.random.default_rng(5)
    end = 8 + 5 + len(block_bytes([(b"n", b"\0" + varint(700))])) + 5 + 48
    block = raw[: len(raw) - end]
    assert join_blocks([(b"n", block[:-5])]) == raw
    shutil.copy(FIXTURE / DATA, tmp_path)
    messages = set()
    for _ in range(700):
        found = outcome(tmp_path / INDEX, join_blocks([(b"n", mutate(block[:-5], rng))]))
        messages.add(found.split(": ")[-1][:20] if isinstance(found, str) else "read")
        try:
            open_arrays(tmp_path)
        except CheckpointError:
            pass
    assert len(messages) > 10  # the mutations reach many of the checks


def test_a_flipped_bit_of_the_data_names_its_tensor(folder):
    raw, rng = (folder / DATA).read_bytes(), np.random.default_rng(6)
    for entry in read_index(folder / INDEX).values():
        ends = (8 * entry.offset, 8 * (entry.offset + entry.size) - 1)
        for place in (*ends, int(rng.integers(*ends))):
            damaged = bytearray(raw)
            damaged[place // 8] ^= 1 << place % 8
            (folder / DATA).write_bytes(damaged)
            bad = [(e.name, expected) for e, ok, expected, _ in check_tensors(folder) if not ok]
            assert bad == [(entry.name, entry.crc32c)]


def test_undamaged_data_have_equal_checksums():
    checks = list(check_tensors(FIXTURE))
    assert len(checks) == 28
    for entry, ok, expected, found in checks:
        assert ok and expected == found == entry.crc32c


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b""])
def test_wrong_size_of_the_data_gives_both_sizes(folder, change):
    raw = change((folder / DATA).read_bytes())
    (folder / DATA).write_bytes(raw)
    for function in (open_arrays, lambda folder: next(check_tensors(folder))):
        with pytest.raises(CheckpointError, match=rf"{DATA} has {len(raw):,} bytes.* 16,416"):
            function(folder)


# --- wrong files ---

KINDS = [
    ("git-LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5215\n"),
    ("web page", b"\n<!DOCTYPE html><html><body>Sign in to the Wi-Fi</body></html>"),
    ("web page", b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>BlobNotFound</Code></Error>'),
    ("zip archive", b"PK\x03\x04" + bytes(100)),
    ("pickle", b"\x80\x04\x95" + bytes(100)),
    ("0 bytes", b""),
]


@pytest.mark.parametrize("name", [INDEX, DATA])
@pytest.mark.parametrize(("kind", "raw"), KINDS)
def test_wrong_kinds_are_named(folder, name, kind, raw):
    (folder / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=kind) as error:
        open_arrays(folder)
    assert str(folder / name) in str(error.value)


@pytest.mark.parametrize("name", [INDEX, DATA])
def test_missing_files_and_folders_in_their_place(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        open_arrays(folder)
    (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        open_arrays(folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_arrays(folder / "none")
    with pytest.raises(UsageError, match="cannot be the name of a file"):
        open_arrays("a\0b")


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(1 << 40)  # a sparse file of one terabyte
    with pytest.raises(CheckpointError, match="too large"):
        read_index(tmp_path / INDEX)


def entry(
    dtype: int = 1, shape: tuple = (2, 3), offset: int = 0, size: int = 24, extra: bytes = b""
) -> bytes:
    sizes = [b"\x08" + varint(size) for size in shape]
    dims = b"".join(b"\x12" + varint(len(size)) + size for size in sizes)
    return (b"\x08" + varint(dtype) + b"\x12" + varint(len(dims)) + dims) + (
        b"\x20" + varint(offset) + b"\x28" + varint(size) + b"\x35abcd" + extra
    )


H, A, B = (b"", HEADER), (b"a", entry()), (b"b", entry(offset=24))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no header"),
        ([A, B], "no header"),
        ([H], "no tensors"),
        ([(b"", b"\x08\x00"), A], "1 to 1000 data files"),
        ([(b"", b"\x08\xe9\x07"), A], "1 to 1000 data files"),
        ([(b"", b"\x08\x01\x10\x01"), A], "little-endian"),
        ([H, A, A], "repeated"),
        ([H, H, A], "repeated"),
        ([H, (b"b", entry()), (b"a", entry(offset=24))], "out of order"),
        ([H, A, (b"b", entry(offset=20))], "begins at byte 20, .* ends at 24"),
        ([H, A, (b"b", entry(offset=28))], "begins at byte 28, .* ends at 24"),
        ([H, (b"a", entry(offset=24)), (b"b", entry())], "begins at byte 24"),
        ([H, (b"a", entry(dtype=4))], "TensorFlow type 4"),
        ([H, (b"a", entry(dtype=7))], "TensorFlow type 7"),
        ([H, (b"a", entry(size=20))], r"20 bytes .* float32 .*\(2, 3\)"),
        ([H, (b"a", entry(shape=(0, 3), size=0))], r"shape of \(0, 3\)"),
        ([H, (b"a", entry(shape=(1,) * 9, size=4))], "shape of"),
        ([H, (b"a", entry(shape=(2**64 - 1,), size=24))], f"24 bytes .*{2**64 - 1}"),
        ([H, (b"a", entry(extra=b"\x18\x01"))], "shard 1"),
        ([H, (b"a", entry(extra=b"\x3a\x00"))], "tag 0o72"),
        ([H, (b"a", entry(extra=b"\x28\x18"))], "repeated"),
        ([H, (b"a", entry(extra=b"\x28"))], "cut off"),
        ([H, (b"a", entry(extra=b"\x28\x98\x00"))], "too long"),
        ([H, (b"a", entry(extra=b"\x28" + b"\xff" * 10 + b"\x01"))], "too long"),
        ([H, (b"a", entry(extra=b"\x35\x00"))], "beyond its message"),
        ([H, (b"a", entry(extra=b"\x12\x7f"))], "beyond its message"),
        ([H, (b"\xff", entry())], "utf-8"),
        ([H, (b"a" * 257, entry())], "257 bytes"),
    ],
)
def test_a_wrong_record_is_reported(tmp_path, records, message):
    (tmp_path / INDEX).write_bytes(table_bytes(records))
    with pytest.raises(CheckpointError, match=message) as error:
        read_index(tmp_path / INDEX)
    assert str(tmp_path / INDEX) in str(error.value)


RECORD = varint(0) + varint(1) + varint(len(A[1])) + b"a" + A[1]
START = varint(0) + varint(0) + varint(len(HEADER)) + HEADER
RESTARTS = bytes(4) + b"\x01\0\0\0"  # a single restart point, at byte 0


@pytest.mark.parametrize(
    ("block", "message"),
    [
        # the second key claims to share one byte with the first key, which is empty
        (START + b"\x01" + RECORD[1:] + RESTARTS, "beyond its block"),
        # the value overlaps the restart points
        (START + RECORD[:-4] + RESTARTS, "beyond its block"),
        (START + RECORD + bytes(4) + b"\xff\0\0\0", "shorter than its list of restart points"),
        (b"", "shorter than its list of restart points"),
        (b"\x01\0\0", "shorter than its list of restart points"),
    ],
)
def test_a_wrong_block_is_reported(tmp_path, block, message):
    right = outcome(tmp_path / INDEX, join_blocks([(b"b", START + RECORD + RESTARTS)]))
    assert list(right) == ["a"]
    assert message in outcome(tmp_path / INDEX, join_blocks([(b"b", block)]))


def test_a_correct_record_is_read(tmp_path):
    """The unchanged record of the test above is valid."""
    (tmp_path / INDEX).write_bytes(table_bytes([H, A, B]))
    assert [(e.name, e.shape, e.offset) for e in read_index(tmp_path / INDEX).values()] == [
        ("a", (2, 3), 0),
        ("b", (2, 3), 24),
    ]


def test_a_compressed_block_is_reported(tmp_path):
    block = block_bytes([H, A, B])
    raw = join_blocks([(b"c", block)])
    changed = raw.replace(trailer(block), trailer(block, compression=1))
    assert "compressed (type 1)" in outcome(tmp_path / INDEX, changed)


def test_keys_cannot_grow_without_bound(tmp_path):
    """If each key were one byte longer than the one before, 1 MB would expand to gigabytes."""
    records = b"".join(varint(i) + b"\x01\x00a" for i in range(150_000))
    raw = join_blocks([(b"z", records + bytes(4) + b"\x01\0\0\0")])
    assert "257 bytes" in outcome(tmp_path / INDEX, raw)


def test_blocks_must_fill_the_file(tmp_path):
    """The blocks and CRCs are correct, but there are bytes between the blocks."""
    block = block_bytes([H, A, B])
    raw = join_blocks([(b"c", block)])
    gap = join_blocks([(b"c", block), (b"d", bytes(4) + b"\x01\0\0\0")])
    assert len(gap) > len(raw)
    assert list(outcome(tmp_path / INDEX, gap)) == ["a", "b"]  # an empty block is not a gap
    # the index block lists only one of two blocks
    one = [(b"c", varint(0) + varint(len(block)))]
    two = block + trailer(block)
    metaindex = block_bytes([])
    index = block_bytes(one, restart_every=1)
    body = two + two + metaindex + trailer(metaindex) + index + trailer(index)
    handles = (
        varint(2 * len(two))
        + varint(len(metaindex))
        + varint(2 * len(two) + len(metaindex) + 5)
        + varint(len(index))
    )
    raw = body + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    assert f"begins at byte {2 * len(two)}" in outcome(tmp_path / INDEX, raw)
