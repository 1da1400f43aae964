"""LoRA on the command line: training, scores, predictions, resuming, and errors."""

import csv
import json
from pathlib import Path

import pytest
from command import call

from gpt2_from_scratch.classifier.classifier import Classifier


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled messages as a file."""
    path = tmp_path_factory.mktemp("data") / "kinds.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [[f"{'the goal' if n % 2 else 'a pill'} {n}", "ab"[n % 2]] for n in range(40)]
        csv.writer(file).writerows([["text", "label"], *rows])
    return path


@pytest.mark.slow
def test_blocks_stay_frozen_and_a_run_is_used_like_any_other(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    code, _, err = call(
        capsys,
        "train",
        "--model",
        tiny_checkpoint,
        "--data",
        table,
        "--out",
        run,
        "--lora",
        "4",
        "--lora-blocks",
        "1",
        "--epochs",
        "2",
        "--lr",
        "0.01",
        "--device",
        "cpu",
    )
    assert code == 0, err
    # one block's adapters 4 * 576, final norm 64, head 66
    assert "2,434 trainable" in err
    evaluation = json.loads((run / "evaluation.json").read_text())
    code, out, _ = call(capsys, "evaluate", run, "--model", tiny_checkpoint, "--json")
    told = json.loads(out)
    assert code == 0 and told.keys() == evaluation.keys()
    assert told["confusion"] == evaluation["confusion"]
    # LoRA is merged there, which rounds otherwise
    assert told["calibration"]["log_loss"] == pytest.approx(evaluation["calibration"]["log_loss"])
    code, out, _ = call(
        capsys, "predict", run, "--model", tiny_checkpoint, "--json", "a pill 3", "x"
    )
    records = [json.loads(line) for line in out.splitlines()]
    expected = Classifier.load(run, tiny_checkpoint).predict(["a pill 3", "x"])
    for record, prediction in zip(records, expected, strict=True):
        assert record["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)
    code, out, err = call(capsys, "train", "--resume", run)
    assert code == 0 and "is complete" in out + err
    code, _, err = call(capsys, "train", "--resume", run, "--lora", "8")
    assert code == 2 and "lora: 4 -> 8" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "33"], "rank 33 exceeds n_embd = 32"),
        (["--lora", "-1"], "lora = -1"),
        (["--lora", "4", "--lora-blocks", "3"], "this model has 2 blocks"),
        (["--lora-alpha", "4"], "set lora"),
    ],
)
def test_mistakes_are_reported_and_leave_nothing(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    common = ("train", "--model", tiny_checkpoint, "--data", table, "--out", tmp_path / "run")
    code, _, err = call(capsys, *common, *options)
    assert code == 2 and message in err and not (tmp_path / "run").exists()
