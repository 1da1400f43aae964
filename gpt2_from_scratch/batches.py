"""Texts to padded batches of token ids. B texts, T tokens of the longest, N texts in all."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.tokenizer import Tokenizer


def encode_texts(
    texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of each text, cut to its first `max_tokens`, and whether the text was cut.

    An empty text becomes the single token <|endoftext|>, so that there is something to read.
    """
    if isinstance(texts, str):  # it would be taken for a list of letters
        raise DataError(f"give a list of texts, not one string: [{texts!r:.80}]")
    encoded = [tokenizer.encode(text) or [tokenizer.end_of_text_id] for text in texts]
    cut = [len(ids) > max_tokens for ids in encoded]
    return [ids[:max_tokens] for ids in encoded], cut


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
