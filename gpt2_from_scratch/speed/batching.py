"""Encode texts, group them by length, and pad them to batches.

B texts per batch, T tokens in the longest of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from numbers import Integral

import torch
from torch import Tensor

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

MARGIN = 256  # characters that are encoded after the last one that can be read


def encode_texts(
    texts: Iterable[str], tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """Encode texts, keep the first `max_tokens` tokens of each, and report which were cut.

    A text of white space alone becomes the single token <|endoftext|>, so that the model has
    something to read. Raises DataError with the index of the first item that is not a string, and
    for what is no list of texts (see `refuse_no_list`).
    """
    refuse_no_list(texts)
    # A token holds at most `longest_token` characters, so no character after `longest` is read. The
    # cut may change how the last word is merged, but not as far back as the margin.
    longest = tokenizer.longest_token * max_tokens + MARGIN
    encoded = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(no_string(text, number))
        ids = tokenizer.encode(text[:longest]) if text.strip() else [tokenizer.end_of_text_id]
        encoded.append(ids)
    cut = [len(ids) > max_tokens for ids in encoded]
    return [ids[:max_tokens] for ids in encoded], cut


def refuse_no_list(texts: object) -> None:
    """Raise DataError unless this is a list, column, array or stream that may consist of texts.

    A string would be read as a list of letters, a table or dictionary as a list of its names, and a
    set has no order for the answers.
    """
    if isinstance(texts, str | bytes | bytearray):
        raise DataError(f"give a list of texts, not one string: [{texts!r:.80}]")
    if (columns := getattr(texts, "columns", None)) is not None:
        names = ", ".join(map(str, columns))
        raise DataError(f'give one column of the table, as in df["text"] (columns: {names:.80})')
    if isinstance(texts, Mapping | set | frozenset) or not hasattr(texts, "__iter__"):
        raise DataError(f"give a list of texts, not {type(texts).__name__}: {texts!r:.80}")
    if getattr(texts, "ndim", 1) != 1:
        raise DataError(f"give a list of texts, not an array of shape {texts.shape}")  # type: ignore[attr-defined]


def no_string(text: object, number: int) -> str:
    """The error message for an item of a list of texts that is not a string."""
    return f"text {number}, counted from 0, must be a string, not {type(text).__name__}"


def check_ids(encoded: Sequence[Sequence[int]], n_vocab: int) -> None:
    """Raise DataError unless every text has ids, and all ids are from 0 to n_vocab - 1.

    Checked before the ids reach a GPU: there a wrong id would end every computation of the process.
    """
    for number, ids in enumerate(encoded):
        values = ids.tolist() if isinstance(ids, Tensor) else ids
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise DataError(
                f"text {number}, counted from 0, is {ids!r:.40}, not a list of ids; "
                "encode(texts)[0] returns them"
            )
        if odd := [kind for kind in {*map(type, values)} if not issubclass(kind, Integral)]:
            what = odd[0].__name__
            raise DataError(
                f"text {number}, counted from 0, has ids of type {what}, not whole ones"
            )
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
    """Pad texts on the right to the longest, or to `to` tokens.

    Returns ids (B, T) int64 and lengths (B,) int64.
    """
    lengths = torch.tensor([len(ids) for ids in encoded])
    padded = torch.full((len(encoded), to or int(lengths.max())), pad_id)
    for row, ids in zip(padded, encoded, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return padded, lengths


def by_length(
    encoded: Sequence[Sequence[int]], batch_size: int, *, equal: bool = False
) -> Iterator[list[int]]:
    """Yield batches of text indices, the longest texts first, so that there is little padding.

    With `equal` there is none: only texts of the same length are in one batch.
    """
    order = sorted(range(len(encoded)), key=lambda n: -len(encoded[n]))
    groups = [order]
    if equal:
        groups = [list(group) for _, group in groupby(order, key=lambda n: len(encoded[n]))]
    for group in groups:
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size]
