"""The learning rate rises, the loss is recorded, and the weights are restored."""

from pathlib import Path

import pytest

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.classifier.train import TrainingRun
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import GPT2Error, ResourceError, UsageError
from gpt2_from_scratch.studies.learning_rate import RateCurve, find_learning_rate

MESSAGES = [Message(f"{'win' if n % 2 else 'see'} the house {n}", "ab"[n % 2]) for n in range(12)]


def find(base: Path, steps: int) -> tuple[RateCurve, Classifier]:
    classifier = Classifier.on_base(base, ["a", "b"])
    split = Split(MESSAGES[:8], MESSAGES[8:10], MESSAGES[10:])
    config = TrainConfig(batch_size=4, n_last_blocks=0)
    return find_learning_rate(classifier, split, config, steps=steps), classifier


def test_learning_rates_rise_and_the_weights_are_restored(tiny_checkpoint: Path) -> None:
    rates, classifier = find(tiny_checkpoint, 5)
    assert rates.rates == sorted(rates.rates)
    assert rates.rates[0] == pytest.approx(1e-6)
    fresh = dict(Classifier.on_base(tiny_checkpoint, ["a", "b"]).model.named_parameters())
    assert all((p == fresh[name]).all() for name, p in classifier.model.named_parameters())


@pytest.mark.parametrize("steps", [1, 0, -4])
def test_too_few_steps_are_refused(tiny_checkpoint: Path, steps: int) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        find(tiny_checkpoint, steps)


@pytest.mark.parametrize(
    ("error", "first", "stops"),
    [
        (GPT2Error, 0, True),
        (GPT2Error, 2, False),
        (ResourceError, 0, True),
        (ResourceError, 2, True),
    ],
)
def test_errors_that_end_the_curve_or_the_search(
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[GPT2Error],
    first: int,
    stops: bool,
) -> None:
    """A NaN loss ends the curve after the first step; lack of memory is not a finding."""
    step = TrainingRun.step

    def failing(self: TrainingRun, batch: list[int], factor: float | None = None) -> float:
        if self.at.step == first:
            raise error("the loss became nan")
        return step(self, batch, factor)

    monkeypatch.setattr(TrainingRun, "step", failing)
    if stops:
        with pytest.raises(error):
            find(tiny_checkpoint, 5)
    else:
        assert len(find(tiny_checkpoint, 5)[0].rates) == 2
