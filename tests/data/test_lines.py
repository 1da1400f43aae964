"""Bytes become lines in any encoding: held against Python's own open(), and byte by byte."""

import codecs
import random
import tracemalloc
from encodings.aliases import aliases
from pathlib import Path

import pytest

from gpt2_from_scratch.data.lines import (
    Fault,
    Row,
    checked_encoding,
    decoded_lines,
    lines_in,
    read_lines,
)
from gpt2_from_scratch.errors import DataError, UsageError

TEXTS = [
    "plain",
    "",
    "  a\tb ",
    "Grüße, £5",
    "a\x0bb\x0cc\x1cd\x85e\u2028f",
    "日本語",
    "a\rb",
    "ਊ ഊ \u0a0a",
    "😀\u0d0a",
]
UNICODE = [
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "utf-32-le",
    "utf-32-be",
    "utf-7",
    "gb18030",
]


def values(rows) -> list[str]:
    return [row.values[0] for row in rows]


@pytest.mark.parametrize("encoding", UNICODE)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_those_of_open(tmp_path: Path, encoding: str, end: str) -> None:
    """Also where a newline's byte is part of other characters, as in U+0A0A of UTF-16."""
    path = tmp_path / "t.txt"
    for last in ("", end):
        path.write_bytes((end.join(TEXTS) + last).encode(encoding))
        with path.open(encoding=encoding, newline="\n") as file:
            theirs = [line.removesuffix("\n").removesuffix("\r") for line in file]
        assert values(read_lines(path, encoding)) == theirs == TEXTS
        with path.open("rb") as file:  # as standard input gives it
            assert values(lines_in(file, "it", encoding)) == TEXTS


@pytest.mark.parametrize("encoding", sorted(set(aliases.values()) - {"mbcs", "oem"}))
def test_every_encoding_of_python(tmp_path: Path, encoding: str) -> None:
    """Either it reads plain letters as open() does, or it is refused by name; nothing crashes."""
    try:
        checked_encoding(encoding)
    except UsageError:
        names = (
            "base64_codec bz2_codec hex_codec quopri_codec rot_13 uu_codec zlib_codec idna punycode"
        )
        assert encoding in f"{names} unicode_escape raw_unicode_escape undefined".split()
        return
    raw = "one, 2\nTHREE\n".encode(encoding)
    assert values(lines_in(iter(raw.splitlines(keepends=True)), "it", encoding)) == [
        "one, 2",
        "THREE",
    ]
    random_bytes = b"a" + random.Random(encoding).randbytes(2000)
    assert all(isinstance(text, str) for text, _ in decoded_lines([random_bytes], "it", encoding))


@pytest.mark.parametrize(
    "encoding", ["zlib", "rot13", "base64", "nonsense", "", "a\0b", "undefined", "idna"]
)
def test_what_is_no_encoding_of_text(encoding: str) -> None:
    with pytest.raises(UsageError, match="is no encoding of text; such are utf-8"):
        list(lines_in([b"a\n"], "it", encoding))


def test_a_bad_byte_is_told_with_its_place() -> None:
    raw = "fine\ncafé\n\nagain\nnaïve\n".encode("latin-1")
    rows = list(lines_in(raw.splitlines(keepends=True), "it"))
    assert [row.line for row in rows] == [1, 2, 3, 4, 5]
    assert values(row for row in rows if isinstance(row, Row)) == ["fine", "", "again"]
    faults = [row for row in rows if isinstance(row, Fault)]
    for fault, byte in zip(faults, (b"\xe9", b"\xef"), strict=True):
        assert f"byte {raw.index(byte)} (0x{byte.hex()}) is not UTF-8" in fault.what
        assert "save it as UTF-8 or name its encoding with --encoding" in fault.what
    assert values(lines_in(raw.splitlines(keepends=True), "it", "latin-1"))[1] == "café"


@pytest.mark.parametrize("seed", range(20))
def test_faults_are_where_lines_cannot_be_decoded(seed: int) -> None:
    """Any bytes at all, against decoding line by line."""
    draw = random.Random(seed)
    raw = bytes(draw.choices([10, 13, 65, 0x20, 0xC3, 0xA9, 0xE2, 0x82, 0xFF, 0xED], k=600))
    raw = b"A" + raw  # no byte order mark
    rows = list(lines_in(pieces_of(raw), "it"))
    for row, line in zip(rows, pieces_of(raw), strict=True):
        try:
            text = line.decode().removesuffix("\n").removesuffix("\r")
            assert row == Row(row.line, (text,))
        except UnicodeDecodeError:
            assert isinstance(row, Fault)


def pieces_of(raw: bytes) -> list[bytes]:
    """As a file opened for bytes gives them: \\n alone ends a line."""
    pieces = [piece + b"\n" for piece in raw.split(b"\n")]
    return [*pieces[:-1], *([pieces[-1][:-1]] if pieces[-1] != b"\n" else [])]


def test_half_a_character_in_utf_16_is_a_fault_of_its_line() -> None:
    raw = (
        codecs.BOM_UTF16_LE
        + "one\n".encode("utf-16-le")
        + b"\x3d\xd8"
        + "\ntwo".encode("utf-16-le")
    )
    rows = list(lines_in([raw], "it", "utf-16"))
    assert [type(row) for row in rows] == [Row, Fault, Row] and rows[2].values == ("two",)
    assert f"byte {raw.index(bytes([0x3D, 0xD8]))} (0x3d) is not UTF-16-LE" in rows[1].what
    *_, last = lines_in([raw + b"x"], "it", "utf-16")  # cut in the middle of a character
    assert isinstance(last, Fault) and last.line == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(encoding: str) -> None:
    with pytest.raises(
        DataError, match=f"it looks like {encoding.upper()}; give --encoding {encoding}"
    ):
        list(lines_in(["label,text\n".encode(encoding)], "it"))
    for marked in (
        codecs.BOM_UTF16_BE + "ab\nc".encode("utf-16-be"),
        codecs.BOM_UTF16_LE + "ab\nc".encode("utf-16-le"),
    ):
        assert values(lines_in([marked], "it", "utf-16")) == ["ab", "c"]


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"),
        (b"PK\x03\x04\x14\x00\x06\x00", "zip archive"),
        (b"\x80\x04\x95\x0a\x00\x00", "Python pickle"),
        (b"PAR1\x15\x04\x15\x10", "Parquet table"),
        (b"\x1f\x8b\x08\x00", "gzip archive"),
    ],
)
def test_another_kind_of_file_is_named(raw: bytes, what: str) -> None:
    with pytest.raises(DataError, match=f"it should hold lines of text and is an? .*{what[-9:]}"):
        list(lines_in([raw], "it"))


def test_a_text_may_begin_with_any_words() -> None:
    texts = ["<html> is a tag", "GGUF is a format", "%PDF as well", "<!DOCTYPE html>"]
    for text in texts:
        assert values(lines_in([text.encode()], "it")) == [text]


def test_nothing_is_nothing() -> None:
    assert list(lines_in([], "it")) == list(lines_in([b""], "it")) == []
    assert list(lines_in([codecs.BOM_UTF8], "it")) == [Row(1, ("",))]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "shift_jis", "utf-16"])
def test_many_lines_in_flat_memory(encoding: str) -> None:
    line = "a message\n".encode(encoding.replace("16", "16-le"))
    tracemalloc.start()
    count = sum(1 for _ in lines_in((line for _ in range(100_000)), "it", encoding))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_000 and peak < 1e6
