"""Where should a classifier read a text? Accuracy, and how many answers a reader cannot explain.

    python benchmarks/reading.py --trec ../shared/data/trec --sst2 ../shared/data/sst2
    python benchmarks/reading.py --sets sms topics --readings last_token newline --test

An answer that changes though no reader could see why, or for one punctuation mark, is a flip. Each
classifier is trained on the miniature with the package's default settings, except for what is
compared. Without --test, validation texts are scored, on which a reading may be chosen; --test
scores the test texts, once, at the end. Results are kept in --out, one JSON object per line, and a
second call trains only what is missing.
"""

import argparse
import json
import statistics
import unicodedata
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
from gpt2_from_scratch.classifier import classifier as reading
from gpt2_from_scratch.data.formats import label_names
from gpt2_from_scratch.data.messages import load_messages
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.speed.devices import set_threads

END_TOKENS: dict[str, Callable[[Tokenizer], list[int]]] = {
    "newline": lambda tokenizer: tokenizer.encode("\n"),
    "end of text": lambda tokenizer: [tokenizer.end_of_text_id],
    "both": lambda tokenizer: [*tokenizer.encode("\n"), tokenizer.end_of_text_id],
}
READINGS = ("last_token", "mean", *END_TOKENS)
FINAL = ".!?…。"
CHANGES: dict[str, Callable[[str], str]] = {
    "newline": lambda text: text + "\n",
    "space": lambda text: text + " ",
    "U+FEFF": lambda text: text + "\ufeff",
    "U+200B": lambda text: text + "\u200b",
    "CRLF": lambda text: text.replace("\n", "\r\n") + "\r\n",
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "final mark": lambda text: text[:-1] if text[-1] in FINAL and text[:-1].strip() else text + ".",
}


@dataclass(frozen=True)
class DataSet:
    """A data set: how it is split with a seed; the test part is read with --test only."""

    name: str
    split: Callable[[int], Split]


def own_split(name: str, **options: Any) -> DataSet:
    """A data set that ships with the package, split 70 / 10 / 20."""
    return DataSet(name, lambda seed: split_messages(load_messages(name), seed=seed, **options))


def given_test(name: str, folder: Path) -> DataSet:
    """A data set with a test file: three tenths of its training file are the validation set."""

    def split(seed: int) -> Split:
        found = split_messages(load_messages(folder / "train.csv"), seed=seed)
        known = {message.text for message in (*found.train, *found.val, *found.test)}
        test = [m for m in load_messages(folder / "test.csv") if m.text not in known]
        return Split(found.train, [*found.val, *found.test], test)

    return DataSet(name, split)


def main() -> None:
    """Train, score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trec", type=Path, default=SHARED / "data" / "trec")
    parser.add_argument("--sst2", type=Path, default=SHARED / "data" / "sst2")
    parser.add_argument("--sets", nargs="+", default=["sms", "topics", "trec", "sst2"])
    parser.add_argument("--readings", nargs="+", choices=READINGS, default=READINGS)
    parser.add_argument("--blocks", nargs="+", type=int, default=[1, 3])
    parser.add_argument(
        "--texts", nargs="+", type=int, default=[1000], help="training texts, at most"
    )
    parser.add_argument("--most", type=int, default=600, help="scored texts, at most")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--test", action="store_true", help="score the test texts")
    parser.add_argument("--out", type=Path, default=Path("runs/reading.jsonl"))
    args = parser.parse_args()
    set_threads(args.threads)
    sets = [
        own_split("sms", balance=True),
        own_split("topics"),
        given_test("trec", args.trec),
        given_test("sst2", args.sst2),
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        [json.loads(line) for line in args.out.read_text().splitlines()]
        if args.out.exists()
        else []
    )
    wanted = [data for data in sets if data.name in args.sets]
    for seed, data, n, blocks, where in product(
        args.seeds, wanted, args.texts, args.blocks, args.readings
    ):
        key = [data.name, n, blocks, where, seed, args.test]
        if key in [row["key"] for row in rows]:
            continue
        row = {"key": key} | measured(data.split(seed), n, blocks, where, seed, args)
        note(f"{key}: {100 * row['accuracy']:.1f}%, flips {row['flips']}")
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
    print_table([row for row in rows if row["key"][5] == args.test])
    print(measure_machine())


def measured(
    split: Split, n: int, blocks: int, where: str, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Train one classifier; its accuracy, which texts are correct, and the flips of each change."""
    pooling = "end_token" if where in END_TOKENS else where
    end = END_TOKENS.get(where, END_TOKENS["newline"])
    shuffled = np.random.RandomState(seed).permutation(len(split.train))[:n]
    part = Split([split.train[k] for k in shuffled], split.val[: args.most], split.test)
    scored = (split.test if args.test else split.val)[: args.most]
    with mock.patch.object(reading, "end_tokens", end), TemporaryDirectory() as folder, silenced():
        labels = label_names(split.train, "classification")
        classifier = Classifier.on_base("mini", labels, pooling=pooling, seed=seed)
        config = TrainConfig(n_last_blocks=blocks, seed=seed)
        seconds = timed(lambda: finetune(classifier, part, config, Path(folder)))
        answers = labels_of(classifier, scored)
        correct = [a == message.label for a, message in zip(answers, scored, strict=True)]
        flips, accuracies = {}, {}
        for name, change in CHANGES.items():
            changed = labels_of(classifier, [Message(change(m.text), m.label) for m in scored])
            flips[name] = statistics.mean(a != b for a, b in zip(answers, changed, strict=True))
            accuracies[name] = statistics.mean(
                a == message.label for a, message in zip(changed, scored, strict=True)
            )
    return {
        "accuracy": statistics.mean(correct),
        "correct": [int(one) for one in correct],
        "flips": flips,
        "accuracies": accuracies,
        "seconds": seconds,
        "n": len(part.train),
    }


def labels_of(classifier: Classifier, messages: Sequence[Message]) -> list[str]:
    """The label of each message."""
    return [found.label for found in classifier.predict([m.text for m in messages])]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The mean over seeds of each row's accuracy and flips."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row["key"][:4]), []).append(row)
    print(
        f"{'data, texts, blocks, reading':40} {'seeds':>5} {'acc':>6} "
        + " ".join(f"{c:>10}" for c in CHANGES)
    )
    for key, found in sorted(groups.items()):
        flips = [100 * statistics.mean(r["flips"][c] for r in found) for c in CHANGES]
        accuracy = 100 * statistics.mean(r["accuracy"] for r in found)
        print(
            f"{'  '.join(map(str, key)):40} {len(found):5} {accuracy:6.2f} "
            + " ".join(f"{f:10.1f}" for f in flips)
        )


if __name__ == "__main__":
    main()
