"""Foreign files are named, and every change of a file is noticed."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2_from_scratch.errors import CheckpointError, ResourceError
from gpt2_from_scratch.storage.tensors import open_tensors, read_tensors, write_tensors

METADATA = {"format": "ours", "note": "ä"}
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([7], dtype=torch.int32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "t.safetensors", TENSORS, METADATA)
    return tmp_path / "t.safetensors"


def file_of(header: str, data: bytes = b"") -> bytes:
    """Return the bytes of a file with this header.

    The header may be invalid.
    """
    raw = header.encode()
    return len(raw).to_bytes(8, "little") + raw + data


def outcome(path: Path) -> str:
    """Return the error message of reading the file.

    It is empty if the result equals what was written.
    """
    try:
        metadata, tensors = read_tensors(path, "ours")
    except CheckpointError as error:
        assert str(path) in str(error)
        return str(error)
    assert metadata == METADATA and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)
    return ""


def test_what_is_written_is_read(path):
    assert outcome(path) == ""
    plain = load_file(path)  # the library alone can read the file, too
    assert torch.equal(plain["a"], TENSORS["a"])
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_another_format_is_reported(path):
    with pytest.raises(CheckpointError, match="'ours', not 'theirs'"):
        read_tensors(path, "theirs")


@pytest.mark.slow
def test_every_change_is_noticed(path):
    """Flip each bit, truncate the file every 7 bytes, and overwrite random parts of it."""
    original, draw = path.read_bytes(), random.Random(4)
    changed = [original[:n] for n in range(0, len(original), 7)]
    for place in range(8 * len(original)):
        damaged = bytearray(original)
        damaged[place // 8] ^= 1 << place % 8
        changed.append(bytes(damaged))
    for _ in range(500):
        start, length = draw.randrange(len(original)), draw.randrange(1, 40)
        changed.append(original[:start] + draw.randbytes(length) + original[start + length :])
    harmless = 0
    for raw in changed:
        path.unlink()  # overwriting a file would wait for the disk each time
        path.write_bytes(raw)
        harmless += outcome(path) == ""  # `outcome` asserts that the contents are equal
    assert harmless < len(changed) / 50  # changes of white space in the header


def test_a_missing_checksum_is_reported(path):
    save_file(TENSORS, path, metadata={"gpt2_from_scratch": json.dumps(METADATA)})
    assert "damaged" in outcome(path)
    save_file(TENSORS, path)
    assert "format is None" in outcome(path)


def test_equal_contents_are_equal_bytes(path):
    """By itself the library writes several metadata entries in random order."""
    original = path.read_bytes()
    for _ in range(20):
        write_tensors(path, dict(reversed(TENSORS.items())), METADATA)
        assert path.read_bytes() == original


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"\x01\x02", "header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"PK\x03\x04torch", "zip archive"),
        (file_of('{"a":{}}')[:12], "header"),
        ((2**40).to_bytes(8, "little") + b'{"a":1}', "plausible size"),
        (file_of('{"a":{"dtype":"F32"},"a":{"dtype":"F32"}}'), "twice"),
        (file_of('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'), "twice"),
        (file_of("{" * 5000), "header"),
        (file_of('{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', bytes(8)), "complete"),
        (file_of('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', bytes(4)), "complete"),
    ],
)
def test_other_kinds_are_named(path, raw, message):
    path.write_bytes(raw)
    assert message in outcome(path)
    with pytest.raises(CheckpointError), open_tensors(path):
        pass


def test_a_missing_file_and_a_folder_are_reported(tmp_path):
    assert "is missing" in outcome(tmp_path / "none.safetensors")
    assert str(tmp_path) in outcome(tmp_path)


def test_a_giant_header_is_never_read(path, monkeypatch):
    """The file itself states the length of its header, and the format allows 100 MB."""
    path.write_bytes(file_of(json.dumps({"__metadata__": {"x": "y" * (1 << 20)}})))
    assert "plausible size" in outcome(path)


def test_a_place_that_cannot_be_written_is_reported(path):
    folder = path.parent / "below a file"
    folder.write_text("")
    with pytest.raises(ResourceError, match="below a file"):
        write_tensors(folder / "t.safetensors", TENSORS, METADATA)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.uint16]
)
def test_other_dtypes_are_refused(path, dtype):
    write_tensors(path, TENSORS | {"a": TENSORS["a"].to(dtype)}, METADATA)
    assert f"a has the unexpected type {dtype}" in outcome(path)


@pytest.mark.parametrize("text", ["[" * 990 + "]" * 990, '{"format": "ours", "note": [[1]]}', "[]"])
def test_metadata_of_another_shape_are_refused(path, text):
    save_file(TENSORS, path, metadata={"gpt2_from_scratch": text})
    assert "metadata" in outcome(path)
