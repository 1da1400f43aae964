"""Bytes to lines of text in any encoding, as they come: each line, or what is wrong with it."""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.storage.files import HEAD, LFS, and_is

MARKS = {  # byte order marks; that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
NOT_OF_FILES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape")  # of names and code
BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a]")  # what no text begins with


@dataclass(frozen=True)
class Row:
    """What stands in one row."""

    line: int  # where it begins, counted from 1
    values: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row, which stands here in its place."""

    line: int  # where it begins, counted from 1
    what: str
    kind: str  # in a few words, the same for all of this kind


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[Row | Fault]:
    """The lines of a text file; see `lines_in`. Raises DataError when there is no such file."""
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    return _lines_of_file(path, encoding)


def lines_in(stream: Iterable[bytes], name: str, encoding: str = "utf-8") -> Iterator[Row | Fault]:
    """The lines of a stream, read as they are asked for; `name` is for errors.

    Only \\n and \\r\\n end a line, whatever else Unicode has for it. Raises DataError when the
    first bytes are another kind of file's, UsageError for an unknown encoding.
    """
    for number, (text, fault) in enumerate(decoded_lines(stream, name, encoding), start=1):
        yield fault or Row(number, (text.removesuffix("\n").removesuffix("\r"),))


def decoded_lines(
    stream: Iterable[bytes], name: str, encoding: str, *, cr: bool = False, table: bool = False
) -> Iterator[tuple[str, Fault | None]]:
    """Lines with their ends, and each one's fault: then its bad bytes are U+FFFD in the text.

    `stream` gives bytes up to each b"\\n", as a binary file does. A byte order mark is left out.
    With `cr`, \\r alone ends a line too. In a `table` no line can be a web page's.
    """
    chunks = iter(stream)
    first = next(chunks, b"")
    _refuse_other_kinds(first[:HEAD], name, table)
    codec = _codec(encoding, first, name)
    offset = 0
    lines = _cut(chain((first,) if first else (), chunks), "\n".encode(codec), cr)
    for number, raw in enumerate(lines, start=1):
        fault = None
        try:
            text = raw.decode(codec)
        except UnicodeError as error:
            fault = _undecodable(raw, getattr(error, "start", 0), number, offset, codec)
            text = raw.decode(codec, "replace")
        offset += len(raw)
        yield text.removeprefix("\ufeff") if number == 1 else text, fault


def checked_encoding(encoding: str) -> str:
    """Python's name of a text encoding. Raises UsageError when it has none of this name."""
    try:
        name = codecs.lookup(encoding).name
        if "\n".encode(name) and name.replace("_", "-") not in NOT_OF_FILES:
            return "utf-8" if name == "utf-8-sig" else name
    except (LookupError, ValueError):  # none such, or none of text, such as zlib and rot13
        pass
    raise UsageError(
        f"{encoding!r} is no encoding of text; such are utf-8, utf-16, cp1252, latin-1, shift_jis"
    )


def _lines_of_file(path: Path, encoding: str) -> Iterator[Row | Fault]:
    with path.open("rb") as file:
        yield from lines_in(file, str(path), encoding)


def _codec(encoding: str, first: bytes, name: str) -> str:
    """The encoding's name with its byte order, so that lines can be cut and decoded singly."""
    codec = checked_encoding(encoding)
    marked = next((found for mark, found in MARKS.items() if first.startswith(mark)), "")
    if codec == "utf-8" and marked:
        family = marked[:6]
        raise DataError(f"{name} looks like {family.upper()}; give --encoding {family}")
    if codec in ("utf-16", "utf-32"):
        return marked if marked.startswith(codec) else codec + "-le"
    return codec


def _cut(chunks: Iterable[bytes], newline: bytes, cr: bool) -> Iterator[bytes]:
    """Lines of bytes, with their ends; in UTF-16 and 32 only whole characters are looked at."""
    if newline == b"\n":
        for line in chunks:
            if cr and line.count(b"\r") > line.endswith(b"\r\n"):
                yield from filter(None, re.split(rb"(?<=\r)(?!\n)", line))
            else:
                yield line
        return
    rest, width = b"", len(newline)
    for chunk in chunks:
        rest, start, end = rest + chunk, 0, -1
        while (end := rest.find(newline, end + 1)) >= 0:
            if (end - start) % width == 0:
                yield rest[start : end + width]
                start, end = end + width, end + width - 1
        rest = rest[start:]
    if rest:
        yield rest


def _refuse_other_kinds(head: bytes, name: str, table: bool) -> None:
    """A text may begin with any words, so that only what is no text at all is told in lines."""
    kind = and_is(head) if head else ""
    if kind and (table or LFS in kind or BINARY.search(head)):
        raise DataError(f"{name} should hold {'a table' if table else 'lines of text'}{kind}")


def _undecodable(raw: bytes, start: int, number: int, offset: int, codec: str) -> Fault:
    shown = codec.upper() if codec.startswith("utf") else codec
    return Fault(
        number,
        f"byte {offset + start} (0x{raw[start : start + 1].hex()}) is not {shown}; save it as UTF-8 or name its "
        "encoding with --encoding",
        f"bytes that are not {shown}",
    )
