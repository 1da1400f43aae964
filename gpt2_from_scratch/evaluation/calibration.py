"""Calibrate probabilities, and choose thresholds for predicting the positive class.

The positive class is the one to detect, such as spam. All other classes together are negative.

Shapes: N texts, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt2_from_scratch.errors import DataError, UsageError

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
NEVER = 2.0  # a threshold above every probability
DECIMALS = 6  # number of decimals of a chosen threshold


# --- Calibration ---


@dataclass(frozen=True)
class Bin:
    """Texts whose highest probability is above `low` and at most `high`."""

    low: float
    high: float
    count: int
    confidence: float | None  # mean probability of the most probable class; None if no texts
    accuracy: float | None  # proportion of correct predictions; None if no texts


@dataclass(frozen=True)
class Calibration:
    """Three measures of how wrong probabilities are. For each of them, 0 is best."""

    brier: float
    log_loss: float  # in nats
    ece: float  # expected calibration error
    bins: list[Bin]  # including empty bins


def calibration(probabilities: np.ndarray, true: np.ndarray, n_bins: int = 10) -> Calibration:
    """Compare probabilities (N, K) with the true classes (N,), int.

    The Brier score is the sum of the squared errors of a text's K probabilities (0 to 2), averaged
    over texts. ECE uses only the most probable class: it is the absolute difference between
    confidence and accuracy in a bin, averaged over bins of equal width and weighted by their number
    of texts. Raises DataError if there are no texts or if the shapes do not fit, and UsageError if
    there are no bins. Sources: Brier 1950; Guo et al. 2017.
    """
    from sklearn.metrics import brier_score_loss, log_loss

    _check_scores(probabilities, true)
    if n_bins < 1:
        raise UsageError(f"n_bins = {n_bins} must be at least 1")
    K = list(range(probabilities.shape[1]))
    brier = brier_score_loss(true, probabilities, labels=K, scale_by_half=False)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == true  # (N,)
    edges = np.linspace(0, 1, n_bins + 1)
    # an edge belongs to the bin below it
    place = np.searchsorted(edges[1:-1], confidence)  # (N,)
    bins = []
    for n, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        here = place == n
        count = int(here.sum())
        means = (float(x[here].mean()) if count else None for x in (confidence, correct))
        bins.append(Bin(low, high, count, *means))
    gaps = (
        abs(one.confidence - one.accuracy) * one.count
        for one in bins
        if one.confidence is not None and one.accuracy is not None
    )
    return Calibration(
        brier=float(brier),
        log_loss=float(log_loss(true, probabilities, labels=K)),
        ece=sum(gaps) / len(true),
        bins=bins,
    )


def fit_temperature(logits: np.ndarray, true: np.ndarray) -> float:
    """Find the temperature that calibrates logits best.

    This is the T for which softmax(logits / T) fits the true classes best. Use it on a validation
    set with logits (N, K) and true classes (N,), int. A temperature does not change the most
    probable class. The targets are (N + 1) / (N + K) and 1 / (N + K) instead of 1 and 0 (Laplace's
    rule). Otherwise a validation set without mistakes would give T = 0. T is between 0.05 and 20.
    It is 1 if each text's logits are all equal. Raises DataError if there are no texts, if the
    shapes do not fit, or if logits are not finite. Sources: Guo et al. 2017; Platt 1999.
    """
    from scipy.optimize import brentq
    from scipy.special import softmax

    _check_scores(logits, true)
    if not np.isfinite(logits).all():
        raise DataError("logits must be finite to fit a temperature")
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)  # (N, K), at most 0, so that the slope is exact
    if not z.any():
        return 1.0
    targets = _laplace(true, z.shape[1])

    def slope(inverse: float) -> float:
        """Compute the slope of the cross-entropy of softmax(z * inverse).

        The cross-entropy is a convex function of `inverse`.
        """
        return float(((softmax(z * inverse, axis=1) - targets) * z).sum())

    if slope(1 / HIGHEST_TEMPERATURE) >= 0:
        return HIGHEST_TEMPERATURE
    if slope(1 / LOWEST_TEMPERATURE) <= 0:
        return LOWEST_TEMPERATURE
    # find the root of the slope, because minimising the loss itself gives only half as many digits
    return 1 / brentq(slope, 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE, xtol=1e-15)


def fit_weights(logits: Sequence[np.ndarray], true: np.ndarray) -> np.ndarray:
    """Find the weights with which the sum of several classifiers' logits is calibrated best.

    The softmax of the weighted sum is a log-linear combination of the classifiers' probabilities.
    The weights have the smallest cross-entropy with the true classes, which is a convex function of
    them. The targets, the bounds and the errors are those of `fit_temperature`.

    Args:
        logits: For each of M classifiers, logits (N, K) for a validation set.
        true: The true classes (N,), int.

    Returns:
        The weights (M,), each from 0.05 to 20.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    for each in logits:
        _check_scores(each, true)
        if not np.isfinite(each).all():
            raise DataError("logits must be finite to fit weights")
    z = np.stack([each - each.max(axis=1, keepdims=True) for each in logits])  # (M, N, K)
    targets = _laplace(true, z.shape[2])

    def loss_and_slopes(weights: np.ndarray) -> tuple[float, np.ndarray]:
        total = np.tensordot(weights, z, axes=1)  # (N, K)
        errors = softmax(total, axis=1) - targets
        loss = -(targets * log_softmax(total, axis=1)).sum() / len(true)
        return loss, (errors * z).sum(axis=(1, 2)) / len(true)

    bounds = [(1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE)] * len(z)
    exact = {"ftol": 0, "gtol": 1e-10}
    return minimize(
        loss_and_slopes, np.ones(len(z)), jac=True, method="L-BFGS-B", bounds=bounds, options=exact
    ).x


def _laplace(true: np.ndarray, K: int) -> np.ndarray:
    """Targets (N, K) by Laplace's rule: (N + 1) / (N + K) for the true class, 1 / (N + K) else."""
    N = len(true)
    return (1 + N * (true[:, None] == np.arange(K))) / (N + K)


def _check_scores(scores: np.ndarray, true: np.ndarray) -> None:
    if not len(true):
        raise DataError("there are no labelled texts for the calibration")
    if scores.ndim != 2 or true.shape != scores.shape[:1]:
        raise DataError(f"scores {scores.shape} must be (N, K), and true {true.shape} (N,)")
    if not 0 <= true.min() <= true.max() < scores.shape[1]:
        raise DataError(f"class numbers must be from 0 to {scores.shape[1] - 1}")


# --- Decision thresholds ---


@dataclass(frozen=True)
class AtThreshold:
    """Counts of predictions with a threshold.

    A text gets `label` if its probability is at least `threshold`.
    """

    label: str  # the positive class
    threshold: float
    false_positives: int  # negative texts that get the label
    negatives: int
    true_positives: int  # positive texts that get the label
    positives: int
    false_positive_rate_bound: float  # 95% upper bound of the false positive rate
    allowed_per_1000: float | None = None  # allowed false positives per 1,000 negative texts
    false_positive_cost: float | None = None  # if the threshold is for a cost
    mean_cost: float | None = None  # cost per text, if a false negative costs 1


def choose_threshold(
    probabilities: np.ndarray, is_positive: np.ndarray, allowed_per_1000: float
) -> float:
    """Choose a threshold for an allowed rate of false positives.

    A text is predicted as positive if its probability is at least the threshold. The allowed number
    of false positives is rounded down, so 5 per 1,000 are 0 of 150. If negative texts are sorted by
    probability, highest first, the first one beyond the allowed number must stay below the threshold.
    The threshold is halfway between the probability of that text and the next higher probability of
    any text (1 if there is none), rounded to six decimals. If the two are too close together for
    that, it is the higher one.

    Args:
        probabilities: each text's probability of the positive class on a validation set, (N,).
        is_positive: whether that is the true class of each text, (N,) bool.
        allowed_per_1000: allowed false positives per 1,000 negative texts.

    Returns:
        The threshold. It is 0 if all negative texts may be false positives, and NEVER if the text
        that must stay below it has probability 1.

    Raises:
        DataError: there are no negative texts.
        UsageError: `allowed_per_1000` is not between 0 and 1,000.
    """
    _check_probabilities(probabilities, is_positive)
    if not 0 <= allowed_per_1000 <= 1000:
        raise UsageError(f"allowed_per_1000 = {allowed_per_1000} must be from 0 to 1,000")
    negatives = np.sort(probabilities[~is_positive])[::-1]  # highest first
    if not len(negatives):
        raise DataError("a threshold needs negative texts, but all texts are of the positive class")
    allowed = int(allowed_per_1000 * len(negatives) / 1000 + 1e-9)
    if allowed >= len(negatives):
        return 0.0
    below = float(negatives[allowed])  # must stay below the threshold
    if below >= 1:
        return NEVER
    above = float(probabilities[probabilities > below].min(initial=1.0))
    middle = round((below + above) / 2, DECIMALS)
    return middle if below < middle <= above else above


def best_f1_threshold(probabilities: np.ndarray, is_positive: np.ndarray) -> float:
    """Choose the threshold with the highest F1, from 0.5 and the middles between probabilities.

    A text is predicted as positive if its probability is above the threshold. Of several thresholds
    with the highest F1, the one nearest to 0.5 is chosen.

    Args:
        probabilities: each text's probability of the positive class on a validation set, (N,).
        is_positive: whether that is the true class of each text, (N,) bool.

    Returns:
        The threshold, between 0 and 1. It is 0.5 if no text is of the positive class.

    Raises:
        DataError: the shapes or types do not fit, or a probability is not between 0 and 1.
    """
    _check_probabilities(probabilities, is_positive)
    if not is_positive.any():
        return 0.5
    every, positives = np.sort(probabilities), np.sort(probabilities[is_positive])
    limits = np.unique([0.0, *every])
    middles = (limits[:-1] + limits[1:]) / 2
    candidates = np.array([0.5, *middles[(middles > 0) & (middles < 1)]])
    predicted = len(every) - np.searchsorted(every, candidates, side="right")
    correct = len(positives) - np.searchsorted(positives, candidates, side="right")
    f1 = 2 * correct / (predicted + len(positives))
    best = candidates[f1 == f1.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def at_threshold(
    probabilities: np.ndarray, is_positive: np.ndarray, label: str, threshold: float
) -> AtThreshold:
    """Count the predictions that a threshold gives on a test set.

    Args:
        probabilities: each text's probability of the positive class, (N,).
        is_positive: whether that is the true class of each text, (N,) bool.
        label: name of the positive class.
        threshold: a threshold that was not chosen on these texts.

    Returns:
        The counts, and an upper bound of the false positive rate.

    Raises:
        DataError: the shapes or types do not fit, or a probability is not between 0 and 1.
    """
    from scipy.stats import binomtest

    _check_probabilities(probabilities, is_positive)
    predicted = probabilities >= threshold
    negatives, false_positives = int((~is_positive).sum()), int((predicted & ~is_positive).sum())
    bound = 1.0
    if negatives:  # exact one-sided bound (Clopper & Pearson 1934)
        test = binomtest(false_positives, negatives, alternative="less")
        bound = float(test.proportion_ci(0.95, "exact").high)
    return AtThreshold(
        label,
        threshold,
        false_positives,
        negatives,
        int((predicted & is_positive).sum()),
        int(is_positive.sum()),
        bound,
    )


def at_cost(
    probabilities: np.ndarray, is_positive: np.ndarray, label: str, cost: float
) -> AtThreshold:
    """Count the predictions that the threshold with the lowest expected cost gives.

    If the probabilities are calibrated, that threshold is cost / (1 + cost). Source: Elkan 2001, "The
    foundations of cost-sensitive learning".

    Args:
        probabilities: each text's probability of the positive class, (N,).
        is_positive: whether that is the true class of each text, (N,) bool.
        label: name of the positive class.
        cost: the cost of a false positive, relative to a false negative (which costs 1).

    Returns:
        The counts and the mean cost per text.

    Raises:
        UsageError: the cost is not a finite number above 0.
        DataError: the shapes or types do not fit, or a probability is not between 0 and 1.
    """
    if not 0 < cost < float("inf"):
        raise UsageError(
            f"the cost of a false positive must be a finite number above 0, not {cost}"
        )
    at = at_threshold(probabilities, is_positive, label, cost / (1 + cost))
    total = cost * at.false_positives + at.positives - at.true_positives
    return replace(at, false_positive_cost=cost, mean_cost=total / len(probabilities))


def format_threshold(threshold: float) -> str:
    """Format a threshold exactly, for `predict --threshold`, with at least four decimals."""
    if threshold >= NEVER:
        return "never"
    return np.format_float_positional(threshold, min_digits=4)


def _check_probabilities(probabilities: np.ndarray, is_positive: np.ndarray) -> None:
    if probabilities.shape != is_positive.shape or probabilities.ndim != 1:
        raise DataError(
            f"probabilities {probabilities.shape} and is_positive {is_positive.shape} must be (N,)"
        )
    if is_positive.dtype != bool:  # for integers, ~ does not mean "not"
        raise DataError(f"is_positive must be of type bool, not {is_positive.dtype}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise DataError("probabilities must be from 0 to 1")
