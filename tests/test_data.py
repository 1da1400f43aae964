"""Messages read, checked and split: held against three-line parsers, pandas and plain counting."""

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path

import pandas
import pytest

from gpt2_from_scratch.data import (
    Message,
    Split,
    count_labels,
    load_messages,
    load_sms_spam,
    read_texts,
    split_messages,
    write_messages,
)
from gpt2_from_scratch.errors import DataError

# what pandas would turn into numbers, truth values or NaN, and what csv must quote
AWKWARD = [
    "NA", "null", "NaN", "None", "123", "007", "1e5", "TRUE", "-", "=1+1", 'say "hi"', '"', '""',
    "a, b", "it's 5 o'clock", "two\nlines", "\n\nthree\n\n\nlines", "old\r\nlines", "  spaces  ",
    "back\\slash", "👩‍👩‍👧‍👦 ok 🇩🇪", "Grüße, £5", "日本語", "\x00\x01\x1b\x7f", "\ufeffmark inside",
]  # fmt: skip


def normalised(text: str) -> str:
    return " ".join(text.lower().split())


@pytest.fixture
def sms_file(shared: Path) -> Path:
    path = shared / "data" / "sms_spam" / "SMSSpamCollection"
    if not path.exists():
        pytest.skip(f"put the SMS Spam Collection into {path.parent} to run this test")
    return path


def refusal(path: Path, raw: bytes | str) -> str:
    """The message with which a file of these bytes is refused; it always names the file."""
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(DataError) as error:
        load_messages(path)
    assert str(path) in str(error.value)
    return str(error.value)


# --- the SMS Spam Collection ---


def test_the_collection_is_whole(sms_file):
    """The readme that comes with it says 5,574 messages, 4,827 ham and 747 spam."""
    messages = load_sms_spam(sms_file)
    lines = sms_file.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    assert [(m.label, m.text) for m in messages] == [tuple(line.split("\t")) for line in lines]
    assert Counter(m.label for m in messages) == {"ham": 4827, "spam": 747}
    assert len(messages) == 5574 and len({m.text for m in messages}) == 5171
    assert load_messages(sms_file) == load_messages(str(sms_file)) == messages


def test_quotes_are_ordinary_characters_in_the_collection(sms_file):
    """The trap: read with csv's quotes, as pandas does by default, two messages are swallowed."""
    by_default = pandas.read_csv(sms_file, sep="\t", header=None)
    as_they_stand = pandas.read_csv(
        sms_file, sep="\t", header=None, quoting=csv.QUOTE_NONE, keep_default_na=False
    )
    ours = [m.text for m in load_sms_spam(sms_file)]
    assert (len(by_default), len(as_they_stand)) == (5572, 5574)
    assert ours == as_they_stand[1].tolist()
    theirs = set(by_default[1])
    assert sum(text not in theirs for text in ours) == 53 + 2


def test_another_count_is_another_file(sms_file, tmp_path):
    path = tmp_path / "SMSSpamCollection"
    raw = sms_file.read_bytes()
    for changed in (raw[raw.index(b"\n") + 1 :], raw + b"spam\tonce more\n", raw.replace(b"ham\t", b"Ham\t", 1)):  # fmt: skip
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"SMSSpamCollection holds .* 4827, 'spam': 747"):
            load_messages(path)
    path.write_bytes(raw.replace(b"\nspam\tFree", b"\nspam Free", 1))
    with pytest.raises(DataError, match="SMSSpamCollection, line 3: expected label, tab, text"):
        load_messages(path)


def test_the_collection_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path))
    with pytest.raises(DataError, match="is missing; get it with: gpt2-classifier download sms"):
        load_messages("sms")


def test_the_collection_lies_at_home(sms_file, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "sms_spam"
    folder.mkdir(parents=True)
    (folder / "SMSSpamCollection").write_bytes(sms_file.read_bytes())
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path))
    assert load_messages("sms") == load_sms_spam(sms_file)


# --- the demo messages ---


def test_the_demo_is_balanced_and_distinct():
    messages = load_messages()
    assert messages == load_messages("demo")
    assert count_labels(messages) == {"ham": 300, "spam": 300}
    assert len({normalised(m.text) for m in messages}) == 600


def test_the_demo_is_not_from_the_collection(sms_file):
    collection = {normalised(m.text) for m in load_sms_spam(sms_file)}
    assert not [m.text for m in load_messages() if normalised(m.text) in collection]


# --- tables ---


def as_csv(rows: list[tuple[str, str]]) -> str:
    """RFC 4180 by hand: every field in quotes, quotes doubled."""
    lines = [("label", "text"), *rows]
    return "".join(",".join(f'"{f.replace(chr(34), 2 * chr(34))}"' for f in row) + "\n" for row in lines)  # fmt: skip


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
        for raw in (form(rows), "\ufeff" + form(rows), form(rows).replace("\n", "\r\n"), form(rows)[:-1]):  # fmt: skip
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
    """str.splitlines also cuts at these; csv does not, and spreadsheets write them unquoted."""
    path = tmp_path / "messages.csv"
    path.write_bytes(f"label,text\nham,one{character}two\n".encode())
    assert load_messages(path) == [Message(f"one{character}two", "ham")]


def test_other_columns_and_their_order_do_not_matter(tmp_path):
    path = tmp_path / "messages.csv"
    path.write_text("id,body,kind,note\n1,hello,ham,\n2,win,spam,x\n")
    found = load_messages(path, text_column="body", label_column="kind")
    assert found == [Message("hello", "ham"), Message("win", "spam")]
    path = tmp_path / "messages.jsonl"
    path.write_text('{"kind": "ham", "n": [1], "body": "hello"}\n\n{"body": "win", "kind": "spam"}')
    assert load_messages(path, text_column="body", label_column="kind") == found


def test_empty_csv_rows_are_passed_over(tmp_path):
    path = tmp_path / "messages.csv"
    path.write_text("label,text\n\nham,one\n\n\nham,two\n\n")
    assert [m.text for m in load_messages(path)] == ["one", "two"]


# --- what is refused ---


def test_what_is_no_file(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="is not a file, nor one of the data sets") as error:
            load_messages(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["messages.txt", "messages.xlsx", "messages", "messages.csv.gz"])
def test_a_suffix_that_says_nothing(tmp_path, name):
    assert "must end in .csv, .tsv or .jsonl" in refusal(tmp_path / name, "label,text\nham,a\n")


@pytest.mark.parametrize(
    "header", ["", "label", "Label,Text", "text,text,label", "label,label,text", "label;text"]
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_columns_must_be_there_once(tmp_path, header, suffix):
    if suffix == "tsv":
        header = header.replace(",", "\t")
    message = refusal(tmp_path / f"messages.{suffix}", f"{header}\nham,a\n")
    assert "expected one column" in message and "--text-column" in message
    if header:  # what was found is told; an empty first line is passed over in a .csv
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
    assert f"line {line}: byte {len(latin_1) - 2} (0xe9) is not UTF-8; save" in message
    assert "line 1: byte 0 (0xff) is not UTF-8" in refusal(path, form([("ham", "a")]).encode("utf-16"))  # fmt: skip
    refusal(path, form([("ham", "a")]).encode("utf-16-le"))  # valid UTF-8, and yet no table


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
def test_nothing_in_it(tmp_path, name):
    refusal(tmp_path / name, "")
    header = {"m.csv": "label,text\n", "m.tsv": "label\ttext\n", "m.jsonl": "\n\n"}[name]
    assert "holds no messages" in refusal(tmp_path / name, header)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "expected strings under the keys"),
        ('"label"', "expected strings under the keys"),
        ("null", "expected strings under the keys"),
        ('{"label": "ham"}', "expected strings under the keys"),
        ('{"label": "ham", "text": 123}', "expected strings under the keys"),
        ('{"label": 1, "text": "a"}', "expected strings under the keys"),
        ('{"label": "ham", "text": null}', "expected strings under the keys"),
        ('{"label": "ham", "text": ["a"]}', "expected strings under the keys"),
        ('{"label": "ham", "text": "a"', "not JSON"),
        ("{'label': 'ham', 'text': 'a'}", "not JSON"),
        ("ham,a", "not JSON"),
        ('{"label": "ham", "text": "a", "n": ' + "1" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
    ids=lambda value: value[:40],
)
def test_jsonl_that_is_no_message(tmp_path, line, message):
    raw = f'{{"label": "ham", "text": "a"}}\n\n{line}\n'
    assert f"m.jsonl, line 3: {message}" in refusal(tmp_path / "m.jsonl", raw)


# --- texts to classify ---


def test_texts_may_be_empty(tmp_path):
    (tmp_path / "t.csv").write_text('id,text\n1,"a\nb"\n2,\n3,NA\n')
    assert list(read_texts(tmp_path / "t.csv")) == ["a\nb", "", "NA"]
    (tmp_path / "t.txt").write_text('one\n\n"two", 3\n')
    assert list(read_texts(tmp_path / "t.txt")) == ["one", "", '"two", 3']
    with pytest.raises(DataError, match="none.txt is not a file"):
        read_texts(tmp_path / "none.txt")


# --- writing ---


def test_what_is_written_is_read_back(tmp_path):
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
    """The random texts hold it too; csv leaves it unquoted where lines end with a newline."""
    write_messages(tmp_path / "m.csv", [Message("old\rMac", "ham")])
    assert load_messages(tmp_path / "m.csv") == [Message("old\rMac", "ham")]


# --- splitting ---


def made_up(ham: int = 60, spam: int = 30) -> list[Message]:
    """Distinct texts, the labels in turn."""
    messages = [Message(f"see you at {n}", "ham") for n in range(ham)]
    messages += [Message(f"win {n} now", "spam") for n in range(spam)]
    random.Random(0).shuffle(messages)
    return messages


def parts(split: Split) -> list[list[Message]]:
    return [split.train, split.val, split.test]


def test_the_lecture_numbers_without_its_leak(sms_file):
    """653 spam texts are distinct, 457 + 65 + 131; the lecture's 747 count copies too."""
    messages = load_sms_spam(sms_file)
    assert len({m.text for m in messages if m.label == "spam"}) == 653
    split = split_messages(messages, balance=True)
    assert [len(part) for part in parts(split)] == [914, 130, 262]
    for part, each in zip(parts(split), (457, 65, 131), strict=True):
        assert Counter(m.label for m in part) == {"ham": each, "spam": each}
    assert sum(len({m.text for m in part}) for part in parts(split)) == 653 * 2
    assert len({m.text for part in parts(split) for m in part}) == 653 * 2


def test_no_text_stands_in_two_parts(sms_file):
    messages = load_sms_spam(sms_file)
    for keep in (False, True):
        train, val, test = ({m.text for m in p} for p in parts(split_messages(messages, keep_duplicates=keep)))  # fmt: skip
        assert not train & val and not train & test and not val & test
        assert train | val | test == {m.text for m in messages}


def test_each_distinct_text_once():
    messages = made_up()
    found = [m for part in parts(split_messages(messages * 3)) for m in part]
    assert Counter(found) == Counter(messages)


def test_copies_stay_together_and_none_is_lost(sms_file):
    messages = load_sms_spam(sms_file)
    split = split_messages(messages, keep_duplicates=True)
    assert sum((Counter(part) for part in parts(split)), Counter()) == Counter(messages)


def test_a_seed_gives_one_split():
    messages = made_up()
    assert split_messages(messages) == split_messages(messages) == split_messages(messages, seed=123)  # fmt: skip
    others = [split_messages(messages, seed=seed) for seed in range(5)]
    assert len({tuple(other.train) for other in others}) == 5
    assert len({frozenset(other.test) for other in others}) == 5


def test_the_split_is_pinned():
    """numpy's RandomState is frozen, so this holds on every machine, for good."""
    messages = [Message(f"{label} {n}", label) for label in ("ham", "spam") for n in range(10)]
    split = split_messages(messages, seed=1)
    assert [m.text for m in split.val] == ["ham 7", "spam 1"]
    assert [m.text for m in split.test] == ["spam 7", "spam 6", "ham 8", "ham 5"]


def test_the_order_is_random():
    """Labels stand mixed, so that a step sees both."""
    labels = [m.label for m in split_messages(made_up(200, 200)).train]
    changes = sum(a != b for a, b in zip(labels, labels[1:], strict=False))
    assert 100 < changes < 180  # of 279; sorted by label it would be one


@pytest.mark.parametrize(("ham", "spam"), [(60, 30), (10, 10), (1000, 10), (37, 83)])
def test_every_part_keeps_the_proportions(ham, spam):
    split = split_messages(made_up(ham, spam))
    for label, n in (("ham", ham), ("spam", spam)):
        found = [count_labels(part)[label] for part in parts(split)]
        assert found == [n * 7 // 10, n // 10, n - n * 7 // 10 - n // 10]


def test_balance_takes_as_many_as_the_rarest_has():
    split = split_messages(made_up(100, 20), balance=True)
    for part, each in zip(parts(split), (14, 2, 4), strict=True):
        assert count_labels(part) == {"ham": each, "spam": each}


def test_three_labels():
    messages = [Message(f"{label} {n}", label) for label in "abc" for n in range(20)]
    assert [count_labels(p) for p in parts(split_messages(messages))] == [
        dict.fromkeys("abc", n) for n in (14, 2, 4)
    ]


def test_one_text_with_two_labels_is_refused():
    messages = [*made_up(), Message("see you at 7", "spam")]
    with pytest.raises(DataError, match=r"two labels \['ham', 'spam'\]: 'see you at 7'"):
        split_messages(messages)


@pytest.mark.parametrize("messages", [[], made_up(60, 0)], ids=["none", "ham only"])
def test_one_label_is_nothing_to_tell_apart(messages):
    with pytest.raises(DataError, match="one label only"):
        split_messages(messages)


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("rare", ["ham", "spam"])
def test_too_few_texts_are_refused(balance, rare):
    """And the label that has too few is the one named."""
    counts = {"ham": 50, "spam": 50, rare: 9}
    with pytest.raises(DataError, match=f"9 texts of label '{rare}' are too few; 10 are needed"):
        split_messages(made_up(**counts), balance=balance)


def test_copies_do_not_make_up_for_texts():
    with pytest.raises(DataError, match="9 texts of label 'spam' are too few"):
        split_messages([*made_up(50, 9)] * 5, keep_duplicates=True)
