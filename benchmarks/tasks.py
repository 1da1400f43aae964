"""Each task other than classification, next to its baseline.

    python benchmarks/tasks.py --wnut folder/of/wnut17
    python benchmarks/tasks.py --tasks numbers labels spans

Tags are the named entities of WNUT17 (tweets and comments, Derczynski et al. 2017). The model is
trained on the published training set, selected on the development set, and tested on the test set.
The other tasks use the SMS collection, with labels that follow from a message by a rule.
"""

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from bench import SHARED
from several_heads import MARKS

from gpt2_from_scratch import DataConfig, TrainConfig
from gpt2_from_scratch.classifier.settings import HeadSettings
from gpt2_from_scratch.classifier.tasks.tagging import entities, tag_scores
from gpt2_from_scratch.classifier.train import format_epoch
from gpt2_from_scratch.data.formats import Task, load_examples, write_examples
from gpt2_from_scratch.data.messages import Message, Span, load_messages
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.evaluation.significance import format_p
from gpt2_from_scratch.evaluation.task_baselines import fit_most_frequent_tag
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.reports.findings import against_baselines
from gpt2_from_scratch.runs.folder import read_test_part
from gpt2_from_scratch.runs.recipes import train_classifier
from gpt2_from_scratch.storage.files import sha256_of

Tags = Sequence[Sequence[str]]
PARTS = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")


def tags_in(labels: Sequence[Sequence[Span]]) -> list[list[str]]:
    """The tags of each text's words."""
    return [[word.label for word in label] for label in labels]


def wnut(folder: Path, epochs: int, n_last_blocks: int) -> None:
    """Print the entity F1 of the model and of the baseline on the test set."""
    train, dev, test = (load_examples(folder / name, "token-classification") for name in PARTS)
    baseline = fit_most_frequent_tag(Split(train, dev, test))
    assert baseline
    tags = tags_in([message.label for message in test])
    names = sorted({word.label for message in train for word in message.label})
    print(
        f"\nWNUT17: {len(train):,} / {len(dev):,} / {len(test):,} texts; the test set's sha256 "
        f"begins {sha256_of(folder / PARTS[2])[:12]}\n"
    )
    print(f"{baseline.name}:\n")
    print(tag_scores(tags, tags_in(baseline.answers(test)), names).as_table())
    config = TrainConfig(epochs=epochs, patience=epochs, n_last_blocks=n_last_blocks)
    with tempfile.TemporaryDirectory() as run:
        sources = [str(folder / part) for part in PARTS]
        done = train_classifier(
            "mini",
            DataConfig(*sources),
            config,
            HeadSettings("token-classification"),
            run=Path(run) / "run",
            dtype="bfloat16",
        )
        classifier, scores = done.classifier, done.scores
        epochs_run = [format_epoch(epoch, epochs, scores.measure) for epoch in done.load_history()]
        kept = read_test_part(done.folder, "token-classification")
    tags = tags_in([message.label for message in kept])
    answers = [a.answer.words for a in classifier.predict([m.text for m in kept]) if a]
    ours = [[word.label for word in text] for text in answers]
    p = chance(tags, ours, tags_in(baseline.answers(kept)))
    print(
        f"\nthe mini, last {n_last_blocks} blocks, {epochs} epochs; epoch with the best F1 on dev:\n"
    )
    print("\n".join(epochs_run) + "\n")
    print(scores.as_table())
    print(f"\nagainst {baseline.name} on the same {len(kept):,} texts: {format_p(p)}")


def chance(true: Tags, a: Tags, b: Tags, draws: int = 10_000, seed: int = 0) -> float:
    """The probability of at least this difference in entity F1 by chance.

    Each text's two predictions are swapped at random. Source: approximate randomization, Noreen
    1989; Yeh 2000.
    """
    counts = np.array(
        [[_counted(t, x) for t, x in zip(true, tags, strict=True)] for tags in (a, b)]
    )

    def difference(swapped: np.ndarray) -> float:
        one, other = (
            np.where(swapped[:, None], y, x).sum(axis=0) for x, y in (counts, counts[::-1])
        )
        return abs(2 * one[0] / (one[1] + one[2]) - 2 * other[0] / (other[1] + other[2]))

    seen = difference(np.zeros(len(counts[0]), dtype=bool))
    random = np.random.RandomState(seed)
    larger = sum(difference(random.rand(len(counts[0])) < 0.5) >= seen for _ in range(draws))
    return (larger + 1) / (draws + 1)


def _counted(true: Sequence[str], found: Sequence[str]) -> tuple[int, int, int]:
    """The number of entities that are found and correct, that are found, and that exist."""
    there, called = set(entities(true)), set(entities(found))
    return len(there & called), len(called), len(there)


# --- tasks whose labels follow from the message, by a rule ---


def numbers(message: Message) -> Message:
    """How many words it has."""
    return Message(message.text, (float(len(message.text.split())),))


def labels(message: Message) -> Message:
    """Which of four properties it has."""
    return Message(message.text, tuple(n for n, holds in MARKS.items() if holds(message.text)))


def span(message: Message) -> Message | None:
    """Where its first word with a digit is; None if it has none."""
    question = "Which word has a digit?\n"
    found = re.search(r"\S*\d\S*", message.text)
    if not found:
        return None
    start, end = (len(question) + at for at in found.span())
    return Message(question + message.text, Span(start, end))


RULES: dict[str, tuple[Task, Callable[[Message], Message | None]]] = {
    "numbers": ("regression", numbers),
    "labels": ("multi-label", labels),
    "spans": ("span", span),
}


def by_rule(name: str) -> None:
    """Train on the SMS collection with the default settings, and print the comparison."""
    task, rule = RULES[name]
    messages = [made for message in load_messages("sms") if (made := rule(message))]
    with tempfile.TemporaryDirectory() as folder, silenced():
        path = Path(folder) / "messages.jsonl"
        write_examples(path, messages)
        run = train_classifier(data=path, head=HeadSettings(task), run=Path(folder) / "run")
        print(f"\n{name} ({task}, {len(messages):,} messages): {against_baselines(run.facts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["tags", *RULES], choices=["tags", *RULES])
    parser.add_argument(
        "--wnut", type=Path, default=SHARED / "data" / "wnut17", help="the data set's folder"
    )
    parser.add_argument("--epochs", type=int, default=6, help="for tags")
    parser.add_argument("--n-last-blocks", type=int, default=3, help="for tags")
    args = parser.parse_args()
    for task in args.tasks:
        if task in RULES:
            by_rule(task)
        else:
            wnut(args.wnut, args.epochs, args.n_last_blocks)


if __name__ == "__main__":
    main()
