"""All there is to say of one classifier on labelled texts, and how a person reads it.

N texts, K classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gpt2_from_scratch.data.messages import on_one_line
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.calibration import Calibration, calibration
from gpt2_from_scratch.evaluation.metrics import (
    Answered,
    Evaluation,
    Ranking,
    evaluate_predictions,
    format_evaluation,
    format_share,
    rankings,
    rarer_label,
)
from gpt2_from_scratch.evaluation.thresholds import (
    AtThreshold,
    at_threshold,
    cheapest,
    choose_threshold,
    cost_of,
    format_threshold,
)

LONGEST = 100  # characters of a text that are shown


@dataclass(frozen=True)
class Told:
    """A text, what it is, and what the classifier called it with which probability."""

    text: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class AtLeastCost:
    """What comes of choosing the answer with the least expected cost, in place of the likeliest."""

    losing: float  # a text of another label called by the one watched; the opposite costs 1
    threshold: float  # of the probability: what this cost comes to
    cost: float  # a test text, in the mean
    cost_of_likeliest: float  # the same when the likeliest class is answered
    lost: int
    caught: int


@dataclass(frozen=True)
class Assessment:
    """What one classifier does on the test part."""

    evaluation: Evaluation
    without_twins: Evaluation | None  # on the texts to which training had no near twin
    temperature: float
    calibration: Calibration
    uncalibrated: Calibration | None  # the same before the temperature
    rankings: list[Ranking]  # a class each; none without scikit-learn
    thresholds: list[AtThreshold]  # a number of lost texts each
    mistakes: list[Told]  # the most confident first
    least_certain: list[Told]  # the smallest margin between the two likeliest classes first
    watched: str | None = None  # the label that is looked for, spam
    at_least_cost: AtLeastCost | None = None  # where a cost was given


def assess(
    test: Answered,
    val: Answered | None = None,
    *,
    temperature: float = 1.0,
    uncalibrated: Answered | None = None,
    watch: str | None = None,
    lose_at_most: Sequence[float] = (0, 5, 10, 20),
    cost_of_losing: float | None = None,
    n_shown: int = 10,
) -> Assessment:
    """Assess a classifier by its answers to the test part; on the validation part choose thresholds.

    Both have `temperature` applied already; `uncalibrated` are the answers to the test part before
    that. `watch` is the label whose thresholds are asked for, each losing at most so many of 1,000
    texts of other labels; of two labels by default the rarer, of more none. Without `val`, or where
    that has texts of one side only, there are no thresholds. `cost_of_losing` is what it costs to call
    a text of another label by the one watched, in units of the opposite mistake. Raises DataError for no texts and for
    other labels in `val`, UsageError for a `watch` that is no label.
    """
    if val is not None and val.labels != test.labels:
        raise DataError(f"labels of the validation part {val.labels} are not {test.labels}")
    if watch is not None and watch not in test.labels:
        raise UsageError(f"there is no label {watch!r} to watch: {', '.join(test.labels)}")
    watched = watch or _rarer(test if val is None else val)
    without_twins = None
    if test.near_twins is not None and not test.near_twins.all():
        without_twins = _evaluate(test.only(~test.near_twins))
    return Assessment(
        evaluation=_evaluate(test),
        without_twins=without_twins,
        temperature=temperature,
        calibration=calibration(test.probabilities, test.true),
        uncalibrated=None
        if uncalibrated is None
        else calibration(uncalibrated.probabilities, uncalibrated.true),
        rankings=_rankings(test),
        thresholds=_thresholds(test, val, watched, lose_at_most),
        mistakes=_mistakes(test, n_shown),
        least_certain=_least_certain(test, n_shown),
        watched=watched,
        at_least_cost=_at_least_cost(test, watched, cost_of_losing),
    )


def as_json(assessment: Assessment) -> dict[str, Any]:
    """Plain dicts and lists: the evaluation's fields, `accuracy` first, then the others."""
    found = asdict(assessment)
    evaluation = {"accuracy": assessment.evaluation.accuracy} | found.pop("evaluation")
    if assessment.without_twins:
        found["without_twins"]["accuracy"] = assessment.without_twins.accuracy
    return evaluation | found


def format_assessment(assessment: Assessment) -> str:
    """The assessment as a person reads it: scores, then what stands behind them, then texts."""
    mistakes = assessment.evaluation.total - assessment.evaluation.correct
    shown = assessment.mistakes
    return "\n".join(
        [
            format_evaluation(assessment.evaluation),
            "",
            *_format_twins(assessment.without_twins),
            *_format_rankings(assessment.rankings, assessment.watched),
            _format_calibration(assessment),
            *_format_thresholds(assessment.thresholds),
            *_format_cost(assessment.at_least_cost, assessment.watched),
            *_format_told(f"the most confident mistakes ({len(shown)} of {mistakes})", shown),
            *_format_told("the least certain answers", assessment.least_certain),
        ]
    )


def _evaluate(answered: Answered) -> Evaluation:
    return evaluate_predictions(answered.true, answered.predicted, list(answered.labels))


def _rarer(answered: Answered) -> str | None:
    counts = np.bincount(answered.true, minlength=len(answered.labels))  # (K,)
    return rarer_label(answered.labels, counts.tolist()) or None


def _rankings(test: Answered) -> list[Ranking]:
    return rankings(test.probabilities, test.true, test.labels)


def _thresholds(
    test: Answered, val: Answered | None, watched: str | None, lose_at_most: Sequence[float]
) -> list[AtThreshold]:
    if val is None or watched is None:
        return []
    k = test.labels.index(watched)
    is_it = val.true == k
    if is_it.all() or not is_it.any():
        return []
    found = []
    for asked in lose_at_most:
        threshold = choose_threshold(val.probabilities[:, k], is_it, asked)
        at = at_threshold(test.probabilities[:, k], test.true == k, watched, threshold)
        found.append(replace(at, asked=float(asked)))
    return found


def _at_least_cost(test: Answered, watched: str | None, losing: float | None) -> AtLeastCost | None:
    """Of the label watched against all others together."""
    if losing is None:
        return None
    if watched is None or not 0 < losing < float("inf"):
        raise UsageError(
            f"a cost of losing, {losing}, is a number above 0, and for a label watched"
        )
    k = test.labels.index(watched)
    true, share = (test.true == k).astype(int), test.probabilities[:, k]  # 1 is the label watched
    costs = np.array([[0.0, losing], [1.0, 0.0]])  # [true][called]
    called = cheapest(np.stack([1 - share, share], axis=1), costs)
    likeliest = (test.predicted == k).astype(int)
    return AtLeastCost(
        losing,
        losing / (1 + losing),
        cost_of(true, called, costs),
        cost_of(true, likeliest, costs),
        int((called > true).sum()),
        int((called & true).sum()),
    )


def _mistakes(test: Answered, n_shown: int) -> list[Told]:
    wrong = np.flatnonzero(~test.right)
    surest = np.argsort(-test.probabilities.max(axis=1)[wrong], kind="stable")
    return [_tell(test, n) for n in wrong[surest][:n_shown]]


def _least_certain(test: Answered, n_shown: int) -> list[Told]:
    ordered = np.sort(test.probabilities, axis=1)  # (N, K)
    closest = np.argsort(ordered[:, -1] - ordered[:, -2], kind="stable")
    return [_tell(test, n) for n in closest[:n_shown]]


def _tell(test: Answered, n: int) -> Told:
    true, predicted = test.labels[test.true[n]], test.labels[test.predicted[n]]
    return Told(test.texts[n], true, predicted, float(test.probabilities[n].max()))


def _format_twins(evaluation: Evaluation | None) -> list[str]:
    if evaluation is None:
        return []
    share = format_share("accuracy", evaluation.correct, evaluation.total, evaluation.interval)
    return [f"without near twins in training: {share}"]


def _format_rankings(found: list[Ranking], watched: str | None) -> list[str]:
    """A line a class; of two classes one, as both have the same ROC-AUC."""
    if len(found) == 2:
        found = [ranking for ranking in found if ranking.label == watched]
    return [
        f"ranking by the probability of {on_one_line(ranking.label)}: "
        f"ROC-AUC {_four(ranking.roc_auc)}, PR-AUC {_four(ranking.average_precision)}"
        for ranking in found
    ]


def _format_calibration(assessment: Assessment) -> str:
    found, before = assessment.calibration, assessment.uncalibrated
    ece = f"{found.ece:.4f}" if before is None else f"{before.ece:.4f} -> {found.ece:.4f}"
    told = f"calibration: Brier {found.brier:.4f}, log loss {found.log_loss:.4f}, ECE {ece}"
    if before is None and assessment.temperature == 1:
        return told
    return f"{told} (temperature {assessment.temperature:.3g})"


def _format_thresholds(thresholds: list[AtThreshold]) -> list[str]:
    if not thresholds:
        return []
    label = on_one_line(thresholds[0].label)
    rows = [
        [
            "at most lost of 1,000",
            f"{label} if p >=",
            "lost of good (test)",
            "surely at most (95 %)",
            "caught",
        ],
        *(
            [
                "-" if at.asked is None else f"{at.asked:g}",
                format_threshold(at.threshold),
                _of(at.lost, at.good),
                f"{100 * at.lost_at_most:.2f} %",
                _of(at.caught, at.wanted),
            ]
            for at in thresholds
        ),
    ]
    title = f"how much {label} is caught when hardly anything else may be lost; p is chosen on the validation part"
    return ["", title, *_columns(rows)]


def _format_cost(found: AtLeastCost | None, watched: str | None) -> list[str]:
    if found is None:
        return []
    label = on_one_line(watched or "")
    return [
        "",
        f"where losing a text costs {found.losing:g} times letting one of {label} through: {label} if "
        f"p >= {format_threshold(found.threshold)}; {found.lost} lost, {found.caught} caught; "
        f"{found.cost:.4f} a text instead of {found.cost_of_likeliest:.4f}",
    ]


def _format_told(title: str, told: list[Told]) -> list[str]:
    if not told:
        return []
    rows = [("true", "called"), *((on_one_line(t.true), on_one_line(t.predicted)) for t in told)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    names = ["  ".join(map(str.ljust, row, widths)) for row in rows]
    texts = [on_one_line(t.text) for t in told]
    cut = [text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in texts]
    return [
        "",
        title,
        f"{names[0]}       p  text",
        *(
            f"{name}  {t.probability:.4f}  {text}"
            for name, t, text in zip(names[1:], told, cut, strict=True)
        ),
    ]


def _columns(rows: list[list[str]]) -> list[str]:
    """Lines with columns that end below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)) for row in rows]


def _of(count: int, total: int) -> str:
    return f"{count} of {total}" + (f" ({100 * count / total:.2f} %)" if total else "")


def _four(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
