"""Matrices that stay in their file: values, memory, changes, copies and hashes."""

import copy
import mmap
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.storage.mapped import MappedParameter, hold, is_mapped, release
from gpt2_from_scratch.storage.tensors import each_sha256

LINUX = pytest.mark.skipif(
    not (sys.platform == "linux" and hasattr(mmap, "MADV_DONTNEED")), reason="reads /proc"
)


def write(path: Path, values: Tensor, offset: int = 0) -> Path:
    raw = values.contiguous().view(torch.uint8).numpy().tobytes()
    path.write_bytes(b"x" * offset + raw + b"yz")
    return path


def resident() -> int:
    """The resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("offset", [0, 1, 8, 4095, 4096, 70_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_are_those_in_the_file(tmp_path: Path, dtype: torch.dtype, offset: int) -> None:
    values = torch.randn(37, 11).to(dtype)
    found = MappedParameter.of(write(tmp_path / "x", values, offset), offset, (37, 11), dtype)
    assert is_mapped(found)
    assert found.dtype == dtype
    assert not found.requires_grad
    for _ in range(2):
        assert torch.equal(found, values)
        assert torch.equal(found.transposed(), values.t())
        found.release()


@LINUX
@pytest.mark.parametrize("use", [Tensor.sum, copy.deepcopy, lambda x: each_sha256({"x": x})])
def test_a_release_gives_back_the_memory(tmp_path: Path, use) -> None:
    values = torch.randn(4096, 4096)  # 64 MB
    mapped = MappedParameter.of(write(tmp_path / "x", values), 0, (4096, 4096), torch.float32)
    del values
    before = resident()
    if use is Tensor.sum:
        use(mapped)
        assert resident() - before > 60e6
    else:
        use(mapped)  # these release it themselves
    release(mapped)
    assert resident() - before < 10e6


def test_a_change_in_place_stays_in_this_process(tmp_path: Path) -> None:
    values = torch.randn(50, 50)
    path = write(tmp_path / "x", values)
    found = MappedParameter.of(path, 0, (50, 50), torch.float32)
    before = each_sha256({"x": found, "y": values})
    assert before["x"] == before["y"]
    with torch.no_grad():
        found[3] += 1
    assert not found.is_unchanged
    found.release()
    expected = values.clone()
    expected[3] += 1
    assert torch.equal(found, expected)
    after = each_sha256({"x": found, "y": expected})
    assert after["x"] == after["y"] != before["x"]
    assert path.read_bytes() == write(tmp_path / "y", values).read_bytes()


def test_held_matrices_are_the_same_parameters_in_float32(tmp_path: Path) -> None:
    values = torch.randn(8, 6).bfloat16()
    part = nn.Linear(8, 6)
    part.weight = MappedParameter.of(write(tmp_path / "x", values), 0, (8, 6), values.dtype)
    part.weight = weight = part.weight.transposed()
    weight.requires_grad_(True)
    optimizer = torch.optim.SGD(part.parameters(), lr=1.0)
    hold(part)
    hold(part)  # nothing is left to do
    assert part.weight is weight
    assert not is_mapped(weight)
    assert weight.is_contiguous()
    assert torch.equal(weight, values.float().t())
    part(torch.ones(8)).sum().backward()
    optimizer.step()
    weight.release()  # has no effect
    assert torch.equal(weight, values.float().t() - 1)
    again = copy.deepcopy(part)
    assert torch.equal(again.weight, weight)
    assert again.weight.requires_grad


def test_copies_are_ordinary_parameters_in_memory(tmp_path: Path) -> None:
    values = torch.randn(8, 6).half()
    mapped = MappedParameter.of(write(tmp_path / "x", values), 0, (8, 6), values.dtype)
    found = copy.deepcopy([mapped, mapped])
    assert found[0] is found[1]
    assert type(found[0]) is nn.Parameter
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], values.float())
    assert is_mapped(mapped)


def test_a_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x", torch.randn(10, 10))
    for place, wanted in ((path, (10, 20)), (tmp_path / "missing", (10, 10))):
        with pytest.raises(CheckpointError, match=place.name):
            MappedParameter.of(place, 0, wanted, torch.float32)


def test_changes_in_inference_mode_count(tmp_path: Path) -> None:
    with torch.inference_mode():
        path = write(tmp_path / "x", torch.zeros(5, 5))
        found = MappedParameter.of(path, 0, (5, 5), torch.float32)
        found.add_(1)
        found.release()
    assert torch.equal(found, torch.ones(5, 5))
