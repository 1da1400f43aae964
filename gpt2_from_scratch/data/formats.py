"""File formats of each task, and the labels they may contain.

| task                 | tables                          | .jsonl                     | others          |
| -------------------- | ------------------------------- | -------------------------- | --------------- |
| classification       | a class                         | a string or whole number   | SMS collection  |
| multi-label          | labels separated by bars, or by | a list of strings          |                 |
|                      | commas or semicolons, or a list |                            |                 |
|                      | ["a", "b"]                      |                            |                 |
| regression           | a number; several columns "a,b" | a number or [1.5, 2, ...]  |                 |
| token-classification |                                 | [[start, end, tag], ...]   | CoNLL           |
| token-regression     | a number, for all tokens        | a number, or               |                 |
|                      |                                 | [[position, number], ...]  |                 |
| span                 |                                 | [start, end], or several:  | SQuAD's .json   |
|                      |                                 | [[start, end], ...]        |                 |
| language, features   | nothing                         | nothing                    | a text per line |

Start and end are character positions in the text. They count from 0, and the end is after the last
character. A number of token-regression is the value after the first `position` characters.

CoNLL files have one word with its tag per line and a blank line after each sentence. This is the
format of the CoNLL shared tasks (https://www.clips.uantwerpen.be/conll2003/ner/). SQuAD files
contain questions about a context, in the format of version 1.1 (Rajpurkar et al., 2016,
https://aclanthology.org/D16-1264).
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2_from_scratch.data.messages import (
    SMS_SPAM,
    DataConfig,
    GoldAnswers,
    Message,
    Span,
    class_messages,
    collected,
    in_order,
    label_parts,
    labelled,
    load_messages,
    source_path,
    source_rows,
    table_form,
    without_halves,
)
from gpt2_from_scratch.data.tables import NUMBER, Fault, Row, is_table, read_lines
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.storage.files import and_is, each_once, no_number, read_bounded, write_text
from gpt2_from_scratch.storage.paths import expanded

Task = Literal[
    "classification",  # one of K classes per text
    "multi-label",  # any of K labels per text
    "regression",  # K numbers per text
    "token-classification",  # one of K tags per word
    "token-regression",  # a number per token
    "span",  # start and end of an answer in the text
    "language",  # the next token: GPT-2's own head, or a trained one
    "features",  # the hidden state itself
]
TASKS: tuple[str, ...] = get_args(Task)
UNLABELLED = ("language", "features")  # tasks that learn from the texts alone
LABELLED = tuple(task for task in TASKS if task not in UNLABELLED)
BETWEEN = "|"  # separates several labels in a cell by default
IN_LISTS = "["  # used instead of a separator if every cell is a list
STRING = r"""(?:'[^'\\]*'|"(?:[^"\\]|\\.)*")"""  # a string literal of Python or JSON
LIST = re.compile(rf"\s*\[(?:{STRING}(?:, ?{STRING})*)?\]\s*")

DOCUMENT = "-DOCSTART-"  # the line before each document of CoNLL-2003
COLUMNS = (2, 3, 4)  # allowed numbers of columns: a part of speech and a phrase are optional
TAG = re.compile(r"O|[A-Z]-\S+")
BIO = re.compile(r"O|[BI]-\S+")

LARGEST_SQUAD = 1 << 27  # bytes; SQuAD 2.0's training set has 42 million
MALFORMED = "questions that are not as in SQuAD"
UNANSWERED = "questions without an answer"
ELSEWHERE = "answers that are not where they should be"


def load_examples(
    data: str | Path | DataConfig = "sms", task: str = "classification", *, between: str = ""
) -> list[Message]:
    """Read the examples of a task, in the formats of the table above.

    An empty list or an empty column of labels means that the text has none of the labels. Faulty
    rows and empty texts are treated as in `load_messages`. SQuAD's .json is always UTF-8.

    Args:
        data: The source and how to read it; a name or path means the default settings.
        task: One of TASKS.
        between: The separator of several labels in a table's cell. By default `label_separator`
            finds it.

    Raises:
        UsageError: The task is unknown.
        DataError: The source is missing, has faulty rows or has the wrong format.
    """
    data = DataConfig.of(data)
    if task == "classification":
        return load_messages(data)
    found = found_examples(data, task, between)
    return collected(found, source_path(data.source), data.on_error, f"examples of {task}")


def found_examples(data: DataConfig, task: str, between: str = "") -> Iterator[Message | Fault]:
    """Yield each example of the source, or its fault. Raises the errors of `load_examples`."""
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}; choose from: {', '.join(TASKS)}")
    path = source_path(data.source)
    suffix = path.suffix.lower()
    if task == "classification":
        return class_messages(data)
    if task == "span" and suffix == ".json":
        return read_squad(path)
    if task == "token-classification" and not is_table(path):
        return read_conll(path, data.encoding)
    if task == "span" and suffix != ".jsonl":
        raise DataError(
            f"{path}: the task span needs a .jsonl file, or a .json file in SQuAD's format"
        )
    if task == "token-classification" and suffix != ".jsonl":
        raise DataError(
            f"{path}: token-classification needs a .jsonl file, or a .conll or .txt file with one "
            "word per line"
        )
    if task in UNLABELLED:
        has_columns = is_table(path) or path.name == SMS_SPAM
        rows = source_rows(data, ()) if has_columns else read_lines(path, data.encoding)
        return labelled(rows, lambda row, first: None, data.keep_empty)
    columns: tuple[str, ...] = (data.label_column,)
    if task == "regression":
        columns = tuple(data.label_column.split(","))
    in_json = suffix == ".jsonl"
    if task == "multi-label" and not in_json:
        between = between or label_separator([data])
    label_of = partial(_label_of, task, between, in_json)
    return labelled(source_rows(data, columns), label_of, data.keep_empty)


def form_in_words(data: DataConfig, task: str) -> str:
    """Describe the source's format in words. Raises DataError if it is not clear."""
    path = source_path(data.source)
    if path.suffix.lower() == ".jsonl":
        return "one JSON object per line"
    if task == "span" and path.suffix.lower() == ".json":
        return "SQuAD's questions and contexts"
    if task == "token-classification" and not is_table(path):
        return "one word and its tag per line"
    columns = data.label_column.split(",") if task == "regression" else [data.label_column]
    form = str(table_form(data, (*columns,)))
    if task == "multi-label":
        marks = {BETWEEN: "bars", ",": "commas", ";": "semicolons"}
        between = label_separator([data])
        how = "in a list" if between == IN_LISTS else f"separated by {marks[between]}"
        form += f"; labels of a text {how}"
    return form


def label_separator(sources: Sequence[DataConfig]) -> str:
    """Find what separates several labels in a cell: a bar, a comma or a semicolon.

    The result is a bar by default. It is a comma or a semicolon only if no cell contains a bar, and
    if at least half of the labels that it would separate occur in several different cells. Cells
    that are lists are ignored. If all cells are lists, the result is IN_LISTS.
    """
    cells: set[str] = set()
    for data in sources:
        with suppress(DataError), silenced():  # faults are reported when the labels are read
            for row in source_rows(data, (data.label_column,)):
                if isinstance(row, Row) and isinstance(row.values[1], str):
                    cells.add(row.values[1])
    lists = {cell for cell in cells if LIST.fullmatch(cell)}
    if cells and cells == lists:
        return IN_LISTS
    cells -= lists
    if any(BETWEEN in cell for cell in cells):
        return BETWEEN
    for mark in (",", ";"):
        parts = [{part.strip() for part in cell.split(mark)} - {""} for cell in cells]
        several = {part for some in parts if len(some) > 1 for part in some}
        count = Counter(part for some in parts for part in some)
        if several and 2 * sum(count[part] > 1 for part in several) >= len(several):
            return mark
    return BETWEEN


def write_examples(path: str | Path, examples: Sequence[Message]) -> None:
    """Write a .jsonl file that `load_examples` reads back, completely or not at all.

    Raises UsageError for another file name suffix, and DataError for values that JSON cannot hold:
    a lone surrogate, NaN, or the labels of several heads.
    """
    path = expanded(path)
    if path.suffix.lower() != ".jsonl":
        raise UsageError(f"{path}: examples are written as .jsonl; change the name")
    lines = []
    for number, example in enumerate(examples, start=1):
        label = example.label
        if isinstance(label, GoldAnswers):
            label = [span[:2] for span in label]
        elif isinstance(label, Span):
            label = label[:2]
        try:
            if isinstance(label, dict):
                raise ValueError("labels of several heads")
            values = {"text": example.text} | ({} if label is None else {"label": label})
            lines.append(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
            lines[-1].encode()
        except (TypeError, ValueError) as error:
            raise DataError(f"example {number} cannot be written: {error}") from None
    write_text(path, "".join(lines))


def label_names(examples: Sequence[Message], task: str) -> tuple[str, ...]:
    """The names of a head's outputs for `task`, in the order of HeadConfig.labels.

    Classes, labels and tags are sorted by `in_order`, except that the tag O comes first. Columns of
    numbers are called value_0, value_1 and so on; the number per token is called value. Spans, language and features have no names.
    Raises DataError if the labels belong to another task.
    """
    labels = [example.label for example in examples]
    if task in ("span", *UNLABELLED):
        return ()
    wanted: tuple[type, ...] = (str,) if task == "classification" else (tuple,)
    wanted += (float, int) if task == "token-regression" else ()
    if other := [label for label in labels if type(label) not in wanted]:
        raise DataError(f"{other[0]!r:.80} is not a label of {task}")
    if task == "token-regression":
        return ("value",)
    if task == "regression":
        return tuple(f"value_{n}" for n in range(max(map(len, labels), default=0)))
    names = {name for label in labels for name in label_parts(label)}
    return tuple(sorted(in_order(names), key=lambda n: task != "token-classification" or n != "O"))


def values_in(label: Any) -> list[tuple[float, ...]]:
    """The rows of values in a label of regression, or the value at each position (token-regression)."""
    if not isinstance(label, tuple):
        return [(label,)]
    if any(isinstance(part, tuple) for part in label) or not label:
        return [(value,) for _, value in label]
    return [label]


# --- Labels ---


def _label_of(task: str, between: str, in_json: bool, row: Row, first: Row) -> Any:
    """A row's label, or its Fault; `between` separates several labels in a table's cell."""
    value = row.values[1]
    try:
        if task == "multi-label" and not in_json:
            return _names(_in_cell(value, between))
        if task == "multi-label":
            return _names(value)
        if task == "regression":
            return _numbers(_cells(row, in_json), len(_cells(first, in_json)))
        if task == "token-regression":
            if in_json and isinstance(value, list):
                return _values_at(value, row.values[0])
            return _numbers(_cells(row, in_json), 1)[0]
        if task == "token-classification":
            return _words(value, row.values[0])
        return _answers(value, row.values[0])
    except ValueError as error:
        return Fault(row.line, str(error), f"labels that are not those of {task}")


def _in_cell(cell: str, between: str) -> list[str]:
    """The labels in a table's cell: a list in Python's or JSON's notation, or separated labels."""
    if LIST.fullmatch(cell):
        quoted = re.findall(STRING, cell)
        return [json.loads(x if x[0] == '"' else json.dumps(x[1:-1])) for x in quoted]
    inside = cell.strip()[1:-1].lstrip()
    is_like_a_list = inside.startswith(("'", '"')) or ("," in inside and BETWEEN not in inside)
    if cell.lstrip().startswith("[") and cell.rstrip().endswith("]") and is_like_a_list:
        raise ValueError(
            f'expected a list such as ["a", "b"], or a|b without brackets: {cell:.100}'
        )
    names = cell.split(between) if cell.strip() else []
    return names if between == BETWEEN else [name.strip() for name in names]


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or any(type(name) is not str for name in value):
        raise ValueError(f"expected a list of strings, found {json.dumps(value):.100}")
    names = tuple(map(without_halves, value))
    if any(not name.strip() for name in names) or len(set(names)) < len(names):
        raise ValueError(f"a label is empty or occurs twice: {list(names)!r:.100}")
    return names


def _cells(row: Row, in_json: bool) -> list[Any]:
    """The numbers of a row, from its columns or a JSON list. Other values are left as they are."""
    cells = row.values[1:]
    if in_json:
        return cells[0] if len(cells) == 1 and isinstance(cells[0], list) else list(cells)
    return [float(cell) if NUMBER.fullmatch(cell.strip()) else cell for cell in cells]


def _numbers(cells: list[Any], count: int) -> tuple[float, ...]:
    """Convert a row's numbers. Raises ValueError unless there are `count` of them, at least one."""
    for number in cells:
        if type(number) not in (int, float) or not abs(number) <= sys.float_info.max:
            raise ValueError(f"{number!r:.80} is not a number, or it is too large")
    if not cells or len(cells) != count:
        raise ValueError(f"expected {count or 'some'} numbers, found {len(cells)}")
    return tuple(map(float, cells))


def _values_at(value: list[Any], text: str) -> tuple[tuple[int, float], ...]:
    found, before = list[tuple[int, float]](), 0
    for item in value:
        if not isinstance(item, list) or len(item) != 2 or type(item[0]) is not int:
            raise ValueError(f"expected [position, number], found {json.dumps(item):.100}")
        position = item[0]
        if not before < position <= len(text):
            raise ValueError(
                f"expected ascending positions from 1 to {len(text)}, found {position} after {before}"
            )
        found.append((position, _numbers(item[1:], 1)[0]))
        before = position
    return tuple(found)


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


def _answers(value: Any, text: str) -> Span | GoldAnswers:
    pairs = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(
                f"expected [start, end] or a list of these, found {json.dumps(value):.100}"
            )
    return _one_or_several(Span(*_places(pair, text, 0)) for pair in pairs)


def _one_or_several(spans: Iterable[Span]) -> Span | GoldAnswers:
    """The label of a question with these answers, or the Span if there is only one."""
    found = GoldAnswers(dict.fromkeys(spans))
    return found if len(found) > 1 else found[0]


def _places(value: list[Any], text: str, least: int) -> tuple[int, int]:
    """The start and the end. Raises ValueError if they are not in the text or before `least`."""
    start, end = value
    if type(start) is int and type(end) is int and least <= start < end <= len(text):
        return start, end
    raise ValueError(
        f"{json.dumps(value):.100} is not a start and an end, in this order, from {least} to "
        f"{len(text)}"
    )


# --- CoNLL: one tag per word ---


def read_conll(path: Path, encoding: str = "utf-8") -> Iterator[Message | Fault]:
    """Read sentences: words joined by spaces, each labelled with a Span.

    The word is the first column and the tag the last. Tabs separate the columns; in a line without
    a tab, spaces do. A word may begin with #. A line is a comment only if it has no tab, begins
    with "# ", comes before a sentence and does not end in a tag such as O or B-person. A -DOCSTART-
    line ends a sentence and is left out. A faulty line makes its whole sentence a Fault. Raises
    DataError if the file is missing.
    """
    return _sentences(read_lines(path, encoding))


def _sentences(lines: Iterator[Row | Fault]) -> Iterator[Message | Fault]:
    words: list[tuple[str, ...]] = []  # the columns of each word of the current sentence
    fault: Fault | None = None  # the first fault of the current sentence
    start = 0  # the first line of the current sentence
    for line in chain(lines, [Row(0, ("",))]):  # this blank line ends the last sentence
        if isinstance(line, Fault):
            fault = fault or line
            continue
        text: str = line.values[0]
        columns: tuple[str, ...] = ()
        if text.strip():  # a blank line may contain a tab
            columns = tuple(text.split("\t") if "\t" in text else re.split(" +", text.strip(" ")))
        if columns and columns[0] != DOCUMENT:
            begins_as_comment = text.startswith("# ") and "\t" not in text
            if words or fault or not begins_as_comment or TAG.fullmatch(columns[-1]):
                start = start if words else line.line
                words.append(columns)
                fault = fault or _fault_of_word(line.line, columns)
            continue
        if fault:
            yield fault
        elif words:
            spans, end = [], -1
            for word, *_, tag in words:
                spans.append(Span(end + 1, end + 1 + len(word), tag))
                end = spans[-1].end
            yield Message(" ".join(columns[0] for columns in words), tuple(spans), start)
        words, fault = [], None


def _fault_of_word(number: int, columns: tuple[str, ...]) -> Fault | None:
    if len(columns) not in COLUMNS:
        what = f"expected a word and its tag, in 2 to 4 columns; found {list(columns)!r:.200}"
        return Fault(number, what, "lines that are not a word and its tag")
    for name, value in (("word", columns[0]), ("tag", columns[-1])):
        if value.split() != [value]:
            what = f"the {name} {value!r:.80} is empty or contains white space"
            return Fault(number, what, f"{name}s that are empty or contain white space")
    return None


# --- SQuAD: questions answered by a part of a context ---


def read_squad(path: Path) -> Iterator[Message | Fault]:
    """Read questions, each labelled with the Span of its answer, or with all its GoldAnswers.

    The text is the question on one line, followed by the context. Questions without an answer, as
    in SQuAD 2.0, are faults because no part of the text is a correct answer. Raises DataError if
    the file is missing, too large, not JSON, or not in SQuAD's format.
    """
    if not os.path.isfile(path):  # Path.is_file raises OSError for a name that is too long
        raise DataError(f"{path} is not a file")
    try:
        raw = read_bounded(path, LARGEST_SQUAD)
    except CheckpointError as error:  # read_bounded is also used for model files
        raise DataError(str(error)) from None
    try:
        text = raw.decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=each_once, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON{and_is(raw)}: {error}") from None
    return _questions(_list_in(found, "data", path), text, path)


def context_start(text: str) -> int:
    """The position where the context begins: after the first newline, or 0 without a newline."""
    return text.find("\n") + 1


def context_of(text: str) -> str:
    """The context in the text of a question."""
    return text[context_start(text) :]


def _questions(articles: list[Any], text: str, path: Path) -> Iterator[Message | Fault]:
    place, line = 0, 1  # JSON has no line numbers, so a fault gets the line of its question's id
    for article in articles:
        for paragraph in _list_in(article, "paragraphs", path):
            for question in _list_in(paragraph, "qas", path):
                found = _question(paragraph.get("context"), question)
                if isinstance(found, Message):
                    yield found
                    continue
                name = question.get("id") if isinstance(question, dict) else None
                here = max(place, text.find(json.dumps(name), place))
                place, line = here, line + text.count("\n", place, here)
                what, kind = found
                yield Fault(line, f"question {name!r:.80}: {what}", kind)


def _list_in(found: Any, key: str, path: Path) -> list[Any]:
    if isinstance(found, dict) and isinstance(found.get(key), list):
        return found[key]
    raise DataError(
        f"{path}: expected an object with a list {key!r} as in SQuAD, found {found!r:.200}"
    )


def _question(context: Any, question: Any) -> Message | tuple[str, str]:
    """The message, or (what is wrong with the question, the kind of fault)."""
    asked = question.get("question") if isinstance(question, dict) else None
    if not isinstance(asked, str) or not asked.strip():
        return f"expected the words of a question, found {asked!r:.80}", MALFORMED
    if not isinstance(context, str) or not context.strip():
        return f"expected a context with the answer, found {context!r:.80}", MALFORMED
    answers = question.get("answers")
    if not isinstance(answers, list):
        return f"expected a list of answers, found {answers!r:.80}", MALFORMED
    if not answers or question.get("is_impossible"):
        return "it has no answer; training needs a question with an answer", UNANSWERED
    first_line = without_halves(" ".join(asked.split()) + "\n")
    spans = []
    for answer in answers:
        values = answer if isinstance(answer, dict) else {}
        words, start = values.get("text"), values.get("answer_start")
        if not isinstance(words, str) or not words.strip() or type(start) is not int:
            return f"expected an answer's text and answer_start, found {answer!r:.80}", MALFORMED
        if start < 0 or not context.startswith(words, start):
            there = context[max(start, 0) : max(start, 0) + len(words)]
            return f"the answer {words!r:.80} is not at {start}, but {there!r:.80} is", ELSEWHERE
        place = len(first_line) + start
        spans.append(Span(place, place + len(words)))
    return Message(first_line + without_halves(context), _one_or_several(spans))
