"""Split messages into training, validation and test set, so that no text is in two of them.

With `keep_together="near-duplicates"`, near duplicates are never in different parts either. For
questions, it is the context that is never in two parts, and near duplicates are those of contexts.
"""

import hashlib
import json
import logging
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_from_scratch.data.formats import context_of, label_separator, load_examples
from gpt2_from_scratch.data.messages import (
    ALIKE,
    SHOWN,
    DataConfig,
    GoldAnswers,
    Message,
    Span,
    check_keep_together,
    check_on_error,
    check_rare_labels,
    checked_messages,
    label_parts,
    labels_alike,
    refuse_alike,
    refuse_mixed,
)
from gpt2_from_scratch.data.near_duplicates import near_duplicate_groups
from gpt2_from_scratch.errors import DataError, UsageError

log = logging.getLogger(__name__)

TENTHS = (7, 1, 2)  # training, validation and test set
EIGHTHS = (7, 1)  # training and validation set, if the test set is separate
MILLION = 1_000_000  # parts into which `hold_out` divides the texts
FEWEST = 10  # fewest texts per class; a tenth of fewer texts is less than one text
CHOICES = "drop, keep, or join:LABEL with a label that then has enough training texts"
ALL = ""  # used as the label if there are no classes
KEPT = "kept"  # the targets of equal texts differ, and all are kept


@dataclass(frozen=True)
class Split:
    """A data set in three parts: for training, for selecting the best epoch, and for testing."""

    train: list[Message]
    val: list[Message]
    test: list[Message]


def load_split(
    data: str | Path | DataConfig = "sms",
    task: str = "classification",
    seed: int = 123,
    *,
    fewest_labels: int = 2,
) -> Split:
    """Read a data set and split it, as described in `load_parts` and `split_parts`.

    Args:
        data: The data set; a name or path means the default settings.
        task: One of TASKS.
        seed: Random seed of the split.
        fewest_labels: The fewest classes that are allowed.
    """
    data = DataConfig.of(data)
    return split_parts(load_parts(data, task), data, seed, fewest_labels=fewest_labels)


def load_parts(
    data: str | Path | DataConfig = "sms", task: str = "classification"
) -> list[list[Message]]:
    """Read the training file and, if they are given, the validation and the test file.

    Texts that are already in an earlier file are left out of a later one, and so are questions whose
    context is. Labels are checked across all files. Returns one list of messages per file.

    Raises DataError if no text of a file is left. Also raises it if a text has another class in an
    earlier file, or if a class of a later file does not occur in the training file; `on_error` and
    `rare_labels` can allow these two. Raises UsageError for `rare_labels` with another task.
    """
    data = DataConfig.of(data)
    if data.rare_labels != "stop" and task != "classification":
        raise UsageError(f"rare_labels is for classification, not for {task}")
    sources = [name for name in (data.source, data.val_source, data.test_source) if name]
    each = [replace(data, source=source, val_source="", test_source="") for source in sources]
    between = label_separator(each) if task == "multi-label" else ""
    parts = []
    for one in each:
        examples = load_examples(one, task, between=between)
        parts.append(with_settled_targets(examples, data.on_error, one.source))
    _refuse_alike(parts, sources)
    if task == "classification":
        parts = _with_rare_labels(parts, data.rare_labels)
        known = {message.label for message in parts[0]}
        for n, source in enumerate(sources[1:], start=1):
            parts[n] = with_known_labels(parts[n], known, data.rare_labels, source)
    if len(sources) == 1:
        return parts
    contexts = _contexts_by_text(message for part in parts for message in part)
    seen: dict[str, tuple[Any, str]] = {}  # {text or context: its label and its place}
    for n, source in enumerate(sources):
        if task == "classification":
            _settle_contradictions(parts[n], seen, data.on_error, source)
        new = [message for message in distinct(parts[n]) if contexts[message.text] not in seen]
        if len(new) < len(parts[n]):
            left_out = f"{len(parts[n]) - len(new):,} texts of {source} were left out"
            or_are = ", or their contexts are" if task == "span" else " or"
            log.info(f"{left_out}: they are duplicates{or_are} already in an earlier part")
        if not new:
            which = "all contexts" if task == "span" else "all"
            why = f"{which} are in an earlier part" if parts[n] else "all have rare labels"
            raise DataError(f"no text of {source} is left: {why}")
        seen |= {contexts[m.text]: (m.label, f"{source}, line {m.line}") for m in new}
        parts[n] = new
    return parts


def split_parts(
    files: Sequence[list[Message]], data: DataConfig, seed: int = 123, *, fewest_labels: int = 2
) -> Split:
    """Split the files that `load_parts` read.

    A single file is split as in `split_messages`. If there is a test file, an eighth of the
    training file becomes the validation set. Three files are used as the three parts.
    Raises DataError if one or two files have fewer classes than `fewest_labels`. Pass 1 only if an
    existing classifier is trained further.

    Args:
        files: The messages of one, two or three files.
        data: The settings for splitting.
        seed: Random seed of the split.
        fewest_labels: The fewest classes that are allowed.
    """
    if len(files) == 3:
        return Split(*files)
    fewest = 1 if data.rare_labels == "keep" else FEWEST
    copies, by_label = _copies_and_texts(distinct(files[0]), data.balance, fewest, fewest_labels)
    cut = TENTHS if len(files) == 1 else EIGHTHS
    parts = _cut(copies, by_label, cut, data.balance, data.keep_together, fewest, seed)
    return Split(*parts, *files[1:])


def split_messages(
    messages: Sequence[Message],
    *,
    balance: bool = False,
    keep_duplicates: bool = False,
    keep_together: str = "copies",
    seed: int = 123,
    on_error: str = "stop",
    rare_labels: str = "stop",
) -> Split:
    """Split every class's distinct texts 70 / 10 / 20% into training, validation and test set.

    Args:
        messages: Labels that are not classes (see Message) are split as if they were one class. All
            questions about a context are in one part.
        balance: First draw as many texts of each class as the rarest class has.
        keep_duplicates: Keep the copies of a text, all in one part. By default equal texts count
            once, so no test message occurs in training.
        keep_together: With "near-duplicates", a group of near duplicates stays in one part, and the
            parts are as close to 70 / 10 / 20% as the groups allow.
        seed: The same messages and seed always give the same split. For "copies" this holds on
            every machine (numpy's RandomState is frozen), for "near-duplicates" and for contexts
            with several questions with the same version of scikit-learn.
        on_error: "skip" leaves out and logs all copies of a text that has two classes. Equal texts
            with other different targets are not an error: see `with_settled_targets`.
        rare_labels: The action for a class of fewer than ten texts: "stop", "drop" its texts,
            "keep" it, or "join:other", which merges all such classes into one class called other.

    Raises:
        DataError: There is only one class, there are too few texts or groups, a text has two
            classes, labels are of several types or differ only in case, spaces or Unicode form, or
            an item is not a Message. UsageError: `balance` is set without classes, or an option is
            unknown.
    """
    check_keep_together(keep_together)
    check_rare_labels(rare_labels)
    messages = with_settled_targets(_checked(messages), on_error)
    (messages,) = _with_rare_labels([messages], rare_labels)
    fewest = 1 if rare_labels == "keep" else FEWEST
    kept = messages if keep_duplicates else distinct(messages)
    copies, by_label = _copies_and_texts(kept, balance, fewest)
    return Split(*_cut(copies, by_label, TENTHS, balance, keep_together, fewest, seed))


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

    Each distinct text is in exactly one test set; with `balance`, each drawn text is. Of the texts
    that a fold does not test, an eighth is its validation set and the rest its training set. Every
    part has the labels in the same proportions as the whole, as closely as groups allow.

    Args:
        messages: The labelled texts.
        n_folds: The number of test sets, at least 2.
        seed: The same messages and seed always give the same folds.
        keep_together: "copies" or "near-duplicates", as in `split_messages`.
        balance: First draw as many texts of each class as the rarest class has.
        on_error: The action for texts with two classes, as in `split_messages`.

    Returns:
        One split per fold.

    Raises:
        DataError: There are more folds than a label has groups; see also `split_messages`.
        UsageError: `n_folds` is less than 2, or an option is unknown.
    """
    if n_folds < 2:
        raise UsageError(f"n_folds = {n_folds} must be at least 2")
    check_keep_together(keep_together)
    fewest = max(FEWEST, n_folds)
    settled = distinct(with_settled_targets(_checked(messages), on_error))
    copies, by_label = _copies_and_texts(settled, balance, fewest)
    random = np.random.RandomState(seed)
    contexts = _contexts_by_text(settled)
    drawn = _draw(by_label, balance, random)
    texts, labels, groups = _grouped(drawn, contexts, keep_together, fewest)
    found = []
    for test in _deal(labels, groups, n_folds, random):
        rest = np.setdiff1d(np.arange(len(texts)), test)
        n_groups = min(len(set(groups[rest][labels[rest] == label])) for label in set(labels))
        if n_groups < 2:
            raise DataError("a fold leaves only one group of texts for a label; use more folds")
        eighths = _deal(labels[rest], groups[rest], min(sum(EIGHTHS), n_groups), random)
        val = rest[eighths[random.randint(len(eighths))]]
        parts = (np.setdiff1d(rest, val), val, test)
        found.append(
            Split(*(_in_random_order([texts[n] for n in part], copies, random) for part in parts))
        )
    return found


def hold_out(
    messages: Sequence[Message], fraction: float, seed: int = 123
) -> tuple[list[Message], list[Message]]:
    """Divide messages into a training set and a validation set, in random order.

    About `fraction` of each class's distinct texts is for validation, and at least one text of each
    class is for training. Copies of a text are kept, and all are in the same set.

    Raises DataError if no class has two texts.
    """
    copies, by_label = _copies_and_texts(messages, balance=False, fewest=0)
    if max(map(len, by_label.values())) < 2:
        raise DataError(
            f"{len(copies):,} texts are too few to draw a validation set from them. Give at least two "
            "texts of a class."
        )
    parts = max(1, round(MILLION * fraction))
    train, val = _cut(copies, by_label, (MILLION - parts, parts), False, "copies", 0, seed)
    return train, val


def messages_sha256(split: Split) -> str:
    """The hash of a split's messages, in their order."""
    raw = json.dumps([[[m.text, m.label] for m in part] for part in vars(split).values()])
    return hashlib.sha256(raw.encode()).hexdigest()


# --- equal texts with different targets, and rare labels ---


def with_settled_targets(
    messages: Sequence[Message], on_error: str = "stop", source: str = ""
) -> list[Message]:
    """The messages, after conflicting targets of equal texts have been resolved and logged.

    Numbers are averaged over the copies of a text, and sets of labels are merged. Tags, answers and
    the targets of several heads are all kept. A text with two classes is a contradiction. It raises
    DataError; with `on_error="skip"`, all copies of the text are left out. `source` is the file's
    name, for errors.
    """
    check_on_error(on_error)
    different = texts_with_two_labels(messages)
    wrong = {text for text, labels in different.items() if all(type(x) is str for x in labels)}
    where = f"{source}: " if source else ""
    if wrong:
        shown = [
            f"{where}one text, two labels {different[text]!s:.200}: {text!r:.200}"
            for text in [text for text in different if text in wrong][:SHOWN]
        ]
        if more := len(wrong) - len(shown):
            shown.append(f"and {more:,} more; {len(wrong):,} such texts in total")
        listed = "\n  ".join(shown)
        if on_error == "stop":
            raise DataError(f"{listed}\nFix them, or leave them out with --on-error skip.")
        log.warning(f"left out: {listed}")
    targets: dict[str, list[Any]] = {text: [] for text in different if text not in wrong}
    for message in messages:
        if message.text in targets:
            targets[message.text].append(message.label)
    settled = {text: _settled(labels) for text, labels in targets.items()}
    for how, count in Counter(how for _, how in settled.values()).items():
        log.warning(f"{where}{count:,} texts have different targets, which were {how}")
    return [
        replace(message, label=settled[message.text][0])
        if message.text in settled and settled[message.text][1] != KEPT
        else message
        for message in messages
        if message.text not in wrong
    ]


def _settle_contradictions(
    messages: Sequence[Message], seen: Mapping[str, tuple[Any, str]], on_error: str, source: str
) -> None:
    """Raise DataError for texts with another class in an earlier file, or log them with "skip".

    `seen` has the label and the place of each text in the earlier files.
    """
    wrong = [m for m in messages if m.text in seen and m.label != seen[m.text][0]]
    if not wrong:
        return
    shown = [
        f"{source}, line {m.line}: {m.label!r:.80}, but {label!r:.80} in {place}: {m.text!r:.200}"
        for m in wrong[:SHOWN]
        for label, place in [seen[m.text]]
    ]
    if more := len(wrong) - len(shown):
        shown.append(f"and {more:,} more")
    listed = "one text, two labels: " + "\n  ".join(shown)
    if on_error == "stop":
        raise DataError(f"{listed}\nFix them, or leave them out with --on-error skip.")
    log.warning(f"left out: {listed}")


def texts_with_two_labels(messages: Sequence[Message]) -> dict[str, list[Any]]:
    """{text: its different labels} for the texts whose copies have different labels.

    The order of several labels in one message does not matter.
    """
    labels: dict[str, dict[Hashable, Any]] = {}
    for message in messages:
        labels.setdefault(message.text, {})[_key(message.label)] = message.label
    return {
        text: sorted(found.values(), key=str) for text, found in labels.items() if len(found) > 1
    }


def _contexts_by_text(messages: Iterable[Message]) -> dict[str, str]:
    """{text: its context} if the messages are questions; otherwise {text: itself}."""
    found, are_questions = dict[str, str](), False
    for message in messages:
        label = message.label
        labels = label.values() if isinstance(label, dict) else (label,)
        are_questions |= any(isinstance(one, Span | GoldAnswers) for one in labels)
        found[message.text] = message.text
    return {text: context_of(text) for text in found} if are_questions else found


def distinct(messages: Sequence[Message]) -> list[Message]:
    """Keep the first of all messages with the same text and the same target."""
    found: dict[tuple[str, Hashable], Message] = {}
    for message in messages:
        found.setdefault((message.text, _key(message.label)), message)
    return [*found.values()]


def _key(label: Any) -> Hashable:
    """A hashable form of a label, for comparing labels."""
    if isinstance(label, dict):
        return tuple((name, _key(label[name])) for name in sorted(label))
    if isinstance(label, tuple | list) and all(isinstance(name, str) for name in label):
        return frozenset(label)
    return tuple(label) if isinstance(label, list) else label


def _settled(labels: list[Any]) -> tuple[Any, str]:
    """Combine the targets of equal texts into one, and say how; or say that all are kept."""
    if any(isinstance(label, Span | GoldAnswers) for label in labels):
        return None, KEPT
    rows = [tuple(label) if isinstance(label, tuple | list) else (label,) for label in labels]
    parts = [part for row in rows for part in row]
    if all(isinstance(part, str) for part in parts):
        return tuple(dict.fromkeys(parts)), "merged"
    if all(isinstance(part, Real) for part in parts) and len({*map(len, rows)}) == 1:
        n = len(rows)  # divide first, because a sum of large numbers may overflow
        mean = tuple(sum(value / n for value in column) for column in zip(*rows, strict=True))
        return (mean if isinstance(labels[0], tuple | list) else mean[0]), "averaged"
    return None, KEPT


def _checked(messages: Sequence[Message]) -> list[Message]:
    """The messages as a list. Raises DataError for NaN, mixed or similar labels.

    Messages from files are already checked by `load_examples`.
    """
    found = checked_messages(messages)
    refuse_mixed(found)
    refuse_alike(name for message in found for name in label_parts(message.label))
    return found


def _refuse_alike(parts: Sequence[list[Message]], sources: Sequence[str]) -> None:
    """Raise DataError for labels of two files that are equal except for ALIKE's differences."""
    if len(parts) == 1:
        return  # a single file was checked when it was read
    where: dict[str, str] = {}  # the place where each label occurs first
    for part, source in zip(parts, sources, strict=True):
        for message in part:
            for name in label_parts(message.label):
                where.setdefault(name, f"{source}, line {message.line}")
    if alike := labels_alike(where):
        shown = ", ".join(f"{name!r:.80} ({where[name]})" for name in alike[0])
        raise DataError(
            f"these labels {ALIKE}: {shown}"
            + (f", and {len(alike) - 1:,} more such groups" if len(alike) > 1 else "")
            + ". Make them the same."
        )


def _with_rare_labels(parts: Sequence[list[Message]], rare_labels: str) -> list[list[Message]]:
    """Apply `rare_labels` to the classes that have too few texts in the first part."""
    action, _, other = rare_labels.partition(":")
    if action == "stop":
        return [*parts]
    if not all(isinstance(message.label, str) for part in parts for message in part):
        raise UsageError(f"rare_labels = {rare_labels!r} needs one class per text")
    counts = Counter(label for label, _ in {(m.label, m.text) for m in parts[0]})
    labels = dict.fromkeys(message.label for message in parts[0])
    rare = {label: None for label in labels if counts[label] < FEWEST and label != other}
    if not rare:
        return [*parts]
    n = sum(message.label in rare for part in parts for message in part)
    how = {"drop": "were left out", "keep": "were kept"}.get(action, f"now have {other!r}")
    more = ", ..." if len(rare) > SHOWN else ""
    shown = ", ".join(f"{label!r:.40}" for label in [*rare][:SHOWN])
    log.warning(f"{n:,} texts of {len(rare):,} rare labels {how}: {shown}{more}")
    if action == "keep":
        return [*parts]
    left = [*dict.fromkeys(other if label in rare else label for label in labels)]
    left = [label for label in left if label]
    if len(left) < 2 <= len(labels):
        what = f"only one label, {left[0]!r:.80}" if left else "no label"
        raise DataError(
            f"--rare-labels {rare_labels} leaves {what}, of {len(labels):,} in the training texts: "
            f"{len(rare):,} have fewer than {FEWEST} texts. Give them more texts, or use --rare-labels "
            "keep."
        )
    return [
        [
            replace(message, label=other) if message.label in rare else message
            for message in part
            if other or message.label not in rare
        ]
        for part in parts
    ]


def with_known_labels(
    messages: Sequence[Message], known: Collection[str], rare_labels: str, source: str
) -> list[Message]:
    """Apply `rare_labels` to the classes in `messages` that no training text has.

    `known` are the classes of the training texts, and `source` is the file's name. Raises DataError
    with file, line and label for any other class, unless it is dropped, kept, or merged into a
    known one.
    """
    new = [message for message in messages if message.label not in known]
    if not new:
        return [*messages]
    action, _, other = rare_labels.partition(":")
    if action == "stop" or (other and other not in known):
        first = new[0]
        others = f", nor those of {len(new) - 1:,} more rows" if len(new) > 1 else ""
        others += f", nor the label {other!r:.80} of --rare-labels {rare_labels}" if other else ""
        meant = [label for label in known if labels_alike([label, first.label])]
        hint = f" Is {meant[0]!r:.80} meant?" if meant else ""
        raise DataError(
            f"{source}, line {first.line}: no training text has the label {first.label!r:.80}{others}."
            f"{hint} Correct it, or use --rare-labels {CHOICES}."
        )
    labels = dict.fromkeys(f"{message.label!r:.40}" for message in new)
    more = ", ..." if len(labels) > SHOWN else ""
    how = {"drop": "were left out", "keep": "were kept"}.get(action, f"now have {other!r}")
    log.warning(
        f"{source}: {len(new):,} texts with labels that no training text has {how}: "
        f"{', '.join([*labels][:SHOWN])}{more}"
    )
    if action == "keep":
        return [*messages]
    return [
        message if message.label in known else replace(message, label=other)
        for message in messages
        if other or message.label in known
    ]


def load_unlabelled(data: DataConfig, split: Split) -> list[str]:
    """Read the distinct texts of `data.unlabelled`, without those of validation and test set.

    Empty texts are left out. Columns, header and encoding are those of the source. A .conll file
    has one word per line, a .json file SQuAD's questions, and a file that is not a table one text
    per line. Texts that differ only in white space or Unicode composition count as equal. For
    questions, the contexts of validation and test set are left out too.
    """
    if not data.unlabelled:
        return []
    task = {".conll": "token-classification", ".json": "span"}.get(
        Path(data.unlabelled).suffix.lower(), "features"
    )
    source = replace(data, source=data.unlabelled, val_source="", test_source="", keep_empty=True)
    texts = (message.text for message in load_examples(source, task))
    found = dict.fromkeys(text for text in texts if text.strip())
    contexts = _contexts_by_text([*split.val, *split.test])
    scored = {comparable(text) for text in (*contexts, *contexts.values())}
    are_questions = any(text != context for text, context in contexts.items())
    kept = [
        text
        for text in found
        if comparable(text) not in scored
        and not (are_questions and comparable(context_of(text)) in scored)
    ]
    if len(kept) < len(found):
        log.info(
            f"{len(found) - len(kept):,} of {len(found):,} unlabelled texts are left out, because they are in "
            "the validation or test set"
        )
    return kept


def comparable(text: str) -> str:
    """A form that is equal for texts that differ only in white space or Unicode composition."""
    return " ".join(unicodedata.normalize("NFC", text).split())


# --- drawing texts and dividing them into parts ---


def _copies_and_texts(
    messages: Sequence[Message], balance: bool, fewest: int, fewest_labels: int = 2
) -> tuple[dict[str, list[Message]], dict[str, list[str]]]:
    """{text: its messages} and {label: its distinct texts}.

    Raises DataError for too few labels or texts, and UsageError for `balance` without classes.
    """
    classes = all(isinstance(message.label, str) for message in messages)
    if balance and not classes:
        raise UsageError("balance = True needs one class per text; leave it out for other labels")
    copies: dict[str, list[Message]] = {}
    for message in messages:
        copies.setdefault(message.text, []).append(message)
    labels = sorted({message.label for message in messages}) if classes else [ALL]
    by_label: dict[str, list[str]] = {label: [] for label in labels}
    for text, same in copies.items():
        by_label[same[0].label if classes else ALL].append(text)
    if classes and len(by_label) < fewest_labels:
        found = f"only one label, {labels[0]!r:.80}" if labels else "no label"
        raise DataError(f"the texts have {found}; training needs texts of two labels")
    _refuse_too_few({label: len(texts) for label, texts in by_label.items()}, "texts", fewest)
    return copies, by_label


def _cut(
    copies: dict[str, list[Message]],
    by_label: dict[str, list[str]],
    shares: Sequence[int],
    balance: bool,
    keep_together: str,
    fewest: int,
    seed: int,
) -> list[list[Message]]:
    """Draw the texts of each label, and cut them into parts of the given proportions.

    The first part gets at least one text of each label, even if the label is rare. Returns the
    messages of each part.
    """
    random = np.random.RandomState(seed)
    drawn = _draw(by_label, balance, random)
    parts: list[list[str]] = [[] for _ in shares]
    contexts = _contexts_by_text(message for same in copies.values() for message in same)
    if keep_together == "copies" and len(set(contexts.values())) == len(contexts):
        whole = sum(shares)
        for texts in drawn.values():
            sizes = [int(share / whole * len(texts)) for share in shares[:-1]]
            sizes[0] = max(1, sizes[0])
            places = [0, *np.cumsum(sizes), len(texts)]
            for part, (start, end) in zip(parts, pairwise(places), strict=True):
                part.extend(texts[start:end])
    else:
        texts, labels, groups = _grouped(drawn, contexts, keep_together, fewest)
        dealt = _deal(labels, groups, sum(shares), random)
        of_part = np.repeat(np.arange(len(shares)), shares)
        numbers: list[list[int]] = [[] for _ in shares]
        for part, some in zip(random.permutation(of_part), dealt, strict=True):
            numbers[part].extend(some)
        lacking = np.setdiff1d(labels, labels[numbers[0]])
        moved = np.isin(groups, groups[np.isin(labels, lacking)])
        numbers[0] += [n for part in numbers[1:] for n in part if moved[n]]
        numbers[1:] = [[n for n in part if not moved[n]] for part in numbers[1:]]
        parts = [[texts[n] for n in part] for part in numbers]
    if not all(parts):
        raise DataError(
            f"{len(copies):,} texts are too few to be cut into {len(parts)} parts. Give more "
            "texts per label, or a --val-data and a --test-data."
        )
    return [_in_random_order(part, copies, random) for part in parts]


def _draw(
    by_label: dict[str, list[str]], balance: bool, random: np.random.RandomState
) -> dict[str, list[str]]:
    """The texts of each label in random order; with `balance`, as many as the rarest label has."""
    count = min(map(len, by_label.values())) if balance else None
    return {
        label: [texts[n] for n in random.permutation(len(texts))[:count]]
        for label, texts in by_label.items()
    }


def _grouped(
    by_label: dict[str, list[str]], contexts: Mapping[str, str], keep_together: str, fewest: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """All texts, and for each its label's number (N,) and its group's number (N,).

    Texts with the same context are in one group. A group is counted under its most common label
    only. Raises DataError for a label with too few groups.
    """
    texts = [text for found in by_label.values() for text in found]
    labels = np.repeat(np.arange(len(by_label)), [len(found) for found in by_label.values()])
    found = [contexts[text] for text in texts]
    if keep_together == "copies":
        what = "contexts"
        number_of = {context: number for number, context in enumerate(dict.fromkeys(found))}
        groups = np.array([number_of[context] for context in found])
    else:
        what = "groups of near duplicates"
        groups = np.array(near_duplicate_groups(found))
    votes = Counter(zip(groups.tolist(), labels.tolist(), strict=True))
    of_group: dict[int, int] = {}
    for (group, label), _ in votes.most_common():
        of_group.setdefault(group, label)
    counts = Counter(of_group.values())
    by_name = {name: counts[n] for n, name in enumerate(by_label)}
    _refuse_too_few(by_name, what, fewest)
    return texts, labels, groups


def _deal(
    labels: np.ndarray, groups: np.ndarray, n: int, random: np.random.RandomState
) -> list[np.ndarray]:
    """Divide (N,) texts into n parts of about equal size; return the indices in each.

    Groups are not divided. Every part has the labels in the proportions of the whole, as closely as
    groups allow. The largest groups go to the first parts, so the caller must choose at random what
    each part is used for.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if np.bincount(labels).max() < n:
        raise DataError(f"{len(labels):,} texts are too few to be dealt into {n} parts")
    dealer = StratifiedGroupKFold(n, shuffle=True, random_state=random)
    # scikit-learn warns about rare labels, which `_cut` handles
    with warnings.catch_warnings(action="ignore"):
        return [part for _, part in dealer.split(labels, labels, groups)]


def _in_random_order(
    texts: Sequence[str], copies: dict[str, list[Message]], random: np.random.RandomState
) -> list[Message]:
    """All messages of some texts, in random order."""
    return [message for n in random.permutation(len(texts)) for message in copies[texts[n]]]


def _refuse_too_few(counts: Mapping[str, int], what: str, fewest: int) -> None:
    few = [label for label, count in counts.items() if count < fewest]
    if few:
        label = "" if few[0] == ALL else f" of label {few[0]!r}"
        others = f", and {len(few) - 1} more of the {len(counts)} labels have too few"
        raise DataError(
            f"{counts[few[0]]} {what}{label} are too few; {fewest} are needed"
            + (others if len(few) > 1 else "")
            + (f". Use --rare-labels {CHOICES}." if label else "")
        )
