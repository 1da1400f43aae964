"""Texts to padded batches: nothing is lost but what is cut, and what is cut is counted."""

import random
from pathlib import Path

import pytest
import torch

from gpt2_from_scratch.batches import by_length, encode_texts, pad_batch
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


def test_texts_become_their_tokens(tokenizer):
    texts = ["the wall and you", "x", "Grüße 😀", "<|endoftext|>"]
    encoded, cut = encode_texts(texts, tokenizer, 1000)
    assert [tokenizer.decode(ids) for ids in encoded] == texts and not any(cut)
    assert all(tokenizer.end_of_text_id not in ids for ids in encoded)


def test_an_empty_text_is_one_end_of_text(tokenizer):
    assert encode_texts(["", "x"], tokenizer, 8)[0] == [[276], tokenizer.encode("x")]
    assert tokenizer.end_of_text_id == 276
    assert encode_texts([], tokenizer, 8) == ([], [])


@pytest.mark.parametrize(("max_tokens", "cut"), [(1, 3), (4, 2), (5, 1), (6, 1), (7, 0)])
def test_the_cut_ones_are_counted(tokenizer, max_tokens, cut):
    texts = ["", "xyzab", "xy", "xyzabkj"]  # no merge joins these letters: 1, 5, 2 and 7 tokens
    encoded, found = encode_texts(texts, tokenizer, max_tokens)
    assert sum(found) == cut and found[0] is False
    assert [tokenizer.decode(ids) for ids in encoded[1:]] == [t[:max_tokens] for t in texts[1:]]


def test_what_is_no_text_is_refused(tokenizer):
    with pytest.raises(DataError, match="a text must be a string, not int: 5"):
        encode_texts(["a", 5], tokenizer, 8)


def test_padding_stands_on_the_right():
    ids, lengths = pad_batch([[1, 2, 3], [4], [5, 6]], pad_id=9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9], [5, 6, 9]]
    assert lengths.tolist() == [3, 1, 2]
    assert ids.dtype == lengths.dtype == torch.int64


def test_padding_to_a_length():
    ids, lengths = pad_batch([[1, 2], [3]], pad_id=0, to=4)
    assert ids.tolist() == [[1, 2, 0, 0], [3, 0, 0, 0]] and lengths.tolist() == [2, 1]
    assert torch.equal(pad_batch([[1, 2], [3]], 0, to=2)[0], pad_batch([[1, 2], [3]], 0)[0])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20, 100])
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
