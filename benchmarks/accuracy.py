"""Test accuracy on the SMS Spam Collection: a pretrained GPT-2, its random twin, and bags of words.

All on the same duplicate-free, label-balanced splits (914 / 130 / 262 messages), one a seed:

    python benchmarks/accuracy.py --data data/sms_spam/SMSSpamCollection --seeds 1 2 3
"""

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
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
    "bag of words, logistic regression": lambda: CountVectorizer(),
    "TF-IDF of words": lambda: TfidfVectorizer(),
    "TF-IDF of characters, 2 to 5": lambda: TfidfVectorizer(
        analyzer="char", ngram_range=(2, 5), sublinear_tf=True
    ),
}


def baseline_right(vectorizer: object, split: Split) -> int:
    """How many test messages logistic regression on these features gets right."""
    classifier = make_pipeline(vectorizer, LogisticRegression(max_iter=2000, C=10))
    classifier.fit([m.text for m in split.train], [m.label for m in split.train])
    predicted = classifier.predict([m.text for m in split.test])
    return sum(p == m.label for p, m in zip(predicted, split.test, strict=True))


def finetuned_right(model: str | Path, data: Path, config: TrainConfig) -> int:
    """How many test messages the finetuned model gets right."""
    with tempfile.TemporaryDirectory() as run:
        _, _, evaluation = train_classifier(
            model, data, Path(run), config, balance=True, say=lambda line: None, quiet=True
        )
    return evaluation.correct


def random_twin(model: str, folder: Path, seed: int) -> Path:
    """The same architecture and tokenizer with weights as before pretraining."""
    source = model_folder(model)
    twin = GPT2(read_config(source))
    init_weights(twin, torch.Generator().manual_seed(seed))
    save_gpt2(twin, folder)
    for name in ("vocab.bpe", "encoder.json"):
        shutil.copy(source / name, folder / name)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the file SMSSpamCollection")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    messages = load_sms_spam(args.data)
    right: dict[str, list[int]] = {}
    seconds: dict[str, float] = {}
    for seed in args.seeds:
        split = split_messages(messages, balance=True, seed=seed)
        config = TrainConfig(seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            twin = random_twin(args.model, Path(folder), seed)
            rows = {
                f"{args.model}, last block": lambda: finetuned_right(args.model, args.data, config),  # noqa: B023
                f"{args.model}, last three blocks": lambda: finetuned_right(
                    args.model,
                    args.data,
                    replace(config, n_last_blocks=3),  # noqa: B023
                ),
                "its random twin, last block": lambda: finetuned_right(twin, args.data, config),  # noqa: B023
            } | {
                name: lambda make=make: baseline_right(make(), split)  # noqa: B023
                for name, make in BASELINES.items()
            }
            for name, count in rows.items():
                start = time.perf_counter()
                right.setdefault(name, []).append(count())
                seconds[name] = time.perf_counter() - start
    n = len(split.test)
    print(
        f"{len(args.seeds)} splits of {n} test messages; seeds {args.seeds}; torch {torch.__version__}"
    )
    print("| classifier | accuracy % (95 % interval over all splits) | each split | seconds |")
    print("|---|---|---|---|")
    for name, counts in right.items():
        low, high = wilson_interval(sum(counts), n * len(counts))
        each = ", ".join(f"{100 * count / n:.1f}" for count in counts)
        mean = 100 * statistics.mean(counts) / n
        print(
            f"| {name} | {mean:.2f} ({100 * low:.1f} to {100 * high:.1f}) | {each} | {seconds[name]:.1f} |"
        )


if __name__ == "__main__":
    main()
