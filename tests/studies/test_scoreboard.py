"""The scoreboard: its numbers compared with scikit-learn and scipy, its text checked by hand."""

import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from html_reader import Reader
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions, wilson_interval
from gpt2_from_scratch.evaluation.significance import (
    compare_paired,
    compare_repeated,
    holm,
    mean_interval,
    spread_by_chance,
)
from gpt2_from_scratch.studies.rows import TEXT, Book, Result, Row
from gpt2_from_scratch.studies.scoreboard import (
    ENSEMBLE,
    EXPERIMENTS,
    ensembles,
    format_scoreboard,
    make_scoreboard,
    mean_result,
    write_scoreboard,
)

LABELS = ("ham", "spam")
OURS, BAG = Row("ours"), Row("bag", TEXT)


def result(
    row: Row, seed: int, skill: float, split: str = "seed 1", labels=LABELS, n: int = 60
) -> Result:
    """Predictions that are correct more often with more `skill`; equal labels for equal splits."""
    K, texts = len(labels), [f"text {k}" for k in range(n)]
    true = np.random.RandomState(len(split) + ord(split[-1])).randint(0, K, n)
    draw = np.random.RandomState(seed)
    logits = draw.normal(size=(n, K))
    logits[np.arange(n), true] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answers = LabelledPredictions(labels, texts, true, probabilities, np.arange(n) % 4 == 0)
    return Result(row, split, answers, n_train=100, seconds=seed)


def of(row: Row, correct: list[str]) -> list[Result]:
    """Results of a row, one per split, from strings with a 1 per correct answer."""
    return [
        Result(
            row,
            f"seed {n}",
            LabelledPredictions(
                LABELS,
                list("abcdefghij"),
                np.ones(10, dtype=int),
                np.array([[1 - int(c), int(c)] for c in one], dtype=float),
            ),
            n_train=70,
            seconds=1.5,
        )
        for n, one in enumerate(correct, start=1)
    ]


@pytest.fixture
def three() -> list[Result]:
    regex = replace(result(Row("regex", TEXT), 3, 2.0), learned="a|b")
    return [result(OURS, 1, 3.0), result(BAG, 2, 1.0), regex]


def test_rows_are_ranked_and_scored_as_scikit_learn_does(three: list[Result]):
    board = make_scoreboard(three, "ours", positive="spam")
    assert [row.name for row in board.rows] == ["ours", "regex", "bag"]
    assert (board.n_train, board.n_test, board.n_without_near_duplicates) == (100, 60, 45)
    for row in board.rows:
        answers = next(r.predictions for r in three if r.row.name == row.name)
        true, p = answers.true, answers.probabilities
        correct = p.argmax(axis=1) == true
        assert row.accuracy == correct.mean() and row.accuracies == (correct.mean(),)
        assert row.interval == wilson_interval(int(correct.sum()), 60) and row.spread == 0
        assert row.f1 == pytest.approx(f1_score(true == 1, p.argmax(axis=1) == 1))
        assert row.roc_auc == pytest.approx(roc_auc_score(true == 1, p[:, 1]))
        assert row.brier == pytest.approx(((p - np.eye(2)[true]) ** 2).sum(axis=1).mean())
        without = pytest.approx(correct[np.arange(60) % 4 != 0].mean())
        assert row.without_near_duplicates == without
    assert board.rows[1].learned == ("a|b",) and board.rows[0].learned == ()
    kept = make_scoreboard(three, "ours", ranked=False)
    assert [row.name for row in kept.rows] == ["ours", "bag", "regex"]


def test_one_split_is_compared_text_by_text(three: list[Result]):
    rows = {row.name: row for row in make_scoreboard(three, "ours").rows}
    assert rows["ours"].difference is None
    correct = {r.row.name: r.predictions.correct for r in three}
    ps = []
    for name in ("bag", "regex"):
        only = [int((correct[a] & ~correct[b]).sum()) for a, b in ((name, "ours"), ("ours", name))]
        ps.append(stats.binomtest(only[0], sum(only)).pvalue)
        found = rows[name].difference
        assert found.difference == pytest.approx((only[0] - only[1]) / 60)
        assert found.interval == compare_paired(correct[name], correct["ours"]).interval
        assert found.p == pytest.approx(ps[-1])
    adjusted = [rows[name].difference.p_adjusted for name in ("bag", "regex")]
    assert adjusted == pytest.approx(holm(ps))


def test_several_splits_are_compared_split_by_split():
    splits = [f"seed {n}" for n in (1, 2, 3)]
    results = [result(OURS, n, 2.0, s) for n, s in enumerate(splits)]
    results += [result(BAG, 10 + n, 1.0, s) for n, s in enumerate(splits)]
    board = make_scoreboard(results, "ours", positive="spam")
    ours, bag = board.rows
    assert board.splits == (*splits,) and ours.name == "ours"
    expected = [r.predictions.correct.mean() for r in results]
    assert ours.accuracies == pytest.approx(expected[:3])
    assert ours.accuracy == pytest.approx(np.mean(expected[:3]))
    assert ours.spread == pytest.approx(statistics.stdev(expected[:3]))
    least = spread_by_chance(float(np.mean(expected[:3])), 60)
    assert ours.interval == mean_interval(expected[:3], 100, 60, least=least)
    repeated = compare_repeated(expected[3:], expected[:3], 100, 60, least=1 / 60)
    # one comparison needs no adjustment
    assert bag.difference.p == bag.difference.p_adjusted == repeated.p
    assert bag.difference.difference == repeated.difference < 0
    assert bag.difference.interval == repeated.interval
    assert bag.seconds == 11 and board.n_without_near_duplicates == 3 * 45


def test_the_corrected_t_test_by_hand():
    first, two = Row("first token"), Row("last two blocks")
    default = of(Row("default"), ["1111111110", "1111111100", "1111111110"])
    others = of(first, ["1110000000", "1100000000", "1000000000"])
    others += of(two, ["1111111110", "1111111111", "1111111110"])
    board = make_scoreboard([*default, *others], "default", ranked=False)
    row = board.rows[1]
    differences = np.array([0.3, 0.2, 0.1]) - np.array([0.9, 0.8, 0.9])
    t = differences.mean() / np.sqrt((1 / 3 + 10 / 70) * max(0.1, differences.std(ddof=1)) ** 2)
    assert row.difference.p == pytest.approx(2 * stats.t.sf(abs(t), 2))
    assert row.difference.p_adjusted == pytest.approx(min(1, 2 * row.difference.p))
    assert row.interval[0] == 0.0 and board.rows[2].difference.difference == pytest.approx(2 / 30)


def test_more_labels_are_averaged():
    one = result(OURS, 1, 1.0, labels=("a", "b", "c"))
    row = make_scoreboard([one], "ours").rows[0]
    true, p = one.predictions.true, one.predictions.probabilities
    assert row.f1 == pytest.approx(f1_score(true, p.argmax(axis=1), average="macro"))
    assert row.roc_auc == pytest.approx(roc_auc_score(true, p, multi_class="ovr"))


def test_unknown_scores_are_not_numbers():
    one = result(OURS, 1, 1.0)
    unknown = replace(one, predictions=replace(one.predictions, near_duplicates=None))
    board = make_scoreboard([unknown], "ours", positive="spam")
    assert board.rows[0].without_near_duplicates is None
    assert board.n_without_near_duplicates is None
    only_ham = replace(one, predictions=one.predictions.only(one.predictions.true == 0))
    assert make_scoreboard([only_ham], "ours", positive="spam").rows[0].roc_auc is None


def test_a_row_without_some_split_is_left_out_and_noted(three: list[Result]):
    results = [*three, result(OURS, 4, 2.0, "seed 2"), result(BAG, 5, 2.0, "seed 2")]
    board = make_scoreboard(results, "ours")
    assert sorted(row.name for row in board.rows) == ["bag", "ours"]
    assert "regex: left out" in board.notes[0]
    with pytest.raises(DataError, match="regex has no predictions"):
        make_scoreboard(results, "regex")


def test_answers_to_other_texts_are_refused(three: list[Result]):
    answers = three[1].predictions
    others = [
        replace(answers, texts=["another", *answers.texts[1:]]),
        replace(answers, true=1 - answers.true),
        replace(answers, labels=("spam", "ham")),
    ]
    for other in others:
        with pytest.raises(DataError, match="ours and bag"):
            make_scoreboard([three[0], replace(three[1], predictions=other)], "ours")


def test_the_ensemble_takes_the_baseline_that_validation_prefers(three: list[Result]):
    ours, bag, regex = three
    for best, accuracies in ((bag, (0.8, 0.7)), (regex, (0.8, 0.9)), (bag, (0.8, 0.8))):
        some = [replace(r, val_accuracy=a) for r, a in zip((bag, regex), accuracies, strict=True)]
        [both] = ensembles([ours, *some], "ours")
        expected = (best.predictions.probabilities + ours.predictions.probabilities) / 2
        np.testing.assert_allclose(both.predictions.probabilities, expected)
        assert both.learned == best.row.name and both.seconds == ours.seconds + best.seconds
    board = make_scoreboard([*three, both], "ours")
    assert board.rows[-1].name == ENSEMBLE.name  # last, whatever its accuracy
    assert list(ensembles([ours], "ours")) == []


def test_the_scoreboard_as_text(tmp_path: Path):
    true = np.array([0, 0, 1, 1])
    certain = np.eye(2)[true]
    wrong = certain.copy()
    wrong[0] = [0.25, 0.75]
    ours, other = (
        Result(
            row,
            "seed 1",
            LabelledPredictions(LABELS, list("abcd"), true, p, true == 1),
            1200,
            seconds=1.26,
        )
        for row, p in ((OURS, certain), (Row("one regex"), wrong))
    )
    board = make_scoreboard(
        [replace(other, learned=r"x|\? is spam"), ours], "ours", positive="spam"
    )
    text = format_scoreboard(board)
    table = text.split("\n\n")[0].split("\n")
    assert table[0] == (
        "| classifier | test accuracy, % | 95% interval | F1 of spam, % | ROC-AUC | Brier | "
        "without near duplicates, % | difference from ours | adjusted p | s |"
    )
    # Brier score: 2 * 0.75^2 / 4; F1 of spam: 2 * 2 / (3 + 2); half of the two ham texts
    assert table[2] == (
        "| ours | 100.00 | 51.0 to 100.0 | 100.0 | 1.0000 | 0.0000 | 100.00 |  |  | 1.3 |"
    )
    assert table[3] == (
        "| one regex | 75.00 | 30.1 to 95.4 | 80.0 | 1.0000 | 0.2812 | 50.00 | -25.00 | 1.000 | 1.3 |"
    )
    assert "1 split, 1,200 training and 4 test texts; " in text and "for 1 comparison\n" in text
    assert "the 2 of 4 test texts" in text and r"- one regex: `x|\? is spam`" in text
    assert "0 of 1 rows differ significantly from ours" in text
    write_scoreboard(board, tmp_path)
    assert (tmp_path / "scoreboard.md").read_text("utf-8") == text + "\n"
    saved = json.loads((tmp_path / "scoreboard.json").read_text("utf-8"))
    assert saved == json.loads(json.dumps(asdict(board)))


def test_a_table_of_experiments():
    rows = [Row("default", book=Book(16, 98.33)), Row("first token", "", Book(2, 75.0, "odd"))]
    results = of(rows[0], ["1111111110", "1111111100"]) + of(rows[1], ["1110000000", "1100000000"])
    board = make_scoreboard(results, "default", ranked=False)
    text = format_scoreboard(board, EXPERIMENTS)
    lines = text.split("\n\n")[0].split("\n")
    assert {line.count("|") for line in lines} == {10}
    assert lines[2].startswith("| default | 85.00 | 7.07 | 0.0 to 100.0 |  |  |  | 98.33 (row 16)")
    assert "| -60.00 | " in lines[3] and "2 splits, 70 training and 10 test texts each" in text
    assert (
        "first token: the book's row 2, odd" in text and "row 8 is not repeated here: 1558M" in text
    )
    one = make_scoreboard([r for r in results if r.split == "seed 1"], "default", ranked=False)
    assert format_scoreboard(one, EXPERIMENTS).split("\n")[2].startswith("| default | 90.00 | - |")
    many = make_scoreboard(of(rows[0], ["1" * 10] * 9) + of(rows[1], ["0" * 10] * 9), "default")
    assert (
        "1 of 1 rows differ significantly from default in test accuracy: first token (-100.00"
        in (format_scoreboard(many, EXPERIMENTS))
    )


EVIL = "<img src=x>\n# `a` | \x1b[2J*b*"


def test_hostile_labels_and_names_stay_text(three: list[Result]):
    names, learned = (EVIL, f"{EVIL}2", "# bag"), ("", f"{EVIL}`", "`ham`")
    results = [
        replace(
            one,
            row=Row(name),
            learned=text,
            predictions=replace(one.predictions, labels=("ham", EVIL)),
        )
        for one, name, text in zip(three, names, learned, strict=True)
    ]
    board = make_scoreboard(results, EVIL, positive=EVIL)
    board = replace(board, notes=(f"# {EVIL}: left out",))
    text = format_scoreboard(board)
    assert "\x1b" not in text and len(text.split("\n\n")) == 2
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    read = Reader(parser.enable("table").render(text))
    allowed = {"table", "thead", "tbody", "tr", "th", "td", "ul", "li", "code"}
    assert {tag for tag, _ in read.tags} == allowed
    shown = "<img src=x> # `a` | \\x1b[2J*b*"
    assert len(read.texts["th"]) == 10 and len(read.texts["td"]) == 30
    assert read.texts["th"][3] == f"F1 of {shown}, %"
    assert read.texts["th"][7] == f"difference from {shown}"
    assert {shown, f"{shown}2", "# bag"} == {*read.texts["td"][::10]}
    assert sorted(read.texts["code"]) == sorted([f"{shown}`", "`ham`"])
    assert read.texts["li"][-1].strip() == f"# {shown}: left out"


def test_the_mean_is_refused_for_other_texts(three: list[Result]):
    shorter = replace(three[0], predictions=three[0].predictions.only(np.arange(60) < 30))
    with pytest.raises(DataError, match="ours and bag"):
        mean_result(ENSEMBLE, [shorter, three[1]])
