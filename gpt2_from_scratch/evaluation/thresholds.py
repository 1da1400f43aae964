"""From which probability on a text is called spam: so that hardly a good one is lost, or at least cost.

N texts, K classes. "Spam" stands for the class that is looked for, "good" for all others.
"""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

import numpy as np

from gpt2_from_scratch.errors import DataError, UsageError

NEVER = 2.0  # a threshold that no probability reaches
HALVINGS = 60  # of the range from 0 to 1
STEP = Decimal("0.000001")  # of thresholds that are chosen: as a person types them


@dataclass(frozen=True)
class AtThreshold:
    """What calling texts `label` from `threshold` on does."""

    label: str
    threshold: float
    lost: int  # good texts that are called it
    good: int  # texts that are not of it
    caught: int  # texts of it that are called it
    wanted: int  # texts that are of it
    lost_at_most: float  # 95 % sure upper bound of the share of good texts that are lost
    asked: float | None = None  # of 1,000 good texts, how many the threshold was to lose at most


def choose_threshold(shares: np.ndarray, is_it: np.ndarray, lose_at_most: float) -> float:
    """A threshold that loses at most so many of 1,000 good texts of the validation part.

    shares (N,): each text's probability of being spam; is_it (N,), bool: whether it is. A text is
    called spam where its share is the threshold or above. The threshold lies midway between two
    neighbouring shares, the likeliest good one that must stay below and the next above it (1 where
    there is none), rounded up to six decimals: of shares that are closer than that, above both. 0
    where all may be lost; NEVER, above 1, where a good text has 1 and may not be lost. With fewer
    than 1,000 good texts the number is rounded down: 5 of 1,000 are 0 of 150. Raises DataError
    where there is no good text, UsageError for a number not from 0 to 1,000.
    """
    _check(shares, is_it)
    if not 0 <= lose_at_most <= 1000:
        raise UsageError(f"lose_at_most = {lose_at_most} must be from 0 to 1,000 good texts")
    good = np.sort(shares[~is_it])[::-1]  # the likeliest spam first
    if not len(good):
        raise DataError("a threshold needs texts that are not of the class, and there is none")
    may_lose = int(lose_at_most * len(good) / 1000 + 1e-9)
    if may_lose >= len(good):
        return 0.0
    kept = float(good[may_lose])  # the first good text that must stay below
    if kept >= 1:
        return NEVER
    above = float(shares[shares > kept].min(initial=1.0))
    middle = (Decimal(repr(kept)) + Decimal(repr(above))) / 2  # 0.85 of 0.8 and 0.9, exactly
    return float(middle.quantize(STEP, ROUND_CEILING))  # up: what must stay below does


def at_threshold(
    shares: np.ndarray, is_it: np.ndarray, label: str, threshold: float
) -> AtThreshold:
    """Count on the test part what a threshold chosen elsewhere does: shares (N,), is_it (N,) bool."""
    _check(shares, is_it)
    called = shares >= threshold
    lost, good = int((called & ~is_it).sum()), int((~is_it).sum())
    caught, wanted = int((called & is_it).sum()), int(is_it.sum())
    return AtThreshold(label, threshold, lost, good, caught, wanted, upper_bound(lost, good))


def upper_bound(count: int, total: int, level: float = 0.95) -> float:
    """The share that is not exceeded, so sure as `level` says, after `count` of `total`.

    One-sided, exact: the share at which `count` or fewer would come only 1 - level of the time. For
    0 of n: 1 - 0.05 ** (1 / n), near 3 / n. 1 where nothing was counted. Source: Clopper & Pearson
    1934.
    """
    if count >= total:
        return 1.0
    if count == 0:
        return 1 - (1 - level) ** (1 / total)
    i = np.arange(count + 1)
    steps = np.log((total - i[1:] + 1) / i[1:])
    log_ways = np.concatenate([[0.0], steps.cumsum()])  # (count + 1,): total over i
    low, high = count / total, 1.0
    for _ in range(HALVINGS):
        p = (low + high) / 2
        tail = np.exp(log_ways + i * np.log(p) + (total - i) * np.log1p(-p)).sum()
        low, high = (p, high) if tail > 1 - level else (low, p)
    return (low + high) / 2


def format_threshold(threshold: float) -> str:
    """The very number, as `predict --threshold` takes it: four digits behind the point, or more."""
    if threshold >= NEVER:
        return "never"
    whole, _, digits = f"{Decimal(repr(threshold)):f}".partition(".")
    return f"{whole}.{digits:0<4}"


def cheapest(probabilities: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The class with the least expected cost: (N, K), costs (K, K) -> (N,) int.

    costs[true][called]: what it costs to call a text of one class another. The probabilities must
    be calibrated for it. Of equals the first. Raises UsageError for costs that do not fit. Source:
    Elkan 2001, The foundations of cost-sensitive learning.
    """
    _check_costs(costs, probabilities.shape[1])
    return (probabilities @ costs).argmin(axis=1)


def cost_of(true: np.ndarray, called: np.ndarray, costs: np.ndarray) -> float:
    """The mean cost of a text: true (N,), called (N,), costs (K, K).

    Raises DataError for no texts, UsageError for costs that do not fit.
    """
    if not len(true) or true.shape != called.shape:
        raise DataError(
            f"true {true.shape} and called {called.shape} must be the same texts, one or more"
        )
    _check_costs(costs, int(max(true.max(), called.max())) + 1, or_more=True)
    return float(costs[true, called].mean())


def _check(shares: np.ndarray, is_it: np.ndarray) -> None:
    if shares.shape != is_it.shape or shares.ndim != 1:
        raise DataError(f"shares {shares.shape} and is_it {is_it.shape} must both be (N,)")
    if is_it.dtype != bool:  # ~ of whole numbers is something else
        raise DataError(f"is_it must be true or false, not {is_it.dtype}")
    if not ((shares >= 0) & (shares <= 1)).all():
        raise DataError("shares must be from 0 to 1")


def _check_costs(costs: np.ndarray, K: int, *, or_more: bool = False) -> None:
    square = costs.ndim == 2 and costs.shape[0] == costs.shape[1]
    if not square or not (costs.shape[0] == K or or_more and costs.shape[0] > K):
        raise UsageError(
            f"costs {costs.shape} must be ({K}, {K}): a row a true class, a column a called one"
        )
    if not np.isfinite(costs).all():
        raise UsageError("costs must be numbers")
