"""Examples of every task: each file format, writing and reading back, faults with their lines."""

import csv
import io
import json
import random
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from said import listen

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.tagging import entities, is_bio
from gpt2_from_scratch.data import formats
from gpt2_from_scratch.data.formats import (
    TASKS,
    context_of,
    context_start,
    label_names,
    load_examples,
    read_conll,
    read_squad,
    write_examples,
)
from gpt2_from_scratch.data.messages import (
    DataConfig,
    GoldAnswers,
    Message,
    Span,
    gold_answers,
    load_messages,
)
from gpt2_from_scratch.data.split import load_split
from gpt2_from_scratch.data.tables import Fault
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
    return examples(path, task, **options)


def examples(path: Path, task: str = "classification", **options: Any) -> list[Message]:
    return load_examples(DataConfig(source=str(path), **options), task)


def refused(path: Path, raw: str, task: str, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        load(path, raw, task, **options)
    assert str(path) in str(error.value)
    return str(error.value)


# --- each task in each format ---


def test_classification_is_load_messages(tmp_path: Path):
    assert load_examples() == load_messages() == load_examples("sms", "classification")
    (tmp_path / "a.tsv").write_text("words\tclass\na\tx\n\ty\nb\tz\n", "latin-1")
    options = {"text_column": "words", "label_column": "class", "encoding": "latin-1"}
    reported = listen()
    found = examples(tmp_path / "a.tsv", on_error="skip", **options)
    assert found == [Message("a", "x"), Message("b", "z")] and "line 3" in reported[0]
    assert len(examples(tmp_path / "a.tsv", keep_empty=True, **options)) == 3


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


CASES = Path(__file__).parents[1] / "fixtures" / "cases"


def test_labels_separated_by_commas():
    found = examples(CASES / "multi_comma.csv", "multi-label")
    with (CASES / "multi_comma.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [m.text for m in found] == [row["text"] for row in rows]
    assert [m.label for m in found] == [tuple(filter(None, r["label"].split(","))) for r in rows]
    assert label_names(found, "multi-label") == ("login", "net")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["a, b", "b", "a"], [("a", "b"), ("b",), ("a",)]),
        (["a;b", "b;c", "", "c"], [("a", "b"), ("b", "c"), (), ("c",)]),
        (["a,b|c", "c"], [("a,b", "c"), ("c",)]),  # a bar in one cell: bars separate in all cells
        (["Smith, John", "Smith, Jane", "Lee, Ann"], None),  # names, few of which occur twice
        (["news, local"], None),
        (["a;", "b"], None),
    ],
)
def test_the_label_separator(tmp_path: Path, cells: list[str], expected):
    rows = csv_of([["text", "label"], *(["t", cell] for cell in cells)])
    found = [m.label for m in load(tmp_path / "a.csv", rows, "multi-label")]
    assert found == (expected or [(cell,) for cell in cells])


@pytest.mark.parametrize("written", [json.dumps, repr])
def test_lists_in_cells(tmp_path: Path, written: Any):
    labels = [["net", "login"], [], ["user account"], ["it's", "café, bar|x"]]
    rows = [["text", "label"], *([f"text {n}", written(x)] for n, x in enumerate(labels))]
    found = load(tmp_path / "lists.csv", csv_of(rows), "multi-label")
    assert [m.label for m in found] == [*map(tuple, labels)]
    form = formats.form_in_words(DataConfig(str(tmp_path / "lists.csv")), "multi-label")
    assert form.endswith("labels of a text in a list")
    mixed = csv_of([["text", "label"], ["t", written(["a"])], ["t", "b, c"], ["t", "c, b"]])
    found = load(tmp_path / "mixed.csv", mixed, "multi-label")
    assert [m.label for m in found] == [("a",), ("b", "c"), ("c", "b")]


@pytest.mark.parametrize("cell", ["['a' 'b']", "[a, b]", "[1, 2]", "['a', nan]", "['it\\'s']"])
def test_lists_that_are_not_of_strings_are_faults(tmp_path: Path, cell: str):
    with pytest.raises(DataError, match="line 3: expected a list such as"):
        load(
            tmp_path / "a.csv",
            csv_of([["text", "label"], ["t", "a|b"], ["t", cell]]),
            "multi-label",
        )


def test_all_files_separate_labels_alike(tmp_path: Path):
    """A file with a single combination of labels would otherwise read it as one label."""
    names = ["a.csv", "b.csv", "c.csv"]
    for name, cells in zip(names, (["a,b", "a", "b"], ["a,b"], ["b,a"]), strict=True):
        rows = [["text", "label"], *([f"{name} {n}", cell] for n, cell in enumerate(cells))]
        (tmp_path / name).write_text(csv_of(rows))
    split = load_split(DataConfig(*(str(tmp_path / name) for name in names)), "multi-label")
    assert [m.label for m in split.val + split.test] == [("a", "b"), ("b", "a")]


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
    rows = [row | {"label": [[8, 12], [5, 7], [8, 12]]}, row | {"label": [[8, 12], [8, 12]]}]
    several, one = load(tmp_path / "b.jsonl", jsonl_of(rows), "span")
    assert several.label == (Span(8, 12), Span(5, 7)) and type(several.label) is GoldAnswers
    assert one == expected[0]


@pytest.mark.parametrize("task", ["language", "features"])
def test_texts_alone(tmp_path: Path, task: str):
    expected = [Message("one", None), Message("two, three", None)]
    assert load(tmp_path / "a.csv", 'id,text\n1,one\n2,"two, three"\n', task) == expected
    assert load(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": "two, three"}\n', task) == expected
    assert load(tmp_path / "a.txt", "one\ntwo, three\n", task) == expected
    assert load_examples("hard", task) == [Message(m.text, None) for m in load_messages("hard")]


@pytest.mark.slow
def test_the_collection_without_its_labels(sms_file: Path):
    found = load_examples(sms_file, "language")
    assert found == [Message(m.text, None) for m in load_messages(sms_file)]


def test_other_encodings(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes("text,label\nGrüße,1\n".encode("cp1252"))
    found = examples(tmp_path / "a.csv", "regression", encoding="cp1252")
    assert found == [Message("Grüße", (1.0,))]
    (tmp_path / "a.txt").write_bytes("Grüße\tO\n".encode("utf-16"))
    found = examples(tmp_path / "a.txt", "token-classification", encoding="utf-16")
    assert found == [Message("Grüße", (Span(0, 5, "O"),))]
    with pytest.raises(UsageError, match="utf-99"):
        examples(tmp_path / "a.csv", "regression", encoding="utf-99")


# --- faults ---


@pytest.mark.parametrize(
    ("task", "label", "what"),
    [
        ("multi-label", '"a"', "a list of strings"),
        ("multi-label", "null", "a list of strings"),
        ("multi-label", "[1]", "a list of strings"),
        ("multi-label", '["a", "a"]', "occurs twice"),
        ("multi-label", '["a", " "]', "a label is empty"),
        ("regression", '"1.5"', "'1.5' is not a number"),
        ("regression", "true", "True is not a number"),
        ("regression", "null", "None is not a number"),
        ("regression", "NaN", "NaN"),
        ("regression", "-Infinity", "-Infinity"),
        ("regression", "1e999", "is not a number, or it is too large"),
        ("regression", "1" + 400 * "0", "is not a number, or it is too large"),
        ("regression", "[1, [2]]", "[2] is not a number"),
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
        ("token-classification", '[[1, 1, "x"]]', "is not a start and an end"),
        ("token-classification", '[[false, true, "x"]]', "is not a start and an end"),
        ("span", "[0, 6]", "[0, 6] is not a start and an end, in this order, from 0 to 5"),
        ("span", "[-1, 3]", "is not a start and an end"),
        ("span", "[3, 3]", "is not a start and an end"),
        ("span", "[3, 2]", "is not a start and an end"),
        ("span", "[0.0, 2]", "is not a start and an end"),
        ("span", "[0, 2, 3]", "expected [start, end]"),
        ("span", "5", "expected [start, end]"),
        ("span", "[]", "expected [start, end]"),
        ("span", "[[0, 2], 5]", "expected [start, end] or a list of these"),
        ("span", "[[0, 2], [1]]", "expected [start, end] or a list of these"),
        ("span", "[[0, 2], [3, 9]]", "[3, 9] is not a start and an end"),
    ],
)
def test_invalid_json_labels(tmp_path: Path, task: str, label: str, what: str):
    good = {"multi-label": '["a"]', "regression": "1", "span": "[0, 1]"}.get(task, '[[0, 5, "O"]]')
    row = '{{"text": "12345", "label": {}}}\n'
    raw = row.format(good) + row.format(label) + row.format(good)
    message = refused(tmp_path / "a.jsonl", raw, task)
    assert "a.jsonl, line 2: " in message and what in message and "--on-error skip" in message
    reported = listen()
    assert len(load(tmp_path / "a.jsonl", raw, task, on_error="skip")) == 2
    assert len(reported) == 1 and what in reported[0] and "line 2" in reported[0]


@pytest.mark.parametrize("cell", ["nan", "inf", "ham", "", "1_000", '"1,5"', "1e999", "0x10", "١"])
def test_cells_that_are_not_numbers(tmp_path: Path, cell: str):
    raw = f"text,label\na,1\nb,{cell}\n"
    assert "line 3: " in (message := refused(tmp_path / "a.csv", raw, "regression"))
    assert "is not a number" in message


@pytest.mark.parametrize("cell", ["a|", "|", "a||b", "a|a", " |a"])
def test_cells_that_are_not_labels(tmp_path: Path, cell: str):
    raw = f"text,label\na,a\nb,{cell}\n"
    assert "line 3: a label is empty" in refused(tmp_path / "a.csv", raw, "multi-label")


@pytest.mark.parametrize("task", [task for task in TASKS if task != "classification"])
def test_texts_that_are_empty_or_none(tmp_path: Path, task: str):
    label = {"multi-label": [], "regression": 1, "token-regression": 1}.get(task, [])
    rows = [{"text": "", "label": label}, {"text": 5, "label": label}, {"label": label}]
    wrong = ("the text is empty", "the text must be a string, not 5", "expected the key 'text'")
    for row, what in zip(rows, wrong, strict=True):
        assert f"line 1: {what}" in refused(tmp_path / "a.jsonl", jsonl_of([row]), task)
    if task != "span":  # a span needs at least one character
        found = load(tmp_path / "a.jsonl", jsonl_of(rows[:1]), task, keep_empty=True)
        assert [m.text for m in found] == [""]


def test_blank_lines_of_a_text(tmp_path: Path):
    assert "line 2: the text is empty" in refused(tmp_path / "a.txt", "one\n\ntwo\n", "language")
    reported = listen()
    found = load(tmp_path / "a.txt", "one\n\ntwo\n", "language", on_error="skip")
    assert [m.text for m in found] == ["one", "two"] and "1 of 3 rows" in reported[0]
    assert len(load(tmp_path / "a.txt", "one\n\ntwo\n", "language", keep_empty=True)) == 3


def test_faults_of_words_and_questions_are_faults_here(tmp_path: Path):
    raw = "a\tO\n\nword\n\nb\tO\n"
    assert "a.bio, line 3: " in refused(tmp_path / "a.bio", raw, "token-classification")
    reported = listen()
    found = load(tmp_path / "a.bio", raw, "token-classification", on_error="skip")
    assert [m.text for m in found] == ["a", "b"] and "1 of 3 rows" in reported[0]
    question = {"id": "x7", "question": "Who?", "answers": []}
    data = {"data": [{"paragraphs": [{"context": "Nobody", "qas": [question]}]}]}
    assert "question 'x7'" in refused(tmp_path / "a.json", json.dumps(data), "span")


def test_files_that_do_not_fit_the_task(tmp_path: Path):
    assert "span needs a .jsonl file, or a .json" in refused(
        tmp_path / "a.csv", "text,label\n", "span"
    )
    assert ".conll or .txt" in refused(tmp_path / "a.tsv", "a\tO\n", "token-classification")
    assert ".csv, .tsv or .jsonl" in refused(tmp_path / "a.txt", "a", "multi-label")
    assert "expected one column 'b'" in refused(
        tmp_path / "a.csv", "text,a\nx,1\n", "regression", label_column="a,b"
    )
    assert "contains no examples of regression" in refused(tmp_path / "a.jsonl", "", "regression")
    with pytest.raises(UsageError, match="unknown task 'ner'; .*classification, multi-label"):
        load_examples("hard", "ner")
    with pytest.raises(UsageError, match="on_error"):
        load(tmp_path / "a.txt", "a", "language", on_error="never")


def test_labels_alike(tmp_path: Path):
    message = refused(tmp_path / "a.csv", "text,label\na,x|y\nb,x | y\n", "multi-label")
    assert "white space or Unicode form" in message and "['x', 'x ']" in message
    message = refused(tmp_path / "a.txt", "a\tB-PER\nb\tB-Per\n", "token-classification")
    assert "['B-PER', 'B-Per']" in message


def test_halves_are_read_as_in_other_tables(tmp_path: Path):
    """Lone surrogates are replaced one for one, so all character positions stay valid."""
    raw = '{"text": "\\ud83d ab", "label": [2, 4]}\n'
    assert load(tmp_path / "a.jsonl", raw, "span") == [Message("\ufffd ab", Span(2, 4))]


# --- writing and reading back ---


def drawn(task: str, draw: random.Random) -> Message:
    text = draw.choice(TEXTS) + str(draw.random())
    cut = sorted(draw.sample(range(len(text) + 1), 4))
    label = {
        "classification": draw.choice("abc"),
        "multi-label": tuple(draw.sample(["a", "é", "c d"], draw.randrange(4))),
        "regression": (draw.gauss(0, 1e3), draw.random() / 3),
        "token-classification": (Span(cut[0], cut[1], "O"), Span(cut[2], cut[3], "B-x")),
        "token-regression": draw.choice(
            [draw.random(), tuple((n, draw.gauss(0, 9)) for n in cut if n) or 2.0]
        ),
        "span": draw.choice([Span(cut[0], cut[3]), GoldAnswers([Span(*cut[:2]), Span(*cut[2:])])]),
    }.get(task)
    return Message(text, label)


@pytest.mark.parametrize("task", TASKS)
def test_written_examples_are_read_back(tmp_path: Path, task: str):
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
def test_examples_that_cannot_be_written(tmp_path: Path, example: Message):
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
    assert names("token-regression", 1.5, 2, ((1, 2.0), (3, 4.0))) == ("value",)
    assert names("span", Span(0, 1)) == names("language", None) == names("features", None) == ()


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ("classification", ("a",)),
        ("multi-label", "ab"),
        ("regression", 1.0),
        ("token-regression", "1"),
        ("token-regression", [(1, 2.0)]),
        ("multi-label", None),
        ("token-classification", Span(0, 1, "x")),
    ],
)
def test_names_of_another_tasks_labels(task: str, label: Any):
    with pytest.raises(DataError, match=f"is not a label of {task}"):
        label_names([Message("a", label)], task)


@pytest.mark.parametrize("task", TASKS)
def test_a_head_takes_these_names(task: str):
    draw = random.Random(1)
    HeadConfig(task=task, labels=label_names([drawn(task, draw) for _ in range(50)], task))


# --- CoNLL ---


def sentences(path: Path, raw: bytes | str, encoding: str = "utf-8") -> list[Message | Fault]:
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode(encoding))
    return list(read_conll(path, encoding))


def words_and_tags(message: Message | Fault) -> list[tuple[str, str]]:
    assert isinstance(message, Message), message
    return [(message.text[start:end], tag) for start, end, tag in message.label]


def test_a_sentence_by_hand(tmp_path: Path):
    found = sentences(
        tmp_path / "a.conll", "Alex\tB-person\nis\tO\nin\tO\nNew\tB-location\nYork\tI-location\n"
    )
    label = (
        (0, 4, "B-person"),
        (5, 7, "O"),
        (8, 10, "O"),
        (11, 14, "B-location"),
        (15, 19, "I-location"),
    )
    assert found == [Message("Alex is in New York", label)]
    assert isinstance(found[0], Message) and all(type(s) is Span for s in found[0].label)


@pytest.mark.parametrize("seed", range(20))
def test_sentences_of_random_words(tmp_path: Path, seed: int):
    """Random words without white space, with every kind of line end and sentence end."""
    draw = random.Random(seed)
    words = [
        "#hashtag",
        "#",
        "##",
        "-DOC",
        "can't",
        "👍🏽",
        "語",
        "a\u200bb",
        "\ufeff",
        "O",
        "...",
        "\x01",
        '"',
        "e\u0301",
    ]
    end, between = draw.choice(["\n", "\r\n"]), draw.choice(["\t", " ", "  "])
    middle = [[], ["NN"], ["NN", "I-NP"]][draw.randrange(3)]
    raw, expected = "", []
    for _ in range(10):
        sentence = [
            (draw.choice(words), draw.choice(["O", "B-x", "I-y-z"]))
            for _ in range(draw.randrange(1, 6))
        ]
        raw += "".join(between.join([word, *middle, tag]) + end for word, tag in sentence)
        raw += draw.choice(["", "\t", "  "]) + end + draw.choice(["", end])
        expected.append(sentence)
    raw = "\ufeff" + raw if draw.random() < 0.5 else "x O\n\n" + raw
    expected = expected if raw.startswith("\ufeff") else [[("x", "O")], *expected]
    found = sentences(tmp_path / "a.bio", raw)
    assert [words_and_tags(message) for message in found] == expected
    assert [m.text for m in found] == [" ".join(w for w, _ in s) for s in expected]  # type: ignore[union-attr]


def test_the_form_of_conll_2003(tmp_path: Path):
    """The first lines of its README: -DOCSTART- lines between documents, and four columns."""
    raw = (
        "-DOCSTART- -X- -X- O\n\nU.N. NNP I-NP I-ORG\nofficial NN I-NP O\nEkeus NNP I-NP I-PER\n"
        "\n-DOCSTART- -X- O O\n\nBaghdad NNP I-NP I-LOC\n. . O O\n-DOCSTART-\nx NN I-NP O"
    )
    assert [words_and_tags(message) for message in sentences(tmp_path / "eng.train", raw)] == [
        [("U.N.", "I-ORG"), ("official", "O"), ("Ekeus", "I-PER")],
        [("Baghdad", "I-LOC"), (".", "O")],
        [("x", "O")],
    ]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("# sent_id = 1\n# a comment\nx\tO\n", [[("x", "O")]]),
        ("# text = # 1\nx O\n\n# another\n\n# one\ny O\n", [[("x", "O")], [("y", "O")]]),
        ("#\tO\n# \tO\n", []),  # the second word contains a space and is a fault
        ("#winning\tO\n#\tB-x\n", [[("#winning", "O"), ("#", "B-x")]]),
        ("# O\n# B-x\n", [[("#", "O"), ("#", "B-x")]]),
        ("# # B-NP O\n", [[("#", "O")]]),
        ("x NN\n# #\n", [[("x", "NN"), ("#", "#")]]),  # within a sentence, # is a word
        ("# nothing\n\n\n", []),
        ("", []),
    ],
)
def test_a_comment_and_a_word_with_its_sign(tmp_path: Path, raw: str, expected: list):
    found = sentences(tmp_path / "a.conll", raw)
    assert [words_and_tags(m) for m in found if isinstance(m, Message)] == expected


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("word", r"expected a word and its tag, in 2 to 4 columns; found \['word'\]"),
        ("a\tb\tc\td\tO", "2 to 4 columns; found"),
        ("a b c d O", "2 to 4 columns; found"),
        ("#comment", "2 to 4 columns"),
        ("\tO", "the word '' is empty"),
        ("word\t", "the tag '' is empty"),
        ("two words\tO", "the word 'two words' is empty or contains white space"),
        ("two\xa0words\tO", "the word"),
        ("\u3000\tO", "the word"),
        ("word\tB person", "the tag 'B person'"),
    ],
)
def test_a_fault_takes_its_sentence_only(tmp_path: Path, line: str, what: str):
    raw = f"a\tO\n\nb\tO\n{line}\nc\tO\nword\n\nd\tO\n"
    first, fault, last = sentences(tmp_path / "a.conll", raw)
    assert words_and_tags(first) == [("a", "O")] and words_and_tags(last) == [("d", "O")]
    assert isinstance(fault, Fault) and fault.line == 4
    assert re.search(what, fault.what)


def test_invalid_bytes(tmp_path: Path):
    found = sentences(tmp_path / "a.conll", b"a\tO\n\xff\tO\n\nb\tO\n")
    assert isinstance(found[0], Fault) and found[0].line == 2 and "0xff" in found[0].what
    assert words_and_tags(found[1]) == [("b", "O")]
    # only the first of two faults is reported
    (fault,) = sentences(tmp_path / "a.conll", b"word\n\xff\tO\n")
    assert isinstance(fault, Fault) and fault.line == 1


def test_words_in_other_encodings(tmp_path: Path):
    for encoding in ("utf-16", "cp1252"):
        assert sentences(tmp_path / "a.conll", "Grüße\tO\n", encoding) == [
            Message("Grüße", (Span(0, 5, "O"),))
        ]


def test_a_missing_conll_file(tmp_path: Path):
    with pytest.raises(DataError, match="is not a file"):
        read_conll(tmp_path / "none.conll")


# --- the published data ---

PUBLISHED = {  # published counts of sentences and tokens; entities counted by `grep -cP '\\tB-'`
    "wnut17train.conll": (3394, 62730, 1975),
    "emerging.dev.conll": (1009, 15733, 836),
    "emerging.test.annotated": (1287, 23394, 1079),
}
TYPES = {
    "corporation": 66,
    "creative-work": 142,
    "group": 165,
    "location": 150,
    "person": 429,
    "product": 127,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_emerging_entities(shared: Path, name: str):
    path = shared / "data" / "wnut17" / name
    if not path.exists():
        pytest.skip(f"put {name} of WNUT 2017 into {path.parent} to run this test")
    found = list(read_conll(path))
    tags = [[tag for _, tag in words_and_tags(message)] for message in found]
    marked = [kind for sentence in tags for _, _, kind in entities(sentence)]
    assert (len(found), sum(map(len, tags)), len(marked)) == PUBLISHED[name]
    # compare every word and tag with a reader that only splits lines
    lines = [line.split("\t") for line in path.read_text("utf-8").split("\n") if line.strip()]
    assert [list(pair) for message in found for pair in words_and_tags(message)] == lines
    if name == "emerging.test.annotated":
        assert Counter(marked) == TYPES


# --- entities ---


def conlleval(tags: list[str]) -> list[tuple[int, int, str]]:
    """The rules of conlleval's startOfChunk and endOfChunk for B, I and O, word by word."""
    found, start = [], 0
    before, kind_before = "O", ""
    for n, tag in enumerate([*tags, "O"]):
        part, _, kind = tag.partition("-")
        ends = (before, part) in {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O")}
        ends |= before != "O" and kind != kind_before
        if ends:
            found.append((start, n, kind_before))
        begins = (before, part) in {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I")}
        begins |= part != "O" and kind != kind_before
        start = n if begins else start
        before, kind_before = part, kind
    return found


def test_entities_as_conlleval_finds_them():
    """All sequences of up to five tags."""
    for size in range(6):
        for tags in product(["O", "B-a", "I-a", "B-b-c", "I-b-c"], repeat=size):
            assert entities(tags) == conlleval(list(tags)), tags


def test_entities_by_hand():
    tags = ["I-ORG", "O", "I-PER", "O", "B-LOC", "I-LOC", "B-LOC", "I-creative-work"]
    assert entities(tags) == [
        (0, 1, "ORG"),
        (2, 3, "PER"),
        (4, 6, "LOC"),
        (6, 7, "LOC"),
        (7, 8, "creative-work"),
    ]


@pytest.mark.parametrize("tag", ["", "B", "B-", "E-x", "NN", "o", "B x", "BO", "O-x", "B-x y"])
def test_tags_that_are_not_bio(tag: str):
    with pytest.raises(DataError, match="BIO tag"):
        entities(["O", tag])
    assert not is_bio(["O", "B-x", tag])


def test_is_bio():
    assert is_bio(["O", "B-x", "I-x"]) and is_bio(("B-x", "B-y")) and is_bio(["I-x"])
    assert not is_bio([]) and not is_bio(["O"]) and not is_bio(["NN", "VB"])


# --- SQuAD ---

CONTEXT = "The Normans gave their name to Normandy.\nThey came from Denmark 🇩🇰 and Norway."


def asked(name: str, **changes: Any) -> dict[str, Any]:
    question = {"id": name, "question": "Where did they come from?"}
    answer = {"text": "Denmark", "answer_start": CONTEXT.index("Denmark")}
    return {**question, "answers": [answer], **changes}


def squad(path: Path, *questions: Any, context: Any = CONTEXT, indent: int | None = None) -> Path:
    data = [{"title": "Normans", "paragraphs": [{"context": context, "qas": questions}]}]
    path.write_text(json.dumps({"data": data, "version": "1.1"}, indent=indent), "utf-8")
    return path


def test_a_question_by_hand(tmp_path: Path):
    (found,) = read_squad(squad(tmp_path / "a.json", asked("1")))
    assert found == Message("Where did they come from?\n" + CONTEXT, Span(82, 89))
    assert found.text[82:89] == "Denmark"
    assert found.text[context_start(found.text) :] == CONTEXT


def test_all_answers_of_a_question_are_read(tmp_path: Path):
    """In their order, the first one first; each place counts once."""
    words = [("Norway", 71), ("Denmark", 56), ("Norway", 71), ("Normandy", 31)]
    assert all(CONTEXT.startswith(word, place) for word, place in words)
    answers = [{"text": word, "answer_start": place} for word, place in words]
    several, same = read_squad(
        squad(
            tmp_path / "a.json", asked("1", answers=answers), asked("2", answers=[answers[0]] * 3)
        )
    )
    assert isinstance(several, Message) and isinstance(same, Message)
    assert several.label == GoldAnswers([Span(97, 103), Span(82, 89), Span(57, 65)])
    found = [several.text[span.start : span.end] for span in several.label]
    assert found == ["Norway", "Denmark", "Normandy"]
    assert same.label == Span(97, 103) and type(same.label) is Span


def test_where_the_context_begins():
    assert context_start("a?\nb\nc") == 3
    assert context_start("no question") == 0 and context_start("") == 0


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_keeps_its_place(tmp_path: Path, seed: int):
    draw = random.Random(seed)
    pieces = ["a", "語", "👍🏽", " ", "\n", "é", "e\u0301", "\ud83d", "\xa0", "x"]
    context = "b" + "".join(draw.choice(pieces) for _ in range(30))
    questions, expected = [], []
    for n in range(10):
        start = draw.randrange(len(context))
        answer = context[start : draw.randrange(start, len(context)) + 1]
        words = ["who", "is\t\t it ", "\n語\u2028?"]
        draw.shuffle(words)
        if answer.strip():
            answers = [{"text": answer, "answer_start": start}, {"text": "b", "answer_start": 0}]
            questions.append(asked(str(n), question=" ".join(words), answers=answers))
            expected.append((" ".join(" ".join(words).split()), answer.replace("\ud83d", "\ufffd")))
    found = list(read_squad(squad(tmp_path / "a.json", *questions, context=context)))
    assert len(found) == len(expected)
    for message, (question, answer) in zip(found, expected, strict=True):
        assert isinstance(message, Message)
        spans = gold_answers(message.label)
        assert [message.text[span.start : span.end] for span in spans][:2] in ([answer, "b"], ["b"])
        assert message.text == question + "\n" + context.replace("\ud83d", "\ufffd")
        assert context_of(message.text) == context.replace("\ud83d", "\ufffd")
        assert {span.label for span in spans} == {""}
        assert spans[-1].start == context_start(message.text) == len(question) + 1


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"answers": []}, "has no answer"),
        ({"is_impossible": True}, "has no answer"),
        (
            {"answers": [{"text": "Denmark", "answer_start": 3}]},
            "'Denmark' is not at 3, but ' Norman' is",
        ),
        ({"answers": [{"text": "Denmark", "answer_start": 10**9}]}, "is not at 1000000000"),
        ({"answers": [{"text": "Norway.", "answer_start": -7}]}, "is not at -7"),
        (
            {"answers": [{"text": "denmark", "answer_start": 56}]},
            "is not at 56, but 'Denmark' is",
        ),
        ({"answers": [{"text": "", "answer_start": 0}]}, "answer's text"),
        ({"answers": [{"text": " ", "answer_start": 3}]}, "answer's text"),
        ({"answers": [{"text": "The", "answer_start": False}]}, "answer's text and answer_start"),
        ({"answers": [{"text": "The", "answer_start": 0.0}]}, "answer's text and answer_start"),
        ({"answers": [{"text": 5, "answer_start": 0}]}, "answer's text"),
        ({"answers": ["The"]}, "answer's text"),
        (
            {"answers": [asked("")["answers"][0], {"text": "The", "answer_start": 1}]},
            "'The' is not at 1, but 'he ' is",
        ),
        ({"answers": [asked("")["answers"][0], 5]}, "answer's text and answer_start, found 5"),
        ({"answers": {"text": "The", "answer_start": 0}}, "a list of answers"),
        ({"answers": None}, "a list of answers"),
        ({"question": " \n"}, "words of a question"),
        ({"question": None}, "words of a question"),
    ],
)
def test_faults_say_which_question(tmp_path: Path, changes: dict[str, Any], what: str):
    path = squad(tmp_path / "a.json", asked("one"), asked("two", **changes), asked("three"))
    first, fault, last = read_squad(path)
    assert isinstance(first, Message) and first == last
    assert isinstance(fault, Fault) and fault.line == 1
    assert "question 'two': " in fault.what and what in fault.what


@pytest.mark.parametrize("context", ["", " \n", None, 5, ["a"]])
def test_an_invalid_context(tmp_path: Path, context: Any):
    (fault,) = read_squad(squad(tmp_path / "a.json", asked("one"), context=context))
    assert isinstance(fault, Fault) and "question 'one': expected a context" in fault.what


def test_invalid_questions(tmp_path: Path):
    found = list(read_squad(squad(tmp_path / "a.json", "who?", None, {}, asked("é", answers=[]))))
    assert [type(fault) for fault in found] == [Fault] * 4
    assert "question 'é'" in found[3].what and "question None" in found[0].what  # type: ignore[union-attr]


def test_faults_have_the_line_of_their_id(tmp_path: Path):
    names = [f"id{n}" for n in range(6)]
    questions = [asked(name, answers=[]) if n % 2 else asked(name) for n, name in enumerate(names)]
    path = squad(tmp_path / "a.json", *questions, indent=1)
    lines = path.read_text("utf-8").split("\n")
    faults = [found for found in read_squad(path) if isinstance(found, Fault)]
    assert len(faults) == 3
    for fault, name in zip(faults, names[1::2], strict=True):
        assert f'"id": "{name}"' in lines[fault.line - 1]


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "is not JSON and is empty"),
        (b"<html>", "is not JSON and is a web page"),
        (b"\xff", "is not JSON"),
        (b"[]", "a list 'data'"),
        (b'{"data": {}}', "a list 'data'"),
        (b'{"data": [], "data": []}', "'data'"),
        (b'{"data": [NaN]}', "NaN"),
        (b'{"data": [5]}', "a list 'paragraphs'"),
        (b'{"data": [{"paragraphs": [{"context": "a"}]}]}', "a list 'qas'"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_are_not_squad(tmp_path: Path, raw: bytes, what: str):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(DataError) as error:
        list(read_squad(tmp_path / "a.json"))
    assert what in str(error.value) and "a.json" in str(error.value)


def test_missing_and_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="is not a file"):
        read_squad(tmp_path / "none.json")
    path = squad(tmp_path / "a.json", asked("1"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark is accepted
    assert len(list(read_squad(path))) == 1
    monkeypatch.setattr(formats, "LARGEST_SQUAD", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        read_squad(path)
