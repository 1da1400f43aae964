"""The scoreboard: its numbers against scikit-learn and comparison.py, what is read of it by hand."""

from dataclasses import replace

import numpy as np
import pytest
from html_reader import Reader
from sklearn.metrics import f1_score, roc_auc_score

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions, rarer_label, wilson_interval
from gpt2_from_scratch.evaluation.significance import (
    compare_paired,
    compare_repeated,
    holm,
    mean_interval,
    spread_by_chance,
)
from gpt2_from_scratch.studies.scoreboard import (
    Result,
    format_scoreboard,
    make_scoreboard,
    mean_result,
)

LABELS = ("ham", "spam")


def result(
    name: str, seed: int, skill: float, split: str = "seed 1", labels=LABELS, n: int = 60
) -> Result:
    """Answers that are right more often the more `skill`; equal true labels for equal splits."""
    K, texts = len(labels), [f"text {k}" for k in range(n)]
    true = np.random.RandomState(len(split) + ord(split[-1])).randint(0, K, n)
    draw = np.random.RandomState(seed)
    logits = draw.normal(size=(n, K))
    logits[np.arange(n), true] += skill
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    twins = np.arange(n) % 4 == 0
    return Result(
        split, name, LabelledPredictions(labels, texts, true, shares, twins), seconds=seed
    )


@pytest.fixture
def three() -> list[Result]:
    return [result("ours", 1, 3.0), result("bag", 2, 1.0), result("regex: a|b", 3, 2.0)]


def test_rows_are_sorted_and_scored_as_scikit_learn_does(three: list[Result]) -> None:
    board = make_scoreboard(three, "ours", 100, watched="spam")
    assert [row.name for row in board.rows] == ["ours", "regex", "bag"]
    assert (board.n_test, board.n_without_twins, board.labels) == (60, 45, LABELS)
    for row in board.rows:
        answered = next(r.answered for r in three if r.kind == row.name)
        true, shares = answered.true, answered.probabilities
        right = shares.argmax(axis=1) == true
        assert row.accuracy == right.mean() and row.accuracies == (right.mean(),)
        assert row.interval == wilson_interval(int(right.sum()), 60)
        assert row.f1 == pytest.approx(f1_score(true == 1, shares.argmax(axis=1) == 1))
        assert row.roc_auc == pytest.approx(roc_auc_score(true == 1, shares[:, 1]))
        assert row.brier == pytest.approx(((shares - np.eye(2)[true]) ** 2).sum(axis=1).mean())
        assert row.without_near_duplicates == pytest.approx(right[np.arange(60) % 4 != 0].mean())
    assert board.rows[1].learned == ("a|b",) and board.rows[0].learned == ()


def test_one_split_is_compared_text_by_text(three: list[Result]) -> None:
    board = make_scoreboard(three, "ours", 100, watched="spam")
    rows = {row.name: row for row in board.rows}
    assert rows["ours"].against_ours is None
    right = {r.kind: r.answered.correct for r in three}
    paired = {kind: compare_paired(right[kind], right["ours"]) for kind in ("bag", "regex")}
    adjusted = holm([paired["bag"].p, paired["regex"].p])
    for kind, p in zip(("bag", "regex"), adjusted, strict=True):
        found = rows[kind].against_ours
        assert found and found.difference == pytest.approx(
            right[kind].mean() - right["ours"].mean()
        )
        assert found.interval == paired[kind].interval and found.p == p


def test_several_splits_are_compared_split_by_split() -> None:
    splits = [f"seed {n}" for n in (1, 2, 3)]
    results = [result("ours", n, 2.0, s) for n, s in enumerate(splits)]
    results += [result("bag", 10 + n, 1.0, s) for n, s in enumerate(splits)]
    board = make_scoreboard(results, "ours", 140, watched="spam")
    ours, bag = board.rows
    assert board.splits == (*splits,) and ours.name == "ours"
    expected = [r.answered.correct.mean() for r in results]
    assert ours.accuracies == pytest.approx(expected[:3])
    assert ours.accuracy == pytest.approx(np.mean(expected[:3]))
    least = spread_by_chance(float(np.mean(expected[:3])), 60)
    assert ours.interval == mean_interval(expected[:3], 140, 60, least=least)
    repeated = compare_repeated(expected[3:], expected[:3], 140, 60, least=1 / 60)
    assert bag.against_ours and bag.against_ours.p == repeated.p  # of one comparison, as it is
    assert bag.against_ours.difference == repeated.difference < 0
    assert bag.against_ours.interval == repeated.interval
    assert bag.seconds == 11 and board.n_without_twins == 3 * 45


def test_more_labels_are_averaged() -> None:
    labels = ("a", "b", "c")
    one = result("ours", 1, 1.0, labels=labels)
    row = make_scoreboard([one], "ours", 100).rows[0]
    true, shares = one.answered.true, one.answered.probabilities
    assert row.f1 == pytest.approx(f1_score(true, shares.argmax(axis=1), average="macro"))
    assert row.roc_auc == pytest.approx(roc_auc_score(true, shares, multi_class="ovr"))


def test_what_is_not_known_is_no_number() -> None:
    one = result("ours", 1, 1.0)
    unknown = replace(one, answered=replace(one.answered, near_duplicates=None))
    board = make_scoreboard([unknown], "ours", 100, watched="spam")
    assert board.rows[0].without_near_duplicates is None and board.n_without_twins is None
    only_ham = one.answered.only(one.answered.true == 0)
    row = make_scoreboard([replace(one, answered=only_ham)], "ours", 100, watched="spam").rows[0]
    assert row.roc_auc is None and "without near twins, %" in format_scoreboard(board)


def test_who_lacks_a_split_is_left_out_and_noted(three: list[Result]) -> None:
    more = [result("ours", 4, 2.0, "seed 2"), result("bag", 5, 2.0, "seed 2")]
    board = make_scoreboard([*three, *more], "ours", 100)
    assert sorted(row.name for row in board.rows) == ["bag", "ours"]
    assert "regex: left out" in board.notes[0]
    with pytest.raises(DataError, match="regex has no answers on some split"):
        make_scoreboard([*three, *more], "regex", 100)


def test_answers_to_other_texts_are_refused(three: list[Result]) -> None:
    answered = three[1].answered
    others = [
        replace(answered, texts=["another", *answered.texts[1:]]),
        replace(answered, true=1 - answered.true),
        replace(answered, labels=("spam", "ham")),
    ]
    for other in others:
        with pytest.raises(DataError, match="ours and bag answered other texts"):
            make_scoreboard([three[0], replace(three[1], answered=other)], "ours", 100)


def test_the_mean_of_two(three: list[Result]) -> None:
    both = mean_result("both: bag", three[:2])
    a, b = (r.answered.probabilities for r in three[:2])
    np.testing.assert_allclose(both.answered.probabilities, (a + b) / 2)
    assert both.seconds == 3 and both.kind == "both" and both.split == "seed 1"
    board = make_scoreboard([*three, both], "ours", 100, combined=["both"])
    assert board.rows[-1].name == "both" and board.rows[-1].learned == ("bag",)


def test_the_rarer_of_two_labels() -> None:
    assert rarer_label(["ham", "spam"], [10, 3]) == "spam"
    assert rarer_label(["ham", "spam"], [3, 10]) == "ham"
    assert rarer_label(["ham", "spam"], [5, 5]) == "spam"
    assert rarer_label(["a", "b", "c"], [5, 5, 1]) == ""


def test_as_a_person_reads_it() -> None:
    true = np.array([0, 0, 1, 1])
    certain = np.eye(2)[true]
    wrong = certain.copy()
    wrong[0] = [0.25, 0.75]
    ours, other = (
        Result(
            "seed 1", name, LabelledPredictions(LABELS, list("abcd"), true, shares, true == 1), 1.26
        )
        for name, shares in (("ours", certain), (r"one regex: x|\? is spam", wrong))
    )
    text = format_scoreboard(make_scoreboard([other, ours], "ours", 1200, watched="spam"))
    table = text.split("\n\n")[0].split("\n")
    assert table[0] == (
        "| classifier | test accuracy, % | 95 % interval | F1 of spam, % | ROC-AUC | Brier | "
        "without near twins, % | against ours | s |"
    )
    # Brier 2 * 0.75^2 / 4; of calls and texts of spam 2 * 2 / (3 + 2); on the two hams half
    assert (
        table[2] == "| ours | 100.00 | 51.0 to 100.0 | 100.0 | 1.0000 | 0.0000 | 100.00 |  | 1.3 |"
    )
    assert table[3] == (
        "| one regex | 75.00 | 30.1 to 95.4 | 80.0 | 1.0000 | 0.2812 | 50.00 | -25.00, p = 1.000 "
        "| 1.3 |"
    )
    assert "1 split, 1,200 texts to train on and 4 to test; " in text
    assert "p is adjusted by Holm for 1 comparison\n" in text
    assert "the 2 test texts of 4 that have no near twin" in text
    assert r"- one regex: `x|\? is spam`" in text
    assert (
        "\n- probabilities of a finetuned GPT-2, and of its twin with random weights, have a "
        in text
    )


def test_a_pipe_in_a_name_ends_no_cell(three: list[Result]) -> None:
    named = replace(three[1], name="a|b")
    text = format_scoreboard(make_scoreboard([three[0], named], "ours", 100))
    assert r"| a\|b | " in text


EVIL = "<img src=x>\n# `a` | \x1b[2J*b*"


def test_hostile_labels_and_names_stay_text(three: list[Result]) -> None:
    labels = ("ham", EVIL)
    named = [
        replace(one, name=name, answered=replace(one.answered, labels=labels))
        for one, name in zip(three, (EVIL, f"{EVIL}2: {EVIL}`", "# bag: `ham`"), strict=True)
    ]
    notes = (f"# {EVIL}: left out",)
    text = format_scoreboard(make_scoreboard(named, EVIL, 100, watched=EVIL, notes=notes))
    assert "\x1b" not in text and len(text.split("\n\n")) == 2
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    read = Reader(parser.enable("table").render(text))
    assert {tag for tag, _ in read.tags} == {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "ul",
        "li",
        "code",
    }
    shown = "<img src=x> # `a` | \ufffd[2J*b*"
    assert len(read.texts["th"]) == 9 and len(read.texts["td"]) == 27
    assert read.texts["th"][3] == f"F1 of {shown}, %" and read.texts["th"][7] == f"against {shown}"
    assert {shown, f"{shown}2", "# bag"} == {*read.texts["td"][::9]}
    assert sorted(read.texts["code"]) == sorted([f"{shown}`", "`ham`"])
    assert read.texts["li"][-1].strip() == f"# {shown}: left out"
