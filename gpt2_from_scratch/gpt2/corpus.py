"""Plain text to a stream of token ids for pretraining: read, train a byte-level BPE, encode.

A corpus is a folder of `.txt` files; a blank line ends a document. If it holds a `MANIFEST.tsv`
with columns `file` and `register`, whole registers can be given more weight.
"""

import csv
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer, bytes_to_characters
from gpt2_from_scratch.progress import progress_bar

HELD_OUT_ONE_IN = 250  # documents kept for validation

# How people type on a phone. Written for this project; it teaches the miniature that "u" is "you".
TEXTING = {
    "you": "u",
    "your": "ur",
    "you're": "ur",
    "are": "r",
    "for": "4",
    "to": "2",
    "too": "2",
    "before": "b4",
    "great": "gr8",
    "please": "pls",
    "thanks": "thx",
    "tomorrow": "tmrw",
    "tonight": "2nite",
    "and": "n",
    "because": "cos",
    "okay": "ok",
    "what": "wat",
    "with": "wiv",
    "have": "hav",
    "love": "luv",
    "message": "msg",
    "text": "txt",
    "see": "c",
    "be": "b",
    "why": "y",
    "people": "ppl",
    "good": "gd",
    "night": "nite",
    "want": "wan",
    "never": "neva",
    "that": "dat",
    "the": "da",
    "this": "dis",
    "when": "wen",
    "would": "wud",
    "could": "cud",
    "just": "jus",
    "don't": "dun",
    "know": "noe",
    "about": "abt",
    "back": "bk",
    "week": "wk",
    "weekend": "wkend",
    "today": "2day",
    "later": "l8r",
    "sorry": "sry",
    "something": "smth",
    "right": "rite",
    "minutes": "mins",
    "yes": "ya",
    "call": "cal",
    "been": "bin",
    "number": "num",
    "now": "nw",
}


@dataclass(frozen=True)
class Source:
    """One file of the corpus as token ids, with the places where a training row may start."""

    name: str
    tokens: np.ndarray  # (n,) uint16
    line_starts: np.ndarray  # (lines,) int64, indices into tokens
    weight: float  # share of the training rows drawn from it, before normalisation


def read_documents(path: Path) -> list[str]:
    """The documents of one text file, in order."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}; save the file as UTF-8") from None
    return [document.strip("\n") for document in re.split(r"\n\s*\n", text) if document.strip()]


def is_held_out(document: str) -> bool:
    """Whether a document is kept for validation; equal documents always fall on the same side."""
    return zlib.crc32(document.encode()) % HELD_OUT_ONE_IN == 0


def registers(folder: Path) -> dict[str, str]:
    """{file name: register} from MANIFEST.tsv, for every .txt file of the corpus."""
    files = sorted(path.name for path in folder.glob("*.txt"))
    if not files:
        raise DataError(f"{folder}: no .txt files to pretrain on")
    manifest = folder / "MANIFEST.tsv"
    listed = {}
    if manifest.exists():
        with manifest.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            listed = {row.get("file"): row.get("register") for row in rows}
    return {name: listed.get(name) or "general" for name in files}


def train_bpe(texts: Iterable[str], n_vocab: int) -> list[tuple[str, str]]:
    """Learn the merges of a byte-level BPE with `n_vocab` tokens, <|endoftext|> included.

    Digits are kept apart while learning, so no merge joins two: a phone number stays a row of
    digits.
    """
    try:
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Trainable
    except ModuleNotFoundError:
        raise UsageError(
            "learning a vocabulary takes a package more: pip install 'gpt2-from-scratch[pretrain]'"
        ) from None

    trainable = Trainable(models.BPE())
    trainable.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab - 1,
        initial_alphabet=list(bytes_to_characters().values()),
        show_progress=False,
    )
    trainable.train_from_iterator(texts, trainer)
    merges = json.loads(trainable.to_str())["model"]["merges"]
    if len(merges) != n_vocab - 257:
        raise DataError(
            f"the text yields {len(merges) + 257} tokens, not n_vocab = {n_vocab}; "
            "take more text or fewer tokens"
        )
    return [tuple(pair) for pair in merges]


def as_typed_on_a_phone(line: str, draw: random.Random) -> str:
    """The line as somebody in a hurry would type it: lower case or shouting, short forms, no '."""
    style = draw.random()
    if style < 0.1:
        return line.upper()
    if style < 0.55:
        line = line.lower()
    if draw.random() < 0.7:
        keenness = draw.random()
        words = (
            TEXTING[word.lower()] if word.lower() in TEXTING and draw.random() < keenness else word
            for word in re.split(r"(\W*\s+\W*|[.,!?]+$)", line)
        )
        line = "".join(words)
    if draw.random() < 0.5:
        line = line.replace("'", "") or line
    return line


def encode_source(
    name: str, documents: Iterable[str], tokenizer: Tokenizer, weight: float
) -> Source:
    """Documents to one row of ids, each document ended by <|endoftext|>."""
    newline = tokenizer.encode("\n")
    ids: list[np.ndarray] = []
    starts: list[int] = []
    position = 0
    for document in documents:
        for line in document.split("\n"):
            encoded = np.array(tokenizer.encode(line) + newline, dtype=np.uint16)
            starts.append(position)
            ids.append(encoded)
            position += len(encoded)
        ids[-1][-1] = tokenizer.end_of_text_id  # in place of the last newline
    return Source(name, np.concatenate(ids), np.array(starts), weight)


def encode_corpus(
    folder: Path, tokenizer: Tokenizer, register_weights: dict[str, float], phone: float, seed: int
) -> tuple[list[Source], list[Source]]:
    """Encode every file: (training sources, held-out sources).

    A source weighs its number of bytes times its register's weight (1 when not given). Files of
    the register `conversation` stand there a second time as typed on a phone, with `phone` times
    the weight.
    """
    train, held_out = [], []
    for name, register in progress_bar(registers(folder).items(), desc="encode", unit="file"):
        documents = read_documents(folder / name)
        kept = [document for document in documents if not is_held_out(document)]
        weight = register_weights.get(register, 1.0) * sum(map(len, kept))
        if kept:
            train.append(encode_source(name, kept, tokenizer, weight))
        if kept and register == "conversation" and phone:
            draw = random.Random(f"{seed} {name}")
            typed = (
                "\n".join(as_typed_on_a_phone(line, draw) for line in document.split("\n"))
                for document in kept
            )
            train.append(encode_source(f"{name} typed", typed, tokenizer, weight * phone))
        if aside := [document for document in documents if is_held_out(document)]:
            held_out.append(encode_source(name, aside, tokenizer, 1.0))
    return train, held_out


def bpe_sample(folder: Path, phone: float, seed: int) -> Iterator[str]:
    """The lines a vocabulary is learned from: all of the conversation, one in four of the rest."""
    draw = random.Random(seed)
    for name, register in registers(folder).items():
        for document in read_documents(folder / name):
            if is_held_out(document):
                continue
            for line in document.split("\n"):
                if register == "conversation":
                    yield line
                    if phone and draw.random() < 0.5:
                        yield as_typed_on_a_phone(line, draw)
                elif draw.random() < 0.25:
                    yield line


def n_bytes(source: Source, tokenizer: Tokenizer) -> int:
    """How many bytes of text the tokens of a source stand for."""
    text = source.tokens[source.tokens != tokenizer.end_of_text_id]
    ends = len(source.tokens) - len(text)  # each in place of a newline, one byte
    return len(tokenizer.decode(text.tolist()).encode()) + ends
