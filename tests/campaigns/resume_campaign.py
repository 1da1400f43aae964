"""Kill training runs at random changes of files and resume them; results must be bit-identical."""

import csv
import os
import random
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import campaign

# a run imports these late; imported here, they are not imported again in each child
import torch
import torch._dynamo
from tiny import write_checkpoint

from gpt2_from_scratch.classifier import train as training_run
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.runs import recipes
from gpt2_from_scratch.storage.files import sha256_of

LASTING = ("best.safetensors", "last.safetensors", "metrics.jsonl", "evaluation.json", "test.csv")
CONFIG = TrainConfig(epochs=3, batch_size=4, lr=0.01, patience=5)
KINDS = {  # kinds of runs
    "last block": (CONFIG, {}),
    "batches of 7, mean": (
        replace(CONFIG, batch_size=7, seed=1),
        {"head": HeadSettings(pooling="mean")},
    ),
    "all blocks": (replace(CONFIG, n_last_blocks=2), {}),
    "early stop, no cache": (replace(CONFIG, patience=1, lr=0.05, epochs=9), {"cache": False}),
    "bfloat16": (replace(CONFIG, seed=2), {"dtype": "bfloat16"}),
}


@dataclass
class Trials:
    """A model, messages, and the result of each kind of run without interruption."""

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
        self.unbroken: dict[str, tuple[int, dict[str, str]]] = {}

    def undisturbed(self, kind: str) -> tuple[int, dict[str, str]]:
        """The number of file changes of an uninterrupted run, and the digests of its results."""
        if kind not in self.unbroken:
            run, count = self.folder / "whole", self.folder / "count"

            def work() -> None:
                changes = campaign.at_change(0, campaign.die)
                self.work(kind, run)
                count.write_text(str(changes()))

            assert campaign.end_of(campaign.fork(work)) == 0
            self.unbroken[kind] = int(count.read_text()), self.digests(run)
            self.remove(run)
        return self.unbroken[kind]

    def start(self, kind: str, run: Path, moment: int = 0, stop: int = signal.SIGKILL) -> int:
        """Start a process that begins or resumes a run, and send it a signal at a file change."""

        def work() -> None:
            campaign.at_change(moment, lambda: os.kill(os.getpid(), stop))
            self.work(kind, run)

        return campaign.fork(work)

    def work(self, kind: str, run: Path) -> None:
        torch.set_num_threads(1)
        training_run.SAVE_EVERY = 0.0  # save after every step
        os.environ["GPT2_FROM_SCRATCH_CACHE"] = str(run.with_suffix(".cache"))
        with silenced():
            if (run / "config.json").exists():
                recipes.resume_training(run, device="cpu")
                return
            shutil.rmtree(run, ignore_errors=True)  # the run was killed before it began
            config, more = KINDS[kind]
            model, texts = self.folder / "model", self.folder / "texts.csv"
            recipes.train_classifier(model, texts, config, run=run, device="cpu", **more)

    def digests(self, run: Path) -> dict[str, str]:
        return {name: sha256_of(run / name) for name in LASTING}

    def trial(self, number: int) -> None:
        """One run that is stopped one to four times and then allowed to finish."""
        kind, run = self.draw.choice(list(KINDS)), self.folder / f"run{number}"
        life, expected = self.undisturbed(kind)
        stops, wanted = 0, self.draw.randint(1, 4)
        while stops < wanted:
            stopped = self.stop(kind, run, self.draw.randint(1, life))
            stops += stopped
            if not stopped and stops:
                break  # it was stopped earlier and has now finished
            if not stopped:
                self.remove(run)  # the signal came too late, so try again
        assert campaign.end_of(self.start(kind, run)) == 0
        other = [name for name, digest in self.digests(run).items() if digest != expected[name]]
        assert not other, f"{kind}, trial {number}: other bits in {', '.join(other)}"
        assert not [*run.glob(".*"), *run.glob("*.bad"), *run.glob("state-*")], "something is left"
        self.remove(run)
        self.seen["trials that ended bit-equal"] += 1

    def stop(self, kind: str, run: Path, moment: int) -> bool:
        """Kill a run, or ask it to stop; False if it finished first."""
        how = self.draw.choice([signal.SIGKILL] * 4 + [signal.SIGINT, signal.SIGTERM])
        code = campaign.end_of(self.start(kind, run, moment, how))
        assert code in (0, -how, 130, 143), f"a run ended with {code}"
        self.seen["SIGKILLs"] += code == -signal.SIGKILL
        self.seen["Ctrl-C and SIGTERM"] += code in (130, 143, -signal.SIGTERM)
        self.seen["stopped with a state on disk"] += code != 0 and bool(list(run.glob("state-*")))
        return code != 0

    def remove(self, run: Path) -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(run.with_suffix(".cache"), ignore_errors=True)


def resumes(count: int, seed: int, folder: Path) -> Counter:
    """Run `count` trials; each is stopped and resumed until it finishes."""
    torch.set_num_threads(1)
    trials = Trials(folder, Counter(), random.Random(seed))
    trials.prepare()
    progress = campaign.Progress(count, "trials")
    for number in range(count):
        trials.trial(number)
        progress(number + 1)
    return trials.seen


if __name__ == "__main__":
    campaign.main(resumes)
