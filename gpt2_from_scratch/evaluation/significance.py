"""Return whether one classifier is better than another: paired tests and confidence intervals.

N texts of a test set, S splits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import wilson_interval

ROUNDING = 1e-12  # scores that differ by less are equal


@dataclass(frozen=True)
class Paired:
    """Two classifiers, a and b, on the same texts."""

    n: int
    only_a: int  # texts that only a predicted correctly
    only_b: int
    difference: float  # accuracy of a minus accuracy of b
    interval: tuple[float, float]  # 95%, of the difference
    p: float  # probability of a split of only_a + only_b at least this uneven, if both are as good


@dataclass(frozen=True)
class Repeated:
    """Two classifiers, a and b, on the same splits."""

    n: int  # splits
    difference: float  # mean score of a minus mean score of b
    interval: tuple[float, float]  # 95%, of the difference
    p: float  # probability of a mean difference at least this far from 0, if both are as good


def compare_paired(correct_a: np.ndarray, correct_b: np.ndarray) -> Paired:
    """Compare two classifiers by the texts each predicted correctly: (N,) bool, (N,) bool.

    p is the exact two-sided McNemar test, which uses only the texts that one of the two predicted
    correctly. The interval is Wald's after adding half a text to each of the four cells (only a,
    only b, both, neither), so it has a width even if no text distinguishes the two. Raises
    DataError for different lengths and for no texts. Sources: McNemar 1947; Agresti & Min 2005,
    "Simple improved confidence intervals for comparing matched proportions".
    """
    from scipy.stats import binomtest

    if correct_a.shape != correct_b.shape or correct_a.ndim != 1:
        raise DataError(f"{correct_a.shape} and {correct_b.shape} are not of one test set")
    n = len(correct_a)
    if not n:
        raise DataError("there are no texts to compare")
    a, b = correct_a.astype(bool), correct_b.astype(bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    middle = (only_a - only_b) / (n + 2)
    error = math.sqrt((only_a + only_b + 1) / (n + 2) - middle**2) / math.sqrt(n + 2)
    interval = max(-1.0, middle - 1.959964 * error), min(1.0, middle + 1.959964 * error)
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Paired(n, only_a, only_b, (only_a - only_b) / n, interval, p)


def compare_repeated(
    a: Sequence[float], b: Sequence[float], n_train: int, n_test: int, *, least: float = 0.0
) -> Repeated:
    """Compare the scores (S,), (S,) of two classifiers on the same S random splits.

    The corrected resampled t-test: random splits share texts, so their scores differ less than
    those of fresh data would. The variance of the mean is (1/S + n_test/n_train) times that of the
    scores, not 1/S times. The differences of few splits may be equal by chance, so their standard
    deviation is taken to be at least `least`; for accuracies that is one text, 1 / n_test. With
    `least` 0 and equal differences p is the limit: 0.0, or 1.0 if all differences are 0. Raises
    DataError for fewer than two splits. Source: Nadeau & Bengio 2003, Machine Learning 52:239.
    """
    from scipy.stats import t

    if len(a) != len(b):
        raise DataError(f"{len(a)} and {len(b)} scores are not of the same splits")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    mean, error, half = _mean_and_error(differences, n_train, n_test, least)
    if error:
        p = float(2 * t.sf(abs(mean) / error, len(a) - 1))
    else:
        p = 1.0 if abs(mean) <= ROUNDING else 0.0
    return Repeated(len(a), mean, (mean - half, mean + half), p)


def mean_interval(
    values: Sequence[float], n_train: int, n_test: int, *, least: float = 0.0
) -> tuple[float, float]:
    """The 95% interval of a classifier's mean score (0 to 1) over S random splits, values (S,).

    It is corrected as in `compare_repeated`. Few splits make it wide: for two it reaches 12.7
    standard errors to each side. Raises the same errors.
    """
    mean, _, half = _mean_and_error(np.asarray(values, dtype=float), n_train, n_test, least)
    return max(0.0, mean - half), min(1.0, mean + half)


def accuracy_interval(correct: Sequence[np.ndarray], n_train: int) -> tuple[float, float]:
    """The 95% interval of an accuracy, from the correct texts (N,) bool of each of S splits.

    Wilson's for one split, `mean_interval` for several.
    """
    if len(correct) == 1:
        return wilson_interval(int(correct[0].sum()), len(correct[0]))
    accuracies, n_test = _accuracies(correct)
    least = spread_by_chance(float(np.mean(accuracies)), n_test)
    return mean_interval(accuracies, n_train, n_test, least=least)


def compare_accuracies(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], n_train: int
) -> Paired | Repeated:
    """Compare two classifiers by their correct texts, (N,) bool of each of S splits.

    Text by text for one split, split by split for several.
    """
    if len(a) == 1:
        return compare_paired(a[0], b[0])
    accuracies, n_test = _accuracies(a)
    return compare_repeated(accuracies, _accuracies(b)[0], n_train, n_test, least=1 / n_test)


def spread_by_chance(accuracy: float, n_test: int) -> float:
    """The standard deviation that chance gives to an accuracy on n_test texts; at least one text."""
    return max(1 / n_test, math.sqrt(accuracy * (1 - accuracy) / n_test))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, in the order given.

    If no difference is real, any adjusted p is below 0.05 in at most 5 of 100 cases. Raises
    DataError for values outside 0 to 1. Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise DataError(f"p-values must be from 0 to 1: {list(p_values)!s:.100}")
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, n in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[n]))
        adjusted[n] = least
    return adjusted


def format_p(p: float) -> str:
    """A p-value as text: "p = 0.031", and never "p = 0.000"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _accuracies(correct: Sequence[np.ndarray]) -> tuple[list[float], int]:
    """The accuracy of each split, and the mean number of its texts."""
    return [float(c.mean()) for c in correct], round(np.mean([len(c) for c in correct]))


def _mean_and_error(
    values: np.ndarray, n_train: int, n_test: int, least: float
) -> tuple[float, float, float]:
    """The mean of values (S,), its corrected standard error, half the width of its 95% interval."""
    from scipy.stats import t

    if len(values) < 2:
        raise DataError(f"{len(values)} split: at least two are needed to see how scores vary")
    if not np.isfinite(values).all():
        raise DataError(f"scores must be finite numbers: {values!s:.100}")
    if min(n_train, n_test) < 1:
        raise DataError(f"n_train = {n_train} and n_test = {n_test} must be at least 1")
    spread = 0.0 if np.ptp(values) <= ROUNDING else float(values.std(ddof=1))
    error = math.sqrt((1 / len(values) + n_test / n_train) * max(least, spread) ** 2)
    return float(values.mean()), error, float(t.ppf(0.975, len(values) - 1)) * error
