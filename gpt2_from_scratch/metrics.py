"""How good a classifier is, and how sure one can be of it. K classes, N texts."""

import math
from dataclasses import dataclass
from typing import ClassVar

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

    measure: ClassVar[str] = "accuracy"  # what `main` is
    correct: int
    total: int
    interval: tuple[float, float]  # 95 % Wilson interval of the accuracy
    classes: list[ClassScores]
    confusion: list[list[int]]  # (K, K): row the true class, column the predicted one

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.correct / self.total

    @property
    def main(self) -> float:
        """What epochs are chosen by: higher is better."""
        return self.accuracy


def evaluate_predictions(true: np.ndarray, predicted: np.ndarray, labels: list[str]) -> Evaluation:
    """Score predicted class numbers (N,) against the true ones (N,). Raises DataError for N = 0."""
    confusion = np.zeros((len(labels), len(labels)), dtype=int)
    np.add.at(confusion, (true, predicted), 1)
    correct, total = int(confusion.trace()), int(confusion.sum())
    called, support = confusion.sum(axis=0), confusion.sum(axis=1)  # (K,)
    classes = [
        class_scores(label, int(confusion[k, k]), int(called[k]), int(support[k]))
        for k, label in enumerate(labels)
    ]
    return Evaluation(correct, total, wilson_interval(correct, total), classes, confusion.tolist())


def class_scores(label: str, hits: int, called: int, support: int) -> ClassScores:
    """Score one class: `called` answers named it, `support` should have, `hits` did both."""
    return ClassScores(
        label,
        precision=hits / called if called else None,
        recall=hits / support if support else None,
        f1=2 * hits / (called + support) if called + support else None,
        support=support,
    )


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
    labels = [scores.label for scores in evaluation.classes]
    width = max(len("true / predicted"), *map(len, labels))
    lines = [
        format_share("accuracy", evaluation.correct, evaluation.total, evaluation.interval),
        "",
        *format_classes(evaluation.classes),
        "",
        f"{'true / predicted':<{width}}" + "".join(f"  {label:>8}" for label in labels),
        *(
            f"{label:<{width}}"
            + "".join(f"  {n:>{max(8, len(name))}d}" for n, name in zip(row, labels, strict=True))
            for label, row in zip(labels, evaluation.confusion, strict=True)
        ),
    ]
    return "\n".join(lines)


def format_share(name: str, correct: int, total: int, interval: tuple[float, float]) -> str:
    """One line: a share of right answers with its interval."""
    low, high = (100 * bound for bound in interval)
    return (
        f"{name} {100 * correct / total:.2f} %  ({correct} of {total}; "
        f"95 % interval {low:.1f} to {high:.1f})"
    )


def format_classes(
    classes: list[ClassScores], what: str = "class", counted: str = "texts"
) -> list[str]:
    """A table with one line a class; `what` and `counted` head its first and last column."""
    width = max([len("predicted"), *(len(scores.label) for scores in classes)])
    column = max(6, len(counted))
    return [
        f"{what:<{width}}  precision  recall      F1  {counted:>{column}}",
        *(
            f"{s.label:<{width}}     {percent(s.precision)}  {percent(s.recall)}  {percent(s.f1)}"
            f"  {s.support:{column}d}"
            for s in classes
        ),
    ]


def percent(value: float | None) -> str:
    """A share in per cent, six characters wide; a dash where there is none."""
    return "     -" if value is None else f"{100 * value:6.2f}"
