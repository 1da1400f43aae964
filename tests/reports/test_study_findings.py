"""Findings about a study: who beats whom, which warnings apply, what only one row has right."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from run_facts_example import answers

from gpt2_from_scratch.evaluation.calibration import calibration
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions
from gpt2_from_scratch.reports.study_findings import (
    StudyFacts,
    StudyRow,
    beats_text,
    calibrations,
    compared,
    effects,
    mistakes,
    most_accurate,
    study_findings,
)

OURS, BAG, LENGTH = "GPT-2 mini, last block", "bag of words", "length alone"


def row(name: str, accuracy: float, p: float | None = None, **others) -> StudyRow:
    """A row of a study; with `p` it is compared with a reference of accuracy 0.9."""
    found = {"interval": (accuracy - 0.02, accuracy + 0.02)}
    if p is not None:
        d = accuracy - 0.9
        found |= {"difference": d, "difference_interval": (d - 0.01, d + 0.03), "p": p}
    return StudyRow(name, accuracy, **found | others)


def study(*rows: StudyRow, **changed) -> StudyFacts:
    """A study without anything to warn of."""
    facts = {
        "title": "t",
        "model": "/x/mini",
        "data": "/x/inbox.csv",
        "reference": OURS,
        "splits": ["seed 1", "seed 2"],
        "n_train": 700,
        "n_test": 200,
        "labels": ("ham", "spam"),
    }
    return StudyFacts(rows=rows or (row(OURS, 0.9),), **facts | changed)


def bag(accuracy: float, p: float) -> StudyRow:
    return row(BAG, accuracy, p, is_text_baseline=True)


# --- the first lines ---


@pytest.mark.parametrize(
    ("accuracy", "p", "begins", "interval"),
    [
        (0.75, 0.001, f"{OURS} beats {BAG} ", "+12.00 to +16.00"),
        (0.95, 0.001, f"{OURS} is worse than {BAG} ", "-8.00 to -4.00"),
        (0.89, 0.051, f"{OURS} does not beat {BAG} ", "-2.00 to +2.00"),
        (0.912, 0.051, f"{OURS} does not beat {BAG} ", "-4.20 to -0.20"),
        (0.9, 1.0, f"{OURS} does not beat {BAG} ", "-3.00 to +1.00"),
    ],
)
def test_a_win_a_loss_and_a_tie(accuracy, p, begins, interval):
    """Seen from the reference: its lead, and the interval of that."""
    reported = beats_text(study(row(OURS, 0.9), bag(accuracy, p)))
    assert reported.startswith(begins) and f"{interval} points" in reported and "Holm" in reported
    points = abs(90 - 100 * accuracy)
    assert (f"{points:.2f} points" in reported) == (accuracy != 0.9)
    assert ("may be chance" in reported) == (p > 0.05 and accuracy != 0.9)
    direction = "more accurate" if accuracy < 0.9 else "less accurate"
    assert accuracy == 0.9 or direction in reported


def test_the_best_text_baseline_is_the_one_to_beat():
    others = [row(LENGTH, 0.6, 0.001, is_text_baseline=True), row("a run", 0.99, 0.001)]
    assert "the only text baseline" in beats_text(study(row(OURS, 0.9), bag(0.8, 0.01)))
    reported = beats_text(study(row(OURS, 0.9), *others, bag(0.8, 0.01)))
    assert f"{BAG} (the best of 2 text baselines)" in reported
    assert "No text baseline" in beats_text(study(row(OURS, 0.9), others[1]))


def test_what_was_compared():
    reported = compared(study(row(OURS, 0.9), bag(0.8, 0.01)))
    assert (
        "2 classifiers" in reported and "on inbox.csv" in reported and "ham from spam" in reported
    )
    assert "GPT-2 mini" in reported and "700 training and 200 test texts" in reported
    many = compared(study(labels="abc", splits=[f"seed {n}" for n in range(1, 11)], model=""))
    assert "3 labels" in many and "10 splits" in many and "seed 8 and 2 more" in many
    assert "GPT-2" not in many
    assert "1 split (seed 1), with" in compared(study(splits=["seed 1"]))


def test_the_most_accurate_row():
    reported = most_accurate(study(row(OURS, 0.9), bag(0.9, 1.0)))
    assert f"90.0% on average over 2 splits, by {OURS} and {BAG}." in reported
    reported = most_accurate(study(row(OURS, 0.9), row("a run", 0.94, 0.02)))
    assert "94.0%" in reported and "a run (95% interval 92.0 to 96.0)" in reported
    assert f"{OURS} has 90.0% (95% interval 88.0 to 92.0)" in reported
    assert "+4.00 points, p = 0.020" in reported


def test_a_combination_is_named_if_it_is_better():
    rows = [row(OURS, 0.9), bag(0.8, 0.01), row("mean", 0.99, 0.01, is_combination=True)]
    facts = study(*rows)
    assert f"90.0% on average over 2 splits, by {OURS} (" in most_accurate(facts)
    assert "mean has 99.0%" in most_accurate(facts) and "+9.00 points" in most_accurate(facts)
    worse = study(*rows[:2], replace(rows[2], accuracy=0.7))
    assert "mean" not in most_accurate(worse)
    [warning] = study_findings(worse)["warnings"]
    assert '"mean"' in warning and "selected on the validation set" in warning


# --- changes of a reference ---

DEFAULT = row("default", 0.9)
CHANGES = [
    DEFAULT,
    row("first token", 0.6, 0.0002, change="token position"),
    row("mean over tokens", 0.91, 0.7, change="token position"),
    row("everything", 0.94, 0.049, change="trained part"),
    row("two layers", 0.93, 0.05, change="head"),
]


def test_a_kind_of_change_is_named_if_a_row_differs_significantly():
    facts = study(*CHANGES, reference="default")
    first, second = effects(facts)
    assert first.startswith("Token position: first token is worse than default (-30.00 points, p <")
    assert "1 more row does not" in first
    assert second.startswith("Trained part: everything is better than default (+4.00 points, p = 0")
    assert effects(study(DEFAULT, CHANGES[2], CHANGES[4], reference="default")) == []
    assert "4 changes of default" in compared(facts) and beats_text(facts) == ""


# --- warnings ---


def warned(facts: StudyFacts) -> list[str]:
    return study_findings(facts)["warnings"]


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"splits": ["seed 1"]}, ["one split", "--seeds 1 2 3"]),
        ({"predictions": {OURS: [answers(60, 6)]}, "n_test": 60}, ["60 texts", "plus or minus 8"]),
        ({"warnings": ["a third:\nleft out"]}, ["a third: left out"]),
    ],
)
def test_a_warning_where_it_applies(changed, facts):
    [reported] = warned(study(row(OURS, 0.9), bag(0.7, 0.001), **changed))
    assert all(fact in reported for fact in facts)


def test_near_duplicates_are_counted_over_all_splits():
    tests = [replace(answers(900, 20), near_duplicates=np.arange(900) < n) for n in (3, 4)]
    [reported] = warned(study(predictions={OURS: tests}))
    assert "7 of 1,800 test texts have a near duplicate" in reported
    assert "--keep-together near-duplicates" in reported
    unknown = replace(tests[0], near_duplicates=None)
    assert warned(study(predictions={OURS: [tests[0], unknown]})) == []


def test_differences_that_may_be_chance():
    [reported] = warned(study(row(OURS, 0.9), bag(0.89, 0.3), row("a run", 0.7, 0.001)))
    assert f"for {BAG} (-1.00 points, p = 0.300" in reported and "a run" not in reported
    [reported] = warned(study(row(OURS, 0.9), bag(0.89, 0.3), row("a run", 0.91, 0.2)))
    assert f"No row differs significantly from {OURS}" in reported


def test_a_row_taken_for_its_score_was_selected_on_the_test_set():
    [_, reported] = warned(study(*CHANGES, reference="default"))
    assert "selected it on the test set" in reported
    assert warned(study(row(OURS, 0.9), bag(0.7, 0.001))) == []


# --- predictions ---


def predicted(wrong: Sequence[int], texts: Sequence[str] = ()) -> LabelledPredictions:
    """200 texts, all correct but these, the first of them the most confident."""
    n = np.arange(200)
    said = np.where(np.isin(n, wrong), 1 - n % 2, n % 2)
    sure = np.linspace(0.99, 0.6, 200)[:, None]
    probabilities = np.where(np.arange(2) == said[:, None], sure, 1 - sure)
    return LabelledPredictions(
        ("ham", "spam"), list(texts) or [f"text {k}" for k in n], n % 2, probabilities
    )


def facts_of(ours: list[LabelledPredictions], theirs: list[LabelledPredictions]) -> StudyFacts:
    found = {OURS: ours, BAG: theirs, "another": ours}
    return study(row(OURS, 0.9), bag(0.8, 0.01), row("another", 0.9, 1.0), predictions=found)


def test_texts_that_only_one_has_correct():
    facts = facts_of([predicted(range(20))], [predicted(range(15, 38))])
    (right, wrong, found), (_, _, theirs) = mistakes(facts)
    assert (right, wrong) == (BAG, OURS)
    assert [reported.text for reported in found] == [f"text {k}" for k in range(15)]
    assert (found[0].true, found[0].predicted, found[0].probability) == ("ham", "spam", 0.99)
    assert (found[1].true, found[1].predicted) == ("spam", "ham")
    assert [reported.text for reported in theirs] == [f"text {k}" for k in range(20, 38)]
    assert mistakes(replace(facts, predictions={OURS: []})) == []


def test_a_text_of_several_splits_is_listed_once():
    facts = facts_of([predicted(range(3))] * 2, [predicted(range(3, 8))] * 2)
    assert [reported.text for reported in mistakes(facts)[0][2]] == ["text 0", "text 1", "text 2"]


def test_the_calibration_is_that_of_all_splits_together():
    tests = [predicted(range(10)), predicted(range(11))]
    found = calibrations(facts_of(tests, tests[:1]))
    assert list(found) == [OURS, BAG]
    both = [np.concatenate([getattr(t, name) for t in tests]) for name in ("probabilities", "true")]
    assert found[OURS] == calibration(*both)
    assert sum(bin.count for bin in found[OURS].bins) == 400
