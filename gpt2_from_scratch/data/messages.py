"""Characters in texts that trip up what reads them: halves of characters, formulas, controls."""

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from gpt2_from_scratch.data.lines import Fault, Row, checked_encoding, lines_in, read_lines
from gpt2_from_scratch.data.tables import is_table, read_rows, tab_separated
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.storage.files import atomic_path
from gpt2_from_scratch.storage.paths import (
    DATA_SETS,
    EMBEDDED_DATA,
    embedded,
    expanded,
    sms_collection,
)
from gpt2_from_scratch.storage.settings import check_settings, setting

log = logging.getLogger(__name__)

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets execute what begins so, csv or not
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all but tab and line ends
NUL, REPLACEMENT = "\x00", "\ufffd"


def has_halves(text: str) -> bool:
    """Whether some half of a character (a lone surrogate) is in it, which no file can hold."""
    if text.isascii():
        return False
    try:
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return True
    return False


def without_halves(text: str) -> str:
    """Two halves that belong together become one character, each lone one U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def for_spreadsheet(text: str) -> str:
    """The text as a csv field that no spreadsheet executes: ' before what would be a formula.

    Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    return "'" + text if text.startswith(FORMULA) else text


def on_one_line(text: str) -> str:
    """The text in one line, and nothing in it that a terminal would obey."""
    return "".join(c if c.isprintable() else REPLACEMENT for c in " ".join(text.split()))


# --- Labelled messages: read and checked. ---


SMS_SPAM_COUNTS = {"ham": 4827, "spam": 747}  # as published with the collection
SHOWN = 5  # faults told one by one
Found = TypeVar("Found")  # a row, or what was made of one


class Span(NamedTuple):
    """Some characters of a text, `text[start:end]`, and what they are: a tag, or nothing."""

    start: int
    end: int
    label: str = ""


@dataclass(frozen=True)
class Message:
    """A text and what it is labelled with, which depends on the task.

    A class (str); labels (a tuple of str, perhaps empty); values (a tuple of float); one Span a
    word; the Span of an answer; None where there is nothing to learn but the text. For several
    heads at once, a dictionary {head's name: one of these}.
    """

    text: str
    label: Any


@dataclass(frozen=True)
class DataConfig:
    """Where the texts of a run come from, and how they are read and split."""

    source: str = setting("demo", "demo, topics, sms or a file")
    val_source: str = setting("", "file of the validation set; default: part of the source")
    test_source: str = setting("", "file of the test set; default: part of the source")
    text_column: str = setting("text", "column of the text")
    label_column: str = setting("label", "column of the label")
    encoding: str = setting("utf-8", "encoding of the file")
    on_error: Literal["stop", "skip"] = setting(
        "stop", "what to do with faulty rows", choices=("stop", "skip")
    )
    keep_empty: bool = setting(False, "keep empty texts")
    balance: bool = setting(False, "keep equally many texts of each label")
    keep_together: Literal["copies", "near-duplicates"] = setting(
        "copies", "texts that go into the same part", choices=("copies", "near-duplicates")
    )

    def __post_init__(self) -> None:
        check_settings(self)


def load_messages(
    source: str | Path = "demo",
    *,
    text_column: str = "text",
    label_column: str = "label",
    encoding: str = "utf-8",
    on_error: str = "stop",
    keep_empty: bool = False,
) -> list[Message]:
    """Read labelled messages: "demo" or "topics" (both ship with the package), "sms" (the SMS Spam
    Collection) or a file.

    A .csv, .tsv or .jsonl file has a text and a label column (or key); a file called
    SMSSpamCollection is read as the collection. Everything stays a string: `NA`, `null` and `123`
    are texts. Raises DataError with file and line for the first row that is not two such strings;
    with `on_error="skip"` such rows are left out and told to `say`. An empty text is a fault too,
    but for `keep_empty`.
    """
    checked_encoding(encoding)
    path = source_path(source)
    if path.name == "SMSSpamCollection":
        return load_sms_spam(path)
    rows = labelled_rows(source, text_column, label_column, encoding, keep_empty=keep_empty)
    messages = [
        Message(*row.values)
        for _, row in without_faults(rows, str(path), on_error, hint="--on-error skip")
    ]
    if not messages:
        raise DataError(f"{path} holds no messages")
    if alike := labels_alike(message.label for message in messages):
        raise DataError(
            f"{path}: these labels differ in case or white space only: {alike}; make them one"
        )
    return messages


def load_sms_spam(path: Path | None = None) -> list[Message]:
    """Read the UCI SMS Spam Collection: exactly 5,574 messages, 4,827 ham and 747 spam.

    Quotes are ordinary characters in it. Reading them as csv quotes, as pandas does by default,
    swallows two messages and alters 53. Raises DataError when the counts differ: then it is
    another file. Source: Almeida & Gomez Hidalgo, https://archive.ics.uci.edu/dataset/228.
    """
    path = path or source_path("sms")
    rows = without_faults(_collection_rows(path), str(path), "stop")
    messages = [Message(*row.values) for _, row in rows]
    counts = count_labels(messages)
    if counts != SMS_SPAM_COUNTS:
        raise DataError(f"{path} holds {counts}, the SMS Spam Collection {SMS_SPAM_COUNTS}")
    return messages


def source_path(source: str | Path) -> Path:
    """The file that a data set's name or a path means. Raises DataError when it is not there."""
    path = expanded(source)
    if source in EMBEDDED_DATA:
        path = embedded(f"data/{source}") / "messages.csv"
    elif source == "sms":
        path = sms_collection()
        if not path.is_file():
            raise DataError(f"{path} is missing; get it with: gpt2-classifier download sms")
    if not path.is_file():
        raise DataError(f"{path} is not a file, nor one of the data sets {', '.join(DATA_SETS)}")
    return path


def labelled_rows(
    source: str | Path,
    text_column: str = "text",
    label_column: str = "label",
    encoding: str = "utf-8",
    *,
    keep_empty: bool = False,
) -> Iterator[Row | Fault]:
    """(text, label) of each row, or its fault, empty ones among them; see `load_messages`."""
    path = source_path(source)
    if path.name == "SMSSpamCollection":
        return _collection_rows(path)
    if source in EMBEDDED_DATA:  # their format is known; options are for a user's own files
        text_column, label_column, encoding = "text", "label", "utf-8"
    rows = read_rows(path, (text_column, label_column), encoding, whole=label_column)
    return (_labelled(row, keep_empty) for row in rows)


def read_texts(
    path: Path, text_column: str = "text", encoding: str = "utf-8", on_error: str = "stop"
) -> Iterator[tuple[int, str]]:
    """(number, text) of each text to classify: of a column of a .csv, .tsv or .jsonl file, or of
    a text file's lines.

    Numbers count all rows or lines from 1, faulty ones too; for these see `load_messages`. Raises
    DataError at once when there is no such file or it is .json or .conll, UsageError for an unknown
    encoding.
    """
    checked_encoding(encoding)
    if path.suffix.lower() in (".json", ".conll"):  # its lines would be taken for texts
        raise DataError(
            f"{path}: texts are read from lines of a text file or a column of .csv, .tsv or .jsonl; "
            "evaluate --data reads labelled .json and .conll"
        )
    if is_table(path):
        rows = read_rows(path, (text_column,), encoding)
    else:
        rows = read_lines(path, encoding)
    found = without_faults(rows, str(path), on_error, hint="--on-error skip")
    return ((number, row.values[0]) for number, row in found)


def lines_of(
    stream: Iterable[bytes], name: str, encoding: str = "utf-8", on_error: str = "stop"
) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines of a stream; as `read_texts`, but never reads on behind a fault
    to count others: a stream may have no end.
    """
    checked_encoding(encoding)
    rows = lines_in(stream, name, encoding)
    found = without_faults(rows, name, on_error, hint="--on-error skip", count=False)
    return ((number, row.values[0]) for number, row in found)


def without_faults(
    rows: Iterator[Found | Fault], name: str, on_error: str, *, hint: str = "", count: bool = True
) -> Iterator[tuple[int, Found]]:
    """(number, row) of each row that has no fault; `name` is of the file.

    "stop" raises DataError for the first fault, having read on to `count` them all; "skip" leaves
    them out and says so at the end.
    """
    check_on_error(on_error)
    faults, total, number = [], 0, 0
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Fault):
            yield number, row
            continue
        if on_error == "stop":
            raise DataError(_told(name, row, rows if count else iter(()), hint))
        total += 1
        faults += [row] if total <= SHOWN else []
    if total:
        log.warning(
            f"{total:,} of {number:,} rows of {name} were left out:\n{_listed(faults, total)}"
        )


def check_on_error(on_error: str) -> None:
    """Raises UsageError for anything but "stop" and "skip"."""
    if on_error not in ("stop", "skip"):
        raise UsageError(f"on_error = {on_error!r} must be stop or skip")


def write_messages(path: Path, messages: Sequence[Message]) -> None:
    """Write a .csv file that `load_messages` reads back, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["label", "text"])
        writer.writerows((message.label, message.text) for message in messages)


def count_labels(messages: Sequence[Message]) -> dict[str, int]:
    """{label: how many messages}, in the labels' alphabetical order."""
    return dict(sorted(Counter(message.label for message in messages).items()))


def labels_alike(labels: Iterable[str]) -> list[list[str]]:
    """Groups of labels that differ in case or in white space around them only."""
    groups: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        groups.setdefault(label.strip().casefold(), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def _collection_rows(path: Path) -> Iterator[Row | Fault]:
    for row in tab_separated(path):
        if isinstance(row, Fault) or len(row.values) == 2:
            yield row if isinstance(row, Fault) else Row(row.line, row.values[::-1])
        else:
            what = f"expected label, tab, text; found {list(row.values)!r:.200}"
            yield Fault(row.line, what, "more or fewer fields than two")


def _labelled(row: Row | Fault, keep_empty: bool) -> Row | Fault:
    if isinstance(row, Fault):
        return row
    text, label = map(without_halves, row.values)
    if not label.strip():
        return Fault(row.line, "the label is empty", "empty labels")
    if not text.strip() and not keep_empty:
        return Fault(row.line, "the text is empty; nothing to learn from", "empty texts")
    return Row(row.line, (text, label))


def _told(name: str, first: Fault, rest: Iterator[Any], hint: str) -> str:
    """The message for the first fault, with how many there are in all."""
    faults = (row for row in rest if isinstance(row, Fault))
    others = list(islice(faults, SHOWN - 1))
    total = 1 + len(others) + sum(1 for _ in faults)
    told = f"{name}, line {first.line}: {first.what}"
    if others:
        told += f"\n{total:,} rows have faults in all; the others:\n{_listed(others, total - 1)}"
    return told + (f"\nmend this, or leave such rows out with {hint}" if hint else "")


def _listed(faults: list[Fault], total: int) -> str:
    lines = [f"  line {fault.line}: {fault.what}" for fault in faults]
    more = total - len(faults)
    return "\n".join(lines + ([f"  and {more:,} more"] if more else []))
