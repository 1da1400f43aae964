"""Examples of every task: read from each of their forms, written and read back, faults with lines."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from said import listen

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.data.formats import TASKS, label_names, load_examples, write_examples
from gpt2_from_scratch.data.messages import Message, Span, load_messages, read_texts
from gpt2_from_scratch.errors import DataError, UsageError

TEXTS = [
    "one, two",
    'a "quoted" text',
    "Grüße\nline",
    "👍🏽 語",
    "\ttab",
    "'",
    "x|y",
    "NA",
    "a\u2028b",
]


def csv_of(rows: list[list[Any]]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    return file.getvalue()


def jsonl_of(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(path: Path, raw: str, task: str, **options: Any) -> list[Message]:
    path.write_text(raw, "utf-8", newline="")
    return load_examples(path, task, **options)


def refused(path: Path, raw: str, task: str, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        load(path, raw, task, **options)
    assert str(path) in str(error.value)
    return str(error.value)


# --- each task from each form ---


def test_classification_is_load_messages(tmp_path: Path):
    assert load_examples("demo") == load_messages() == load_examples("demo", "classification")
    (tmp_path / "a.tsv").write_text("words\tclass\na\tx\n\ty\nb\tz\n", "latin-1")
    options = {"text_column": "words", "label_column": "class", "encoding": "latin-1"}
    told = listen()
    found = load_examples(tmp_path / "a.tsv", on_error="skip", **options)
    assert found == [Message("a", "x"), Message("b", "z")] and "line 3" in told[0]
    assert len(load_examples(tmp_path / "a.tsv", keep_empty=True, **options)) == 3


def test_multi_label(tmp_path: Path):
    labels = [["b", "a"], [], ["a"], ["long label", "a", "b"], [], ["é"], ["b"], ["a"], []]
    expected = [Message(text, tuple(found)) for text, found in zip(TEXTS, labels, strict=True)]
    rows = [[text, "|".join(found)] for text, found in zip(TEXTS, labels, strict=True)]
    assert load(tmp_path / "a.csv", csv_of([["text", "label"], *rows]), "multi-label") == expected
    keyed = [{"text": m.text, "label": list(m.label)} for m in expected]
    assert load(tmp_path / "a.jsonl", jsonl_of(keyed), "multi-label") == expected
    assert load(tmp_path / "a.tsv", "label\ttext\na|b\tone\n\ttwo\n", "multi-label") == [
        Message("one", ("a", "b")),
        Message("two", ()),
    ]


def test_regression(tmp_path: Path):
    raw = "text,score,price\none,1.5,-2\ntwo, 3e2 ,.5\nthree,+4.,0\n"
    both = load(tmp_path / "a.csv", raw, "regression", label_column="price,score")
    assert both == [
        Message("one", (-2.0, 1.5)),
        Message("two", (0.5, 300.0)),
        Message("three", (0.0, 4.0)),
    ]
    one = load(tmp_path / "a.csv", raw, "regression", label_column="score")
    assert [m.label for m in one] == [(1.5,), (300.0,), (4.0,)]
    assert all(type(n) is float for m in [*both, *one] for n in m.label)
    rows = [{"text": "a", "score": 1, "price": 2.5}, {"text": "b", "score": -1e-3, "price": 7}]
    both = load(tmp_path / "a.jsonl", jsonl_of(rows), "regression", label_column="score,price")
    assert [m.label for m in both] == [(1.0, 2.5), (-0.001, 7.0)]
    lists = jsonl_of([{"text": "a", "label": [1, 2]}, {"text": "b", "label": [3, 4.5]}])
    assert [m.label for m in load(tmp_path / "b.jsonl", lists, "regression")] == [(1, 2), (3, 4.5)]


def test_token_classification(tmp_path: Path):
    expected = [Message("New York", (Span(0, 3, "B-x"), Span(4, 8, "I-x")))]
    for name in ("a.conll", "a.bio", "a.iob", "a.txt", "a.annotated", "train"):
        assert load(tmp_path / name, "New\tB-x\nYork\tI-x\n", "token-classification") == expected
    row = {"text": "New York", "label": [[0, 3, "B-x"], [4, 8, "I-x"]]}
    found = load(tmp_path / "a.jsonl", jsonl_of([row]), "token-classification")
    assert found == expected and all(type(span) is Span for span in found[0].label)


def test_span(tmp_path: Path):
    question = {"id": "1", "question": "Who?", "answers": [{"text": "Alex", "answer_start": 3}]}
    data = {"data": [{"paragraphs": [{"context": "It Alex was", "qas": [question]}]}]}
    expected = [Message("Who?\nIt Alex was", Span(8, 12))]
    assert load(tmp_path / "a.json", json.dumps(data), "span") == expected
    row = {"text": "Who?\nIt Alex was", "label": [8, 12]}
    found = load(tmp_path / "a.jsonl", jsonl_of([row]), "span")
    assert found == expected and type(found[0].label) is Span


@pytest.mark.parametrize("task", ["language", "features"])
def test_texts_alone(tmp_path: Path, task: str):
    expected = [Message("one", None), Message("two, three", None)]
    assert load(tmp_path / "a.csv", 'id,text\n1,one\n2,"two, three"\n', task) == expected
    assert load(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": "two, three"}\n', task) == expected
    assert load(tmp_path / "a.txt", "one\ntwo, three\n", task) == expected
    assert load_examples("demo", task) == [Message(m.text, None) for m in load_messages("demo")]


def test_the_collection_without_its_labels(sms_file: Path):
    found = load_examples(sms_file, "language")
    assert found == [Message(m.text, None) for m in load_messages(sms_file)]


def test_other_encodings(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes("text,label\nGrüße,1\n".encode("cp1252"))
    found = load_examples(tmp_path / "a.csv", "regression", encoding="cp1252")
    assert found == [Message("Grüße", (1.0,))]
    (tmp_path / "a.txt").write_bytes("Grüße\tO\n".encode("utf-16"))
    found = load_examples(tmp_path / "a.txt", "token-classification", encoding="utf-16")
    assert found == [Message("Grüße", (Span(0, 5, "O"),))]
    with pytest.raises(UsageError, match="no encoding"):
        load_examples(tmp_path / "a.csv", "regression", encoding="utf-99")


# --- faults ---


@pytest.mark.parametrize(
    ("task", "label", "what"),
    [
        ("multi-label", '"a"', "a list of strings"),
        ("multi-label", "null", "a list of strings"),
        ("multi-label", "[1]", "a list of strings"),
        ("multi-label", '["a", "a"]', "stands there twice"),
        ("multi-label", '["a", " "]', "a label is empty"),
        ("regression", '"1.5"', "'1.5' is no number"),
        ("regression", "true", "True is no number"),
        ("regression", "null", "None is no number"),
        ("regression", "NaN", "NaN is no value in JSON"),
        ("regression", "-Infinity", "is no value in JSON"),
        ("regression", "1e999", "is no number, or is too large"),
        ("regression", "1" + 400 * "0", "is no number, or is too large"),
        ("regression", "[1, [2]]", "[2] is no number"),
        ("regression", "[]", "numbers, found 0"),
        ("regression", "[1, 2]", "expected 1 numbers, found 2"),
        ("token-classification", "[]", "a list of [start, end, tag]"),
        ("token-classification", '{"a": 1}', "a list of [start, end, tag]"),
        ("token-classification", "[[0, 1]]", "expected [start, end, tag]"),
        ("token-classification", '[[0, 1, ""]]', "expected [start, end, tag]"),
        ("token-classification", "[[0, 1, 5]]", "expected [start, end, tag]"),
        ("token-classification", '[[0, 2, "x"], [1, 3, "x"]]', "from 2 to 5"),
        ("token-classification", '[[2, 3, "x"], [0, 1, "x"]]', "from 3 to 5"),
        ("token-classification", '[[0, 6, "x"]]', "from 0 to 5"),
        ("token-classification", '[[1, 1, "x"]]', "is no start and end"),
        ("token-classification", '[[false, true, "x"]]', "is no start and end"),
        ("span", "[0, 6]", "[0, 6] is no start and end, in this order, from 0 to 5"),
        ("span", "[-1, 3]", "is no start and end"),
        ("span", "[3, 3]", "is no start and end"),
        ("span", "[3, 2]", "is no start and end"),
        ("span", "[0.0, 2]", "is no start and end"),
        ("span", "[0, 2, 3]", "expected [start, end]"),
        ("span", "5", "expected [start, end]"),
    ],
)
def test_json_labels_that_are_none(tmp_path: Path, task: str, label: str, what: str):
    good = {"multi-label": '["a"]', "regression": "1", "span": "[0, 1]"}.get(task, '[[0, 5, "O"]]')
    row = '{{"text": "12345", "label": {}}}\n'
    raw = row.format(good) + row.format(label) + row.format(good)
    message = refused(tmp_path / "a.jsonl", raw, task)
    assert "a.jsonl, line 2: " in message and what in message and "--on-error skip" in message
    told = listen()
    assert len(load(tmp_path / "a.jsonl", raw, task, on_error="skip")) == 2
    assert len(told) == 1 and what in told[0] and "line 2" in told[0]


@pytest.mark.parametrize("cell", ["nan", "inf", "ham", "", "1_000", '"1,5"', "1e999", "0x10", "١"])
def test_cells_that_are_no_numbers(tmp_path: Path, cell: str):
    raw = f"text,label\na,1\nb,{cell}\n"
    assert "line 3: " in (message := refused(tmp_path / "a.csv", raw, "regression"))
    assert "is no number" in message


@pytest.mark.parametrize("cell", ["a|", "|", "a||b", "a|a", " |a"])
def test_cells_that_are_no_labels(tmp_path: Path, cell: str):
    raw = f"text,label\na,a\nb,{cell}\n"
    assert "line 3: a label is empty" in refused(tmp_path / "a.csv", raw, "multi-label")


@pytest.mark.parametrize("task", [task for task in TASKS if task != "classification"])
def test_texts_that_are_empty_or_none(tmp_path: Path, task: str):
    label = {"multi-label": [], "regression": 1}.get(task, [])
    rows = [{"text": "", "label": label}, {"text": 5, "label": label}, {"label": label}]
    wrong = ("the text is empty", "the text must be a string, not 5", "expected the key 'text'")
    for row, what in zip(rows, wrong, strict=True):
        assert f"line 1: {what}" in refused(tmp_path / "a.jsonl", jsonl_of([row]), task)
    if task != "span":  # an answer has characters
        found = load(tmp_path / "a.jsonl", jsonl_of(rows[:1]), task, keep_empty=True)
        assert [m.text for m in found] == [""]


def test_blank_lines_of_a_text(tmp_path: Path):
    assert "line 2: the text is empty" in refused(tmp_path / "a.txt", "one\n\ntwo\n", "language")
    told = listen()
    found = load(tmp_path / "a.txt", "one\n\ntwo\n", "language", on_error="skip")
    assert [m.text for m in found] == ["one", "two"] and "1 of 3 rows" in told[0]
    assert len(load(tmp_path / "a.txt", "one\n\ntwo\n", "language", keep_empty=True)) == 3


def test_faults_of_words_and_questions_are_faults_here(tmp_path: Path):
    raw = "a\tO\n\nword\n\nb\tO\n"
    assert "a.bio, line 3: " in refused(tmp_path / "a.bio", raw, "token-classification")
    told = listen()
    found = load(tmp_path / "a.bio", raw, "token-classification", on_error="skip")
    assert [m.text for m in found] == ["a", "b"] and "1 of 3 rows" in told[0]
    question = {"id": "x7", "question": "Who?", "answers": []}
    data = {"data": [{"paragraphs": [{"context": "Nobody", "qas": [question]}]}]}
    assert "question 'x7'" in refused(tmp_path / "a.json", json.dumps(data), "span")


def test_files_that_do_not_fit_the_task(tmp_path: Path):
    assert "is read from .jsonl, or from .json" in refused(
        tmp_path / "a.csv", "text,label\n", "span"
    )
    assert "one word a line" in refused(tmp_path / "a.tsv", "a\tO\n", "token-classification")
    assert "must end in .csv, .tsv or .jsonl" in refused(tmp_path / "a.txt", "a", "multi-label")
    assert "expected one column 'b'" in refused(
        tmp_path / "a.csv", "text,a\nx,1\n", "regression", label_column="a,b"
    )
    assert "holds no examples of regression" in refused(tmp_path / "a.jsonl", "", "regression")
    with pytest.raises(UsageError, match="task 'ner' is none of classification, multi-label"):
        load_examples("demo", "ner")
    with pytest.raises(UsageError, match="on_error"):
        load(tmp_path / "a.txt", "a", "language", on_error="never")


def test_labels_alike(tmp_path: Path):
    message = refused(tmp_path / "a.csv", "text,label\na,x|y\nb,x | y\n", "multi-label")
    assert "differ in case or white space only" in message and "['x', 'x ']" in message
    message = refused(tmp_path / "a.txt", "a\tB-PER\nb\tB-Per\n", "token-classification")
    assert "['B-PER', 'B-Per']" in message


def test_halves_are_read_as_in_other_tables(tmp_path: Path):
    """And every place stays what it was: one character for each half."""
    raw = '{"text": "\\ud83d ab", "label": [2, 4]}\n'
    assert load(tmp_path / "a.jsonl", raw, "span") == [Message("\ufffd ab", Span(2, 4))]


# --- written and read back ---


def drawn(task: str, draw: random.Random) -> Message:
    text = draw.choice(TEXTS) + str(draw.random())
    cut = sorted(draw.sample(range(len(text) + 1), 4))
    label = {
        "classification": draw.choice("abc"),
        "multi-label": tuple(draw.sample(["a", "é", "c d"], draw.randrange(4))),
        "regression": (draw.gauss(0, 1e3), draw.random() / 3),
        "token-classification": (Span(cut[0], cut[1], "O"), Span(cut[2], cut[3], "B-x")),
        "span": Span(cut[0], cut[3]),
    }.get(task)
    return Message(text, label)


@pytest.mark.parametrize("task", TASKS)
def test_what_was_written_is_read_back(tmp_path: Path, task: str):
    draw = random.Random(task)
    examples = [drawn(task, draw) for _ in range(50)]
    path = tmp_path / "new" / "a.jsonl"
    write_examples(path, examples)
    found = load_examples(path, task)
    assert found == examples
    assert [type(m.label) for m in found] == [type(m.label) for m in examples]
    assert len(path.read_text("utf-8").split("\n")) == 51


@pytest.mark.parametrize(
    "example",
    [
        Message("\ud83d", "a"),
        Message("\ud83d\ude00", "a"),
        Message("a", (float("nan"),)),
        Message("a", {"label": "a"}),
        Message("a", object()),
        Message("a", ("\udc00",)),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, example: Message):
    path = tmp_path / "a.jsonl"
    write_examples(path, [Message("before", "a")])
    with pytest.raises(DataError, match="example 2 cannot be written"):
        write_examples(path, [Message("good", "a"), example])
    assert json.loads(path.read_text("utf-8"))["text"] == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_only_jsonl_is_written(tmp_path: Path):
    with pytest.raises(UsageError, match=".jsonl"):
        write_examples(tmp_path / "a.csv", [Message("a", "b")])


# --- names ---


def test_label_names():
    def names(task: str, *labels: Any) -> tuple[str, ...]:
        return label_names([Message(str(n), label) for n, label in enumerate(labels)], task)

    assert names("classification", "spam", "ham", "spam") == ("ham", "spam")
    assert names("multi-label", ("c",), (), ("b", "a"), ("c", "a")) == ("a", "b", "c")
    tags = (Span(0, 1, "B-x"), Span(1, 2, "O")), (Span(0, 1, "A"), Span(1, 2, "I-x"))
    assert names("token-classification", *tags) == ("O", "A", "B-x", "I-x")
    assert names("regression", (1.0, 2.0), (3.0, 4.0)) == ("value_0", "value_1")
    assert names("span", Span(0, 1)) == names("language", None) == names("features", None) == ()


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ("classification", ("a",)),
        ("multi-label", "ab"),
        ("regression", 1.0),
        ("multi-label", None),
        ("token-classification", Span(0, 1, "x")),
    ],
)
def test_names_of_another_tasks_labels(task: str, label: Any):
    with pytest.raises(DataError, match=f"is no label of {task}"):
        label_names([Message("a", label)], task)


@pytest.mark.parametrize("task", TASKS)
def test_a_head_takes_these_names(task: str):
    draw = random.Random(1)
    HeadConfig(task=task, labels=label_names([drawn(task, draw) for _ in range(50)], task))


@pytest.mark.parametrize("name", ["squad.json", "train.conll", "TRAIN.CONLL"])
def test_labelled_files_are_no_lines_of_texts(tmp_path: Path, name: str) -> None:
    """`predict --file train.conll` would classify its lines, tags and all."""
    (tmp_path / name).write_text("Alex B-person\n")
    with pytest.raises(DataError, match="texts are read from"):
        read_texts(tmp_path / name)
