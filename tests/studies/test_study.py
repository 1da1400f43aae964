"""Studies: what is saved and reused, what is refused, and what an interruption leaves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from made_messages import made_up
from said import listen
from several import in_processes

from gpt2_from_scratch import Message, Split, TrainConfig, load_messages, split_messages
from gpt2_from_scratch.classifier.settings import HeadSettings
from gpt2_from_scratch.data.messages import DataConfig, write_messages
from gpt2_from_scratch.data.near_duplicates import has_near_duplicate
from gpt2_from_scratch.errors import CheckpointError, DataError, GPT2Error, Interrupted, UsageError
from gpt2_from_scratch.evaluation.baselines import Baseline
from gpt2_from_scratch.evaluation.metrics import read_predictions
from gpt2_from_scratch.runs.recipes import train_classifier
from gpt2_from_scratch.storage.files import locked
from gpt2_from_scratch.storage.processes import count
from gpt2_from_scratch.studies import study as study_module
from gpt2_from_scratch.studies.rows import (
    Finetuned,
    Result,
    Row,
    Setup,
    StudySplit,
    TextBaseline,
    finetuned,
    result_of,
)
from gpt2_from_scratch.studies.study import (
    Study,
    compare,
    compare_runs,
    experiments,
    new_study,
    run_study,
    slug,
)

LABELS = ("ham", "spam")
TEXTS_ONLY = [
    "commonest label",
    "patterns and words",
    "length alone",
    "bag of words",
    "TF-IDF of words",
    "TF-IDF of characters, 2 to 5",
    "TF-IDF of words and characters",
]
ENSEMBLE = "mean of ours and the best text baseline"
CONFIG = TrainConfig(epochs=1, lr=0.005)


def nothing() -> None:
    """A failure that does not happen."""


def fail_alone() -> None:
    """Fail; torchrun's processes train alone."""
    assert count() == 1
    raise GPT2Error("on purpose")


@dataclass(frozen=True)
class Fixed(Row):
    """Predicts spam with a probability that depends on its seed; counts calls, and may fail."""

    calls: list[str] = field(default_factory=list)
    fails: Callable[[], None] = nothing

    def answer(self, setup: Setup, split: StudySplit) -> Result | None:
        self.calls.append(split.name)
        self.fails()
        p = np.random.RandomState(split.seed).rand(len(split.parts.test))
        fitted = Baseline("fixed: x\ny", lambda texts: np.stack([1 - p, p], axis=1)[: len(texts)])
        return result_of(self, setup, replace(split, parts=replace(split.parts, val=[])), fitted)


def fixed_study(*rows: Row, seeds: tuple[int, ...] = (1, 2), **settings: object) -> Study:
    """A study of rows that take no time; the first row is the reference."""
    test = [Message(f"text {n}", LABELS[n % 2]) for n in range(10)]
    splits = [StudySplit(f"seed {seed}", seed, Split(test, [], test)) for seed in seeds]
    return Study(Setup(labels=LABELS), rows, splits, rows[0].name, {"model": "mini"} | settings)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred texts; two thirds are ham, and six pairs differ only by a digit."""
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


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and pages would take longer than everything else."""
    for name in ("write_scoreboard", "write_study_report"):
        monkeypatch.setattr(study_module, name, lambda *args: None)


# --- the engine ---


@pytest.mark.slow
def test_each_row_answers_each_split_once(tmp_path: Path):
    rows, said = (Fixed("a"), Fixed("b\nc")), listen()
    board = run_study(fixed_study(*rows), tmp_path / "out")
    assert [row.calls for row in rows] == [["seed 1", "seed 2"]] * 2
    names = {path.name for path in (tmp_path / "out").iterdir()}
    answers = {f"answers-{row}-{seed}.jsonl" for row in ("a", "b-c") for seed in (1, 2)}
    scores = {f"scoreboard.{kind}" for kind in ("json", "md", "png", "html")}
    assert names == answers | scores | {"settings.json", "finished.json"}
    lines = [line for line in said if line.startswith("seed ")]
    assert len(lines) == 4 and lines[1].startswith("seed 1, b c: x y: ")
    assert " of 10; " in lines[0]  # one line per pair, for every name
    again = run_study(fixed_study(*rows), tmp_path / "out")
    assert again == board and [len(row.calls) for row in rows] == [2, 2]


def test_seeds_and_rows_may_be_added(tmp_path: Path, no_pictures: None):
    a, b = Fixed("a"), Fixed("b")
    run_study(fixed_study(a, b), tmp_path, only=["a"])
    assert b.calls == []
    board = run_study(fixed_study(a, b, seeds=(1, 2, 3)), tmp_path, only=["b"])
    assert (a.calls, b.calls) == (["seed 1", "seed 2", "seed 3"], ["seed 1", "seed 2", "seed 3"])
    assert len(board.rows) == 2 and len(board.splits) == 3
    alone = run_study(fixed_study(a, b, seeds=(1,)), tmp_path, only=["a"])
    # other finished rows are scored too
    assert alone.splits == ("seed 1",) and len(alone.rows) == 2


def test_a_stop_loses_only_pairs_in_progress(tmp_path: Path, no_pictures: None):
    def stop() -> None:
        if len(a.calls) == 2:
            raise KeyboardInterrupt

    a, b = Fixed("a", fails=stop), Fixed("b")
    with pytest.raises(Interrupted, match="kept") as stopped:
        run_study(fixed_study(a, b), tmp_path)
    assert stopped.value.exit_code == 130
    run_study(fixed_study(a, b), tmp_path)
    assert a.calls == ["seed 1", "seed 2", "seed 2"] and b.calls == ["seed 1", "seed 2"]


def test_answers_without_a_note_are_computed_again(tmp_path: Path, no_pictures: None):
    """A kill may come between predictions and record, or a foreign file may be damaged."""
    a = Fixed("a")
    board = run_study(fixed_study(a), tmp_path)
    finished = json.loads((tmp_path / "finished.json").read_text())
    del finished["seed 1"]["a"]
    (tmp_path / "finished.json").write_text(json.dumps(finished))
    (tmp_path / "answers-a-2.jsonl").unlink()
    found = run_study(fixed_study(a), tmp_path)
    assert a.calls == ["seed 1", "seed 2"] * 2
    assert found.rows[0].accuracies == board.rows[0].accuracies


def test_a_row_that_fails_is_reported_and_tried_again(tmp_path: Path, no_pictures: None):
    def fail() -> None:
        if len(b.calls) == 1:
            raise DataError("no messages")

    a, b, said = Fixed("a"), Fixed("b", fails=fail), listen()
    board = run_study(fixed_study(a, b), tmp_path)
    assert [row.name for row in board.rows] == ["a"] and "b: left out" in board.notes[0]
    assert any("seed 1, b: failed" in line and "no messages" in line for line in said)
    assert len(run_study(fixed_study(a, b), tmp_path).rows) == 2
    assert b.calls == ["seed 1", "seed 2", "seed 1"]


def test_a_failed_reference_raises_its_error(tmp_path: Path, no_pictures: None):
    def fail() -> None:
        raise GPT2Error("the loss is NaN")

    with pytest.raises(GPT2Error, match="NaN"):
        run_study(fixed_study(Fixed("a", fails=fail), Fixed("b")), tmp_path)


def test_a_row_that_has_nothing_to_learn_is_not_tried_again(tmp_path: Path, no_pictures: None):
    board = run_study(fixed_study(Fixed("a"), Row("unfit")), tmp_path)  # its result is None
    assert [row.name for row in board.rows] == ["a"] and board.notes == ()
    assert json.loads((tmp_path / "finished.json").read_text())["seed 1"]["unfit"] is None
    said = listen()
    run_study(fixed_study(Fixed("a"), Row("unfit")), tmp_path)
    assert not any("unfit" in line for line in said)


@pytest.mark.parametrize("name", ["results.jsonl", "experiments.md", "finished.json", "photos/"])
def test_a_folder_with_other_contents_is_not_changed(tmp_path: Path, name: str):
    (tmp_path / ".draft.tmp").mkdir()
    (tmp_path / ".lock").write_text("mine")
    (tmp_path / name).mkdir() if name[-1] == "/" else (tmp_path / name).write_text("mine")
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    with pytest.raises(UsageError, match="something other than a study"):
        run_study(fixed_study(Fixed("a")), tmp_path)
    assert before == {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}


def test_another_folder_is_refused(tmp_path: Path, no_pictures: None):
    study = fixed_study(Fixed("a"), lr=0.1)
    run_study(study, tmp_path / "out")
    with pytest.raises(UsageError, match=r"lr: 0\.1 -> 0\.2"):
        run_study(replace(study, settings=study.settings | {"lr": 0.2}), tmp_path / "out")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="something other than a study"):
        run_study(study, tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "settings.json").write_text('{"lr": 0.1}')  # older folders have no version
    with pytest.raises(UsageError, match="another version"):
        run_study(study, tmp_path / "old")
    (tmp_path / "old" / "settings.json").write_text("mine")
    with pytest.raises(CheckpointError, match="settings.json"):
        run_study(study, tmp_path / "old")
    with locked(tmp_path / "out" / ".lock", wait=False), pytest.raises(UsageError, match="process"):
        run_study(study, tmp_path / "out")
    with pytest.raises(UsageError, match="jobs = 0"):
        run_study(study, tmp_path / "out", jobs=0)
    # their predictions would be in the same file
    with pytest.raises(UsageError, match="'a b', 'A-b'"):
        run_study(fixed_study(Fixed("a b"), Fixed("A-b")), tmp_path / "two")


def test_something_else_than_a_result_is_refused(tmp_path: Path, no_pictures: None):
    run_study(fixed_study(Fixed("a")), tmp_path)
    text = (tmp_path / "finished.json").read_text().replace('"seconds"', '"minutes"')
    (tmp_path / "finished.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"finished\.json: seed 1, a.*minutes"):
        run_study(fixed_study(Fixed("a")), tmp_path)


def children() -> set[int]:
    """Child processes that work for joblib."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"popen_loky" in (path / "cmdline").read_bytes():
                found.add(int(path.name))
        except OSError:  # the process has ended
            continue
    return found


@pytest.mark.slow
def test_several_processes_give_the_same_and_end_with_ctrl_c(
    tiny_checkpoint: Path,
    table: Path,
    tmp_path: Path,
    no_pictures: None,
    monkeypatch: pytest.MonkeyPatch,
):
    setup = Setup(tiny_checkpoint, CONFIG, cache=False)
    rows = [
        finetuned(setup),
        TextBaseline("commonest label"),
        Finetuned("head", training={"n_last_blocks": 0}),
    ]
    study = new_study(setup, DataConfig(str(table)), rows, seeds=(1, 2), reference=rows[0].name)
    keep = study_module._Answers.keep

    def interrupted(*args: object) -> None:
        keep(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study_module._Answers, "keep", interrupted)
        with pytest.raises(Interrupted):
            run_study(study, tmp_path / "several", jobs=2)
    assert not children()
    finished = json.loads((tmp_path / "several" / "finished.json").read_text())
    assert sum(map(len, finished.values())) == 1
    several = run_study(study, tmp_path / "several", jobs=2)
    alone = run_study(study, tmp_path / "alone")
    same = [replace(row, seconds=0.0) for row in several.rows]
    assert same == [replace(row, seconds=0.0) for row in alone.rows] and len(same) == 4
    for path in (tmp_path / "alone").glob("answers-*.jsonl"):
        assert path.read_bytes() == (tmp_path / "several" / path.name).read_bytes()


@dataclass(frozen=True)
class Endless(Row):
    """Prints its process number, and never ends."""

    def answer(self, setup: Setup, split: StudySplit) -> Result | None:
        print(os.getpid(), flush=True)
        while True:
            signal.pause()


@pytest.mark.skipif(os.name == "nt", reason="needs forks")
def test_processes_of_torchrun_share_the_pairs(tmp_path: Path, no_pictures: None):
    out = tmp_path / "study"

    def work(rank: int) -> tuple[list[str], int, float]:
        rows = [Fixed("a"), Fixed("b"), Fixed("c", fails=fail_alone)]
        board = run_study(fixed_study(*rows, seeds=(1, 2, 3)), out)
        return [row.name for row in board.rows], sum(len(row.calls) for row in rows), count()

    found = in_processes(2, work, tmp_path)
    assert [calls for _, calls, _ in found] == [5, 4]  # of 9 pairs
    assert all(set(names) == {"a", "b"} for names, *_ in found)
    assert {path.name for path in out.glob("answers-*")} == {
        f"answers-{row}-{seed}.jsonl" for row in "ab" for seed in (1, 2, 3)
    }
    (again,) = in_processes(1, work, tmp_path)
    assert again[1] == 3  # only the row that failed
    jobs = in_processes(2, lambda _: run_study(fixed_study(Fixed("a")), out, jobs=2), tmp_path)
    assert all(isinstance(error, UsageError) for error in jobs)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL, as POSIX has it")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path):
    """They share standard output, which is at its end only when the last of them has ended."""
    code = (
        "import sys; from test_study import Endless, fixed_study, run_study; "
        "run_study(fixed_study(Endless('a'), Endless('b')), sys.argv[1], jobs=2)"
    )
    places = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "out"],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": places},
    ) as process:
        assert process.stdout
        workers = {int(process.stdout.readline()) for _ in range(2)}
        assert len(workers - {process.pid}) == 2
        process.kill()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            raise


# --- comparisons on new splits ---


@pytest.mark.slow
def test_compare_answers_the_splits_that_train_makes(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, no_pictures: None
):
    board = compare(tiny_checkpoint, table, CONFIG, seeds=[1, 2], out=tmp_path / "out")
    gpt2 = f"GPT-2 {tiny_checkpoint.name}"
    names = [*TEXTS_ONLY, "frozen GPT-2 features, logistic regression"]
    names += [f"{gpt2} with random weights", f"{gpt2}, last block"]
    assert sorted(row.name for row in board.rows[:-1]) == sorted(names)
    assert (board.rows[-1].name, board.reference) == (ENSEMBLE, names[-1])
    assert (board.splits, board.positive) == (("seed 1", "seed 2"), "spam")
    split = split_messages(load_messages(table), seed=2)
    assert (board.n_train, board.n_test) == (len(split.train), len(split.test))
    n_near = has_near_duplicate([m.text for m in split.test], [m.text for m in split.train])
    assert 0 < n_near.sum() < len(n_near)
    files = list((tmp_path / "out").glob("answers-*-2.jsonl"))
    assert {path.name for path in files} == {f"answers-{slug(name)}-2.jsonl" for name in names}
    for path in files:
        answers = read_predictions(path)
        assert answers.texts == [m.text for m in split.test]
        assert [answers.labels[k] for k in answers.true] == [m.label for m in split.test]
        assert (answers.near_duplicates == n_near).all()


@pytest.mark.slow
def test_folds_test_every_text_once(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, no_pictures: None
):
    board = compare(tiny_checkpoint, table, CONFIG, n_folds=3, quick=True, out=tmp_path)
    assert board.splits == ("fold 1", "fold 2", "fold 3")
    assert len(board.rows) == 6  # commonest, length, words, frozen, ours, and the mean
    files = [tmp_path / f"answers-bag-of-words-fold-{n}.jsonl" for n in (1, 2, 3)]
    tested = [text for path in files for text in read_predictions(path).texts]
    assert sorted(tested) == sorted(m.text for m in load_messages(table))
    assert (
        json.loads((tmp_path / "settings.json").read_text())["keep_together"] == "near-duplicates"
    )


def given_files(folder: Path, *parts: list[Message]) -> list[str]:
    for n, messages in enumerate(parts):
        write_messages(folder / f"{n}.csv", messages)
    return [str(folder / f"{n}.csv") for n in range(len(parts))]


def test_a_study_of_given_files(tmp_path: Path):
    """Three files are used for every seed; of two, each seed splits the training file."""
    messages = made_up(60, 40)
    files = given_files(tmp_path, messages[:70], messages[70:80], messages[80:])
    rows = [TextBaseline("commonest label")]

    def splits(data: DataConfig) -> list[Split]:
        study = new_study(Setup(), data, rows, seeds=(1, 2), reference=rows[0].name)
        assert study.setup.labels == LABELS and study.settings["test_source"] == data.test_source
        return [split.parts for split in study.splits]

    assert splits(DataConfig(*files)) == [Split(messages[:70], messages[70:80], messages[80:])] * 2
    train, _, test = files
    one, two = splits(DataConfig(source=train, test_source=test))
    assert one.test == two.test == messages[80:] and one.val != two.val
    for split in (one, two):
        assert sorted(m.text for m in (*split.train, *split.val)) == sorted(
            m.text for m in messages[:70]
        )
    with pytest.raises(UsageError, match="folds are cut from one file"):
        compare("mini", DataConfig(source=train, test_source=test), n_folds=3)


def test_a_study_from_before_a_setting_existed_resumes(tmp_path: Path):
    """In the older study, the setting had its default."""
    parts = (DataConfig(), TrainConfig(), HeadSettings())
    settings = {n: value for part in parts for n, value in asdict(part).items()}
    with study_module._working_in(tmp_path, settings):
        pass
    path = tmp_path / "settings.json"
    saved = json.loads(path.read_text())
    later = ("rare_labels", "adapt", "with_ngrams")
    path.write_text(json.dumps({n: v for n, v in saved.items() if n not in later}))
    with study_module._working_in(tmp_path, settings):
        pass
    path.write_text(json.dumps({n: v for n, v in saved.items() if n != "rare_labels"}))
    with pytest.raises(UsageError, match="rare_labels: 'stop' -> 'drop'"):
        with study_module._working_in(tmp_path, settings | {"rare_labels": "drop"}):
            pass


def test_rare_labels_in_studies(tmp_path: Path):
    messages = made_up() + [Message(f"eggs {n}", "eggs") for n in range(3)]
    (path,) = given_files(tmp_path, messages)
    rows = [TextBaseline("commonest label")]

    def labels(rare: str) -> tuple[str, ...]:
        data = DataConfig(path, rare_labels=rare)
        return new_study(Setup(), data, rows, reference=rows[0].name).setup.labels

    assert labels("drop") == LABELS and labels("join:ham") == LABELS
    assert labels("keep") == ("eggs", *LABELS)
    with pytest.raises(DataError, match="--rare-labels"):
        labels("stop")
    with pytest.raises(UsageError, match="rare label"):
        compare("mini", DataConfig(path, rare_labels="keep"), n_folds=3)


@pytest.mark.parametrize(
    ("options", "error", "facts"),
    [
        ({"seeds": [1], "n_folds": 3}, UsageError, "not both"),
        ({"seeds": [1, 1]}, UsageError, r"\[1, 1\].*twice"),
        ({"head": HeadSettings(task="span")}, UsageError, "span"),
        ({"head": HeadSettings(labels="ham,egg")}, DataError, "'spam'.*ham, egg"),
    ],
)
def test_invalid_arguments_of_studies_are_refused(
    table: Path, tmp_path: Path, options, error, facts: str
):
    with pytest.raises(error, match=facts):
        compare("mini", table, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# --- experiments ---


def test_experiments_are_the_books_rows_on_balanced_splits(tmp_path: Path):
    write_messages(tmp_path / "some.csv", made_up(60, 40))
    data = DataConfig(str(tmp_path / "some.csv"), balance=True)
    study = experiments("mini", data, TrainConfig(epochs=5), seeds=(1, 2))
    messages = load_messages(tmp_path / "some.csv")
    assert len(study.rows) >= 30 and study.reference == "default" and not study.ranked
    for split in study.splits:
        expected = split_messages(messages, balance=True, seed=split.seed)
        assert split.parts == expected
        held = {m.text for m in (*expected.val, *expected.test)}
        assert {m.text for m in split.unbalanced} == {m.text for m in messages} - held
    with pytest.raises(UsageError, match="at least one seed"):
        experiments("mini", data, seeds=())
    with pytest.raises(UsageError, match="pooling = 'mean'"):
        experiments("mini", data, TrainConfig(epochs=5), HeadSettings(pooling="mean"))


def test_a_study_of_other_messages_is_another(tmp_path: Path):
    path = tmp_path / "some.csv"
    settings = []
    for spam in (30, 31):
        write_messages(path, made_up(60, spam))
        settings.append(experiments("mini", str(path), seeds=(1,)).settings)
    a, b = settings
    assert {name for name in a if a[name] != b[name]} == {"messages_sha256"}


# --- finished runs ---


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs: two for the split of seed 1, one for that of seed 2."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed, blocks in (("one", 1, 1), ("two", 1, 2), ("other", 2, 1)):
        config = replace(CONFIG, seed=seed, n_last_blocks=blocks)
        train_classifier(tiny_checkpoint, table, config, run=folder / name, cache=False)
    return folder


@pytest.mark.slow
def test_runs_are_compared_with_the_first_and_baselines(
    runs: Path, table: Path, tmp_path: Path, no_pictures: None
):
    board = compare_runs([runs / "one", runs / "two"], out=tmp_path)
    assert {row.name for row in board.rows} == {"one", "two", *TEXTS_ONLY, ENSEMBLE}
    split = split_messages(load_messages(table), seed=1)
    assert (board.reference, board.n_train) == ("one", len(split.train))
    n_near = has_near_duplicate([m.text for m in split.test], [m.text for m in split.train])
    assert board.n_without_near_duplicates == (~n_near).sum()
    for row in board.rows:
        if row.name in ("one", "two"):
            saved = json.loads((runs / row.name / "evaluation.json").read_text())
            assert row.accuracy == saved["accuracy"]


@pytest.mark.slow
def test_runs_on_other_test_texts_are_refused(runs: Path, tmp_path: Path):
    a, b = (sorted(m.text for m in load_messages(runs / n / "test.csv")) for n in ("one", "other"))
    one, other = next(pair for pair in zip(a, b, strict=True) if pair[0] != pair[1])
    with pytest.raises(DataError, match="other has other test texts") as refused:
        compare_runs([runs / "one", runs / "other"], out=tmp_path)
    assert repr(one) in str(refused.value) and repr(other) in str(refused.value)


@pytest.mark.slow
def test_without_the_runs_data_there_are_no_baselines(
    runs: Path, table: Path, tmp_path: Path, no_pictures: None
):
    raw, said = table.read_text("utf-8"), listen()
    try:
        table.write_text(raw + '"ham","one more text"\n', "utf-8")
        board = compare_runs([runs / "one", runs / "two"], out=tmp_path)
    finally:
        table.write_text(raw, "utf-8")
    assert {row.name for row in board.rows} == {"one", "two"}
    assert board.n_without_near_duplicates is not None  # the runs have saved them
    assert any("no text baselines" in line and "changed" in line for line in said)


def test_runs_with_one_name_are_refused(runs: Path, tmp_path: Path):
    for pair in ([runs / "one"] * 2, [runs / "one", tmp_path / "Bag of words"]):
        with pytest.raises(
            UsageError, match="two names are equal, or one is the name of a baseline"
        ):
            compare_runs(pair, out=tmp_path / "out")
