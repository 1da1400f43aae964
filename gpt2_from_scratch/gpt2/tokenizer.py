"""The byte-level BPE of a checkpoint, run by tiktoken.

The vocabulary is stored in `vocab.bpe` and `encoder.json`, or in Hugging Face's `tokenizer.json`. Nothing is downloaded or cached. This module
reads the files itself, because tiktoken's own loader caches local files and returns the old
contents after a file has changed.

Sources: https://github.com/openai/gpt-2/blob/master/src/encoder.py and
tiktoken_ext/openai_public.py.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import tiktoken

from gpt2_from_scratch.errors import CheckpointError, DataError
from gpt2_from_scratch.storage.files import and_is, read_bounded, read_json, write_text
from gpt2_from_scratch.storage.paths import expanded, model_folder

TOKENIZER_JSON = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
LARGEST_MERGES = 1 << 25  # bytes; OpenAI's vocab.bpe has half a million

# The pattern that splits a text into words before bytes are merged. It is OpenAI's pattern with
# possessive quantifiers (++), which give the same words without backtracking.
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# tiktoken aborts on about a million whitespace characters followed by another character. The pattern
# above always splits such a run before its last character. Splitting the text at that place first
# does not change any token.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_BEFORE_LAST_SPACE = re.compile(f"(?=[{_SPACE}][^{_SPACE}])(?<=[{_SPACE}]{{1000}})")


class Tokenizer:
    """A tokenizer with the vocabulary of a model.

    It converts text to token ids and back. `model` is a name ("mini", "124M", ...) or a folder.
    Raises CheckpointError if a file is missing or if the two files do not belong together.
    """

    def __init__(self, model: str | Path):
        folder = model_folder(model)
        ranks, end_of_text, self.n_added, self.appends_newline = _read_bpe(folder)
        self.end_of_text_id = end_of_text  # also used as padding, because no text encodes to it
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

    def fits(self, n_vocab: int) -> bool:
        """Return whether a model with `n_vocab` embeddings can use this tokenizer.

        The model may have embeddings of tokens that were added, such as [PAD]. Some programs pad the
        number to a multiple of 64 or 128. No text contains these tokens.
        """
        more = n_vocab - self.n_vocab - self.n_added
        return more == 0 or (n_vocab % 64 == 0 and 0 < more < 128)

    def encode(self, text: str) -> list[int]:
        """Encode a text. The string `<|endoftext|>` in it is encoded as ordinary text.

        An empty text has no tokens. Unpaired surrogates become U+FFFD. Raises DataError if `text`
        is not a string.
        """
        if not isinstance(text, str):
            raise DataError(f"a text must be a string, not {type(text).__name__}: {text!r:.80}")
        if len(text) < 100_000:
            return self._encoding.encode_ordinary(text)
        parts = _BEFORE_LAST_SPACE.split(text)
        return [token for part in parts for token in self._encoding.encode_ordinary(part)]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids. Bytes that are not UTF-8 become U+FFFD.

        Raises DataError for an id that is not in the vocabulary.
        """
        try:
            return self._encoding.decode(list(ids))
        except (KeyError, OverflowError) as error:
            raise self._unknown(error) from None

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, which may be an incomplete character.

        Joined together, the bytes of a text's tokens are the text in UTF-8. Raises DataError for an
        id that is not in the vocabulary.
        """
        try:
            return self._encoding.decode_single_token_bytes(token)
        except (KeyError, OverflowError) as error:
            raise self._unknown(error) from None

    def _unknown(self, error: Exception) -> DataError:
        return DataError(f"token ids must be from 0 to {self.n_vocab - 1}: {error}")


def bytes_to_characters() -> dict[int, str]:
    """Map each byte to the printable character that represents it in `vocab.bpe`.

    Printable Latin-1 bytes map to themselves. The other bytes (space, control characters) map to
    U+0100, U+0101, ... in order. The dictionary has the order of the first 256 token ids.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + n) for n, byte in enumerate(others)
    }


def _read_bpe(folder: Path) -> tuple[dict[bytes, int], int, int, bool]:
    """Read the vocabulary of a model.

    Returns {token bytes: id}, the id of <|endoftext|>, the number of tokens added after it, and
    whether the tokenizer.json appends a newline (see `_appends_newline`).
    `vocab.bpe` lists the merges in the order in which they were learned. `encoder.json` contains the
    id of every token. A token's id must be 256 plus the rank of its merge, because tiktoken uses ids
    as ranks. Hugging Face names the same two files `merges.txt` and `vocab.json`, and its
    `tokenizer.json` contains both. All of these files that exist must be equal.
    """
    merges = {path: _read_merges(path) for path in _existing(folder, "vocab.bpe", "merges.txt")}
    ids = {path: read_json(path) for path in _existing(folder, "encoder.json", "vocab.json")}
    added, appends_newline = 0, False
    if (path := folder / TOKENIZER_JSON).exists():
        merges[path], ids[path], added, appends_newline = _read_tokenizer_json(path)
    merges = merges or {folder / "vocab.bpe": _read_merges(folder / "vocab.bpe")}
    ids = ids or {folder / "encoder.json": read_json(folder / "encoder.json")}
    merges_path, merged = next(iter(merges.items()))
    for path, other in merges.items():
        if other != merged:
            pairs = zip_longest(merged, other, fillvalue="nothing")
            rank, (ours, theirs) = next((n, p) for n, p in enumerate(pairs) if p[0] != p[1])
            raise CheckpointError(
                f"{merges_path}: merge {rank} makes {ours!r:.80}, but in {path.name} in the same folder "
                f"it makes {theirs!r:.80}. Remove the file that belongs to another model."
            )
    characters = bytes_to_characters()
    tokens = [*characters.values(), *merged]
    expected = {token: rank for rank, token in enumerate([*tokens, END_OF_TEXT])}
    for path, found in ids.items():
        _check_ids(path, found, expected, merges_path, len(tokens))
    to_byte = {character: byte for byte, character in characters.items()}
    try:
        ranks = {bytes(to_byte[c] for c in token): rank for rank, token in enumerate(tokens)}
    except KeyError as error:
        raise CheckpointError(f"{merges_path}: {error} does not represent a byte") from None
    return ranks, len(tokens), added, appends_newline


def _check_ids(
    path: Path, found: dict[str, Any], expected: dict[str, int], merges_path: Path, n_tokens: int
) -> None:
    if found == expected and len(expected) == n_tokens + 1:
        return
    first_difference = "a merge is listed twice"
    for token in [*expected, *found]:
        is_id, should_be = found.get(token), expected.get(token)
        if is_id != should_be:
            first_difference = f"{token!r:.80} has id {is_id!r:.80} instead of {should_be}"
            break
    raise CheckpointError(
        f"{path} ({len(found)} tokens) does not list the 256 bytes, the "
        f"{n_tokens - 256} merges of {merges_path.name} and {END_OF_TEXT} in this order; "
        f"first difference: {first_difference}. "
        "Check that the two files belong to the same model."
    )


# settings of tokenizer.json: (path in the file, values that GPT-2's BPE has; None also if missing)
BPE_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("model", "type"): ("BPE", None),  # older files have no type
    ("model", "dropout"): (None,),
    ("model", "continuing_subword_prefix"): ("", None),
    ("model", "end_of_word_suffix"): ("", None),
    ("model", "byte_fallback"): (False, None),
    ("model", "ignore_merges"): (False, None),
    ("normalizer",): (None,),
    ("pre_tokenizer", "type"): ("ByteLevel",),
    ("pre_tokenizer", "add_prefix_space"): (False,),
    ("pre_tokenizer", "use_regex"): (True, None),
    ("decoder", "type"): ("ByteLevel", None),
    ("post_processor", "type"): ("ByteLevel", "TemplateProcessing", None),
}


def _appends_newline(contents: dict[str, Any]) -> bool:
    """Whether a tokenizer.json tidies each text and appends a newline, as those of `export` do.

    Its classifier then reads the newline. The tokens of a text are still GPT-2's, because this
    package tidies texts and appends the newline itself. The characters in the last pattern are not
    compared, because they depend on the version of Unicode.
    """
    try:
        sequence, ending = contents["post_processor"]["single"]
        steps = contents["normalizer"]["normalizers"]
        newline = bytes_to_characters()[ord("\n")]
        ids = contents["post_processor"]["special_tokens"][newline]["ids"]
        kinds = [step["type"] for step in steps]
        patterns = [step["pattern"]["Regex"] for step in steps[1:]]
        return (
            "Sequence" in sequence
            and ending["SpecialToken"]["id"] == newline
            and ids == [contents["model"]["vocab"][newline]]
            and kinds == ["NFC", "Replace", "Replace"]
            and [step["content"] for step in steps[1:]] == ["\n", ""]
            and patterns[0] == "\\r\\n?"
            and re.fullmatch(r"\(\?<!(\[[^\]]+\])\)\1\+\\z", patterns[1]) is not None
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _read_tokenizer_json(path: Path) -> tuple[list[str], dict[str, Any], int, bool]:
    """Read Hugging Face's tokenizer.json.

    Returns the tokens that the merges produce, {token: id}, the number of tokens that were added
    after <|endoftext|>, and whether it appends a newline (see `_appends_newline`). Raises
    CheckpointError if it is not a byte-level BPE like GPT-2's, because it then gives other tokens.
    """
    contents = read_json(path)
    if appends_newline := _appends_newline(contents):
        contents |= {"normalizer": None, "post_processor": None}
    for keys, allowed in BPE_SETTINGS.items():
        value: Any = contents
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value not in allowed:
            raise CheckpointError(
                f"{path}: {'.'.join(keys)} is {value!r:.80}, but GPT-2's byte-level BPE has "
                f"{allowed[0]!r}. This tokenizer gives other tokens than GPT-2's."
            )
    try:
        template = (contents.get("post_processor") or {}).get("single") or []
        if any("SpecialToken" in part for part in template):
            raise CheckpointError(f"{path}: post_processor adds tokens to a text; GPT-2's does not")
        merges = [
            pair.split(" ") if isinstance(pair, str) else pair
            for pair in contents["model"]["merges"]
        ]
        if any(len(pair) != 2 for pair in merges):
            raise ValueError("a merge does not have two tokens")
        tokens, ids = ["".join(pair) for pair in merges], dict(contents["model"]["vocab"])
        added = {token["content"]: token for token in contents.get("added_tokens") or []}
        more = {
            name: token["id"] for name, token in added.items() if token["id"] > len(tokens) + 256
        }
        if END_OF_TEXT in added:
            ids[END_OF_TEXT] = added[END_OF_TEXT]["id"]
        for name in added.keys() - {END_OF_TEXT}:
            if name not in more or not added[name]["special"]:
                raise CheckpointError(
                    f"{path}: the added token {name!r:.80} is found in texts, which GPT-2's BPE does not do"
                )
        if sorted(more.values()) != [len(tokens) + 257 + n for n in range(len(more))]:
            raise ValueError(f"the ids of added tokens are {sorted(more.values())!r:.80}")
        ids = {token: number for token, number in ids.items() if token not in more}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a valid tokenizer: {error!r:.200}") from None
    return tokens, ids, len(more), appends_newline


def _existing(folder: Path, *names: str) -> list[Path]:
    return [folder / name for name in names if (folder / name).exists()]


def _read_merges(path: Path) -> list[str]:
    """Read the tokens that the merges produce, in order."""
    raw = read_bounded(path, LARGEST_MERGES)
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8{and_is(raw)}: {error}") from None
    if not lines[0].startswith("#version"):
        raise CheckpointError(
            f"{path}: the first line must be '#version: ...', not {lines[0]!r:.80}"
            f"{and_is(lines[0].encode())}"
        )
    if lines[-1] != "":
        raise CheckpointError(
            f"{path} does not end with a newline, so it is probably cut off; download it again"
        )
    tokens = []
    for line, merge in enumerate(lines[1:-1], start=2):
        halves = merge.split(" ")
        if len(halves) != 2 or not all(halves):
            raise CheckpointError(
                f"{path}, line {line}: expected two tokens to merge, found {merge!r:.80}"
            )
        tokens.append("".join(halves))
    return tokens


def write_bpe(folder: str | Path, merges: Sequence[tuple[str, str]]) -> None:
    """Write `vocab.bpe` and `encoder.json` for these merges, in OpenAI's format."""
    folder = expanded(folder)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    tokens = [*bytes_to_characters().values(), *("".join(pair) for pair in merges), END_OF_TEXT]
    write_text(folder / "vocab.bpe", "\n".join(lines) + "\n")
    write_text(folder / "encoder.json", json.dumps({token: n for n, token in enumerate(tokens)}))
