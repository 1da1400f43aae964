"""Attempts to beat character n-grams, on the same splits of the SMS Spam Collection.

The attempts are: more blocks; the mean of five finetunings; further pretraining on similar text
("task-adaptive pretraining", Gururangan et al. 2020); and the mean of that with the n-grams. The
further pretraining predicts the next token of all messages that are not in the validation or test
set, without their labels. A stopped run can be resumed, as with `gpt2-classifier compare`.

    python benchmarks/better.py --seeds 1 2 3 4 5 --out runs/better
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench import measure_machine

from gpt2_from_scratch import Classifier, HeadConfig, Message, Split, TrainConfig, finetune
from gpt2_from_scratch.data.messages import load_messages
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.gpt2.weights import copy_tokenizer, save_gpt2
from gpt2_from_scratch.speed.devices import set_threads
from gpt2_from_scratch.storage.paths import model_folder
from gpt2_from_scratch.studies.rows import (
    Finetuned,
    Result,
    Row,
    Setup,
    StudySplit,
    TextBaseline,
)
from gpt2_from_scratch.studies.scoreboard import format_scoreboard, make_scoreboard, mean_result
from gpt2_from_scratch.studies.study import Study, finished_results, run_study

LABELS = ("ham", "spam")
CHARACTERS = "TF-IDF of characters, 2 to 5"
CLOSER = TrainConfig(trainable="*", epochs=1, batch_size=16, lr=3e-4)


def adapted(model: str, messages: Sequence[Message], split: Split, seed: int, folder: Path) -> Path:
    """The model after one pass of next-token prediction over all messages that are left."""
    held = {message.text for message in (*split.val, *split.test)}
    texts = dict.fromkeys(m.text for m in messages if m.text not in held)
    classifier = Classifier.on_base(model, heads=[HeadConfig("next", "language")], seed=seed)
    parts = ([Message(text, {}) for text in some] for some in (texts, [m.text for m in split.val]))
    with TemporaryDirectory() as run:
        finetune(classifier, Split(*parts, []), replace(CLOSER, seed=seed), Path(run))
    save_gpt2(classifier.model, folder)
    copy_tokenizer(model_folder(model), folder)
    return folder


@dataclass(frozen=True)
class MeanOfFive(Row):
    """The mean of five finetunings with different initial weights and orders of messages."""

    def answer(self, setup: Setup, split: StudySplit) -> Result:
        """Finetune five times."""
        one = Finetuned("")
        results = [one.answer(setup, replace(split, seed=100 + n)) for n in range(5)]
        return mean_result(self, results)


@dataclass(frozen=True)
class OnCloserText(Finetuned):
    """A finetuning that starts from GPT-2 after a pass over similar text."""

    folder: Path = Path()
    messages: Sequence[Message] = ()

    def answer(self, setup: Setup, split: StudySplit) -> Result:
        """Pretrain on similar text, unless this was done before, and then finetune."""
        closer = self.folder / f"closer-{split.seed}"
        if not (closer / "model.safetensors").exists():
            adapted(str(setup.model), self.messages, split.parts, split.seed, closer)
        return super().answer(replace(setup, model=closer), split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="the file SMSSpamCollection")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("runs/better"))
    args = parser.parse_args()
    set_threads()
    messages = load_messages(args.data or "sms")
    splits = [
        StudySplit(f"seed {seed}", seed, split_messages(messages, balance=True, seed=seed))
        for seed in args.seeds
    ]
    three = {"n_last_blocks": 3}
    closer = {"folder": args.out.with_name(f"{args.out.name}-closer"), "messages": messages}
    rows = [
        TextBaseline(CHARACTERS),
        Finetuned("last block"),
        Finetuned("last three blocks", training=three),
        MeanOfFive("mean of five last blocks"),
        OnCloserText("closer text, last block", **closer),
        OnCloserText("closer text, last three blocks", training=three, **closer),
    ]
    settings = {"model": args.model, "source": "sms"}
    study = Study(Setup(args.model, labels=LABELS), rows, splits, CHARACTERS, settings, "spam")
    run_study(study, args.out)
    results = finished_results(study, args.out)
    for split in splits:
        of = {r.row.name: r for r in results if r.split == split.name}
        for name in ("mean of five last blocks", "closer text, last three blocks"):
            row = Row(f"{name}, and characters")
            results.append(mean_result(row, [of[name], of[CHARACTERS]]))
    board = make_scoreboard(results, CHARACTERS, positive="spam")
    print(f"{measure_machine().describe()}; torch {torch.__version__}\n")
    print(format_scoreboard(board))


if __name__ == "__main__":
    sys.exit(main())
