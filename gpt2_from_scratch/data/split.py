"""Messages split into three parts so that no text stands in two of them, nor a near twin of one."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2_from_scratch.data.messages import SHOWN, Message, Span, check_on_error
from gpt2_from_scratch.data.near_duplicates import twin_groups
from gpt2_from_scratch.errors import DataError, UsageError

log = logging.getLogger(__name__)

FRACTIONS = (0.7, 0.1)  # train and validation; the rest is the test part
FEWEST = 10  # texts of a class: a tenth of fewer would be none
ALL = ""  # stands for the label where there are no classes
TOGETHER = ("copies", "near-twins")  # what stays in one part


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
    together: str = "copies",
    seed: int = 123,
    on_error: str = "stop",
) -> Split:
    """Cut 70 / 10 / 20 % of every class's distinct texts into train, val and test, in random order.

    Where labels are no classes (see Message) all texts are cut as one class. Equal texts count
    once, so that no test message was seen in training; with `keep_duplicates` the copies stay, all
    in one part. With `together="near-twins"` groups of near twins (see near_twins.py) stay in one
    part too, and count as of the label that most of their texts have; the parts are then as near
    to 70 / 10 / 20 % as groups allow. `balance` first draws as many texts of each class as the
    rarest has. The same messages and seed give the same split everywhere (numpy's RandomState is
    frozen). Raises DataError for one class only, too few texts or groups, or a text that has two
    labels; with `on_error="skip"` all copies of such a text are left out, and `say` is told. Raises
    UsageError for `balance` without classes.
    """
    check_on_error(on_error)
    check_together(together)
    copies, by_label = copies_and_texts(messages, balance, on_error)
    random = np.random.RandomState(seed)
    drawn = draw(by_label, balance, random)
    parts = _cut(drawn) if together == "copies" else _cut_groups(drawn, random)
    train, val, test = (in_random_order(part, copies, random, keep_duplicates) for part in parts)
    return Split(train, val, test)


def check_together(together: str) -> None:
    """Raises UsageError for anything but "copies" and "near-twins"."""
    if together not in TOGETHER:
        raise UsageError(f"together = {together!r} must be {' or '.join(TOGETHER)}")


def copies_and_texts(
    messages: Sequence[Message], balance: bool, on_error: str
) -> tuple[dict[str, list[Message]], dict[str, list[str]]]:
    """{text: its messages} and {label: its distinct texts}; for the arguments and errors see
    `split_messages`.
    """
    classes = all(isinstance(message.label, str) for message in messages)
    if balance and not classes:
        raise UsageError("balance = True wants one class a text; leave it out for other labels")
    copies: dict[str, list[Message]] = {}
    for message in without_two_labels(messages, on_error):
        copies.setdefault(message.text, []).append(message)
    labels = sorted({message.label for message in messages}) if classes else [ALL]
    by_label: dict[str, list[str]] = {label: [] for label in labels}
    for text, same in copies.items():
        by_label[same[0].label if classes else ALL].append(text)
    if classes and len(by_label) < 2:
        raise DataError(f"the messages have one label only, {labels}: nothing to tell apart")
    _refuse_too_few(by_label, "texts")
    return copies, by_label


def draw(
    by_label: dict[str, list[str]], balance: bool, random: np.random.RandomState
) -> dict[str, list[str]]:
    """The texts of each label in random order, with `balance` as many as the rarest label has."""
    count = min(map(len, by_label.values())) if balance else None
    return {
        label: [texts[n] for n in random.permutation(len(texts))[:count]]
        for label, texts in by_label.items()
    }


def groups_by_label(by_label: dict[str, list[str]], together: str) -> dict[str, list[list[str]]]:
    """{label: groups of texts that stay together}: single texts, or near twins, each group under
    the label that most of its texts have. Raises DataError for too few groups of a label.
    """
    if together == "copies":
        return {label: [[text] for text in texts] for label, texts in by_label.items()}
    labelled = [(text, label) for label, texts in by_label.items() for text in texts]
    groups: dict[int, list[tuple[str, str]]] = {}
    for one, group in zip(labelled, twin_groups(text for text, _ in labelled), strict=True):
        groups.setdefault(group, []).append(one)
    found: dict[str, list[list[str]]] = {label: [] for label in by_label}
    for members in groups.values():
        label = Counter(label for _, label in members).most_common(1)[0][0]
        found[label].append([text for text, _ in members])
    _refuse_too_few(found, "groups of near twins")
    return found


def deal(
    groups: Sequence[list[str]], sizes: Sequence[int], random: np.random.RandomState
) -> list[list[list[str]]]:
    """Deal groups into parts that are to have so many texts: the groups of each part.

    From the largest group to the smallest, each goes to a part drawn from those where it fits, with
    chances as the room that is left; if it fits nowhere, to the one with the most room. So a large
    group may come into any part, and the many single texts of most data fill all parts exactly.
    Every part gets one of the smallest groups first; none is empty. Raises DataError for fewer
    groups than parts.
    """
    if len(groups) < len(sizes):
        raise DataError(f"{len(groups)} groups of texts are too few for {len(sizes)} parts")
    order = sorted((groups[n] for n in random.permutation(len(groups))), key=len)
    parts = [[group] for group in order[: len(sizes)]]
    room = np.array(sizes) - [len(group) for group in order[: len(sizes)]]
    for group in reversed(order[len(sizes) :]):
        chances = np.cumsum(np.where(room >= len(group), room, 0))
        drawn = (1 - random.random_sample()) * chances[-1]  # above 0: no part without a chance
        part = int(np.searchsorted(chances, drawn)) if chances[-1] else int(room.argmax())
        parts[part].append(group)
        room[part] -= len(group)
    return parts


def in_random_order(
    texts: Sequence[str],
    copies: dict[str, list[Message]],
    random: np.random.RandomState,
    keep_duplicates: bool = False,
) -> list[Message]:
    """The messages of some texts: of each the first, or all with `keep_duplicates`."""
    return [
        message
        for n in random.permutation(len(texts))
        for message in copies[texts[n]][: None if keep_duplicates else 1]
    ]


def without_two_labels(messages: Sequence[Message], on_error: str) -> list[Message]:
    """The messages whose text has one label. Raises DataError where a text has more; with
    `on_error="skip"` all its copies are left out, and `say` is told.
    """
    contradictory = texts_with_two_labels(messages)
    if contradictory:
        told = _told(contradictory)
        if on_error == "stop":
            raise DataError(f"{told}\nmend them, or leave them out with --on-error skip")
        log.warning(f"left out: {told}")
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


def _refuse_too_few(by_label: Mapping[str, Sequence[Any]], what: str) -> None:
    few = [label for label, found in by_label.items() if len(found) < FEWEST]
    if few:
        label = "" if few[0] == ALL else f" of label {few[0]!r}"
        others = f", and {len(few) - 1} more of the {len(by_label)} labels have too few"
        raise DataError(
            f"{len(by_label[few[0]])} {what}{label} are too few; {FEWEST} are needed"
            + (others if len(few) > 1 else "")
        )


def _cut(by_label: dict[str, list[str]]) -> tuple[list[str], ...]:
    """The texts of the three parts, label by label."""
    parts: tuple[list[str], ...] = ([], [], [])
    for texts in by_label.values():
        first, second, _ = _sizes(len(texts))
        cuts = (texts[:first], texts[first : first + second], texts[first + second :])
        for part, cut in zip(parts, cuts, strict=True):
            part.extend(cut)
    return parts


def _cut_groups(
    by_label: dict[str, list[str]], random: np.random.RandomState
) -> tuple[list[str], ...]:
    """The same where near twins stay together."""
    parts: tuple[list[str], ...] = ([], [], [])
    for groups in groups_by_label(by_label, "near-twins").values():
        dealt = deal(groups, _sizes(sum(map(len, groups))), random)
        for part, found in zip(parts, dealt, strict=True):
            part.extend(text for group in found for text in group)
    return parts


def _sizes(count: int) -> list[int]:
    """How many of `count` texts each of the three parts has."""
    first, second = (int(fraction * count) for fraction in FRACTIONS)
    return [first, second, count - first - second]


VAL_SHARE = 1 / 8  # of what is not tested


def folds(
    messages: Sequence[Message],
    n: int,
    *,
    seed: int = 123,
    together: str = "near-twins",
    balance: bool = False,
    on_error: str = "stop",
) -> list[Split]:
    """Cut the distinct texts into `n` test parts; what is not tested is trained on but for an
    eighth to choose by: n splits.

    Each distinct text is tested once (with `balance`, each that is drawn). Every part has the
    labels in the proportions of the whole, as nearly as groups allow. The same messages and seed
    give the same folds everywhere. For the other arguments and errors see `split_messages`; raises
    UsageError for fewer than 2 folds, DataError for more folds than a label has groups.
    """
    if n < 2:
        raise UsageError(f"n = {n} folds: at least 2 are needed")
    check_on_error(on_error)
    check_together(together)
    copies, by_label = copies_and_texts(messages, balance, on_error)
    random = np.random.RandomState(seed)
    parts: list[tuple[list[str], ...]] = [([], [], []) for _ in range(n)]  # as in Split
    for groups in groups_by_label(draw(by_label, balance, random), together).values():
        dealt = deal(groups, _equal(sum(map(len, groups)), n), random)
        for k, tested in enumerate(dealt):
            rest = [group for other in dealt if other is not tested for group in other]
            train, val = deal(rest, _less_val(sum(map(len, rest))), random)
            for part, found in zip(parts[k], (train, val, tested), strict=True):
                part.extend(text for group in found for text in group)
    return [Split(*(in_random_order(part, copies, random) for part in fold)) for fold in parts]


def repeated_splits(
    messages: Sequence[Message], seeds: Iterable[int], **options: Any
) -> list[Split]:
    """A split for each seed; `options` are those of `split_messages`. Test parts overlap."""
    return [split_messages(messages, seed=seed, **options) for seed in seeds]


def _equal(count: int, n: int) -> list[int]:
    """Sizes of n parts that differ by one at most."""
    return [count // n + (k < count % n) for k in range(n)]


def _less_val(count: int) -> list[int]:
    """How many of the texts that are not tested are trained on, and chosen by."""
    n_val = max(1, round(VAL_SHARE * count))
    return [count - n_val, n_val]


def messages_sha256(split: Split) -> str:
    """Which messages these are, and in which order."""
    raw = json.dumps([[[m.text, m.label] for m in part] for part in vars(split).values()])
    return hashlib.sha256(raw.encode()).hexdigest()
