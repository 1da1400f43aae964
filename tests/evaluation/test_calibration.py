"""Calibration, thresholds and costs are checked by formulas and brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import f1_score

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.calibration import (
    NEVER,
    AtThreshold,
    Bin,
    at_cost,
    at_threshold,
    best_f1_threshold,
    calibration,
    choose_threshold,
    fit_temperature,
    fit_weights,
    format_threshold,
)


def made_up(seed: int, N: int = 300, K: int = 3, sharpness: float = 2.0):
    """Draw logits (N, K) and classes (N,).

    The temperature `sharpness` calibrates the logits.
    """
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(N, K)) * 2
    p = softmax(z, axis=1)
    true = np.array([rng.choice(K, p=row) for row in p])
    return z * sharpness, true


# --- scores ---


@pytest.mark.parametrize("K", [2, 3, 7])
def test_scores_text_by_text(K):
    z, true = made_up(K, K=K)
    p = softmax(z, axis=1)
    brier = nats = 0.0
    for row, k in zip(p.tolist(), true.tolist(), strict=True):
        brier += sum((share - (n == k)) ** 2 for n, share in enumerate(row)) / len(true)
        nats -= math.log(row[k]) / len(true)
    found = calibration(p, true)
    assert (found.brier, found.log_loss) == (pytest.approx(brier), pytest.approx(nats))


def test_briers_own_example():
    """Brier 1950, Monthly Weather Review 78:1, table 1: ten forecasts of rain, P = 0.19."""
    rain = np.array([0.7, 0.9, 0.8, 0.4, 0.2, 0, 0, 0, 0, 0.1])
    rained = np.array([0, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    found = calibration(np.stack([1 - rain, rain], axis=1), rained)
    assert found.brier == pytest.approx(0.19)


def test_a_true_class_with_probability_0():
    """The log loss is finite, because the smallest float step replaces the probability 0."""
    p, true = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), np.array([1, 0, 1])
    expected = (math.log(2) - math.log(2**-52)) / 3
    assert calibration(p, true).log_loss == pytest.approx(expected)


def test_bins_on_paper():
    p = np.array([[0.95, 0.05], [0.85, 0.15], [0.3, 0.7], [0.25, 0.75], [0.5, 0.5], [1.0, 0.0]])
    true = np.array([0, 1, 1, 0, 0, 0])
    found = calibration(p, true, n_bins=5)
    assert [(b.low, b.high, b.count) for b in found.bins] == [
        (0.0, 0.2, 0),
        (0.2, 0.4, 0),
        (0.4, pytest.approx(0.6), 1),
        (pytest.approx(0.6), 0.8, 2),
        (0.8, 1.0, 3),
    ]
    assert [(b.confidence, b.accuracy) for b in found.bins] == [
        (None, None),
        (None, None),
        (0.5, 1.0),
        (pytest.approx(0.725), 0.5),
        (pytest.approx(2.8 / 3), pytest.approx(2 / 3)),
    ]
    assert found.ece == pytest.approx((1 * 0.5 + 2 * 0.225 + 3 * (0.8 / 3)) / 6)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_expected_calibration_error_text_by_text(seed, n_bins):
    """As in Guo et al., bin m contains the texts with a confidence in ((m - 1) / M, m / M]."""
    z, true = made_up(seed, N=120)
    p = softmax(z, axis=1)
    ece = 0.0
    for m in range(1, n_bins + 1):
        inside = [n for n in range(120) if (m - 1) / n_bins < max(p[n]) <= m / n_bins]
        right = sum(np.argmax(p[n]) == true[n] for n in inside)
        ece += abs(right - sum(max(p[n]) for n in inside)) / 120
    found = calibration(p, true, n_bins)
    assert found.ece == pytest.approx(ece, abs=1e-12)
    assert sum(b.count for b in found.bins) == 120 and len(found.bins) == n_bins


@pytest.mark.parametrize("edge", [0.6, 0.7, 0.8, 0.9])
def test_a_confidence_on_an_edge_is_in_the_bin_below(edge):
    found = calibration(np.array([[edge, 1 - edge]]), np.array([0]))
    assert [round(b.high, 9) for b in found.bins if b.count] == [edge]


def test_perfect_probabilities():
    found = calibration(np.eye(3)[[0, 2, 1]], np.array([0, 2, 1]), n_bins=2)
    assert (found.brier, found.ece) == (0.0, 0.0) and 0 <= found.log_loss < 1e-15
    assert found.bins == [Bin(0.0, 0.5, 0, None, None), Bin(0.5, 1.0, 3, 1.0, 1.0)]
    assert {type(x) for x in (found.brier, found.log_loss, found.ece)} == {float}  # for json
    assert type(found.bins[1].count) is int and type(found.bins[1].accuracy) is float


# --- temperature ---


def smoothed_loss(z: np.ndarray, true: np.ndarray, T: float) -> float:
    """Compute the loss that `fit_temperature` minimises, with scipy's softmax and a loop."""
    N, K = z.shape
    total = 0.0
    for row, right in zip(log_softmax(z / T, axis=1), true, strict=True):
        for k in range(K):
            total -= (N + 1 if k == right else 1) / (N + K) * row[k]
    return total / N


@pytest.mark.parametrize(
    ("seed", "K", "sharpness"), [(0, 2, 0.5), (1, 2, 3.0), (2, 3, 1.0), (3, 5, 6.0)]
)
def test_the_temperature_minimises_the_loss(seed, K, sharpness):
    z, true = made_up(seed, N=200, K=K, sharpness=sharpness)
    expected = minimize_scalar(
        lambda T: smoothed_loss(z, true, T),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(z, true) == pytest.approx(expected.x, rel=1e-6)


def test_a_known_temperature_is_found():
    z, true = made_up(5, N=20_000, sharpness=3.0)
    T = fit_temperature(z, true)
    assert T == pytest.approx(3.0, rel=0.03)
    before, after = (calibration(softmax(z / t, axis=1), true) for t in (1.0, T))
    assert before.ece > 0.15 and after.ece < 0.02
    assert after.log_loss < before.log_loss and after.brier < before.brier


@pytest.mark.parametrize("c", [0.25, 2.0, 3.7])
def test_logits_times_c_give_c_times_the_temperature(c):
    z, true = made_up(6)
    assert fit_temperature(c * z, true) == pytest.approx(c * fit_temperature(z, true), rel=1e-9)


def test_adding_a_constant_to_the_logits_of_a_text_changes_nothing():
    z, true = made_up(7)
    moved = z + np.linspace(-900, 900, len(z))[:, None]
    assert fit_temperature(moved, true) == pytest.approx(fit_temperature(z, true), rel=1e-9)


def test_no_mistakes_have_a_finite_optimum():
    """If all margins are m, softmax(m / T) is (N + 1) / (N + 2) for m / T = log(N + 1)."""
    true = np.array([0, 1] * 25)
    z = np.where(true[:, None] == np.arange(2), 4.0, 0.0)
    assert fit_temperature(z, true) == pytest.approx(4 / np.log(51), rel=1e-9)


def test_the_lowest_and_the_highest_temperature():
    true = np.array([0, 1] * 25)
    right = np.where(true[:, None] == np.arange(2), 1.0, 0.0)
    assert fit_temperature(1e-3 * right, true) == pytest.approx(0.05)
    assert fit_temperature(1e3 * right, true) == pytest.approx(20)
    assert fit_temperature(-right, true) == pytest.approx(
        20
    )  # all predictions are wrong, so the highest temperature is best
    assert fit_temperature(np.full((50, 2), 3.0), true) == 1.0


# --- invalid arguments ---


@pytest.mark.parametrize("score", [calibration, fit_temperature])
@pytest.mark.parametrize(
    ("scores", "true", "said"),
    [
        (np.zeros((0, 2)), [], "no labelled texts"),
        (np.eye(2), [0], "must be"),
        (np.ones(2), [0, 0], "must be"),
        (np.eye(2), [0, 2], "from 0 to 1"),
        (np.eye(2), [-1, 0], "from 0 to 1"),
    ],
)
def test_what_does_not_fit(score, scores, true, said):
    with pytest.raises(DataError, match=said):
        score(scores, np.array(true, dtype=int))


def test_no_bins_and_no_numbers():
    with pytest.raises(UsageError, match="n_bins"):
        calibration(np.eye(2), np.array([0, 1]), 0)
    for wrong in (np.nan, -np.inf):
        with pytest.raises(DataError, match="finite"):
            fit_temperature(np.array([[wrong, 0.0]]), np.array([0]))


P_SPAM = np.array([0.99, 0.95, 0.9, 0.8, 0.6, 0.5, 0.2, 0.1, 0.05, 0.01])
IS_SPAM = np.array([1, 1, 0, 1, 1, 0, 0, 1, 0, 0]).astype(bool)  # ham: 0.9 0.5 0.2 0.05 0.01


# --- thresholds on the validation set ---


@pytest.mark.parametrize(
    ("allowed", "threshold"),
    [
        (0, (0.9 + 0.95) / 2),
        (199, (0.9 + 0.95) / 2),
        (200, (0.5 + 0.6) / 2),
        (400, (0.2 + 0.5) / 2),
        (600, (0.05 + 0.1) / 2),
        (999, (0.01 + 0.05) / 2),
        (1000, 0.0),
    ],
)
def test_between_two_neighbours(allowed, threshold):
    assert choose_threshold(P_SPAM, IS_SPAM, allowed) == pytest.approx(threshold)


@pytest.mark.parametrize("digits", [1, 2, 9])  # with one digit, many probabilities are equal
@pytest.mark.parametrize("allowed", [0, 5, 10, 100, 500])
def test_every_other_threshold_is_worse(digits, allowed):
    rng = np.random.default_rng(digits)
    for _ in range(20):
        is_positive = rng.random(200) < 0.3
        p = np.where(is_positive, rng.beta(4, 2, 200), rng.beta(2, 4, 200)).round(digits)
        t = choose_threshold(p, is_positive, allowed)
        false_positives = 1000 * (p[~is_positive] >= t).mean()  # per 1,000 negative texts
        assert false_positives <= allowed
        lower = [s for s in p if s < t]  # each of these would give too many false positives
        assert all(1000 * (p[~is_positive] >= s).mean() > allowed for s in lower)


def test_a_negative_text_above_all_positive_ones():
    """There are no true positives on these texts, but there may be on others."""
    assert choose_threshold(np.array([0.8, 0.3]), np.array([False, True]), 0) == pytest.approx(0.9)
    t = choose_threshold(np.array([1.0, 0.3]), np.array([False, True]), 0)
    assert t == NEVER and not (np.array([1.0, 0.3]) >= t).any()
    assert choose_threshold(np.array([1.0, 0.3, 0.2]), np.array([False, True, False]), 500) < 0.3


def by_hand(true: np.ndarray, predicted: np.ndarray) -> float:
    hits = (true & predicted).sum()
    if not hits:
        return 0.0
    precision, recall = hits / predicted.sum(), hits / true.sum()
    return 2 / (1 / precision + 1 / recall)


@pytest.mark.parametrize("digits", [1, 2, 9])  # with one digit, many probabilities are equal
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])  # below 1, most probabilities are below 0.5
def test_no_other_threshold_has_a_higher_f1(digits, shift):
    """All thresholds are tried; F1 is the harmonic mean, and scikit-learn's for the chosen one."""
    rng = np.random.default_rng(digits)
    for _ in range(5):
        is_positive = rng.random(30) < 0.3
        is_positive[0] = True
        odds = np.where(is_positive, 2.0, 0.7) * rng.gamma(1, size=30) * shift
        p = (odds / (1 + odds)).round(digits)
        t = best_f1_threshold(p, is_positive)
        values = [0.0, *sorted({*p.tolist()} - {0.0})]
        middles = [(low + high) / 2 for low, high in itertools.pairwise(values)]
        tried = {s: by_hand(is_positive, p > s) for s in (0.5, *middles)}
        best = max(tried.values())
        assert best == max(by_hand(is_positive, p > s) for s in (0, *p))
        assert f1_score(is_positive, p > t) == pytest.approx(best)
        nearest = min(abs(s - 0.5) for s, f1 in tried.items() if f1 == pytest.approx(best))
        assert tried[t] == pytest.approx(best) and abs(t - 0.5) == pytest.approx(nearest)


def test_thresholds_of_labels():
    positive = np.array([True, False, True, False])
    for p, threshold in [
        ([0.3, 0.1, 0.9, 0.2], 0.25),
        ([0.7, 0.6, 0.9, 0.1], 0.65),
        ([0.7, 0.4, 0.9, 0.1], 0.5),  # no error at 0.5
        ([0.2, 0.2, 0.2, 0.2], 0.1),  # nothing distinguishes the texts
        ([1.0, 1.0, 1.0, 1.0], 0.5),
    ]:
        assert best_f1_threshold(np.array(p), positive) == pytest.approx(threshold)
    assert best_f1_threshold(np.array([0.9, 0.8]), np.array([False, False])) == 0.5
    assert best_f1_threshold(np.array([0.1, 0.2]), np.array([True, True])) == pytest.approx(0.05)
    with pytest.raises(DataError, match="bool"):
        best_f1_threshold(np.array([0.9, 0.8]), np.array([0, 1]))


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 1e-16])
def test_a_threshold_can_be_printed_and_read_back(distance):
    """Even for probabilities that are close together, reading it back gives the same number."""
    rng = np.random.default_rng(5)
    is_positive = np.array([False, True])
    for _ in range(200):
        good = rng.choice([rng.random(), 1 - distance * rng.random(), distance * rng.random()])
        p = np.array([good, min(1.0, good + distance * rng.random())])
        t = choose_threshold(p, is_positive, 0)
        shown = format_threshold(t)
        assert shown == "never" and good == 1 or float(shown) == t > good
        above = p[1] if p[1] > good else 1.0
        assert t == NEVER or t <= above and abs(t - (good + above) / 2) <= max(1e-6, distance)
        if above - good > 2e-6:
            assert len(shown) <= 8  # six decimals
    assert (
        choose_threshold(np.array([0.1, 0.2]), is_positive, 0) == 0.15
    )  # because it is 0.15000000000000002 as a float


def test_probabilities_without_a_float_between_them():
    """Confident classifiers predict the largest float below 1."""
    below = np.nextafter(1, 0)
    for p in ([below, 1.0], [np.nextafter(below, 0), below], [below, 0.5]):
        t = choose_threshold(np.array(p), np.array([False, True]), 0)
        assert p[0] < t <= 1


@pytest.mark.parametrize(
    ("probabilities", "is_positive", "said"),
    [
        ([0.5], [True], "needs negative texts"),
        ([], [], "needs negative texts"),
        ([0.5], [True, False], "must be"),
        ([1.5], [False], "from 0 to 1"),
        ([np.nan], [False], "from 0 to 1"),
    ],
)
def test_probabilities_that_give_no_threshold(probabilities, is_positive, said):
    with pytest.raises(DataError, match=said):
        choose_threshold(np.array(probabilities, dtype=float), np.array(is_positive, dtype=bool), 5)


def test_invalid_settings_and_types():
    for wrong in (-1, 1001, np.nan):
        with pytest.raises(UsageError, match="allowed_per_1000"):
            choose_threshold(P_SPAM, IS_SPAM, wrong)
    with pytest.raises(DataError, match="is_positive .* bool, not int64"):
        choose_threshold(P_SPAM, IS_SPAM.astype(int), 5)


# --- thresholds on the test set ---


def test_counts():
    found = at_threshold(P_SPAM, IS_SPAM, "spam", 0.5)
    expected = stats.beta.ppf(0.95, 3, 3)  # 2 of 5
    assert found == AtThreshold("spam", 0.5, 2, 5, 4, 5, pytest.approx(expected))
    assert at_threshold(P_SPAM, IS_SPAM, "spam", NEVER).true_positives == 0
    everything = at_threshold(P_SPAM, IS_SPAM, "spam", 0.0)
    assert (everything.false_positives, everything.true_positives) == (5, 5)
    assert everything.false_positive_rate_bound == 1.0
    assert type(found.false_positives) is type(found.negatives) is int


def bound(count: int, total: int) -> float:
    """Compute the upper bound of the false positive rate.

    There are `count` false positives among `total` negative texts.
    """
    probabilities = np.where(np.arange(total) < count, 0.9, 0.1)
    at = at_threshold(probabilities, np.zeros(total, dtype=bool), "spam", 0.5)
    assert (at.false_positives, at.negatives) == (count, total)
    return at.false_positive_rate_bound


@pytest.mark.parametrize(
    ("count", "total"), [(0, 1), (0, 300), (1, 2), (1, 1000), (3, 10), (29, 30), (500, 1000)]
)
def test_at_the_bound_so_few_false_positives_have_a_probability_of_5_percent(count, total):
    assert stats.binom.cdf(count, total, bound(count, total)) == pytest.approx(0.05, rel=1e-6)
    assert type(bound(count, total)) is float


def test_the_ends_of_the_bound():
    assert bound(0, 300) == pytest.approx(3 / 300, rel=0.01)  # the rule of three
    assert bound(4, 4) == bound(0, 0) == 1.0
    # tables of discovery sampling give 59 and 299
    assert bound(0, 59) < 0.05 < bound(0, 58)
    assert bound(0, 299) < 0.01 < bound(0, 298)


@pytest.mark.parametrize(
    ("threshold", "written"),
    [
        (0.0, "0.0000"),
        (6e-6, "0.000006"),
        (0.0001, "0.0001"),
        (0.85, "0.8500"),
        (0.9998, "0.9998"),
        (0.999998, "0.999998"),
        (0.92504, "0.92504"),
        (1.0, "1.0000"),
        (1 / 3, "0.3333333333333333"),
        (NEVER, "never"),
    ],
)
def test_thresholds_near_the_ends_can_be_read(threshold, written):
    assert format_threshold(threshold) == written


# --- costs ---


def test_the_threshold_of_a_cost_has_the_lowest_expected_cost():
    """For 1,000 texts with calibrated probabilities, no other threshold costs less."""
    p = np.random.default_rng(0).random(1000)
    for cost in (0.25, 1.0, 9.0):
        t = at_cost(p, np.ones(1000, dtype=bool), "spam", cost).threshold
        assert t == pytest.approx(cost / (1 + cost))

        def expected(threshold, cost=cost):
            return np.where(p >= threshold, cost * (1 - p), p).sum()

        assert all(expected(t) <= expected(other) for other in np.linspace(0, 1, 201))


def test_the_mean_cost_by_hand():
    """At 0.9, two spam texts and one ham text get the label, and three spam texts do not."""
    found = at_cost(P_SPAM, IS_SPAM, "spam", 9.0)
    assert (found.threshold, found.false_positives, found.true_positives) == (0.9, 1, 2)
    assert found.mean_cost == pytest.approx((9 + 3) / 10) and found.false_positive_cost == 9.0


@pytest.mark.parametrize("cost", [0.0, -1.0, math.inf, math.nan])
def test_what_is_not_a_cost(cost):
    with pytest.raises(UsageError, match=f"cost .* {cost}"):
        at_cost(P_SPAM, IS_SPAM, "spam", cost)


# --- the weights of several classifiers ---


def two_opinions(seed: int, N: int = 400, K: int = 3) -> tuple[list[np.ndarray], np.ndarray]:
    """Two noisy readings of the same logits, and classes that were drawn from these."""
    z, true = made_up(seed, N=N, K=K, sharpness=1.0)
    rng = np.random.default_rng(seed + 100)
    return [z + rng.normal(size=z.shape), z + 2 * rng.normal(size=z.shape)], true


@pytest.mark.parametrize("seed", [0, 1])
def test_the_weights_minimise_the_loss(seed):
    logits, true = two_opinions(seed)
    expected = minimize(
        lambda w: smoothed_loss(w[0] * logits[0] + w[1] * logits[1], true, 1.0),
        [0.5, 0.1],
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-13},
    )
    found = fit_weights(logits, true)
    assert found == pytest.approx(expected.x, abs=1e-5)
    total = found[0] * logits[0] + found[1] * logits[1]
    assert fit_temperature(total, true) == pytest.approx(1, abs=1e-4)


def test_the_weight_of_one_classifier_is_its_inverse_temperature():
    z, true = made_up(8, sharpness=3.0)
    assert fit_weights([z], true) == pytest.approx([1 / fit_temperature(z, true)], rel=1e-4)


def test_weights_are_bounded_and_finite():
    true = np.array([0, 1] * 25)
    right = np.where(true[:, None] == np.arange(2), 4.0, 0.0)
    assert np.isfinite(fit_weights([right, right], true)).all()
    assert fit_weights([1e-3 * right, -right], true) == pytest.approx([20, 0.05])
    assert fit_weights([1e-3 * right], true) == pytest.approx([20])
    assert fit_weights([0 * right], true) == pytest.approx([1])


@pytest.mark.parametrize(
    ("logits", "true"),
    [
        (np.zeros((0, 2)), np.zeros(0, int)),
        (np.zeros((3, 2)), np.array([0, 1])),
        (np.full((2, 2), np.nan), np.array([0, 1])),
        (np.zeros((2, 2)), np.array([0, 2])),
    ],
)
def test_weights_need_finite_logits_of_labelled_texts(logits, true):
    with pytest.raises(DataError):
        fit_weights([logits], true)
