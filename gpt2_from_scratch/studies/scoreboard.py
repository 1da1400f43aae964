"""Several classifiers on the same test texts, side by side: their scores and what chance does.

N texts, K classes, S splits.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gpt2_from_scratch.data.messages import on_one_line
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.calibration import calibration
from gpt2_from_scratch.evaluation.metrics import Answered, evaluate_predictions, rankings
from gpt2_from_scratch.evaluation.significance import (
    accuracy_interval,
    compare_accuracies,
    format_p,
    holm,
)
from gpt2_from_scratch.reports.render import escape_markdown as escape

CALIBRATED = (
    "probabilities of a finetuned GPT-2, and of its twin with random weights, have a temperature "
    "fitted on the validation part, unless a training left that out; those of text baselines and of "
    "frozen features are as they were fitted, most by logistic regression"
)


@dataclass(frozen=True)
class Result:
    """What one classifier said of one split's test part."""

    split: str
    name: str  # behind ": " what it learned there
    answered: Answered
    seconds: float  # to fit it and to answer
    val_accuracy: float | None = None

    @property
    def kind(self) -> str:
        """The name without what was learned: the same on every split."""
        return self.name.split(": ")[0]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(self.answered.right.mean())


@dataclass(frozen=True)
class Difference:
    """A classifier's accuracy less that of ours: above 0 it is better."""

    difference: float
    interval: tuple[float, float]  # 95 %
    p: float  # adjusted for the number of classifiers compared


@dataclass(frozen=True)
class Score:
    """One row: a classifier's scores, means over splits. None where there is no such number."""

    name: str
    accuracy: float
    interval: tuple[float, float]  # 95 %
    accuracies: tuple[float, ...]  # of each split
    f1: float | None  # of the label watched, or the mean of all
    roc_auc: float | None  # of the label watched, or the mean of all against the rest
    brier: float
    without_twins: float | None  # accuracy on texts without a near twin in training
    against_ours: Difference | None  # None for ours
    seconds: float
    learned: tuple[str, ...] = ()  # on each split, where that can be said


@dataclass(frozen=True)
class Scoreboard:
    """All rows, the best first, those that combine others last."""

    ours: str  # the row that others are held against
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    watched: str  # the label whose F1 and area are told; "": the mean over labels
    n_train: int  # texts of a split, in the mean
    n_test: int
    n_without_twins: int | None  # in all splits together
    rows: tuple[Score, ...]
    notes: tuple[str, ...] = ()


def make_scoreboard(
    results: Sequence[Result],
    ours: str,
    n_train: int,
    *,
    watched: str = "",
    combined: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Scoreboard:
    """Score every classifier and compare it with `ours`, which is the kind of one of them.

    One split: Wilson's interval, the paired bootstrap and the exact McNemar test. Several: intervals
    and tests that know that splits share texts (comparison.py). A classifier that lacks a split is
    left out and noted. `combined` are the kinds that stand last. Raises DataError where ours lacks
    a split, or two classifiers answered other texts.
    """
    splits = tuple(dict.fromkeys(result.split for result in results))
    kinds: dict[str, dict[str, Result]] = {}
    for result in results:
        kinds.setdefault(result.kind, {})[result.split] = result
    partly = [kind for kind, found in kinds.items() if len(found) < len(splits)]
    if ours not in kinds or ours in partly:
        raise DataError(f"{ours} has no answers on some split: nothing to compare with")
    whole = {k: [found[s] for s in splits] for k, found in kinds.items() if k not in partly}
    for split in zip(*whole.values(), strict=True):
        _refuse_other_texts(split)
    n_test = round(np.mean([len(result.answered.texts) for result in whole[ours]]))
    others = [kind for kind in whole if kind != ours]
    found = [_difference(whole[kind], whole[ours], n_train) for kind in others]
    adjusted = holm([difference.p for difference in found])
    differences = {
        kind: Difference(d.difference, d.interval, p)
        for kind, d, p in zip(others, found, adjusted, strict=True)
    }
    rows = [
        _score(kind, some, watched, differences.get(kind), n_train) for kind, some in whole.items()
    ]
    rows.sort(key=lambda row: (row.name in combined, -row.accuracy))  # of equals as they came
    told = [f"{kind}: left out, as it has answers on some splits only" for kind in partly]
    return Scoreboard(
        ours,
        splits,
        whole[ours][0].answered.labels,
        watched,
        n_train,
        n_test,
        _without_twins(whole[ours]),
        tuple(rows),
        (*notes, *told),
    )


def mean_result(name: str, results: Sequence[Result]) -> Result:
    """Several classifiers as one: the mean of their probabilities, for the same texts."""
    _refuse_other_texts(results)
    first = results[0].answered
    shares = np.mean([result.answered.probabilities for result in results], axis=0)  # (N, K)
    answered = Answered(first.labels, first.texts, first.true, shares, first.near_twins)
    return Result(results[0].split, name, answered, sum(result.seconds for result in results))


# --- one row ---


def _score(
    kind: str, results: Sequence[Result], watched: str, against: Difference | None, n_train: int
) -> Score:
    accuracies = tuple(result.accuracy for result in results)
    answers = [result.answered for result in results]
    learned = tuple(r.name.removeprefix(kind).removeprefix(": ") for r in results)
    return Score(
        name=kind,
        accuracy=float(np.mean(accuracies)),
        interval=accuracy_interval([a.right for a in answers], n_train),
        accuracies=accuracies,
        f1=_mean([_f1(a, watched) for a in answers]),
        roc_auc=_mean([_roc_auc(a, watched) for a in answers]),
        brier=float(np.mean([calibration(a.probabilities, a.true).brier for a in answers])),
        without_twins=_mean([_right_without_twins(a) for a in answers]),
        against_ours=against,
        seconds=float(np.mean([result.seconds for result in results])),
        learned=learned if any(learned) else (),
    )


def _difference(results: Sequence[Result], ours: Sequence[Result], n_train: int) -> Difference:
    """With p as it is, not adjusted yet."""
    a, b = ([result.answered.right for result in some] for some in (results, ours))
    found = compare_accuracies(a, b, n_train)
    return Difference(found.difference, found.interval, found.p)


def _f1(answered: Answered, watched: str) -> float | None:
    """Of the label watched, or the mean over labels; a label never found or meant counts as 0."""
    scores = evaluate_predictions(answered.true, answered.predicted, list(answered.labels)).classes
    if watched:
        return next(s.f1 for s in scores if s.label == watched)
    return float(np.mean([s.f1 or 0.0 for s in scores]))


def _roc_auc(answered: Answered, watched: str) -> float | None:
    found = rankings(answered.probabilities, answered.true, answered.labels)
    return _mean([r.roc_auc for r in found if r.label == watched or not watched])


def _right_without_twins(answered: Answered) -> float | None:
    if answered.near_twins is None or answered.near_twins.all():
        return None
    return float(answered.right[~answered.near_twins].mean())


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them is."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there and len(there) == len(values) else None


def _without_twins(results: Sequence[Result]) -> int | None:
    twins = [result.answered.near_twins for result in results]
    if any(known is None for known in twins):
        return None
    return sum(int((~known).sum()) for known in twins if known is not None)


def _refuse_other_texts(results: Sequence[Result]) -> None:
    for a, b in pairwise(results):
        same = a.answered.labels == b.answered.labels and a.answered.texts == b.answered.texts
        if not same or not np.array_equal(a.answered.true, b.answered.true):
            raise DataError(f"{a.name} and {b.name} answered other texts or labels ({a.split})")


# --- as a person reads it ---


def format_scoreboard(board: Scoreboard) -> str:
    """A table in Markdown, and what its numbers are."""
    several = len(board.splits) > 1
    f1 = f"F1 of {escape(board.watched)}, %" if board.watched else "mean F1, %"
    columns = [
        "classifier",
        "test accuracy, %",
        "95 % interval",
        *(["each split"] if several else []),
        f1,
        "ROC-AUC",
        "Brier",
        "without near twins, %",
        f"against {escape(board.ours)}",
        "s",
    ]
    table = [columns, ["---"] * len(columns), *(_cells(row, several) for row in board.rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([*lines, "", *(f"- {line}" for line in _told(board))])


def _cells(row: Score, several: bool) -> list[str]:
    low, high = (100 * bound for bound in row.interval)
    d = row.against_ours
    each = [", ".join(f"{100 * accuracy:.1f}" for accuracy in row.accuracies)] if several else []
    against = "" if d is None else f"{100 * d.difference:+.2f}, {format_p(d.p)}"
    return [
        escape(row.name),
        f"{100 * row.accuracy:.2f}",
        f"{low:.1f} to {high:.1f}",
        *each,
        _number(row.f1, 100, 1),
        _number(row.roc_auc, 1, 4),
        f"{row.brier:.4f}",
        _number(row.without_twins, 100, 2),
        against,
        f"{row.seconds:.1f}",
    ]


def _told(board: Scoreboard) -> list[str]:
    S, n = len(board.splits), board.n_test
    others = len(board.rows) - 1
    if S == 1:
        how = "intervals are Wilson's, p is the exact McNemar test on the same texts"
    else:
        how = (
            "intervals and p are of the corrected resampled t-test over splits (Nadeau and Bengio "
            "2003), which knows that they share texts"
        )
    lines = [
        f"{S} {'split' if S == 1 else 'splits'}, {board.n_train:,} texts to train on and {n:,} to "
        f"test {'' if S == 1 else 'each'}".rstrip()
        + f"; {how}; p is adjusted by Holm for "
        f"{others} {'comparison' if others == 1 else 'comparisons'}",
        "differences are in points of test accuracy, above 0 where the row is better; Brier is the "
        "sum over classes of the squared error, lower is better",
        CALIBRATED,
    ]
    if board.n_without_twins is not None:
        lines.append(
            f"without near twins: the {board.n_without_twins:,} test texts of {n * S:,} that have no "
            "near twin in training"
        )
    for row in board.rows:
        if row.learned:  # as code: a pattern's backslashes would be Markdown's
            pairs = zip(board.splits, row.learned, strict=True)
            each = [_code(what) + (f" ({split})" if S > 1 else "") for split, what in pairs]
            lines.append(f"{escape(row.name)}: {'; '.join(each)}")
    return [*lines, *map(escape, board.notes)]


def _number(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def _code(text: str) -> str:
    """The text on one line as code, between more backticks than stand together in it."""
    shown = on_one_line(text)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{space}{shown}{space}{ticks}"
