"""Probes of every layer on the SMS Spam Collection: results, and the time saved by one pass.

The split has no duplicates and balanced labels (914 / 130 / 262 messages). There are three parts:

    python benchmarks/probes.py --data sms

1. The seconds of all probes without padding, and of n_layer + 1 heads trained one by one through
   the model; one epoch of each is measured and multiplied. 2. The test accuracy of each probe. 3.
   At the last layer, after the final norm, at the last token and at the last position: how far
   apart the texts' states are, the probe, and a head trained by gradient descent on the same
   states.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from bench import measure_machine, timed
from torch import nn

from gpt2_from_scratch import (
    Classifier,
    Split,
    TrainConfig,
    class_logits,
    finetune,
    load_messages,
    set_trainable,
    split_messages,
)
from gpt2_from_scratch.classifier.settings import POOLINGS
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.reports.plots import save_picture
from gpt2_from_scratch.runs.results import evaluate_classifier
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.frozen_trunk import Trunk
from gpt2_from_scratch.studies.probes import (
    Probe,
    format_probes,
    plot_probes,
    pooled_states,
    probe_layers,
)

LABELS, EPOCHS = ["ham", "spam"], 5
BOOK = TrainConfig(
    n_last_blocks=0, final_norm=False, epochs=EPOCHS, batch_size=8, lr=5e-5, warmup=0
)
RECIPES = {
    "head, the book's 5 epochs at 5e-5": BOOK,
    "head, 5 epochs at 5e-3": replace(BOOK, lr=5e-3),
    "head, 50 epochs at 5e-2": replace(BOOK, epochs=50, patience=50, lr=5e-2),
}


def one_epoch(model: str, split: Split, depth: int) -> float:
    """The seconds of an epoch of a head after the first `depth` blocks, through the model."""
    classifier = Classifier.on_base(model, LABELS, pooling="last_token")
    classifier.model.blocks = nn.ModuleList(list(classifier.model.blocks)[:depth])
    set_trainable_head(classifier)
    encoded, _ = classifier.encode([message.text for message in split.train])
    labels = torch.tensor([LABELS.index(message.label) for message in split.train])
    optimizer = torch.optim.AdamW(classifier.model.head.parameters(), lr=5e-3)

    def epoch() -> None:
        for batch in torch.randperm(len(encoded)).split(8):
            ids, lengths = pad_batch(
                [encoded[n] for n in batch], classifier.tokenizer.end_of_text_id
            )
            optimizer.zero_grad()
            logits = class_logits(classifier.model, ids, lengths, "last_token")
            F.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()

    return timed(epoch)


def set_trainable_head(classifier: Classifier) -> None:
    """Make only the head trainable."""
    classifier.model.requires_grad_(False)
    classifier.model.head.requires_grad_(True)


def trained_head(
    model: str, split: Split, pooling: str, longest: int, config: TrainConfig, store: FeatureStore
) -> tuple[int, int]:
    """The number of correct test predictions of a trained head, and of all test messages."""
    classifier = Classifier.on_base(model, LABELS, pooling=pooling, store=store)
    if pooling == "last_position":
        classifier.description = replace(classifier.description, max_tokens=longest, pad_to=longest)
    set_trainable(classifier.model, config.n_last_blocks, config.final_norm)
    with tempfile.TemporaryDirectory() as run:
        finetune(classifier, split, config, Path(run))
    scores = evaluate_classifier(classifier, split.test)
    return scores.correct, scores.total


def spread(model: str, split: Split, longest: int) -> dict[str, float]:
    """{pooling: distance of the last layer's states from their mean, relative to their length}."""
    classifier = Classifier.on_base(model, LABELS, pooling="last_token")
    encoded, _ = classifier.encode([message.text for message in split.train])
    trunk = Trunk(classifier.model, len(classifier.model.blocks))
    poolings = ("last_token", "last_position")
    pad_id = classifier.tokenizer.end_of_text_id
    states = pooled_states(trunk, classifier.model.ln_f, encoded, poolings, pad_id, longest)
    last = {pooling: states[pooling, True][-1] for pooling in poolings}  # (N, C)
    return {
        pooling: float((x - x.mean(dim=0)).norm(dim=1).mean() / x.norm(dim=1).mean())
        for pooling, x in last.items()
    }


def one_by_one(model: str, split: Split) -> None:
    """Part 1: a table of seconds."""
    base = Classifier.on_base(model, LABELS, pooling="last_token")
    ours = timed(lambda: probe_layers(base.model, base.tokenizer, split))
    epochs = [one_epoch(model, split, depth) for depth in range(len(base.model.blocks) + 1)]
    theirs = EPOCHS * sum(epochs)
    print("\n| | seconds | ratio |\n|---|---|---|")
    print(f"| {len(epochs)} heads one by one, {EPOCHS} epochs each | {theirs:.1f} | 1.0 |")
    print(
        f"| {len(epochs) * 6} probes from one pass | {ours:.1f} | {theirs / ours:.1f} |\n",
        flush=True,
    )


def last_layer(model: str, split: Split, probes: list[Probe]) -> None:
    """Part 3: a table of the last token and the last position."""
    base = Classifier.on_base(model, LABELS, pooling="last_token")
    longest = max(len(ids) for ids in base.encode([m.text for m in split.train])[0])
    rows: dict[str, dict[str, tuple[int, int]]] = {"probe": {}}
    last = max(probe.layer for probe in probes)
    for probe in probes:
        if probe.layer == last and probe.final_norm:
            rows["probe"][probe.pooling] = (probe.correct, probe.total)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder))
        for name, config in RECIPES.items():
            rows[name] = {
                pooling: trained_head(model, split, pooling, longest, config, store)
                for pooling in ("last_token", "last_position")
            }
    print("\n| last layer, final-normed | last token, % | last position, % |\n|---|---|---|")
    apart = spread(model, split, longest)
    print(
        f"| relative distance of states | {apart['last_token']:.3f} | {apart['last_position']:.3f} |"
    )
    for name, row in rows.items():
        print(
            f"| {name} | {percent_in_words(*row['last_token'])} | {percent_in_words(*row['last_position'])} |"
        )


def percent_in_words(correct: int, total: int) -> str:
    """A percentage with its interval."""
    low, high = wilson_interval(correct, total)
    return f"{100 * correct / total:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="the file SMSSpamCollection")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--out", type=Path, help="where to write the picture")
    args = parser.parse_args()
    messages = load_messages(args.data or "sms")
    split = split_messages(messages, balance=True, seed=args.seed)
    print(f"probes, {args.model}: {measure_machine().describe()}")
    one_by_one(args.model, split)
    base = Classifier.on_base(args.model, LABELS, pooling="last_token")
    probes = probe_layers(base.model, base.tokenizer, split, poolings=POOLINGS)
    print(format_probes(probes), flush=True)
    if args.out:
        save_picture(plot_probes(probes), args.out)
    last_layer(args.model, split, probes)


if __name__ == "__main__":
    main()
