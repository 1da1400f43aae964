"""Characters to tokens and back, compared with counted bytes and with tiktoken."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.classification import Choice
from gpt2_from_scratch.classifier.tasks.multi_label import Labels
from gpt2_from_scratch.classifier.tasks.task import (
    IGNORED,
    Targets,
    characters_of,
    class_number,
    class_table,
    first_tokens,
    token_range,
)
from gpt2_from_scratch.data import formats
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import ClassScores
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.storage.paths import embedded

KNOWN = {  # a head's labels, and the label of the text "q\nred sun"
    "multi-label": (("x", "y"), ("y",)),
    "regression": (("x", "y"), (0.25, -3.0)),
    "token-classification": (("O", "B-x"), (Span(2, 5, "O"), Span(6, 9, "B-x"))),
    "token-regression": (("x",), ((3, 1.0), (9, -2.0))),
    "span": ((), Span(2, 5)),
}
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


# --- reference: the characters in each token, found by counting bytes ---


def as_read(text: str) -> str:
    """The text as the tokenizer reads it, with tiktoken's own repair of lone surrogates."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def owners(text: str) -> list[int]:
    """The character of every byte of the text; each half of a surrogate pair has two bytes."""
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
    """The characters of which each token contains a byte."""
    rest = owners(text)
    found = []
    for token in ids:
        size = len(tokenizer._encoding.decode_bytes([token]))
        found.append(rest[:size])
        rest = rest[size:]
    return found


def spans_of(text: str, seed: int = 0) -> list[Span]:
    """All spans of a short text, or some spans of a longer one, including empty spans."""
    every = [Span(a, b) for a in range(len(text)) for b in range(a, len(text) + 1)]
    return random.Random(seed).sample(every, min(len(every), 60))


# --- every text ---


@pytest.mark.slow
def test_spans_to_tokens(tokenizer: Tokenizer):
    """For the whole text, and for the text cut off at every token."""
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
            # if a span's first byte was cut off, so were all later ones
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
    """The tokens of a word contain that word, and no other word separated from it by a space."""
    for text in TEXTS:
        ids, end = tokenizer.encode(text), 0
        for word in text.split():
            start = text.index(word, end)
            end = start + len(word)
            found = token_range(text, ids, Span(start, end), tokenizer)
            assert found and characters_of(text, ids, *found, tokenizer) == (start, end)


def test_as_tiktoken_counts(tokenizer: Tokenizer):
    """tiktoken's offsets are the characters in which tokens begin, except for leading spaces."""
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
    words = [Span(0, 3), Span(4, 7), Span(8, 9)]
    assert first_tokens(text, ids, words, tiny) == [0, 2, 4]
    assert first_tokens(text, ids[:4], words, tiny) == [0, 2, None]
    assert [token_range(text, ids, span, tiny) for span in words] == [(0, 1), (2, 2), (4, 5)]
    # one of the two bytes of é was cut off
    assert token_range(text, ids[:5], words[2], tiny) is None
    assert first_tokens(text, ids[:5], words, tiny) == [0, 2, 4]
    assert characters_of(text, ids, 2, 2, tiny) == (4, 7)
    # one byte of é counts as the whole character
    assert characters_of(text, ids, 5, 5, tiny) == (8, 9)
    assert characters_of(text, ids, 3, 3, tiny) == (8, 8)  # this token is a space


def test_spans_of_an_empty_text(tiny: Tokenizer):
    assert first_tokens("", [], [], tiny) == []
    assert first_tokens("the", [], [Span(0, 3)], tiny) == [None]
    assert token_range("the", [], Span(0, 3), tiny) is None
    empty = Span(1, 1)
    assert first_tokens("the", tiny.encode("the"), [empty], tiny) == [None]
    assert token_range("the", tiny.encode("the"), empty, tiny) is None


@pytest.mark.parametrize("token", [-1, 277, 10**30])
def test_an_id_outside_the_vocabulary(tiny: Tokenizer, token: int):
    with pytest.raises(DataError, match="0 to 276"):
        token_range("the", [token], Span(0, 3), tiny)


def test_the_token_of_the_end_has_bytes_too(tiny: Tokenizer):
    assert tiny.token_bytes(tiny.end_of_text_id) == b"<|endoftext|>"


def test_each_token_is_read_once(tiny: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    """The work grows linearly with the text, for any number of spans."""
    text = "the é语and " * 1000
    ids, asked = tiny.encode(text), []
    plain = tiny.token_bytes
    monkeypatch.setattr(tiny, "token_bytes", lambda token: asked.append(token) or plain(token))
    spans = [Span(9 * n, 9 * n + 8) for n in range(1000)]
    assert None not in first_tokens(text, ids, spans, tiny)
    assert len(asked) == len(ids)


# --- the table of tasks ---


def test_the_table_has_every_task_of_the_data():
    assert tuple(TASKS) == formats.TASKS


LABELS = ("ham", "other", "spam")
HEADS = [
    HeadConfig(labels=LABELS),
    HeadConfig(task="multi-label", labels=LABELS),
    HeadConfig(task="regression", labels=("a", "b")),
    HeadConfig(task="token-classification", labels=LABELS),
    HeadConfig(task="token-regression", labels=("a",)),
    HeadConfig(task="span"),
    HeadConfig(task="language"),
    HeadConfig(task="features"),
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.task)
def test_no_texts_have_no_targets(tiny: Tokenizer, head: HeadConfig):
    found = TASKS[head.task].targets(head, [], [], tiny)
    assert len(found.values) == len(found.weights) == len(found.counts) == 0


def test_each_head_takes_its_own_of_several_labels(tiny: Tokenizer):
    messages = [Message("x", {"label": "spam", "stars": 4.0}), Message("y", {"stars": 1.0})]
    found = TASKS["classification"].targets(HEADS[0], messages, [[1], [2]], tiny)
    assert found.batch([1, 0]).tolist() == [IGNORED, 2]
    stars = HeadConfig(name="stars", task="regression", labels=("stars",))
    found = TASKS["regression"].targets(stars, [*messages, Message("z", {})], [[1]] * 3, tiny)
    assert found.weights.tolist() == [1, 1, 0] and found.batch([0, 1]).tolist() == [[4], [1]]


def test_values_of_several_lengths_are_padded():
    targets = Targets([torch.tensor([1, 2]), torch.tensor([3])], torch.ones(2), torch.ones(2))
    assert targets.batch([1, 0]).tolist() == [[3, IGNORED], [1, 2]]


@pytest.mark.parametrize(
    "task", ["multi-label", "regression", "token-classification", "token-regression", "span"]
)
def test_scores_need_labelled_texts(task: str):
    head = next(head for head in HEADS if head.task == task)
    with pytest.raises(DataError, match="no labelled texts"):
        TASKS[task].scores(head, [None], [object()], ["x"])


# --- a batch in parts ---


def drawn_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor | float, expected: Tensor | float) -> None:
    np.testing.assert_allclose(float(found), float(expected), atol=1e-5, rtol=1e-5)


PARTS = [
    HeadConfig(labels=LABELS, class_weights=(0.3, 1.0, 2.5), label_smoothing=0.1),
    HeadConfig(labels=LABELS[:2], one_output=True, class_weights=(1, 4)),
    HeadConfig(task="token-classification", labels=LABELS, class_weights=(0.3, 1.0, 2.5)),
    HeadConfig(task="multi-label", labels=LABELS, class_weights=(0.3, 1, 2), label_smoothing=0.1),
    HeadConfig(task="regression", labels=LABELS),
    HeadConfig(task="token-regression", labels=("a",)),
    HeadConfig(task="span"),
    HeadConfig(task="language"),
]


def random_batch(head: HeadConfig, lengths: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets for texts of these lengths; some targets are missing."""
    B, T = len(lengths), int(lengths.max())
    if head.task in ("multi-label", "regression"):
        targets = drawn_tensor(B, 3, seed=2)
        targets = (targets > 0).float() if head.task == "multi-label" else targets
        targets[missing] = torch.nan
        return drawn_tensor(B, 3), targets
    if head.task == "classification":
        targets = torch.randint(2, (B,), generator=torch.Generator().manual_seed(3))
        targets[missing] = IGNORED
        return drawn_tensor(B, head.n_outputs), targets
    if head.task == "token-regression":
        targets = drawn_tensor(B, T, seed=2)
        targets[torch.arange(T) >= lengths[:, None]] = torch.nan
        targets[:, 1:2] = torch.nan  # a token without a target
        targets[missing] = torch.nan
        return drawn_tensor(B, T, 1), targets
    width = {"span": 2, "language": 9}.get(head.task, 3)
    if head.task == "span":
        targets = torch.stack([lengths // 2, lengths - 1], dim=1)
    else:
        targets = torch.randint(3, (B, T), generator=torch.Generator().manual_seed(4))
        targets[torch.arange(T) >= lengths[:, None]] = IGNORED
    targets[missing] = IGNORED
    return drawn_tensor(B, T, width), targets


@settings(max_examples=40, deadline=None)
@given(
    head=st.sampled_from(PARTS),
    texts=st.lists(
        st.tuples(st.integers(1, 7), st.booleans(), st.booleans()), min_size=1, max_size=7
    ),
)
def test_parts_of_a_batch_add_up(head: HeadConfig, texts: list[tuple[int, bool, bool]]) -> None:
    """For every way to cut the batch, with padding per part, and with parts without any target."""
    lengths = torch.tensor([length for length, _, _ in texts])
    missing = torch.tensor([absent for _, absent, _ in texts])
    outputs, targets = random_batch(head, lengths, missing)
    outputs.requires_grad_(True)
    whole, right = (
        TASKS[head.task].loss_sum(head, outputs, targets, lengths),
        TASKS[head.task].correct_sum(head, outputs.detach(), targets, lengths),
    )
    (gradient,) = torch.autograd.grad(whole, outputs)
    cuts = [0, *(n for n, (_, _, cut) in enumerate(texts) if cut and n), len(texts)]
    parts = 0.0
    for first, after in zip(cuts, cuts[1:], strict=False):
        part, T = slice(first, after), int(lengths[first:after].max())
        some = outputs[part] if head.reads_one_state else outputs[part, :T]
        each_token = head.task in ("token-classification", "token-regression", "language")
        wanted = targets[part, :T] if each_token else targets[part]
        loss = TASKS[head.task].loss_sum(head, some, wanted, lengths[part])
        assert loss.isfinite()
        loss.backward()
        parts += loss.item()
        right -= TASKS[head.task].correct_sum(head, some.detach(), wanted, lengths[part])
    close(parts, whole.detach())
    close(right, 0.0)
    assert outputs.grad.isfinite().all()
    torch.testing.assert_close(outputs.grad, gradient, atol=1e-5, rtol=0)
    assert not outputs.grad[missing].any()


@pytest.mark.parametrize("head", PARTS)
def test_without_any_target_there_is_no_loss(head: HeadConfig) -> None:
    lengths = torch.tensor([3, 1])
    outputs, targets = random_batch(head, lengths, torch.tensor([True, True]))
    outputs.requires_grad_(True)
    loss = TASKS[head.task].loss_sum(head, outputs, targets, lengths)
    loss.backward()
    assert loss.item() == 0 and not outputs.grad.any() and outputs.grad.isfinite().all()
    assert TASKS[head.task].correct_sum(head, outputs.detach(), targets, lengths) == 0


# --- many labels ---


def test_of_many_labels_the_five_most_probable_are_shown():
    labels = [f"label {k}" for k in range(77)]
    probabilities = {label: (k % 7 + 1) / 1000 for k, label in enumerate(labels)}
    probabilities |= {"label 40": 0.3, "label 3": 0.2, "label 60": 0.1}
    said = Choice("label 40", probabilities).in_words()
    assert said == "label 40  (" + ", ".join(
        ["label 40 0.300", "label 3 0.200", "label 60 0.100", "label 6 0.007", "label 13 0.007)"]
    )
    assert Labels([], probabilities).in_words().count(",") == 4
    few = dict.fromkeys(labels[:20], 0.05)
    assert Choice("label 0", few).in_words().count(",") == 19
    assert Choice("label 0", probabilities).as_row() == [
        "label 0",
        *(f"{p:.6f}" for p in probabilities.values()),
    ]


def test_tables_of_many_labels_and_tags_show_the_weakest():
    classes = [ClassScores(f"label {k:02}", 0.5, 0.5, 0.01 * (77 - k), 3) for k in range(77)]
    together = ClassScores("all", 0.5, 0.5, 0.5, 231)
    lines = class_table(classes, "entity", "entities", together).splitlines()
    assert lines[0].startswith("entity (20 weakest of 77)") and len(lines) == 22
    assert lines[1].startswith("label 76") and lines[-1].startswith("all")


def test_an_unknown_label_is_reported_briefly():
    head = HeadConfig(labels=tuple(f"label {k}" for k in range(20_000)))
    with pytest.raises(DataError, match="'eggs'.* and 19,980 more") as error:
        class_number(head, "eggs")
    assert len(str(error.value)) < 1000


# --- a label as an answer ---


@pytest.mark.parametrize("task", KNOWN)
def test_the_answer_that_equals_the_label_has_the_best_scores(task: str) -> None:
    labels, label = KNOWN[task]
    head, texts = HeadConfig(task=task, labels=labels), ["q\nred sun", "q\nblue sky"]
    other = {"regression": (1.0, 2.0), "span": Span(2, 6), "token-regression": 3.0}.get(task, label)
    answers = [
        TASKS[task].answer_of(head, text, each)
        for text, each in zip(texts, (label, other), strict=True)
    ]
    assert TASKS[task].scores(head, [label, other], answers, texts).main == 1
    assert all(answer.in_words() for answer in answers)
