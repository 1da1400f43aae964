"""Streamed answers are those of `predict`, in order, each computed once, in flat memory."""

import random
import tracemalloc
from dataclasses import replace
from operator import length_hint
from pathlib import Path

import pytest
from pytest import MonkeyPatch

from gpt2_from_scratch.classifier import classifier as stream
from gpt2_from_scratch.classifier.classifier import Classifier, predict_stream
from gpt2_from_scratch.errors import DataError, UsageError

Asked = list[list[str]]


@pytest.fixture
def classifier(tiny_checkpoint: Path) -> Classifier:
    return Classifier.on_base(tiny_checkpoint, ["ham", "spam", "eggs"])


@pytest.fixture
def asked(classifier: Classifier, monkeypatch: MonkeyPatch) -> Asked:
    """What `predict` is asked for, call by call."""
    calls, predict = Asked(), classifier.predict
    monkeypatch.setattr(classifier, "predict", lambda texts: calls.append(texts) or predict(texts))
    return calls


def test_answers_are_those_of_predict_in_order(classifier: Classifier) -> None:
    """One by one for some texts, lone surrogates and the empty text among them; many at once."""
    odd = ["", " ", "half \ud83d", "half ?", "Grüße 😀", "a\x00b", "you " * 100, "the", "the"]
    expected = {text: classifier.predict([text])[0] for text in odd}
    draw, words = random.Random(5), "the you win é 77 in house see another".split()
    many = [" ".join(draw.choices(words, k=draw.randrange(5))) for _ in range(6000)]
    once = sorted(set(many) - set(odd))
    assert 500 < len(once) < 3000
    expected |= dict(zip(once, classifier.predict(once), strict=True))
    for texts in (odd, many):
        found = list(predict_stream(classifier, iter(texts)))
        assert [text for text, _ in found] == texts
        for text, answer in found:
            shares = pytest.approx(expected[text].probabilities, abs=1e-5)
            assert answer.probabilities == shares
            assert replace(answer, answers={}) == replace(expected[text], answers={})
            assert answer.label == expected[text].label


def test_equal_texts_are_computed_once(classifier: Classifier, asked: Asked) -> None:
    texts = [f"{n % 90} of {n % 7}" for n in range(3000)]
    assert [text for text, _ in predict_stream(classifier, texts)] == texts
    assert sorted(sum(asked, [])) == sorted(set(texts))
    assert list(predict_stream(classifier, [])) == []


def test_windows_grow(classifier: Classifier) -> None:
    texts = iter(["the"] * 17_000)
    seen = [17_000 - length_hint(texts) for _ in predict_stream(classifier, texts)]  # then taken up
    ends = [64, 192, 448, 960, 1984, 4032, 8128, 12_224, 16_320, 17_000]
    assert list(dict.fromkeys(seen)) == ends
    assert [seen.index(end) for end in ends] == [0, *ends[:-1]]  # an answer to each, then more


def test_long_texts(classifier: Classifier, asked: Asked, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHARACTERS", 1000)
    texts = [f"{n:100}" for n in range(35)] + ["x" * 5000, "y"]
    assert [text for text, _ in predict_stream(classifier, texts)] == texts
    assert [len(call) for call in asked] == [10, 10, 10, 6, 1]


def test_what_is_remembered(classifier: Classifier, asked: Asked, monkeypatch: MonkeyPatch) -> None:
    for name, value in {"FIRST": 4, "LARGEST": 4, "REMEMBERED": 10}.items():
        monkeypatch.setattr(stream, name, value)
    texts = [text for n in range(20) for text in ("often", *(f"{n} {m}" for m in range(3)))]
    texts += ["19 0", "17 0", "16 2", "0 0"]  # the last met but "often" are 17 0 to 19 2
    assert [text for text, _ in predict_stream(classifier, texts)] == texts
    assert [len(call) for call in asked] == [4, *[3] * 19, 2]
    assert sorted(asked[-1]) == ["0 0", "16 2"]


def test_memory_is_flat_over_many_lines(classifier: Classifier) -> None:
    lines = (f"line number {n % 50}" for n in range(200_000))
    tracemalloc.start()
    count = sum(1 for _ in predict_stream(classifier, lines))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200_000 and peak < 3e6  # the lines alone are 14 MB


@pytest.mark.parametrize("wrong", [None, 7, 1.5, b"bytes", ["a list"]])
def test_what_is_no_string_is_refused(classifier: Classifier, wrong: object) -> None:
    message = f"text 101, counted from 0, must be a string, not {type(wrong).__name__}"
    with pytest.raises(DataError, match=message):
        list(predict_stream(classifier, ["a"] * 101 + [wrong]))


def test_what_is_no_string_is_passed_over(classifier: Classifier, asked: Asked) -> None:
    texts = [None, "the", 7, b"bytes", ["a"], "you", float("nan")] * 30
    found = list(predict_stream(classifier, texts, on_error="skip"))
    expected = {text: classifier.predict([text])[0].label for text in ("the", "you")}
    assert len(found) == len(texts) and all(a is b for (a, _), b in zip(found, texts, strict=True))
    for text, answer in found:
        assert (answer.label if isinstance(text, str) else answer) == (
            expected[text] if isinstance(text, str) else None
        )
    assert asked[0] == ["the", "you"]
    with pytest.raises(UsageError, match="on_error"):
        list(predict_stream(classifier, [], on_error="perhaps"))
