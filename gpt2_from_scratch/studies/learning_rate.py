"""Which learning rate to begin with: a short run in which it rises, and what the loss does.

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
SMOOTHING = 0.9  # of the running mean of losses
DIVERGED = 4.0  # times the lowest loss: no need to look further


@dataclass(frozen=True)
class Rates:
    """The rates that were tried and the smoothed loss at each; none behind where it diverged."""

    rates: list[float]
    losses: list[float]

    @property
    def suggested(self) -> float:
        """A tenth of the rate of the lowest loss: well before it rises, as fastai's rule has it."""
        best = min(range(len(self.losses)), key=self.losses.__getitem__)
        return self.rates[best] / 10


def find_rate(
    classifier: Classifier,
    split: Split,
    config: TrainConfig,
    *,
    steps: int = 100,
) -> Rates:
    """Train for at most `steps` steps while the rate rises evenly from 1e-6 to 1 on a logarithmic
    scale; the classifier's weights are put back afterwards.

    The messages are shown in the order of a run's epochs; with `rate_decay` the rates are those of
    the head. Nothing is written. Raises UsageError for fewer than two steps, and what stopped the
    first step, if it gave no loss.
    """
    if steps < 2:
        raise UsageError(f"steps = {steps}: a rate that rises takes at least 2")
    classifier.unmerge()
    freeze(classifier, config)
    before = {
        n: p.detach().clone() for n, p in classifier.model.named_parameters() if p.requires_grad
    }
    train = to_labelled(classifier, split.train)
    found = Rates([], [])
    try:
        with TemporaryDirectory() as folder:
            at_one = replace(config, lr=1.0, unfreeze_every=0)  # so that a factor is a rate
            run = TrainingRun(classifier, split, train, at_one, Path(folder))
            _rise(run, steps, found)
    finally:
        with torch.no_grad():
            for name, parameter in classifier.model.named_parameters():
                if name in before:
                    parameter.copy_(before[name])
    return found


def _rise(run: TrainingRun, steps: int, found: Rates) -> None:
    """Take the steps, and note rate and smoothed loss of each in `found`."""
    mean, order = 0.0, list[int]()
    for step in progress_bar(range(steps), desc="rising rate"):
        if not order:
            order = epoch_order(len(run.train.messages), run.config.seed, step + 1).tolist()
        batch, order = order[: run.config.batch_size], order[run.config.batch_size :]
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / max(1, steps - 1))
        try:
            loss = run.step(batch, rate)
        except ResourceError:  # no room says nothing about rates
            raise
        except GPT2Error:  # no number any more: the end of the curve
            if not found.rates:
                raise
            return
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed = mean / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(smoothed) or (
            found.losses and smoothed > DIVERGED * min(found.losses)
        ):
            return
        found.rates.append(rate)
        found.losses.append(smoothed)
