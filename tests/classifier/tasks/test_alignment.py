"""Characters to tokens and back, held against bytes counted one by one and against tiktoken."""

import random
import time
from pathlib import Path

import pytest

from gpt2_from_scratch.classifier.tasks.alignment import (
    characters_of,
    first_tokens,
    token_ends,
    token_range,
)
from gpt2_from_scratch.data.messages import Span
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.storage.paths import embedded

TEXTS = [
    "can't stop, won't stop",
    "New York is  big",
    " two  spaces ",
    "a",
    " ",
    "\t\ttabs\t here\n\n",
    "Grüße, naïve café e\u0301",
    "日本語のテキスト、한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪!",
    "a\xa0b\u3000c \u200b d\ufeff",
    "नमस्ते ไทย مرحبا",
    "\x00\x1f\x7f\ufffd\U0010ffff",
    "http://t.co/x#tag@you",
    "<|endoftext|>",
    "\ufeffBOM",
]
HALVES = [
    "\ud83d",
    "a\udc00b \ud83d c",
    "\ud83d\ud83d\ude00x",
    "\ude00\ud83d",
    "é\udfff\ud800\udc00",
]
PIECES = [
    "a",
    "the",
    " ",
    "  ",
    "\n",
    "'s",
    "é",
    "e\u0301",
    "語",
    "👍🏽",
    "🏳️‍🌈",
    "\xa0",
    "\t",
    "7",
    "Ω",
    "#",
    "\ud83d",
    "\ude00",
]


@pytest.fixture(scope="module", params=["mini", "openai"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "mini":
        return Tokenizer(embedded("weights/mini"))
    return Tokenizer(request.getfixturevalue("openai_124M"))


@pytest.fixture
def tiny(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


def drawn(seed: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(PIECES) for _ in range(draw.randrange(25)))


ALL = TEXTS + HALVES + [drawn(seed) for seed in range(60)]


# --- the witness: which characters' bytes each token has, counted one by one ---


def as_read(text: str) -> str:
    """As the tokenizer reads it: tiktoken's own repair of halves."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def owners(text: str) -> list[int]:
    """For every byte of the text the character it belongs to; halves that pair have two each."""
    found: list[int] = []
    n = 0
    while n < len(text):
        pair = text[n : n + 2]
        if len(pair) == 2 and len(as_read(pair)) == 1:
            found += [n, n, n + 1, n + 1]
            n += 2
        else:
            found += [n] * len(as_read(text[n]).encode())
            n += 1
    assert len(found) == len(as_read(text).encode())
    return found


def characters_by_token(text: str, ids: list[int], tokenizer: Tokenizer) -> list[list[int]]:
    """The characters of which each token has a byte."""
    rest = owners(text)
    found = []
    for token in ids:
        size = len(tokenizer._encoding.decode_bytes([token]))
        found.append(rest[:size])
        rest = rest[size:]
    return found


def spans_of(text: str, seed: int = 0) -> list[Span]:
    """All spans of a short text, some of a longer one, empty ones among them."""
    every = [Span(a, b) for a in range(len(text)) for b in range(a, len(text) + 1)]
    return random.Random(seed).sample(every, min(len(every), 60))


# --- every text ---


def test_tokens_and_their_bytes(tokenizer: Tokenizer):
    for text in ALL:
        ids = tokenizer.encode(text)
        raw = as_read(text).encode()
        assert b"".join(map(tokenizer.token_bytes, ids)) == raw
        prefixes = [tokenizer._encoding.decode_bytes(ids[: n + 1]) for n in range(len(ids))]
        assert token_ends(ids, tokenizer) == [len(prefix) for prefix in prefixes]
        assert all(raw.startswith(prefix) for prefix in prefixes)


def test_spans_to_tokens(tokenizer: Tokenizer):
    """Of the whole text, and of one cut off at every token."""
    for text in ALL:
        ids, spans = tokenizer.encode(text), spans_of(text)
        for kept in {len(ids), len(ids) // 2, max(len(ids) - 1, 0), 0}:
            by_token = characters_by_token(text, ids[:kept], tokenizer)
            first: list[int | None] = []
            for span in spans:
                inside = [
                    n for n, owned in enumerate(by_token) if set(owned) & set(range(*span[:2]))
                ]
                first.append(inside[0] if inside else None)
                read = sum(span.start <= owner < span.end for owner in sum(by_token, []))
                whole = span.start < span.end and read == sum(
                    span.start <= o < span.end for o in owners(text)
                )
                expected = (inside[0], inside[-1]) if whole else None
                assert token_range(text, ids[:kept], span, tokenizer) == expected
            # a span whose first byte was cut off has no later one either
            assert first_tokens(text, ids[:kept], spans, tokenizer) == first


def test_tokens_to_characters(tokenizer: Tokenizer):
    for text in ALL:
        ids = tokenizer.encode(text)
        by_token = characters_by_token(text, ids, tokenizer)
        for first in range(len(ids)):
            for last in range(first, min(len(ids), first + 5)):
                owned = sum(by_token[first : last + 1], [])
                words = [n for n in range(owned[0], owned[-1] + 1) if not text[n].isspace()]
                start, end = characters_of(text, ids, first, last, tokenizer)
                if words:
                    assert (start, end) == (words[0], words[-1] + 1)
                else:
                    assert start == end and text[start:end] == ""


def test_there_and_back(tokenizer: Tokenizer):
    """A word's tokens hold the word, and no word that a space parts from it."""
    for text in TEXTS:
        ids, end = tokenizer.encode(text), 0
        for word in text.split():
            start = text.index(word, end)
            end = start + len(word)
            found = token_range(text, ids, Span(start, end), tokenizer)
            assert found and characters_of(text, ids, *found, tokenizer) == (start, end)


def test_as_tiktoken_counts(tokenizer: Tokenizer):
    """Its offsets are the characters in which tokens begin, but for a space in front."""
    for text in TEXTS:
        ids = tokenizer.encode(text)
        read, offsets = tokenizer._encoding.decode_with_offsets(ids)
        assert read == text
        for token, offset in enumerate(offsets):
            start, end = characters_of(text, ids, token, token, tokenizer)
            if start < end:
                assert text[offset:start].strip() == "" and start >= offset


# --- by hand ---


def test_a_word_of_several_tokens(tiny: Tokenizer):
    text = "the and é"  # tokens t|he| and| |Ã|©
    ids = tiny.encode(text)
    assert [tiny.token_bytes(token) for token in ids] == [
        b"t",
        b"he",
        b" and",
        b" ",
        b"\xc3",
        b"\xa9",
    ]
    assert token_ends(ids, tiny) == [1, 3, 7, 8, 9, 10]
    words = [Span(0, 3), Span(4, 7), Span(8, 9)]
    assert first_tokens(text, ids, words, tiny) == [0, 2, 4]
    assert first_tokens(text, ids[:4], words, tiny) == [0, 2, None]
    assert [token_range(text, ids, span, tiny) for span in words] == [(0, 1), (2, 2), (4, 5)]
    assert token_range(text, ids[:5], words[2], tiny) is None  # half of é was cut off
    assert first_tokens(text, ids[:5], words, tiny) == [0, 2, 4]
    assert characters_of(text, ids, 2, 2, tiny) == (4, 7)
    assert characters_of(text, ids, 5, 5, tiny) == (8, 9)  # half of é is all of it
    assert characters_of(text, ids, 3, 3, tiny) == (8, 8)  # nothing but a space


def test_nothing_in_nothing(tiny: Tokenizer):
    assert token_ends([], tiny) == []
    assert first_tokens("", [], [], tiny) == []
    assert first_tokens("the", [], [Span(0, 3)], tiny) == [None]
    assert token_range("the", [], Span(0, 3), tiny) is None
    empty = Span(1, 1)
    assert first_tokens("the", tiny.encode("the"), [empty], tiny) == [None]
    assert token_range("the", tiny.encode("the"), empty, tiny) is None


@pytest.mark.parametrize("token", [-1, 277, 10**30])
def test_an_id_that_is_none(tiny: Tokenizer, token: int):
    with pytest.raises(DataError, match="vocabulary of 0 to 276"):
        token_ends([token], tiny)


def test_the_token_of_the_end_has_bytes_too(tiny: Tokenizer):
    assert tiny.token_bytes(tiny.end_of_text_id) == b"<|endoftext|>"


def test_long_texts_take_no_longer_than_they_are(tiny: Tokenizer):
    """Ten times the words cost about ten times the seconds; in a square of it, a hundred times."""

    def seconds(count: int) -> float:
        text = "the é语and " * count
        ids = tiny.encode(text)
        spans = [Span(9 * n, 9 * n + 8) for n in range(count)]
        begun = time.perf_counter()
        assert None not in first_tokens(text, ids, spans, tiny)
        return time.perf_counter() - begun

    seconds(100)
    short = min(seconds(1_000) for _ in range(3))
    assert min(seconds(10_000) for _ in range(2)) < 50 * short
