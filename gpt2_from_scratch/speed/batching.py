"""Encode texts, group them by length, and pad them to batches.

Shapes: B texts per batch, T tokens in the longest text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from numbers import Integral
from unicodedata import category, normalize

import torch
from torch import Tensor

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

MARGIN = 256  # additional characters that are encoded, see `encode_texts`
# Unicode categories of control, format and white space characters
INVISIBLE = {"Cc", "Cf", "Zl", "Zp", "Zs"}
# invisible characters of other categories, from Unicode's list Default_Ignorable_Code_Point
IGNORABLE = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10)}


def encode_texts(
    texts: Iterable[str], tokenizer: Tokenizer, max_tokens: int, *, end: Sequence[int] = ()
) -> tuple[list[list[int]], list[bool]]:
    """Encode texts, and keep at most the first `max_tokens` tokens of each.

    With `end`, texts are tidied first (see `tidied`), and these tokens are appended, even if the text
    was cut. Without `end`, a text that is empty or only white space becomes the single token
    <|endoftext|>, because the model needs at least one token. Returns the token ids of each text, and
    for each text whether it was cut. Raises DataError if `texts` is not a list of strings.
    """
    refuse_no_list(texts)
    max_tokens -= len(end)
    # A token has at most `longest_token` characters, so the first `max_tokens` tokens end before the
    # margin. Cutting the text may change tokens near the cut, but only within the margin.
    longest = tokenizer.longest_token * max_tokens + MARGIN
    encoded, cut = [], []
    # one object per token, because lists of new ones take twice the memory
    same: dict[int, int] = {}
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(no_string(text, number))
        if end:
            ids = tokenizer.encode(tidied(text)[:longest])
        else:
            ids = tokenizer.encode(text[:longest]) if text.strip() else [tokenizer.end_of_text_id]
        cut.append(len(ids) > max_tokens)
        ids = [*ids[:max_tokens], *end]
        encoded.append([*map(same.setdefault, ids, ids)])
    return encoded, cut


def tidied(text: str) -> str:
    """Return a text without differences that a reader cannot see.

    Characters are composed (Unicode's NFC), each line end becomes a newline, and white space and
    invisible characters at the end are removed.
    """
    text = normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    end = len(text)
    while end and (category(text[end - 1]) in INVISIBLE or ord(text[end - 1]) in IGNORABLE):
        end -= 1
    return text[:end]


def end_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that are appended to every text for heads that read an end token.

    They are those of a newline, which GPT-2 often saw after a text. The token <|endoftext|> would not
    do: Hugging Face's classifier reads the last token that is not padding, and it uses this token as
    padding.
    """
    return tokenizer.encode("\n")


def refuse_no_list(texts: object) -> None:
    """Check that an argument can be used as a list of texts.

    Raises DataError unless it is a list, column, one-dimensional array or iterator. Iterating over a
    string would give its letters, and iterating over a table or dictionary would give its keys. A
    set has no order, so predictions could not be assigned to its texts.
    """
    if isinstance(texts, str | bytes | bytearray):
        raise DataError(f"give a list of texts, not one string: [{texts!r:.80}]")
    columns = getattr(texts, "columns", getattr(texts, "column_names", None))
    if columns is not None:  # a DataFrame, or a Dataset of Hugging Face
        names = ", ".join(map(str, columns))
        raise DataError(f'give one column of the table, such as df["text"] (columns: {names:.80})')
    if isinstance(texts, Mapping | set | frozenset) or not hasattr(texts, "__iter__"):
        raise DataError(f"give a list of texts, not {type(texts).__name__}: {texts!r:.80}")
    if getattr(texts, "ndim", 1) != 1:
        raise DataError(f"give a list of texts, not an array of shape {texts.shape}")  # type: ignore[attr-defined]


def no_string(text: object, number: int) -> str:
    """Return the error message for a text that is not a string."""
    kind = type(text).__name__
    is_missing = kind in ("NoneType", "NAType") or (isinstance(text, float) and text != text)
    hint = ". It is a missing value; leave it out, for example with dropna()" if is_missing else ""
    return f"text {number}, counted from 0, must be a string, not {kind}{hint}"


def check_ids(encoded: Sequence[Sequence[int]], n_vocab: int) -> None:
    """Check that every text has valid token ids.

    Raises DataError unless all ids are from 0 to n_vocab - 1. The ids must be checked before they
    are on a GPU, because an invalid id there makes every later computation of the process fail.
    """
    for number, ids in enumerate(encoded):
        values = ids.tolist() if isinstance(ids, Tensor) else ids
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise DataError(
                f"text {number}, counted from 0, must be a list of ids, not {ids!r:.40}. "
                "encode(texts)[0] returns such lists."
            )
        if odd := [kind for kind in {*map(type, values)} if not issubclass(kind, Integral)]:
            what = odd[0].__name__
            raise DataError(
                f"text {number}, counted from 0, has ids of type {what}; ids must be integers"
            )
        if len(ids) == 0:
            raise DataError(f"text {number}, counted from 0, has no ids")
        if not 0 <= min(ids) <= max(ids) < n_vocab:
            wrong = next(token for token in ids if not 0 <= token < n_vocab)
            raise DataError(
                f"text {number}, counted from 0, has the id {wrong}; ids must be from 0 to "
                f"{n_vocab - 1}"
            )


def pad_batch(
    encoded: Sequence[Sequence[int]], pad_id: int, to: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pad texts on the right to the length of the longest text, or to `to` tokens.

    Returns ids (B, T) int64 and the texts' own lengths (B,) int64.
    """
    lengths = torch.tensor([len(ids) for ids in encoded])
    padded = torch.full((len(encoded), to or int(lengths.max())), pad_id)
    for row, ids in zip(padded, encoded, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return padded, lengths


def by_length(
    encoded: Sequence[Sequence[int]], batch_size: int, *, equal: bool = False
) -> Iterator[list[int]]:
    """Yield batches of text indices, longest texts first.

    Texts of a batch have similar lengths, so that there is little padding. With `equal`, all texts
    of a batch have the same length, so that there is no padding at all.
    """
    order = sorted(range(len(encoded)), key=lambda n: -len(encoded[n]))
    groups = [order]
    if equal:
        groups = [list(group) for _, group in groupby(order, key=lambda n: len(encoded[n]))]
    for group in groups:
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size]
