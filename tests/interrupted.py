"""Ctrl-C during training."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpt2_from_scratch.classifier.train import TrainingRun


@contextmanager
def interrupted_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send SIGINT after this many steps of every training in the block."""
    plain = TrainingRun.step

    def step(self: TrainingRun, batch: list[int]) -> None:
        plain(self, batch)
        if self.at.step == steps:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", step)
        yield
