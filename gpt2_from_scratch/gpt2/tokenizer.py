"""The checkpoint's own byte-level BPE: its `vocab.bpe` and `encoder.json`, run by tiktoken.

Nothing is downloaded and nothing is cached. (tiktoken's own loader keeps a copy of a local file
under its path and later serves the old copy for a changed file; so the two files are read here.)

Sources: https://github.com/openai/gpt-2/blob/master/src/encoder.py and
tiktoken_ext/openai_public.py.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiktoken

from gpt2_from_scratch.errors import CheckpointError, DataError
from gpt2_from_scratch.storage.files import and_is, read_bounded, read_json, write_text

END_OF_TEXT = "<|endoftext|>"
LARGEST_MERGES = 1 << 25  # bytes; OpenAI's vocab.bpe has half a million

# How GPT-2 cuts a text into words before merging bytes. OpenAI's pattern, with possessive
# quantifiers (++), which give the same words and save the regular-expression engine from
# backtracking.
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# tiktoken aborts on about a million white spaces followed by anything else. The pattern above
# always cuts such a run before its last character, so cutting the text there first changes no
# token.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_BEFORE_LAST_SPACE = re.compile(f"(?=[{_SPACE}][^{_SPACE}])(?<=[{_SPACE}]{{1000}})")


class Tokenizer:
    """Text to token ids and back, as the model in `folder` learned them.

    Raises CheckpointError when a file is missing or the two do not belong together.
    """

    def __init__(self, folder: Path):
        ranks, end_of_text = read_bpe(Path(folder))
        self.end_of_text_id = end_of_text  # also the pad: text never encodes to it
        self.n_vocab = len(ranks) + 1
        self.longest_token = max(map(len, ranks))  # bytes
        self.sha256 = hashlib.sha256(
            b"\n".join(token.hex().encode() for token in ranks)
        ).hexdigest()
        self._encoding = tiktoken.Encoding(
            name=str(folder),
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: end_of_text},
            explicit_n_vocab=self.n_vocab,
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, all of it ordinary: `<|endoftext|>` in a message is seven tokens.

        An empty text has no tokens; unpaired surrogates become U+FFFD. Raises DataError for
        anything but a string.
        """
        if not isinstance(text, str):
            raise DataError(f"a text must be a string, not {type(text).__name__}: {text!r:.80}")
        if len(text) < 100_000:
            return self._encoding.encode_ordinary(text)
        parts = _BEFORE_LAST_SPACE.split(text)
        return [token for part in parts for token in self._encoding.encode_ordinary(part)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Raises DataError for an id the vocabulary does not have.
        """
        try:
            return self._encoding.decode(list(ids))
        except (KeyError, OverflowError) as error:
            raise DataError(
                f"an id is not in this vocabulary of 0 to {self.n_vocab - 1}: {error}"
            ) from None

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for, perhaps a part of a character; those of a text's tokens,
        one after the other, are the text in UTF-8.

        Raises DataError for an id the vocabulary does not have.
        """
        try:
            return self._encoding.decode_single_token_bytes(token)
        except (KeyError, OverflowError) as error:
            raise DataError(
                f"an id is not in this vocabulary of 0 to {self.n_vocab - 1}: {error}"
            ) from None


def bytes_to_characters() -> dict[int, str]:
    """The printable character that stands for each byte in `vocab.bpe` and `encoder.json`.

    Printable Latin-1 bytes stand for themselves; the others (space, controls) take the characters
    from U+0100 on, in order. The order of the dictionary is the order of the first 256 token ids.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + n) for n, byte in enumerate(others)
    }


def read_bpe(folder: Path) -> tuple[dict[bytes, int], int]:
    """Read `vocab.bpe` and `encoder.json`: ({token bytes: id}, id of <|endoftext|>).

    Hugging Face calls the same two files `merges.txt` and `vocab.json`. `vocab.bpe` lists the
    merges, most frequent first; `encoder.json` the id of every token. A token's id must be 256
    plus the rank of its merge: that is what lets tiktoken use ids as ranks.
    """
    merges_path = _first_that_exists(folder, "vocab.bpe", "merges.txt")
    ids_path = _first_that_exists(folder, "encoder.json", "vocab.json")
    characters = bytes_to_characters()
    to_byte = {character: byte for byte, character in characters.items()}
    tokens = list(characters.values())
    for line, merge in enumerate(_read_merges(merges_path), start=2):
        halves = merge.split(" ")
        if len(halves) != 2 or not all(halves):
            raise CheckpointError(
                f"{merges_path}, line {line}: expected two tokens to merge, found {merge!r:.80}"
            )
        tokens.append("".join(halves))
    expected = {token: rank for rank, token in enumerate([*tokens, END_OF_TEXT])}
    found = read_json(ids_path)
    if found != expected or len(expected) != len(tokens) + 1:
        raise CheckpointError(
            f"{ids_path} ({len(found)} tokens) does not list the 256 bytes, the {len(tokens) - 256} merges of "
            f"{merges_path.name} and {END_OF_TEXT}, in this order; first difference: "
            f"{_first_difference(found, expected)}. Do the two files belong to the same model?"
        )
    try:
        ranks = {bytes(to_byte[c] for c in token): rank for rank, token in enumerate(tokens)}
    except KeyError as error:
        raise CheckpointError(f"{merges_path}: {error} stands for no byte") from None
    return ranks, len(tokens)


def write_bpe(folder: Path, merges: Sequence[tuple[str, str]]) -> None:
    """Write `vocab.bpe` and `encoder.json` for these merges, in OpenAI's format."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    tokens = [*bytes_to_characters().values(), *("".join(pair) for pair in merges), END_OF_TEXT]
    write_text(folder / "vocab.bpe", "\n".join(lines) + "\n")
    write_text(folder / "encoder.json", json.dumps({token: n for n, token in enumerate(tokens)}))


def _first_that_exists(folder: Path, *names: str) -> Path:
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def _read_merges(path: Path) -> list[str]:
    lines = _read(path).split("\n")
    if not lines[0].startswith("#version"):
        raise CheckpointError(
            f"{path}: the first line must be '#version: ...', not {lines[0]!r:.80}"
            f"{and_is(lines[0].encode())}"
        )
    if lines[-1] != "":
        raise CheckpointError(f"{path}: the last line does not end; the file looks cut off")
    return lines[1:-1]


def _read(path: Path) -> str:
    raw = read_bounded(path, LARGEST_MERGES)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8{and_is(raw)}: {error}") from None


def _first_difference(found: dict[str, Any], expected: dict[str, int]) -> str:
    for token in [*expected, *found]:
        if found.get(token) != expected.get(token):
            return f"{token!r} has id {found.get(token)} instead of {expected.get(token)}"
    return "a merge is listed twice"
