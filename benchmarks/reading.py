"""Where should a classifier read a text, and for how many steps should it learn?

    python benchmarks/reading.py
    python benchmarks/reading.py --sets sms topics --readings last_token newline --test

A flip is an answer that changes although no reader could see why, or only because of one
punctuation mark at the end. Each classifier is trained on the miniature with the package's default
settings, except for what is compared. Settings are chosen on development texts, which no training
sees. With --test, the table shows the scores of the test texts instead. Results are kept in --out,
one JSON object per line, and a second call trains only what is missing.
"""

import argparse
import json
import math
import statistics
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
from bench import SHARED, measure_machine, note, timed

from gpt2_from_scratch import Classifier, Message, Split, Tokenizer, TrainConfig, finetune
from gpt2_from_scratch.classifier import classifier as module
from gpt2_from_scratch.data.formats import label_names
from gpt2_from_scratch.data.messages import load_messages, other_ending
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.speed.devices import set_threads

END_TOKENS: dict[str, Callable[[Tokenizer], list[int]]] = {
    "newline": lambda tokenizer: tokenizer.encode("\n"),
    "end of text": lambda tokenizer: [tokenizer.end_of_text_id],
    "both": lambda tokenizer: [*tokenizer.encode("\n"), tokenizer.end_of_text_id],
}
VARIED = "newline, varied"  # trained on every text with two endings
READINGS = ("last_token", "mean", *END_TOKENS, VARIED)

CHANGES: dict[str, Callable[[str], str]] = {
    "newline": lambda text: text + "\n",
    "space": lambda text: text + " ",
    "U+FEFF": lambda text: text + "\ufeff",
    "U+200B": lambda text: text + "\u200b",
    "CRLF": lambda text: text.replace("\n", "\r\n") + "\r\n",
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "final mark": other_ending,
}


@dataclass(frozen=True)
class Parts:
    """The texts of one seed: to train on, to stop at, to choose on, and to score once."""

    train: list[Message]
    val: list[Message]
    dev: list[Message]
    test: list[Message]


def own_parts(name: str, seed: int, **options: Any) -> Parts:
    """A data set that ships with the package; a fifth of its training part becomes `dev`."""
    split = split_messages(load_messages(name), seed=seed, **options)
    n = len(split.train) // 5
    return Parts(split.train[n:], split.val, split.train[:n], split.test)


def given_parts(folder: Path, seed: int) -> Parts:
    """A data set with a test file of its own; a fifth of its training file becomes `dev`."""
    split = split_messages(load_messages(folder / "train.csv"), seed=seed)
    known = {message.text for message in (*split.train, *split.val, *split.test)}
    test = [m for m in load_messages(folder / "test.csv") if m.text not in known]
    return Parts(split.train, split.val, split.test, test)


def parts_of(name: str, seed: int, data: Path) -> Parts:
    """A data set of the package, or one in the folder `data`."""
    if name in ("sms", "topics"):
        return own_parts(name, seed, **({"balance": True} if name == "sms" else {}))
    return given_parts(data / name, seed)


def main() -> None:
    """Train, score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of trec, sst2")
    parser.add_argument("--sets", nargs="+", default=["sms", "topics", "trec", "sst2"])
    parser.add_argument("--readings", nargs="+", choices=READINGS, default=READINGS)
    parser.add_argument("--blocks", nargs="+", type=int, default=[1])
    parser.add_argument(
        "--texts", nargs="+", type=int, default=[80, 500, 10**6], help="training texts, at most"
    )
    parser.add_argument("--steps", nargs="+", type=int, default=[500], help="least number of steps")
    parser.add_argument("--flips", type=int, default=300, help="texts that are changed, at most")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--test", action="store_true", help="show the scores of the test texts")
    parser.add_argument("--against", default="last_token", help="reading to compare with")
    parser.add_argument("--out", type=Path, default=Path("runs/reading.jsonl"))
    args = parser.parse_args()
    set_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = args.out.read_text().splitlines() if args.out.exists() else []
    rows = {tuple(row["key"]): row for row in map(json.loads, known)}
    wanted = [*product(args.sets, args.texts, args.steps, args.blocks, args.readings, args.seeds)]
    for key in sorted(wanted, key=lambda key: key[-1]):  # one seed of everything first
        if key in rows:
            continue
        rows[key] = {"key": key} | measured(*key, args)
        note(f"{key}: {100 * np.mean(rows[key]['dev']['correct']):.1f}%")
        with args.out.open("a") as file:
            file.write(json.dumps(rows[key]) + "\n")
    print_table([rows[key] for key in wanted], "test" if args.test else "dev", args.against)
    print(measure_machine().describe())


def measured(
    name: str, n: int, steps: int, blocks: int, where: str, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Train one classifier, and score it on the development and test texts."""
    parts = parts_of(name, seed, args.data)
    shuffled = np.random.RandomState(seed).permutation(len(parts.train))
    train = [parts.train[k] for k in shuffled[:n]]
    val = parts.val[: max(20, len(train) // 7)]  # a user with few texts has few to stop at
    labels = label_names(parts.train, "classification")
    epochs = max(10, math.ceil(steps / math.ceil(len(train) / 16)))
    pooling = where if where in ("last_token", "mean") else "end_token"
    end = END_TOKENS.get(where, END_TOKENS["newline"])
    config = TrainConfig(
        n_last_blocks=blocks,
        seed=seed,
        epochs=epochs // 2 if where == VARIED else epochs,  # as many steps as the others
        vary_endings=where == VARIED,
    )
    with mock.patch.object(module, "end_tokens", end), TemporaryDirectory() as folder, silenced():
        classifier = Classifier.on_base("mini", labels, pooling=pooling, seed=seed)
        seconds = timed(lambda: finetune(classifier, Split(train, val, []), config, Path(folder)))
        scores = {
            part: scored(classifier, getattr(parts, part), args.flips) for part in ("dev", "test")
        }
    return scores | {"seconds": seconds, "n": len(train), "epochs": epochs}


def scored(classifier: Classifier, messages: Sequence[Message], most: int) -> dict[str, Any]:
    """Which answers are correct, and how many of the first `most` each change flips."""
    first = messages[:most]
    texts = [m.text for m in messages]
    texts += [change(m.text) for change in CHANGES.values() for m in first]
    # in one call, because texts with the same tokens are computed once
    found = [prediction.label for prediction in classifier.predict(texts)]
    answers, rest = found[: len(messages)], iter(found[len(messages) :])
    changed = {name: [next(rest) for _ in first] for name in CHANGES}
    return {
        "texts": [zlib.crc32(m.text.encode()) for m in messages],
        "correct": [int(a == m.label) for a, m in zip(answers, messages, strict=True)],
        "flips": {
            name: statistics.mean(a != b for a, b in zip(answers, found, strict=False))
            for name, found in changed.items()
        },
        "accuracies": {
            name: statistics.mean(a == m.label for a, m in zip(found, first, strict=True))
            for name, found in changed.items()
        },
    }


def print_table(rows: Sequence[dict[str, Any]], part: str, against: str) -> None:
    """Print the mean over seeds of accuracy and flips and paired differences."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row["key"][:5]), []).append(row)
    print(
        f"{part:8}{'texts':>7}{'steps':>6}{'blocks':>7} {'reading':21}{'acc':>6}{'sd':>5}"
        f"{'diff':>6}{' (95%)':13}{'s':>5} " + "".join(f"{change:>11}" for change in CHANGES)
    )
    for key, found in groups.items():
        name, texts, steps, blocks, where = key
        means = [100 * np.mean(row[part]["correct"]) for row in found]
        flips = [100 * np.mean([r[part]["flips"][change] for r in found]) for change in CHANGES]
        seconds = statistics.median(row["seconds"] for row in found)
        other = groups.get((name, texts, steps, blocks, against))
        print(
            f"{name:8}{min(texts, found[0]['n']):7}{steps:6}{blocks:7} {where:21}"
            f"{np.mean(means):6.1f}{np.std(means):5.1f}{compared(found, other, part)}{seconds:5.0f} "
            + "".join(f"{flip:11.1f}" for flip in flips)
        )


def compared(rows: list[dict[str, Any]], other: list[dict[str, Any]] | None, part: str) -> str:
    """The difference in points with its 95% interval.

    The texts are the sample: the answers of all seeds to one text count as one observation.
    """
    if other is None or other is rows:
        return f"{'':19}"
    differences = defaultdict(list)
    seeds = {row["key"][5]: row[part] for row in other}
    for a, b in ((row[part], seeds[row["key"][5]]) for row in rows if row["key"][5] in seeds):
        for text, one, two in zip(a["texts"], a["correct"], b["correct"], strict=True):
            differences[text].append(100.0 * (one - two))
    means = [statistics.mean(found) for found in differences.values()]
    half = 1.96 * statistics.stdev(means) / math.sqrt(len(means))
    middle = statistics.mean(means)
    return f"{middle:+6.1f} ({middle - half:+5.1f},{middle + half:+5.1f})"


if __name__ == "__main__":
    main()
