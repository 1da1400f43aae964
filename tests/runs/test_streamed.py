"""Runs whose frozen blocks stay in the base model's file: settings, results and resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import call
from interrupted import interrupted_after

from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.errors import Interrupted, UsageError
from gpt2_from_scratch.runs.folder import CONFIG, RunConfig
from gpt2_from_scratch.runs.recipes import resume_training, train_classifier
from gpt2_from_scratch.storage.files import sha256_of

TRAINING = TrainConfig(epochs=3, batch_size=5, lr=0.01, patience=3, seed=3)
LASTING = ("best.safetensors", "last.safetensors", "metrics.jsonl", "evaluation.json", "test.csv")


def digests(run: Path) -> dict[str, str]:
    return {name: sha256_of(run / name) for name in LASTING}


@pytest.fixture(scope="module")
def in_memory(tiny_checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("in_memory") / "run"
    train_classifier(tiny_checkpoint, table, TRAINING, run=out, device="cpu")
    return out


@pytest.mark.slow
def test_a_streamed_run_has_the_same_results_also_if_it_is_resumed(
    tiny_checkpoint: Path, table: Path, in_memory: Path, tmp_path: Path
) -> None:
    options = {"device": "cpu", "stream_blocks": True}
    with pytest.MonkeyPatch.context() as patch, interrupted_after(7, patch):
        with pytest.raises(Interrupted):
            train_classifier(tiny_checkpoint, table, TRAINING, run=tmp_path / "run", **options)
    assert RunConfig.read(tmp_path / "run").stream_blocks
    run = resume_training(tmp_path / "run", device="cpu")
    assert run.classifier.is_streamed
    assert digests(tmp_path / "run") == digests(in_memory)
    assert resume_training(tmp_path / "run", device="cpu").classifier.is_streamed  # complete


def test_settings_without_this_one_mean_that_nothing_is_streamed(
    in_memory: Path, tmp_path: Path
) -> None:
    config = json.loads((in_memory / CONFIG).read_text("utf-8"))
    del config["stream_blocks"]
    (tmp_path / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    assert not RunConfig.read(tmp_path).stream_blocks


def test_adapting_is_refused_because_it_trains_every_block() -> None:
    with pytest.raises(UsageError, match=r"--adapt trains all of GPT-2.*--stream-blocks"):
        RunConfig(stream_blocks=True, training=TrainConfig(adapt=1))


@pytest.mark.slow
def test_the_commands_stream_on_request(
    tiny_checkpoint: Path,
    table: Path,
    in_memory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    model, stream = ["--model", tiny_checkpoint, "--device", "cpu"], "--stream-blocks"
    answers = [
        [
            call(capsys, "evaluate", in_memory, *model, "--json", *options)[:2],
            call(capsys, "predict", in_memory, *model, "--json", "the goal 3", "", *options)[:2],
        ]
        for options in ((), (stream,))
    ]
    assert answers[0] == answers[1]
    assert answers[0][0][0] == answers[0][1][0] == 0
    texts = tmp_path / "texts.txt"
    texts.write_text("the goal 3\na pill\n", encoding="utf-8")
    for name, options in (("plain.npy", ()), ("streamed.npy", (stream,))):
        out = ["--file", texts, "--out", tmp_path / name]
        assert call(capsys, "features", *model, *out, *options)[0] == 0
    found, expected = np.load(tmp_path / "streamed.npy"), np.load(tmp_path / "plain.npy")
    np.testing.assert_array_equal(found, expected)
    every = ["--n-last-blocks", 2, "--out", tmp_path / "run"]
    code, _, err = call(capsys, "train", *model, "--data", table, *every, stream)
    assert code == 2
    assert "no block can be streamed: blocks.0 is trained" in err
    assert not (tmp_path / "run").exists()
