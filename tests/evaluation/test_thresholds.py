"""Thresholds tried one by one, bounds against scipy's, costs summed by hand."""

import numpy as np
import pytest
from scipy import stats

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.calibration import (
    NEVER,
    AtThreshold,
    at_threshold,
    cheapest,
    choose_threshold,
    cost_of,
    format_threshold,
    upper_bound,
)

SHARES = np.array([0.99, 0.95, 0.9, 0.8, 0.6, 0.5, 0.2, 0.1, 0.05, 0.01])
IS_IT = np.array([1, 1, 0, 1, 1, 0, 0, 1, 0, 0]).astype(bool)  # good: 0.9 0.5 0.2 0.05 0.01


# --- on the validation part ---


@pytest.mark.parametrize(
    ("lose_at_most", "threshold"),
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
def test_between_two_neighbours(lose_at_most, threshold):
    assert choose_threshold(SHARES, IS_IT, lose_at_most) == pytest.approx(threshold)


@pytest.mark.parametrize("digits", [1, 2, 9])  # with one digit many shares are equal
@pytest.mark.parametrize("lose_at_most", [0, 5, 10, 100, 500])
def test_every_other_threshold_is_worse(digits, lose_at_most):
    rng = np.random.default_rng(digits)
    for _ in range(20):
        is_it = rng.random(200) < 0.3
        shares = np.where(is_it, rng.beta(4, 2, 200), rng.beta(2, 4, 200)).round(digits)
        t = choose_threshold(shares, is_it, lose_at_most)
        lost = 1000 * (shares[~is_it] >= t).mean()
        assert lost <= lose_at_most and t not in shares
        lower = [s for s in shares if s < t]  # each would let in one share more
        assert all(1000 * (shares[~is_it] >= s).mean() > lose_at_most for s in lower)


def test_a_good_text_above_all_spam():
    """Nothing would be caught there, yet elsewhere something may lie above."""
    assert choose_threshold(np.array([0.8, 0.3]), np.array([False, True]), 0) == pytest.approx(0.9)
    t = choose_threshold(np.array([1.0, 0.3]), np.array([False, True]), 0)
    assert t == NEVER and not (np.array([1.0, 0.3]) >= t).any()
    assert choose_threshold(np.array([1.0, 0.3, 0.2]), np.array([False, True, False]), 500) < 0.3


def test_shares_with_no_number_between():
    """Sure classifiers end at the last digit before 1."""
    below = np.nextafter(1, 0)
    for shares in ([below, 1.0], [np.nextafter(below, 0), below], [below, 0.5]):
        is_it = np.array([False, True])
        t = choose_threshold(np.array(shares), is_it, 0)
        assert shares[0] < t <= 1


@pytest.mark.parametrize("wide", [1e-3, 1e-6, 1e-9, 1e-16])
def test_what_is_chosen_is_what_is_shown_and_typed(wide):
    """Shares that lie close together, anywhere: read back it is the number, and loses none."""
    rng = np.random.default_rng(5)
    is_it = np.array([False, True])
    for _ in range(200):
        good = rng.choice([rng.random(), 1 - wide * rng.random(), wide * rng.random()])
        shares = np.array([good, min(1.0, good + wide * rng.random())])
        t = choose_threshold(shares, is_it, 0)
        shown = format_threshold(t)
        assert shown == "never" and good == 1 or float(shown) == t > good
        above = shares[1] if shares[1] > good else 1.0
        assert t == NEVER or t <= 1 and len(shown) <= 8 and t < (good + above) / 2 + 1.0000001e-6
    third = np.array([0.3333332, 0.3333333])
    assert choose_threshold(third, is_it, 0) == 0.333334  # 0.33333325, and up
    assert choose_threshold(np.array([0.1, 0.2]), is_it, 0) == 0.15  # floats: 0.15000000000000002


@pytest.mark.parametrize(
    ("shares", "is_it", "said"),
    [
        ([0.5], [True], "there is none"),
        ([], [], "there is none"),
        ([0.5], [True, False], "must both"),
        ([1.5], [False], "from 0 to 1"),
        ([np.nan], [False], "from 0 to 1"),
    ],
)
def test_shares_that_choose_nothing(shares, is_it, said):
    with pytest.raises(DataError, match=said):
        choose_threshold(np.array(shares, dtype=float), np.array(is_it, dtype=bool), 5)


def test_settings_and_kinds():
    for wrong in (-1, 1001, np.nan):
        with pytest.raises(UsageError, match="lose_at_most"):
            choose_threshold(SHARES, IS_IT, wrong)
    with pytest.raises(DataError, match="true or false"):
        choose_threshold(SHARES, IS_IT.astype(int), 5)


# --- on the test part ---


def test_counts():
    found = at_threshold(SHARES, IS_IT, "spam", 0.5)
    bound = stats.beta.ppf(0.95, 3, 3)  # 2 of 5
    assert found == AtThreshold("spam", 0.5, 2, 5, 4, 5, pytest.approx(bound))
    assert at_threshold(SHARES, IS_IT, "spam", NEVER).caught == 0
    everything = at_threshold(SHARES, IS_IT, "spam", 0.0)
    assert (everything.lost, everything.caught, everything.lost_at_most) == (5, 5, 1.0)
    assert type(found.lost) is type(found.good) is int


@pytest.mark.parametrize(
    ("count", "total"),
    [
        (0, 1),
        (0, 300),
        (1, 2),
        (1, 1000),
        (3, 10),
        (29, 30),
        (40, 1000),
        (500, 1000),
        (3000, 100_000),
    ],
)
def test_the_bound_is_scipys(count, total):
    expected = stats.binomtest(count, total, alternative="less").proportion_ci(0.95, "exact").high
    assert upper_bound(count, total) == pytest.approx(expected, rel=1e-8)
    assert type(upper_bound(count, total)) is float
    # what the bound means: so few would come 5 times in 100
    assert stats.binom.cdf(count, total, upper_bound(count, total)) == pytest.approx(0.05, rel=1e-6)


def test_the_ends_of_the_bound():
    assert upper_bound(0, 300) == pytest.approx(3 / 300, rel=0.01)  # the rule of three
    assert upper_bound(4, 4) == upper_bound(0, 0) == 1.0
    assert upper_bound(0, 59) < 0.05 < upper_bound(0, 58)  # tables of discovery sampling: 59
    assert upper_bound(0, 299) < 0.01 < upper_bound(0, 298)  # and 299


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

COSTS = np.array([[0.0, 10.0, 1.0], [1.0, 0.0, 4.0], [2.0, 3.0, -1.0]])


def test_the_least_expected_cost_by_hand():
    p = np.random.default_rng(0).dirichlet(np.ones(3), size=50)
    by_hand = [
        min(range(3), key=lambda called: sum(row[true] * COSTS[true][called] for true in range(3)))
        for row in p
    ]
    assert cheapest(p, COSTS).tolist() == by_hand
    assert len(set(by_hand)) == 3


def test_equal_costs_choose_the_likeliest():
    p = np.random.default_rng(1).dirichlet(np.ones(4), size=50)
    assert (cheapest(p, 1 - np.eye(4)) == p.argmax(axis=1)).all()


def test_elkans_threshold():
    """Lost ham costs 9, missed spam 1: spam where its probability is above 9 / (9 + 1)."""
    spam = np.array([0.5, 0.89, 0.91, 0.99])
    costs = np.array([[0.0, 9.0], [1.0, 0.0]])
    assert cheapest(np.stack([1 - spam, spam], axis=1), costs).tolist() == [0, 0, 1, 1]


def test_the_mean_cost():
    true, called = np.array([0, 0, 1, 2]), np.array([1, 0, 2, 2])
    assert cost_of(true, called, COSTS) == pytest.approx((10 + 0 + 4 - 1) / 4)
    assert cost_of(true[:2], called[:2], COSTS) == 5.0  # not every class need be there


@pytest.mark.parametrize(
    "costs", [np.ones((3, 2)), np.ones((2, 2)), np.ones(3), np.full((3, 3), np.nan)]
)
def test_costs_that_do_not_fit(costs):
    with pytest.raises(UsageError, match="costs"):
        cheapest(np.full((2, 3), 1 / 3), costs)
    with pytest.raises(UsageError, match="costs"):
        cost_of(np.array([0, 1]), np.array([2, 1]), costs)


def test_no_texts_cost_nothing_that_could_be_told():
    for true, called in (([], []), ([0], [0, 1])):
        with pytest.raises(DataError, match="must be the same texts"):
            cost_of(np.array(true, dtype=int), np.array(called, dtype=int), COSTS)
