"""Texts become padded batches, and only the part after max_tokens is lost."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.speed.batching import MARGIN, by_length, encode_texts, pad_batch
from gpt2_from_scratch.storage.paths import embedded


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


def test_texts_become_their_tokens(tokenizer):
    texts = ["the wall and you", "x", "Grüße 😀", "<|endoftext|>"]
    encoded, cut = encode_texts(texts, tokenizer, 1000)
    assert [tokenizer.decode(ids) for ids in encoded] == texts and not any(cut)
    assert all(tokenizer.end_of_text_id not in ids for ids in encoded)


@pytest.mark.parametrize(("max_tokens", "cut"), [(1, 3), (4, 2), (5, 1), (6, 1), (7, 0)])
def test_cut_texts_are_reported(tokenizer, max_tokens, cut):
    texts = ["", "xyzab", "xy", "xyzabkj"]  # no merge joins the letters, so 1, 5, 2 and 7 tokens
    encoded, found = encode_texts(texts, tokenizer, max_tokens)
    assert sum(found) == cut and found[0] is False
    assert [tokenizer.decode(ids) for ids in encoded[1:]] == [t[:max_tokens] for t in texts[1:]]


def test_anything_but_texts_is_refused(tokenizer):
    with pytest.raises(DataError, match="text 1.* int"):
        encode_texts(["a", 5], tokenizer, 8)
    with pytest.raises(DataError, match="list of texts"):
        encode_texts("abc", tokenizer, 8)
    assert encode_texts([], tokenizer, 8) == ([], [])


def test_padding_is_on_the_right():
    ids, lengths = pad_batch([[1, 2, 3], [4], [5, 6]], pad_id=9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9], [5, 6, 9]]
    assert lengths.tolist() == [3, 1, 2]
    assert ids.dtype == lengths.dtype == torch.int64


def test_padding_to_a_length():
    ids, lengths = pad_batch([[1, 2], [3]], pad_id=0, to=4)
    assert ids.tolist() == [[1, 2, 0, 0], [3, 0, 0, 0]] and lengths.tolist() == [2, 1]
    assert torch.equal(pad_batch([[1, 2], [3]], 0, to=2)[0], pad_batch([[1, 2], [3]], 0)[0])


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_hold_every_text_once_longest_first(batch_size):
    draw = random.Random(batch_size)
    encoded = [[0] * draw.randrange(1, 30) for _ in range(20)]
    batches = list(by_length(encoded, batch_size))
    order = [n for batch in batches for n in batch]
    assert sorted(order) == list(range(20))
    lengths = [len(encoded[n]) for n in order]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(batches) == -(-20 // batch_size)


def test_texts_of_one_length_keep_their_order():
    assert list(by_length([[0]] * 5, 2)) == [[0, 1], [2, 3], [4]]
    assert list(by_length([], 2)) == []


# --- enormous texts ---

ALPHABETS = [
    "a",
    " ",
    "ab",
    "a ",
    "the and",
    " \t\n",
    "01",
    "!?.",
    "é",
    "日本語",
    "😀",
    "👩\u200d👩\u200d👧\u200d👦",
    "\u200d",
    "a\x00\x1b",
    "<|endoftext|>",
    "Aa é😀 1!\n",
    "\ud83d\ude00",
    "\u0301a",
    "' s't've",
]


@pytest.fixture(scope="module")
def mini() -> Tokenizer:
    return Tokenizer(embedded("weights/mini"))


def adversarial(draw: random.Random, tokenizer: Tokenizer, size: int) -> str:
    """Make a text of about `size` characters that is hard to tokenise.

    It has repeated characters, mixtures, or many of the longest tokens.
    """
    kind = draw.randrange(3)
    if kind == 0:
        return (draw.choice(ALPHABETS) * size)[:size]
    if kind == 1:
        return "".join(draw.choices(draw.choice(ALPHABETS) + draw.choice(ALPHABETS), k=size))
    longest = sorted((tokenizer.decode([n]) for n in range(tokenizer.n_vocab - 1)), key=len)[-50:]
    few = draw.sample(longest, draw.randrange(1, 4)) + [draw.choice(["", "a", " "])]
    return "".join(draw.choices(few, k=1 + size // 8))[:size]


def test_the_longest_token(mini: Tokenizer) -> None:
    lengths = [len(mini._encoding.decode_single_token_bytes(n)) for n in range(mini.n_vocab - 1)]
    assert mini.longest_token == max(lengths) > 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_text_cut_before_it_is_encoded_has_the_same_first_tokens(
    mini: Tokenizer, seed: int
) -> None:
    draw = random.Random(seed)
    for _ in range(400):
        max_tokens = draw.choice([1, 2, 3, 8, 20])
        longest = mini.longest_token * max_tokens + MARGIN
        text = adversarial(draw, mini, longest + draw.randrange(1, 300))
        (ids,), (cut,) = encode_texts([text], mini, max_tokens)
        whole = mini.encode(text)
        if text.strip():
            assert ids == whole[:max_tokens] and cut == (len(whole) > max_tokens)
        else:
            assert (ids, cut) == ([mini.end_of_text_id], False)


@pytest.mark.parametrize(
    "text",
    [" " * 10**6 + "x", "a" * 10**6, "😀" * 10**6, "\u200d" * 10**6, "a " * 10**6, "=" * 10**7],
)
def test_only_the_beginning_of_an_enormous_text_is_encoded(mini, monkeypatch, text) -> None:
    given = []
    encode = mini.encode
    monkeypatch.setattr(mini, "encode", lambda part: given.append(len(part)) or encode(part))
    (ids,), (cut,) = encode_texts([text], mini, 384)
    assert len(ids) == 384 and cut
    assert given == [mini.longest_token * 384 + MARGIN]


def test_white_space_is_one_end_of_text(mini: Tokenizer) -> None:
    texts = ["", " ", "\n\t ", "\u3000\u2003", "\x1c", "x"]
    ids = [[mini.end_of_text_id]] * 5 + [mini.encode("x")]
    assert encode_texts(texts, mini, 8) == (ids, [False] * 6)


@pytest.mark.parametrize(
    "text", ["a\x00b", "\x1b[31m\x07", "\x00", "say <|endoftext|> now", "\ufeff"]
)
def test_unusual_characters_are_encoded(mini: Tokenizer, text: str) -> None:
    (ids,), _ = encode_texts([text], mini, 100)
    assert mini.decode(ids) == text and mini.end_of_text_id not in ids


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ([[1, 277]], "text 0.* 277.* 0 to 276"),
        ([[1], [0, -1]], "text 1.* -1"),
        ([[3], []], "text 1.* no ids"),
        ([1, 2], "text 0.* a list of ids, not 1"),
        (torch.tensor([1, 2]), "text 0.* a list of ids"),
        ([[1], [2.0]], "text 1.* float"),
        ([np.array([1.0])], "text 0.* float"),
        (torch.tensor([[1.0, 2.0]]), "text 0.* float"),
        (["12"], "text 0.* a list of ids, not '12'"),
        ([[1, None]], "text 0.* NoneType"),
    ],
)
def test_ids_that_the_model_does_not_have_are_refused(tiny_checkpoint, encoded, message):
    """The ids are checked before they reach a GPU, which an invalid id would make unusable."""
    classifier = Classifier.on_base(tiny_checkpoint, ["ham", "spam"])
    for use in (classifier.logits, classifier.texts):
        with pytest.raises(DataError, match=message):
            use(encoded)
    expected = classifier.logits([[276, 0]])
    assert expected.isfinite().all()
    for same in ([np.array([276, 0])], torch.tensor([[276, 0]]), ((276, 0),)):
        assert torch.equal(classifier.logits(same), expected)


def test_an_empty_list_of_texts_has_no_predictions(tiny_checkpoint):
    classifier = Classifier.on_base(tiny_checkpoint, ["ham", "spam"])
    assert classifier.predict([]) == [] and classifier.logits([]).shape == (0, 2)
    assert len(classifier.predict(["one"])) == 1
