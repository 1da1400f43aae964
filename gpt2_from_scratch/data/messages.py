"""Labelled messages: the types, reading and checking, and writing.

A message of the lecture is a text and its class, "ham" or "spam". It comes from the SMS Spam
Collection. `formats.py` reads the examples of the other tasks in the same way.
"""

import csv
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unicodedata import category, normalize

from gpt2_from_scratch.data.tables import (
    LABEL,
    NUMBER,
    TEXT,
    Fault,
    Form,
    Row,
    checked_delimiter,
    checked_encoding,
    is_table,
    lines_in,
    read_lines,
    read_rows,
    recognised,
    tab_separated,
)
from gpt2_from_scratch.errors import DataError, UsageError, did_you_mean
from gpt2_from_scratch.progress import visible
from gpt2_from_scratch.storage.files import atomic_path
from gpt2_from_scratch.storage.paths import DATA_SETS, data_file, expanded, known_data
from gpt2_from_scratch.storage.settings import check_settings, plain, setting

log = logging.getLogger(__name__)

# Matches the positions where a spreadsheet may find a formula. A formula begins with = + - or @.
# Quotes may come before this sign. A formula is at the beginning of a text, or after a character
# that some program treats as the end of a cell (control characters, line ends, a semicolon, a
# comma). Signs of full, small and other widths count as ordinary signs. A tab or a return at the
# beginning of a text also counts. A match is empty: it contains neither the sign nor the tab.
FORMULA = re.compile(
    "(?:(?<=[\0-\x1f;,\x85\u2028\u2029])|\\A)"
    '(?="*[-=+@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u2212])'
    "|\\A(?=[\t\r])"
)
# all control characters except tab and line ends
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
REPLACEMENT = "\ufffd"
SMS_SPAM = "SMSSpamCollection"  # the name of the collection's file
SMS_SPAM_COUNTS = {"ham": 4827, "spam": 747}  # as published with the collection
ALIKE = "differ in case, invisible characters, white space or Unicode form only"
FINAL_MARKS = ".!?…。！？؟।"  # punctuation marks that end a sentence
KEEP_TOGETHER = ("copies", "near-duplicates")  # texts that a split never separates
LONGEST_NAME = 40  # most characters of a label in printed text
SHOWN = 5  # most faults listed in an error message
Found = TypeVar("Found")  # a row, or the message made from a row


class Span(NamedTuple):
    """A part of a text, `text[start:end]`, and its tag, which may be empty."""

    start: int
    end: int
    label: str = ""


class GoldAnswers(tuple[Span, ...]):
    """The Spans of all correct answers to a question, of which training uses the first."""


@dataclass(frozen=True)
class Message:
    """A text and its label, whose type depends on the task.

    - classification: a class (str)
    - multi-label: the labels (a tuple of str, which may be empty)
    - regression: the values (a tuple of float)
    - token-classification: one Span per word
    - token-regression: a number, or pairs (number of characters, value after them)
    - span: the Span of an answer, or GoldAnswers if several are correct
    - language and features: None
    - several heads at once: a dictionary {head's name: one of these}

    Numpy's numbers and strings are converted to Python's. Raises DataError for a set of labels,
    because its order changes from run to run.
    """

    text: str
    label: Any
    # line number in its file, counted from 1; 0 if it is not known
    line: int = field(default=0, compare=False, repr=False)

    def __post_init__(self) -> None:
        if type(self.label) is not str:
            object.__setattr__(self, "label", _plain_label(self.label, self.text))


def _plain_label(label: Any, text: str) -> Any:
    if isinstance(label, set | frozenset):
        raise DataError(
            f"the labels of {text!r:.80} are a set, which has no order. Give a tuple or a list."
        )
    if isinstance(label, dict):
        return {name: _plain_label(one, text) for name, one in label.items()}
    if isinstance(label, Span):
        return Span(*map(plain, label))
    if isinstance(label, GoldAnswers):
        if not label:
            raise DataError(f"the question {text!r:.80} has no answer. Give it the label None.")
        return GoldAnswers(_plain_label(part, text) for part in label)
    if type(label) in (tuple, list):
        return type(label)(_plain_label(part, text) for part in label)
    return plain(label)


@dataclass(frozen=True)
class DataConfig:
    """Which labelled texts to use, how to read them, and how to split them."""

    source: str = setting("sms", "data set: sms, hard, topics, or a file")
    val_source: str = setting(
        "",
        "file with the validation set; needs a test file; default: part of the training file",
    )
    test_source: str = setting("", "file with the test set; default: part of the training file")
    unlabelled: str = setting("", "file with texts without labels; needs --adapt, which uses them")
    text_column: str = setting(TEXT, "column of the texts, or several to join: a,b")
    label_column: str = setting(LABEL, "column of the labels, or several of numbers: a,b")
    header: bool = setting(
        True, "the first row names the columns; --no-header: they are numbered 1, 2, ..."
    )
    delimiter: str = setting(
        "auto", "separator of the columns: comma, semicolon, tab, pipe or another character"
    )
    encoding: str = setting("utf-8", "encoding of the files")
    on_error: str = setting(
        "stop", "action for a faulty row or a text with two labels", choices=("stop", "skip")
    )
    rare_labels: str = setting(
        "stop",
        "action for a class with fewer than ten training texts, or none: stop, drop its texts, "
        "keep it, or join:other, which merges all such classes into one class called other",
    )
    keep_empty: bool = setting(False, "also train on empty texts")
    balance: bool = setting(False, "draw equally many texts per label")
    keep_together: str = setting(
        "copies", "texts that a split keeps in one part", choices=KEEP_TOGETHER
    )

    def __post_init__(self) -> None:
        for name in ("source", "val_source", "test_source", "unlabelled"):
            if isinstance(getattr(self, name), str | Path):
                object.__setattr__(self, name, known_data(str(getattr(self, name))))
        check_keep_together(self.keep_together)
        check_settings(self)
        check_rare_labels(self.rare_labels)
        object.__setattr__(self, "encoding", checked_encoding(self.encoding))
        object.__setattr__(self, "delimiter", checked_delimiter(self.delimiter))
        if self.val_source and not self.test_source:
            raise UsageError("--val-data (val_source) also needs --test-data (test_source)")
        if self.val_source and (self.balance or self.keep_together != "copies"):
            raise UsageError(
                "balance and keep_together describe how one file is split; leave them out with "
                "--val-data (val_source) and --test-data (test_source)"
            )

    @classmethod
    def of(cls, data: "str | Path | DataConfig") -> "DataConfig":
        """The settings of a data set given by its name or path; a DataConfig is returned as it is.

        Raises UsageError for anything else, such as a pandas table.
        """
        if isinstance(data, cls):
            return data
        if not isinstance(data, str | Path):
            how = "Write Messages to a file with write_messages('train.csv', messages)."
            if hasattr(data, "to_csv"):
                how = "Write texts and labels to a file with df.to_csv('train.csv', index=False)."
            raise UsageError(
                "data must be a data set's name, a file or a DataConfig, not a "
                f"{type(data).__name__}. {how}"
            )
        return cls(source=str(data))


# --- Reading messages with one class each ---


def load_messages(data: str | Path | DataConfig = "sms") -> list[Message]:
    """Read texts with one class each from a data set or a file.

    Three data sets ship with the package: "sms", the SMS Spam Collection of Almeida and Gomez
    Hidalgo (https://archive.ics.uci.edu/dataset/228), "hard" and "topics". Other files may be
    tables (.csv, .tsv or another text file) or .jsonl files. They have one column (or key) of texts
    and one of labels.

    Quotes are ordinary characters in the SMS Spam Collection. pandas reads them as csv quotes by
    default, and then loses two of the 5,574 messages and changes 53.

    Raises DataError, with file and line, for the first row that is not a text and a label. With
    `on_error="skip"`, such rows are left out and logged. An empty text is a fault unless
    `keep_empty` is set.
    """
    data = DataConfig.of(data)
    path = source_path(data.source)
    messages = collected(class_messages(data), path, data.on_error, "messages")
    if path.name == SMS_SPAM and (counts := count_labels(messages)) != SMS_SPAM_COUNTS:
        log.warning(f"{path} contains {counts!s:.200}, the SMS Spam Collection {SMS_SPAM_COUNTS}")
    return messages


def class_messages(data: DataConfig) -> Iterator[Message | Fault]:
    """Yield each row of the source as a message with a class, or its fault."""
    return labelled(source_rows(data, (data.label_column,)), _class_of, data.keep_empty)


def source_path(source: str | Path) -> Path:
    """The file of a data set or at a path. Raises DataError if the file does not exist."""
    path = data_file(str(source)) if known_data(str(source)) in DATA_SETS else expanded(source)
    if not os.path.isfile(path):  # Path.is_file raises OSError for a name that is too long
        hint = did_you_mean(path.name, DATA_SETS)
        raise DataError(
            f"{path} is not a file, nor one of the data sets {', '.join(DATA_SETS)}.{hint}"
        )
    return path


def table_form(data: DataConfig, label_columns: tuple[str, ...]) -> Form:
    """The format of the source, which is a table. Raises DataError if the format is not clear."""
    path = source_path(data.source)
    if path.name == SMS_SPAM:
        return Form("\t", quotes=False, header=False, width=2, columns=((1,), (0,)))
    if data.source in DATA_SETS:
        return recognised(path, (TEXT, LABEL))
    names = (data.text_column, *label_columns)
    return recognised(path, names, data.encoding, header=data.header, delimiter=data.delimiter)


def source_rows(data: DataConfig, label_columns: tuple[str, ...]) -> Iterator[Row | Fault]:
    """Yield the text and the labels of each row of a table or of the SMS Spam Collection."""
    path = source_path(data.source)
    if path.name == SMS_SPAM:
        return _collection_rows(path)
    if data.source in DATA_SETS:  # the options are only for a user's own files
        return read_rows(path, (TEXT, LABEL))
    names = (data.text_column, *label_columns)
    return read_rows(path, names, data.encoding, header=data.header, delimiter=data.delimiter)


def labelled(
    rows: Iterable[Row | Fault],
    label_of: Callable[[Row, Row], Any],
    keep_empty: bool,
) -> Iterator[Message | Fault]:
    """Yield each row as a message, or its fault.

    `label_of` makes the label, or a Fault, from a row and the first row without a fault.
    """
    first: Row | None = None
    for row in rows:
        if isinstance(row, Fault):
            yield row
            continue
        label = _fault_of_text(row, keep_empty) or label_of(row, first or row)
        if isinstance(label, Fault):
            yield label
        else:
            first = first or row
            yield Message(without_halves(row.values[0]), label, row.line)


def collected(
    found: Iterator[Message | Fault], path: Path, on_error: str, what: str
) -> list[Message]:
    """Return the messages of a file as a list; raise or skip its faults.

    Raises DataError for a fault with "stop", if no message is left, or if labels differ only in
    case, invisible characters, spaces or Unicode form.

    Args:
        found: The messages and faults.
        path: The file, for errors.
        on_error: "stop" or "skip".
        what: What the file should contain, for errors.
    """
    messages = [message for _, message in without_faults(found, str(path), on_error)]
    if not messages:
        raise DataError(f"{path} contains no {what}")
    refuse_alike((name for m in messages for name in label_parts(m.label)), f"{path}: ")
    return messages


def label_parts(label: Any) -> tuple[str, ...]:
    """The class, the labels or the tags in a message's label; () if it has none of these."""
    if isinstance(label, str):
        return (label,)
    if isinstance(label, Span | GoldAnswers) or not isinstance(label, tuple):
        return ()
    parts = (part.label if isinstance(part, Span) else part for part in label)
    return tuple(part for part in parts if isinstance(part, str))


def gold_answers(label: Span | GoldAnswers) -> Sequence[Span]:
    """The Spans of all correct answers in the label of a question."""
    return label if isinstance(label, GoldAnswers) else (label,)


def labels_alike(labels: Iterable[str]) -> list[list[str]]:
    """Groups of labels that are equal except for the differences that ALIKE names."""
    groups: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        seen = "".join(character for character in label if category(character) != "Cf")
        folded = normalize("NFC", normalize("NFC", seen).casefold())
        groups.setdefault(" ".join(folded.split()), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def refuse_alike(labels: Iterable[str], where: str = "") -> None:
    """Raise DataError for labels that are equal except for the differences that ALIKE names."""
    if alike := labels_alike(labels):
        raise DataError(f"{where}these labels {ALIKE}: {alike}. Make them the same.")


def refuse_mixed(messages: Sequence[Message]) -> None:
    """Raise DataError for a NaN label, and for classes of mixed types such as 1, "1" and True."""
    types = Counter(type(message.label) for message in messages)
    single = [kind for kind in types if kind in (str, bool)] if len(types) > 1 else []
    for number, message in enumerate(messages if single or float in types else ()):
        label = message.label
        is_nan = isinstance(label, float) and label != label
        if is_nan or (single and type(label) is not single[0]):
            others = f"; others are {single[0].__name__}" if single else ""
            raise DataError(
                f"message {number}, counted from 0, has the label {label!r:.80}{others}. Give all "
                "labels one type, and leave out missing ones, which are NaN, None or NA in pandas."
            )


def with_other_endings(messages: Sequence[Message]) -> list[Message]:
    """Return the messages, each followed by itself with another ending (see `other_ending`)."""
    twins = ((m, Message(other_ending(m.text), m.label)) for m in messages)
    return [message for pair in twins for message in pair]


def other_ending(text: str) -> str:
    """Return a text without its last punctuation mark, or with a full stop if it ends in none."""
    text = text.rstrip()
    return text[:-1] if len(text) > 1 and text[-1] in FINAL_MARKS else text + "."


def checked_messages(messages: Iterable[Message]) -> list[Message]:
    """The messages as a list. Raises DataError for anything else, such as a table."""
    how = "[Message(text, label) for text, label in zip(texts, labels)]"
    if hasattr(messages, "to_csv"):  # a table or a column of pandas
        kind, how = type(messages).__name__, how.replace("texts, labels", "df['text'], df['label']")
        raise DataError(f"give a list of Message, not a {kind}: {how}")
    if isinstance(messages, str | bytes | Path) or not hasattr(messages, "__iter__"):
        raise DataError(f"give a list of Message, not {messages!r:.80}: {how}")
    found = [*messages]
    for number, message in enumerate(found):
        if not isinstance(message, Message):
            raise DataError(
                f"message {number}, counted from 0, must be a Message, not a "
                f"{type(message).__name__}: {how}"
            )
    return found


def _collection_rows(path: Path) -> Iterator[Row | Fault]:
    for row in tab_separated(path):
        if isinstance(row, Row) and len(row.values) != 2:
            what = f"expected label, tab, text; found {list(row.values)!r:.200}"
            yield Fault(row.line, what, "more or fewer fields than two")
        else:
            yield row if isinstance(row, Fault) else Row(row.line, row.values[::-1])


def _fault_of_text(row: Row, keep_empty: bool) -> Fault | None:
    text = row.values[0]
    if not isinstance(text, str):
        what = f"the text must be a string, not {json.dumps(text):.100}"
        return Fault(row.line, what, "JSON values of another type")
    if not keep_empty and not text.strip():
        return Fault(row.line, "the text is empty, so there is nothing to learn", "empty texts")
    return None


def _class_of(row: Row, first: Row) -> str | Fault:
    """A row's class as a string, or its Fault.

    In JSON the class may also be an int or a bool, if all rows have the same type.
    """
    value = row.values[1]
    if type(value) not in (str, int, bool):
        what = f"the label must be a string or a whole number, not {json.dumps(value):.100}"
        return Fault(row.line, what, "JSON values of another type")
    if type(value) is not type(first.values[1]):
        what = f'the label is {json.dumps(value)}; types such as 0, "0" and true are mixed'
        return Fault(row.line, what, "labels of mixed types")
    label = without_halves(str(value))
    return label if label.strip() else Fault(row.line, "the label is empty", "empty labels")


# --- Reading texts to classify ---


def read_texts(
    path: str | Path,
    text_column: str = TEXT,
    encoding: str = "utf-8",
    on_error: str = "stop",
    *,
    header: bool = True,
    delimiter: str = "auto",
) -> Iterator[tuple[int, str]]:
    """Read (number, text) of each text to classify: a table's column, or a text file's lines.

    Args:
        path: A table or a text file.
        text_column: The column of the texts in a table.
        encoding: The file's text encoding.
        on_error: "stop" or "skip", as in `load_messages`.
        header: Whether a table's first row names the columns.
        delimiter: The character between a table's columns, or "auto".

    Returns:
        An iterator; the numbers count all rows or lines from 1, including faulty ones.

    Raises:
        DataError: The file is missing, or is a .json or .conll file. The iterator raises it for a
            faulty row.
        UsageError: The encoding is unknown.
    """
    path = expanded(path)
    encoding = checked_encoding(encoding)
    if path.suffix.lower() in (".json", ".conll"):  # otherwise each line would be a text
        raise DataError(
            f"{path}: texts are read from the lines of a text file or a column of .csv, .tsv or "
            ".jsonl. Use evaluate --data for labelled .json and .conll."
        )
    if is_table(path):
        delimiter = checked_delimiter(delimiter)
        rows = read_rows(path, (text_column,), encoding, header=header, delimiter=delimiter)
    else:
        rows = read_lines(path, encoding)
    found = (row if isinstance(row, Fault) else _fault_of_text(row, True) or row for row in rows)
    return ((number, row.values[0]) for number, row in without_faults(found, str(path), on_error))


def lines_of(
    stream: Any, name: str, encoding: str = "utf-8", on_error: str = "stop"
) -> Iterator[tuple[int, str]]:
    """Read (number, text) of the lines of a binary stream, such as standard input.

    It works like `read_texts`, with one difference. With "stop", it raises DataError at the first
    fault and does not count the other faults, because the stream may never end.
    """
    rows = lines_in(stream, name, checked_encoding(encoding))
    found = without_faults(rows, name, on_error, count=False)
    return ((number, row.values[0]) for number, row in found)


# --- Faulty rows ---


def without_faults(
    rows: Iterator[Found | Fault], name: str, on_error: str, *, count: bool = True
) -> Iterator[tuple[int, Found]]:
    """Yield (number, row) of each row without a fault; `name` is the file's name.

    With "stop", raises DataError for the first fault. If `count` is set, all rows are read before
    that, and the error also lists the other faults. With "skip", leaves faulty rows out and logs
    them at the end.
    """
    check_on_error(on_error)
    faults, total, number = [], 0, 0
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Fault):
            total += 1
            faults += [row] if total <= SHOWN else []
            if on_error == "stop" and not count:
                break
        elif on_error == "skip" or not faults:
            yield number, row
    if faults and on_error == "stop":
        message = f"{name}, line {faults[0].line}: {faults[0].what}"
        if total > 1:
            others = _listed(faults[1:], total - 1)
            message += f"\n{total:,} rows are faulty. The others:\n{others}"
        raise DataError(message + "\nFix this, or leave such rows out with --on-error skip.")
    if faults:
        shown = _listed(faults, total)
        log.warning(f"left out {total:,} of {number:,} rows of {name}:\n{shown}")


def check_on_error(on_error: str) -> None:
    """Raise UsageError for anything but "stop" and "skip"."""
    if on_error not in ("stop", "skip"):
        raise UsageError(f"unknown on_error {on_error!r}; choose from: stop, skip")


def check_keep_together(keep_together: str) -> None:
    """Raise UsageError for anything that is not in KEEP_TOGETHER."""
    if keep_together == "near-twins":  # the name in runs of version 1
        raise UsageError("keep_together = 'near-twins' has a new name: use 'near-duplicates'")
    if keep_together not in KEEP_TOGETHER:
        raise UsageError(
            f"unknown keep_together {keep_together!r}; choose from: {', '.join(KEEP_TOGETHER)}"
        )


def check_rare_labels(rare_labels: str) -> None:
    """Raise UsageError for anything but "stop", "drop", "keep" and "join:" with a label."""
    action, _, label = rare_labels.partition(":")
    if rare_labels not in ("stop", "drop", "keep") and (action != "join" or not label.strip()):
        raise UsageError(
            f"unknown rare_labels {rare_labels!r}; choose from: stop, drop, keep, join:other"
        )


def _listed(faults: list[Fault], total: int) -> str:
    lines = [f"  line {fault.line}: {fault.what}" for fault in faults]
    more = total - len(faults)
    return "\n".join(lines + ([f"  and {more:,} more"] if more else []))


# --- Writing and counting ---


def write_messages(path: str | Path, messages: Sequence[Message]) -> None:
    """Write a .csv file that `load_messages` can read, completely or not at all.

    Texts are written unchanged. Use `for_spreadsheet` for files that a spreadsheet will open.
    """
    path, messages = expanded(path), checked_messages(messages)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["label", "text"])
        writer.writerows((message.label, message.text) for message in messages)


def count_labels(messages: Sequence[Message]) -> dict[str, int]:
    """Count the messages per label: {label: number}, with the labels sorted by `in_order`."""
    messages = checked_messages(messages)
    refuse_mixed(messages)
    counts = Counter(message.label for message in messages)
    return {label: counts[label] for label in in_order(counts)}


def in_order(labels: Iterable[str]) -> list[str]:
    """Sort labels: numbers first, by value, then the others alphabetically."""

    def key(label: str) -> tuple[bool, float, str]:
        is_number = isinstance(label, str) and bool(NUMBER.fullmatch(label.strip()))
        return not is_number, float(label) if is_number else 0.0, label

    return sorted(labels, key=key)


# --- Troublesome characters: lone surrogates, formulas, control characters ---


def has_halves(text: str) -> bool:
    """Whether the text contains a lone surrogate, which cannot be written to a file."""
    if text.isascii():
        return False
    try:
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return True
    return False


def without_halves(text: str) -> str:
    """Join surrogate pairs, and replace each lone surrogate by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def for_spreadsheet(text: str) -> str:
    """Make the text safe for spreadsheets: put ' in front of each formula in it.

    Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    return FORMULA.sub("'", text)


def on_one_line(text: str) -> str:
    """The text on one line, with control characters made visible."""
    return visible(" ".join(text.split()))


def short(text: str, longest: int = LONGEST_NAME) -> str:
    """A label or a sentence for printing: on one line, and cut to `longest` characters."""
    shown = on_one_line(text)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
