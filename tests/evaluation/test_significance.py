"""Comparisons are checked against scipy, published results and calculations by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import make_moons
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.svm import SVC

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.significance import (
    Paired,
    compare_paired,
    compare_repeated,
    format_p,
    holm,
    mean_interval,
    spread_by_chance,
)


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which texts a and b predicted correctly: (N,), (N,).

    The texts are in random order.
    """
    kinds = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, only_a, only_b, neither], axis=0)
    kinds = np.random.default_rng(0).permutation(kinds).astype(bool)
    return kinds[:, 0], kinds[:, 1]


# --- text by text ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("only_a", "only_b"),
    [(0, 0), (1, 0), (0, 1), (5, 5), (3, 9), (12, 2), (40, 71), (0, 30), (900, 1100), (2500, 2431)],
)
def test_p_is_that_of_coin_flips(only_a, only_b):
    """p is twice the probability of at most that many heads, computed with Python's integers."""
    found = compare_paired(*answers(70, only_a, only_b, 20))
    throws = only_a + only_b
    ways = sum(math.comb(throws, k) for k in range(min(only_a, only_b) + 1))
    assert found.p == pytest.approx(min(1.0, 2 * ways / 2**throws), rel=1e-9)
    assert (found.n, found.only_a, found.only_b) == (throws + 90, only_a, only_b)
    assert found.difference == pytest.approx((only_a - only_b) / (throws + 90))


def test_published_p():
    """The example is the approval of the prime minister in Agresti, Categorical Data Analysis.

    150 and 86 people changed their minds, so z² = (86 - 150)² / (86 + 150) = 17.36. The exact test
    gives a similar p.
    """
    found = compare_paired(*answers(794, 150, 86, 570))
    assert (found.n, round(found.difference, 2)) == (1600, 0.04)
    assert found.p == pytest.approx(stats.chi2.sf(17.36, 1), rel=0.3)
    # Agresti's 95% interval, to which no half texts are added, is 0.021 to 0.059 (p0 ± 1.96 × 0.0095)
    assert found.interval == pytest.approx((0.0213, 0.0587), abs=1e-4)


def test_thousands_of_texts_that_only_one_predicted_correctly():
    """The probability 2^-5000 is too small for a float."""
    assert compare_paired(*answers(1, 5000, 0, 1)).p == 0.0
    assert 0.99 < compare_paired(*answers(1, 30_000, 30_001, 1)).p <= 1.0


@pytest.mark.parametrize("counts", [(80, 12, 5, 3), (10, 3, 0, 2), (500, 30, 60, 10)])
def test_the_interval_is_that_of_a_mean(counts):
    """With half a text added per cell, it is the mean of N + 2 values 1, -1 or 0 ± 1.96 errors."""
    a, b = answers(*counts)
    halves = np.concatenate([np.repeat(a.astype(int) - b.astype(int), 2), [1, -1, 0, 0]])
    middle, error = halves.mean(), halves.std() / math.sqrt(len(a) + 2)
    expected = (middle - 1.959964 * error, middle + 1.959964 * error)
    assert compare_paired(a, b).interval == pytest.approx(expected)


def test_the_coverage_of_the_interval_is_near_95_percent():
    """In 400 simulated tests on 200 texts, a is better by 0.05. About 95% of intervals contain it."""
    rng = np.random.default_rng(2)
    inside = 0
    for only_a, only_b, _ in rng.multinomial(200, [0.12, 0.07, 0.81], size=400):
        low, high = compare_paired(*answers(200 - only_a - only_b, only_a, only_b, 0)).interval
        inside += low <= 0.05 <= high
    assert 0.91 <= inside / 400 <= 0.98


def test_swapping_a_and_b_changes_the_sign():
    a, b = answers(50, 14, 6, 5)
    one, other = compare_paired(a, b), compare_paired(b, a)
    assert (one.p, one.difference) == (other.p, -other.difference)
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))


@pytest.mark.parametrize("n", [3, 262, 5000])
def test_equal_predictions_do_not_give_an_interval_of_width_0(n):
    """Half a text in each of two cells gives a half-width of 1.96 / (n + 2)."""
    a, _ = answers(n - 3, 0, 0, 3)
    half = 1.959964 / (n + 2)
    assert compare_paired(a, a) == Paired(n, 0, 0, 0.0, pytest.approx((-half, half)), 1.0)


def test_the_interval_stays_within_1():
    assert compare_paired(np.array([True]), np.array([False])).interval[1] == 1.0
    assert compare_paired(np.array([False]), np.array([True])).interval[0] == -1.0


def test_the_coverage_is_sufficient_for_few_distinguishing_texts():
    """In most of 400 simulated tests on 100 texts, only 0, 1 or 2 texts distinguish the two."""
    inside = 0
    for only_a, only_b, rest in np.random.default_rng(6).multinomial(
        100, [0.012, 0.008, 0.98], 400
    ):
        low, high = compare_paired(*answers(rest, only_a, only_b, 0)).interval
        inside += low <= 0.004 <= high
    assert inside / 400 >= 0.94


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([True], [True, False], "not from the same test set"),
        ([], [], "no texts"),
        ([[True]], [[True]], "not from the same test set"),
    ],
)
def test_what_cannot_be_compared(a, b, said):
    with pytest.raises(DataError, match=said):
        compare_paired(np.array(a, dtype=bool), np.array(b, dtype=bool))


# --- split by split ---


@pytest.mark.slow
def test_scikit_learns_published_example():
    """Its page "Statistical comparison of models using grid search" reports t 0.750 and p 0.227
    (one-sided) with the correction, and t 2.611 and p 0.005 for the plain paired test.
    """
    X, y = make_moons(noise=0.352, random_state=1, n_samples=100)
    cv = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    rbf, linear = (
        cross_val_score(SVC(kernel=kernel, random_state=0), X, y, scoring="roc_auc", cv=cv)
        for kernel in ("rbf", "linear")
    )
    found = compare_repeated(rbf, linear, n_train=90, n_test=10)
    assert (found.n, round(found.p / 2, 3)) == (100, 0.227)
    assert found.difference == pytest.approx(np.mean(rbf) - np.mean(linear))
    half = found.interval[1] - found.difference
    assert found.difference / half * stats.t.ppf(0.975, 99) == pytest.approx(0.750, abs=5e-4)


@pytest.mark.parametrize("ratio", [0.01, 0.25, 1.0])
def test_three_splits_on_paper(ratio):
    """With two degrees of freedom, the t-distribution gives p = 1 - t / √(2 + t²)."""
    found = compare_repeated([0.91, 0.93, 0.95], [0.90, 0.90, 0.90], 10_000, int(10_000 * ratio))
    t = 0.03 / math.sqrt((1 / 3 + ratio) * 0.02**2)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    half = 0.03 / t * 4.302653  # the 97.5% quantile of t with two degrees of freedom
    assert found.interval == pytest.approx((0.03 - half, 0.03 + half), rel=1e-6)


def test_without_the_correction_it_is_the_paired_t_test():
    rng = np.random.default_rng(3)
    a, b = rng.uniform(0.8, 1, 12), rng.uniform(0.8, 1, 12)
    found = compare_repeated(a, b, n_train=10**12, n_test=1)
    expected = stats.ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()), rel=1e-6)


def test_equal_differences_have_no_variance():
    """0.3 - 0.2, 0.4 - 0.3 and 0.9 - 0.8 are all 0.1, apart from rounding."""
    found = compare_repeated([0.3, 0.4, 0.9], [0.2, 0.3, 0.8], 70, 20)
    assert found.p == 0.0 and found.interval == pytest.approx((0.1, 0.1))
    assert compare_repeated([0.5, 0.9], [0.5, 0.9], 70, 20).p == 1.0


def test_the_interval_of_a_mean():
    low, high = mean_interval([0.91, 0.93, 0.95], 70, 20)
    half = math.sqrt((1 / 3 + 20 / 70) * 0.02**2) * 4.302653
    assert (low, high) == (pytest.approx(0.93 - half), pytest.approx(min(1.0, 0.93 + half)))
    assert mean_interval([0.99, 1.0], 70, 20)[1] == 1.0
    assert mean_interval([0.01, 0.0], 70, 20)[0] == 0.0
    assert mean_interval([0.7, 0.7, 0.7], 70, 20) == pytest.approx((0.7, 0.7))


def test_equal_scores_of_few_splits_do_not_give_an_interval_of_width_0():
    """Three scores on 20 texts each may be equal by chance."""
    half = 0.1 * math.sqrt(1 / 3 + 20 / 70) * 4.302653
    assert mean_interval([0.5] * 3, 70, 20, least=0.1) == pytest.approx((0.5 - half, 0.5 + half))
    one_text = compare_repeated([0.8, 0.9], [0.75, 0.85], 70, 20, least=0.05)
    t = 0.05 / math.sqrt((1 / 2 + 20 / 70) * 0.05**2)
    # with one degree of freedom, t has the Cauchy distribution
    assert one_text.p == pytest.approx(1 - 2 * math.atan(t) / math.pi)
    wider = compare_repeated([0.9, 0.5], [0.1, 0.3], 70, 20, least=0.05)
    assert wider == compare_repeated([0.9, 0.5], [0.1, 0.3], 70, 20)


def test_the_spread_of_an_accuracy_by_chance():
    assert spread_by_chance(0.5, 100) == pytest.approx(
        np.random.default_rng(1).binomial(100, 0.5, 200_000).std() / 100, rel=0.01
    )
    assert spread_by_chance(1.0, 50) == 0.02


@pytest.mark.parametrize(
    ("values", "sizes", "said"),
    [
        ([0.9], (70, 20), "at least two"),
        ([], (70, 20), "at least two"),
        ([0.9, math.nan], (70, 20), "finite numbers"),
        ([0.9, 0.8], (0, 20), "must be at least 1"),
        ([0.9, 0.8], (70, 0), "must be at least 1"),
    ],
)
def test_splits_that_cannot_be_compared(values, sizes, said):
    with pytest.raises(DataError, match=said):
        mean_interval(values, *sizes)
    with pytest.raises(DataError, match=said):
        compare_repeated(values, [0.5] * len(values), *sizes)


def test_scores_of_other_splits():
    with pytest.raises(DataError, match="2 and 3 scores"):
        compare_repeated([0.9, 0.8], [0.9, 0.8, 0.7], 70, 20)


# --- many comparisons ---


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([1.0, 0.6], [1.0, 1.0]),
        # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.04, 0.01, 0.03], [0.06, 0.03, 0.06]),
    ],
)
def test_holm_on_paper(p, adjusted):
    assert holm(p) == pytest.approx(adjusted)


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2, 0.6])
def test_adjusted_is_what_the_step_down_procedure_rejects(level):
    """The k-th smallest of m values is compared with level / (m - k + 1) until one is above it."""
    rng = np.random.default_rng(4)
    for _ in range(50):
        p = rng.beta(0.4, 2, size=rng.integers(1, 8))
        rejected = np.zeros(len(p), dtype=bool)
        for k, n in enumerate(np.argsort(p)):
            if p[n] > level / (len(p) - k):
                break
            rejected[n] = True
        assert [q <= level for q in holm(p)] == rejected.tolist()


def test_values_that_are_not_probabilities_are_refused():
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(DataError, match="from 0 to 1"):
            holm([0.5, wrong])


@pytest.mark.parametrize(
    ("p", "written"),
    [
        (0.0, "p < 0.001"),
        (0.00099, "p < 0.001"),
        (0.001, "p = 0.001"),
        (0.0312, "p = 0.031"),
        (1.0, "p = 1.000"),
    ],
)
def test_p_as_text(p, written):
    assert format_p(p) == written
