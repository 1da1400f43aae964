"""Rows of text files: .csv, .tsv and .jsonl tables, or one text per line.

A faulty row becomes a Fault in the sequence of rows, and the caller raises, skips or collects it.
An error that concerns the whole file raises DataError. Values are not converted: `NA`, `null` and
`123` in a table are texts.

Bytes that are invalid in the encoding are read as U+DC80 to U+DCFF (errors="surrogateescape"), and
a row that contains one of them is a faulty row. In UTF-16 and UTF-32 it is impossible to read on
after invalid bytes, so there the whole file is faulty.
"""

import codecs
import csv
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from io import BufferedReader, TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gpt2_from_scratch.errors import DataError, UsageError, nearest
from gpt2_from_scratch.storage.files import HEAD, LFS, and_is, each_once, no_number
from gpt2_from_scratch.storage.paths import expanded

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".jsonl")
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
OWN = {".csv": ",", ".tsv": "\t"}  # the delimiter that a file name suffix implies
TEXT, LABEL = "text", "label"  # default column names
SAMPLE = 1000  # number of rows used to detect a table's format
FEWEST_WORDS = 4  # a column name with at least this many words may be a message
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# tab-separated rows in which each field that contains a quote is quoted as a whole
BARE, QUOTED = r'[^"\t\r\n]*+', r'"(?:[^"]++|"")*+"'
QUOTED_FIELD = re.compile(QUOTED)
QUOTED_ROW = re.compile(rf"(?:{QUOTED}|{BARE})(?:\t(?:{QUOTED}|{BARE}))*+")
ALL_QUOTED = re.compile(rf"{QUOTED}(?:\t{QUOTED})++")
# rows whose last field continues on the next line
OPEN_ROW = re.compile(rf'(?:(?:{QUOTED}|{BARE})\t)*+"(?:[^"]++|"")*+')
INSIDE = re.compile(r'(?:[^"]++|"")*+')
LONGEST_FIELD = 10**8  # characters
MARKS = {  # byte order marks; one mark of UTF-32 begins with that of UTF-16, so it is first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WRONG_BYTE = re.compile("[\udc80-\udcff]")
BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a]")  # no text begins with these bytes
SAVE_AS = "save the file as UTF-8 or name its encoding with --encoding"


@dataclass(frozen=True)
class Row:
    """The values of one row: strings, or the values that JSON parsing returned."""

    line: int  # where the row begins, counted from 1
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row."""

    line: int  # where the row begins, counted from 1
    what: str
    kind: str  # a few words, the same for all faults of this kind


def is_table(path: Path) -> bool:
    """Whether the suffix of the file's name is .csv, .tsv or .jsonl."""
    return path.suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class Form:
    """The format of a table: its delimiter, and whether it has quotes and a header.

    `columns` has one entry per requested value: the indices, from 0, of the columns to join for it.
    """

    delimiter: str
    quotes: bool  # quotes work as in csv; otherwise they are ordinary characters
    header: bool
    width: int  # number of columns
    columns: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        """Describe the format in words; columns are counted from 1."""
        name = DELIMITERS.get(self.delimiter, repr(self.delimiter))
        text, *labels = ("+".join(str(n + 1) for n in some) for some in self.columns)
        return (
            f"{self.width} columns separated by {name}, {'with' if self.header else 'without'} a "
            f"header; quotes {'as in csv' if self.quotes else 'are ordinary characters'}; text in "
            f"column {text}" + (f", label in column {', '.join(labels)}" if labels else "")
        )


def read_rows(
    path: Path,
    names: tuple[str, ...],
    encoding: str = "utf-8",
    *,
    header: bool = True,
    delimiter: str = "auto",
) -> Iterator[Row | Fault]:
    """Read the values of the columns (or JSON keys) `names`, row by row.

    The first of `names` may list several columns, such as a,b, whose values are joined by newlines.

    Args:
        path: A .csv, .tsv or .jsonl file.
        names: The columns' names, or their numbers from 1 if there is no header.
        encoding: The file's text encoding.
        header: Whether the first row may be a header.
        delimiter: The character between columns, or "auto" to detect it.

    Raises:
        DataError: The file is missing or not a table, a column is missing or occurs twice, or a
            quote is left open.
    """
    _refuse_missing(path)
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _json_rows(path, names, encoding)
    if suffix in (".json", ".conll"):
        raise DataError(
            f"{path} is not a table: its name does not end in .csv, .tsv or .jsonl. Use --task to read "
            "spans from SQuAD's .json or tags from .conll."
        )
    return _table_rows(path, names, encoding, header, delimiter)


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[Row | Fault]:
    """Read the lines of a text file; see `lines_in`. Raises DataError for a missing file."""
    _refuse_missing(path)
    return _lines_of_file(path, encoding)


def lines_in(stream: Any, name: str, encoding: str = "utf-8") -> Iterator[Row | Fault]:
    """Read the lines of a binary stream as they arrive, each as a row of one value.

    Only \\n and \\r\\n end a line. `name` appears in errors. Raises DataError if the stream is
    not text.
    """
    for number, line in enumerate(_decoded_lines(stream, name, encoding), start=1):
        text = line.removesuffix("\n").removesuffix("\r")
        yield _wrong_byte(line, number, encoding) or Row(number, (text,))


def tab_separated(path: str | Path, encoding: str = "utf-8") -> Generator[Row | Fault]:
    """Read all fields of each line, with quotes as ordinary characters."""
    path = expanded(path)
    for row in read_lines(path, encoding):
        yield row if isinstance(row, Fault) else Row(row.line, tuple(row.values[0].split("\t")))


def checked_delimiter(delimiter: str) -> str:
    """The character of a delimiter that is given as itself or by name; "auto" stays "auto".

    Raises UsageError if the delimiter is unknown.
    """
    named = {name: character for character, name in DELIMITERS.items()} | {"\\t": "\t"}
    found = named.get(delimiter, delimiter)
    if found != "auto" and (len(found) != 1 or found in '"\r\n' or found.isalnum()):
        raise UsageError(
            f"unknown delimiter {delimiter!r}; choose from: auto, {', '.join(DELIMITERS.values())}, "
            "or one character"
        )
    return found


def checked_encoding(encoding: str) -> str:
    """Python's name for a text encoding. Raises UsageError if the encoding is unknown."""
    try:
        "\n".encode(encoding)  # raises for codecs that do not encode text, such as zlib
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise UsageError(
            f"unknown text encoding {encoding!r}; choose, for example, utf-8, utf-16, cp1252, latin-1 "
            "or shift_jis, or another encoding that Python knows"
        ) from None
    return "utf-8" if name == "utf-8-sig" else name


def _refuse_missing(path: Path) -> None:
    if not os.path.isfile(path):  # Path.is_file raises OSError for a name that is too long
        raise DataError(f"{path} is not a file")


# --- Bytes to lines ---


def _lines_of_file(path: Path, encoding: str) -> Iterator[Row | Fault]:
    with path.open("rb") as file:
        yield from lines_in(file, str(path), encoding)


def _decoded_lines(
    stream: Any, name: str, encoding: str, *, newline: str = "\n", table: bool = False
) -> Generator[str]:
    """Lines with their line ends, but without a byte order mark.

    With newline="" a lone \\r also ends a line. The stream is left open.
    """
    buffered = stream if isinstance(stream, BufferedReader) else BufferedReader(stream)
    codec = _codec(encoding, buffered.peek(HEAD)[:HEAD], name, table)
    wide = codec.startswith(("utf-16", "utf-32"))
    file = TextIOWrapper(buffered, codec, "strict" if wide else "surrogateescape", newline)
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        raise DataError(
            f"{name}, line {number + 1} or later: not {codec.upper()} ({error}); {SAVE_AS}"
        ) from None
    finally:
        if not buffered.closed:
            file.detach()  # otherwise the stream would be closed as well


def _codec(encoding: str, head: bytes, name: str, table: bool) -> str:
    """The codec for a file that begins with the bytes `head`.

    UTF-16 and UTF-32 without a byte order mark are read as little-endian.

    Raises DataError if the bytes belong to another encoding or are not text. A web page is refused
    only where a table is expected, because a text file may contain anything.
    """
    kind = and_is(head) if head else ""
    if kind and (table or LFS in kind or BINARY.search(head)):
        raise DataError(f"{name} should contain {'a table' if table else 'lines of text'}{kind}")
    codec = checked_encoding(encoding)
    marked = next((found for mark, found in MARKS.items() if head.startswith(mark)), "")
    if codec == "utf-8" and marked:
        raise DataError(f"{name} looks like {marked.upper()}; use --encoding {marked}")
    return codec + "-le" if codec in ("utf-16", "utf-32") and codec != marked else codec


def _wrong_byte(text: str, line: int, encoding: str) -> Fault | None:
    found = WRONG_BYTE.search(text)
    if not found:
        return None
    codec = checked_encoding(encoding)
    shown = codec.upper() if codec.startswith("utf") else codec
    what = f"byte 0x{ord(found[0]) - 0xDC00:02x} is not {shown}; {SAVE_AS}"
    return Fault(line, what, f"bytes that are not {shown}")


# --- Lines to rows of .csv, .tsv and other tables ---


def _table_rows(
    path: Path, names: tuple[str, ...], encoding: str, header: bool, delimiter: str
) -> Iterator[Row | Fault]:
    """The requested values of each row except the header."""
    form = recognised(path, names, encoding, header=header, delimiter=delimiter)
    with closing(_fields(path, encoding, form.delimiter, form.quotes)) as rows:
        if form.header:
            next(rows)
        for row in rows:
            if isinstance(row, Row) and len(row.values) != form.width:
                where = "the header has" if form.header else "others have"
                found = f"{len(row.values)} fields where {where} {form.width}"
                what = f"{found}: {list(row.values)!r:.200}"
                kind = "the header" if form.header else "others"
                yield Fault(row.line, what, f"more or fewer fields than {kind}")
            elif isinstance(row, Row):
                cells = row.values
                yield Row(row.line, tuple("\n".join(cells[n] for n in c) for c in form.columns))
            else:
                yield row


def _fields(path: Path, encoding: str, delimiter: str, quotes: bool) -> Generator[Row | Fault]:
    """All fields of each row."""
    if quotes:
        return _quoted(path, encoding, delimiter)
    return tab_separated(path, encoding)


def _quoted(path: Path, encoding: str, delimiter: str) -> Generator[Row | Fault]:
    csv.field_size_limit(LONGEST_FIELD)
    with path.open("rb") as file:
        lines = _decoded_lines(file, str(path), encoding, newline="", table=True)
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                what = f"{error}; is a quote left open?"
                swallowed = ""
                if "unexpected end" in str(error):
                    swallowed = "every row after it"
                elif reader.line_num > line:
                    swallowed = f"the rows up to line {reader.line_num}"
                if swallowed:  # skipping this row would lose them
                    raise DataError(
                        f"{path}, line {line}: {what} It would swallow {swallowed}."
                    ) from None
                yield Fault(line, what, "quotes or line ends that are not those of csv")
                continue
            if values:
                yield _wrong_byte("".join(values), line, encoding) or Row(line, tuple(values))


# --- The format of a table ---


def recognised(
    path: Path,
    names: tuple[str, ...],
    encoding: str = "utf-8",
    *,
    header: bool = True,
    delimiter: str = "auto",
) -> Form:
    """Detect a table's format, and find the requested columns.

    The first row is a header if it contains all requested names when it is split at one of the
    delimiters. Without a header, columns are numbered from 1. If a table without a header has two
    columns, and the default names are requested, the column with fewer different values is the
    label.

    Args:
        path: The table's file.
        names: The requested columns: names, or numbers from 1 if there is no header.
        encoding: The file's text encoding.
        header: Whether the first row may be a header.
        delimiter: The character between columns, or "auto" to detect it.

    Raises:
        DataError: The format is not clear, or a requested column is missing.
    """
    own = OWN.get(path.suffix.lower())
    tried = [delimiter] if delimiter != "auto" else [*dict.fromkeys([own or ",", *DELIMITERS])]
    samples: dict[str, tuple[bool, list[Row]]] = {}
    errors = []
    for character in tried:
        quotes = character != "\t" or _has_csv_quotes(path, encoding)
        try:
            rows = _sample(path, encoding, character, quotes, header)
        except DataError as error:
            errors.append(error)
            continue
        samples[character] = quotes, rows
        first = rows[0].values if rows else ()
        columns = tuple(_named(name, first, n == 0) for n, name in enumerate(names))
        if header and all(columns):
            form = Form(character, quotes, True, len(first), columns)
            _refuse_column_twice(path, names, columns)
            _refuse_data_as_header(path, names, form, rows)
            return form
    evenness = {one: _evenness(rows) for one, (_, rows) in samples.items()}
    if tried[0] not in samples and not any(value > 0 for value in evenness.values()):
        raise errors[0]
    character = max(samples, key=evenness.__getitem__)
    quotes, rows = samples[character]
    first = rows[0].values if rows else ()
    if own is None and delimiter == "auto" and evenness[character] <= 0:
        raise DataError(
            f"{path}: unknown kind of table: no comma, semicolon, tab or bar separates its columns. "
            "Name the delimiter with --delimiter, or use .csv, .tsv or .jsonl."
        )
    width, n_even = _width(rows)
    even = [row for row in rows if len(row.values) == width]
    first_is_even = len(first) == width
    form = Form(character, quotes, False, width, _numbered(names, width))
    if form.columns:
        is_data = len(even[0].values[form.columns[0][0]].split()) >= FEWEST_WORDS
        is_data = is_data or not first_is_even or _is_data(even, form.columns)
        form = replace(form, header=header and not is_data)
    elif set(names) <= {TEXT, LABEL} and (first_is_even or not header) and 2 * n_even > len(rows):
        found = _text_and_label(even, header)
        form = replace(form, columns=tuple((found[name],) for name in names if found))
    if form.columns:
        _refuse_column_twice(path, names, form.columns)
        if header:  # the user did not pass --no-header, so say what was detected
            log.info(f"{path}: {form}")
        return form
    shown = f"{list(first)!r:.300}"
    options = "--text-column"
    example = f"{options} 2"
    if len(names) > 1:  # `predict` reads no labels and has no --label-column
        options += " and --label-column"
        example += " --label-column 1"
    if not header:
        raise DataError(
            f"{path}: without a header, columns are numbered 1 to {width}; {', '.join(names)} is not such "
            f"a number. First row: {shown}. Use, for example, {example}."
        )
    parts = [part for n, name in enumerate(names) for part in _parts(name, first, n == 0)]
    missing = next(part for part in parts if first.count(part) != 1)
    raise DataError(
        f"{path}: expected one column {missing!r}, found the columns {shown}"
        f".{_nearest(missing, first)} Use {options}, or, if this row is not "
        "a header, --no-header and the numbers of the columns."
    )


def _sample(path: Path, encoding: str, delimiter: str, quotes: bool, header: bool) -> list[Row]:
    """The valid rows among the first SAMPLE rows. Raises DataError if the header is faulty."""
    rows: list[Row] = []
    with closing(_fields(path, encoding, delimiter, quotes)) as found:
        try:
            for row in islice(found, SAMPLE):
                if isinstance(row, Row):
                    rows.append(row)
                elif header and not rows:
                    raise DataError(f"{path}, line {row.line}: {row.what}")
        except DataError:
            if not rows:
                raise
    return rows


def _named(name: str, header: tuple[str, ...], several: bool) -> tuple[int, ...]:
    """The indices of a named column, or with `several` of all columns in a name such as a,b.

    Empty unless each column occurs exactly once.
    """
    names = _parts(name, header, several)
    if any(header.count(one) != 1 for one in names):
        return ()
    return tuple(header.index(one) for one in names)


def _parts(name: str, header: Collection[str], several: bool) -> list[str]:
    """Split a name such as a,b into names without spaces around them.

    It is not split without `several`, nor if it is the whole name of one column.
    """
    names = [name] if name in header or not several else name.split(",")
    return [one if one in header else one.strip() for one in names]


def _refuse_column_twice(
    path: Path, names: Sequence[str], columns: Sequence[Sequence[object]]
) -> None:
    """Raise DataError if a column is requested twice, as text and label or within a,a."""
    found = [*chain(*columns)]
    if len(set(found)) < len(found):
        raise DataError(
            f"{path}: a column is named twice in {', '.join(map(repr, names))}. Name different columns "
            "with --text-column and --label-column."
        )


def _numbered(names: tuple[str, ...], width: int) -> tuple[tuple[int, ...], ...]:
    """The indices of columns given by numbers from 1; empty unless all are such numbers."""
    known = {str(n + 1): n for n in range(width)}
    split = [_parts(name, (), n == 0) for n, name in enumerate(names)]
    if any(number not in known for numbers in split for number in numbers):
        return ()
    return tuple(tuple(known[number] for number in numbers) for numbers in split)


def _width(rows: Sequence[Row]) -> tuple[int, int]:
    """The most common number of fields, and the number of rows that have it."""
    return (Counter(len(row.values) for row in rows).most_common(1) or [(0, 0)])[0]


def _evenness(rows: Sequence[Row]) -> float:
    """A score for a delimiter: the proportion of rows with the most common number of fields.

    The score is 0 if that number is less than two. The proportion of fields after the first that
    begin with a space is subtracted, because such fields suggest commas within sentences.
    """
    width, n = _width(rows)
    if width < 2:
        return 0.0
    later = [value for row in rows for value in row.values[1:]]
    return n / len(rows) - sum(value.startswith(" ") for value in later) / len(later)


def _recurs(rows: Sequence[Row], column: int) -> bool:
    """Whether the first row's value in a column is a number, or occurs in a later row."""
    first = rows[0].values[column]
    later = {row.values[column] for row in rows[1:] if len(row.values) > column}
    return bool(NUMBER.fullmatch(first.strip())) or (bool(first.strip()) and first in later)


def _is_data(rows: Sequence[Row], columns: tuple[tuple[int, ...], ...]) -> bool:
    """Whether the first row looks like the other rows and not like a header."""
    first = rows[0].values
    if {TEXT, LABEL} & {value.strip().lower() for value in first}:
        return False
    texts, labels = columns[0], [n for some in columns[1:] for n in some]
    others = labels or [n for n in range(len(first)) if n not in texts]
    return any(_recurs(rows, n) for n in others)


def _text_and_label(rows: Sequence[Row], header: bool) -> dict[str, int]:
    """Find the text and the label column of a headerless table of two columns; {} if not clear.

    If a header is expected, the first row counts as data only if its text has several words and its
    label occurs again.
    """
    if not rows or len(rows[0].values) != 2:
        return {}
    values = [{row.values[n] for row in rows} for n in (0, 1)]
    label = 0 if len(values[0]) < len(values[1]) else 1
    text = 1 - label
    if len(values[label]) > len(rows) / 2 or len(values[label]) == len(values[text]):
        return {}
    if header and not (" " in rows[0].values[text].strip() and _recurs(rows, label)):
        return {}
    return {TEXT: text, LABEL: label}


def _refuse_data_as_header(
    path: Path, names: tuple[str, ...], form: Form, rows: Sequence[Row]
) -> None:
    """Raise DataError if the requested column names are a message and its label.

    If the message is short, this is not certain, so only a warning is logged.
    """
    if names[0] == TEXT or not _is_data(rows, form.columns):
        return
    numbers = [",".join(str(n + 1) for n in some) for some in form.columns]
    options = zip(("--text-column", "--label-column"), numbers, strict=False)
    what = (
        f"{path}: the first row looks like data, not like a header: {list(rows[0].values)!r:.200}. "
        "Use --no-header " + " ".join(f"{option} {number}" for option, number in options)
    )
    if len(names[0].split()) >= FEWEST_WORDS:
        raise DataError(f"{what}.")
    log.warning(f"{what} if it is data.")


def _has_csv_quotes(path: Path, encoding: str) -> bool:
    """Decide whether quotes in a tab-separated file are csv quotes, as pandas writes them.

    They are csv quotes if every field that contains a quote is quoted as a whole, and in addition
    the file shows one of these signs: a doubled quote, a tab or a line end within a field, or a
    first row in which all fields are quoted. A tab or line end between two quotes is a separator if
    it gives each line as many fields as the first line has. Reads the whole file.
    """
    found = inside = even = False  # inside: in a field that began on an earlier line
    width = 0
    with path.open("rb") as file, suppress(DataError):
        for number, line in enumerate(_decoded_lines(file, str(path), encoding), start=1):
            width = line.count("\t") if number == 1 else width
            as_first = line.count("\t") == width
            if inside:
                end = INSIDE.match(line).end()  # type: ignore[union-attr]  # the end of the field
                inside, line = end == len(line), line[end + 1 :]
                even = even and as_first
                if not inside and (even or (line.strip("\r\n") and line[0] != "\t")):
                    return False
            row = line.removesuffix("\n").removesuffix("\r")
            if inside or ('"' not in row and "\r" not in row):
                continue
            if QUOTED_ROW.fullmatch(row):
                fields = QUOTED_FIELD.findall(row)
                if as_first and any("\t" in field for field in fields):
                    return False
                found = found or (number == 1 and bool(ALL_QUOTED.fullmatch(row)))
                doubled = any('""' in x[1:-1] and x.strip('"') for x in fields)
                found = found or doubled or any("\t" in field for field in fields)
            elif OPEN_ROW.fullmatch(line):
                found, inside, even = True, True, as_first
            else:
                return False
    return found and not inside


def _nearest(name: str, found: Sequence[str]) -> str:
    """A sentence that suggests a similar name or another encoding, or ""."""
    if any("\0" in other for other in found):
        return " They contain NUL bytes: is the encoding utf-16?"
    near = nearest(name, (other for other in found if other != name))
    return f" Did you mean {near!r}?" if near else ""


# --- Lines to rows of .jsonl ---


def _json_rows(path: Path, names: tuple[str, ...], encoding: str) -> Iterator[Row | Fault]:
    with path.open("rb") as file:
        lines = _decoded_lines(file, str(path), encoding, table=True)
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _wrong_byte(line, number, encoding) or _json_row(path, line, names, number)


def _json_row(path: Path, line: str, names: tuple[str, ...], number: int) -> Row | Fault:
    """Read the values of the keys `names` from one line; the values may have any type."""
    try:
        found = json.loads(line, object_pairs_hook=each_once, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        return Fault(number, f"not JSON: {error}", "lines that are not JSON")
    if not isinstance(found, dict):
        what = f"expected a JSON object, found {line!r:.200}"
        return Fault(number, what, "JSON that is not an object")
    joined, *labels = [_parts(name, found, n == 0) for n, name in enumerate(names)]
    _refuse_column_twice(path, names, [joined, *labels])
    for name in chain(joined, *labels):
        if name not in found:
            what = f"expected the key {name!r}, found the keys {list(found)!r:.200}."
            return Fault(number, what + _nearest(name, list(found)), "JSON without the key")
    texts = [found[name] for name in joined]
    odd = [text for text in texts if type(text) is not str]  # the caller reports it
    return Row(number, (odd[0] if odd else "\n".join(texts), *(found[name] for [name] in labels)))
