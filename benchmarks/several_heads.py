"""Four heads trained jointly, compared with the same four trained alone: time, parameters, scores.

Both use the same messages, seeds and epochs, in one process. Each message has its own label (spam
or ham) and three labels made by rules: its number of words, its contents, and a tag for every word.

    python benchmarks/several_heads.py                    # the SMS Spam Collection, balanced
    python benchmarks/several_heads.py --data hard
"""

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import measure_machine, note

from gpt2_from_scratch import Classifier, Message, Split, TrainConfig, load_messages, split_messages
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.regression import regression_scores
from gpt2_from_scratch.classifier.train import finetune, loss_and_scores, to_labelled
from gpt2_from_scratch.data.messages import Span, count_labels
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.speed.devices import set_threads
from gpt2_from_scratch.storage.paths import model_folder

MARKS: dict[str, Callable[[str], bool]] = {
    "digit": lambda text: any(c.isdigit() for c in text),
    "question": lambda text: "?" in text,
    "you": lambda text: bool(re.search(r"\b(you|your|u|ur)\b", text.lower())),
    "shouting": lambda text: bool(re.search(r"\b[A-Z]{3,}\b", text)),
}
TAGS = ("other", "number", "capital")
RESAMPLES = 2000  # resamples of the test messages for the interval of R2


def with_rules(message: Message) -> Message:
    """A message with a label for each of the four heads."""
    words = [Span(*m.span(), tag_of(m[0])) for m in re.finditer(r"\S+", message.text)]
    return Message(
        message.text,
        {
            "label": message.label,
            "length": (float(len(words)),),
            "marks": tuple(name for name, holds in MARKS.items() if holds(message.text)),
            "tags": words,
        },
    )


def tag_of(word: str) -> str:
    """The tag of a word: whether it contains a digit, begins with a capital letter, or neither."""
    if any(c.isdigit() for c in word):
        return "number"
    return "capital" if word[:1].isupper() else "other"


def four_heads(split: Split, labels: Sequence[str], n_layer: int) -> list[HeadConfig]:
    """Heads for a class, a number (read at a middle layer), a set of labels, and word tags."""
    lengths = np.array([message.label["length"][0] for message in split.train])
    return [
        HeadConfig("label", labels=tuple(labels), pooling="last_token"),
        HeadConfig(
            "length",
            "regression",
            ("words",),
            layer=n_layer // 2 + 1,
            pooling="last_token",
            center=(float(lengths.mean()),),
            scale=(float(lengths.std()),),
        ),
        HeadConfig("marks", "multi-label", tuple(MARKS), pooling="last_token"),
        HeadConfig("tags", "token-classification", TAGS),
    ]


@dataclass
class Trained:
    """The cost and the scores of training some heads."""

    seconds: float
    busy: float  # processor seconds, which other programs do not affect
    numbers: int  # number of trained parameters
    scores: dict[str, tuple[str, float, tuple[float, float]]]  # {head: (measure, score, interval)}


def train(model: str, heads: list[HeadConfig], split: Split, config: TrainConfig) -> Trained:
    """Finetune these heads together, and score them on the test set."""
    classifier = Classifier.on_base(model, heads=heads, seed=config.seed)
    before = {name: p.detach().clone() for name, p in classifier.model.named_parameters()}
    began, began_busy = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as run:
        finetune(classifier, split, config, Path(run))
    seconds, busy = time.perf_counter() - began, time.process_time() - began_busy
    after = classifier.model.named_parameters()
    numbers = sum(p.numel() for name, p in after if not torch.equal(p, before[name]))
    labelled = to_labelled(classifier, split.test)
    _, scores = loss_and_scores(classifier, labelled)
    found = {name: scored(score) for name, score in scores.items() if name != "length"}
    if "length" in scores:
        found["length"] = scored_lengths(classifier, split.test)
    return Trained(seconds, busy, numbers, found)


def scored(scores: Any) -> tuple[str, float, tuple[float, float]]:
    """A proportion with an interval: of texts with the correct class or set, or of words."""
    if hasattr(scores, "exact"):
        return "all four correct", scores.exact / scores.total, scores.interval
    measure = "accuracy" if scores.measure == "accuracy" else "words correct"
    return measure, scores.accuracy, scores.interval


def scored_lengths(
    classifier: Classifier, messages: Sequence[Message]
) -> tuple[str, float, tuple[float, float]]:
    """R2 and its interval: the middle 95% of resamples of the messages (bootstrap)."""
    predictions = classifier.predict([message.text for message in messages])
    found = np.array([[a.answers["length"].values["words"]] for a in predictions if a])  # (N, 1)
    true = np.array([message.label["length"] for message in messages])  # (N, 1)
    random, N = np.random.RandomState(1), len(true)
    draws = (random.randint(N, size=N) for _ in range(RESAMPLES))
    sampled = [
        1 - ((true[n] - found[n]) ** 2).sum() / ((true[n] - true[n].mean()) ** 2).sum()
        for n in draws
    ]
    low, high = np.percentile(sampled, [2.5, 97.5])
    return (
        "R2, × 100",
        regression_scores(true, found, ["words"]).mean_r2 or 0.0,
        (float(low), float(high)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=None, help="hard, or a file of messages; default: sms")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=TrainConfig().lr)
    args = parser.parse_args()
    set_threads()
    messages = load_messages(args.data or "sms")
    split = split_messages(messages, balance=True, seed=args.seed)
    split = Split(*([with_rules(message) for message in part] for part in vars(split).values()))
    n_layer = read_config(model_folder(args.model)).n_layer
    heads = four_heads(split, [*count_labels(messages)], n_layer)
    config = TrainConfig(
        n_last_blocks=n_layer // 2,
        epochs=args.epochs,
        patience=args.epochs,
        seed=args.seed,
        lr=args.lr,
    )
    train(args.model, heads[:1], split, replace(config, epochs=1))  # warm up
    alone = {}
    for head in heads:
        note(f"{head.name} alone")
        alone[head.name] = train(args.model, [head], split, config)
    note("jointly")
    joint = train(args.model, heads, split, config)
    report(split, config, alone, joint)


def report(split: Split, config: TrainConfig, alone: dict[str, Trained], joint: Trained) -> None:
    """Print the table of docs/results/heads.md."""
    print(f"{measure_machine().describe()}")
    print(
        f"{len(split.train)} training and {len(split.test)} test messages, {config.epochs} epochs, the "
        f"last {config.n_last_blocks} blocks are trained\n"
    )
    print("| head | measure | alone | jointly | seconds | trained parameters |")
    print("|---|---|---|---|---|---|")
    for name, one in alone.items():
        measure, *_ = one.scores[name]
        print(
            f"| {name} | {measure} | {percent_in_words(one.scores[name])} | {percent_in_words(joint.scores[name])} "
            f"| {one.seconds:.1f} | {one.numbers:,} |"
        )
    seconds, busy, numbers = (
        sum(getattr(one, what) for one in alone.values()) for what in ("seconds", "busy", "numbers")
    )
    print(f"| all four alone | | | | {seconds:.1f} | {numbers:,} |")
    print(f"| all four jointly | | | | {joint.seconds:.1f} | {joint.numbers:,} |")
    print(
        f"\njointly: {seconds / joint.seconds:.2f} times faster, with {busy / joint.busy:.2f} times "
        "less processor time"
    )


def percent_in_words(scored: tuple[str, float, tuple[float, float]]) -> str:
    """A score as a percentage, with its 95% interval."""
    _, score, (low, high) = scored
    return f"{100 * score:.2f} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
