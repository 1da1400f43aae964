"""Characters of a text to its tokens and back, exact in bytes.

A byte-level BPE knows no characters: one may be cut into several tokens, and a token may begin with
the space in front of its word. So places are compared in the UTF-8 bytes of the text, of which the
tokens are consecutive pieces. `ids` are always those of the text, perhaps cut off at some token.

T tokens of the text, L characters.
"""

from collections.abc import Sequence

import numpy as np

from gpt2_from_scratch.data.messages import Span
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer


def token_ends(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Where each token ends, in bytes from the beginning of the text: T numbers.

    Raises DataError for an id the vocabulary does not have.
    """
    sizes = [len(tokenizer.token_bytes(token)) for token in ids]
    return [int(end) for end in np.cumsum(sizes, dtype=np.int64)]


def first_tokens(
    text: str, ids: Sequence[int], spans: Sequence[Span], tokenizer: Tokenizer
) -> list[int | None]:
    """Each span's first token, counted from 0: the first that has a byte of it.

    None where the text was cut off before the span, and for a span without characters. Two spans
    can share a token where no space parts them.
    """
    bytes_at = _bytes_in_front(text)
    ends = np.array(token_ends(ids, tokenizer), dtype=np.int64)
    starts = bytes_at[np.array([span.start for span in spans], dtype=np.int64)]
    tokens = np.searchsorted(ends, starts, side="right")  # of the first token that ends behind it
    return [
        int(token) if token < len(ids) and span.start < span.end else None
        for span, token in zip(spans, tokens, strict=True)
    ]


def token_range(
    text: str, ids: Sequence[int], span: Span, tokenizer: Tokenizer
) -> tuple[int, int] | None:
    """The first and the last token that have a byte of the span, both counted from 0.

    None where some of the span was cut off, and for a span without characters.
    """
    bytes_at = _bytes_in_front(text)
    ends = token_ends(ids, tokenizer)
    start, end = bytes_at[span.start], bytes_at[span.end]
    if not ends or end > ends[-1] or span.start >= span.end:
        return None
    return int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, end))


def characters_of(
    text: str, ids: Sequence[int], first: int, last: int, tokenizer: Tokenizer
) -> tuple[int, int]:
    """(start, end) of the characters in the tokens `first` to `last`, the last one included.

    A character that is in them in part counts; white space at either end does not. So the two are
    equal where the tokens hold nothing else.
    """
    bytes_at = _bytes_in_front(text)
    ends = token_ends(ids[: last + 1], tokenizer)
    start = int(np.searchsorted(bytes_at, ends[first - 1] if first else 0, side="right")) - 1
    end = int(np.searchsorted(bytes_at, ends[last]))
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip())


def _bytes_in_front(text: str) -> np.ndarray:
    """How many bytes of the text the tokenizer reads before each character, and in all. (L + 1,)

    It reads half of a character (an unpaired surrogate) as U+FFFD, of three bytes, and two halves
    that belong together as one character of four: here two for each half.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)  # (L,)
    high, low = codes >> 10 == 0xD800 >> 10, codes >> 10 == 0xDC00 >> 10
    pairs = np.flatnonzero(high[:-1] & low[1:])
    sizes[pairs] = sizes[pairs + 1] = 2
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
