"""Whether one classifier is better than another, or the difference could be chance.

Two classifiers on the same test texts: compare text by text. The same two on several random splits:
compare split by split, knowing that the splits share most of their texts.

N texts, S splits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import wilson_interval

DRAWS = 10_000  # of the bootstrap
ROUNDING = 1e-12  # scores that differ by less are equal


@dataclass(frozen=True)
class Paired:
    """Two classifiers, a and b, on the same texts."""

    n: int
    only_a: int  # texts that only a had right
    only_b: int
    difference: float  # share of right answers, a's less b's
    interval: tuple[float, float]  # 95 %, of the difference
    p: float  # if both were as good: the chance of a split of only_a + only_b at least so uneven


@dataclass(frozen=True)
class Repeated:
    """Two classifiers, a and b, on the same splits."""

    n: int  # splits
    difference: float  # mean score, a's less b's
    interval: tuple[float, float]  # 95 %, of the difference
    p: float  # if both were as good: the chance of a mean difference at least so far from 0


def compare_paired(right_a: np.ndarray, right_b: np.ndarray, *, seed: int = 0) -> Paired:
    """Compare two classifiers by which texts each had right: (N,) bool, (N,) bool.

    p is the exact two-sided McNemar test: texts that both or neither had right say nothing. The
    interval is the percentile bootstrap over texts, smoothed: half a text more is in each of the
    four cells (only a right, only b, both, neither), and N + 2 texts are drawn. So the interval has
    a width where no text tells the two apart, the smaller the more texts there are. A text counts
    1, -1 or 0, so drawing texts with replacement is one multinomial draw of how many of each there
    are, and that is what is drawn. Raises DataError for different lengths and for no text. Sources:
    McNemar 1947; Efron 1979; Agresti & Min 2005 add the same half texts to another interval.
    """
    if right_a.shape != right_b.shape or right_a.ndim != 1:
        raise DataError(
            f"right answers {right_a.shape} and {right_b.shape} are not of one test part"
        )
    n = len(right_a)
    if not n:
        raise DataError("there is nothing to compare: no texts")
    a, b = right_a.astype(bool), right_b.astype(bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    interval = _bootstrap(only_a, only_b, n, seed)
    return Paired(n, only_a, only_b, (only_a - only_b) / n, interval, _mcnemar(only_a, only_b))


def compare_repeated(
    a: Sequence[float], b: Sequence[float], n_train: int, n_test: int, *, least: float = 0.0
) -> Repeated:
    """Compare the scores (S,), (S,) of two classifiers on the same S random splits.

    The corrected resampled t-test: random splits share texts, so that their scores differ less than
    those of fresh data would. The variance of the mean is taken as (1/S + n_test/n_train) times
    that of the scores, not 1/S times. A few differences may be equal, or nearly, by chance: `least`
    is the smallest standard deviation that is believed, for accuracies one text, 1 / n_test. With 0
    and equal differences p is the limit: 0.0, or 1.0 where they are all 0. Raises DataError for fewer than two
    splits, UsageError without scikit-learn. Source: Nadeau & Bengio 2003, Machine Learning 52:239.
    """
    if len(a) != len(b):
        raise DataError(f"{len(a)} and {len(b)} scores are not of the same splits")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    mean, error, quantile = _mean_and_error(differences, n_train, n_test, least)
    interval = mean - quantile * error, mean + quantile * error
    if not error:
        return Repeated(len(a), mean, interval, 1.0 if abs(mean) <= ROUNDING else 0.0)
    from scipy.stats import t

    return Repeated(len(a), mean, interval, float(2 * t.sf(abs(mean) / error, len(a) - 1)))


def mean_interval(
    values: Sequence[float], n_train: int, n_test: int, *, least: float = 0.0
) -> tuple[float, float]:
    """The 95 % interval of a classifier's mean share over S random splits, values (S,).

    With the correction of `compare_repeated`, and within 0 and 1. Few splits make it wide: of two
    it is 12.7 standard errors to each side. Raises as that does.
    """
    shares = np.asarray(values, dtype=float)
    mean, error, quantile = _mean_and_error(shares, n_train, n_test, least)
    return max(0.0, mean - quantile * error), min(1.0, mean + quantile * error)


def accuracy_interval(right: Sequence[np.ndarray], n_train: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy by which texts were right, (N,) bool of each of S splits:
    Wilson's for one, `mean_interval` for several.
    """
    if len(right) == 1:
        return wilson_interval(int(right[0].sum()), len(right[0]))
    accuracies, n_test = _accuracies(right)
    least = spread_by_chance(float(np.mean(accuracies)), n_test)
    return mean_interval(accuracies, n_train, n_test, least=least)


def compare_accuracies(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], n_train: int
) -> Paired | Repeated:
    """Compare two classifiers by which texts each had right, (N,) bool of each of S splits: text by
    text for one, split by split for several.
    """
    if len(a) == 1:
        return compare_paired(a[0], b[0])
    accuracies, n_test = _accuracies(a)
    return compare_repeated(accuracies, _accuracies(b)[0], n_train, n_test, least=1 / n_test)


def _accuracies(right: Sequence[np.ndarray]) -> tuple[list[float], int]:
    """Of each split, and how many texts one has, in the mean."""
    return [float(r.mean()) for r in right], round(np.mean([len(r) for r in right]))


def spread_by_chance(share: float, n_test: int) -> float:
    """The standard deviation that chance gives to a share of right answers among so many texts, and
    at least one text: what `mean_interval` may believe of accuracies.
    """
    return max(1 / n_test, math.sqrt(share * (1 - share) / n_test))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number: of those below 0.05, 95 times in 100 none is by chance.

    In the order given. Raises DataError for what is no probability. Source: Holm 1979, Scandinavian
    Journal of Statistics 6:65.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise DataError(f"p values must be from 0 to 1: {list(p_values)!s:.100}")
    adjusted, least = [0.0] * len(p_values), 0.0
    for before, n in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        least = max(least, min(1.0, (len(p_values) - before) * p_values[n]))
        adjusted[n] = least
    return adjusted


def format_p(p: float) -> str:
    """A p value as one writes it: "p = 0.031", and never "p = 0.000"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _mcnemar(only_a: int, only_b: int) -> float:
    """Twice the chance of as few heads in as many throws of a coin, in whole numbers, so exact."""
    n, ways, total = only_a + only_b, 1, 0
    for k in range(min(only_a, only_b) + 1):
        total += ways  # n over k
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * total / 2**n)


def _bootstrap(only_a: int, only_b: int, n: int, seed: int) -> tuple[float, float]:
    """Of the difference of shares; "both" and "neither" count 0 and are drawn as one."""
    drawn_n = n + 2
    cells = np.array([only_a + 0.5, only_b + 0.5, n - only_a - only_b + 1.0])
    drawn = np.random.RandomState(seed).multinomial(drawn_n, cells / drawn_n, size=DRAWS)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / drawn_n, [2.5, 97.5])
    return float(low), float(high)


def _mean_and_error(
    values: np.ndarray, n_train: int, n_test: int, least: float
) -> tuple[float, float, float]:
    """The mean (S,) -> number, its corrected standard error, how many of these 95 % reach; `least`
    is the smallest standard deviation of values that is believed.
    """
    if len(values) < 2:
        raise DataError(f"{len(values)} split: two or more are needed to see how scores vary")
    if not np.isfinite(values).all():
        raise DataError(f"scores of splits must be numbers: {values!s:.100}")
    if min(n_train, n_test) < 1:
        raise DataError(f"n_train = {n_train} and n_test = {n_test} must be at least 1")
    from scipy.stats import t

    spread = 0.0 if np.ptp(values) <= ROUNDING else float(values.std(ddof=1))
    variance = max(least, spread) ** 2
    error = math.sqrt((1 / len(values) + n_test / n_train) * variance)
    return float(values.mean()), error, float(t.ppf(0.975, len(values) - 1))
