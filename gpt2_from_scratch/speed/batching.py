"""Texts to padded batches of token ids. B texts, T tokens of the longest, N texts in all."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

MARGIN = 256  # characters behind the last that can be read


def encode_texts(
    texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of each text, cut to its first `max_tokens`, and whether the text was cut.

    A text of nothing but white space becomes the single token <|endoftext|>, so that there is
    something to read. Raises DataError for the first that is no string, with its index.
    """
    if isinstance(texts, str):  # it would be taken for a list of letters
        raise DataError(f"give a list of texts, not one string: [{texts!r:.80}]")
    # tokens hold at most longest_token characters each; further on none is read, and what the end
    # of a cut word changes in its merges does not reach as far back as the margin
    longest = tokenizer.longest_token * max_tokens + MARGIN
    encoded = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(no_string(text, number))
        ids = tokenizer.encode(text[:longest]) if text.strip() else [tokenizer.end_of_text_id]
        encoded.append(ids)
    cut = [len(ids) > max_tokens for ids in encoded]
    return [ids[:max_tokens] for ids in encoded], cut


def no_string(text: object, number: int) -> str:
    """What to say of an item of a list of texts that is none."""
    return f"text {number}, counted from 0, must be a string, not {type(text).__name__}"


def check_ids(encoded: Sequence[Sequence[int]], n_vocab: int) -> None:
    """Raise DataError unless every text has ids, and all of them are from 0 to n_vocab - 1.

    Before they go to a GPU, where a wrong one would end every computation of the process.
    """
    for number, ids in enumerate(encoded):
        if len(ids) == 0:
            raise DataError(f"text {number}, counted from 0, has no ids")
        if not 0 <= min(ids) <= max(ids) < n_vocab:
            wrong = next(token for token in ids if not 0 <= token < n_vocab)
            raise DataError(
                f"text {number}, counted from 0, has the id {wrong}; ids are from 0 to {n_vocab - 1}"
            )


def pad_batch(
    encoded: Sequence[Sequence[int]], pad_id: int, to: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pad on the right to the longest, or to `to`: ids (B, T) int64, lengths (B,) int64."""
    lengths = torch.tensor([len(ids) for ids in encoded])
    padded = torch.full((len(encoded), to or int(lengths.max())), pad_id)
    for row, ids in zip(padded, encoded, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return padded, lengths


def by_length(encoded: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Batches of indices of texts of about one length, longest first, so that little is padded."""
    order = sorted(range(len(encoded)), key=lambda n: -len(encoded[n]))
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]
