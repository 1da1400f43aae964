"""Compare two classifiers with paired tests and confidence intervals.

Shapes: N texts of a test set, S splits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import wilson_interval

ROUNDING = 1e-12  # scores that differ by less than this count as equal


@dataclass(frozen=True)
class Paired:
    """Comparison of two classifiers, a and b, on the same texts."""

    n: int  # number of texts
    only_a: int  # texts that only a predicted correctly
    only_b: int  # texts that only b predicted correctly
    difference: float  # accuracy of a minus accuracy of b
    interval: tuple[float, float]  # 95% interval of the difference
    p: float  # probability of only_a and only_b differing at least this much if both are equally good


@dataclass(frozen=True)
class Repeated:
    """Comparison of two classifiers, a and b, on the same splits."""

    n: int  # number of splits
    difference: float  # mean score of a minus mean score of b
    interval: tuple[float, float]  # 95% interval of the difference
    p: float  # probability of a mean difference at least this far from 0 if both are equally good


def compare_paired(correct_a: np.ndarray, correct_b: np.ndarray) -> Paired:
    """Compare two classifiers on the same test set.

    The arguments say which predictions are correct, (N,) bool. p is from the exact
    two-sided McNemar test, which uses only the texts that exactly one of the two predicted
    correctly. The interval is Wald's, after half a text is added to each of the four cells (only
    a, only b, both, neither). So its width is never 0, even if no text distinguishes the two.
    Raises DataError if the lengths differ or if there are no texts. Sources: McNemar 1947; Agresti
    & Min 2005, "Simple improved confidence intervals for comparing matched proportions".
    """
    from scipy.stats import binomtest

    if correct_a.shape != correct_b.shape or correct_a.ndim != 1:
        raise DataError(f"{correct_a.shape} and {correct_b.shape} are not from the same test set")
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
    """Compare two classifiers by their scores on the same S random splits.

    This is the corrected resampled t-test. Random splits have texts in common, so their scores vary
    less than scores on new data would. The test therefore assumes that the variance of the mean is
    (1/S + n_test/n_train) times the variance of the scores instead of 1/S times. Source: Nadeau &
    Bengio 2003, Machine Learning 52:239.

    Args:
        a: scores of the first classifier, (S,).
        b: scores of the second classifier, (S,).
        n_train: number of training texts per split.
        n_test: number of test texts per split.
        least: lower limit for the standard deviation of the differences, because the differences of
            a few splits may be equal by chance. For accuracies, use one text: 1 / n_test.

    Returns:
        The comparison. If `least` is 0 and all differences are equal, p is 0.0, or 1.0 if all
        differences are 0.

    Raises:
        DataError: there are fewer than two splits, the numbers of scores differ, or a score is not
            finite.
    """
    from scipy.stats import t

    if len(a) != len(b):
        raise DataError(f"{len(a)} and {len(b)} scores are not from the same splits")
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
    """Compute the 95% interval of a mean score over S splits.

    The splits are random, and the interval is corrected as in `compare_repeated`. It is wide if there
    are few splits: for two splits it extends 12.7 standard errors to each side.

    Args:
        values: scores from 0 to 1, (S,).
        n_train: number of training texts per split.
        n_test: number of test texts per split.
        least: lower limit for the standard deviation of the scores.

    Returns:
        The lower and the upper bound.

    Raises:
        DataError: there are fewer than two splits, or a score is not finite.
    """
    mean, _, half = _mean_and_error(np.asarray(values, dtype=float), n_train, n_test, least)
    return max(0.0, mean - half), min(1.0, mean + half)


def accuracy_interval(correct: Sequence[np.ndarray], n_train: int) -> tuple[float, float]:
    """Compute the 95% interval of an accuracy.

    `correct` says which predictions are correct, (N,) bool for each split. The result is Wilson's
    interval for one split, and `mean_interval` for several splits.
    """
    if len(correct) == 1:
        return wilson_interval(int(correct[0].sum()), len(correct[0]))
    accuracies, n_test = _accuracies(correct)
    least = spread_by_chance(float(np.mean(accuracies)), n_test)
    return mean_interval(accuracies, n_train, n_test, least=least)


def compare_accuracies(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], n_train: int
) -> Paired | Repeated:
    """Compare two classifiers by their correct predictions.

    `a` and `b` say which predictions are correct, (N,) bool for each split. One split is compared
    text by text (`compare_paired`). Several splits are compared by their accuracies
    (`compare_repeated`).
    """
    if len(a) == 1:
        return compare_paired(a[0], b[0])
    accuracies, n_test = _accuracies(a)
    return compare_repeated(accuracies, _accuracies(b)[0], n_train, n_test, least=1 / n_test)


def spread_by_chance(accuracy: float, n_test: int) -> float:
    """Return the standard deviation that an accuracy has by chance.

    The accuracy is measured on n_test texts. The result is at least 1 / n_test, which is one text.
    """
    return max(1 / n_test, math.sqrt(accuracy * (1 - accuracy) / n_test))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons. Returns them in the given order.

    If no difference is real, the probability that any adjusted p is below 0.05 is at most 5%. Raises
    DataError if a value is not between 0 and 1. Source: Holm 1979, Scandinavian Journal of Statistics
    6:65.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise DataError(f"p-values must be from 0 to 1: {list(p_values)!s:.100}")
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, n in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[n]))
        adjusted[n] = least
    return adjusted


def format_p(p: float) -> str:
    """Format a p-value, for example "p = 0.031" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _accuracies(correct: Sequence[np.ndarray]) -> tuple[list[float], int]:
    """Return the accuracy of each split, and the mean number of texts."""
    return [float(c.mean()) for c in correct], round(np.mean([len(c) for c in correct]))


def _mean_and_error(
    values: np.ndarray, n_train: int, n_test: int, least: float
) -> tuple[float, float, float]:
    """Return the mean of values (S,), its corrected standard error and a margin.

    The margin is half the width of the 95% interval.
    """
    from scipy.stats import t

    if len(values) < 2:
        raise DataError(f"found {len(values)} split; at least two are needed to measure variation")
    if not np.isfinite(values).all():
        raise DataError(f"scores must be finite numbers: {values!s:.100}")
    if min(n_train, n_test) < 1:
        raise DataError(f"n_train = {n_train} and n_test = {n_test} must be at least 1")
    spread = 0.0 if np.ptp(values) <= ROUNDING else float(values.std(ddof=1))
    error = math.sqrt((1 / len(values) + n_test / n_train) * max(least, spread) ** 2)
    return float(values.mean()), error, float(t.ppf(0.975, len(values) - 1)) * error
