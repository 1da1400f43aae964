"""Rows of text files and their faults, compared with open(), csv, json and pandas."""

import codecs
import csv
import io
import json
import os
import random
import tracemalloc
from pathlib import Path

import pandas
import pytest
from said import listen

from gpt2_from_scratch.data.tables import (
    Fault,
    Form,
    Row,
    checked_delimiter,
    checked_encoding,
    lines_in,
    read_lines,
    read_rows,
    recognised,
)
from gpt2_from_scratch.errors import DataError, UsageError

NAMES = ("text", "label")
CASES = Path(__file__).parents[1] / "fixtures" / "cases"


def read(path: Path, raw: bytes | str, encoding: str = "utf-8") -> list[Row | Fault]:
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode(encoding))
    return list(read_rows(path, NAMES, encoding))


def refusal(path: Path, raw: bytes | str) -> str:
    with pytest.raises(DataError) as error:
        read(path, raw)
    assert str(path) in str(error.value)
    return str(error.value)


def lines_of_faults(rows: list[Row | Fault]) -> list[int]:
    return [row.line for row in rows if isinstance(row, Fault)]


# --- a faulty row is replaced by its fault ---


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
    """With faulty lines between rows that csv wrote, csv's own rows are what remains."""
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
    assert "0xff" in rows[1].what


def test_nul_bytes_are_characters(tmp_path: Path) -> None:
    for name, raw in (("m.csv", "label,text\nham,a\0b\n"), ("m.tsv", "label\ttext\nham\ta\0b\n")):
        assert read(tmp_path / name, raw) == [Row(2, ("a\0b", "ham"))]


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252", "shift_jis"]
)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables_in_other_encodings(tmp_path: Path, encoding: str, suffix: str) -> None:
    """pandas writes these files; read as UTF-8, they are refused or have faulty rows."""
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
            assert f"--encoding {encoding}" in str(error)


@pytest.mark.slow
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
    count = sum(1 for _ in read_rows(path, NAMES))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 50_000 and peak < 1e6


# --- the format of a table ---


def form(path: Path, *names: str, **options) -> Form:
    return recognised(path, names or NAMES, **options)


def test_the_cases() -> None:
    """Each table is read as a person would read it, and its format is described."""
    expected = {
        "semicolon.csv": Form(";", True, True, 2, ((0,), (1,))),
        "noheader.tsv": Form("\t", False, False, 2, ((1,), (0,))),
        "pandas_quotes.tsv": Form("\t", True, True, 2, ((0,), (1,))),
        "train.csv": Form(",", True, True, 2, ((0,), (1,))),
    }
    for name, wanted in expected.items():
        assert form(CASES / name) == wanted, name
        rows = list(read_rows(CASES / name, NAMES))
        theirs = pandas.read_csv(
            CASES / name,
            sep=wanted.delimiter,
            header=0 if wanted.header else None,
            quoting=csv.QUOTE_MINIMAL if wanted.quotes else csv.QUOTE_NONE,
        )
        columns = [theirs.iloc[:, column[0]] for column in wanted.columns]
        assert [row.values for row in rows] == list(zip(*columns, strict=True)), name
    assert str(form(CASES / "noheader.tsv")) == (
        "2 columns separated by tab, without a header; quotes are ordinary characters; text in "
        "column 2, label in column 1"
    )


AWKWARD = [
    "a, b",
    "c; d",
    'say "hi"',
    '"',
    '""',
    "a|b",
    "two\nlines",
    "tab\there",
    "  x ",
    "é",
    "'",
]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_pandas_writes_is_read(
    tmp_path: Path, separator: str, header: bool, quoting: int
) -> None:
    texts = ["a first text", *(f"{text} {n}" for text in AWKWARD for n in range(4)), *AWKWARD]
    labels = [("ham", "spam")[n % 2] for n in range(len(texts))]
    table = pandas.DataFrame({"id": range(len(texts)), "label": labels, "text": texts})
    some = table if header else table[["label", "text"]]
    for name in ("m.csv", "m.tsv", "m.txt", "m"):
        some.to_csv(tmp_path / name, sep=separator, index=False, header=header, quoting=quoting)
        rows = [row.values for row in read_rows(tmp_path / name, NAMES)]
        assert rows == list(zip(texts, labels, strict=True)), name


@pytest.mark.parametrize(
    "line",
    ['"Hello" he said', 'he said "hello"', '"', '"open', 'a "b', '""x""', '"a" "b"', '"x""y"z'],
)
@pytest.mark.parametrize("where", [3, 30])
def test_raw_quotes_stay_raw_quotes(tmp_path: Path, line: str, where: int) -> None:
    """A single line with a quote that csv would not allow is enough, anywhere in the file."""
    texts = [f"text {n}" for n in range(40)] + ['"all of ""it"" in quotes"']
    texts.insert(where, line)
    raw = "label\ttext\n" + "".join(f"ham\t{text}\n" for text in texts)
    assert [row.values[0] for row in read(tmp_path / "m.tsv", raw)] == texts


def test_quotes_around_whole_texts_are_not_csv_quotes(tmp_path: Path) -> None:
    """csv would not have quoted these fields, so the quotes are ordinary characters."""
    rows = read(tmp_path / "m.tsv", 'label\ttext\nham\t"one"\nham\ttwo\n')
    assert [row.values[0] for row in rows] == ['"one"', "two"]


@pytest.mark.parametrize("columns", [("label", "text"), ("text", "label"), ("id", "text", "label")])
def test_quotes_of_two_rows_do_not_join_them(tmp_path: Path, columns: tuple[str, ...]) -> None:
    """One text begins with a quote and a later text ends with one, as in a dialogue."""
    texts = ['"Hello', "he said,", 'goodbye"', '""""', "so"]
    values = [{"id": "1", "text": text, "label": "ham"} for text in texts]
    lines = [columns, *([row[name] for name in columns] for row in values)]
    raw = "".join("\t".join(line) + "\n" for line in lines)
    assert [row.values for row in read(tmp_path / "m.tsv", raw)] == [(t, "ham") for t in texts]
    raw = 'text\tlabel\n"to be\tor not"\n'
    assert [row.values for row in read(tmp_path / "m.tsv", raw)] == [('"to be', 'or not"')]


HEADERLESS = "ham\tgood morning to you\nspam\twin now\nham\tsee you\nham\tat six\n"


@pytest.mark.parametrize("name", ["m.tsv", "m.txt", "SMSSpamCollection.tsv", "m"])
def test_the_first_row_is_never_lost(tmp_path: Path, name: str) -> None:
    path, expected = tmp_path / name, [line.split("\t")[::-1] for line in HEADERLESS.splitlines()]
    path.write_text(HEADERLESS)
    for names, options in (
        (NAMES, {}),
        (NAMES, {"header": False}),
        (("2", "1"), {"header": False}),
        (("2", "1"), {}),
        (("2", "1"), {"delimiter": "\t"}),
    ):
        rows = [list(row.values) for row in read_rows(path, names, **options)]
        assert rows == expected, (names, options)
    with pytest.raises(DataError, match="--no-header --text-column 2 --label-column 1"):
        list(read_rows(path, ("good morning to you", "ham")))


def test_without_a_header_the_first_row_may_have_a_fault(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_bytes(b"ham\t\xff\n" + HEADERLESS.encode())
    rows = list(read_rows(tmp_path / "m.tsv", ("2", "1"), header=False))
    assert lines_of_faults(rows) == [1] and len(rows) == 5


def test_without_a_header_most_rows_say_how_many_columns_there_are(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"
    path.write_text("ham\ta\tb c\n" + HEADERLESS + "spam\n")
    for names, options in ((("2", "1"), {}), (NAMES, {"header": False})):
        rows = list(read_rows(path, names, **options))
        assert lines_of_faults(rows) == [1, 6] and len(rows) == 6
    assert "3 fields where others have 2" in rows[0].what
    path.write_text(HEADERLESS + "spam\n")
    assert lines_of_faults(list(read_rows(path, NAMES))) == [5]


def test_a_short_first_message_as_a_header_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text("ham\tsee you\nspam\twin now\nham\tat six\n")
    said = listen()
    assert len(list(read_rows(tmp_path / "m.tsv", ("see you", "ham")))) == 2
    assert len(said) == 1 and "--no-header --text-column 2 --label-column 1" in said[0]
    said.clear()
    (tmp_path / "m.tsv").write_text("text\tham\nwin now\tspam\nat six\tham\n")
    assert len(list(read_rows(tmp_path / "m.tsv", ("text", "ham")))) == 2 and said == []


def test_numbers_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("id,title,body,score\n7,Hello,old friend,1.5\n8,Bye,now,-2\n")
    assert [r.values for r in read_rows(path, ("2,3", "4"))] == [
        ("Hello\nold friend", "1.5"),
        ("Bye\nnow", "-2"),
    ]
    path.write_text("7,Hello,old friend,1.5\n8,Bye,now,-2\n")
    for header in (True, False):  # here a number is not a column name
        rows = [r.values for r in read_rows(path, ("2", "4"), header=header)]
        assert rows == [("Hello", "1.5"), ("Bye", "-2")]
    path.write_text("eggs,a text of some words\nham,a\n")  # the first label does not occur again
    assert len(list(read_rows(path, ("2", "1")))) == 2
    path.write_text("1,2\nham,a\n")  # yet the first row may be data
    assert [r.values for r in read_rows(path, ("2", "1"))] == [("a", "ham")]
    for names, header in ((("5", "1"), True), (("0", "1"), True), (("2", "3"), False)):
        with pytest.raises(DataError, match="m.csv"):
            list(read_rows(path, names, header=header))


def test_a_header_with_other_names_is_not_a_row(tmp_path: Path) -> None:
    """v1 and v2 are the column names of a well-known copy of the SMS collection."""
    for header in ("v1\tv2", "spam\tmessage", "class\tthe text"):
        path = tmp_path / "m.tsv"
        path.write_text(f"{header}\n{HEADERLESS}")
        with pytest.raises(DataError, match="expected one column 'text'.*--no-header"):
            list(read_rows(path, NAMES))
        assert len(list(read_rows(path, tuple(header.split("\t"))[::-1]))) == 4


def test_columns_that_are_joined(tmp_path: Path) -> None:
    names = ("title,body", "label")
    path = tmp_path / "m.csv"
    path.write_text('body,label,title\n"two\nlines",ham,One\n,spam,Two\n')
    expected = [("One\ntwo\nlines", "ham"), ("Two\n", "spam")]
    assert [row.values for row in read_rows(path, names)] == expected
    # a column whose name contains a comma
    path.write_text('"title,body",label,title,body\na,ham,b,c\n')
    assert [row.values for row in read_rows(path, names)] == [("a", "ham")]
    rows = [
        {"title": "One", "body": "b", "label": "ham"},
        {"title": "One", "body": 5, "label": "ham"},
        {"title,body": "c", "label": "spam"},
        {"title": "One", "label": "spam"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = list(read_rows(path, names))
    assert [row.values for row in found[:3]] == [("One\nb", "ham"), (5, "ham"), ("c", "spam")]
    assert isinstance(found[3], Fault) and "'body'" in found[3].what


@pytest.mark.parametrize(
    ("given", "character"),
    [("comma", ","), ("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), (":", ":"), ("auto", "auto")],
)
def test_names_of_delimiters(given: str, character: str) -> None:
    assert checked_delimiter(given) == character == checked_delimiter(character)


@pytest.mark.parametrize("given", ["", "::", '"', "\n", "a", "colon"])
def test_invalid_delimiters(given: str) -> None:
    with pytest.raises(UsageError, match="auto, comma, semicolon, tab, pipe"):
        checked_delimiter(given)


def test_a_named_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("text:label\na, b:ham\n")
    assert [row.values for row in read_rows(path, NAMES, delimiter=":")] == [("a, b", "ham")]
    with pytest.raises(DataError, match=r"'text', found the columns \['text:label'\]"):
        list(read_rows(path, NAMES))


# --- faults of the whole file ---


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
def test_a_similar_column_is_suggested(
    tmp_path: Path, header: str, meant: str, suffix: str
) -> None:
    raw = f"{header}\na,b\n".replace(",", "," if suffix == "csv" else "\t")
    message = refusal(tmp_path / f"m.{suffix}", raw)
    assert f"Did you mean {meant}?" in message and "found the columns [" in message


def test_no_suggestion_without_a_similar_column(tmp_path: Path) -> None:
    assert "Did you mean" not in refusal(tmp_path / "m.csv", "one,two\na,b\n")


def test_a_similar_key_is_suggested(tmp_path: Path) -> None:
    (fault,) = read(tmp_path / "m.jsonl", '{"label": "ham", "Text": "a"}')
    assert (
        "expected the key 'text', found the keys ['label', 'Text']. Did you mean 'Text'?"
        in fault.what
    )


@pytest.mark.parametrize(
    "tail",
    ['ham,"b\nham,c\n', 'ham,"b', 'ham,"b\nham,c\nham,"d"\n', 'ham,"b\nham,c\nham,"d" e\n'],
    ids=["open to the end", "in the last line", "closed by the next", "and more"],
)
def test_a_quote_that_swallows_rows(tmp_path: Path, tail: str) -> None:
    message = refusal(tmp_path / "m.csv", "label,text\nham,a\n" + tail)
    assert "line 3: " in message and "is a quote left open" in message


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
    assert f"a table and is {what}" in refusal(tmp_path / f"m.{suffix}", raw)


def test_utf_16_without_a_mark(tmp_path: Path) -> None:
    message = refusal(tmp_path / "m.csv", "label,text\nham,a\n".encode("utf-16-le"))
    assert "utf-16" in message


def test_a_header_that_cannot_be_decoded(tmp_path: Path) -> None:
    assert "line 1: byte 0xf6 is not UTF-8" in refusal(
        tmp_path / "m.csv", b"gr\xf6sse,text,label\n1,a,b\n"
    )


# --- JSON ---


def test_json_values_keep_their_type(tmp_path: Path) -> None:
    values = ["0", 1, -2, 10**20, 1.5, True, None, ["a"], {"x": {"y": 1}}]
    raw = "\n".join(json.dumps({"text": "a", "label": value}) for value in values)
    rows = read(tmp_path / "m.jsonl", raw)
    assert [row.values for row in rows] == [("a", value) for value in values]
    assert [type(row.values[1]) for row in rows] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"label": 1, "text": "a", "text": "b"}', "'text'"),
        ('{"label": 1, "text": "a", "n": {"x": 1, "x": 1}}', "'x'"),
        ('{"label": 1, "text": "a", "n": NaN}', "NaN"),
        ('{"label": 1, "text": "a", "n": [-Infinity]}', "-Infinity"),
        ('{"label": NaN, "text": "a"}', "NaN"),
        ("[1]", "expected a JSON object, found '[1]"),
    ],
)
def test_json_lines_that_are_not_rows(tmp_path: Path, line: str, what: str) -> None:
    good = '{"label": 0, "text": "a"}\n'
    first, fault, last = read(tmp_path / "m.jsonl", good + line + "\n" + good)
    assert isinstance(fault, Fault) and what in fault.what and fault.line == 2
    assert first.values == last.values == ("a", 0)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux lists open files there")
@pytest.mark.parametrize(
    "raw",
    [b'text,label\na,b\n"c,d\n', b"words,label\na,b\n", b'text,label\n"a\n" b,c\n', b"\xff,b\n"],
)
def test_no_file_stays_open_after_an_error(tmp_path, raw):
    """It is closed even while the error, with its traceback, is still referenced."""
    path = tmp_path / "m.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError) as error:
        list(read_rows(path, ("text", "label")))
    assert error.value
    opened = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert str(path.resolve()) not in opened


# --- lines ---

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


def stream(raw: bytes) -> io.BytesIO:
    return io.BytesIO(raw)


def values(rows) -> list[str]:
    return [row.values[0] for row in rows]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-7", "gb18030"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_those_of_open(tmp_path: Path, encoding: str, end: str) -> None:
    """Only \\n and \\r\\n end a line, not the other line ends of Unicode."""
    path = tmp_path / "t.txt"
    for last in ("", end):
        path.write_bytes((end.join(TEXTS) + last).encode(encoding))
        with path.open(encoding=encoding, newline="\n") as file:
            theirs = [line.removesuffix("\n").removesuffix("\r") for line in file]
        assert values(read_lines(path, encoding)) == theirs == TEXTS
        with path.open("rb") as file:  # standard input is such a binary stream
            assert values(lines_in(file, "it", encoding)) == TEXTS
            assert not file.closed


@pytest.mark.parametrize("encoding", ["zlib", "rot13", "nonsense", "", "a\0b", "undefined"])
def test_codecs_that_are_not_text_encodings(encoding: str) -> None:
    with pytest.raises(UsageError, match="unknown text encoding .*utf-8"):
        checked_encoding(encoding)
    with pytest.raises(UsageError):
        list(lines_in(stream(b"a\n"), "it", encoding))


def test_an_encoding_has_one_name() -> None:
    assert {checked_encoding(name) for name in ("utf8", "UTF-8", "utf-8-sig")} == {"utf-8"}
    assert checked_encoding("latin1") == checked_encoding("ISO-8859-1") == "iso8859-1"


def test_a_bad_byte_is_reported_in_its_line() -> None:
    raw = "fine\ncafé\n\nagain\nnaïve\n".encode("latin-1")
    rows = list(lines_in(stream(raw), "it"))
    assert [row.line for row in rows] == [1, 2, 3, 4, 5]
    assert values(row for row in rows if isinstance(row, Row)) == ["fine", "", "again"]
    faults = [row for row in rows if isinstance(row, Fault)]
    for fault, byte in zip(faults, ("0xe9", "0xef"), strict=True):
        assert f"byte {byte} is not UTF-8" in fault.what and "--encoding" in fault.what
    assert values(lines_in(stream(raw), "it", "latin-1"))[1] == "café"


@pytest.mark.parametrize("seed", range(10))
def test_faults_are_where_lines_cannot_be_decoded(seed: int) -> None:
    """Random bytes, compared with decoding line by line."""
    draw = random.Random(seed)
    raw = bytes(draw.choices([10, 13, 65, 0x20, 0xC3, 0xA9, 0xE2, 0x82, 0xFF, 0xED], k=600))
    raw = b"A" + raw.rstrip(b"\n")  # no byte order mark
    for row, line in zip(lines_in(stream(raw), "it"), raw.split(b"\n"), strict=True):
        try:
            assert row == Row(row.line, (line.decode().removesuffix("\r"),))
        except UnicodeDecodeError:
            assert isinstance(row, Fault)


def test_half_a_character_in_utf_16_is_a_fault_of_the_file() -> None:
    raw = (
        codecs.BOM_UTF16_LE + "one\n".encode("utf-16-le") + b"\x3d\xd8" + "\n2".encode("utf-16-le")
    )
    with pytest.raises(DataError, match="it, line 1 or later: not UTF-16 .*--encoding"):
        list(lines_in(stream(raw), "it", "utf-16"))
    with pytest.raises(
        DataError, match="it, line 2 or later"
    ):  # the file ends in the middle of a character
        list(lines_in(stream("a\nb".encode("utf-16") + b"x"), "it", "utf-16"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(encoding: str) -> None:
    with pytest.raises(DataError, match=f"{encoding.upper()}; use --encoding {encoding}"):
        list(lines_in(stream("label,text\n".encode(encoding)), "it"))
    for order in ("le", "be"):
        marked = "\ufeffab\nc".encode(f"{encoding}-{order}")
        assert values(lines_in(stream(marked), "it", encoding)) == ["ab", "c"]
    assert values(lines_in(stream("ab".encode(encoding + "-le")), "it", encoding)) == ["ab"]


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
    with pytest.raises(
        DataError, match=f"it should contain lines of text and is an? .*{what[-9:]}"
    ):
        list(lines_in(stream(raw), "it"))


def test_a_text_may_begin_with_any_words() -> None:
    texts = ["<html> is a tag", "GGUF is a format", "%PDF as well", "<!DOCTYPE html>"]
    for text in texts:
        assert values(lines_in(stream(text.encode()), "it")) == [text]


def test_an_empty_stream_has_no_rows() -> None:
    assert list(lines_in(stream(b""), "it")) == []
    assert list(lines_in(stream(codecs.BOM_UTF8), "it")) == [Row(1, ("",))]


class LineByLine(io.RawIOBase):
    """A stream whose lines arrive one at a time."""

    def __init__(self, line: bytes, count: int):
        self.line, self.left, self.given = line, count, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not self.left:
            return 0
        self.left, self.given = self.left - 1, self.given + 1
        buffer[: len(self.line)] = self.line
        return len(self.line)


def test_lines_come_as_they_arrive() -> None:
    """A program that writes line by line into a pipe gets an answer to each line."""
    source = LineByLine(b"a message\n", 10)
    for number, _ in enumerate(lines_in(io.BufferedReader(source), "it"), start=1):
        assert source.given <= number + 1
    assert number == 10


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "shift_jis", "utf-16"])
def test_many_lines_in_flat_memory(encoding: str) -> None:
    line = "a message\n".encode(encoding.replace("16", "16-le"))
    tracemalloc.start()
    count = sum(1 for _ in lines_in(LineByLine(line, 100_000), "it", encoding))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_000 and peak < 1e6


JOINED = "title,desc,label\na,b,x\nc,d,y\n"


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_spaces_between_names_of_columns(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [dict(zip(("title", "desc", "label"), row, strict=True)) for row in ("abx", "cdy")]
    in_json = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(in_json if name == "t.jsonl" else JOINED)
    expected = [
        Row(2 - (name == "t.jsonl"), ("a\nb", "x")),
        Row(3 - (name == "t.jsonl"), ("c\nd", "y")),
    ]
    assert [*read_rows(path, ("title, desc", "label"))] == expected
    assert [*read_rows(path, (" title ,desc", " label"))] == expected
    for names in (("title,title",), ("label", "label"), ("title, label", "label")):
        with pytest.raises(DataError, match="named twice.*--text-column"):
            list(read_rows(path, names))


def test_the_missing_part_of_a_name_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(JOINED)
    for wrong in ("title,dsc", "dsc, title"):
        with pytest.raises(DataError, match="expected one column 'dsc'.*Did you mean 'desc'"):
            list(read_rows(path, (wrong, "label")))
    for names in (("1", "1"), ("1,2,1", "3"), ("1, 3", "3")):
        with pytest.raises(DataError, match="named twice"):
            list(read_rows(path, names, header=False))
    [first, *_] = read_rows(path, ("1, 2", "3"), header=False)
    assert first == Row(1, ("title\ndesc", "label"))
