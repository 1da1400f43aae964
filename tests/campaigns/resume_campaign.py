"""Kills finetuning runs at random moments and lets them go on: they end with the same bits."""

import csv
import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import campaign
import matplotlib
import torch
from tiny import write_checkpoint

from gpt2_from_scratch.classifier import train as training_run
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.reports import plots
from gpt2_from_scratch.runs import recipes
from gpt2_from_scratch.storage.files import sha256_of

LASTING = ("best.safetensors", "last.safetensors", "metrics.jsonl", "evaluation.json", "test.csv")
CONFIG = TrainConfig(epochs=5, batch_size=4, lr=0.01, patience=5)
KINDS = {  # of runs
    "last block": (CONFIG, {}),
    "batches of 7, mean": (replace(CONFIG, batch_size=7, seed=1), {"pooling": "mean"}),
    "all blocks": (replace(CONFIG, n_last_blocks=2, epochs=4), {}),
    "early stop, no cache": (replace(CONFIG, patience=1, lr=0.05, epochs=9), {"cache": False}),
    "bfloat16": (replace(CONFIG, seed=2), {"dtype": torch.bfloat16}),
}


@dataclass
class Trials:
    """A model, messages, and what each kind of run ends with when nothing stops it."""

    folder: Path
    seen: Counter
    draw: random.Random

    def prepare(self) -> None:
        """Write the model and the messages."""
        write_checkpoint(self.folder / "model", seed=7)
        with (self.folder / "texts.csv").open("w", newline="") as file:
            rows = [
                (f"{'the goal' if n % 2 else 'a pill'} {n * n}", "ab"[n % 2]) for n in range(60)
            ]
            csv.writer(file).writerows([("text", "label"), *rows])
        self.unbroken: dict[str, tuple[float, dict[str, str]]] = {}

    def undisturbed(self, kind: str) -> tuple[float, dict[str, str]]:
        """How long such a run takes, and the digests of what it ends with."""
        if kind not in self.unbroken:
            begun, run = time.monotonic(), self.folder / "whole"
            assert campaign.end_of(self.start(kind, run)) == 0
            self.unbroken[kind] = time.monotonic() - begun, self.digests(run)
            shutil.rmtree(run)
        return self.unbroken[kind]

    def start(self, kind: str, run: Path) -> int:
        """A process that begins a run, or goes on with the one that is there."""
        return campaign.fork(lambda: self.work(kind, run))

    def work(self, kind: str, run: Path) -> None:
        torch.set_num_threads(1)
        training_run.SAVE_EVERY = 0.0  # after every step
        os.environ["GPT2_FROM_SCRATCH_CACHE"] = str(run.with_suffix(".cache"))
        quiet = {"quiet": True, "say": lambda line: None}
        if (run / "config.json").exists():
            recipes.resume_training(run, **quiet)
            return
        shutil.rmtree(run, ignore_errors=True)  # killed before it had begun
        config, more = KINDS[kind]
        model, texts = self.folder / "model", self.folder / "texts.csv"
        recipes.train_classifier(model, texts, run, config, **more, **quiet)

    def digests(self, run: Path) -> dict[str, str]:
        return {name: sha256_of(run / name) for name in LASTING}

    def trial(self, number: int) -> None:
        """One run, stopped one to four times, then left to end."""
        kind, run = self.draw.choice(list(KINDS)), self.folder / f"run{number}"
        life, expected = self.undisturbed(kind)
        stops, wanted = 0, self.draw.randint(1, 4)
        while stops < wanted:
            child = self.start(kind, run)
            time.sleep(self.draw.uniform(0.0, life))
            stopped = self.stop(child, run)
            stops += stopped
            if not stopped and stops:
                break  # it was stopped before and has come to its end
            if not stopped:
                self.remove(run)  # it was too quick: once more
        assert campaign.end_of(self.start(kind, run)) == 0
        assert self.digests(run) == expected, f"{kind}, trial {number}: other bits"
        assert not [*run.glob(".*"), *run.glob("*.bad"), *run.glob("state-*")], "something is left"
        self.remove(run)
        self.seen["trials that ended bit-equal"] += 1

    def stop(self, child: int, run: Path) -> bool:
        """Kill a run, or ask it to stop; False if it came to its end before."""
        how = self.draw.choice([signal.SIGKILL] * 4 + [signal.SIGINT, signal.SIGTERM])
        code = campaign.kill(child, how)
        assert code in (0, -how, 130, 143), f"a run ended with {code}"
        self.seen["SIGKILLs"] += code == -signal.SIGKILL
        self.seen["Ctrl-C and SIGTERM"] += code in (130, 143, -signal.SIGTERM)
        self.seen["stopped with a state on disk"] += code != 0 and bool(list(run.glob("state-*")))
        return code != 0

    def remove(self, run: Path) -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(run.with_suffix(".cache"), ignore_errors=True)


def resumes(count: int, seed: int, folder: Path) -> Counter:
    """`count` runs, each stopped and resumed until it ends."""
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    curves = plots.plot_training([1, 2], ([1, 2], [1, 2]), ([1, 2], [1, 2]))
    plots.save_picture(curves, folder / "warm.png")
    trials = Trials(folder, Counter(), random.Random(seed))
    trials.prepare()
    progress = campaign.Progress(count, "trials")
    for number in range(count):
        trials.trial(number)
        progress(number + 1)
    return trials.seen


if __name__ == "__main__":
    campaign.main(resumes)
