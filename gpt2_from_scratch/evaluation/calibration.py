"""Return whether probabilities are right, and from which probability on a text gets a label.

N texts, K classes. The positive class is the one that is looked for (spam); all others together
are negative.
"""

from dataclasses import dataclass, replace

import numpy as np

from gpt2_from_scratch.errors import DataError, UsageError

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
NEVER = 2.0  # a threshold that no probability reaches
DECIMALS = 6  # of a chosen threshold


# --- Calibration ---


@dataclass(frozen=True)
class Bin:
    """The texts whose most probable class has a probability above `low`, up to `high`."""

    low: float
    high: float
    count: int
    confidence: float | None  # mean probability of the most probable class; None if empty
    accuracy: float | None  # proportion of the texts of which that class is the true one


@dataclass(frozen=True)
class Calibration:
    """Errors of probabilities; 0 is best in all three."""

    brier: float
    log_loss: float  # in nats
    ece: float  # expected calibration error
    bins: list[Bin]  # empty ones included


def calibration(probabilities: np.ndarray, true: np.ndarray, n_bins: int = 10) -> Calibration:
    """Score probabilities (N, K) against the true classes (N,), int.

    Brier: the squared errors of all K probabilities of a text, summed (0 to 2); the mean over
    texts. ECE: the difference between confidence and accuracy, the mean over bins of equal width,
    weighted by their texts; of the most probable class only. Raises DataError for no texts and for
    shapes that do not fit, UsageError for no bins. Sources: Brier 1950; Guo et al. 2017.
    """
    from sklearn.metrics import brier_score_loss, log_loss

    _check_scores(probabilities, true)
    if n_bins < 1:
        raise UsageError(f"n_bins = {n_bins} must be at least 1")
    K = list(range(probabilities.shape[1]))
    brier = brier_score_loss(true, probabilities, labels=K, scale_by_half=False)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == true  # (N,)
    edges = np.linspace(0, 1, n_bins + 1)
    place = np.searchsorted(edges[1:-1], confidence)  # (N,): an edge belongs to the bin below it
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
    """Find the T for which softmax(logits / T) fits the true classes best.

    For a validation set, logits (N, K) and true (N,) int; the most probable class does not change.
    The targets are not 1 and 0 but (N + 1) / (N + K) and 1 / (N + K) (Laplace's rule), so that a
    validation set without mistakes does not give T = 0. T is from 0.05 to 20; it is 1 if each
    text's logits are equal. Raises DataError for no texts, for shapes that do not fit, and for
    logits that are not finite. Sources: Guo et al. 2017; Platt 1999.
    """
    from scipy.optimize import brentq
    from scipy.special import softmax

    _check_scores(logits, true)
    if not np.isfinite(logits).all():
        raise DataError("logits must be finite to fit a temperature to them")
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)  # (N, K): at most 0, so that the slope stays exact
    if not z.any():
        return 1.0
    N, K = z.shape
    targets = (1 + N * (true[:, None] == np.arange(K))) / (N + K)  # (N, K)

    def slope(inverse: float) -> float:
        """Of the cross-entropy of softmax(z * inverse), which is convex in 1 / T."""
        return float(((softmax(z * inverse, axis=1) - targets) * z).sum())

    if slope(1 / HIGHEST_TEMPERATURE) >= 0:
        return HIGHEST_TEMPERATURE
    if slope(1 / LOWEST_TEMPERATURE) <= 0:
        return LOWEST_TEMPERATURE
    # a root: the minimum itself is flat, and would be known to half as many digits
    return 1 / brentq(slope, 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE, xtol=1e-15)


def _check_scores(scores: np.ndarray, true: np.ndarray) -> None:
    if not len(true):
        raise DataError("there are no labelled texts to calibrate with")
    if scores.ndim != 2 or true.shape != scores.shape[:1]:
        raise DataError(f"scores {scores.shape} must be (N, K), and true {true.shape} (N,)")
    if not 0 <= true.min() <= true.max() < scores.shape[1]:
        raise DataError(f"class numbers must be from 0 to {scores.shape[1] - 1}")


# --- Decision thresholds ---


@dataclass(frozen=True)
class AtThreshold:
    """Counts when texts get `label` from the probability `threshold` on."""

    label: str
    threshold: float
    false_positives: int  # negative texts that get the label
    negatives: int
    true_positives: int  # positive texts that get the label
    positives: int
    false_positive_rate_bound: float  # 95% upper bound of the false positive rate
    allowed_per_1000: float | None = None  # false positives that the threshold was chosen for
    false_positive_cost: float | None = None  # that it is for; a false negative costs 1
    mean_cost: float | None = None  # per text, with that cost


def choose_threshold(
    probabilities: np.ndarray, is_positive: np.ndarray, allowed_per_1000: float
) -> float:
    """Choose a threshold with at most so many false positives per 1,000 negative texts.

    On a validation set: each text's probability of the positive class (N,), and whether it is
    positive (N,), bool. A text is predicted as positive if its probability is at least the
    threshold. The threshold is halfway between the highest negative probability that must stay
    below and the next higher probability (1 if there is none), rounded to six decimals; if the two
    are closer than that, it is the higher one. It is 0 if every negative text may be a false
    positive, and NEVER if a negative text that may not be one has probability 1. The number of
    false positives is rounded down: 5 per 1,000 are 0 of 150. Raises DataError without negative
    texts, UsageError for a number outside 0 to 1,000.
    """
    _check_probabilities(probabilities, is_positive)
    if not 0 <= allowed_per_1000 <= 1000:
        raise UsageError(f"allowed_per_1000 = {allowed_per_1000} must be from 0 to 1,000")
    negatives = np.sort(probabilities[~is_positive])[::-1]  # the highest first
    if not len(negatives):
        raise DataError("a threshold needs texts that are not of the positive class; there are 0")
    allowed = int(allowed_per_1000 * len(negatives) / 1000 + 1e-9)
    if allowed >= len(negatives):
        return 0.0
    below = float(negatives[allowed])  # the highest probability that must stay below
    if below >= 1:
        return NEVER
    above = float(probabilities[probabilities > below].min(initial=1.0))
    middle = round((below + above) / 2, DECIMALS)
    return middle if below < middle <= above else above


def at_threshold(
    probabilities: np.ndarray, is_positive: np.ndarray, label: str, threshold: float
) -> AtThreshold:
    """Count on the test set what a threshold chosen elsewhere does: (N,), (N,) bool."""
    from scipy.stats import binomtest

    _check_probabilities(probabilities, is_positive)
    predicted = probabilities >= threshold
    negatives, false_positives = int((~is_positive).sum()), int((predicted & ~is_positive).sum())
    bound = 1.0
    if negatives:  # exact, one-sided: Clopper & Pearson 1934
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
    """Count on the test set what the threshold with the lowest expected cost does: (N,), (N,) bool.

    `cost` is that of a false positive; a false negative costs 1. The threshold is
    cost / (1 + cost) if the probabilities are calibrated. Raises UsageError unless the cost is a
    number above 0. Source: Elkan 2001, "The foundations of cost-sensitive learning".
    """
    if not 0 < cost < float("inf"):
        raise UsageError(f"cost = {cost} of a false positive must be a number above 0")
    at = at_threshold(probabilities, is_positive, label, cost / (1 + cost))
    total = cost * at.false_positives + at.positives - at.true_positives
    return replace(at, false_positive_cost=cost, mean_cost=total / len(probabilities))


def format_threshold(threshold: float) -> str:
    """The exact number, as `predict --threshold` takes it, with at least four decimals."""
    if threshold >= NEVER:
        return "never"
    return np.format_float_positional(threshold, min_digits=4)


def _check_probabilities(probabilities: np.ndarray, is_positive: np.ndarray) -> None:
    if probabilities.shape != is_positive.shape or probabilities.ndim != 1:
        raise DataError(
            f"probabilities {probabilities.shape} and is_positive {is_positive.shape} must be (N,)"
        )
    if is_positive.dtype != bool:  # ~ of whole numbers is something else
        raise DataError(f"is_positive must be true or false, not {is_positive.dtype}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise DataError("probabilities must be from 0 to 1")
