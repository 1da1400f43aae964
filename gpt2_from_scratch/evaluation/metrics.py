"""Scores and rankings of a classifier, computed from its labelled predictions.

Shapes: N texts, K classes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gpt2_from_scratch.data.messages import short
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.storage.files import write_text
from gpt2_from_scratch.storage.paths import expanded

MOST_CLASSES = 20  # classes shown in full; if there are more, only the weakest are shown
MOST_CONFUSED = 10  # number of pairs of confused classes that are listed
LARGEST_SUM_ERROR = 1e-6  # allowed difference of a row's sum of probabilities from 1


# --- Labelled predictions ---


@dataclass(frozen=True)
class LabelledPredictions:
    """Labelled texts, and the probabilities that a classifier predicts for their classes.

    Raises DataError if the shapes do not fit, if a class number is not between 0 and K - 1, or if a
    row of `probabilities` does not sum to 1.
    """

    labels: tuple[str, ...]  # the names of the K classes
    texts: list[str]
    true: np.ndarray  # (N,) int, the number of each text's class
    probabilities: np.ndarray  # (N, K) float64
    # (N,) bool, whether the training set contains a near duplicate; None if unknown
    near_duplicates: np.ndarray | None = None

    def __post_init__(self) -> None:
        N, K = len(self.texts), len(self.labels)
        if self.true.shape != (N,) or self.probabilities.shape != (N, K):
            raise DataError(
                f"{N} texts and {K} classes, but true is {self.true.shape} and probabilities "
                f"{self.probabilities.shape}"
            )
        if self.near_duplicates is not None and self.near_duplicates.shape != (N,):
            raise DataError(f"{N} texts, but near_duplicates is {self.near_duplicates.shape}")
        if N and not (0 <= self.true.min() <= self.true.max() < K):
            raise DataError(f"class numbers must be from 0 to {K - 1}")
        error = np.abs(self.probabilities.sum(axis=1) - 1)
        if not (error <= LARGEST_SUM_ERROR).all() or (self.probabilities < 0).any():
            raise DataError("a text's probabilities must be at least 0 and sum to 1")

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each text: (N,) int.

        Ties go to the first class.
        """
        return self.probabilities.argmax(axis=1)

    @property
    def correct(self) -> np.ndarray:
        """Whether the most probable class is the true one: (N,) bool."""
        return self.predicted == self.true

    def one_class(self, label: str) -> tuple[np.ndarray, np.ndarray]:
        """Return each text's probability of one class, and whether this is its true class.

        The shapes are (N,) and (N,) bool.
        """
        k = self.labels.index(label)
        return self.probabilities[:, k], self.true == k

    def only(self, wanted: np.ndarray) -> "LabelledPredictions":
        """Return the predictions for the texts at which `wanted`, (N,) bool, is true."""
        near = self.near_duplicates
        return replace(
            self,
            texts=[text for text, is_wanted in zip(self.texts, wanted, strict=True) if is_wanted],
            true=self.true[wanted],
            probabilities=self.probabilities[wanted],
            near_duplicates=None if near is None else near[wanted],
        )


def write_predictions(path: str | Path, predictions: LabelledPredictions) -> None:
    """Write predictions atomically, as one line of JSON per text."""
    path = expanded(path)
    lines = []
    for n, text in enumerate(predictions.texts):
        row = predictions.probabilities[n].tolist()
        line = {
            "text": text,
            "label": predictions.labels[predictions.true[n]],
            "predicted": predictions.labels[predictions.predicted[n]],
            "probabilities": dict(zip(predictions.labels, row, strict=True)),
        }
        if predictions.near_duplicates is not None:
            line["near_duplicate"] = bool(predictions.near_duplicates[n])
        lines.append(json.dumps(line) + "\n")
    write_text(path, "".join(lines))


def read_predictions(path: str | Path) -> LabelledPredictions:
    """Read a file written by `write_predictions`.

    Earlier versions used the key near_twin instead of near_duplicate. Raises DataError if the file is
    not of this kind or has no texts.
    """
    path = expanded(path)
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        labels = tuple(lines[0]["probabilities"])
        key = next((key for key in ("near_duplicate", "near_twin") if key in lines[0]), None)
        return LabelledPredictions(
            labels,
            [line["text"] for line in lines],
            np.array([labels.index(line["label"]) for line in lines]),
            np.array([[line["probabilities"][k] for k in labels] for line in lines], dtype=float),
            np.array([line[key] for line in lines], dtype=bool) if key else None,
        )
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} is not a file of labelled predictions: {error!r:.200}") from None


# --- Scores of the most probable class ---


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of one class. A score is None if its denominator is 0."""

    label: str
    precision: float | None  # proportion of this class among the texts predicted as this class
    recall: float | None  # proportion of texts predicted as this class among those of this class
    f1: float | None  # harmonic mean of precision and recall
    support: int  # number of texts of this class


def macro_f1(classes: Sequence[ClassScores]) -> float | None:
    """Return the unweighted mean F1 of the classes, or None if no class has an F1.

    A class has no F1 if it never occurs and is never predicted. scikit-learn leaves out the same
    classes by default.
    """
    known = [scores.f1 for scores in classes if scores.f1 is not None]
    return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class Evaluation:
    """The scores of one classifier on one set of labelled texts."""

    measure: ClassVar[str] = "accuracy"  # the name of the score in `main`
    correct: int
    total: int
    interval: tuple[float, float]  # 95% Wilson interval of the accuracy
    classes: list[ClassScores]
    confusion: list[list[int]]  # (K, K); rows are true classes, columns are predicted classes

    @property
    def accuracy(self) -> float:
        """The proportion of correct predictions."""
        return self.correct / self.total

    @property
    def macro_f1(self) -> float | None:
        """The unweighted mean F1 of the classes that occur or are predicted."""
        return macro_f1(self.classes)

    @property
    def main(self) -> float:
        """The score that selects the best epoch. Higher is better."""
        return self.accuracy

    def as_table(self) -> str:
        """Format the scores as text."""
        return format_evaluation(self)

    def as_json(self) -> dict[str, Any]:
        """Convert the scores to plain dicts and lists, with the accuracy first."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1} | asdict(self)


def evaluate_predictions(
    true: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> Evaluation:
    """Compare predicted class numbers (N,) with the true ones (N,).

    Raises DataError if there are no texts.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    correct, total = int((true == predicted).sum()), len(true)
    interval = wilson_interval(correct, total)
    K = range(len(labels))
    *ratios, support = precision_recall_fscore_support(
        true, predicted, labels=K, zero_division=np.nan
    )
    p, r, f1 = ([None if np.isnan(x) else float(x) for x in row] for row in ratios)  # K each
    classes = [ClassScores(labels[k], p[k], r[k], f1[k], int(support[k])) for k in K]
    # scikit-learn would warn about a matrix with a single class
    confusion = confusion_matrix(true, predicted, labels=K).tolist() if len(K) > 1 else [[total]]
    return Evaluation(correct, total, interval, classes, confusion)


def weakest(classes: Sequence[ClassScores]) -> list[ClassScores]:
    """Return all classes, or the weakest MOST_CLASSES of them.

    If only the weakest are returned, classes without texts are left out, and the lowest F1 comes first.
    """
    if len(classes) <= MOST_CLASSES:
        return [*classes]
    with_texts = [scores for scores in classes if scores.support]
    return sorted(with_texts, key=lambda scores: scores.f1 or 0.0)[:MOST_CLASSES]


def confused(scores: Evaluation) -> list[tuple[str, str, int]]:
    """List the most frequent confusions of classes.

    Each is a tuple (true label, predicted label, number of texts).
    """
    labels = [found.label for found in scores.classes]
    counts = np.array(scores.confusion)  # (K, K)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = [divmod(int(n), len(labels)) for n in order]
    return [(labels[i], labels[j], int(counts[i, j])) for i, j in pairs if counts[i, j]]


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Compute the 95% confidence interval of a proportion. Source: Wilson 1927.

    Unlike the normal approximation, this interval is always within 0 and 1, and it is accurate for
    proportions near 0 or 1. Raises DataError if `total` is 0.
    """
    from scipy.stats import binomtest

    if total < 1:
        raise DataError("there are no labelled texts to evaluate")
    low, high = binomtest(correct, total).proportion_ci(0.95, "wilson")
    return float(low), float(high)


# --- Rankings by probability, independent of a threshold ---


@dataclass(frozen=True)
class Ranking:
    """Scores of a ranking of texts by their probability of a class.

    Both scores are None if no text or every text is of this class.
    """

    label: str
    roc_auc: float | None  # probability that a text of the class ranks above another; 0.5 by chance
    average_precision: float | None  # area under the precision-recall curve


def rankings(probabilities: np.ndarray, true: np.ndarray, labels: Sequence[str]) -> list[Ranking]:
    """Rank all texts by their probability of each class.

    Takes probabilities (N, K) and true classes (N,), int. Returns one Ranking per class. If there are
    two classes, both have the same ROC-AUC, but not the same average precision. Raises DataError if
    the shapes do not fit.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if probabilities.shape != (len(true), len(labels)):
        raise DataError(
            f"{len(true)} texts and {len(labels)} labels, but probabilities {probabilities.shape}"
        )
    found = []
    for k, label in enumerate(labels):
        is_class, scores = true == k, probabilities[:, k]  # (N,)
        if is_class.all() or not is_class.any():
            found.append(Ranking(label, None, None))
            continue
        area = float(roc_auc_score(is_class, scores))
        found.append(Ranking(label, area, float(average_precision_score(is_class, scores))))
    return found


def rarer_label(labels: Sequence[str], counts: Sequence[int]) -> str:
    """Return the rarer of two labels (the second on a tie).

    Returns an empty string unless there are exactly two labels.
    """
    if len(labels) != 2:
        return ""
    return labels[0] if counts[0] < counts[1] else labels[1]


# --- Text output ---


def format_evaluation(evaluation: Evaluation) -> str:
    """Format the accuracy, the macro F1, the scores per class and the confusion matrix.

    The accuracy and the macro F1 are in the first line. If there are more than MOST_CLASSES classes,
    the text shows the mean over classes, the weakest classes and the most frequent confusions.
    """
    classes = evaluation.classes
    accuracy = (evaluation.correct, evaluation.total, evaluation.interval)
    f1 = evaluation.macro_f1
    macro = "-" if f1 is None else f"{percent(f1)}%"
    lines = [f"{format_proportion('accuracy', *accuracy)}, macro F1 {macro}"]
    if len(classes) > MOST_CLASSES:
        lines.append(_mean_over_classes(classes))
    lines += ["", *format_classes(classes), ""]
    if len(classes) <= MOST_CLASSES:
        labels = [short(scores.label) for scores in classes]
        counts = [[label, *row] for label, row in zip(labels, evaluation.confusion, strict=True)]
        return "\n".join([*lines, *text_table(["true / predicted", *labels], counts)])
    pairs = confused(evaluation)
    n_shown, wrong = sum(n for _, _, n in pairs), evaluation.total - evaluation.correct
    rows = [[short(true), short(predicted), n] for true, predicted, n in pairs]
    lines.append(f"most frequent confusions ({n_shown:,} of {wrong:,} mistakes)")
    return "\n".join([*lines, *text_table(["true", "predicted", "texts"], rows, left=2)])


def _mean_over_classes(classes: Sequence[ClassScores]) -> str:
    """Format the unweighted means over the classes of the macro F1.

    A precision or recall that is undefined counts as 0.
    """
    present = [scores for scores in classes if scores.f1 is not None]
    rows = [[s.precision or 0.0, s.recall or 0.0, s.f1 or 0.0] for s in present]
    precision, recall, f1 = np.mean(rows, axis=0).tolist()
    return (
        f"mean over the {len(present)} of {len(classes):,} classes that occur or are predicted: "
        f"precision {percent(precision)}, recall {percent(recall)}, F1 {percent(f1)}"
    )


def several(labels: Sequence[str]) -> str:
    """Format labels for an error message.

    Only the first MOST_CLASSES labels are listed, followed by the number of other labels.
    """
    named = ", ".join(map(short, labels[:MOST_CLASSES]))
    return named + (f" and {len(labels) - MOST_CLASSES:,} more" * (len(labels) > MOST_CLASSES))


def format_proportion(name: str, count: int, total: int, interval: tuple[float, float]) -> str:
    """Format a proportion with its counts and its 95% interval.

    Args:
        name: the name of the proportion.
        count: the numerator.
        total: the denominator.
        interval: the bounds, from 0 to 1.

    Returns:
        One line.
    """
    low, high = (100 * bound for bound in interval)
    counts = f"{count} of {total}; 95% interval {low:.1f} to {high:.1f}"
    return f"{name} {100 * count / total:.2f}%  ({counts})"


def format_classes(
    classes: Sequence[ClassScores], what: str = "class", counted: str = "texts"
) -> list[str]:
    """Format a table with one row per class.

    If there are more than MOST_CLASSES, only the weakest are shown. Returns the lines. `what` and
    `counted` are the headers of the first and the last column.
    """
    rows = [
        [short(s.label), *map(percent, (s.precision, s.recall, s.f1)), s.support]
        for s in weakest(classes)
    ]
    return text_table([head_of_weakest(what, classes), "precision", "recall", "F1", counted], rows)


def head_of_weakest(what: str, classes: Sequence[ClassScores]) -> str:
    """Return the header of a column of classes. It says so if only the weakest are shown."""
    n = len(weakest(classes))
    return what if n == len(classes) else f"{what} ({n} weakest of {len(classes):,})"


def percent(value: float | None) -> str:
    """Format a proportion in per cent with two decimals. None becomes a dash."""
    return "-" if value is None else f"{100 * value:.2f}"


def text_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> list[str]:
    """Format a table.

    The first `left` columns are left-aligned, and the others are right-aligned. Returns the lines.
    """
    from tabulate import tabulate

    align = ["left" if column < left else "right" for column in range(len(headers))]
    table = tabulate(rows, headers, "plain", disable_numparse=True, colalign=align)
    return table.splitlines()
