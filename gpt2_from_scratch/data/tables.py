"""Rows of a .csv, .tsv or .jsonl file: the named columns, or what is wrong with a row.

What is wrong with one row comes out in its place, as a Fault, for the caller to stop at, to skip
or to collect. What is wrong with the whole file raises DataError. Values stay the strings they
are: `NA`, `null` and `123` are texts.
"""

import csv
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

from gpt2_from_scratch.data.lines import Fault, Row, decoded_lines, read_lines
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.storage.files import each_once, no_number

SUFFIXES = (".csv", ".tsv", ".jsonl")
LONGEST_FIELD = 10**8  # characters


def is_table(path: Path) -> bool:
    """Whether the file's name says that it has columns."""
    return path.suffix.lower() in SUFFIXES


def read_rows(
    path: Path, names: tuple[str, ...], encoding: str = "utf-8", *, whole: str = ""
) -> Iterator[Row | Fault]:
    """The values of the columns (or keys) `names` of each row, read as it is asked for.

    In .jsonl values are strings; those of `whole` may be whole numbers too, but not both. Raises
    DataError for a missing file, a suffix that says nothing, a column that is not there once, a
    quote left open, and bytes that are another kind of file's.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    if not is_table(path):
        raise DataError(f"{path}: the name must end in .csv, .tsv or .jsonl to say what it is")
    if path.suffix.lower() == ".jsonl":
        return _json_rows(path, names, encoding, whole)
    form = _comma_separated if path.suffix.lower() == ".csv" else tab_separated
    return _named(form(path, encoding), names, path)


def tab_separated(path: Path, encoding: str = "utf-8") -> Generator[Row | Fault]:
    """All fields of each line of a file; quotes are ordinary characters."""
    for line in read_lines(path, encoding):
        yield line if isinstance(line, Fault) else Row(line.line, tuple(line.values[0].split("\t")))


def _comma_separated(path: Path, encoding: str) -> Generator[Row | Fault]:
    csv.field_size_limit(LONGEST_FIELD)
    undecodable: list[Fault] = []  # in the row at hand

    def texts(file: BinaryIO) -> Iterator[str]:
        for text, fault in decoded_lines(file, str(path), encoding, cr=True, table=True):
            undecodable.extend([fault] if fault else [])
            yield text

    with path.open("rb") as file:
        reader = csv.reader(texts(file), strict=True)
        while True:
            line = reader.line_num + 1
            undecodable.clear()
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                _refuse_what_swallows(path, line, reader.line_num, error)
                what = f"{error}; is a quote left open?"
                yield Fault(line, what, "quotes or line ends that csv does not have")
                continue
            if undecodable:
                yield undecodable[0]
            elif row:
                yield Row(line, tuple(row))


def _refuse_what_swallows(path: Path, first: int, last: int, error: csv.Error) -> None:
    """A quote that takes in other rows: to skip from the first line to the last would lose them."""
    if "unexpected end" in str(error):
        raise DataError(
            f"{path}, line {first}: {error}; is a quote left open? It would swallow every row "
            "behind it"
        ) from None
    if last > first:
        raise DataError(
            f"{path}, line {first}: {error}, in line {last}; is a quote left open? It would swallow "
            f"the rows to line {last}"
        ) from None


def _named(
    rows: Generator[Row | Fault], names: tuple[str, ...], path: Path
) -> Iterator[Row | Fault]:
    with closing(rows):  # the file too, however this ends
        header = next(rows, Row(1, ()))
        if isinstance(header, Fault):
            raise DataError(f"{path}, line {header.line}: {header.what}")
        columns = header.values
        _refuse_other_columns(names, columns, path)
        places = [columns.index(name) for name in names]
        for row in rows:
            if isinstance(row, Fault):
                yield row
            elif len(row.values) == len(columns):
                yield Row(row.line, tuple(row.values[place] for place in places))
            else:
                found = f"{len(row.values)} fields where the header has {len(columns)}"
                what = f"{found}: {list(row.values)!r:.200}"
                yield Fault(row.line, what, "more or fewer fields than the header")


def _refuse_other_columns(names: tuple[str, ...], columns: tuple[str, ...], path: Path) -> None:
    for name in names:
        if columns.count(name) != 1:
            raise DataError(
                f"{path}: expected one column {name!r}, found the columns {list(columns)!r:.300}"
                f"{_nearest(name, columns)}; name yours with --text-column and --label-column"
            )


def _nearest(name: str, found: Sequence[str]) -> str:
    """A clause with the name that was probably meant, if one is near."""
    if any("\0" in other for other in found):
        return "; it holds NUL bytes: is its encoding utf-16?"
    by_lower = {other.strip().lower(): other for other in found if other != name}
    near = get_close_matches(name.strip().lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def _json_rows(
    path: Path, names: tuple[str, ...], encoding: str, whole: str
) -> Iterator[Row | Fault]:
    whole_type: type | None = None  # of the values of `whole`, as the first row has it
    for item in json_objects(path, encoding):
        if isinstance(item, Fault):
            yield item
            continue
        number, found = item
        values = _json_values(found, names, number, whole, whole_type)
        if isinstance(values, Fault):
            yield values
            continue
        if whole:
            whole_type = type(values[names.index(whole)])
        yield Row(number, tuple(str(value) for value in values))


def json_objects(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]] | Fault]:
    """(line, object) of each line of a .jsonl file that is not blank; for values of any type."""
    with path.open("rb") as file:
        lines = decoded_lines(file, str(path), encoding, table=True)
        for number, (line, fault) in enumerate(lines, start=1):
            if fault:
                yield fault
            elif line.strip():
                found = _json_object(line, number)
                yield found if isinstance(found, Fault) else (number, found)


def missing_key(found: dict[str, Any], names: Sequence[str], number: int) -> Fault | None:
    """The fault of an object in line `number` that lacks one of the keys."""
    for name in names:
        if name not in found:
            what = f"expected the key {name!r}, found the keys {list(found)!r:.200}"
            return Fault(number, what + _nearest(name, list(found)), "JSON without the key")
    return None


def _json_object(line: str, number: int) -> dict[str, Any] | Fault:
    try:
        found = json.loads(line, object_pairs_hook=each_once, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        return Fault(number, f"not JSON: {error}", "lines that are not JSON")
    if isinstance(found, dict):
        return found
    return Fault(number, f"expected a JSON object, found {line!r:.200}", "JSON that is no object")


def _json_values(
    found: dict[str, Any], names: tuple[str, ...], number: int, whole: str, whole_type: type | None
) -> list[str | int] | Fault:
    """The values of `names`, if they are what they must be; see `read_rows`."""
    if fault := missing_key(found, names, number):
        return fault
    for name in names:
        value, kind = found[name], type(found[name])
        wanted = "a string or a whole number" if name == whole else "a string"
        if kind is not str and (name != whole or kind is not int):
            what = f"{name!r} must be {wanted}, not {json.dumps(value):.100}"
            return Fault(number, what, "JSON values of another type")
        if name == whole and whole_type not in (None, kind):
            what = (
                f'{name!r} is {json.dumps(value)}; numbers and strings such as 0 and "0" are mixed'
            )
            return Fault(number, what, "labels that are numbers and strings")
    return [found[name] for name in names]
