"""Rows of text files: .csv, .tsv and .jsonl tables, or one text per line.

What is wrong with one row is reported in its place, as a Fault, which the caller raises, skips or
collects. What is wrong with the whole file raises DataError. Values stay as they are: `NA`, `null`
and `123` in a table are texts.

Bytes that do not belong to the encoding are read as U+DC80 to U+DCFF (errors="surrogateescape"), so
a row that contains one of these is a faulty row. UTF-16 and UTF-32 cannot be read further after
such bytes: there the file is at fault.
"""

import codecs
import csv
import json
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.storage.files import HEAD, LFS, and_is, each_once, no_number

SUFFIXES = (".csv", ".tsv", ".jsonl")
LONGEST_FIELD = 10**8  # characters
MARKS = {  # byte order marks; the mark of UTF-16 is how that of UTF-32 begins
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WRONG_BYTE = re.compile("[\udc80-\udcff]")
BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a]")  # no text begins with these
SAVE_AS = "save the file as UTF-8 or name its encoding with --encoding"


@dataclass(frozen=True)
class Row:
    """The values of one row: strings, or what JSON made of them."""

    line: int  # where the row begins, counted from 1
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row."""

    line: int  # where the row begins, counted from 1
    what: str
    kind: str  # a few words, the same for all faults of this kind


def is_table(path: Path) -> bool:
    """Whether the file's name says that the file has columns."""
    return path.suffix.lower() in SUFFIXES


def read_rows(path: Path, names: tuple[str, ...], encoding: str = "utf-8") -> Iterator[Row | Fault]:
    """Read the values of the columns (or keys) `names`, row by row.

    Raises DataError for a missing file, an unknown suffix, a column that is missing or occurs
    twice, a quote left open, and for another kind of file.
    """
    _refuse_missing(path)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _named(_comma_separated(path, encoding), names, path)
    if suffix == ".tsv":
        return _named(tab_separated(path, encoding), names, path)
    if suffix == ".jsonl":
        return _json_rows(path, names, encoding)
    raise DataError(f"{path}: unknown kind of table; the name must end in .csv, .tsv or .jsonl")


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[Row | Fault]:
    """Read the lines of a text file; see `lines_in`. Raises DataError for a missing file."""
    _refuse_missing(path)
    return _lines_of_file(path, encoding)


def lines_in(stream: Any, name: str, encoding: str = "utf-8") -> Iterator[Row | Fault]:
    """Read the lines of a binary stream as they arrive, each as a row of one value.

    Only \\n and \\r\\n end a line. `name` is for errors. Raises DataError for another kind of file.
    """
    for number, line in enumerate(_decoded_lines(stream, name, encoding), start=1):
        text = line.removesuffix("\n").removesuffix("\r")
        yield _wrong_byte(line, number, encoding) or Row(number, (text,))


def tab_separated(path: Path, encoding: str = "utf-8") -> Generator[Row | Fault]:
    """Read all fields of each line; quotes are ordinary characters."""
    for row in read_lines(path, encoding):
        yield row if isinstance(row, Fault) else Row(row.line, tuple(row.values[0].split("\t")))


def checked_encoding(encoding: str) -> str:
    """Python's name of a text encoding. Raises UsageError if it is unknown."""
    try:
        "\n".encode(encoding)  # refuses what is not an encoding of text, such as zlib
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise UsageError(
            f"unknown text encoding {encoding!r}; known are utf-8, utf-16, cp1252, latin-1, "
            "shift_jis and others of Python"
        ) from None
    return "utf-8" if name == "utf-8-sig" else name


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path} is not a file")


# --- Bytes to lines ---


def _lines_of_file(path: Path, encoding: str) -> Iterator[Row | Fault]:
    with path.open("rb") as file:
        yield from lines_in(file, str(path), encoding)


def _decoded_lines(
    stream: Any, name: str, encoding: str, *, newline: str = "\n", table: bool = False
) -> Generator[str]:
    """Lines with their ends, without a byte order mark; with newline="" a lone \\r ends one too.

    The stream stays open.
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
            file.detach()  # or the stream would be closed with it


def _codec(encoding: str, head: bytes, name: str, table: bool) -> str:
    """The encoding of a file with these first bytes; UTF-16 without a mark is little-endian.

    Raises DataError if the bytes belong to another encoding or another kind of file. A text may
    begin with any words, so that a web page is refused only in place of a table.
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


# --- Lines to rows of .csv and .tsv ---


def _comma_separated(path: Path, encoding: str) -> Generator[Row | Fault]:
    csv.field_size_limit(LONGEST_FIELD)
    with path.open("rb") as file:
        lines = _decoded_lines(file, str(path), encoding, newline="", table=True)
        reader = csv.reader(lines, strict=True)
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
                if swallowed:  # to skip this row would lose them
                    raise DataError(
                        f"{path}, line {line}: {what} It would swallow {swallowed}."
                    ) from None
                yield Fault(line, what, "quotes or line ends that are not those of csv")
                continue
            if values:
                yield _wrong_byte("".join(values), line, encoding) or Row(line, tuple(values))


def _named(
    rows: Generator[Row | Fault], names: tuple[str, ...], path: Path
) -> Iterator[Row | Fault]:
    """The values of the named columns; the first row is the header."""
    with closing(rows):  # and with it the file, however this ends
        header = next(rows, Row(1, ()))
        if isinstance(header, Fault):
            raise DataError(f"{path}, line {header.line}: {header.what}")
        columns = header.values
        for name in names:
            if columns.count(name) != 1:
                raise DataError(
                    f"{path}: expected one column {name!r}, found the columns "
                    f"{list(columns)!r:.300}{_nearest(name, columns)}. Use --text-column and "
                    "--label-column."
                )
        places = [columns.index(name) for name in names]
        for row in rows:
            if isinstance(row, Row) and len(row.values) != len(columns):
                found = f"{len(row.values)} fields where the header has {len(columns)}"
                what = f"{found}: {list(row.values)!r:.200}"
                yield Fault(row.line, what, "more or fewer fields than the header")
            elif isinstance(row, Row):
                yield Row(row.line, tuple(row.values[place] for place in places))
            else:
                yield row


def _nearest(name: str, found: Sequence[str]) -> str:
    """A clause with the name that was probably meant, if one is near."""
    if any("\0" in other for other in found):
        return "; it contains NUL bytes: is its encoding utf-16?"
    by_lower = {other.strip().lower(): other for other in found if other != name}
    near = get_close_matches(name.strip().lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


# --- Lines to rows of .jsonl ---


def _json_rows(path: Path, names: tuple[str, ...], encoding: str) -> Iterator[Row | Fault]:
    with path.open("rb") as file:
        lines = _decoded_lines(file, str(path), encoding, table=True)
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _wrong_byte(line, number, encoding) or _json_row(line, names, number)


def _json_row(line: str, names: tuple[str, ...], number: int) -> Row | Fault:
    """The values of the keys `names` in one line, of any type."""
    try:
        found = json.loads(line, object_pairs_hook=each_once, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        return Fault(number, f"not JSON: {error}", "lines that are not JSON")
    if not isinstance(found, dict):
        what = f"expected a JSON object, found {line!r:.200}"
        return Fault(number, what, "JSON that is not an object")
    for name in names:
        if name not in found:
            what = f"expected the key {name!r}, found the keys {list(found)!r:.200}"
            return Fault(number, what + _nearest(name, list(found)), "JSON without the key")
    return Row(number, tuple(found[name] for name in names))
