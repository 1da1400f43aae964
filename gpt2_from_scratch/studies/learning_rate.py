"""Find a learning rate: train briefly while the rate rises.

Source: Smith 2015, "Cyclical Learning Rates for Training Neural Networks" (arXiv 1506.01186);
fastai's `lr_find`.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.classifier.train import TrainingRun, epoch_order, freeze, to_labelled
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import GPT2Error, ResourceError, UsageError
from gpt2_from_scratch.progress import progress_bar

LOWEST, HIGHEST = 1e-6, 1.0
SMOOTHING = 0.9  # smoothing of the running mean of losses
DIVERGED = 4.0  # the search ends at this multiple of the lowest loss


@dataclass(frozen=True)
class RateCurve:
    """The learning rates that were tried, and the smoothed loss after each of them."""

    rates: list[float]
    losses: list[float]

    @property
    def suggested(self) -> float:
        """The suggested learning rate: a tenth of the one with the lowest loss, as in fastai."""
        best = min(range(len(self.losses)), key=self.losses.__getitem__)
        return self.rates[best] / 10


def find_learning_rate(
    classifier: Classifier,
    split: Split,
    config: TrainConfig,
    *,
    steps: int = 100,
) -> RateCurve:
    """Train while the learning rate rises from 1e-6 to 1; restore the weights afterwards.

    The learning rate is multiplied by the same factor at each step. The curve has at most `steps`
    points and ends where the loss diverges. Batches come in the same order as in training. No file
    is written.

    Args:
        classifier: The classifier; its weights are the same afterwards.
        split: The training and validation messages.
        config: The settings of training. With `rate_decay`, the curve shows the head's learning
            rate.
        steps: The number of steps, at least 2.

    Returns:
        The learning rates and losses.

    Raises:
        UsageError: `steps` is less than 2.
        GPT2Error: The first step failed.
    """
    if steps < 2:
        raise UsageError(f"steps = {steps}: a rising learning rate needs at least 2")
    classifier.unmerge()
    freeze(classifier, config)
    parameters = [p for p in classifier.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    train = to_labelled(classifier, split.train)
    try:
        with TemporaryDirectory() as folder:
            # `step` takes a factor of lr; with lr = 1 the factor is the learning rate itself
            at_one = replace(config, lr=1.0, unfreeze_every=0)
            run = TrainingRun(classifier, split, train, at_one, Path(folder))
            return _rise(run, steps)
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def _rise(run: TrainingRun, steps: int) -> RateCurve:
    curve, mean, order = RateCurve([], []), 0.0, list[int]()
    for step in progress_bar(range(steps), desc="rising learning rate"):
        if not order:
            order = epoch_order(len(run.train.messages), run.config.seed, step + 1).tolist()
        batch, order = order[: run.config.batch_size], order[run.config.batch_size :]
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1))
        try:
            loss = run.step(batch, rate)
        except ResourceError:  # lack of memory is not a finding about learning rates
            raise
        except GPT2Error:  # a NaN or infinite loss ends the curve
            if not curve.rates:
                raise
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed = mean / (1 - SMOOTHING ** (step + 1))
        diverged = curve.losses and smoothed > DIVERGED * min(curve.losses)
        if diverged or not math.isfinite(smoothed):
            break
        curve.rates.append(rate)
        curve.losses.append(smoothed)
    return curve
