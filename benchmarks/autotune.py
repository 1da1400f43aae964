"""Is `train --autotune` worth its time? Compare it with the default, TF-IDF and fastText.

    pip install fasttext-numpy2
    python benchmarks/autotune.py --threads 1
    python benchmarks/autotune.py --sets trec sms --texts 1000000 --methods grid

Each classifier trains on the same texts, chooses its settings on the same validation texts and is
scored once on the same test texts. fastText gets the same time for its own autotune, on texts in
lower case with punctuation marks apart, as its authors recommend. Every method of GPT-2 is also
scored together with n-grams (`--with-ngrams`). Results are kept in --out, one JSON object per line,
and a second call trains only what is missing.
"""

import argparse
import hashlib
import json
import multiprocessing
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from bench import SHARED, measure_machine, note
from reading import compared

from gpt2_from_scratch import HeadSettings, Message, Split, TrainConfig, train_classifier
from gpt2_from_scratch.data.formats import label_names
from gpt2_from_scratch.data.messages import DataConfig, load_messages, write_messages
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.evaluation.baselines import fit_linear, words_and_characters
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.runs.results import add_ngrams
from gpt2_from_scratch.speed.devices import set_threads

GRID = {  # the grid search: all combinations, with the default number of epochs
    "n_last_blocks": (1, 3, 6, 0),
    "pooling": ("end_token", "mean"),
    "lr": (5e-4, 1.5e-3, 1.7e-4),
}
WITH_NGRAMS = " + n-grams"
PATIENCE = 10  # minutes after which fastText's search is given up, in addition to its own time
METHODS = ("default", "TF-IDF", "autotune 2m", "fastText 2m", "autotune 5m", "fastText 5m")


def parts_of(name: str, n: int, seed: int, data: Path) -> Split:
    """At most `n` training texts, and validation and test texts.

    Whoever has few training texts also has few to choose settings on.
    """
    if name in ("sms", "topics"):
        split = split_messages(load_messages(name), seed=seed)
    else:
        split = split_messages(load_messages(data / name / "train.csv"), seed=seed)
        known = {message.text for part in vars(split).values() for message in part}
        test = [m for m in load_messages(data / name / "test.csv") if m.text not in known]
        split = Split([*split.train, *split.test], split.val, test)
    order = np.random.RandomState(seed).permutation(len(split.train))
    train = [split.train[k] for k in order[:n]]
    return Split(train, split.val[: max(20, len(train) // 7)], split.test)


def main() -> None:
    """Train, score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of trec, sst2")
    parser.add_argument("--sets", nargs="+", default=["sms", "topics", "trec", "sst2"])
    parser.add_argument("--texts", nargs="+", type=int, default=[80, 500, 10**6], help="at most")
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, "grid"), default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[2])
    parser.add_argument("--threads", type=int, help="number of threads, also for fastText")
    parser.add_argument("--out", type=Path, default=Path("runs/autotune.jsonl"))
    args = parser.parse_args()
    set_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = args.out.read_text().splitlines() if args.out.exists() else []
    rows = {tuple(row["key"]): row for row in map(json.loads, known)}
    for name, n, method, seed in product(args.sets, args.texts, args.methods, args.seeds):
        if (name, n, method, seed) in rows:
            continue
        split = parts_of(name, n, seed, args.data)
        sizes = {"n": len(split.train), "n_val": len(split.val)}
        new = {
            (name, n, found, seed): {"key": (name, n, found, seed)} | sizes | row
            for found, row in measured(method, split, seed, args).items()
        }
        rows |= new
        for key, row in new.items():
            score = f"{100 * np.mean(row['correct']):.1f}%" if row["correct"] else "no answers"
            note(f"{key}: {score} in {row['seconds']:.0f} s")
        with args.out.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in new.values()))
    print_table(rows)
    print(measure_machine().describe())


def measured(method: str, split: Split, seed: int, args: Any) -> dict[str, dict[str, Any]]:
    """Train with a method; return {its name: which answers to the test texts are correct}."""
    kind, _, budget = method.partition(" ")
    minutes = int(budget.removesuffix("m") or 0)
    started = time.monotonic()
    if kind == "TF-IDF":
        found = {method: tf_idf(split)}
    elif kind == "fastText":
        found = {method: fasttext(split, minutes, args.threads or 2, seed)}
    else:
        if kind == "grid":
            of_data = hashlib.sha256("".join(m.text for m in split.train).encode()).hexdigest()[:8]
            answers = grid_search(split, seed, args.out.with_suffix(f".grid-{of_data}.jsonl"))
        else:
            _, answers = gpt2(split, TrainConfig(seed=seed), HeadSettings(), minutes)
        found = {method: answers[0], method + WITH_NGRAMS: answers[1]}
    texts = [message.text for message in split.test]
    true = [message.label for message in split.test]
    return {
        name: {
            "texts": texts,
            "correct": [int(a == b) for a, b in zip(answers, true, strict=bool(answers))],
            "seconds": time.monotonic() - started,
            "settings": settings,
        }
        for name, (answers, settings) in found.items()
    }


Found = tuple[list[str], Any]  # the answers to the test texts, and the settings that were chosen


def tf_idf(split: Split) -> Found:
    """Logistic regression on n-grams of words and characters."""
    labels = label_names([*split.train, *split.val, *split.test], "classification")
    fitted = fit_linear("TF-IDF", words_and_characters, split, labels)
    assert fitted
    best = fitted.probabilities([message.text for message in split.test]).argmax(axis=1)
    return [labels[k] for k in best], ""


def fasttext(split: Split, minutes: int, threads: int, seed: int) -> Found:
    """fastText with its own search for settings, in a process of its own.

    With few texts the search may never end, or end with NaN. It then has no answers.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = split, minutes, threads, seed, queue
    process = context.Process(target=put_fasttext, args=arguments, daemon=True)
    process.start()
    try:
        return queue.get(timeout=60 * (minutes + PATIENCE))
    except Empty:
        return [], "did not end"
    finally:
        process.kill()


def put_fasttext(split: Split, minutes: int, threads: int, seed: int, queue: Any) -> None:
    """Put fastText's answers to the test texts, and its settings, into a queue."""
    import fasttext as library

    labels = label_names([*split.train, *split.val, *split.test], "classification")

    def line(message: Message) -> str:
        return f"__label__{labels.index(message.label)} {in_words(message.text)}\n"

    with TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("train.txt", "val.txt")]
        for path, part in zip(paths, (split.train, split.val), strict=True):
            path.write_text("".join(map(line, part)), "utf-8")
        try:
            model = library.train_supervised(
                input=str(paths[0]),
                autotuneValidationFile=str(paths[1]),
                autotuneDuration=60 * minutes,
                thread=threads,
                seed=seed,
                verbose=0,
            )
        except RuntimeError as error:
            queue.put(([], str(error)))
            return
    found, _ = model.predict([in_words(message.text) for message in split.test])
    settings = {name: getattr(model.f.getArgs(), name) for name in ("dim", "epoch", "lr")}
    queue.put(([labels[int(one[0].removeprefix("__label__"))] for one in found], settings))


def in_words(text: str) -> str:
    """A text in lower case on one line, with each punctuation mark as a word."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


def gpt2(
    split: Split, training: TrainConfig, head: HeadSettings, minutes: int = 0
) -> tuple[float, list[Found]]:
    """Train with the package; return the validation score, and GPT-2's answers without and with n-grams."""
    with TemporaryDirectory() as folder, silenced():
        paths = [Path(folder) / f"{part}.csv" for part in vars(split)]
        for path, messages in zip(paths, vars(split).values(), strict=True):
            write_messages(path, messages)
        run = train_classifier(
            data=DataConfig(*map(str, paths)),
            training=training,
            head=head,
            run=Path(folder) / "run",
            autotune=60.0 * minutes,
        )
        score = max(epoch.val_score for epoch in run.load_history())
        training, head = run.config.training, run.config.head
        settings = {name: getattr(training, name) for name in ("n_last_blocks", "lr", "epochs")}
        settings |= {"pooling": head.pooling, "lora": head.lora}
        alone = answers_of(run.classifier, split.test)
        add_ngrams(run.classifier, split)
        together = answers_of(run.classifier, split.test)
    return score, [(alone, settings), (together, settings)]


def grid_search(split: Split, seed: int, kept: Path, seconds: float = 3600) -> list[Found]:
    """Train combinations of settings for an hour of processor time; return the best one's answers.

    Processor time does not depend on what else the machine does. Each try is one line of `kept`, so
    that an interrupted search goes on where it stopped. Only the validation score chooses.
    """
    kept.parent.mkdir(parents=True, exist_ok=True)
    tries = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for blocks, pooling, lr in list(product(*GRID.values()))[len(tries) :]:
        if sum(one["seconds"] for one in tries) > seconds:
            break
        started = time.process_time()
        training = TrainConfig(n_last_blocks=blocks, lr=lr, seed=seed)
        score, found = gpt2(split, training, HeadSettings(pooling=pooling))
        tries.append({"score": score, "found": found, "seconds": time.process_time() - started})
        with kept.open("a") as file:
            file.write(json.dumps(tries[-1], default=vars) + "\n")
        note(f"try {len(tries)}: {found[0][1]}, {score:.4f} in {tries[-1]['seconds']:.0f} s")
    return max(tries, key=lambda one: one["score"])["found"]


def answers_of(classifier: Any, messages: Sequence[Message]) -> list[str]:
    """The labels that a classifier chooses."""
    return [found.label for found in classifier.predict([message.text for message in messages])]


def print_table(rows: dict[tuple, dict[str, Any]]) -> None:
    """Print the accuracies, and the difference of each method from fastText and from TF-IDF."""
    groups = defaultdict(list)
    for (name, n, method, seed), row in rows.items():
        if not row["correct"]:
            print(f"{name:8}{row['n']:7} {method:24}no answers: {row['settings']}")
            continue
        # `compared` reads the part and, at place 5 of the key, the seed
        groups[name, n, method].append(row | {"key": [0, 0, 0, 0, 0, seed], "test": row})
    print(
        f"{'data':8}{'texts':>7} {'method':24}{'acc':>6}{'- TF-IDF':>22}{'- fastText':>22}{'s':>6}"
    )
    for (name, n, method), found in groups.items():
        budget = "5m" if "5m" in method or method == "grid" else "2m"
        against = [groups.get((name, n, other)) for other in ("TF-IDF", f"fastText {budget}")]
        accuracy = 100 * np.mean([np.mean(row["correct"]) for row in found])
        differences = "".join(f"{compared(found, other, 'test'):>22}" for other in against)
        seconds = np.mean([row["seconds"] for row in found])
        settings = found[0]["settings"] or ""
        print(
            f"{name:8}{found[0]['n']:7} {method:24}{accuracy:6.1f}{differences}{seconds:6.0f}  "
            f"{settings}"
        )


if __name__ == "__main__":
    main()
