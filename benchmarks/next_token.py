"""Heads for the next token: what they cost, and how well they predict at each layer.

The costs are those of a training step on random weights of 124M's sizes, with the blocks frozen.
Each way is measured in a process of its own. "pieces" is a step of this package: it computes the
logits of one head at a time, and at most 64 MB of them. "together" computes the logits of all heads,
adds the losses and differentiates the sum. Seconds are those of the processor, so other programs
change them little.

    python benchmarks/next_token.py                            # tuned lenses at all 13 layers
    python benchmarks/next_token.py --form full --layers 0 6 12

The scores are bits per byte on messages of the SMS Spam Collection, for the miniature or for a run:

    python benchmarks/next_token.py --scores mini
    python benchmarks/next_token.py --scores runs/first        # after train --data sms --balance
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from bench import PeakMemory, measure_machine, megabytes, random_gpt2

from gpt2_from_scratch import (
    Classifier,
    HeadConfig,
    Message,
    Split,
    Tokenizer,
    TrainConfig,
    format_next_tokens,
    load_gpt2,
    load_messages,
    model_folder,
    probe_next_tokens,
    split_messages,
)
from gpt2_from_scratch.classifier.heads import layers_by_name
from gpt2_from_scratch.classifier.settings import LANGUAGE_FORMS
from gpt2_from_scratch.classifier.train import TrainingRun, freeze, to_labelled
from gpt2_from_scratch.gpt2.config import SIZES
from gpt2_from_scratch.speed.devices import set_threads
from gpt2_from_scratch.storage.paths import is_run

WAYS, TIMES = ("pieces", "together"), 2
FROZEN = TrainConfig(n_last_blocks=0, final_norm=False, lr=1e-3)


def main() -> None:
    """Measure each way in a process of its own, and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--form", choices=LANGUAGE_FORMS, default="tuned lens")
    parser.add_argument("--layers", type=int, nargs="+", default=range(SIZES["124M"].n_layer + 1))
    parser.add_argument("--texts", type=int, default=4, help="messages per step")
    parser.add_argument("--scores", metavar="MODEL", help="a model, or a run's folder")
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)  # for the processes
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    set_threads(1)
    if args.scores:
        print_scores(args.scores)
        return
    if args.way:
        measure(args.base, args.form, args.layers, args.texts, args.way)
        return
    with tempfile.TemporaryDirectory() as folder:
        base = random_gpt2(Path(folder))
        print(measure_machine().describe(), flush=True)
        found = []
        for way in WAYS:
            own = [sys.executable, __file__, "--base", str(base), "--way", way, *sys.argv[1:]]
            found.append(subprocess.run(own, check=True, capture_output=True, text=True).stdout)
            print(found[-1], end="", flush=True)
        (peak, seconds), (most, slowest) = ([float(x) for x in s.split()[-2:]] for s in found)
        print(
            f"pieces / together: memory of a step {peak / most:.2f}, time {seconds / slowest:.2f}"
        )


def print_scores(name: str) -> None:
    """Print the bits per byte at each layer, from the first messages of the balanced split."""
    whole = split_messages(load_messages("sms"), balance=True)
    split = Split(whole.train[:240], whole.val[:60], whole.test[:130])
    if is_run(Path(name)):
        classifier = Classifier.load(name)
        model, tokenizer = classifier.model, classifier.tokenizer
    else:
        model, tokenizer = load_gpt2(name), Tokenizer(model_folder(name))
    print(format_next_tokens(probe_next_tokens(model, tokenizer, split)))


def measure(base: Path, form: str, layers: list[int], count: int, way: str) -> None:
    """Print what a step of all heads costs; the last two words are megabytes and seconds."""
    heads = [HeadConfig(f"at_{n}", "language", layer=n, form=form) for n in layers]  # type: ignore[arg-type]
    classifier = Classifier.on_base(base, heads=heads)
    freeze(classifier, FROZEN)
    messages = [Message(message.text, None) for message in load_messages("sms")[:count]]
    labelled = to_labelled(classifier, messages)
    with tempfile.TemporaryDirectory() as run:
        training = TrainingRun(
            classifier, Split(messages, messages, messages), labelled, FROZEN, Path(run)
        )
        step = pieces(training) if way == "pieces" else together(training)
        step()  # AdamW allocates its state
        training.optimizer.zero_grad()
        with PeakMemory() as before:
            pass
        with PeakMemory() as peak:
            step()
        began = time.process_time()
        for _ in range(TIMES):
            step()
        seconds = (time.process_time() - began) / TIMES
    trained = sum(parameter.numel() for parameter in training.trainable.values())
    tokens = int(labelled.targets["at_0" if 0 in layers else heads[0].name].counts.sum())
    print(
        f"{way}: {len(heads)} heads ({form}), {trained:,} parameters, {count} messages, {tokens} next "
        f"tokens, peak {megabytes(peak.bytes)} MB. MB and seconds of a step: "
        f"{(peak.bytes - before.bytes) / 1e6:.0f} {seconds:.2f}"
    )


def pieces(training: TrainingRun) -> Callable[[], object]:
    """A step of this package."""
    numbers = list(range(len(training.train.messages)))
    return lambda: training.step(numbers)


def together(training: TrainingRun) -> Callable[[], object]:
    """The same step with the logits of all heads and positions in memory."""
    classifier, texts = training.classifier, training.train
    heads = classifier.description.heads
    layers = layers_by_name(classifier.model, heads)

    def step() -> None:
        training.optimizer.zero_grad()
        outputs, _ = classifier.batch_outputs(texts.texts, range(len(texts.messages)))
        logits = {name: outputs[name] for name in layers}  # (B, T, V) each
        losses = []
        for name in layers:
            wanted = texts.targets[name].batch(range(len(texts.messages)))
            losses.append(F.cross_entropy(logits[name].flatten(0, 1), wanted.flatten()))
        torch.stack(losses).sum().backward()
        training.optimizer.step()

    return step


if __name__ == "__main__":
    main()
