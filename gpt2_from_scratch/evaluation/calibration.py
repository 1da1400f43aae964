"""Whether a classifier's probabilities mean what they say: of texts called spam with 90 %, 90 % are.

N texts, K classes.
"""

from dataclasses import dataclass

import numpy as np

from gpt2_from_scratch.errors import DataError, UsageError

EPS = float(np.finfo(np.float64).eps)  # no probability is taken to be nearer to 0, as scikit-learn
COLDEST, HOTTEST = 0.05, 20.0  # temperatures
HALVINGS = 80  # of the range of 1 / T: to the last digit


@dataclass(frozen=True)
class Bin:
    """The texts whose likeliest class has a probability above `low`, up to `high`."""

    low: float
    high: float
    count: int
    confidence: float | None  # mean probability of the likeliest class; None in an empty bin
    accuracy: float | None  # share of the texts for which that class is the true one


@dataclass(frozen=True)
class Calibration:
    """How good probabilities are; 0 is best in all three."""

    brier: float
    log_loss: float  # in nats
    ece: float  # expected calibration error
    bins: list[Bin]  # all of them, the empty ones too


def calibration(probabilities: np.ndarray, true: np.ndarray, n_bins: int = 10) -> Calibration:
    """Score probabilities (N, K) against the true classes (N,), int.

    Brier: the squares of all K errors of a text, summed, from 0 to 2; their mean over texts. Of two
    classes both errors are the same, so this is twice what scikit-learn's `brier_score_loss` gives
    for them. ECE: how far confidence and accuracy are apart, the mean over bins of equal width,
    weighed by their texts; of the likeliest class only. Raises DataError for no texts and for shapes
    that do not fit, UsageError for no bins. Sources: Brier 1950; Guo et al. 2017.
    """
    _check(probabilities, true)
    if n_bins < 1:
        raise UsageError(f"n_bins = {n_bins} must be at least 1")
    right = probabilities[np.arange(len(true)), true]  # (N,)
    errors = probabilities - (true[:, None] == np.arange(probabilities.shape[1]))  # (N, K)
    bins = _bins(probabilities.max(axis=1), probabilities.argmax(axis=1) == true, n_bins)
    return Calibration(
        brier=float((errors**2).sum(axis=1).mean()),
        log_loss=float(-np.log(right.clip(EPS, 1 - EPS)).mean()),
        ece=sum(_gap(found) * found.count for found in bins) / len(true),
        bins=bins,
    )


def fit_temperature(logits: np.ndarray, true: np.ndarray) -> float:
    """The T for which softmax(logits / T) fits the true classes best: (N, K), (N,) int -> number.

    On a validation part; which class is likeliest stays the same. The targets are not 1 and 0 but
    (N + 1) / (N + K) and 1 / (N + K), so that a validation part on which all is right does not ask
    for T = 0: Laplace's rule, one text more of each class. The loss is convex in 1 / T, and where
    its slope is 0 is found by bisection, for T from 0.05 to 20. Logits that tell no class from
    another give 1. Raises DataError for no texts, for shapes that do not fit, and for logits that
    are not finite. Sources: Guo et al. 2017; the targets are in the spirit of Platt 1999, whose own
    use the number of texts of each class in place of N.
    """
    _check(logits, true)
    if not np.isfinite(logits).all():
        raise DataError("logits must be finite to fit a temperature to them")
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)  # (N, K): none above 0, so that exp cannot overflow
    if not z.any():
        return 1.0
    N, K = z.shape
    targets = (1 + N * (true[:, None] == np.arange(K))) / (N + K)  # (N, K)
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _slope(z, targets, middle) < 0:
            low = middle
        else:
            high = middle
    return float(np.clip(2 / (low + high), COLDEST, HOTTEST))


def _slope(z: np.ndarray, targets: np.ndarray, inverse: float) -> float:
    """Of the cross-entropy of softmax(z * inverse), as `inverse` grows: the sum over texts."""
    p = np.exp(z * inverse)
    p /= p.sum(axis=1, keepdims=True)
    return float(((p - targets) * z).sum())


def _bins(confidence: np.ndarray, right: np.ndarray, n_bins: int) -> list[Bin]:
    edges = np.linspace(0, 1, n_bins + 1)
    place = np.searchsorted(edges[1:-1], confidence)  # (N,): just on an edge belongs below it
    bins = []
    for n, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        here = place == n
        count = int(here.sum())
        means = (float(x[here].mean()) if count else None for x in (confidence, right))
        bins.append(Bin(low, high, count, *means))
    return bins


def _gap(found: Bin) -> float:
    if found.confidence is None or found.accuracy is None:
        return 0.0
    return abs(found.confidence - found.accuracy)


def _check(scores: np.ndarray, true: np.ndarray) -> None:
    if not len(true):
        raise DataError("there is nothing to calibrate: no labelled texts")
    if scores.ndim != 2 or true.shape != scores.shape[:1]:
        raise DataError(f"scores {scores.shape} must be (N, K), and true {true.shape} (N,)")
    if not 0 <= true.min() <= true.max() < scores.shape[1]:
        raise DataError(f"class numbers must be from 0 to {scores.shape[1] - 1}")
