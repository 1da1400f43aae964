"""The findings of a study, which compares several classifiers on the same splits.

Sentences and warnings follow the rules in `findings`. A difference is a row's accuracy minus that
of the reference row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpt2_from_scratch.evaluation.assessment import PredictedText
from gpt2_from_scratch.evaluation.calibration import Calibration, calibration
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions, wilson_interval
from gpt2_from_scratch.evaluation.significance import ROUNDING, format_p
from gpt2_from_scratch.reports.findings import (
    ALPHA,
    MOST_NAMED,
    TO_SEPARATE,
    between,
    file_name,
    listed,
    near_duplicates_in_training,
    percent,
    sentences,
    small_test,
    without_folders,
)

MOST_MISTAKES = 15  # most texts listed per classifier


@dataclass(frozen=True)
class StudyRow:
    """One row of a study, with means over its splits. A value is None if it is not known."""

    name: str
    accuracy: float
    interval: tuple[float, float]  # 95% interval of the accuracy
    accuracies: Sequence[float] = ()  # accuracy on each split
    difference: float | None = None  # accuracy minus the reference's; None for the reference
    difference_interval: tuple[float, float] | None = None  # 95% interval of the difference
    p: float | None = None  # p-value of the difference, adjusted for the number of rows
    change: str = ""  # the kind of change that the row tries, such as "token position"
    is_text_baseline: bool = False
    is_combination: bool = False  # whether it combines other rows
    f1: float | None = None  # F1 of the positive label, or the mean over labels
    roc_auc: float | None = None
    brier: float | None = None
    # accuracy on texts without near duplicates in training
    without_near_duplicates: float | None = None
    published: float | None = None  # published accuracy of the same row
    published_as: str = ""  # its place in that publication, such as "row 16"
    learned: Sequence[str] = ()  # what was fitted to the training set, per split
    seconds: float | None = None


@dataclass(frozen=True)
class StudyFacts:
    """All facts that the page of a study shows: rows compared on the same splits."""

    title: str
    model: str
    data: str
    rows: Sequence[StudyRow]  # rows in the order of the table
    reference: str  # name of the row with which the others are compared
    splits: Sequence[str]
    n_test: int  # test texts per split
    n_train: int = 0  # training texts per split; 0 if unknown
    labels: Sequence[str] = ()
    positive: str = ""  # the label whose F1 is given; empty for the mean over labels
    published_in: str = ""  # the source of the published accuracies
    # {row: predictions on the test set of each split}, at least for the reference and the best text
    # baseline. Without them, the calibration, the mistakes and two warnings are left out.
    predictions: Mapping[str, Sequence[LabelledPredictions]] = field(default_factory=dict)
    warnings: Sequence[str] = ()  # in addition to those that follow from the numbers
    notes: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def reference_row(self) -> StudyRow:
        """The row with which the others are compared."""
        return next(row for row in self.rows if row.name == self.reference)

    @property
    def others(self) -> list[StudyRow]:
        """The rows that are compared with the reference."""
        return [row for row in self.rows if row.difference is not None]

    @property
    def best_text_baseline(self) -> StudyRow | None:
        """The most accurate text baseline; the first on a tie."""
        baselines = [row for row in self.rows if row.is_text_baseline]
        return max(baselines, key=lambda row: row.accuracy, default=None)

    @property
    def tries_changes(self) -> bool:
        """Whether the rows are changes of the reference, and not other classifiers."""
        return any(row.change for row in self.rows)


def study_findings(facts: StudyFacts) -> dict[str, Any]:
    """Return what the template `study.html` needs."""
    return {
        "facts": facts,
        "summary": sentences(compared(facts), most_accurate(facts), beats_text(facts)),
        "warnings": sentences(*study_warnings(facts)),
        "effects": sentences(*effects(facts)),
        "settings": without_folders(facts.settings),
        "calibrations": calibrations(facts),
        "mistakes": mistakes(facts),
    }


def compared(facts: StudyFacts) -> str:
    """Say what was compared, and on which texts."""
    n, S = len(facts.rows), len(facts.splits)
    what = f"{n} classifiers were"
    if facts.tries_changes:
        what = f"{n - 1} change{'s' if n != 2 else ''} of {facts.reference} {'were' if n != 2 else 'was'}"
    where = f" on {file_name(facts.data)}" if facts.data else ""
    two = len(facts.labels) == 2
    labels = " from ".join(facts.labels) if two else f"{len(facts.labels)} labels"
    task = f", to distinguish {labels}" if facts.labels else ""
    base = f" Base model: GPT-2 {file_name(facts.model)}." if facts.model else ""
    train = f"{facts.n_train:,} training and " if facts.n_train else ""
    return (
        f"{what} compared{where}{task}.{base} {S} split{'s' if S > 1 else ''} "
        f"({listed(facts.splits, MOST_NAMED)}), {'each ' if S > 1 else ''}with {train}"
        f"{facts.n_test:,} test texts."
    )


def most_accurate(facts: StudyFacts) -> str:
    """Name the most accurate rows, and a combination of rows if it is better."""
    single = [row for row in facts.rows if not row.is_combination]
    most = max(row.accuracy for row in single)
    best = [row for row in single if row.accuracy > most - ROUNDING]
    over = f" on average over {len(facts.splits)} splits" if len(facts.splits) > 1 else ""
    names = listed([row.name for row in best], MOST_NAMED)
    interval = f" (95% interval {between(best[0].interval)})" if len(best) == 1 else ""
    found = [f"Highest accuracy: {percent(most)}{over}, by {names}{interval}."]
    if facts.reference_row not in best:
        ours = facts.reference_row
        lead = f"; the best row differs by {_difference(best[0])}" if len(best) == 1 else ""
        found.append(
            f"{ours.name} has {percent(ours.accuracy)} (95% interval {between(ours.interval)}){lead}."
        )
    for row in facts.rows:
        if row.is_combination and row.accuracy > most + ROUNDING:
            found.append(
                f"The {row.name} has {percent(row.accuracy)}; the difference from "
                f"{facts.reference} alone is {_difference(row)}."
            )
    return " ".join(found)


def beats_text(facts: StudyFacts) -> str:
    """Say whether the reference is better than the best text baseline.

    The result is empty if the rows are changes of the reference.
    """
    if facts.tries_changes:
        return ""
    ours, best = facts.reference, facts.best_text_baseline
    if best is None or best.difference is None or best.p is None:
        return f"No text baseline was run, so it is unknown whether {ours} beats one."
    n = sum(row.is_text_baseline for row in facts.rows)
    which = f"the best of {n} text baselines" if n > 1 else "the only text baseline"
    name, points = f"{best.name} ({which})", -100 * best.difference
    low, high = (0.0 - 100 * bound for bound in reversed(best.difference_interval or (0.0, 0.0)))
    chance = f"95% interval of the difference {low:+.2f} to {high:+.2f} points, {_p(best)}"
    if abs(points) < 100 * ROUNDING:
        return f"{ours} does not beat {name}: they are equally accurate; {chance}."
    how = f"it is {abs(points):.2f} points {'more' if points > 0 else 'less'} accurate"
    if best.p > ALPHA:
        return f"{ours} does not beat {name}: {how}, which may be chance; {chance}."
    return f"{ours} {'beats' if points > 0 else 'is worse than'} {name}: {how}; {chance}."


def effects(facts: StudyFacts) -> list[str]:
    """For each kind of change, name the rows that differ significantly from the reference."""
    found = []
    for change in dict.fromkeys(row.change for row in facts.others if row.change):
        rows = [row for row in facts.others if row.change == change]
        sure = [row for row in rows if row.p is not None and row.p < ALPHA]
        each = [
            f"{row.name} is {'better' if (row.difference or 0) > 0 else 'worse'} than "
            f"{facts.reference} ({_difference(row)})"
            for row in sure
        ]
        n = len(rows) - len(sure)
        rest = f"; {n} more row{'s do' if n > 1 else ' does'} not differ significantly" if n else ""
        if sure:
            found.append(f"{change[:1].upper()}{change[1:]}: {listed(each)}{rest}.")
    return found


def study_warnings(facts: StudyFacts) -> Iterator[str]:
    """Yield the warnings about a study. A warning that does not apply is an empty string."""
    if len(facts.splits) <= 1:
        yield (
            "This study has one split. Another split or another seed gives other scores, and perhaps "
            "another order, by chance alone. --seeds 1 2 3 trains and scores on several splits."
        )
    intervals = [
        wilson_interval(int(answered.correct.sum()), len(answered.texts))
        for answered in facts.predictions.get(facts.reference, ())
    ]
    widest = max(intervals, key=lambda interval: interval[1] - interval[0], default=(0.0, 0.0))
    yield small_test(facts.n_test, widest)
    yield _near_duplicates(facts)
    yield _may_be_chance(facts)
    if facts.tries_changes:
        yield (
            "If you choose the row with the highest score, you have selected it on the test set, so "
            "that score is too high. Evaluate the row on texts that no row has seen."
        )
    combinations = [row.name for row in facts.rows if row.is_combination]
    if combinations:
        yield (
            f'The text baseline in "{listed(combinations)}" was selected on the validation set, '
            "separately for each split. It may not be the best one on the test set."
        )
    yield from facts.warnings


def _near_duplicates(facts: StudyFacts) -> str:
    tests = [answered.near_duplicates for answered in facts.predictions.get(facts.reference, ())]
    known = [near for near in tests if near is not None]
    n = sum(int(near.sum()) for near in known)
    if not n or len(known) < len(tests):
        return ""
    return (
        f'{near_duplicates_in_training(n, sum(map(len, known)))} The column "without near '
        f'duplicates" excludes them; {TO_SEPARATE} keeps them in the same set.'
    )


def _may_be_chance(facts: StudyFacts) -> str:
    rows = [row for row in facts.others if row.p is not None and row.p > ALPHA]
    if not rows:
        return ""
    if len(rows) == len(facts.others) > 1:
        return (
            f"No row differs significantly from {facts.reference}: this study does not show which is "
            "better."
        )
    named = listed([f"{row.name} ({_difference(row)})" for row in rows], MOST_NAMED)
    return (
        f"The difference from {facts.reference} may be chance for {named}: this study does not show "
        "which is better."
    )


def calibrations(facts: StudyFacts) -> dict[str, Calibration]:
    """The calibration of the reference and of the best text baseline, over all splits, by name."""
    return {
        name: calibration(
            np.concatenate([answered.probabilities for answered in found]),  # (S N, K)
            np.concatenate([answered.true for answered in found]),
        )
        for name, found in _main_predictions(facts).items()
    }


def mistakes(facts: StudyFacts) -> list[tuple[str, str, list[PredictedText]]]:
    """List the texts that only one of the reference and the best text baseline predicts correctly.

    Each item is (name of the correct row, name of the wrong row, texts). The most confident
    mistakes come first. A text that is in several test sets is listed once.
    """
    found = _main_predictions(facts)
    if len(found) < 2:
        return []
    ours, theirs = found
    return [
        (theirs, ours, _only_correct(found[theirs], found[ours])),
        (ours, theirs, _only_correct(found[ours], found[theirs])),
    ]


def _main_predictions(facts: StudyFacts) -> dict[str, Sequence[LabelledPredictions]]:
    """The predictions of the reference and of the best text baseline, if they are known."""
    best = facts.best_text_baseline
    names = [facts.reference] + ([best.name] if best else [])
    return {name: facts.predictions[name] for name in names if facts.predictions.get(name)}


def _only_correct(
    right: Sequence[LabelledPredictions], wrong: Sequence[LabelledPredictions]
) -> list[PredictedText]:
    found = [
        PredictedText(
            b.texts[n],
            b.labels[b.true[n]],
            b.labels[b.predicted[n]],
            float(b.probabilities[n].max()),
        )
        for a, b in zip(right, wrong, strict=True)
        for n in np.flatnonzero(a.correct & ~b.correct)
    ]
    once: dict[str, PredictedText] = {}
    for mistake in sorted(found, key=lambda mistake: -mistake.probability):
        once.setdefault(mistake.text, mistake)
    return list(once.values())


def _p(row: StudyRow) -> str:
    return f"{format_p(row.p)}, adjusted by Holm" if row.p is not None else "p unknown"


def _difference(row: StudyRow) -> str:
    return f"{100 * (row.difference or 0.0):+.2f} points, {_p(row)}"
