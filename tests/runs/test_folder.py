"""The folder of a run: the texts it was trained on, and which files belong to the run."""

import io
import json
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import call
from interrupted import interrupted_after

from gpt2_from_scratch.classifier import train as training_run
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.data.messages import load_messages
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.errors import DataError, Interrupted, UsageError
from gpt2_from_scratch.runs.folder import RunConfig, TrainedOn
from gpt2_from_scratch.runs.recipes import resume_training, train_classifier

CONFIG = TrainConfig(epochs=1, seed=3)
ROWS = [(f"{'the göal' if n % 2 else 'a pill'}  {n}", "ab"[n % 2]) for n in range(40)]


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("data") / "kinds.csv", ROWS)


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train_classifier(tiny_checkpoint, table, CONFIG, run=folder, device="cpu").folder


# --- its settings ---


@pytest.mark.parametrize(
    ("given", "epochs", "patience"),
    [
        ({}, 250, 100),  # 28 training texts are 2 steps of 16
        ({"batch_size": 4}, 72, 29),  # 7 steps
        ({"patience": 3}, 250, 3),
        ({"epochs": 5}, 5, 4),
        ({"epochs": 20, "patience": 6}, 20, 6),
    ],
)
def test_the_settings_have_the_epochs_that_were_chosen(
    tiny_checkpoint, table, tmp_path, monkeypatch, given, epochs, patience
) -> None:
    folder, config = tmp_path / "run", TrainConfig(seed=3, **given)
    with interrupted_after(1, monkeypatch), pytest.raises(Interrupted):
        train_classifier(tiny_checkpoint, table, config, run=folder, device="cpu")
    written = json.loads((folder / "config.json").read_text())["training"]
    assert (written["epochs"], written["patience"]) == (epochs, patience)
    assert RunConfig.read(folder).training == replace(config, epochs=epochs, patience=patience)


@pytest.mark.slow
def test_a_run_of_chosen_epochs_resumes(tiny_checkpoint, table, tmp_path, monkeypatch) -> None:
    """It ends like an uninterrupted run of as many epochs."""
    base, given = (tiny_checkpoint, table), TrainConfig(seed=3, batch_size=1, patience=3)
    with interrupted_after(5, monkeypatch), pytest.raises(Interrupted):
        train_classifier(*base, given, run=tmp_path / "resumed", device="cpu")
    resume_training(tmp_path / "resumed", device="cpu")
    same = replace(given, epochs=18)  # of 28 steps
    train_classifier(*base, same, run=tmp_path / "same", device="cpu")
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors", "config.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()


# --- the texts it was trained on ---


def evaluated(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[str, int | None]:
    """The first line of `evaluate`, and the number of texts that it says were used in training."""
    code, out, _ = call(capsys, "evaluate", *arguments)
    assert code == 0
    _, raw, _ = call(capsys, "evaluate", *arguments, "--json")
    return out.split("\n", 1)[0], json.loads(raw).get("trained_on", -1)


@pytest.mark.slow
def test_evaluate_says_how_many_texts_were_trained_on(
    run: Path, table: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train = split_messages(load_messages(table), seed=CONFIG.seed).train
    base = ("--model", tiny_checkpoint)
    line, n = evaluated(capsys, run, *base, "--data", table)
    assert line.startswith("28 of the 40 texts were trained on") and n == len(train) == 28
    # the same texts with other line ends, white space and Unicode composition
    changed = [(f" {unicodedata.normalize('NFD', m.text).replace('  ', ' ')}", "a") for m in train]
    other = write_table(tmp_path / "other.csv", changed)
    other.write_bytes(other.read_bytes().replace(b"\n", b"\r\n"))
    line, n = evaluated(capsys, run / "last.safetensors", *base, "--data", other)
    assert line.startswith("all 28 texts were trained on") and n == 28
    new = write_table(tmp_path / "new.csv", [("the goal 1!", "a"), ("THE GÖAL 1", "b")])
    line, n = evaluated(capsys, run, *base, "--data", new)
    assert line == "none of the 2 texts was trained on" and n == 0
    line, n = evaluated(capsys, run, *base)  # the run's own test set
    assert line.startswith("accuracy") and n == -1


@pytest.mark.slow
def test_nothing_is_known_about_a_single_file(
    run: Path, table: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = tmp_path / "best.safetensors"
    bare.write_bytes((run / "best.safetensors").read_bytes())
    for classifier in (bare, tmp_path):
        line, n = evaluated(capsys, classifier, "--model", tiny_checkpoint, "--data", table)
        assert "not known" in line and n is None


@pytest.mark.slow
def test_other_tasks_count_known_texts_too(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    table = write_table(tmp_path / "n.csv", [(f"the pill {n}", str(n % 5)) for n in range(20)])
    head = HeadSettings(task="regression")
    train_classifier(tiny_checkpoint, table, CONFIG, head, run=tmp_path / "run", device="cpu")
    line, n = evaluated(capsys, tmp_path / "run", "--model", tiny_checkpoint, "--data", table)
    assert line.startswith("14 of the 20 texts were trained on") and n == 14


def test_changed_hashes_are_refused(run: Path, tmp_path: Path, capsys, tiny_checkpoint) -> None:
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "training-texts.txt").write_text("")
    code, _, err = call(capsys, "evaluate", tmp_path, "--model", tiny_checkpoint)
    assert code == 4 and "training-texts.txt" in err


def test_partly_known_texts(run: Path, table: Path, tmp_path: Path) -> None:
    messages = load_messages(table)
    known = TrainedOn.of(run)
    TrainedOn(known.hashes, complete=False).write(tmp_path)
    partly = TrainedOn.of(tmp_path)
    assert partly.hashes == known.hashes and not partly.complete
    assert partly.in_words(messages).startswith("at least 28 of the 40 texts")


# --- files of the user in a run's folder ---


def put_files(folder: Path) -> dict[str, bytes]:
    """Files that a desktop or a person leaves in a folder; one looks like a state, one is locked."""
    found = {name: name.encode() for name in USERS}
    for name, content in found.items():
        (folder / name).write_bytes(content)
    (folder / "old").mkdir(exist_ok=True)
    return found


USERS = (".DS_Store", "Thumbs.db", "notes.txt", "state-9 copy.safetensors", "state-x.safetensors")


@pytest.mark.slow
def test_files_of_the_user_do_not_matter(
    run: Path, tiny_checkpoint: Path, table: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    folder, base = tmp_path / "run", ("--model", tiny_checkpoint)
    folder.mkdir()
    (folder / "Thumbs.db").write_bytes(b"made by a look into the folder")
    monkeypatch.setattr(training_run, "SAVE_EVERY", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(training_run.TrainingRun, "end_epoch", _interrupt)
        arguments = ("--data", table, "--out", folder, "--epochs", 1, "--seed", 3)
        assert call(capsys, "train", *base, *arguments)[0] == 130
    users = put_files(folder)
    assert call(capsys, "train", "--resume", folder)[0] == 0
    listed = json.loads((folder / "MANIFEST.json").read_text())["sha256"]
    assert {*listed} == {*json.loads((run / "MANIFEST.json").read_text())["sha256"]} | {
        "report.html",
        "model_card.md",
        "curves.png",
    }
    assert {name: (folder / name).read_bytes() for name in users} == users
    (folder / "notes.txt").write_text("something else, later")
    code, out, _ = call(capsys, "verify", folder)
    assert code == 0 and "Thumbs.db, notes.txt" in out and ".DS_Store" not in out
    for arguments in (("predict", folder, "a pill"), ("evaluate", folder)):
        assert call(capsys, *arguments, *base)[0] == 0
    assert call(capsys, "train", "--resume", folder)[0] == 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_with_files_of_the_user_is_not_a_new_run(tiny_checkpoint, table, tmp_path, capsys):
    (tmp_path / "config.json").write_text("mine")
    command = ("train", "--model", tiny_checkpoint, "--data", table, "--out", tmp_path)
    code, _, err = call(capsys, *command)
    assert code == 2 and "exists already" in err
    assert (tmp_path / "config.json").read_text() == "mine"


# --- a file, a run or a model in the wrong place ---


def test_a_file_given_as_a_text_is_pointed_out(
    run: Path, table: Path, tiny_checkpoint: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    base = ("--model", tiny_checkpoint)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my texts.csv").write_bytes(table.read_bytes())
    for texts in (["my texts.csv"], ["a pill", table]):
        code, out, err = call(capsys, "predict", run, *texts, *base)
        assert (code, out) == (2, "") and "--file" in err and str(texts[-1]) in err
    code, out, _ = call(capsys, "predict", run, "no such.csv", "a\0b", "x" * 5000, *base)
    assert code == 0 and len(out.splitlines()) == 3


def test_a_hyphen_is_standard_input(
    run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    raw, base = b"a pill\nthe goal\n", ("--model", tiny_checkpoint)
    outputs = []
    for given in ([], ["--file", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        code, out, _ = call(capsys, "predict", run, *given, *base, "--json")
        outputs.append(out)
        assert code == 0 and len(out.splitlines()) == 2
    assert outputs[0] == outputs[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    out = tmp_path / "states.npy"
    assert call(capsys, "features", "--file", "-", "--out", out, *base)[0] == 0
    assert np.load(out).shape == (2, 32)


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--prompt", "Hi", "--model"],
        ["train", "--data", "hard", "--model"],
        ["check", "hard", "--model"],
        ["verify"],
    ],
)
def test_a_classifier_is_not_a_model(run: Path, tmp_path: Path, capsys, command) -> None:
    for given in (run / "best.safetensors", run):
        if given == run and command == ["verify"]:
            continue  # verify checks a run's manifest
        code, _, err = call(capsys, *command, given)
        assert code == 4 and "trained classifier, not a GPT-2" in err and "predict" in err


def test_a_model_is_not_a_classifier(tiny_checkpoint: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model in ("mini", "gpt2", tiny_checkpoint):
        for command in (
            ["predict", model, "hi"],
            ["evaluate", model],
            ["train", "--resume", model],
        ):
            code, _, err = call(capsys, *command)
            assert code in (2, 4) and f"{model} is a GPT-2" in err and "--model" in err
    (tmp_path / "folder").mkdir()
    code, _, err = call(capsys, "predict", "folder", "hi")
    assert code == 4 and "folder is not a run" in err


def test_a_run_that_is_not_finished_says_so(tmp_path: Path, capsys) -> None:
    (tmp_path / "provenance.json").write_text("{}")
    code, _, err = call(capsys, "predict", tmp_path, "hi")
    assert code == 4 and "not finished its first epoch" in err
    code, _, err = call(capsys, "verify", tmp_path)
    assert code == 4 and "not finished" in err and f"--resume {tmp_path}" in err


def test_a_config_may_name_a_model_as_the_hub_does() -> None:
    assert RunConfig(model="gpt2-medium").model == "355M"
    assert RunConfig(model="openai-community/gpt2-xl").model == "1558M"


# --- arguments that are not paths ---


def test_arguments_that_are_not_paths_are_refused_first() -> None:
    with pytest.raises(UsageError, match="not int: 3"):
        train_classifier("no model", "no data", run=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not int: 3"):
        resume_training(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="is not a file"):
        train_classifier("mini", "a" * 300)  # longer than a file name can be
