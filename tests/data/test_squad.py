"""Questions and answers in SQuAD's form: each answer stands where its Span says, or is a fault."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from gpt2_from_scratch.data import squad
from gpt2_from_scratch.data.lines import Fault
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.data.squad import context_start, read_squad
from gpt2_from_scratch.errors import DataError

CONTEXT = "The Normans gave their name to Normandy.\nThey came from Denmark 🇩🇰 and Norway."


def asked(name: str, **changes: Any) -> dict[str, Any]:
    question = {"id": name, "question": "Where did they come from?"}
    answer = {"text": "Denmark", "answer_start": CONTEXT.index("Denmark")}
    return {**question, "answers": [answer], **changes}


def write(path: Path, *questions: Any, context: Any = CONTEXT, indent: int | None = None) -> Path:
    data = [{"title": "Normans", "paragraphs": [{"context": context, "qas": questions}]}]
    path.write_text(json.dumps({"data": data, "version": "1.1"}, indent=indent), "utf-8")
    return path


def test_a_question_by_hand(tmp_path: Path):
    (found,) = read_squad(write(tmp_path / "a.json", asked("1")))
    assert found == Message("Where did they come from?\n" + CONTEXT, Span(82, 89))
    assert found.text[82:89] == "Denmark"
    assert found.text[context_start(found.text) :] == CONTEXT


def test_where_the_context_begins():
    assert context_start("a?\nb\nc") == 3
    assert context_start("no question") == 0 and context_start("") == 0


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_stands_where_it_did(tmp_path: Path, seed: int):
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
            answers = [{"text": answer, "answer_start": start}, {"text": "?", "answer_start": 0}]
            questions.append(asked(str(n), question=" ".join(words), answers=answers))
            expected.append((" ".join(" ".join(words).split()), answer.replace("\ud83d", "\ufffd")))
    found = list(read_squad(write(tmp_path / "a.json", *questions, context=context)))
    assert len(found) == len(expected)
    for message, (question, answer) in zip(found, expected, strict=True):
        assert isinstance(message, Message) and message.label.label == ""
        assert message.text[message.label.start : message.label.end] == answer
        assert message.text == question + "\n" + context.replace("\ud83d", "\ufffd")
        assert message.label.start >= context_start(message.text) == len(question) + 1


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"answers": []}, "has no answer"),
        ({"is_impossible": True}, "has no answer"),
        (
            {"answers": [{"text": "Denmark", "answer_start": 3}]},
            "'Denmark' is not at 3, where ' Norman' stands",
        ),
        ({"answers": [{"text": "Denmark", "answer_start": 10**9}]}, "is not at 1000000000"),
        ({"answers": [{"text": "Norway.", "answer_start": -7}]}, "is not at -7"),
        (
            {"answers": [{"text": "denmark", "answer_start": 56}]},
            "is not at 56, where 'Denmark' stands",
        ),
        ({"answers": [{"text": "", "answer_start": 0}]}, "answer's text"),
        ({"answers": [{"text": " ", "answer_start": 3}]}, "answer's text"),
        ({"answers": [{"text": "The", "answer_start": False}]}, "answer's text and answer_start"),
        ({"answers": [{"text": "The", "answer_start": 0.0}]}, "answer's text and answer_start"),
        ({"answers": [{"text": 5, "answer_start": 0}]}, "answer's text"),
        ({"answers": ["The"]}, "answer's text"),
        ({"answers": {"text": "The", "answer_start": 0}}, "a list of answers"),
        ({"answers": None}, "a list of answers"),
        ({"question": " \n"}, "words to ask with"),
        ({"question": None}, "words to ask with"),
    ],
)
def test_faults_say_which_question(tmp_path: Path, changes: dict[str, Any], what: str):
    path = write(tmp_path / "a.json", asked("one"), asked("two", **changes), asked("three"))
    first, fault, last = read_squad(path)
    assert isinstance(first, Message) and first == last
    assert isinstance(fault, Fault) and fault.line == 1
    assert "question 'two': " in fault.what and what in fault.what


@pytest.mark.parametrize("context", ["", " \n", None, 5, ["a"]])
def test_a_context_that_is_none(tmp_path: Path, context: Any):
    (fault,) = read_squad(write(tmp_path / "a.json", asked("one"), context=context))
    assert isinstance(fault, Fault) and "question 'one': expected a context" in fault.what


def test_what_is_no_question_at_all(tmp_path: Path):
    found = list(read_squad(write(tmp_path / "a.json", "who?", None, {}, asked("é", answers=[]))))
    assert [type(fault) for fault in found] == [Fault] * 4
    assert "question 'é'" in found[3].what and "question None" in found[0].what  # type: ignore[union-attr]


def test_faults_have_the_line_of_their_id(tmp_path: Path):
    names = [f"id{n}" for n in range(6)]
    questions = [asked(name, answers=[]) if n % 2 else asked(name) for n, name in enumerate(names)]
    path = write(tmp_path / "a.json", *questions, indent=1)
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
        (b"[]", 'expected {"data": [...]}'),
        (b'{"data": {}}', 'expected {"data": [...]}'),
        (b'{"data": [], "data": []}', "stands there twice"),
        (b'{"data": [NaN]}', "NaN"),
        (b'{"data": [5]}', "a list 'paragraphs'"),
        (b'{"data": [{"paragraphs": [{"context": "a"}]}]}', "a list 'qas'"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_not_squad(tmp_path: Path, raw: bytes, what: str):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(DataError) as error:
        list(read_squad(tmp_path / "a.json"))
    assert what in str(error.value) and "a.json" in str(error.value)


def test_missing_and_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="is not a file"):
        read_squad(tmp_path / "none.json")
    path = write(tmp_path / "a.json", asked("1"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark does no harm
    assert len(list(read_squad(path))) == 1
    monkeypatch.setattr(squad, "LARGEST_SQUAD", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        read_squad(path)
