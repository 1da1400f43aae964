"""Assess one classifier on a labelled test set. The result is available as JSON and as text.

Shapes: N texts, K classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gpt2_from_scratch.data.messages import on_one_line, short
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.calibration import (
    AtThreshold,
    Calibration,
    at_cost,
    at_threshold,
    calibration,
    choose_threshold,
    format_threshold,
)
from gpt2_from_scratch.evaluation.metrics import (
    MOST_CLASSES,
    Evaluation,
    LabelledPredictions,
    Ranking,
    evaluate_predictions,
    format_evaluation,
    format_proportion,
    rankings,
    rarer_label,
    several,
    text_table,
)

LONGEST = 100  # characters after which a text is cut
JSON_VERSION = 2


@dataclass(frozen=True)
class PredictedText:
    """A text with its true label, predicted label and probability."""

    text: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Assessment:
    """The quality of one classifier on the test set."""

    evaluation: Evaluation
    # scores on the texts without a near duplicate in the training set; None if these are unknown or
    # if there are no such texts
    without_near_duplicates: Evaluation | None
    temperature: float
    calibration: Calibration
    uncalibrated: Calibration | None  # the calibration without the temperature
    rankings: list[Ranking]  # one per class
    thresholds: list[AtThreshold]  # one per allowed number of false positives
    mistakes: list[PredictedText]  # most confident first
    least_certain: list[PredictedText]  # smallest margin of the two most probable classes first
    positive: str | None = None  # the positive class, such as spam
    at_cost: AtThreshold | None = None  # the threshold for a cost; None if no cost was given


def assess(
    test: LabelledPredictions,
    val: LabelledPredictions | None = None,
    *,
    temperature: float = 1.0,
    uncalibrated: LabelledPredictions | None = None,
    positive: str | None = None,
    allowed_per_1000: Sequence[float] = (0, 5, 10, 20),
    cost: float | None = None,
    n_shown: int = 10,
) -> Assessment:
    """Assess a classifier by its predictions for the test set.

    Args:
        test: predictions for the test set, with `temperature` applied.
        val: the same for the validation set, on which thresholds are chosen. There are no thresholds
            without it, or if its texts are all positive or all negative.
        temperature: the temperature that was applied. It is only reported.
        uncalibrated: predictions for the test set, without the temperature.
        positive: the positive class, to which the thresholds apply. The default is the rarer of two
            labels. With more than two labels there is no default.
        allowed_per_1000: allowed false positives per 1,000 negative texts. Each of these numbers
            gives one threshold.
        cost: the cost of a false positive, relative to a false negative (which costs 1).
        n_shown: number of mistakes and number of least certain predictions to keep.

    Returns:
        The assessment.

    Raises:
        DataError: there are no texts, or `val` has other labels than `test`.
        UsageError: `positive` is not a label, `cost` is not above 0, or there is a cost but no
            positive class.
    """
    if val is not None and val.labels != test.labels:
        raise DataError(
            f"the validation set has the labels {several(val.labels)}, but the test set has "
            f"{several(test.labels)}"
        )
    if positive is not None and positive not in test.labels:
        raise UsageError(f"unknown label {positive!r}; choose from: {several(test.labels)}")
    chosen_on = test if val is None else val
    counts = np.bincount(chosen_on.true, minlength=len(test.labels)).tolist()  # K numbers
    positive = positive or rarer_label(test.labels, counts) or None
    before, for_cost = uncalibrated, None
    evaluation = evaluate_predictions(test.true, test.predicted, test.labels)
    if cost is not None:
        if positive is None:
            raise UsageError("a cost needs a positive class; choose one with --positive")
        for_cost = at_cost(*test.one_class(positive), positive, cost)
    wrong = np.flatnonzero(~test.correct)
    most_confident = np.argsort(-test.probabilities.max(axis=1)[wrong], kind="stable")
    ordered = np.sort(test.probabilities, axis=1)  # (N, K)
    smallest_margin = np.argsort(ordered[:, -1] - ordered[:, -2], kind="stable")
    return Assessment(
        evaluation=evaluation,
        without_near_duplicates=_without_near_duplicates(test),
        temperature=temperature,
        calibration=calibration(test.probabilities, test.true),
        uncalibrated=calibration(before.probabilities, before.true) if before else None,
        rankings=rankings(test.probabilities, test.true, test.labels),
        thresholds=_thresholds(test, val, positive, allowed_per_1000) if val and positive else [],
        mistakes=[_predicted_text(test, n) for n in wrong[most_confident][:n_shown]],
        least_certain=[_predicted_text(test, n) for n in smallest_margin[:n_shown]],
        positive=positive,
        at_cost=for_cost,
    )


def assessment_as_json(assessment: Assessment) -> dict[str, Any]:
    """Convert an assessment to plain dicts and lists.

    The order is `version`, the fields of the evaluation, then the other fields. Version 1 had no key
    `version`. Version 2 renamed these keys: without_twins to without_near_duplicates, watched to
    positive, and at_least_cost to at_cost. In `thresholds` it renamed lost to false_positives, good
    to negatives, caught to true_positives, wanted to positives, lost_at_most to
    false_positive_rate_bound, and asked to allowed_per_1000.
    """
    found = asdict(assessment)
    del found["evaluation"]
    if fewer := assessment.without_near_duplicates:
        found["without_near_duplicates"] = fewer.as_json()
    return {"version": JSON_VERSION} | assessment.evaluation.as_json() | found


def _without_near_duplicates(test: LabelledPredictions) -> Evaluation | None:
    near = test.near_duplicates
    if near is None or near.all():
        return None
    return evaluate_predictions(test.true[~near], test.predicted[~near], test.labels)


def _thresholds(
    test: LabelledPredictions,
    val: LabelledPredictions,
    positive: str,
    allowed_per_1000: Sequence[float],
) -> list[AtThreshold]:
    probabilities, is_positive = val.one_class(positive)
    if is_positive.all() or not is_positive.any():
        return []
    found = []
    for allowed in allowed_per_1000:
        threshold = choose_threshold(probabilities, is_positive, allowed)
        at = at_threshold(*test.one_class(positive), positive, threshold)
        found.append(replace(at, allowed_per_1000=float(allowed)))
    return found


def _predicted_text(test: LabelledPredictions, n: int) -> PredictedText:
    true, predicted = test.labels[test.true[n]], test.labels[test.predicted[n]]
    return PredictedText(test.texts[n], true, predicted, float(test.probabilities[n].max()))


# --- Text output ---


def format_assessment(assessment: Assessment) -> str:
    """Format an assessment as text: scores, calibration, thresholds, and examples of texts."""
    mistakes = assessment.evaluation.total - assessment.evaluation.correct
    shown = assessment.mistakes
    lines = [format_evaluation(assessment.evaluation), ""]
    if fewer := assessment.without_near_duplicates:
        accuracy = format_proportion("accuracy", fewer.correct, fewer.total, fewer.interval)
        lines.append(f"without near duplicates in training: {accuracy}")
    lines += _format_rankings(assessment)
    found, before = assessment.calibration, assessment.uncalibrated
    ece = f"{found.ece:.4f}" if before is None else f"{before.ece:.4f} -> {found.ece:.4f}"
    line = f"calibration: Brier {found.brier:.4f}, log loss {found.log_loss:.4f}, ECE {ece}"
    if before is not None or assessment.temperature != 1:
        line += f" (temperature {assessment.temperature:.3g})"
    lines += [line, *_format_thresholds(assessment.thresholds)]
    if at := assessment.at_cost:
        lines += [
            "",
            f"a false positive costs {at.false_positive_cost:g}, a false negative 1: "
            f"{short(at.label)} if p >= {format_threshold(at.threshold)}; "
            f"{at.false_positives} false positives, {at.true_positives} true positives, "
            f"cost per text {at.mean_cost:.4f}",
        ]
    lines += [
        *_format_texts(f"most confident mistakes ({len(shown)} of {mistakes})", shown),
        *_format_texts("least certain predictions", assessment.least_certain),
    ]
    return "\n".join(lines)


def _format_rankings(assessment: Assessment) -> list[str]:
    """Format one line per class.

    If there are two classes, only the positive one is shown, because both have the same ROC-AUC. If
    there are more than MOST_CLASSES, the mean over classes with texts and the worst class are shown.
    """
    found = assessment.rankings
    if len(found) == 2:
        found = [ranking for ranking in found if ranking.label == assessment.positive]
    lines = []
    if len(found) > MOST_CLASSES:
        known = [ranking for ranking in found if ranking.roc_auc is not None]
        roc, pr = (
            f"{np.mean([getattr(ranking, name) for ranking in known]):.4f}" if known else "-"
            for name in ("roc_auc", "average_precision")
        )
        lines.append(f"ranking, mean over {len(known)} classes: ROC-AUC {roc}, PR-AUC {pr}")
        found = sorted(known, key=lambda ranking: ranking.roc_auc or 0.0)[:1]
    for ranking in found:
        areas = (ranking.roc_auc, ranking.average_precision)
        roc, pr = ("-" if area is None else f"{area:.4f}" for area in areas)
        label = short(ranking.label)
        lines.append(f"ranking by the probability of {label}: ROC-AUC {roc}, PR-AUC {pr}")
    return lines


def _format_thresholds(thresholds: Sequence[AtThreshold]) -> list[str]:
    if not thresholds:
        return []
    label = short(thresholds[0].label)
    headers = ["allowed per 1,000", f"{label} if p >="]
    headers += ["false positives", "rate at most (95%)", "true positives"]
    rows = [
        [
            "-" if at.allowed_per_1000 is None else f"{at.allowed_per_1000:g}",
            format_threshold(at.threshold),
            _of(at.false_positives, at.negatives),
            f"{100 * at.false_positive_rate_bound:.2f}%",
            _of(at.true_positives, at.positives),
        ]
        for at in thresholds
    ]
    title = f"thresholds for {label}, chosen on the validation set for the allowed false positives"
    return ["", title, *text_table(headers, rows, left=0)]


def _format_texts(title: str, texts: Sequence[PredictedText]) -> list[str]:
    if not texts:
        return []
    lines = text_table(
        ["true", "predicted", "p"],
        [[short(t.true), short(t.predicted), f"{t.probability:.4f}"] for t in texts],
        left=2,
    )
    shown = ["text", *(on_one_line(t.text) for t in texts)]
    cut = [text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in shown]
    return ["", title, *(f"{line}  {text}" for line, text in zip(lines, cut, strict=True))]


def _of(count: int, total: int) -> str:
    return f"{count} of {total}" + (f" ({100 * count / total:.2f}%)" if total else "")
