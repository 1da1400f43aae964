"""Comparisons: what is in the table, what is kept and not computed again, what is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from said import listen

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.cli import main as cli
from gpt2_from_scratch.data.messages import Message, load_messages, write_messages
from gpt2_from_scratch.data.near_duplicates import has_twin
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.errors import DataError, Interrupted, UsageError
from gpt2_from_scratch.evaluation.baselines import Baseline
from gpt2_from_scratch.evaluation.metrics import read_predictions
from gpt2_from_scratch.runs.recipes import train_classifier
from gpt2_from_scratch.studies import compare as compare_module
from gpt2_from_scratch.studies import compare_runs, contest
from gpt2_from_scratch.studies.compare import compare
from gpt2_from_scratch.studies.scoreboard import Scoreboard

CONFIG = TrainConfig(epochs=2, lr=0.005)
TEXTS_ONLY = [
    "commonest label",
    "patterns and words",
    "length alone",
    "bag of words",
    "TF-IDF of words",
    "TF-IDF of characters, 2 to 5",
]


def quietly(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred texts, some 40 of them spam, with six pairs that differ by a digit."""
    draw, found = np.random.RandomState(5), {}
    while len(found) < 88:
        words = ["".join(draw.choice(list("abcde"), 3)) for _ in range(draw.randint(4, 8))]
        label = "spam" if len(found) % 3 == 0 else "ham"
        if draw.rand() < 0.7:
            words[draw.randint(len(words))] = {"ham": "see", "spam": "win"}[label]
        found.setdefault(" ".join(words), Message(" ".join(words), label))
    for n in range(12):
        text = f"call {'uvwxyz'[n // 2] * 3} {n} now"
        found[text] = Message(text, "spam")
    path = tmp_path_factory.mktemp("data") / "table.csv"
    write_messages(path, list(found.values()))
    return path


@pytest.fixture(scope="module")
def names(tiny_checkpoint: Path) -> list[str]:
    frozen = "frozen GPT-2 features, logistic regression"
    gpt2 = f"GPT-2 {tiny_checkpoint.name}"
    return [*TEXTS_ONLY, frozen, f"{gpt2} with random weights", f"{gpt2}, last block"]


@pytest.fixture(scope="module")
def compared(
    tiny_checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Scoreboard, list[str]]:
    """The folder of a comparison on two splits, its scoreboard, what was said."""
    out, said = tmp_path_factory.mktemp("compared"), []
    board = compare(tiny_checkpoint, table, config=CONFIG, seeds=[1, 2], out=out)
    return out, board, said


@pytest.fixture
def no_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("this was to be finished")

    for name in ("fit_finetuned", "fit_random", "fit_frozen"):
        monkeypatch.setattr(compare_module, name, refuse)


# --- on new splits ---


def test_every_classifier_answers_every_split(compared, names: list[str]) -> None:
    out, board, said = compared
    assert sorted(row.name for row in board.rows[:-1]) == sorted(names)
    assert board.rows[-1].name == "mean of ours and the best text baseline"
    assert board.ours == names[-1] and board.splits == ("seed 1", "seed 2")
    assert (board.n_train, board.n_test, board.watched) == (69, 22, "spam")
    lines = [line for line in said if line.startswith("seed ")]
    assert len(lines) == 2 * len(names) and all(" of 22; " in line for line in lines)
    answers = {path.name for path in out.glob("answers-*.jsonl")}
    assert len(answers) == 2 * len(names) and "answers-bag-of-words-2.jsonl" in answers
    for name in ("scoreboard.json", "scoreboard.md", "scoreboard.png", "settings.json"):
        assert (out / name).stat().st_size > 0
    saved = json.loads((out / "scoreboard.json").read_text())
    assert [row["name"] for row in saved["rows"]] == [row.name for row in board.rows]


def test_answers_are_to_the_split_that_train_makes(
    compared, table: Path, tiny_checkpoint: Path, tmp_path: Path, names: list[str]
) -> None:
    out, board, _ = compared
    config = TrainConfig(epochs=2, lr=0.005, seed=2)
    _, _, scores = train_classifier(tiny_checkpoint, table, tmp_path / "run", config, cache=False)
    ours = next(row for row in board.rows if row.name == names[-1])
    assert ours.accuracies[1] == scores.accuracy
    split = split_messages(load_messages(table), seed=2)
    twins = has_twin([m.text for m in split.test], [m.text for m in split.train])
    assert 0 < twins.sum() < len(twins)
    for path in out.glob("answers-*-2.jsonl"):
        answered = read_predictions(path)
        assert answered.texts == [m.text for m in split.test]
        assert [answered.labels[k] for k in answered.true] == [m.label for m in split.test]
        assert answered.near_duplicates is not None and (answered.near_duplicates == twins).all()


def test_the_mean_takes_the_baseline_that_validation_prefers(compared) -> None:
    out, board, _ = compared
    finished = json.loads((out / "finished.json").read_text())
    for n, split in enumerate(board.splits):
        shares = {kind: finished[split][kind]["val_accuracy"] for kind in TEXTS_ONLY}
        best = max(shares, key=lambda kind: shares[kind])
        assert board.rows[-1].learned[n] == best
        slug = {kind: contest.slug(kind) for kind in (best, board.ours)}
        a, b = (
            read_predictions(out / f"answers-{slug[kind]}-{n + 1}.jsonl")
            for kind in (best, board.ours)
        )
        mean = (a.probabilities + b.probabilities) / 2
        assert board.rows[-1].accuracies[n] == (mean.argmax(axis=1) == a.true).mean()


def test_what_is_said_is_on_one_line(tmp_path: Path) -> None:
    def even(texts: Sequence[str]) -> np.ndarray:
        return np.full((len(texts), 2), 0.5)

    some, said = [Message("a", "ham"), Message("b", "spam")], []
    fits = {"evil": lambda: Baseline("evil: h\na\x1b[2Jm", even), "x\ny": lambda: None}
    match = contest.Contest("seed 1", some, some, None, fits)
    contest.play([match], ["ham", "spam"], tmp_path)
    assert said[0].startswith("seed 1, evil: h a\ufffd[2Jm: 50.00 %  (1 of 2; ")
    assert said[1] == "seed 1, x y: left out"


def test_what_is_finished_is_not_fitted_again(
    compared, tiny_checkpoint: Path, table: Path, no_fitting: None
) -> None:
    out, board, _ = compared
    options = {"config": CONFIG, "out": out, "quiet": True, "say": quietly}
    assert compare(tiny_checkpoint, table, seeds=[1, 2], **options) == board
    with pytest.raises(AssertionError, match="was to be finished"):
        compare(tiny_checkpoint, table, seeds=[1, 4], **options)


def test_other_settings_are_refused_by_name(compared, tiny_checkpoint: Path, table: Path) -> None:
    out, _, _ = compared
    options = {"out": out, "quiet": True, "say": quietly, "seeds": [1]}
    with pytest.raises(UsageError, match=r"lr: 0.005 -> 0.001"):
        compare(tiny_checkpoint, table, config=TrainConfig(epochs=2, lr=0.001), **options)
    with pytest.raises(UsageError, match="balance: False -> True"):
        compare(tiny_checkpoint, table, config=CONFIG, balance=True, **options)
    (out.parent / "full").mkdir(exist_ok=True)
    (out.parent / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        compare(tiny_checkpoint, table, config=CONFIG, **options | {"out": out.parent / "full"})


def test_an_interrupted_comparison_goes_on(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    options = {"config": CONFIG, "seeds": [1], "out": tmp_path / "out", "quiet": True}
    with monkeypatch.context() as patch:
        patch.setattr(compare_module, "fit_finetuned", interrupt)
        with pytest.raises(Interrupted, match="the same command goes on"):
            compare(tiny_checkpoint, table, quick=True, **options)
    said = listen()
    monkeypatch.setattr(compare_module, "fit_frozen", interrupt)  # it is finished
    board = compare(tiny_checkpoint, table, quick=True, **options)
    assert [line.split(":")[0] for line in said] == [f"seed 1, {board.ours}"]
    assert len(board.rows) == 6  # commonest, length, words, frozen, ours and their mean


def test_folds_test_every_text_once(tiny_checkpoint: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    board = compare(tiny_checkpoint, table, config=CONFIG, n_folds=3, quick=True, out=out)
    assert board.splits == ("fold 1", "fold 2", "fold 3")
    tested = [
        t
        for n in (1, 2, 3)
        for t in read_predictions(out / f"answers-bag-of-words-fold-{n}.jsonl").texts
    ]
    assert sorted(tested) == sorted(m.text for m in load_messages(table))
    assert json.loads((out / "settings.json").read_text())["together"] == "near-twins"


def test_what_makes_no_sense_is_refused(table: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"seeds": [1], "n_folds": 3}, "not both"),
        ({"seeds": [1, 1]}, "twice"),
        ({"settings": HeadSettings(task="span")}, "not for span"),
    ):
        with pytest.raises(UsageError, match=message):
            compare("mini", table, out=tmp_path / "out", **options)
    settings = HeadSettings(labels="ham,egg")
    with pytest.raises(DataError, match="'spam'.*ham, egg"):
        compare("mini", table, settings=settings, out=tmp_path / "out")


# --- finished runs ---


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs: two on the split of seed 1, one on that of seed 2."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed, blocks in (("one", 1, 1), ("two", 1, 2), ("other", 2, 1)):
        config = TrainConfig(epochs=1, lr=0.005, seed=seed, n_last_blocks=blocks)
        train_classifier(tiny_checkpoint, table, folder / name, config, cache=False)
    return folder


def compare_them(runs: Path, names: list[str], model: Path, out: Path, said: list) -> Scoreboard:
    return compare_runs.compare_runs([runs / name for name in names], model=model, out=out)


def test_runs_are_held_against_the_first_and_baselines(
    runs: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    board = compare_them(runs, ["one", "two"], tiny_checkpoint, tmp_path / "out", [])
    ensemble = "mean of ours and the best text baseline"
    assert {row.name for row in board.rows} == {"one", "two", *TEXTS_ONLY, ensemble}
    assert board.ours == "one" and board.n_train == 69 and board.n_without_twins is not None
    for row in board.rows:
        if row.name in ("one", "two"):
            saved = json.loads((runs / row.name / "evaluation.json").read_text())
            assert row.accuracy == saved["accuracy"]


def test_runs_on_other_test_texts_are_refused(
    runs: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    parts = [sorted(m.text for m in load_messages(runs / n / "test.csv")) for n in ("one", "other")]
    a, b = next((a, b) for a, b in zip(*parts, strict=True) if a != b)
    with pytest.raises(DataError, match="other has other test texts than one") as told:
        compare_them(runs, ["one", "other"], tiny_checkpoint, tmp_path / "out", [])
    assert repr(a) in str(told.value) and repr(b) in str(told.value)


def test_without_the_runs_data_there_are_no_baselines(
    runs: Path, table: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    said = listen()
    raw = table.read_text("utf-8")
    try:
        table.write_text(raw + '"ham","one more text"\n', "utf-8")
        board = compare_them(runs, ["one", "two"], tiny_checkpoint, tmp_path / "out", said)
    finally:
        table.write_text(raw, "utf-8")
    assert [row.name for row in board.rows] in (["one", "two"], ["two", "one"])
    assert any("no text baselines" in line and "others by now" in line for line in said)


def test_two_of_one_name_are_refused(runs: Path, tmp_path: Path) -> None:
    baseline = tmp_path / "Bag of words"
    shutil.copytree(runs / "two", baseline)
    for pair in ([runs / "one", runs / "one"], [runs / "one", baseline]):
        with pytest.raises(UsageError, match="two are alike or one is a baseline's"):
            compare_runs.compare_runs(pair, out=tmp_path / "out")


# --- as it is typed ---


def call(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_the_table(
    compared, tiny_checkpoint: Path, table: Path, capsys: pytest.CaptureFixture, no_fitting: None
) -> None:
    out, _, _ = compared
    code, told, err = call(
        capsys,
        "compare",
        "--model",
        tiny_checkpoint,
        "--data",
        table,
        "--seeds",
        1,
        2,
        "--out",
        out,
        "--epochs",
        2,
        "--lr",
        0.005,
        "--device",
        "cpu",
    )
    assert code == 0 and told == (out / "scoreboard.md").read_text("utf-8")
    assert str(out) in err


def test_the_command_takes_runs_and_no_settings_with_them(
    runs: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    common = ("compare", runs / "one", runs / "two", "--model", tiny_checkpoint, "--device", "cpu")
    code, told, _ = call(capsys, *common, "--quick", "--out", tmp_path / "out")
    assert code == 0 and told.startswith("| classifier | test accuracy, % |")
    assert "| two |" in told and "TF-IDF of characters" not in told
    code, _, err = call(capsys, *common, "--epochs", 3)
    assert code == 2 and "leave out epochs" in err
    code, _, err = call(capsys, "compare", "--seed", 1, "--seeds", 1, 2)
    assert code == 2 and "leave out --seed" in err
