"""Curves for TensorBoard, read back with TensorBoard's own reader and compared with the history."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from interrupted import interrupted_after

from gpt2_from_scratch.classifier import train as training_run
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.classifier.train import TrainingRun, rate_factor
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.errors import Interrupted, UsageError
from gpt2_from_scratch.runs.folder import RunConfig
from gpt2_from_scratch.runs.recipes import resume_training, train_classifier
from gpt2_from_scratch.storage import curves

CONFIG = TrainConfig(epochs=3, batch_size=5, lr=0.01, patience=3, seed=3)
STEPS = 6  # per epoch
Points = dict[str, list[tuple[int, float]]]


def points(run: Path) -> Points:
    """{curve: [(step, value)]} as TensorBoard shows them."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]
    }


def same(found: Points, expected: Points) -> bool:
    """Values are float32 in event files."""
    return found == {
        tag: [(step, pytest.approx(value, rel=1e-6)) for step, value in curve]
        for tag, curve in expected.items()
    }


def train(base: Path, table: Path, out: Path, **options) -> Path:
    train_classifier(base, table, CONFIG, run=out, device="cpu", **options)
    return out


@pytest.fixture(scope="module")
def unbroken(tiny_checkpoint: Path, table: Path, tmp_path_factory) -> Path:
    pytest.importorskip("tensorboard")
    out = tmp_path_factory.mktemp("unbroken") / "run"
    return train(tiny_checkpoint, table, out, tensorboard=True)


@pytest.mark.slow
def test_the_curves_are_the_history(unbroken: Path) -> None:
    lines = (unbroken / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    found = points(unbroken)
    by_epoch = {
        f"{kind}/{part}": [(STEPS * each["epoch"], each[f"{part}_{kind}"]) for each in history]
        for kind in ("loss", "score")
        for part in ("train", "val")
    }
    rates = [
        (n + 1, CONFIG.lr * rate_factor(n, 3 * STEPS, CONFIG.warmup)) for n in range(3 * STEPS)
    ]
    losses = found.pop("loss/step")
    assert same(found, by_epoch | {"learning_rate": rates})
    assert [step for step, _ in losses] == [*range(1, 3 * STEPS + 1)]
    # 28 training texts: an epoch's loss is the mean of its steps, of which the last has 3 texts
    for n, epoch in enumerate(history):
        values = [value for _, value in losses[n * STEPS : (n + 1) * STEPS]]
        mean = (5 * sum(values[:-1]) + 3 * values[-1]) / 28
        assert mean == pytest.approx(epoch["train_loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 6, 8])
def test_a_resumed_run_continues_the_curves(
    tiny_checkpoint, table, unbroken, tmp_path, monkeypatch, steps
) -> None:
    """In an epoch, at its end and in the next one; each point exists once, with the same value."""
    with interrupted_after(steps, monkeypatch), pytest.raises(Interrupted):
        train(tiny_checkpoint, table, tmp_path / "run", tensorboard=True)
    run = resume_training(tmp_path / "run", device="cpu")
    assert run.config.tensorboard
    found, expected = points(run.folder), points(unbroken)
    if steps == STEPS:  # the state of a step whose epoch is not yet validated
        for tag in ("loss/step", "learning_rate"):
            del expected[tag][steps - 1]
    assert found == expected


@pytest.mark.slow
def test_steps_after_the_last_state_are_not_shown_twice(
    tiny_checkpoint, table, unbroken, tmp_path, monkeypatch
) -> None:
    """A process is killed in step 11. The newest state is that of step 9."""
    plain = TrainingRun.step

    def step(self: TrainingRun, batch: list[int]) -> float:
        loss = plain(self, batch)
        monkeypatch.setattr(training_run, "SAVE_EVERY", 0.0 if self.at.step < 10 else 1e9)
        if self.at.step == 11:
            self.curves.flush()
            raise RuntimeError("killed")
        return loss

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(TrainingRun, "step", step)
        train(tiny_checkpoint, table, tmp_path / "run", tensorboard=True)
    assert points(tmp_path / "run")["loss/step"][-1][0] == 11
    resume_training(tmp_path / "run", device="cpu")
    assert points(tmp_path / "run") == points(unbroken)


@pytest.mark.slow
def test_curves_change_no_result(tiny_checkpoint, table, unbroken, tmp_path) -> None:
    plain = train(tiny_checkpoint, table, tmp_path / "run")
    names = {path.name for path in plain.iterdir()}
    assert {path.name for path in unbroken.iterdir()} == names | {"tensorboard"}
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl", "evaluation.json"):
        assert (plain / name).read_bytes() == (unbroken / name).read_bytes()
    assert not RunConfig.read(plain).tensorboard


@pytest.mark.parametrize("words", [["train"], ["pretrain", "--corpus", "texts"]])
def test_without_the_package_nothing_starts(words, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    assert main([*words, "--tensorboard", "--out", "new"]) == UsageError.exit_code
    assert "gpt2-from-scratch[tensorboard]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_a_search_has_no_curves() -> None:
    with pytest.raises(UsageError, match="autotune"):
        RunConfig(autotune=5.0, tensorboard=True)


@pytest.mark.slow
def test_nothing_is_imported_unless_asked() -> None:
    program = (
        "import sys, gpt2_from_scratch.runs.recipes, gpt2_from_scratch.storage.curves as c\n"
        "with c.Curves() as none: none.add(1, {'loss': 1.0}); none.flush()\n"
        "assert not [name for name in sys.modules if name.startswith('tensorboard')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
