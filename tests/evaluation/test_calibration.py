"""Calibration against scikit-learn, scipy's minimiser, published numbers and hand-made bins."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.calibration import Bin, calibration, fit_temperature


def made_up(seed: int, N: int = 300, K: int = 3, sharpness: float = 2.0):
    """Logits (N, K) and classes (N,) drawn by them: T = `sharpness` calibrates these logits."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(N, K)) * 2
    p = softmax(z, axis=1)
    true = np.array([rng.choice(K, p=row) for row in p])
    return z * sharpness, true


# --- scores ---


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("K", [2, 3, 7])
def test_scikit_learns_scores(seed, K):
    z, true = made_up(seed, K=K)
    p = softmax(z, axis=1)
    found = calibration(p, true)
    assert found.log_loss == pytest.approx(log_loss(true, p, labels=range(K)), rel=1e-12)
    # the sum over classes of "is it class k?"
    one_by_one = [brier_score_loss(true == k, p[:, k]) for k in range(K)]
    assert found.brier == pytest.approx(sum(one_by_one), rel=1e-12)
    if K == 2:
        assert found.brier == pytest.approx(2 * brier_score_loss(true, p[:, 1]), rel=1e-12)


def test_briers_own_example():
    """Brier 1950, Monthly Weather Review 78:1, table 1: ten forecasts of rain, P = 0.19."""
    rain = np.array([0.7, 0.9, 0.8, 0.4, 0.2, 0, 0, 0, 0, 0.1])
    rained = np.array([0, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    found = calibration(np.stack([1 - rain, rain], axis=1), rained)
    assert found.brier == pytest.approx(0.19)


def test_a_text_that_was_impossible():
    """The logarithm of 0 is avoided as scikit-learn avoids it."""
    p, true = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), np.array([1, 0, 1])
    found = calibration(p, true).log_loss
    assert 12 < found < 13 and found == pytest.approx(log_loss(true, p), rel=1e-12)


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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_expected_calibration_error_text_by_text(seed, n_bins):
    """As Guo et al. write it: bin m holds what lies in ((m - 1) / M, m / M]."""
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
def test_on_an_edge_is_in_the_bin_below(edge):
    found = calibration(np.array([[edge, 1 - edge]]), np.array([0]))
    assert [round(b.high, 9) for b in found.bins if b.count] == [edge]


def test_perfect_and_plain():
    found = calibration(np.eye(3)[[0, 2, 1]], np.array([0, 2, 1]), n_bins=2)
    assert (found.brier, found.ece) == (0.0, 0.0) and 0 <= found.log_loss < 1e-15
    assert found.bins == [Bin(0.0, 0.5, 0, None, None), Bin(0.5, 1.0, 3, 1.0, 1.0)]
    assert {type(x) for x in (found.brier, found.log_loss, found.ece)} == {float}  # for json
    assert type(found.bins[1].count) is int and type(found.bins[1].accuracy) is float


# --- temperature ---


def smoothed_loss(z: np.ndarray, true: np.ndarray, T: float) -> float:
    """The loss that is minimised, written out with scipy's softmax and a loop."""
    N, K = z.shape
    total = 0.0
    for row, right in zip(log_softmax(z / T, axis=1), true, strict=True):
        for k in range(K):
            total -= (N + 1 if k == right else 1) / (N + K) * row[k]
    return total / N


@pytest.mark.parametrize(
    ("seed", "K", "sharpness"), [(0, 2, 0.5), (1, 2, 3.0), (2, 3, 1.0), (3, 5, 6.0)]
)
def test_the_minimum_is_scipys(seed, K, sharpness):
    z, true = made_up(seed, N=200, K=K, sharpness=sharpness)
    expected = minimize_scalar(
        lambda T: smoothed_loss(z, true, T),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(z, true) == pytest.approx(expected.x, rel=1e-6)


def test_it_finds_the_temperature_that_was_put_in():
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


def test_one_number_for_all_classes_of_a_text_changes_nothing():
    z, true = made_up(7)
    moved = z + np.linspace(-900, 900, len(z))[:, None]
    assert fit_temperature(moved, true) == pytest.approx(fit_temperature(z, true), rel=1e-9)


def test_all_right_has_a_finite_optimum():
    """All margins m: softmax(m / T) is (N + 1) / (N + 2) where m / T = log(N + 1)."""
    true = np.array([0, 1] * 25)
    z = np.where(true[:, None] == np.arange(2), 4.0, 0.0)
    assert fit_temperature(z, true) == pytest.approx(4 / np.log(51), rel=1e-9)


def test_the_ends():
    true = np.array([0, 1] * 25)
    right = np.where(true[:, None] == np.arange(2), 1.0, 0.0)
    assert fit_temperature(1e-3 * right, true) == pytest.approx(0.05)
    assert fit_temperature(1e3 * right, true) == pytest.approx(20)
    assert fit_temperature(-right, true) == pytest.approx(
        20
    )  # all wrong: the less sure, the better
    assert fit_temperature(np.full((50, 2), 3.0), true) == 1.0


# --- what cannot be scored ---


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
