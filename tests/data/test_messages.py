"""Reading and checking messages, compared with three-line parsers, pandas and plain counting."""

import csv
import hashlib
import io
import json
import random
import re
import unicodedata
from collections import Counter
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas
import pytest
from said import listen

from gpt2_from_scratch.data.check import check_data
from gpt2_from_scratch.data.formats import label_names
from gpt2_from_scratch.data.messages import (
    CONTROL,
    DataConfig,
    Message,
    Span,
    count_labels,
    for_spreadsheet,
    has_halves,
    in_order,
    label_parts,
    lines_of,
    load_messages,
    on_one_line,
    read_texts,
    without_halves,
    write_messages,
)
from gpt2_from_scratch.data.split import folds, load_split, split_messages
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.runs.lecture import read_lecture_split
from gpt2_from_scratch.storage.paths import DATA_SETS, embedded
from gpt2_from_scratch.studies.study import compare

# pandas would convert some of these to numbers, booleans or NaN; csv must quote others
AWKWARD = [
    "NA",
    "null",
    "NaN",
    "None",
    "123",
    "007",
    "1e5",
    "TRUE",
    "-",
    "=1+1",
    'say "hi"',
    '"',
    '""',
    "a, b",
    "it's 5 o'clock",
    "two\nlines",
    "\n\nthree\n\n\nlines",
    "old\r\nlines",
    "  spaces  ",
    "back\\slash",
    "👩‍👩‍👧‍👦 ok 🇩🇪",
    "Grüße, £5",
    "日本語",
    "\x00\x01\x1b\x7f",
    "\ufeffmark inside",
]


CASES = Path(__file__).parents[1] / "fixtures" / "cases"


def normalised(text: str) -> str:
    return " ".join(text.lower().split())


def load(path: Path, **options) -> list[Message]:
    return load_messages(DataConfig(source=str(path), **options))


def refusal(path: Path, raw: bytes | str) -> str:
    """The error for a file with these bytes; it always names the file."""
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(DataError) as error:
        load_messages(path)
    assert str(path) in str(error.value)
    return str(error.value)


# --- the SMS Spam Collection ---


def test_the_collection_is_whole(sms_file):
    """The collection's own readme says 5,574 messages: 4,827 ham and 747 spam."""
    digest = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"  # of UCI's file
    assert hashlib.sha256(sms_file.read_bytes()).hexdigest() == digest
    messages = load_messages()
    lines = sms_file.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    assert [(m.label, m.text) for m in messages] == [tuple(line.split("\t")) for line in lines]
    assert Counter(m.label for m in messages) == {"ham": 4827, "spam": 747}
    assert len(messages) == 5574 and len({m.text for m in messages}) == 5171
    assert (
        load_messages("sms") == load_messages(sms_file) == load_messages(str(sms_file)) == messages
    )


def test_quotes_are_ordinary_characters_in_the_collection(sms_file):
    """With csv's quoting, which is pandas' default, two messages would swallow others."""
    by_default = pandas.read_csv(sms_file, sep="\t", header=None)
    as_they_stand = pandas.read_csv(
        sms_file, sep="\t", header=None, quoting=csv.QUOTE_NONE, keep_default_na=False
    )
    ours = [m.text for m in load_messages(sms_file)]
    assert (len(by_default), len(as_they_stand)) == (5572, 5574)
    assert ours == as_they_stand[1].tolist()
    theirs = set(by_default[1])
    assert sum(text not in theirs for text in ours) == 53 + 2


def test_a_file_with_another_count_is_refused(sms_file, tmp_path, caplog):
    path = tmp_path / "SMSSpamCollection"
    raw = sms_file.read_bytes()
    path.write_bytes(raw + b"spam\tonce more\n")
    assert len(load_messages(path)) == 5575
    assert "'spam': 748" in caplog.text and "'spam': 747" in caplog.text
    path.write_bytes(raw.replace(b"\nspam\tFree", b"\nspam Free", 1))
    with pytest.raises(DataError, match="SMSSpamCollection, line 3: expected label, tab, text"):
        load_messages(path)


@pytest.mark.slow
def test_the_collection_under_other_names_and_as_pandas_writes_it(sms_file, tmp_path):
    messages = load_messages(sms_file)
    for name in ("copy.tsv", "copy.txt", "copy", "copy.csv", "SMSSpamCollection.txt"):
        (tmp_path / name).write_bytes(sms_file.read_bytes())
        found = load_messages(tmp_path / name)
        assert found == messages and [m.line for m in found] == [*range(1, 5575)], name
    table = pandas.DataFrame({"label": [m.label for m in messages]})
    table["text"] = [m.text for m in messages]
    for header in (True, False):
        for separator in "\t;,|":
            table.to_csv(tmp_path / "m.tsv", sep=separator, header=header, index=False)
            assert load_messages(tmp_path / "m.tsv") == messages, (header, separator)


# --- the hard messages ---


def test_the_hard_messages_are_balanced_and_distinct():
    messages = load_messages("hard")
    assert messages == load_messages("demo"), "its name in older runs"
    assert count_labels(messages) == {"ham": 300, "spam": 300}
    assert len({normalised(m.text) for m in messages}) == 600


def test_no_hard_message_is_from_the_collection():
    collection = {normalised(m.text) for m in load_messages("sms")}
    assert not [m.text for m in load_messages("hard") if normalised(m.text) in collection]


# --- the texts on three topics ---


def test_the_topics_are_balanced_and_distinct():
    messages = load_messages("topics")
    assert messages == load_messages(embedded("data/topics") / "messages.csv")
    assert count_labels(messages) == {"medicine": 100, "sports": 100, "technology": 100}
    assert len({normalised(m.text) for m in messages}) == 300
    assert all(6 <= len(m.text.split()) <= 35 and m.text.isprintable() for m in messages)


def test_no_topic_gives_its_name_away():
    texts = [normalised(m.text) for m in load_messages("topics")]
    for label in ("technology", "sports", "medicine"):
        assert sum(label in text for text in texts) <= 5


def test_no_two_topics_share_much():
    """At most a fifth of the shorter text's word 3-grams are in common, as its README says."""

    def trigrams(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+(?:'\w+)*", text.lower())
        return set(zip(words, words[1:], words[2:], strict=False))

    grams = [trigrams(m.text) for m in load_messages("topics")]
    for one, other in combinations(grams, 2):
        assert len(one & other) <= 0.2 * min(len(one), len(other))


# --- tables ---


def as_csv(rows: list[tuple[str, str]]) -> str:
    """RFC 4180 by hand: every field in quotes, quotes doubled."""
    lines = [("label", "text"), *rows]
    return "".join(
        ",".join(f'"{f.replace(chr(34), 2 * chr(34))}"' for f in row) + "\n" for row in lines
    )


def as_tsv(rows: list[tuple[str, str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in [("label", "text"), *rows])


def as_jsonl(rows: list[tuple[str, str]]) -> str:
    return "".join(json.dumps({"label": label, "text": text}) + "\n" for label, text in rows)


@pytest.mark.parametrize("form", [as_csv, as_tsv, as_jsonl])
def test_texts_stay_as_they_are(tmp_path, form):
    texts = [t for t in AWKWARD if form is not as_tsv or not set("\n\t\r") & set(t)]
    rows = [(label, text) for text in texts for label in ("0", "1.0", "not spam")]
    path = tmp_path / f"messages.{form.__name__[3:]}"
    path.write_bytes(form(rows).encode())
    assert load_messages(path) == [Message(text, label) for label, text in rows]


def test_the_three_forms_give_the_same_messages(tmp_path):
    rows = [("ham", 'plain, "quoted" and ünï'), ("spam", "NA"), ("ham", "  ' ")]
    found = []
    for form in (as_csv, as_tsv, as_jsonl):
        path = tmp_path / f"messages.{form.__name__[3:]}"
        for raw in (
            form(rows),
            "\ufeff" + form(rows),
            form(rows).replace("\n", "\r\n"),
            form(rows)[:-1],
        ):
            path.write_bytes(raw.encode())
            found.append(load_messages(path))
    assert found == [[Message(text, label) for label, text in rows]] * 12


def test_csv_reads_as_pandas_reads_it(tmp_path):
    path = tmp_path / "messages.csv"
    path.write_bytes(as_csv([("ham", t) for t in AWKWARD if "\x00" not in t]).encode())
    theirs = pandas.read_csv(path, keep_default_na=False, dtype=str)
    assert [m.text for m in load_messages(path)] == theirs["text"].tolist()


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"])
def test_only_newlines_end_a_csv_row(tmp_path, character):
    """str.splitlines splits at these; csv does not, and spreadsheets do not quote them."""
    path = tmp_path / "messages.csv"
    path.write_bytes(f"label,text\nham,one{character}two\n".encode())
    assert load_messages(path) == [Message(f"one{character}two", "ham")]


def test_other_columns_and_their_order_do_not_matter(tmp_path):
    path = tmp_path / "messages.csv"
    path.write_text("id,body,kind,note\n1,hello,ham,\n2,win,spam,x\n")
    found = load(path, text_column="body", label_column="kind")
    assert found == [Message("hello", "ham"), Message("win", "spam")]
    path = tmp_path / "messages.jsonl"
    path.write_text('{"kind": "ham", "n": [1], "body": "hello"}\n\n{"body": "win", "kind": "spam"}')
    assert load(path, text_column="body", label_column="kind") == found


def test_empty_csv_rows_are_passed_over(tmp_path):
    path = tmp_path / "messages.csv"
    path.write_text("label,text\n\nham,one\n\n\nham,two\n\n")
    assert [m.text for m in load_messages(path)] == ["one", "two"]


# --- what is refused ---


def test_paths_that_are_not_files(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="is not a file") as error:
            load_messages(path)
        assert str(path) in str(error.value)
        assert all(name in str(error.value).rsplit("data sets")[1] for name in DATA_SETS)


def test_another_file_with_the_collections_name_is_read_with_a_warning():
    said = listen()
    messages = load_messages(CASES / "SMSSpamCollection")
    assert count_labels(messages) == {"ham": 20, "spam": 20} and messages[0].line == 1
    assert len(said) == 1 and "'ham': 20" in said[0] and "4827" in said[0]


@pytest.mark.parametrize("name", ["messages.txt", "messages.xlsx", "messages", "messages.csv.gz"])
def test_an_unknown_suffix(tmp_path, name):
    """The separator between columns shows what the file is; without one it is not a table."""
    assert ".csv, .tsv or .jsonl" in refusal(tmp_path / name, "label\nham\n")
    assert "gzip archive" in refusal(tmp_path / name, b"\x1f\x8b\x08\x00" + b"a" * 20)
    (tmp_path / name).write_text("label,text\nham,a\n")
    assert load_messages(tmp_path / name) == [Message("a", "ham")]


@pytest.mark.parametrize("name", ["m.json", "m.conll"])
def test_files_of_other_tasks_are_not_tables(tmp_path, name):
    assert "--task" in refusal(tmp_path / name, "label,text\nham,a\n")


@pytest.mark.parametrize(
    "header", ["", "label", "Label,Text", "text,text,label", "label,label,text", "label:text"]
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_columns_must_occur_once(tmp_path, header, suffix):
    if suffix == "tsv":
        header = header.replace(",", "\t")
    message = refusal(tmp_path / f"messages.{suffix}", f"{header}\nham,a\n")
    assert "expected one column" in message and "--text-column" in message
    if header:  # the columns found are named; an empty first line of a .csv is skipped
        assert header.split("\t" if suffix == "tsv" else ",")[0] in message


@pytest.mark.parametrize(
    ("name", "raw", "line"),
    [
        ("m.csv", "label,text\nham,a\nham,b,c\n", 3),
        ("m.csv", "label,text\nham\n", 2),
        ("m.csv", 'label,text\nham,"two\nlines"\nham,Hi, you\n', 4),
        ("m.tsv", "label\ttext\nham\ta\nham\tb\tc\n", 3),
        ("m.tsv", "label\ttext\nham\ta\n\nham\tb\n", 3),
        ("m.tsv", "label\ttext\nham a\n", 2),
    ],
)
def test_ragged_rows(tmp_path, name, raw, line):
    message = refusal(tmp_path / name, raw)
    assert f"{name}, line {line}: " in message and "where the header has 2" in message


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ('label,text\nham,a\nham,"b\nham,c\nham,d\n', 3),
        ('label,text\nham,"a" b\n', 2),
        ('label,text\n\nham,"two\nlines"\nham,"c', 5),
    ],
)
def test_a_quote_left_open(tmp_path, raw, line):
    message = refusal(tmp_path / "m.csv", raw)
    assert f"m.csv, line {line}: " in message and "is a quote left open?" in message


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_other_encodings(tmp_path, suffix):
    form = {"csv": as_csv, "tsv": as_tsv, "jsonl": as_jsonl}[suffix]
    path = tmp_path / f"m.{suffix}"
    latin_1 = form([("ham", "a")]).encode() + form([("ham", "b")]).encode() + b"ham\xe9\n"
    line = latin_1.count(b"\n")
    message = refusal(path, latin_1)
    assert f"line {line}: byte 0xe9 is not UTF-8; save" in message
    utf_16 = refusal(path, form([("ham", "a")]).encode("utf-16"))
    assert "--encoding utf-16" in utf_16
    # these bytes are valid UTF-8, but not a table
    refusal(path, form([("ham", "a")]).encode("utf-16-le"))


@pytest.mark.parametrize("blank", ["", " ", "\t", "\n", "\u3000"])
@pytest.mark.parametrize("form", [as_csv, as_jsonl])
def test_empty_labels_and_texts(tmp_path, form, blank):
    path = tmp_path / f"m.{form.__name__[3:]}"
    line = 2 if form is as_jsonl else 3
    label = refusal(path, form([("ham", "a"), (blank, "b")]))
    assert f"line {line}: the label is empty" in label
    text = refusal(path, form([("ham", "a"), ("ham", blank)]))
    assert f"line {line}: the text is empty" in text


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl"])
def test_empty_files(tmp_path, name):
    refusal(tmp_path / name, "")
    header = {"m.csv": "label,text\n", "m.tsv": "label\ttext\n", "m.jsonl": "\n\n"}[name]
    assert "contains no messages" in refusal(tmp_path / name, header)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "expected a JSON object"),
        ('"label"', "expected a JSON object"),
        ("null", "expected a JSON object"),
        ('{"label": "ham"}', "expected the key 'text'"),
        ('{"label": "ham", "text": 123}', "the text must be a string, not 123"),
        ('{"label": 1, "text": "a"}', "the label is 1; types such as"),
        ('{"label": true, "text": "a"}', "the label is true; types such as"),
        ('{"label": 1.0, "text": "a"}', "the label must be a string or a whole number, not 1.0"),
        ('{"label": null, "text": "a"}', "the label must be a string or a whole number, not null"),
        ('{"label": "ham", "text": null}', "the text must be a string, not null"),
        ('{"label": "ham", "text": ["a"]}', "the text must be a string"),
        ('{"label": "ham", "text": "a"', "not JSON"),
        ("{'label': 'ham', 'text': 'a'}", "not JSON"),
        ("ham,a", "not JSON"),
        ('{"label": "ham", "text": "a", "n": ' + "1" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
    ids=lambda value: value[:40],
)
def test_jsonl_lines_that_are_not_messages(tmp_path, line, message):
    raw = f'{{"label": "ham", "text": "a"}}\n\n{line}\n'
    assert f"m.jsonl, line 3: {message}" in refusal(tmp_path / "m.jsonl", raw)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0", "1", "x"], ["0", "1", "x"]),
        ([0, 1, -2, 10**20], ["0", "1", "-2", str(10**20)]),
        (
            [True, False, True],
            ["True", "False", "True"],
        ),  # pandas writes True and False to a .csv like this
    ],
)
def test_labels_are_strings_or_whole_numbers(tmp_path, labels, expected):
    rows = [json.dumps({"text": "a", "label": label}) for label in labels]
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    assert load(tmp_path / "m.jsonl") == [Message("a", label) for label in expected]


def test_every_message_knows_its_line(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text('label,text\n\nham,"two\nlines"\nham\nham,one\n')
    assert [m.line for m in load(path, on_error="skip")] == [3, 6]
    assert Message("a", "b", 3) == Message("a", "b") and "line" not in repr(Message("a", "b", 3))


# --- leaving out faulty rows ---

FAULTY = (
    b"label,text\nham,one\nham\nham,\xff\nham,two\nham,\n,x\n" + b"a,b,c\n" * 5 + b"ham,three\n"
)


def test_the_first_fault_is_shown_and_all_are_counted(tmp_path):
    message = refusal(tmp_path / "m.csv", FAULTY)
    assert "m.csv, line 3: 1 fields where the header has 2" in message.splitlines()[0]
    assert "9 rows" in message and "and 4 more" in message
    assert [line.split(":")[0] for line in message.splitlines()[2:6]] == [
        f"  line {n}" for n in (4, 6, 7, 8)
    ]
    assert "--on-error skip" in message.splitlines()[-1]


def test_faulty_rows_are_left_out_and_logged(tmp_path):
    (tmp_path / "m.csv").write_bytes(FAULTY)
    said = listen()
    found = load(tmp_path / "m.csv", on_error="skip")
    assert found == [Message(text, "ham") for text in ("one", "two", "three")]
    (reported,) = said
    assert reported.startswith(
        f"left out 9 of 12 rows of {tmp_path / 'm.csv'}:\n  line 3: 1 fields"
    )
    assert [line.split(":")[0] for line in reported.splitlines()[1:]] == [
        f"  line {n}" for n in (3, 4, 6, 7, 8)
    ] + ["  and 4 more"]
    with pytest.raises(UsageError, match="unknown on_error 'ignore'; choose from: stop, skip"):
        load(tmp_path / "m.csv", on_error="ignore")


def test_no_warning_without_faults(tmp_path):
    write_messages(tmp_path / "m.csv", [Message("a", "ham")])
    said = listen()
    for on_error in ("stop", "skip"):
        load(tmp_path / "m.csv", on_error=on_error)
    assert said == []


def test_skipping_all_rows_is_an_error(tmp_path):
    (tmp_path / "m.csv").write_text("label,text\nham\n")
    with pytest.raises(DataError, match="contains no messages"):
        load(tmp_path / "m.csv", on_error="skip")


def test_a_quote_left_open_is_never_skipped(tmp_path):
    (tmp_path / "m.csv").write_text('label,text\nham,a\nham,"b\nham,c\n')
    with pytest.raises(DataError, match="line 3: .*is a quote left open"):
        load(tmp_path / "m.csv", on_error="skip")


def test_empty_texts_may_be_kept(tmp_path):
    (tmp_path / "m.csv").write_text('label,text\nham,a\nham,\nham," "\n')
    found = load(tmp_path / "m.csv", keep_empty=True)
    assert [m.text for m in found] == ["a", "", " "]
    (tmp_path / "m.csv").write_text("label,text\n,a\n")
    with pytest.raises(DataError, match="line 2: the label is empty"):
        load(tmp_path / "m.csv", keep_empty=True)


@pytest.mark.parametrize(
    "labels",
    [
        ["spam", "Spam"],
        ["spam", " spam"],
        ["not spam", "not  spam"],
        ["STRASSE", "straße"],
        ["caf\u00e9", "cafe\u0301"],
        ["CAFE\u0301", "caf\u00e9"],
        ["spam", "spam\u200b"],
        ["\ufeffspam", "Sp\u00adam"],
    ],
)
def test_labels_that_look_alike(tmp_path, labels):
    write_messages(tmp_path / "m.csv", [Message("a", label) for label in [*labels, "ham"]])
    with pytest.raises(DataError, match="white space or Unicode form") as error:
        load_messages(tmp_path / "m.csv")
    assert all(repr(label) in str(error.value) for label in labels)
    assert "'ham'" not in str(error.value)


def test_a_named_encoding(tmp_path):
    for encoding in ("cp1252", "utf-16"):
        (tmp_path / "m.csv").write_bytes(as_csv([("ham", "£5, naïve")]).encode(encoding))
        assert load(tmp_path / "m.csv", encoding=encoding) == [Message("£5, naïve", "ham")]
    for name in DATA_SETS:  # their columns and encoding are known
        assert load(name, encoding="utf-16", text_column="x") == load_messages(name)


def test_halves_of_characters_can_be_written_again(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"label": "ham", "text": "a \\ud800 b \\ud83d\\ude00"}')
    messages = load_messages(tmp_path / "m.jsonl")
    assert messages == [Message("a \ufffd b 😀", "ham")]
    write_messages(tmp_path / "m.csv", messages)
    assert load_messages(tmp_path / "m.csv") == messages


# --- texts to classify ---


@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_row_numbers_count_faulty_rows_too(tmp_path, suffix):
    raw = b"text\none\n\xff\nthree\n" if suffix == "csv" else b"one\n\xff\nthree\n"
    (tmp_path / f"t.{suffix}").write_bytes(raw)
    said = listen()
    path = tmp_path / f"t.{suffix}"
    assert list(read_texts(path, on_error="skip")) == [(1, "one"), (3, "three")]
    assert "1 of 3 rows" in said[0]
    found = lines_of(io.BytesIO(raw.removeprefix(b"text\n")), "it", on_error="skip")
    assert list(found) == [(1, "one"), (3, "three")]


def test_an_unknown_encoding_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "t.txt").write_text("one\n")
    for refused in (
        lambda: read_texts(tmp_path / "t.txt", encoding="zlib"),
        lambda: lines_of(io.BytesIO(), "it", "zlib"),
    ):
        with pytest.raises(UsageError, match="unknown text encoding 'zlib'"):
            refused()


def test_a_stream_without_end_stops_at_its_first_fault():
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:6] = b"one\n\xff\n"
            return 6

    with pytest.raises(DataError, match="it, line 2: byte 0xff"):
        list(lines_of(Endless(), "it"))


def test_texts_to_classify_are_strings_only(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": 5}\n{"text": ""}\n')
    assert list(read_texts(tmp_path / "t.jsonl", on_error="skip")) == [(2, "")]
    with pytest.raises(DataError, match="t.jsonl, line 1: the text must be a string, not 5"):
        list(read_texts(tmp_path / "t.jsonl"))


@pytest.mark.parametrize("name", ["squad.json", "train.conll", "TRAIN.CONLL"])
def test_labelled_files_are_not_lines_of_texts(tmp_path, name):
    """`predict --file train.conll` would otherwise classify its lines together with their tags."""
    (tmp_path / name).write_text("Alex B-person\n")
    with pytest.raises(DataError, match=name):
        read_texts(tmp_path / name)


def test_texts_may_be_empty(tmp_path):
    (tmp_path / "t.csv").write_text('id,text\n1,"a\nb"\n2,\n3,NA\n')
    assert list(read_texts(tmp_path / "t.csv")) == [(1, "a\nb"), (2, ""), (3, "NA")]
    (tmp_path / "t.txt").write_text('one\n\n"two", 3\n')
    assert list(read_texts(tmp_path / "t.txt")) == [(1, "one"), (2, ""), (3, '"two", 3')]
    with pytest.raises(DataError, match="none.txt is not a file"):
        read_texts(tmp_path / "none.txt")


# --- writing ---


def test_written_messages_are_read_back(tmp_path):
    messages = [Message(text, label) for text in AWKWARD for label in ("ham", 'a "label", quoted')]
    write_messages(tmp_path / "m.csv", messages)
    assert load_messages(tmp_path / "m.csv") == messages
    rows = list(csv.reader(io.StringIO((tmp_path / "m.csv").read_bytes().decode(), newline="")))
    assert rows == [["label", "text"], *([m.label, m.text] for m in messages)]


@pytest.mark.parametrize("seed", range(20))
def test_random_texts_survive(tmp_path, seed):
    draw = random.Random(seed)
    alphabet = (
        "ab\",;\t\n\r'\\ \x00\x0b\x0c\x1c\x1d\x1e\x7f\x85\xa0£é\u2028\u2029\ufeff\ufffd😀\U0010ffff"
    )
    texts = ["".join(draw.choices(alphabet, k=draw.randrange(1, 12))) + "." for _ in range(40)]
    messages = [Message(text, draw.choice(["ham", "spam"])) for text in texts]
    write_messages(tmp_path / "m.csv", messages)
    assert load_messages(tmp_path / "m.csv") == messages


def test_a_carriage_return_survives(tmp_path):
    """The random texts contain it too. csv does not quote it where lines end with a newline."""
    write_messages(tmp_path / "m.csv", [Message("old\rMac", "ham")])
    assert load_messages(tmp_path / "m.csv") == [Message("old\rMac", "ham")]


# --- settings ---


def test_a_name_a_path_or_settings():
    assert DataConfig.of("sms") == DataConfig() != DataConfig(source="hard")
    assert DataConfig.of("demo") == DataConfig(source="hard")  # its former name
    assert DataConfig.of(Path("a") / "b.csv").source == str(Path("a") / "b.csv")
    assert (
        DataConfig(source=Path("b.csv"), val_source="c", test_source=Path("d")).test_source == "d"
    )
    config = DataConfig(encoding="latin1")
    assert DataConfig.of(config) is config and config.encoding == "iso8859-1"


def test_a_pandas_table_is_refused():
    table = pandas.DataFrame({"text": ["a"], "label": ["b"]})
    for given, what in (
        (table, "DataFrame.*to_csv"),
        (table["text"], "Series.*to_csv"),
        ([Message("a", "b")], "list.*write_messages"),
        (None, "NoneType"),
    ):
        for read in (DataConfig.of, load_messages, load_split, check_data, read_lecture_split):
            with pytest.raises(UsageError, match=what):
                read(given)
        with pytest.raises(UsageError, match=what):
            compare("mini", given)


def test_an_error_shows_how_to_make_messages(tmp_path: Path):
    table = pandas.DataFrame({"text": ["a"], "label": ["b"]})
    for given, what in (
        (table, r"DataFrame: \[Message\(text, label\).*df\['label'\]"),
        (table["text"], r"Series: \[Message\(text, label\).*df\['label'\]"),
        (table.to_numpy(), "message 0.*ndarray"),
        ([Message("a", "b"), ("a", "b")], "message 1, counted from 0.*tuple"),
        ("m.csv", "not 'm.csv'"),
        (None, "not None"),
    ):
        write = partial(write_messages, tmp_path / "m.csv")
        for use in (split_messages, partial(folds, n_folds=2), count_labels, write):
            with pytest.raises(DataError, match=what):
                use(given)
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"delimiter": "::"}, "'::'.*auto, comma"),
        ({"header": "no"}, "header = 'no'"),
        ({"on_error": "ignore"}, "'ignore'.*stop, skip"),
        ({"encoding": "zlib"}, "'zlib'"),
        ({"balance": 1}, "balance = 1"),
        ({"keep_empty": "no"}, "keep_empty = 'no'"),
        ({"keep_together": "groups"}, "'groups'.*copies, near-duplicates"),
        ({"keep_together": "near-twins"}, "'near-twins'.*'near-duplicates'"),
        ({"val_source": "a.csv"}, "--val-data.*val_source.*needs --test-data"),
        ({"rare_labels": "join"}, "'join'.*stop, drop, keep, join:other"),
        ({"rare_labels": "join: "}, "'join: '"),
        ({"rare_labels": "ignore"}, "'ignore'"),
        ({"val_source": "a", "test_source": "b", "balance": True}, "balance"),
        (
            {"val_source": "a", "test_source": "b", "keep_together": "near-duplicates"},
            "keep_together",
        ),
    ],
)
def test_senseless_settings_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        DataConfig(**options)


def test_true_is_not_the_number_one(tmp_path):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": True}]
    message = refusal(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
    assert "line 2: the label is true" in message


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "1", "2"], ["1", "2", "9", "10"]),
        (["1.5", "-3", "10", "1e1", "-20", "0"], ["-20", "-3", "0", "1.5", "10", "1e1"]),
        (["unknown", "10", "2", "Other"], ["2", "10", "Other", "unknown"]),
        (["b2", "b10", "a", "B"], ["B", "a", "b10", "b2"]),
        (
            ["١", "2", "nan", "inf", "1_0"],
            ["2", "1_0", "inf", "nan", "١"],
        ),  # these do not count as numbers
    ],
)
def test_numbers_sort_as_numbers(labels, expected):
    messages = [Message(label, label) for label in labels]
    assert in_order(labels) == [*count_labels(messages)] == expected
    assert label_names(messages, "classification") == tuple(expected)
    sets = [Message(label, (label,)) for label in labels]
    assert label_names(sets, "multi-label") == tuple(expected)


def test_the_tag_o_comes_first():
    words = tuple(Span(n, n + 1, tag) for n, tag in enumerate(["B-x", "10", "O", "9"]))
    assert label_names([Message("abcd", words)], "token-classification") == ("O", "9", "10", "B-x")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (np.str_("ham"), "ham"),
        (np.float64(1.5), 1.5),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        ((np.float64(1.5), np.int32(2)), (1.5, 2)),
        ([np.str_("a"), "b"], ["a", "b"]),
        (np.array([1.5, 2.0]), (1.5, 2.0)),
        (Span(np.int64(0), np.int64(3), np.str_("O")), Span(0, 3, "O")),
        ((Span(np.int64(0), 3, "O"),), (Span(0, 3, "O"),)),
        ({"kind": np.str_("ham"), "n": (np.float64(1),)}, {"kind": "ham", "n": (1.0,)}),
    ],
)
def test_numpy_scalars_become_python_values(label, expected):
    found = Message("text", label).label
    assert found == expected and repr(found) == repr(expected)  # so the types are equal too
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(expected))


@pytest.mark.parametrize("label", [{"b", "a"}, frozenset("ab"), {"kind": {"a"}}, ({"a"},)])
def test_sets_of_labels_are_refused(label):
    with pytest.raises(DataError, match="'text' are a set.*tuple or a list"):
        Message("text", label)


def test_parts_of_labels():
    assert label_parts("spam") == ("spam",) and label_parts(("a", "b")) == ("a", "b")
    assert label_parts((Span(0, 1, "O"), Span(2, 3, "B-x"))) == ("O", "B-x")
    for other in (Span(0, 1), None, (1.0, 2.0), {"a": "b"}, ()):
        assert label_parts(other) == ()


# --- characters ---


@pytest.mark.parametrize("seed", range(10))
def test_halves_against_json(seed: int) -> None:
    """The reference is json, which joins escaped surrogate pairs when it reads them."""
    draw = random.Random(seed)
    for _ in range(200):
        text = "".join(draw.choices("a é😀\ud83d\ude00\udfff\ud800", k=draw.randrange(6)))
        joined = json.loads(json.dumps(text))
        lone = [c for c in joined if unicodedata.category(c) == "Cs"]
        assert has_halves(text) == bool(lone)
        assert without_halves(text) == "".join("\ufffd" if c in lone else c for c in joined)


@pytest.mark.slow
def test_control_characters() -> None:
    every = {c for c in map(chr, range(0x110000)) if unicodedata.category(c) == "Cc"}
    assert {c for c in map(chr, range(0x110000)) if CONTROL.match(c)} == every - set("\t\n\r")


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t1", "\r1", "=cmd|' /C calc'!A0"]
    + ["＝1", "＋1", "－1", "＠SUM(A1)", "﹦1", "−1", '"=1"', '""=1'],
)
def test_no_formula_is_left(text: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerow([for_spreadsheet(text)])
    field = next(csv.reader(io.StringIO(file.getvalue(), newline="")))[0]
    assert field == "'" + text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n=1", "a\n'=1"),
        ("a\r\n=1", "a\r\n'=1"),
        ("a\r@b", "a\r'@b"),
        ("a;=1;-2", "a;'=1;'-2"),
        ("a,＝1", "a,'＝1"),
        ("a\t+1", "a\t'+1"),
        ('a;"=1"', 'a;\'"=1"'),
        ("a\x85=1\u2028=2\x0b=3\x00=4", "a\x85'=1\u2028'=2\x0b'=3\x00'=4"),
        ("\t=1", "'\t'=1"),
        ("=a;=b", "'=a;'=b"),
    ],
)
def test_no_formula_is_left_inside_a_cell(text: str, expected: str) -> None:
    """For readers that treat semicolons, tabs or line ends as the end of a cell."""
    assert for_spreadsheet(text) == expected


@pytest.mark.parametrize("seed", range(5))
def test_no_part_of_a_cell_begins_with_a_formula(seed: int) -> None:
    draw = random.Random(seed)
    signs = "=+-@＝＋－＠"
    for _ in range(500):
        text = "".join(draw.choices("ab;,\n\r\t\x0b\"'" + signs, k=draw.randrange(12)))
        neutral = for_spreadsheet(text)
        for part in re.split("[;,\n\r\t\x0b]", neutral):
            assert not part.lstrip('"').startswith(tuple(signs)), (text, neutral)
        assert not neutral.startswith(("\t", "\r"))
        left, right = text.replace("'", ""), neutral.replace("'", "")
        assert left == right  # no other part changes


def test_a_long_cell_takes_little_time() -> None:
    text = ";" * 200_000 + '"' * 200_000 + "\n" * 200_000
    assert for_spreadsheet(text) == text


@pytest.mark.parametrize("text", ["", "a=1", "'=1", "1-1", " =1", "é", "a, b; c - d", "x\n y-z"])
def test_other_texts_stay(text: str) -> None:
    assert for_spreadsheet(text) == text


def test_no_terminal_control_sequences() -> None:
    assert on_one_line("a\n b\t\x1b[31m\x07\u202e c\x00") == r"a b \x1b[31m\x07\u202e c\x00"
