"""Does it help to adapt GPT-2 to the texts before a classifier is trained on it, and what does it cost?

    python benchmarks/adaptation.py
    python benchmarks/adaptation.py --sets trec --texts 80 --epochs 3 --seeds 1 --test

Each classifier is trained on the miniature with the package's default settings. Before that, GPT-2
is adapted to its training texts ("own"), or also to the remaining training texts, whose labels are
not used ("more"). The parts are those of benchmarks/reading.py. With --test, the table shows the
scores of the test texts instead of the development texts. Results are kept in --out, one JSON object
per line, and a second call trains only what is missing.
"""

import argparse
import json
import statistics
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from bench import SHARED, measure_machine, note, timed
from reading import compared, parts_of

from gpt2_from_scratch import Classifier, Message, Split, TrainConfig, finetune
from gpt2_from_scratch.classifier.adaptation import adapt
from gpt2_from_scratch.data.formats import label_names
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.speed.devices import set_threads

DEFAULT = (0, "none")
TEXTS = ("own", "more")


def main() -> None:
    """Train, score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of trec, sst2")
    parser.add_argument("--sets", nargs="+", default=["trec", "sst2", "sms", "topics"])
    parser.add_argument(
        "--texts", nargs="+", type=int, default=[80, 500, 10**6], help="training texts, at most"
    )
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 3, 10])
    parser.add_argument("--adapt-to", nargs="+", choices=TEXTS, default=TEXTS)
    parser.add_argument("--more", type=int, default=2000, help="texts without labels, at most")
    parser.add_argument("--lr", nargs="+", type=float, default=[0.0], help="0: the default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--test", action="store_true", help="show the scores of the test texts")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation.jsonl"))
    args = parser.parse_args()
    set_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = args.out.read_text().splitlines() if args.out.exists() else []
    rows = {tuple(row["key"]): row for row in map(json.loads, known)}
    each = [(*DEFAULT, 0.0), *product(args.epochs, args.adapt_to, args.lr)]
    wanted = [
        (name, n, *adaptation, seed)
        for name, n, adaptation, seed in product(args.sets, args.texts, each, args.seeds)
        if adaptation[1] != "more" or n < 10**6  # all texts leave no others
    ]
    for key in sorted(wanted, key=lambda key: key[-1]):  # one seed of everything first
        if key in rows:
            continue
        rows[key] = {"key": key} | measured(*key, args)
        note(f"{key}: {100 * np.mean(rows[key]['dev']['correct']):.1f}%")
        with args.out.open("a") as file:
            file.write(json.dumps(rows[key]) + "\n")
    print_table([rows[key] for key in wanted], "test" if args.test else "dev")
    print(measure_machine().describe())


def measured(
    name: str, n: int, epochs: int, to: str, lr: float, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Adapt GPT-2, train one classifier, and score it on the development and test texts."""
    parts = parts_of(name, seed, args.data)
    shuffled = np.random.RandomState(seed).permutation(len(parts.train))
    train = [parts.train[k] for k in shuffled[:n]]
    more = [parts.train[k].text for k in shuffled[n : n + args.more]]
    val = parts.val[: max(20, len(train) // 7)]  # a user with few texts has few to stop at
    labels = label_names(parts.train, "classification")
    split, found = Split(train, val, []), {}
    with TemporaryDirectory() as folder, silenced():
        classifier = Classifier.on_base("mini", labels, seed=seed)
        if epochs:
            config = TrainConfig(seed=seed, adapt=epochs, adapt_lr=lr)
            texts = more if to == "more" else []
            found = asdict(adapt(classifier, split, texts, config, Path(folder) / "adaptation"))
        training = TrainConfig(seed=seed)
        seconds = timed(lambda: finetune(classifier, split, training, Path(folder) / "run"))
        scores = {part: scored(classifier, getattr(parts, part)) for part in ("dev", "test")}
    return scores | {"seconds": seconds, "n": len(train), "adaptation": found}


def scored(classifier: Classifier, messages: Sequence[Message]) -> dict[str, Any]:
    """Which answers are correct."""
    answers = classifier.predict([message.text for message in messages])
    return {
        "texts": [zlib.crc32(message.text.encode()) for message in messages],
        "correct": [int(a.label == m.label) for a, m in zip(answers, messages, strict=True)],
    }


def print_table(rows: Sequence[dict[str, Any]], part: str) -> None:
    """Print the mean over seeds of accuracy, bits per byte, seconds and paired differences."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row["key"][:5]), []).append(row)
    print(
        f"{part:8}{'texts':>6}{'epochs':>7} {'to':5}{'lr':>7}{'seeds':>6}{'acc':>6}{'sd':>5}"
        f"{'diff':>6}{' (95%)':13}{'bits per byte':>15}{'adapt s':>8}{'train s':>8}"
    )
    for key, found in groups.items():
        name, n, epochs, to, lr = key
        means = [100 * np.mean(row[part]["correct"]) for row in found]
        bits, spent = "", 0.0
        if epochs:
            each = [row["adaptation"] for row in found]
            before, after = (np.mean([a[f"bits_{x}"] for a in each]) for x in ("before", "after"))
            bits = f"{before:.2f} -> {after:.2f}"
            spent = statistics.median(a["seconds"] for a in each)
        other = groups.get((name, n, *DEFAULT, 0.0))
        print(
            f"{name:8}{min(n, found[0]['n']):6}{epochs:7} {to:5}{lr:7.0e}{len(found):6}"
            f"{np.mean(means):6.1f}{np.std(means):5.1f}{compared(found, other, part)}"
            f"{bits:>15}{spent:8.0f}{statistics.median(r['seconds'] for r in found):8.0f}"
        )


if __name__ == "__main__":
    main()
