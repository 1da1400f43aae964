"""Multinomial logistic regression: many of them at once, on the same texts and labels.

Cross-entropy of softmax(x W + b), its mean over texts, plus l2 / 2 times the squares of W, is convex
and has one minimum, so that there is no learning rate, seed or stopping epoch to choose. Newton's
method finds it: its direction d solves H d = -g, with g the gradient and H the curvature. H is never
made; conjugate gradients need only H times something. They are few, because they are given a guess
at the inverse of H: no curvature of cross-entropy exceeds x^T x / (2 N), and often it is not far
below.

Sources: Nocedal & Wright, *Numerical Optimization*, 2006, algorithm 7.1 (Newton-CG); Boehning,
"Multinomial logistic regression algorithm", 1992 (the bound).

P regressions, N texts, C inputs of one (1 more for the bias), K classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch.errors import DataError, GPT2Error, UsageError

TOLERANCE = 1e-5  # of the last step, measured by the bound on the curvature
FORCING = 0.3  # conjugate gradients stop when so much of the gradient is left
MOST_STEPS, MOST_PRODUCTS, MOST_HALVINGS = 200, 100, 50
CONSTANT = 1e-5  # an input that spreads by less than this share of itself is rounding noise
TINY = 1e-300  # keeps 0 / 0 of a regression without a gradient from becoming NaN


@dataclass(frozen=True)
class Objective:
    """What is minimised, with what is needed of its slope and curvature."""

    x: Tensor  # (P, N, C + 1)
    targets: Tensor  # (N, K) one-hot
    penalty: Tensor  # (C + 1, 1): l2, and 0 for the bias

    def loss(self, weights: Tensor, logits: Tensor) -> Tensor:
        """Of each regression: weights (P, C + 1, K), logits (P, N, K) -> (P, 1, 1)."""
        cross_entropy = logits.logsumexp(dim=2) - (logits * self.targets).sum(dim=2)  # (P, N)
        squares = (self.penalty * weights**2).sum(dim=(1, 2))
        return (cross_entropy.mean(dim=1) + squares / 2)[:, None, None]

    def gradient(self, weights: Tensor, p: Tensor) -> Tensor:
        """At probabilities p (P, N, K): (P, C + 1, K)."""
        return self.x.mT @ (p - self.targets) / len(self.targets) + self.penalty * weights

    def curvature_times(self, direction: Tensor, p: Tensor) -> Tensor:
        """H d, without H: direction (P, C + 1, K) -> (P, C + 1, K)."""
        u = self.x @ direction  # (P, N, K)
        u = p * (u - (p * u).sum(dim=2, keepdim=True))
        return self.x.mT @ u / len(self.targets) + self.penalty * direction

    def bound_inverse(self) -> Tensor:
        """The inverse of a bound on H, the same for each class: (P, C + 1, C + 1)."""
        bound = self.x.mT @ self.x / (2 * len(self.targets)) + self.penalty.flatten().diag()
        return torch.cholesky_inverse(torch.linalg.cholesky(bound))


def fit_logistic(
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: float,
    *,
    start: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """Weights of P regressions, the bias last: x (P, N, C), labels (N,) -> (P, C + 1, K) float64.

    `start` is where to begin; the weights for another `l2` are near. Inputs should be standardized.
    scikit-learn's `LogisticRegression(C=1 / (l2 * N))` has the same minimum, and `2 / (l2 * N)` for
    two classes, where it penalizes one vector in place of two. Raises UsageError unless l2 is above
    0, DataError for inputs that are no numbers.
    """
    if not 0 < l2 < float("inf"):
        raise UsageError(f"l2 = {l2} must be a number above 0")
    if not x.isfinite().all():
        raise DataError("logistic regression got NaN or infinite inputs")
    targets = F.one_hot(labels, num_classes).double()
    penalty = torch.tensor([l2] * x.shape[2] + [0.0], dtype=torch.float64)[:, None]
    objective = Objective(with_ones(x), targets, penalty)
    inverse = objective.bound_inverse()
    weights = torch.zeros(len(x), x.shape[2] + 1, num_classes) if start is None else start
    weights = weights.double()
    for _ in range(MOST_STEPS):
        logits = objective.x @ weights
        gradient = objective.gradient(weights, logits.softmax(dim=2))
        if (_dot(gradient, inverse @ gradient) < tolerance**2).all():
            return weights
        direction = _newton_direction(
            objective, gradient, logits.softmax(dim=2), inverse, tolerance
        )
        weights = weights + direction * _step(objective, weights, logits, direction, gradient)
    raise GPT2Error(f"logistic regression has no minimum after {MOST_STEPS} steps; raise l2")


def standardize(x: Tensor, n_train: int) -> Tensor:
    """Mean 0 and standard deviation 1 over the first `n_train` texts: (P, N, C) -> the same, float64.

    An input that is constant there becomes 0, rounding noise not being blown up to 1.
    """
    train = x[:, :n_train].double()
    spread = train.std(dim=1, correction=0, keepdim=True)  # (P, 1, C)
    constant = spread <= CONSTANT * train.abs().amax(dim=1, keepdim=True)
    centred = x.double() - train.mean(dim=1, keepdim=True)
    return torch.where(constant, 0.0, centred / torch.where(constant, 1.0, spread))


def with_ones(x: Tensor) -> Tensor:
    """One input more, for the bias, which is always 1: (P, N, C) -> (P, N, C + 1) float64."""
    return F.pad(x.double(), (0, 1), value=1.0)


def _newton_direction(
    objective: Objective, gradient: Tensor, p: Tensor, inverse: Tensor, tolerance: float
) -> Tensor:
    """d of H d = -g, nearly, by preconditioned conjugate gradients: (P, C + 1, K)."""
    d, residual = torch.zeros_like(gradient), -gradient
    z = inverse @ residual
    search, size = z, _dot(residual, z)
    enough = (FORCING**2 * size).clamp_min(tolerance**2 / 100)
    for _ in range(MOST_PRODUCTS):
        product = objective.curvature_times(search, p)
        # those that have arrived stay: in a bias that all classes share there is no curvature
        length = torch.where(size > enough, size / _dot(search, product), 0.0)
        d, residual = d + length * search, residual - length * product
        z = inverse @ residual
        size, before = _dot(residual, z), size
        if (size <= enough).all():
            break
        search = z + size / before.clamp_min(TINY) * search
    return d


def _step(
    objective: Objective, weights: Tensor, logits: Tensor, direction: Tensor, gradient: Tensor
) -> Tensor:
    """How far along the direction each loss falls: 1, or halved until it does: (P, 1, 1)."""
    loss, slope = objective.loss(weights, logits), _dot(gradient, direction)
    change = objective.x @ direction
    t = torch.ones_like(slope)
    for _ in range(MOST_HALVINGS):
        found = objective.loss(weights + t * direction, logits + t * change)
        bad = found > loss + 1e-4 * t * slope + 1e-12
        if not bad.any():
            break
        t = torch.where(bad, t / 2, t)
    return t


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2), keepdim=True)  # (P, 1, 1)
