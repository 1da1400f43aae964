"""Runs with quantised blocks: settings, resuming, continuing, predicting and exporting."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import call
from interrupted import interrupted_after

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.errors import Interrupted, UsageError
from gpt2_from_scratch.gpt2.nf4 import packed_weights
from gpt2_from_scratch.runs.folder import CONFIG, RunConfig
from gpt2_from_scratch.runs.recipes import resume_training, train_classifier
from gpt2_from_scratch.storage.files import sha256_of

TRAINING = TrainConfig(epochs=3, batch_size=5, lr=0.01, n_last_blocks=0, patience=3, seed=3)
HEAD = HeadSettings(lora=2, quantize="nf4")
LASTING = ("best.safetensors", "last.safetensors", "metrics.jsonl", "evaluation.json", "test.csv")


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "run"
    train_classifier(tiny_checkpoint, table, TRAINING, HEAD, run=out, device="cpu")
    return out


@pytest.mark.slow
def test_a_run_answers_as_at_the_end_of_its_training(
    tiny_checkpoint: Path, table: Path, tmp_path: Path
) -> None:
    run = train_classifier(tiny_checkpoint, table, TRAINING, HEAD, run=tmp_path / "run")
    texts = ["the goal 3", "a pill", "", "you and the other one"]
    again = Classifier.load(tmp_path / "run", tiny_checkpoint)
    assert len(packed_weights(again.model)) == 8
    for found, expected in zip(again.predict(texts), run.classifier.predict(texts), strict=True):
        assert found == expected
    assert RunConfig.read(tmp_path / "run").head.quantize == "nf4"


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 7])
def test_a_stopped_run_ends_bit_identical(
    tiny_checkpoint: Path,
    table: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    run = tmp_path / "run"
    with interrupted_after(steps, monkeypatch), pytest.raises(Interrupted):
        train_classifier(tiny_checkpoint, table, TRAINING, HEAD, run=run, device="cpu")
    resume_training(run, device="cpu")
    assert {name: sha256_of(run / name) for name in LASTING} == {
        name: sha256_of(finished / name) for name in LASTING
    }


@pytest.mark.slow
def test_a_run_continues_with_quantised_blocks(
    tiny_checkpoint: Path, table: Path, finished: Path, tmp_path: Path
) -> None:
    still = replace(TRAINING, epochs=1, lr=1e-30)
    run = train_classifier(tiny_checkpoint, table, still, start=finished, run=tmp_path / "run")
    assert RunConfig.read(run.folder).head.quantize == "nf4"
    text = "the goal 3"
    before = Classifier.load(finished, tiny_checkpoint)
    found = torch.tensor([*run.classifier.predict([text])[0].probabilities.values()])
    expected = torch.tensor([*before.predict([text])[0].probabilities.values()])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_config_without_the_setting_is_not_quantised(finished: Path, tmp_path: Path) -> None:
    """Configs of earlier versions do not mention it."""
    values = json.loads((finished / CONFIG).read_text())
    assert values["head"].pop("quantize") == "nf4"
    (tmp_path / CONFIG).write_text(json.dumps(values))
    assert RunConfig.read(tmp_path).head == replace(HEAD, quantize="none")


def test_adapting_and_quantising_contradict_each_other(
    tiny_checkpoint: Path, table: Path, tmp_path: Path
) -> None:
    training = replace(TRAINING, adapt=1)
    with pytest.raises(UsageError, match="--quantize nf4"):
        train_classifier(tiny_checkpoint, table, training, HEAD, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_probe_and_another_precision(
    tiny_checkpoint: Path, finished: Path, capsys: pytest.CaptureFixture
) -> None:
    """Probes cannot read adapters next to packed weights; another precision changes nothing."""
    code, out, err = call(capsys, "probe", finished, "--model", tiny_checkpoint)
    assert (code, out) == (2, "") and "NF4" in err and "export" in err.lower()
    common = ("predict", finished, "the goal", "--model", tiny_checkpoint, "--json")
    code, expected, err = call(capsys, *common)
    assert code == 0 and "NF4" not in err
    code, out, err = call(capsys, *common, "--dtype", "int8")
    assert (code, out) == (0, expected) and "--dtype int8 has no effect" in err
