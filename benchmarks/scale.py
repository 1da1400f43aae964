"""Growth of time and memory with the number of messages: finetuning (one epoch) and predicting.

    python benchmarks/scale.py         # the miniature: 1,000 to 100,000 messages
    python benchmarks/scale.py --long  # 25,000 texts of 230 tokens, 8.8 GB of features
    python benchmarks/scale.py --long --texts 25000 100000 --tokens 16  # 2.6 GB of features
    python benchmarks/scale.py --predict 100000 1000000  # processor time and memory per message

The messages are distinct and have the lengths of the SMS Spam Collection, except that `--predict`
repeats messages after the first `--distinct`. The exponent is that of a power law through the last
two rows: 1 means linear growth.
"""

import argparse
import math
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from bench import PeakMemory, measure_machine, megabytes, random_gpt2, timed
from predict import messages

from gpt2_from_scratch import Classifier, Message, Split, TrainConfig, finetune
from gpt2_from_scratch.gpt2.config import SIZES
from gpt2_from_scratch.speed.feature_store import FeatureStore

CONFIG = TrainConfig(epochs=1)


def labelled(texts: list[str]) -> Split:
    """Messages labelled by a rule, so that they can be learned; a hundredth is for validation."""
    found = [Message(text, "long" if len(text) > 80 else "short") for text in texts]
    part = max(2, len(found) // 100)
    return Split(found[part:], found[:part], [])


def finetuned(
    classifier: Classifier, texts: list[str], config: TrainConfig = CONFIG
) -> tuple[float, float, float]:
    """(seconds, peak bytes, gigabytes of features) of computing features and one epoch."""
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as peak:
        store = classifier.store = FeatureStore(Path(folder) / "features", limit=30e9)
        run = Path(folder) / "run"
        run.mkdir()
        seconds = timed(lambda: finetune(classifier, labelled(texts), config, run))
        size = sum(row[2] for row in store.spaces())
    return seconds, peak.bytes, size / 1e9


def predicted(classifier: Classifier, texts: list[str]) -> tuple[float, float]:
    """(seconds, peak bytes) of predicting a stream."""
    with PeakMemory() as peak:
        seconds = timed(lambda: sum(1 for _ in classifier.predict_stream(iter(texts))))
    return seconds, peak.bytes


def exponent(counts: list[int], seconds: list[float]) -> float:
    """b of seconds = a * count^b through the last two points."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(counts[-1] / counts[-2])


def growth(model: str, counts: list[int]) -> None:
    """Print the table for these numbers of messages."""
    print("| messages | finetune, s | MB | predict, s | MB |\n|---|---|---|---|---|")
    seconds: list[list[float]] = [[], []]
    for count in counts:
        texts = messages(count)
        classifier = Classifier.on_base(model, ["long", "short"], dtype=torch.bfloat16)
        trained, peak, _ = finetuned(classifier, texts)
        predicting, peak_of_predicting = predicted(classifier, texts)
        seconds[0].append(trained)
        seconds[1].append(predicting)
        print(
            f"| {count:,} | {trained:,.1f} | {megabytes(peak)} | {predicting:,.1f} "
            f"| {megabytes(peak_of_predicting)} |",
            flush=True,
        )
    both = " and ".join(f"{exponent(counts, each):.2f}" for each in seconds)
    print(f"exponents of finetuning and predicting: {both}")


def stream(model: str, counts: list[int], n_distinct: int) -> None:
    """Print the cost of predicting streams of these numbers of messages.

    The first `n_distinct` messages are distinct. Later ones repeat some of these, whose answers are
    remembered.
    """
    distinct = messages(n_distinct)
    classifier = Classifier.on_base(model, ["long", "short"], dtype=torch.bfloat16)

    def texts(count: int) -> Iterator[str]:
        draw = random.Random(1)
        yield from distinct[:count]
        for _ in range(len(distinct), count):
            yield distinct[draw.randrange(len(distinct) // 2, len(distinct))]

    print(
        "| messages | distinct | processor seconds | per million, hours | MB |\n|---|---|---|---|---|"
    )
    for count in counts:
        started = time.process_time()
        with PeakMemory() as peak:
            n = sum(1 for _ in classifier.predict_stream(texts(count)))
        seconds = time.process_time() - started
        print(
            f"| {n:,} | {min(n, len(distinct)):,} | {seconds:,.0f} | {seconds / n / 3600 * 1e6:.2f} "
            f"| {megabytes(peak.bytes)} |",
            flush=True,
        )


def long_texts(count: int, tokens: int, config: TrainConfig) -> None:
    """Compute features of the width of 124M, many times larger than the allowed memory.

    Only width and length matter here, so the frozen part is one block instead of eleven.
    """
    draw = random.Random(123)
    words = [" the", " and", " you", " that", " was", " for", " are", " with", " this", " have"]
    texts = ["".join(draw.choice(words) for _ in range(tokens)) for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        base = random_gpt2(Path(folder), replace(SIZES["124M"], n_layer=2))
        classifier = Classifier.on_base(base, ["long", "short"], dtype=torch.bfloat16)
    weights = sum(parameter.nbytes for parameter in classifier.model.parameters())
    with PeakMemory() as before:
        pass
    seconds, peak, size = finetuned(classifier, texts, config)
    print(
        f"{count:,} texts of {tokens} tokens, {size:.1f} GB of features: {seconds:,.0f} s; at most "
        f"{megabytes(peak)} MB resident, {megabytes(before.bytes)} MB before, weights "
        f"{megabytes(weights)} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--long", action="store_true", help="measure the long texts instead")
    parser.add_argument("--texts", type=int, nargs="+", default=[25_000], help="with --long")
    parser.add_argument("--tokens", type=int, default=230, help="tokens per text, with --long")
    parser.add_argument("--batch-size", type=int, default=CONFIG.batch_size, help="with --long")
    parser.add_argument("--predict", type=int, nargs="+", help="only predict so many messages")
    parser.add_argument("--distinct", type=int, default=100_000, help="with --predict")
    args = parser.parse_args()
    print(f"scale: {measure_machine().describe()}")
    if args.long:
        for count in args.texts:
            long_texts(count, args.tokens, replace(CONFIG, batch_size=args.batch_size))
    elif args.predict:
        stream(args.model, args.predict, args.distinct)
    else:
        growth(args.model, args.counts)


if __name__ == "__main__":
    main()
