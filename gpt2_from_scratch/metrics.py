"""How good a classifier is, and how sure one can be of it. K classes, N texts."""

import math
from dataclasses import dataclass

import numpy as np

from gpt2_from_scratch.errors import DataError


@dataclass(frozen=True)
class ClassScores:
    """One class: of those called it, the share that is (precision); of those that are, the share
    found (recall); their harmonic mean (F1). None where there is nothing to divide by.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int  # texts that are of this class


@dataclass(frozen=True)
class Evaluation:
    """The scores of one classifier on one set of labelled texts."""

    correct: int
    total: int
    interval: tuple[float, float]  # 95 % Wilson interval of the accuracy
    classes: list[ClassScores]
    confusion: list[list[int]]  # (K, K): row the true class, column the predicted one

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.correct / self.total


def evaluate_predictions(true: np.ndarray, predicted: np.ndarray, labels: list[str]) -> Evaluation:
    """Score predicted class numbers (N,) against the true ones (N,). Raises DataError for N = 0."""
    confusion = np.zeros((len(labels), len(labels)), dtype=int)
    np.add.at(confusion, (true, predicted), 1)
    correct, total = int(confusion.trace()), int(confusion.sum())
    classes = []
    for k, label in enumerate(labels):
        hits, called, support = confusion[k, k], confusion[:, k].sum(), confusion[k].sum()
        classes.append(
            ClassScores(
                label,
                precision=float(hits / called) if called else None,
                recall=float(hits / support) if support else None,
                f1=float(2 * hits / (called + support)) if called + support else None,
                support=int(support),
            )
        )
    return Evaluation(correct, total, wilson_interval(correct, total), classes, confusion.tolist())


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval that holds the true accuracy in 95 of 100 samples of this size.

    Source: Wilson 1927; unlike the normal approximation it stays within 0 and 1 and is right near
    them.
    """
    if total < 1:
        raise DataError("there is nothing to evaluate: no labelled texts")
    p, spread = correct / total, z * z / total
    middle = p + spread / 2
    half = z * math.sqrt(p * (1 - p) / total + spread / (4 * total))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    # at the ends exactly, where rounding would leave out the share itself
    return 0.0 if correct == 0 else low, 1.0 if correct == total else high


def format_evaluation(evaluation: Evaluation) -> str:
    """The scores as a person reads them: accuracy with its interval, classes, confusion matrix."""
    low, high = (100 * bound for bound in evaluation.interval)
    labels = [scores.label for scores in evaluation.classes]
    width = max(len("predicted"), *map(len, labels))

    def percent(value: float | None) -> str:
        return "     -" if value is None else f"{100 * value:6.2f}"

    lines = [
        f"accuracy {100 * evaluation.accuracy:.2f} %  ({evaluation.correct} of {evaluation.total}; "
        f"95 % interval {low:.1f} to {high:.1f})",
        "",
        f"{'class':<{width}}  precision  recall      F1   texts",
        *(
            f"{s.label:<{width}}     {percent(s.precision)}  {percent(s.recall)}  {percent(s.f1)}  {s.support:6d}"
            for s in evaluation.classes
        ),
        "",
        f"{'true / predicted':<{max(width, 16)}}" + "".join(f"  {label:>8}" for label in labels),
        *(
            f"{label:<{max(width, 16)}}"
            + "".join(f"  {n:>{max(8, len(name))}d}" for n, name in zip(row, labels, strict=True))
            for label, row in zip(labels, evaluation.confusion, strict=True)
        ),
    ]
    return "\n".join(lines)
