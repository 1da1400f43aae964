"""States of runs are saved, read, renamed if damaged, and restored."""

import errno
from pathlib import Path

import pytest
import torch
from said import listen
from torch import nn

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.storage import states, tensors
from gpt2_from_scratch.storage.states import (
    newest_state,
    optimizer_tensors,
    refuse_changes,
    remove_states,
    restore_optimizers,
    restoring,
    save_state,
)
from gpt2_from_scratch.storage.tensors import write_tensors


def write(folder: Path, step: int) -> Path:
    return save_state(folder, step, {"weight": torch.full((3,), float(step))}, {"step": step})


def test_the_newest_state_is_read_and_two_are_kept(tmp_path):
    assert newest_state(tmp_path) is None
    paths = [write(tmp_path, step) for step in (9, 10, 200)]
    assert sorted(tmp_path.iterdir()) == paths[1:]
    lines = listen()
    record, found = newest_state(tmp_path)
    assert record == {"step": 200} and torch.equal(found["weight"], torch.full((3,), 200.0))
    assert len(lines) == 1 and str(paths[2]) in lines[0]
    remove_states(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_state_is_renamed_and_the_previous_one_is_read(tmp_path):
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    raw = bytearray(newer.read_bytes())
    raw[-1] ^= 1
    newer.write_bytes(raw)
    lines = listen()
    record, _ = newest_state(tmp_path)
    assert record == {"step": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == [older.name, f"{newer.name}.bad"]
    assert f"{newer} is damaged" in lines[0] and str(older) in lines[1]


def test_a_state_that_cannot_be_read_now_is_not_renamed(tmp_path, monkeypatch):
    path = write(tmp_path, 1)

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tensors, "check_header", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        newest_state(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_not_saved(tmp_path, number):
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match="1 tensors .*b"):
        save_state(tmp_path, 2, {"a": torch.ones(2), "b": torch.tensor([1.0, number])}, {})
    assert newest_state(tmp_path)[0] == {"step": 1}


def test_changed_settings_are_named(tmp_path):
    refuse_changes({"seed": 1}, {"seed": 1}, tmp_path)
    with pytest.raises(UsageError) as error:
        refuse_changes({"seed": 1, "rate": 0.1}, {"seed": 2, "rate": 0.1, "steps": 5}, tmp_path)
    text = str(error.value)
    assert str(tmp_path) in text and "seed: 1 -> 2" in text and "steps: None -> 5" in text
    assert "rate" not in text


def test_optimizers_continue_as_if_they_had_never_stopped(tmp_path):
    def step(layer: nn.Linear, optimizers: list[torch.optim.Optimizer]) -> None:
        layer.zero_grad()
        layer(torch.arange(4.0)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()

    def make() -> tuple[nn.Linear, list[torch.optim.Optimizer]]:
        torch.manual_seed(3)
        layer = nn.Linear(4, 2)
        return layer, [
            torch.optim.AdamW([layer.weight], lr=0.1),
            torch.optim.SGD([layer.bias], lr=0.1, momentum=0.9),
        ]

    layer, optimizers = make()
    step(layer, optimizers)
    save_state(tmp_path, 1, optimizer_tensors(optimizers) | layer.state_dict(), {})
    step(layer, optimizers)
    other, others = make()
    _, found = newest_state(tmp_path)
    other.load_state_dict({name: found[name] for name in ("weight", "bias")})
    restore_optimizers(others, found)
    step(other, others)
    assert torch.equal(other.weight, layer.weight) and torch.equal(other.bias, layer.bias)
    assert states.KEPT == 2


@pytest.mark.parametrize("record", [None, "", "{", "[]", "1", '{"a": NaN}', "[" * 990 + "]" * 990])
def test_a_state_without_a_record_is_renamed(tmp_path, record):
    save_state(tmp_path, 1, {"x": torch.ones(2)}, {"step": 1})
    metadata = {"format": states.FORMAT} | ({} if record is None else {"record": record})
    write_tensors(tmp_path / "state-00000002.safetensors", {"x": torch.ones(2)}, metadata)
    found = newest_state(tmp_path)
    assert found is not None and found[0] == {"step": 1}
    assert (tmp_path / "state-00000002.safetensors.bad").exists()


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        IndexError("x"),
        TypeError("x"),
        ValueError("x"),
        RuntimeError("x"),
        ZeroDivisionError("x"),
    ],
)
def test_any_error_of_a_foreign_state_becomes_a_checkpoint_error(tmp_path, error):
    with (
        pytest.raises(CheckpointError, match=f"{tmp_path} .*{type(error).__name__}"),
        restoring(tmp_path),
    ):
        raise error
