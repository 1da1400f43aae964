"""Test accuracy on the SMS Spam Collection: a pretrained GPT-2, its random twin, and bags of words.

All on the same duplicate-free, label-balanced splits (914 / 130 / 262 messages), one a seed:

    python benchmarks/accuracy.py --seeds 1 2 3
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import copy_vocabulary, sms_path
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from gpt2_from_scratch import GPT2, Split, TrainConfig, load_sms_spam, save_gpt2, split_messages
from gpt2_from_scratch.config import read_config
from gpt2_from_scratch.metrics import wilson_interval
from gpt2_from_scratch.model import init_weights
from gpt2_from_scratch.paths import model_folder
from gpt2_from_scratch.recipes import train_classifier

BASELINES = {
    "bag of words, logistic regression": CountVectorizer,
    "TF-IDF of words": TfidfVectorizer,
    "TF-IDF of characters, 2 to 5": partial(
        TfidfVectorizer, analyzer="char", ngram_range=(2, 5), sublinear_tf=True
    ),
}


def baseline_right(make: Callable[[], Any], split: Split) -> int:
    """How many test messages logistic regression on these features gets right.

    Its regularisation is chosen on the validation part, as finetuning chooses its epoch.
    """
    best = (-1, 0)
    for C in (0.1, 1, 10, 100):
        classifier = make_pipeline(make(), LogisticRegression(max_iter=5000, C=C))
        classifier.fit([m.text for m in split.train], [m.label for m in split.train])
        val, test = (
            sum(classifier.predict([m.text for m in part]) == [m.label for m in part])
            for part in (split.val, split.test)
        )
        best = max(best, (int(val), int(test)), key=lambda pair: pair[0])
    return best[1]


def finetuned_right(model: str | Path, data: Path, config: TrainConfig) -> int:
    """How many test messages the finetuned model gets right."""
    with tempfile.TemporaryDirectory() as run:
        _, _, evaluation = train_classifier(
            model, data, Path(run), config, balance=True, cache=False, quiet=True,
            say=lambda line: None,
        )  # fmt: skip
    return evaluation.correct


def random_twin(model: str, folder: Path, seed: int) -> Path:
    """The same architecture and tokenizer with weights as before pretraining."""
    source = model_folder(model)
    twin = GPT2(read_config(source))
    init_weights(twin, torch.Generator().manual_seed(seed))
    save_gpt2(twin, folder)
    copy_vocabulary(source, folder)
    return folder


def one_seed(model: str, data: Path, split: Split, seed: int) -> dict[str, int]:
    """{classifier: right answers} on one split."""
    config = TrainConfig(seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        twin = random_twin(model, Path(folder), seed)
        return {
            f"{model}, last block": finetuned_right(model, data, config),
            f"{model}, last three blocks": finetuned_right(
                model, data, replace(config, n_last_blocks=3)
            ),
            "its random twin, last block": finetuned_right(twin, data, config),
        } | {name: baseline_right(make, split) for name, make in BASELINES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="the file SMSSpamCollection")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    data = args.data or sms_path()
    messages = load_sms_spam(data)
    right: dict[str, list[int]] = {}
    for seed in args.seeds:
        split = split_messages(messages, balance=True, seed=seed)
        for name, count in one_seed(args.model, data, split, seed).items():
            right.setdefault(name, []).append(count)
            print(f"seed {seed}, {name}: {count} of {len(split.test)}", file=sys.stderr, flush=True)
    n = len(split.test)
    print(f"{len(args.seeds)} splits, {n} test messages each; torch {torch.__version__}\n")
    print("| classifier | test accuracy, % | 95 % interval | each split |")
    print("|---|---|---|---|")
    for name, counts in right.items():
        low, high = (100 * bound for bound in wilson_interval(sum(counts), n * len(counts)))
        each = ", ".join(f"{100 * count / n:.1f}" for count in counts)
        mean = 100 * statistics.mean(counts) / n
        print(f"| {name} | {mean:.2f} | {low:.1f} to {high:.1f} | {each} |")


if __name__ == "__main__":
    main()
