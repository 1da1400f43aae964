"""Messages split into three parts so that no text stands in two of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2_from_scratch.data import SHOWN, Message, check_on_error, count_labels
from gpt2_from_scratch.errors import DataError

FRACTIONS = (0.7, 0.1)  # train and validation; the rest is the test part
FEWEST = 10  # texts of a label: a tenth of fewer would be none


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
    """Cut 70 / 10 / 20 % of every label's distinct texts into train, val and test, in random order.

    Equal texts count once, so that no test message was seen in training; with `keep_duplicates`
    the copies stay, all in one part. `balance` first draws as many texts of each label as the
    rarest has. The same messages and seed give the same split everywhere (numpy's RandomState is
    frozen). Raises DataError for one label only, too few texts, or a text that has two labels;
    with `on_error="skip"` all copies of such a text are left out, and `say` is told.
    """
    check_on_error(on_error)
    if contradictory := texts_with_two_labels(messages):
        told = _told(contradictory)
        if on_error == "stop":
            raise DataError(f"{told}\nmend them, or leave them out with --on-error skip")
        say(f"left out: {told}")
    copies: dict[str, list[Message]] = {}
    for message in messages:
        if message.text not in contradictory:
            copies.setdefault(message.text, []).append(message)
    by_label: dict[str, list[str]] = {label: [] for label in count_labels(messages)}
    for text, same in copies.items():
        by_label[same[0].label].append(text)
    _refuse_too_few(by_label)
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


def texts_with_two_labels(messages: Sequence[Message]) -> dict[str, list[str]]:
    """{text: its labels} of the texts that have more than one."""
    labels: dict[str, set[str]] = {}
    for message in messages:
        labels.setdefault(message.text, set()).add(message.label)
    return {text: sorted(found) for text, found in labels.items() if len(found) > 1}


def _told(contradictory: dict[str, list[str]]) -> str:
    first = list(contradictory.items())[:SHOWN]
    lines = [f"one text, two labels {labels}: {text!r:.200}" for text, labels in first]
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
