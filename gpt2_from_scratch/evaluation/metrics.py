"""What a classifier said of labelled texts: all that scores and comparisons of it are made from.

N texts, K classes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.storage.files import write_text


def rarer_label(labels: Sequence[str], counts: Sequence[int]) -> str:
    """Of two labels the rarer, of equals the second, as "spam" stands behind "ham"; "" for more."""
    if len(labels) != 2:
        return ""
    return labels[0] if counts[0] < counts[1] else labels[1]


# --- How good a classifier is, and how sure one can be of it. K classes, N texts. ---


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

    def as_table(self) -> str:
        """Format the scores for a person."""
        return format_evaluation(self)

    def as_json(self) -> dict[str, Any]:
        """Return the scores as JSON accepts them, the accuracy first."""
        return {"accuracy": self.accuracy} | asdict(self)


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


# --- How well probabilities rank texts, whatever threshold one would cut them at. ---


@dataclass(frozen=True)
class Ranking:
    """One class against all others; None where no text is of it, or every one."""

    label: str
    roc_auc: float | None  # chance that a text of it ranks above one of another; 0.5 is guessing
    average_precision: (
        float | None
    )  # area under precision and recall; the class's share is guessing


def rankings(probabilities: np.ndarray, true: np.ndarray, labels: Sequence[str]) -> list[Ranking]:
    """Rank all texts by each class's probability: (N, K), true (N,) int -> one of each class.

    Of two classes both have the same ROC-AUC, and each its own average precision. Raises UsageError
    without scikit-learn, DataError for shapes that do not fit.
    """
    if probabilities.shape != (len(true), len(labels)):
        raise DataError(
            f"{len(true)} texts and {len(labels)} labels, but probabilities {probabilities.shape}"
        )
    from sklearn.metrics import average_precision_score, roc_auc_score

    found = []
    for k, label in enumerate(labels):
        is_it, shares = true == k, probabilities[:, k]  # (N,)
        if is_it.all() or not is_it.any():
            found.append(Ranking(label, None, None))
            continue
        area, precision = roc_auc_score(is_it, shares), average_precision_score(is_it, shares)
        found.append(Ranking(label, float(area), float(precision)))
    return found


LARGEST_SUM_ERROR = 1e-6  # of a row of probabilities, from 1


@dataclass(frozen=True)
class Answered:
    """Labelled texts and the probability a classifier gives each class.

    Raises DataError for shapes that do not fit, class numbers outside 0 to K - 1, and rows of
    `probabilities` that do not sum to 1.
    """

    labels: tuple[str, ...]  # the names of the K classes
    texts: list[str]
    true: np.ndarray  # (N,) int: the number of each text's class
    probabilities: np.ndarray  # (N, K) float64
    # (N,) bool: training had a text that is nearly the same; None where that is not known
    near_twins: np.ndarray | None = None

    def __post_init__(self) -> None:
        N, K = len(self.texts), len(self.labels)
        twins = self.near_twins
        if self.true.shape != (N,) or self.probabilities.shape != (N, K):
            raise DataError(
                f"{N} texts and {K} classes, but true is {self.true.shape} and probabilities "
                f"{self.probabilities.shape}"
            )
        if twins is not None and twins.shape != (N,):
            raise DataError(f"{N} texts, but near_twins is {twins.shape}")
        if N and not (0 <= self.true.min() <= self.true.max() < K):
            raise DataError(f"class numbers must be from 0 to {K - 1}")
        off = np.abs(self.probabilities.sum(axis=1) - 1)
        if not (off <= LARGEST_SUM_ERROR).all() or (self.probabilities < 0).any():
            raise DataError("probabilities of a text must be from 0 up and sum to 1")

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each text, of equals the first: (N,) int."""
        return self.probabilities.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        """Whether the likeliest class is the true one: (N,) bool."""
        return self.predicted == self.true

    def only(self, wanted: np.ndarray) -> "Answered":
        """The texts for which `wanted` (N,), bool, holds."""
        twins = self.near_twins
        return replace(
            self,
            texts=[text for text, is_wanted in zip(self.texts, wanted, strict=True) if is_wanted],
            true=self.true[wanted],
            probabilities=self.probabilities[wanted],
            near_twins=None if twins is None else twins[wanted],
        )


def write_answered(path: Path, answered: Answered) -> None:
    """Write a line of JSON a text, atomically: its label, what each class got, near_twin."""
    lines = []
    for n, text in enumerate(answered.texts):
        shares = dict(zip(answered.labels, answered.probabilities[n].tolist(), strict=True))
        line = {
            "text": text,
            "label": answered.labels[answered.true[n]],
            "predicted": answered.labels[answered.predicted[n]],
            "probabilities": shares,
        }
        if answered.near_twins is not None:
            line["near_twin"] = bool(answered.near_twins[n])
        lines.append(json.dumps(line))
    write_text(path, "".join(line + "\n" for line in lines))


def read_answered(path: Path) -> Answered:
    """Read what `write_answered` wrote. Raises DataError for anything else, and for no text."""
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        labels = tuple(lines[0]["probabilities"])
        return Answered(
            labels,
            [line["text"] for line in lines],
            np.array([labels.index(line["label"]) for line in lines]),
            np.array([[line["probabilities"][k] for k in labels] for line in lines], dtype=float),
            _near_twins(lines),
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} is no file of answers: {error!r:.200}") from None


def _near_twins(lines: Sequence[dict]) -> np.ndarray | None:
    if "near_twin" not in lines[0]:
        return None
    return np.array([line["near_twin"] for line in lines], dtype=bool)
