"""What a run's folder knows: the texts that were trained on, and which files are the run's own."""

import json
import unicodedata
from pathlib import Path

import pytest
from command import call

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.data.messages import load_messages
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.runs.folder import TrainedOn
from gpt2_from_scratch.runs.recipes import train_classifier

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


# --- the texts it was trained on ---


def evaluated(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[str, int | None]:
    """The first line of `evaluate`, and what its JSON says was trained on."""
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
    # the same texts in another form: line ends, white space, composition
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
def test_of_a_bare_file_it_is_not_known(
    run: Path, table: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = tmp_path / "best.safetensors"
    bare.write_bytes((run / "best.safetensors").read_bytes())
    for classifier in (bare, tmp_path):
        line, n = evaluated(capsys, classifier, "--model", tiny_checkpoint, "--data", table)
        assert "not known" in line and n is None


@pytest.mark.slow
def test_other_tasks_say_it_too(
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


def test_texts_that_are_known_in_part(run: Path, table: Path, tmp_path: Path) -> None:
    messages = load_messages(table)
    known = TrainedOn.of(run)
    TrainedOn(known.hashes, complete=False).write(tmp_path)
    partly = TrainedOn.of(tmp_path)
    assert partly.hashes == known.hashes and not partly.complete
    assert partly.in_words(messages).startswith("at least 28 of the 40 texts")
