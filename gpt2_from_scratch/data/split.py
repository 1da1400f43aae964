"""Split messages into training, validation and test set, so that no text is in two of them.

With `keep_together="near-duplicates"` no near duplicate of a text is in another part either.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_from_scratch.data.formats import load_examples
from gpt2_from_scratch.data.messages import (
    SHOWN,
    DataConfig,
    Message,
    Span,
    check_keep_together,
    check_on_error,
)
from gpt2_from_scratch.data.near_duplicates import near_duplicate_groups
from gpt2_from_scratch.errors import DataError, UsageError

log = logging.getLogger(__name__)

FRACTIONS = (0.7, 0.1)  # training and validation set; the rest is the test set
TENTHS = (7, 1, 2)  # the same in folds of a tenth each
FEWEST = 10  # texts per class: a tenth of fewer would be none
ALL = ""  # in place of a label if there are no classes
EIGHTHS = 8  # the validation set is an eighth of what a fold does not test


@dataclass(frozen=True)
class Split:
    """Three parts of a data set: to train on, to select the best epoch on, and to report on."""

    train: list[Message]
    val: list[Message]
    test: list[Message]


def load_split(
    data: str | Path | DataConfig = "demo", task: str = "classification", seed: int = 123
) -> Split:
    """Read a data set and split it, or read its three parts from three sources.

    Of three sources each part loses the texts that are in an earlier one. Raises DataError if
    nothing is left of a part, or if a text has two labels in one source.
    """
    data = DataConfig.of(data)
    if not data.val_source:
        return split_messages(
            load_examples(data, task),
            balance=data.balance,
            keep_together=data.keep_together,
            seed=seed,
            on_error=data.on_error,
        )
    parts: list[list[Message]] = []
    seen: set[str] = set()
    for source in (data.source, data.val_source, data.test_source):
        part = load_examples(replace(data, source=source, val_source="", test_source=""), task)
        good = without_two_labels(part, data.on_error)
        new: dict[str, Message] = {}  # the first of several copies, as in split_messages
        for message in good:
            if message.text not in seen:
                new.setdefault(message.text, message)
        if len(new) < len(good):
            left_out = f"{len(good) - len(new):,} texts of {source} were left out"
            log.info(f"{left_out}: they are duplicates or already in an earlier part")
        if not new:
            raise DataError(f"no text of {source} is left: all are in an earlier part")
        seen |= new.keys()
        parts.append([*new.values()])
    return Split(*parts)


def split_messages(
    messages: Sequence[Message],
    *,
    balance: bool = False,
    keep_duplicates: bool = False,
    keep_together: str = "copies",
    seed: int = 123,
    on_error: str = "stop",
) -> Split:
    """Split every class's distinct texts 70 / 10 / 20% into training, validation and test set.

    Args:
        messages: Labels that are not classes (see Message) are split as one class.
        balance: First draw as many texts of each class as the rarest class has.
        keep_duplicates: Keep the copies of a text, all in one part. By default equal texts count
            once, so that no test message was seen in training.
        keep_together: With "near-duplicates", groups of near duplicates stay in one part, and the
            parts are as close to 70 / 10 / 20% as groups allow.
        seed: The same messages and seed give the same split. For "copies" this holds on every
            machine and for ever (numpy's RandomState is frozen); for "near-duplicates" with the
            same version of scikit-learn.
        on_error: What to do with texts that have two labels: with "skip" all their copies are left
            out and logged.

    Raises:
        DataError: One class only, too few texts or groups, or a text with two labels.
        UsageError: `balance` without classes, or an unknown option.
    """
    check_on_error(on_error)
    check_keep_together(keep_together)
    copies, by_label = _copies_and_texts(messages, balance, on_error)
    random = np.random.RandomState(seed)
    drawn = _draw(by_label, balance, random)
    parts: tuple[list[str], ...] = ([], [], [])
    if keep_together == "copies":
        for texts in drawn.values():
            first, second = (int(fraction * len(texts)) for fraction in FRACTIONS)
            cuts = (texts[:first], texts[first : first + second], texts[first + second :])
            for part, cut in zip(parts, cuts, strict=True):
                part.extend(cut)
    else:
        texts, labels, groups = _grouped(drawn, keep_together)
        tenths = _deal(labels, groups, sum(TENTHS), random)
        of_part = np.repeat(np.arange(len(TENTHS)), TENTHS)
        for part, tenth in zip(random.permutation(of_part), tenths, strict=True):
            parts[part].extend(texts[n] for n in tenth)
    return Split(*(_in_random_order(part, copies, random, keep_duplicates) for part in parts))


def folds(
    messages: Sequence[Message],
    n_folds: int,
    *,
    seed: int = 123,
    keep_together: str = "near-duplicates",
    balance: bool = False,
    on_error: str = "stop",
) -> list[Split]:
    """Split the distinct texts into `n_folds` test sets for cross-validation.

    What a fold does not test is its training set, except an eighth, which is its validation set.
    Each distinct text is tested once (with `balance`, each that is drawn). Every part has the
    labels in the proportions of the whole, as closely as groups allow. For the other arguments and
    errors see `split_messages`; raises DataError for more folds than a label has groups.
    """
    if n_folds < 2:
        raise UsageError(f"n_folds = {n_folds} must be at least 2")
    check_on_error(on_error)
    check_keep_together(keep_together)
    fewest = max(FEWEST, n_folds)
    copies, by_label = _copies_and_texts(messages, balance, on_error, fewest)
    random = np.random.RandomState(seed)
    texts, labels, groups = _grouped(_draw(by_label, balance, random), keep_together, fewest)
    found = []
    for test in _deal(labels, groups, n_folds, random):
        rest = np.setdiff1d(np.arange(len(texts)), test)
        n_groups = min(len(set(groups[rest][labels[rest] == label])) for label in set(labels))
        if n_groups < 2:
            raise DataError("one fold leaves a label with one group of texts; use more folds")
        eighths = _deal(labels[rest], groups[rest], min(EIGHTHS, n_groups), random)
        val = rest[eighths[random.randint(len(eighths))]]
        parts = (np.setdiff1d(rest, val), val, test)
        found.append(
            Split(*(_in_random_order([texts[n] for n in part], copies, random) for part in parts))
        )
    return found


def messages_sha256(split: Split) -> str:
    """The hash of a split's messages in their order."""
    raw = json.dumps([[[m.text, m.label] for m in part] for part in vars(split).values()])
    return hashlib.sha256(raw.encode()).hexdigest()


def without_two_labels(messages: Sequence[Message], on_error: str) -> list[Message]:
    """The messages whose text has one label.

    Raises DataError if a text has more; with `on_error="skip"` all its copies are left out and
    logged.
    """
    contradictory = texts_with_two_labels(messages)
    if contradictory:
        first = list(contradictory.items())[:SHOWN]
        lines = [f"one text, two labels {labels!s:.200}: {text!r:.200}" for text, labels in first]
        more = len(contradictory) - len(first)
        if more:
            lines.append(f"and {more:,} more: {len(contradictory):,} such texts in all")
        shown = "\n  ".join(lines)
        if on_error == "stop":
            raise DataError(f"{shown}\nFix them, or leave them out with --on-error skip.")
        log.warning(f"left out: {shown}")
    return [message for message in messages if message.text not in contradictory]


def texts_with_two_labels(messages: Sequence[Message]) -> dict[str, list[Any]]:
    """{text: its labels} of the texts that have more than one label.

    Several labels of one text are compared as a set. Places of answers do not contradict each
    other: an answer may occur twice in a text, and people mark more or less of it. Nor do the
    labels of several heads, some of which a message may lack. `split_messages` takes the first of
    these.
    """
    labels: dict[str, dict[Any, Any]] = {}
    for message in messages:
        label = key = message.label
        if isinstance(label, Span | dict):
            key = None
        elif isinstance(label, tuple) and all(isinstance(name, str) for name in label):
            key = frozenset(label)
        labels.setdefault(message.text, {})[key] = label
    return {
        text: sorted(found.values(), key=str) for text, found in labels.items() if len(found) > 1
    }


def _copies_and_texts(
    messages: Sequence[Message], balance: bool, on_error: str, fewest: int = FEWEST
) -> tuple[dict[str, list[Message]], dict[str, list[str]]]:
    """{text: its messages} and {label: its distinct texts}; see `split_messages` for errors."""
    classes = all(isinstance(message.label, str) for message in messages)
    if balance and not classes:
        raise UsageError("balance = True needs one class per text; leave it out for other labels")
    copies: dict[str, list[Message]] = {}
    for message in without_two_labels(messages, on_error):
        copies.setdefault(message.text, []).append(message)
    labels = sorted({message.label for message in messages}) if classes else [ALL]
    by_label: dict[str, list[str]] = {label: [] for label in labels}
    for text, same in copies.items():
        by_label[same[0].label if classes else ALL].append(text)
    if classes and len(by_label) < 2:
        raise DataError(f"the messages have one label only, {labels}; a classifier needs two")
    _refuse_too_few({label: len(texts) for label, texts in by_label.items()}, "texts", fewest)
    return copies, by_label


def _draw(
    by_label: dict[str, list[str]], balance: bool, random: np.random.RandomState
) -> dict[str, list[str]]:
    """The texts of each label in random order; with `balance` as many as the rarest label has."""
    count = min(map(len, by_label.values())) if balance else None
    return {
        label: [texts[n] for n in random.permutation(len(texts))[:count]]
        for label, texts in by_label.items()
    }


def _grouped(
    by_label: dict[str, list[str]], keep_together: str, fewest: int = FEWEST
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """All texts, and of each its label's number (N,) and its group's (N,).

    Raises DataError for a label with too few groups of near duplicates; a group counts for the
    label that most of its texts have.
    """
    texts = [text for found in by_label.values() for text in found]
    labels = np.repeat(np.arange(len(by_label)), [len(found) for found in by_label.values()])
    if keep_together == "copies":
        return texts, labels, np.arange(len(texts))
    groups = np.array(near_duplicate_groups(texts))
    votes = Counter(zip(groups.tolist(), labels.tolist(), strict=True))
    of_group: dict[int, int] = {}
    for (group, label), _ in votes.most_common():
        of_group.setdefault(group, label)
    counts = Counter(of_group.values())
    by_name = {name: counts[n] for n, name in enumerate(by_label)}
    _refuse_too_few(by_name, "groups of near duplicates", fewest)
    return texts, labels, groups


def _deal(
    labels: np.ndarray, groups: np.ndarray, n: int, random: np.random.RandomState
) -> list[np.ndarray]:
    """Deal (N,) texts into n parts of about equal size, groups whole; a part is their numbers.

    Every part has the labels in the proportions of the whole, as closely as groups allow. The
    largest groups go to the first parts, so the caller has to draw what a part is used for.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    dealer = StratifiedGroupKFold(n, shuffle=True, random_state=random)
    return [part for _, part in dealer.split(labels, labels, groups)]


def _in_random_order(
    texts: Sequence[str],
    copies: dict[str, list[Message]],
    random: np.random.RandomState,
    keep_duplicates: bool = False,
) -> list[Message]:
    """The messages of some texts: the first of each, or all with `keep_duplicates`."""
    return [
        message
        for n in random.permutation(len(texts))
        for message in copies[texts[n]][: None if keep_duplicates else 1]
    ]


def _refuse_too_few(counts: Mapping[str, int], what: str, fewest: int) -> None:
    few = [label for label, count in counts.items() if count < fewest]
    if few:
        label = "" if few[0] == ALL else f" of label {few[0]!r}"
        others = f", and {len(few) - 1} more of the {len(counts)} labels have too few"
        raise DataError(
            f"{counts[few[0]]} {what}{label} are too few; {fewest} are needed"
            + (others if len(few) > 1 else "")
        )
