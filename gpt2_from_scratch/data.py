"""Labelled messages: read, checked, and split so that no text stands on both sides."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.files import atomic_path
from gpt2_from_scratch.paths import embedded, sms_collection

SMS_SPAM_COUNTS = {"ham": 4827, "spam": 747}  # as published with the collection
FRACTIONS = (0.7, 0.1)  # train and validation; the rest is the test part


@dataclass(frozen=True)
class Message:
    """A text and its label."""

    text: str
    label: str


@dataclass(frozen=True)
class Split:
    """Three parts of a data set: to train on, to choose by, and to report on."""

    train: list[Message]
    val: list[Message]
    test: list[Message]


def load_messages(
    source: str | Path = "demo", *, text_column: str = "text", label_column: str = "label"
) -> list[Message]:
    """Read labelled messages: "demo" (ships with the package), "sms" (the SMS Spam Collection) or
    a file.

    A .csv, .tsv or .jsonl file has a text and a label column (or key); a file called
    SMSSpamCollection is read as the collection. Everything stays a string: `NA`, `null` and `123`
    are texts. Raises DataError with file and line for anything that is not two such strings.
    """
    if source == "demo":
        return read_table(embedded("data/demo") / "messages.csv", "text", "label")
    if source == "sms":
        return load_sms_spam()
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"{path} is not a file, nor one of the data sets demo and sms")
    if path.name == "SMSSpamCollection":
        return load_sms_spam(path)
    return read_table(path, text_column, label_column)


def load_sms_spam(path: Path | None = None) -> list[Message]:
    """Read the UCI SMS Spam Collection: exactly 5,574 messages, 4,827 ham and 747 spam.

    Quotes are ordinary characters in it. Reading them as csv quotes, as pandas does by default,
    swallows two messages and alters 53. Raises DataError when the counts differ: then it is
    another file. Source: Almeida & Gomez Hidalgo, https://archive.ics.uci.edu/dataset/228.
    """
    path = path or sms_collection()
    if not path.is_file():
        raise DataError(f"{path} is missing; get it with: gpt2-classifier download sms")
    messages = []
    for line, row in _tab_separated(path):
        if len(row) != 2:
            raise DataError(f"{path}, line {line}: expected label, tab, text; found {row!r:.200}")
        messages.append(Message(text=row[1], label=row[0]))
    counts = count_labels(messages)
    if counts != SMS_SPAM_COUNTS:
        raise DataError(f"{path} holds {counts}, the SMS Spam Collection {SMS_SPAM_COUNTS}")
    return messages


def read_table(path: Path, text_column: str, label_column: str) -> list[Message]:
    """Read a .csv, .tsv or .jsonl file of texts and labels; see `load_messages`."""
    messages = []
    for line, (text, label) in _columns(path, (text_column, label_column)):
        if not label.strip():
            raise DataError(f"{path}, line {line}: the label is empty")
        if not text.strip():
            raise DataError(f"{path}, line {line}: the text is empty; nothing to learn from")
        messages.append(Message(text, label))
    if not messages:
        raise DataError(f"{path} holds no messages")
    return messages


def read_texts(path: Path, text_column: str = "text") -> Iterator[str]:
    """Texts to classify, one after the other: a column of a .csv, .tsv or .jsonl file, or a text
    file's lines.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        return (text for _, (text,) in _columns(path, (text_column,)))
    return (line for _, line in _lines(path))


def lines_of(stream: Iterable[bytes], name: str) -> Iterator[str]:
    """The lines of a stream: UTF-8, with or without a byte order mark; `name` is for errors.

    Only \\n and \\r\\n end a line, whatever else Unicode has for it.
    """
    return (line.removesuffix("\n").removesuffix("\r") for line in _decoded(stream, name))


def write_messages(path: Path, messages: Sequence[Message]) -> None:
    """Write a .csv file that `load_messages` reads back, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["label", "text"])
        writer.writerows((message.label, message.text) for message in messages)


def count_labels(messages: Sequence[Message]) -> dict[str, int]:
    """{label: how many messages}, in the labels' alphabetical order."""
    labels = [message.label for message in messages]
    return {label: labels.count(label) for label in sorted(set(labels))}


def split_messages(
    messages: Sequence[Message],
    *,
    balance: bool = False,
    keep_duplicates: bool = False,
    seed: int = 123,
) -> Split:
    """Cut 70 / 10 / 20 % of every label's distinct texts into train, val and test, in random order.

    Equal texts count once, so that no test message was seen in training; with `keep_duplicates`
    the copies stay, all in one part. `balance` first draws as many texts of each label as the
    rarest has. The same messages and seed give the same split everywhere (numpy's RandomState is
    frozen). Raises DataError for one label only, too few texts, or a text that has two labels.
    """
    copies: dict[str, list[Message]] = {}
    for message in messages:
        copies.setdefault(message.text, []).append(message)
    for text, same in copies.items():
        if len({message.label for message in same}) > 1:
            raise DataError(
                f"one text, two labels {sorted({m.label for m in same})}: {text!r:.200}"
            )
    by_label: dict[str, list[str]] = {label: [] for label in count_labels(messages)}
    for text, same in copies.items():
        by_label[same[0].label].append(text)
    if len(by_label) < 2:
        raise DataError(
            f"the messages have one label only, {list(by_label)}: nothing to tell apart"
        )
    for label, texts in by_label.items():
        if len(texts) < 10:  # a tenth of them would be none
            raise DataError(f"{len(texts)} texts of label {label!r} are too few; 10 are needed")
    random = np.random.RandomState(seed)
    rarest = min(len(texts) for texts in by_label.values())
    parts: tuple[list[str], ...] = ([], [], [])
    for texts in by_label.values():
        order = random.permutation(len(texts))[: rarest if balance else None]
        first, second = (int(fraction * len(order)) for fraction in FRACTIONS)
        cuts = (order[:first], order[first : first + second], order[first + second :])
        for part, cut in zip(parts, cuts, strict=True):
            part.extend(texts[n] for n in cut)
    train, val, test = (
        [
            message
            for n in random.permutation(len(part))
            for message in copies[part[n]][: None if keep_duplicates else 1]
        ]
        for part in parts
    )
    return Split(train, val, test)


def _decoded(stream: Iterable[bytes], name: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, line {number}: byte {offset + error.start} (0x{line[error.start]:02x}) is "
                "not UTF-8; save it as UTF-8"
            ) from None
        offset += len(line)
        yield text.removeprefix("\ufeff") if number == 1 else text


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of each line, read as it is asked for."""
    with path.open("rb") as file:
        yield from enumerate(lines_of(file, str(path)), start=1)


def _tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in _lines(path):
        yield number, line.split("\t")


def _comma_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(10**8)
    with path.open("rb") as file:
        # \r alone ends a line too in a .csv, unless it is quoted: csv wants to see them all
        lines = (
            part for line in _decoded(file, str(path)) for part in io.StringIO(line, newline="")
        )
        yield from _rows(csv.reader(lines, strict=True), path)


def _rows(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: {error}; is a quote left open?") from None
        if row:
            yield line, row


def _without_surrogates(text: str) -> str:
    """JSON may hold halves of a character, which no file can: each becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _columns(path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, values of the named columns) of each row of a table."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _json_columns(path, names)
    if suffix in (".csv", ".tsv"):
        return _table_columns(path, names)
    raise DataError(f"{path}: the name must end in .csv, .tsv or .jsonl to say what it is")


def _table_columns(path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    rows = _comma_separated(path) if path.suffix.lower() == ".csv" else _tab_separated(path)
    header = next(rows, (1, []))[1]
    for name in names:
        if header.count(name) != 1:
            raise DataError(
                f"{path}: expected one column {name!r}, found the columns {header!r:.300}; "
                "name yours with --text-column and --label-column"
            )
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(header)}: "
                f"{row!r:.200}"
            )
        yield line, tuple(row[header.index(name)] for name in names)


def _json_columns(path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
            raise DataError(
                f"{path}, line {number}: expected strings under the keys {names}; found {line!r:.200}"
            )
        yield number, tuple(_without_surrogates(row[name]) for name in names)
