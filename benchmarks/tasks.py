"""Real tasks with every kind of head: the SMS Spam Collection and the named entities of WNUT17.

    python benchmarks/tasks.py --wnut folder/of/wnut17

The collection, duplicate-free and balanced, with each classification head on the same splits; then
words of tweets and comments tagged (Derczynski et al. 2017), trained on the given training part,
chosen by the given development part, tested on the given test part, with the most frequent tag of
each word as the baseline.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench import sms_path

from gpt2_from_scratch import Message, TrainConfig
from gpt2_from_scratch.baselines import most_frequent_tag
from gpt2_from_scratch.classifier_settings import ClassifierSettings
from gpt2_from_scratch.examples import load_examples
from gpt2_from_scratch.files import sha256_of
from gpt2_from_scratch.metrics import wilson_interval
from gpt2_from_scratch.recipes import train_classifier
from gpt2_from_scratch.score_tables import format_scores
from gpt2_from_scratch.scores import tag_scores

HEADS = {
    "linear": ClassifierSettings(),
    "two stacked linear layers": ClassifierSettings(head="two-layer"),
    "tanh, dropout 0.1": ClassifierSettings(head="tanh", dropout=0.1),
    "one output, sigmoid": ClassifierSettings(head="sigmoid"),
    "linear, label smoothing 0.1": ClassifierSettings(label_smoothing=0.1),
    "linear, mean over tokens": ClassifierSettings(pooling="mean"),
    "linear, behind block 4 of 6": ClassifierSettings(layer=4),
    "linear, LoRA 8 in every block": ClassifierSettings(lora=8),
    "linear, LoRA 8 in the last block": ClassifierSettings(lora=8, lora_blocks=1),
}
PARTS = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")


def trained(data: Path, settings: ClassifierSettings, config: TrainConfig, **more: Any) -> Any:
    """(scores, seconds, bytes of the saved file, numbers that train) of one run of the mini."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run, classifier, scores = train_classifier(
            "mini", data, Path(folder) / "run", config, settings,
            quiet=True, say=lambda line: None, **more,
        )  # fmt: skip
        size = (run / "best.safetensors").stat().st_size
    count = sum(p.numel() for p in classifier.model.parameters() if p.requires_grad)
    return scores, time.perf_counter() - began, size, count


def sms(data: Path, seeds: Sequence[int], names: Sequence[str]) -> None:
    """A table of these classification heads."""
    print(f"{len(seeds)} splits; torch {torch.__version__}\n")
    print(
        "| head | test accuracy, % | 95 % interval | each split | numbers trained | file, KB | s |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in names:
        settings = HEADS[name]
        right, total, each, seconds = 0, 0, [], []
        for seed in seeds:
            config = TrainConfig(seed=seed, n_last_blocks=0 if settings.lora else 1)
            scores, took, size, count = trained(data, settings, config, balance=True)
            right, total = right + scores.correct, total + scores.total
            each.append(f"{100 * scores.accuracy:.1f}")
            seconds.append(took)
            print(f"seed {seed}, {name}: {each[-1]}, {took:.0f} s", file=sys.stderr, flush=True)
        low, high = (100 * bound for bound in wilson_interval(right, total))
        print(
            f"| {name} | {100 * right / total:.2f} | {low:.1f} to {high:.1f} | {', '.join(each)} "
            f"| {count:,} | {size / 1000:,.1f} | {statistics.mean(seconds):.0f} |",
            flush=True,
        )


def tagged(messages: Sequence[Message]) -> tuple[list[list[str]], list[list[str]]]:
    """The words of each text, and their tags."""
    words = [[m.text[word.start : word.end] for word in m.label] for m in messages]
    return words, [[word.label for word in m.label] for m in messages]


def wnut(folder: Path, epochs: int, n_last_blocks: int) -> None:
    """Entity F1 on the test part, and of the baseline."""
    train, dev, test = (load_examples(folder / name, "token-classification") for name in PARTS)
    tag_of = most_frequent_tag(*tagged(train))
    words, tags = tagged(test)
    names = sorted({tag for some in tagged(train)[1] for tag in some})
    print(f"\nWNUT17: {len(train):,} / {len(dev):,} / {len(test):,} texts; the test part's sha256 "
          f"begins {sha256_of(folder / PARTS[2])[:12]}\n")  # fmt: skip
    print("the most frequent tag of each word:\n")
    print(
        format_scores(tag_scores(tags, [[tag_of(word) for word in text] for text in words], names))
    )
    said: list[str] = []
    config = TrainConfig(epochs=epochs, patience=epochs, n_last_blocks=n_last_blocks)
    with tempfile.TemporaryDirectory() as run:
        _, _, scores = train_classifier(
            "mini", folder / PARTS[0], Path(run) / "run", config,
            ClassifierSettings("token-classification"), val_data=folder / PARTS[1],
            test_data=folder / PARTS[2], dtype=torch.bfloat16, quiet=True, say=said.append,
        )  # fmt: skip
    print(
        f"\nthe mini, last {n_last_blocks} blocks, {epochs} epochs; the epoch of the best F1 on dev:\n"
    )
    print("\n".join(line for line in said if line.startswith("epoch")) + "\n")
    print(format_scores(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="the file SMSSpamCollection")
    parser.add_argument("--wnut", type=Path, default=None, help="the folder of WNUT17's files")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=[*HEADS], metavar="HEAD")
    parser.add_argument("--epochs", type=int, default=8, help="over WNUT17 (default: 8)")
    parser.add_argument("--n-last-blocks", type=int, default=3, help="for WNUT17 (default: 3)")
    args = parser.parse_args()
    if args.seeds:
        sms(args.data or sms_path(), args.seeds, args.heads)
    if args.wnut:
        wnut(args.wnut, args.epochs, args.n_last_blocks)


if __name__ == "__main__":
    main()
