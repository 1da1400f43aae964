"""Messages split into three parts so that no text stands in two of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2_from_scratch.data import SHOWN, Message, Span, check_on_error
from gpt2_from_scratch.errors import DataError, UsageError

FRACTIONS = (0.7, 0.1)  # train and validation; the rest is the test part
FEWEST = 10  # texts of a class: a tenth of fewer would be none
ALL = ""  # stands for the label where there are no classes


@dataclass(frozen=True)
class Split:
    """Three parts of a data set: to train on, to choose by, and to report on."""

    train: list[Message]
    val: list[Message]
    test: list[Message]


def split_messages(
    messages: Sequence[Message],
    *,
    balance: bool = False,
    keep_duplicates: bool = False,
    seed: int = 123,
    on_error: str = "stop",
    say: Callable[[str], None] = print,
) -> Split:
    """Cut 70 / 10 / 20 % of every class's distinct texts into train, val and test, in random order.

    Where labels are no classes (see Message) all texts are cut as one class. Equal texts count
    once, so that no test message was seen in training; with `keep_duplicates` the copies stay, all
    in one part. `balance` first draws as many texts of each class as the rarest has. The same
    messages and seed give the same split everywhere (numpy's RandomState is frozen). Raises
    DataError for one class only, too few texts, or a text that has two labels; with
    `on_error="skip"` all copies of such a text are left out, and `say` is told. Raises UsageError
    for `balance` without classes.
    """
    check_on_error(on_error)
    classes = all(isinstance(message.label, str) for message in messages)
    if balance and not classes:
        raise UsageError("balance = True wants one class a text; leave it out for other labels")
    copies: dict[str, list[Message]] = {}
    for message in without_two_labels(messages, on_error, say):
        copies.setdefault(message.text, []).append(message)
    labels = sorted({message.label for message in messages}) if classes else [ALL]
    by_label: dict[str, list[str]] = {label: [] for label in labels}
    for text, same in copies.items():
        by_label[same[0].label if classes else ALL].append(text)
    if classes:
        _refuse_too_few(by_label)
    elif len(copies) < FEWEST:
        raise DataError(f"{len(copies)} texts are too few; {FEWEST} are needed")
    random = np.random.RandomState(seed)
    train, val, test = (
        [
            message
            for n in random.permutation(len(part))
            for message in copies[part[n]][: None if keep_duplicates else 1]
        ]
        for part in _cut(by_label, random, balance)
    )
    return Split(train, val, test)


def without_two_labels(
    messages: Sequence[Message], on_error: str, say: Callable[[str], None]
) -> list[Message]:
    """The messages whose text has one label. Raises DataError where a text has more; with
    `on_error="skip"` all its copies are left out, and `say` is told.
    """
    contradictory = texts_with_two_labels(messages)
    if contradictory:
        told = _told(contradictory)
        if on_error == "stop":
            raise DataError(f"{told}\nmend them, or leave them out with --on-error skip")
        say(f"left out: {told}")
    return [message for message in messages if message.text not in contradictory]


def texts_with_two_labels(messages: Sequence[Message]) -> dict[str, list[Any]]:
    """{text: its labels} of the texts that have more than one.

    Several labels of one text are compared as a set. Places of answers contradict nothing: an
    answer may stand in a text twice, and people mark more or less of it. Nor do the labels of
    several heads, of which a message may lack some. `split_messages` takes the first of these.
    """
    labels: dict[str, dict[Any, Any]] = {}
    for message in messages:
        labels.setdefault(message.text, {})[_compared(message.label)] = message.label
    return {
        text: sorted(found.values(), key=str) for text, found in labels.items() if len(found) > 1
    }


def _compared(label: Any) -> Any:
    """What two labels of one text must have in common."""
    if isinstance(label, Span | dict):
        return None
    names = isinstance(label, tuple) and all(isinstance(name, str) for name in label)
    return frozenset(label) if names else label


def _told(contradictory: dict[str, list[Any]]) -> str:
    first = list(contradictory.items())[:SHOWN]
    lines = [f"one text, two labels {labels!s:.200}: {text!r:.200}" for text, labels in first]
    more = len(contradictory) - len(first)
    if more:
        lines.append(f"and {more:,} more: {len(contradictory):,} such texts in all")
    return "\n  ".join(lines)


def _refuse_too_few(by_label: dict[str, list[str]]) -> None:
    if len(by_label) < 2:
        raise DataError(
            f"the messages have one label only, {list(by_label)}: nothing to tell apart"
        )
    few = [label for label, texts in by_label.items() if len(texts) < FEWEST]
    if few:
        others = f", and {len(few) - 1} more of the {len(by_label)} labels have too few"
        raise DataError(
            f"{len(by_label[few[0]])} texts of label {few[0]!r} are too few; {FEWEST} are needed"
            + (others if len(few) > 1 else "")
        )


def _cut(
    by_label: dict[str, list[str]], random: np.random.RandomState, balance: bool
) -> tuple[list[str], ...]:
    """The texts of the three parts, label by label."""
    rarest = min(len(texts) for texts in by_label.values())
    parts: tuple[list[str], ...] = ([], [], [])
    for texts in by_label.values():
        order = random.permutation(len(texts))[: rarest if balance else None]
        first, second = (int(fraction * len(order)) for fraction in FRACTIONS)
        cuts = (order[:first], order[first : first + second], order[first + second :])
        for part, cut in zip(parts, cuts, strict=True):
            part.extend(texts[n] for n in cut)
    return parts
