"""Rows of tables, each read or told what is wrong with it: held against csv, json and pandas."""

import csv
import io
import json
import os
import random
import tracemalloc
from pathlib import Path

import pandas
import pytest

from gpt2_from_scratch.data.lines import Fault, Row
from gpt2_from_scratch.data.tables import read_rows
from gpt2_from_scratch.errors import DataError

NAMES = ("text", "label")


def read(path: Path, raw: bytes | str, encoding: str = "utf-8") -> list[Row | Fault]:
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode(encoding))
    return list(read_rows(path, NAMES, encoding, whole="label"))


def refusal(path: Path, raw: bytes | str) -> str:
    with pytest.raises(DataError) as error:
        read(path, raw)
    assert str(path) in str(error.value)
    return str(error.value)


def lines_of_faults(rows: list[Row | Fault]) -> list[int]:
    return [row.line for row in rows if isinstance(row, Fault)]


# --- what is wrong with a row stands in its place ---


def test_every_row_or_its_fault_in_order(tmp_path: Path) -> None:
    good = "label,text\nham,one\n"
    bad = b'ham,caf\xe9\nham\nham,"a" b\nham,"x\ny",z\n'
    rows = read(tmp_path / "m.csv", good.encode() + bad + b'ham,"last\none"\n')
    assert [row.line for row in rows] == [2, 3, 4, 5, 6, 8]
    assert lines_of_faults(rows) == [3, 4, 5, 6]
    assert rows[0] == Row(2, ("one", "ham")) and rows[-1] == Row(8, ("last\none", "ham"))
    kinds = [row.kind for row in rows if isinstance(row, Fault)]
    assert len(set(kinds)) == 3 and kinds[1] == kinds[3]


@pytest.mark.parametrize("seed", range(10))
def test_skipping_faulty_rows_loses_no_other(tmp_path: Path, seed: int) -> None:
    """Faulty lines put between rows that csv wrote: what is left is what csv reads without them."""
    draw = random.Random(seed)
    wrong = [b"ham\n", b"a,b,c\n", b'ham,"a" b\n', b"ham,\xff\n", b'"\xff\n\xfe",x\n', b'"x\ny"\n']
    raw, expected = b"label,text\n", []
    for n in range(200):
        if draw.random() < 0.3:
            raw += draw.choice(wrong)
        text = draw.choice(["plain", "a, b", 'q "q"', "two\nlines", "é\r\n"]) + str(n)
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator="\n").writerow(["ham", text])
        raw += file.getvalue().encode()
        expected.append((text, "ham"))
    rows = read(tmp_path / "m.csv", raw)
    assert [row.values for row in rows if isinstance(row, Row)] == expected


def test_tsv_and_jsonl_too(tmp_path: Path) -> None:
    rows = read(tmp_path / "m.tsv", b'label\ttext\nham\t"one\nham\nham\t\xff\nham\ttwo\n')
    assert lines_of_faults(rows) == [3, 4]
    assert [r.values[0] for r in rows if isinstance(r, Row)] == ['"one', "two"]
    raw = b'{"label": "ham", "text": "one"}\n{\n\n{"text": "\xff"}\n{"label": "ham", "text": "two"}'
    rows = read(tmp_path / "m.jsonl", raw)
    assert lines_of_faults(rows) == [2, 4] and len(rows) == 4


def test_lines_end_with_a_return_alone(tmp_path: Path) -> None:
    rows = read(tmp_path / "m.csv", b"label,text\rham,one\rham,\xff\rham\rham,two\r")
    assert lines_of_faults(rows) == [3, 4] and len(rows) == 4
    assert "byte 23 (0xff)" in rows[1].what


def test_nul_bytes_are_characters(tmp_path: Path) -> None:
    for name, raw in (("m.csv", "label,text\nham,a\0b\n"), ("m.tsv", "label\ttext\nham\ta\0b\n")):
        assert read(tmp_path / name, raw) == [Row(2, ("a\0b", "ham"))]


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252", "shift_jis"]
)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables_in_other_encodings(tmp_path: Path, encoding: str, suffix: str) -> None:
    """Written by pandas; read as UTF-8 such a file is refused, or its rows are faults."""
    texts = ["日本語, ソース"] if encoding == "shift_jis" else ["£5, Grüße", "naïve"]
    table = pandas.DataFrame({"text": texts, "label": ["ham"] * len(texts)})
    path = tmp_path / f"m.{suffix}"
    if suffix == "jsonl":
        rows = [json.dumps(row, ensure_ascii=False) for row in table.to_dict("records")]
        path.write_bytes("\n".join(rows).encode(encoding))
    else:
        table.to_csv(path, index=False, encoding=encoding, sep="," if suffix == "csv" else "\t")
    assert [r.values for r in read_rows(path, NAMES, encoding)] == [(t, "ham") for t in texts]
    if encoding not in ("utf-8-sig", "utf-16-be"):
        try:
            assert any(isinstance(row, Fault) for row in read_rows(path, NAMES))
        except DataError as error:
            assert f"give --encoding {encoding}" in str(error)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_many_rows_in_flat_memory(tmp_path: Path, suffix: str) -> None:
    first, line = {
        "csv": ("label,text\n", 'ham,"a message"\n'),
        "tsv": ("label\ttext\n", "ham\ta message\n"),
        "jsonl": ("", '{"label": "ham", "text": "a message"}\n'),
    }[suffix]
    path = tmp_path / f"m.{suffix}"
    path.write_text(first + line * 50_000)
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path, NAMES, whole="label"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 50_000 and peak < 1e6


# --- what is wrong with the file ---


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        ("label,Text", "'Text'"),
        ("label, text", "' text'"),
        ("label,TEXTS", "'TEXTS'"),
        ("labels,text", "'labels'"),
        ("label,txt,other", "'txt'"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_the_column_that_was_meant(tmp_path: Path, header: str, meant: str, suffix: str) -> None:
    raw = f"{header}\na,b\n".replace(",", "," if suffix == "csv" else "\t")
    message = refusal(tmp_path / f"m.{suffix}", raw)
    assert f"did you mean {meant}?" in message and "found the columns [" in message


def test_no_column_is_near(tmp_path: Path) -> None:
    assert "did you mean" not in refusal(tmp_path / "m.csv", "one,two\na,b\n")


def test_the_key_that_was_meant(tmp_path: Path) -> None:
    (fault,) = read(tmp_path / "m.jsonl", '{"label": "ham", "Text": "a"}')
    assert (
        "expected the key 'text', found the keys ['label', 'Text']; did you mean 'Text'?"
        in fault.what
    )


@pytest.mark.parametrize(
    "tail",
    ['ham,"b\nham,c\n', 'ham,"b', 'ham,"b\nham,c\nham,"d"\n', 'ham,"b\nham,c\nham,"d" e\n'],
    ids=["open to the end", "in the last line", "closed by the next", "and more"],
)
def test_a_quote_that_swallows_rows(tmp_path: Path, tail: str) -> None:
    message = refusal(tmp_path / "m.csv", "label,text\nham,a\n" + tail)
    assert "line 3: " in message and "is a quote left open? It would swallow" in message


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-LFS pointer"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"\xef\xbb\xbf  <html>", "a web page"),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00", "a zip archive"),
        (b"\x80\x04\x95\x0a\x00\x00\x00", "a Python pickle"),
        (b"PAR1\x15\x04\x15\x10", "a Parquet table"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_of_another_kind(tmp_path: Path, raw: bytes, what: str, suffix: str) -> None:
    assert f"should hold a table and is {what}" in refusal(tmp_path / f"m.{suffix}", raw)


def test_utf_16_without_a_mark(tmp_path: Path) -> None:
    message = refusal(tmp_path / "m.csv", "label,text\nham,a\n".encode("utf-16-le"))
    assert "it holds NUL bytes: is its encoding utf-16?" in message


def test_a_header_that_cannot_be_decoded(tmp_path: Path) -> None:
    assert "line 1: byte 2 (0xf6)" in refusal(tmp_path / "m.csv", b"gr\xf6sse,text,label\n1,a,b\n")


# --- JSON ---


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["0", "1", "x"], ["0", "1", "x"]), ([0, 1, -2, 10**20], ["0", "1", "-2", str(10**20)])],
)
def test_labels_are_strings_or_whole_numbers(tmp_path: Path, labels: list, expected: list) -> None:
    raw = "\n".join(json.dumps({"text": "a", "label": label}) for label in labels)
    assert [row.values for row in read(tmp_path / "m.jsonl", raw)] == [("a", e) for e in expected]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"label": true, "text": "a"}', "'label' must be a string or a whole number, not true"),
        ('{"label": 1.0, "text": "a"}', "'label' must be a string or a whole number, not 1.0"),
        ('{"label": null, "text": "a"}', "not null"),
        ('{"label": "0", "text": "a"}', 'numbers and strings such as 0 and "0" are mixed'),
        ('{"label": 1, "text": 5}', "'text' must be a string, not 5"),
        ('{"label": 1, "text": "a", "text": "b"}', "the key 'text' stands there twice"),
        ('{"label": 1, "text": "a", "n": {"x": 1, "x": 1}}', "the key 'x' stands there twice"),
        ('{"label": 1, "text": "a", "n": NaN}', "NaN is no value in JSON"),
        ('{"label": 1, "text": "a", "n": [-Infinity]}', "-Infinity is no value in JSON"),
        ('{"label": NaN, "text": "a"}', "NaN is no value in JSON"),
        ("[1]", "expected a JSON object, found '[1]"),
    ],
)
def test_json_that_is_no_row(tmp_path: Path, line: str, what: str) -> None:
    good = '{"label": 0, "text": "a"}\n'
    first, fault, last = read(tmp_path / "m.jsonl", good + line + "\n" + good)
    assert isinstance(fault, Fault) and what in fault.what and fault.line == 2
    assert first.values == last.values == ("a", "0")


def test_texts_to_classify_are_strings_only(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"text": 5}\n')
    assert [type(row) for row in read_rows(tmp_path / "m.jsonl", ("text",))] == [Fault]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux lists open files there")
@pytest.mark.parametrize(
    "raw",
    [b'text,label\na,b\n"c,d\n', b"words,label\na,b\n", b'text,label\n"a\n" b,c\n', b"\xff,b\n"],
)
def test_no_file_stays_open_behind_an_error(tmp_path, raw):
    """While the error is at hand, and with it all that led to it."""
    path = tmp_path / "m.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError) as error:
        list(read_rows(path, ("text", "label")))
    assert error.value
    opened = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert str(path.resolve()) not in opened
