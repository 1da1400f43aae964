"""What was tried to beat n-grams of characters, on the same splits of the SMS Spam Collection.

More blocks; the mean of five finetunings; pretraining on closer text first, that is, guessing the
next token of the messages that are trained on, labels unseen ("task-adaptive pretraining", Gururangan
et al. 2020), on all messages that the validation and test parts leave; and the mean of that with the
n-grams. Resumable, like `gpt2-classifier compare`.

    python benchmarks/better.py --seeds 1 2 3 4 5 --out runs/better
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from bench import measure_machine, note, sms_path

from gpt2_from_scratch import Classifier, HeadConfig, Message, Split, TrainConfig, finetune
from gpt2_from_scratch.data.messages import load_messages
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.evaluation.baselines import Baseline, baseline_fits
from gpt2_from_scratch.gpt2.weights import copy_tokenizer, save_gpt2
from gpt2_from_scratch.speed.devices import set_threads
from gpt2_from_scratch.storage.paths import model_folder
from gpt2_from_scratch.studies.contenders import Finetuning, fit_finetuned
from gpt2_from_scratch.studies.contest import contest, play, working_in
from gpt2_from_scratch.studies.scoreboard import format_scoreboard, make_scoreboard, mean_result

LABELS = ("ham", "spam")
CHARACTERS = "TF-IDF of characters, 2 to 5"
CLOSER = TrainConfig(trainable="*", epochs=1, batch_size=16, lr=3e-4)


def adapted(model: str, messages: Sequence[Message], split: Split, seed: int, folder: Path) -> Path:
    """The model after one pass of guessing the next token of every message that is left."""
    held = {message.text for message in (*split.val, *split.test)}
    texts = dict.fromkeys(m.text for m in messages if m.text not in held)
    classifier = Classifier.on_base(model, heads=[HeadConfig("next", "language")], seed=seed)
    parts = ([Message(text, {}) for text in some] for some in (texts, [m.text for m in split.val]))
    with TemporaryDirectory() as run:
        finetune(
            classifier,
            Split(*parts, []),
            replace(CLOSER, seed=seed),
            Path(run),
        )
    save_gpt2(classifier.model, folder)
    copy_tokenizer(model_folder(model), folder)
    return folder


def mean_of(fits: Iterable[Baseline]) -> Baseline:
    """The mean of what several say."""
    every = list(fits)
    return Baseline("", lambda texts: np.mean([b.probabilities(texts) for b in every], axis=0))


def named(name: str, baseline: Baseline) -> Baseline:
    """The same under another name."""
    return replace(baseline, name=name)


def quietly(line: str) -> None:
    """Say nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="the file SMSSpamCollection")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("runs/better"))
    args = parser.parse_args()
    set_threads()
    messages = load_messages(args.data or sms_path())
    contests = []
    for seed in args.seeds:
        split = split_messages(messages, balance=True, seed=seed)
        fit = partial(fit_finetuned, split=split, labels=LABELS, say=quietly)
        one = Finetuning(args.model, TrainConfig(seed=seed))
        three = replace(one, config=replace(one.config, n_last_blocks=3))
        closer = args.out / f"closer-{seed}"
        others = [replace(one, config=replace(one.config, seed=100 + n)) for n in range(5)]

        def on_closer(name, finetuning, split=split, seed=seed, closer=closer, fit=fit):  # type: ignore[no-untyped-def]
            if not (closer / "model.safetensors").exists():
                adapted(args.model, messages, split, seed, closer)
            return named(name, fit(replace(finetuning, model=closer)))

        fits = {
            CHARACTERS: partial(baseline_fits()[CHARACTERS], split, LABELS, quietly),
            "last block": partial(lambda f, o: named("last block", f(o)), fit, one),
            "last three blocks": partial(lambda f, o: named("last three blocks", f(o)), fit, three),
            "mean of five last blocks": partial(
                lambda f, os: named("mean of five last blocks", mean_of(map(f, os))), fit, others
            ),
            "closer text, last block": partial(on_closer, "closer text, last block", one),
            "closer text, last three blocks": partial(
                on_closer, "closer text, last three blocks", three
            ),
        }
        contests.append(contest(f"seed {seed}", split, fits))
    with working_in(args.out, {"model": args.model}, note):
        results = play(contests, LABELS, args.out, say=note)
    for seed in args.seeds:
        of = {r.kind: r for r in results if r.split == f"seed {seed}"}
        for name in ("mean of five last blocks", "closer text, last three blocks"):
            results.append(mean_result(f"{name}, and characters", [of[name], of[CHARACTERS]]))
    n_train = len(split.train)
    board = make_scoreboard(results, CHARACTERS, n_train, watched="spam")
    print(f"{measure_machine().describe()}; torch {torch.__version__}\n")
    print(format_scoreboard(board))


if __name__ == "__main__":
    sys.exit(main())
