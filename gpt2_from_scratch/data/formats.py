"""What any task learns from, read and written: texts, each with its label (see data.Message).

| task                 | tables                          | .jsonl                     | others        |
| -------------------- | ------------------------------- | -------------------------- | ------------- |
| classification       | a class                         | a string or whole number   | see data.py   |
| multi-label          | labels with a bar between       | a list of strings          |               |
| regression           | a number; several columns "a,b" | a number or a list of some |               |
| token-classification |                                 | [[start, end, tag], ...]   | see conll.py  |
| span                 |                                 | [start, end]               | see squad.py  |
| language, features   | nothing                         | nothing                    | a text a line |

Start and end count characters of the text, from 0; the end is behind the last.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2_from_scratch.data.conll import read_conll
from gpt2_from_scratch.data.lines import Fault, Row, checked_encoding, read_lines
from gpt2_from_scratch.data.messages import (
    Message,
    Span,
    labelled_rows,
    labels_alike,
    load_messages,
    source_path,
    without_faults,
    without_halves,
)
from gpt2_from_scratch.data.squad import read_squad
from gpt2_from_scratch.data.tables import is_table, json_objects, missing_key, read_rows
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.storage.files import write_text
from gpt2_from_scratch.storage.paths import EMBEDDED_DATA

# one of K classes a text; any of K labels a text; K numbers a text; one of K tags a word; a start
# and an end inside the text; the next token (GPT-2's own head); the hidden state itself
Task = Literal[
    "classification",
    "multi-label",
    "regression",
    "token-classification",
    "span",
    "language",
    "features",
]


TASKS: tuple[str, ...] = get_args(Task)


Found = tuple[int, Any, Any]  # line, text and label as they stand there, still to be checked
UNLABELLED = ("language", "features")  # tasks that learn from the texts alone
BETWEEN = "|"  # two labels in a column
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def load_examples(
    source: str | Path,
    task: str = "classification",
    *,
    text_column: str = "text",
    label_column: str = "label",
    encoding: str = "utf-8",
    on_error: str = "stop",
    keep_empty: bool = False,
) -> list[Message]:
    """Read what `task` learns from: a file, or a data set's name as in `data.load_messages`, which
    reads classification.

    The table above says which file has which form; SQuAD's .json is always UTF-8. An empty list or
    column of labels means none of them. Faults and empty texts as in `load_messages`: DataError
    with file and line, or left out and told to `say`. Raises UsageError for an unknown task.
    """
    if task not in TASKS:
        raise UsageError(f"task {task!r} is none of {', '.join(TASKS)}")
    if task == "classification":
        return load_messages(
            source,
            text_column=text_column,
            label_column=label_column,
            encoding=encoding,
            on_error=on_error,
            keep_empty=keep_empty,
        )
    checked_encoding(encoding)
    if source in EMBEDDED_DATA:  # their format is known; options are for a user's own files
        text_column, label_column, encoding = "text", "label", "utf-8"
    path = source_path(source)
    found = _examples(path, task, text_column, label_column, encoding, keep_empty)
    good = without_faults(found, str(path), on_error, hint="--on-error skip")
    examples = [example for _, example in good]
    if not examples:
        raise DataError(f"{path} holds no examples of {task}")
    if alike := labels_alike(label_names(examples, task)):
        raise DataError(
            f"{path}: these labels differ in case or white space only: {alike}; make them one"
        )
    return examples


def write_examples(path: Path, examples: Sequence[Message]) -> None:
    """Write a .jsonl file from which `load_examples` reads the same examples, atomically.

    Raises UsageError for another suffix, DataError for what JSON cannot hold: half of a character,
    NaN, the labels of several heads.
    """
    if path.suffix.lower() != ".jsonl":
        raise UsageError(f"{path}: examples are written as .jsonl; end the name so")
    write_text(path, "".join(_line(n, e) for n, e in enumerate(examples, start=1)))


def label_names(examples: Sequence[Message], task: str) -> tuple[str, ...]:
    """The names of a head's outputs for `task`, in their order, as HeadConfig.labels wants them.

    Classes, labels and tags are sorted, but the tag O is the first. Columns of numbers are called
    value_0, value_1 and so on. Spans, language and features have no names. Raises DataError for
    labels that are another task's.
    """
    labels = [example.label for example in examples]
    if task in ("span", *UNLABELLED):
        return ()
    wanted = str if task == "classification" else tuple
    if other := [label for label in labels if type(label) is not wanted]:
        raise DataError(f"{other[0]!r:.80} is no label of {task}")
    if task == "classification":
        return tuple(sorted(set(labels)))
    if task == "multi-label":
        return tuple(sorted({name for label in labels for name in label}))
    if task == "token-classification":
        tags = {span.label for label in labels for span in label}
        return tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))
    return tuple(f"value_{n}" for n in range(max(map(len, labels), default=0)))


def _examples(
    path: Path, task: str, text_column: str, label_column: str, encoding: str, keep_empty: bool
) -> Iterator[Message | Fault]:
    """The examples of a file, read as its name says."""
    if task == "span" and path.suffix.lower() == ".json":
        return read_squad(path)
    if task == "token-classification" and not is_table(path):
        return read_conll(path, encoding)
    columns = tuple(label_column.split(",")) if task == "regression" else (label_column,)
    columns = () if task in UNLABELLED else columns
    found: Iterator[Found | Fault]
    if path.suffix.lower() == ".jsonl":
        found = _objects(path, text_column, columns, encoding)
    elif task in ("span", "token-classification"):
        form = ".json as SQuAD's" if task == "span" else "a file of one word a line, .conll or .txt"
        raise DataError(f"{path}: {task} is read from .jsonl, or from {form}")
    elif path.name == "SMSSpamCollection":
        found = _cells(labelled_rows(path), task)
    elif task in UNLABELLED and not is_table(path):
        found = _cells(read_lines(path, encoding), task)
    else:
        found = _cells(read_rows(path, (text_column, *columns), encoding), task)
    return _checked(found, task, keep_empty)


def _objects(
    path: Path, text_column: str, columns: tuple[str, ...], encoding: str
) -> Iterator[Found | Fault]:
    for item in json_objects(path, encoding):
        if isinstance(item, Fault):
            yield item
            continue
        line, found = item
        if fault := missing_key(found, (text_column, *columns), line):
            yield fault
            continue
        labels = [found[column] for column in columns]
        yield line, found[text_column], labels[0] if len(labels) == 1 else labels


def _cells(rows: Iterator[Row | Fault], task: str) -> Iterator[Found | Fault]:
    """Texts and columns of a table, with labels as JSON would have them."""
    for row in rows:
        if isinstance(row, Fault):
            yield row
            continue
        text, *cells = row.values
        if task == "multi-label":
            yield row.line, text, cells[0].split(BETWEEN) if cells[0].strip() else []
        else:
            numbers = [float(c) if NUMBER.fullmatch(c.strip()) else c for c in cells]
            yield row.line, text, numbers


def _checked(
    found: Iterator[Found | Fault], task: str, keep_empty: bool
) -> Iterator[Message | Fault]:
    """Examples with labels of the task's type; each must have as many numbers as the first."""
    count = None
    for item in found:
        if isinstance(item, Fault):
            yield item
            continue
        line, text, value = item
        if not isinstance(text, str):
            what = f"the text must be a string, not {json.dumps(text):.100}"
            yield Fault(line, what, "JSON values of another type")
            continue
        text = without_halves(text)
        if not text.strip() and not keep_empty:
            yield Fault(line, "the text is empty; nothing to learn from", "empty texts")
            continue
        try:
            label = _label(task, value, text, count)
        except ValueError as error:
            yield Fault(line, str(error), f"labels that are not those of {task}")
            continue
        count = len(label) if task == "regression" else None
        yield Message(text, label)


def _label(task: str, value: Any, text: str, count: int | None) -> Any:
    """The label that a value of JSON is. Raises ValueError where it is none."""
    if task == "multi-label":
        return _names(value)
    if task == "regression":
        return _numbers(value, count)
    if task == "token-classification":
        return _words(value, text)
    return _span(value, text) if task == "span" else None


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or any(type(name) is not str for name in value):
        raise ValueError(f"expected a list of strings, found {json.dumps(value):.100}")
    names = tuple(map(without_halves, value))
    if any(not name.strip() for name in names) or len(set(names)) < len(names):
        raise ValueError(f"a label is empty, or stands there twice: {list(names)!r:.100}")
    return names


def _numbers(value: Any, count: int | None) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    for number in values:
        if type(number) not in (int, float) or not abs(number) <= sys.float_info.max:
            raise ValueError(f"{number!r:.80} is no number, or is too large for one")
    if not values or count not in (None, len(values)):
        raise ValueError(f"expected {count or 'some'} numbers, found {len(values)}")
    return tuple(map(float, values))


def _words(value: Any, text: str) -> tuple[Span, ...]:
    if not isinstance(value, list) or (not value and text.strip()):
        raise ValueError(f"expected a list of [start, end, tag], found {json.dumps(value):.100}")
    words, end = [], 0
    for item in value:
        if not isinstance(item, list) or len(item) != 3 or type(item[2]) is not str or not item[2]:
            raise ValueError(f"expected [start, end, tag], found {json.dumps(item):.100}")
        start, end = _places(item[:2], text, end)
        words.append(Span(start, end, without_halves(item[2])))
    return tuple(words)


def _span(value: Any, text: str) -> Span:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"expected [start, end], found {json.dumps(value):.100}")
    return Span(*_places(value, text, 0))


def _places(value: list[Any], text: str, least: int) -> tuple[int, int]:
    """A start and an end in the text, behind the word before."""
    start, end = value
    if type(start) is int and type(end) is int and least <= start < end <= len(text):
        return start, end
    raise ValueError(
        f"{json.dumps(value):.100} is no start and end, in this order, from {least} to {len(text)}"
    )


def _line(number: int, example: Message) -> str:
    label = example.label[:2] if isinstance(example.label, Span) else example.label
    try:
        if isinstance(label, dict):
            raise ValueError("labels of several heads")
        values = {"text": example.text} | ({} if label is None else {"label": label})
        line = json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
        line.encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"example {number} cannot be written: {error}") from None
    return line
