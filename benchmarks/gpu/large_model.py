"""Stage `large` of `make gpu`: the last block of 1558M is finetuned on features of the others.

Random weights, and the lecture's 1,045 training messages. In the second run the features are read
from disk.
"""

import statistics
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from bench import PeakMemory, timed
from stage import Stage, short

from gpt2_from_scratch import Classifier, TrainConfig, to_labelled
from gpt2_from_scratch.classifier.train import Labelled, TrainingRun, freeze, loss_and_scores
from gpt2_from_scratch.speed.feature_store import FeatureStore

CONFIG = TrainConfig(n_last_blocks=1, epochs=2, batch_size=8, lr=1e-5)


class Finetuning:
    """A classifier on 1558M whose frozen blocks compute in one precision."""

    def __init__(self, stage: Stage, dtype: torch.dtype):
        self.stage, self.split = stage, stage.split()
        self.classifier: Classifier = stage.random_classifier(stage.sizes("1558M"), dtype=dtype)
        self.classifier.store = FeatureStore(stage.work / f"features-{short(dtype)}")
        freeze(self.classifier, CONFIG)

    def features(self) -> dict[str, Any]:
        """Compute the features of the training and validation messages, or read them."""
        parts, made = (self.split.train, self.split.val), list[Labelled]()
        with PeakMemory(self.stage.device) as peak:
            seconds = timed(
                lambda: made.extend(to_labelled(self.classifier, part) for part in parts),
                self.stage.device,
            )
        self.train, self.val = made
        return {"seconds": seconds, "peak MB": peak.bytes / 1e6}

    def training(self) -> dict[str, Any]:
        """Train for an epoch, and validate before and after it."""
        folder = self.stage.work / "large"
        run = TrainingRun(self.classifier, self.split, self.train, CONFIG, Path(folder))
        before, _ = loss_and_scores(self.classifier, self.val)
        seconds = []
        with PeakMemory(self.stage.device) as peak:
            for batch in islice(run.batches_left(), 3 if self.stage.small else None):
                seconds.append(timed(lambda batch=batch: run.step(batch), self.stage.device))
        after, scores = loss_and_scores(self.classifier, self.val)
        return {
            "seconds per step": statistics.median(seconds[1:]),
            "seconds of the epoch": sum(seconds),
            "peak MB": peak.bytes / 1e6,
            "validation loss before": before,
            "validation loss after": after,
            "validation accuracy": next(iter(scores.values())).main,
        }


def main() -> None:
    """Finetune with features in bfloat16, then in float32."""
    stage = Stage.from_command_line(__doc__.splitlines()[0])
    for dtype in (torch.bfloat16, torch.float32):
        made: list[Finetuning] = []

        def make(dtype: torch.dtype = dtype, made: list[Finetuning] = made) -> dict[str, Any]:
            seconds = timed(lambda: made.append(Finetuning(stage, dtype)), stage.device)
            parameters = [*made[0].classifier.model.parameters()]
            return {"seconds": seconds, "MB": sum(p.nbytes for p in parameters) / 1e6}

        name = short(dtype)
        stage.measure(f"{name}: random weights", make)
        stage.measure(f"{name}: features, first run", lambda made=made: made[0].features())
        stage.measure(f"{name}: features, second run", lambda made=made: made[0].features())
        stage.measure(f"{name}: last block", lambda made=made: made[0].training())
        made.clear()


if __name__ == "__main__":
    main()
