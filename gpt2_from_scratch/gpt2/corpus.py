"""Prepare text for pretraining: read it, learn a BPE, and encode it.

A corpus is a folder of `.txt` files in which a blank line ends a document. An optional
`MANIFEST.tsv` has the columns `file` and `register`, where the register is the kind of text in a file
("conversation", "books", ...). Each register can have a weight, and its held-out text gets a score of
its own.
"""

import csv
import json
import logging
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.gpt2.overlap import Overlap
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer, bytes_to_characters
from gpt2_from_scratch.progress import progress_bar

log = logging.getLogger(__name__)

HELD_OUT_ONE_IN = 250  # one document in 250 is held out for validation

# Short forms that people type on a phone. The list was written for this project, so that the
# miniature learns that "u" means "you".
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
    """A file of the corpus as token ids.

    Training rows may start only at the beginning of a line.
    """

    name: str
    tokens: np.ndarray  # (n,) uint16
    line_starts: np.ndarray  # (lines,) int64, indices into tokens
    weight: float  # training rows are drawn from each source in proportion to its weight
    register: str = "general"


@dataclass(frozen=True)
class CorpusFile:
    """The documents of a file of the corpus."""

    name: str
    register: str
    train: list[str]
    held_out: list[str]


def read_documents(path: Path) -> list[str]:
    """Read the documents of a text file, in order."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}. Save the file as UTF-8.") from None
    return [document.strip("\n") for document in re.split(r"\n\s*\n", text) if document.strip()]


def is_held_out(document: str) -> bool:
    """Return whether a document is held out. Identical documents get the same answer."""
    return zlib.crc32(document.encode()) % HELD_OUT_ONE_IN == 0


def registers(folder: Path) -> dict[str, str]:
    """Return {file name: register} for every .txt file of a corpus.

    Registers are read from MANIFEST.tsv. A file that it does not list has the register "general".
    """
    files = sorted(path.name for path in folder.glob("*.txt"))
    if not files:
        raise DataError(f"{folder} contains no .txt files to pretrain on")
    manifest = folder / "MANIFEST.tsv"
    listed = {}
    if manifest.exists():
        with manifest.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            listed = {row.get("file"): row.get("register") for row in rows}
    return {name: listed.get(name) or "general" for name in files}


def read_corpus(folder: Path, excluded: Overlap | None = None) -> Iterator[CorpusFile]:
    """Read the files of a corpus, and remove excluded training lines.

    A training line is removed if it overlaps with an excluded text. Held-out documents are chosen
    before any lines are removed, so the held-out text does not depend on the excluded texts. The
    number of removed lines is logged.
    """
    removed: dict[str, int] = {}
    for name, register in progress_bar(registers(folder).items(), desc="read", unit="file"):
        documents = read_documents(folder / name)
        train = [document for document in documents if not is_held_out(document)]
        if excluded:
            train, count = without_overlap(train, excluded)
            removed |= {name: count} if count else {}
        held_out = [document for document in documents if is_held_out(document)]
        yield CorpusFile(name, register, train, held_out)
    if excluded:
        each = ", ".join(f"{count:,} of {name}" for name, count in removed.items())
        log.info(
            f"removed {sum(removed.values()):,} training lines that overlap with excluded texts"
            f"{f': {each}' if each else ''}"
        )


def without_overlap(documents: list[str], excluded: Overlap) -> tuple[list[str], int]:
    """Remove the lines that overlap with excluded texts.

    Returns the documents that are not empty afterwards, and the number of lines removed.
    """
    lines = [document.split("\n") for document in documents]
    overlaps = excluded.find([line for document in lines for line in document])
    kept = iter(~overlaps)
    left = ["\n".join(line for line in document if next(kept)) for document in lines]
    return [document for document in left if document.strip()], int(overlaps.sum())


def train_bpe(texts: Iterable[str], n_vocab: int) -> list[tuple[str, str]]:
    """Learn the merges of a byte-level BPE with `n_vocab` tokens, including <|endoftext|>.

    Digits are never merged, so a phone number stays a sequence of digits.
    """
    try:
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Trainable
    except ModuleNotFoundError:
        raise UsageError(
            "learning a vocabulary needs the package tokenizers. Install it with: "
            "pip install 'gpt2-from-scratch[pretrain]'"
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
            "use more text or fewer tokens"
        )
    return [tuple(pair) for pair in merges]


def as_typed_on_a_phone(line: str, draw: random.Random) -> str:
    """Rewrite a line as if typed on a phone.

    The result may be all lower or all upper case, contain short forms, and lack apostrophes.
    """
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
    name: str,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    weight: float,
    register: str = "general",
) -> Source:
    """Encode documents as one sequence of token ids.

    <|endoftext|> ends each document.

    Args:
        name: name of the source.
        documents: the texts; a newline ends each of their lines.
        tokenizer: encodes the texts.
        weight: weight of the source when training rows are drawn.
        register: kind of text.

    Returns:
        The source. The last newline of each document is replaced by <|endoftext|>.
    """
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
        ids[-1][-1] = tokenizer.end_of_text_id
    return Source(name, np.concatenate(ids), np.array(starts), weight, register)


def encode_corpus(
    folder: Path, tokenizer: Tokenizer, config: PretrainConfig, excluded: Overlap | None = None
) -> tuple[list[Source], list[Source]]:
    """Encode every file of a corpus.

    The weight of a source is its number of characters, multiplied by the weight of its register.
    Files of the register `conversation` are added a second time, as typed on a phone, with
    `config.phone` times their weight.

    Args:
        folder: the corpus.
        tokenizer: encodes the texts.
        config: the weights of registers (1 if not given), `phone` and `seed`.
        excluded: texts; training lines that overlap with them are removed.

    Returns:
        Training sources and held-out sources.

    Raises:
        UsageError: no file has a register to which `config` gives a weight.
        DataError: there are no .txt files, or a file is not UTF-8.
    """
    weights = config.weights_by_register()
    if unknown := sorted(weights.keys() - set(registers(folder).values()) - {"conversation"}):
        raise UsageError(
            f"{folder}: register_weights names {unknown[0]!r}, but no file has this register. The "
            f"registers are: {', '.join(sorted(set(registers(folder).values())))}"
        )
    train, held_out = [], []
    for file in read_corpus(folder, excluded):
        if file.train:
            weight = weights.get(file.register, 1.0) * sum(map(len, file.train))
            train.append(encode_source(file.name, file.train, tokenizer, weight, file.register))
        if file.train and file.register == "conversation" and config.phone:
            draw = random.Random(f"{config.seed} {file.name}")
            typed = (
                "\n".join(as_typed_on_a_phone(line, draw) for line in document.split("\n"))
                for document in file.train
            )
            train.append(
                encode_source(
                    f"{file.name} typed", typed, tokenizer, weight * config.phone, file.register
                )
            )
        if file.held_out:
            held_out.append(encode_source(file.name, file.held_out, tokenizer, 1.0, file.register))
    return train, held_out


def bpe_sample(
    folder: Path, config: PretrainConfig, excluded: Overlap | None = None
) -> Iterator[str]:
    """Yield lines to learn a vocabulary from.

    These are all lines of conversations and a random quarter of the other lines. Half of the
    conversation lines are yielded a second time, as typed on a phone, unless `config.phone` is 0.
    """
    draw = random.Random(config.seed)
    for file in read_corpus(folder, excluded):
        for document in file.train:
            for line in document.split("\n"):
                if file.register == "conversation":
                    yield line
                    if config.phone and draw.random() < 0.5:
                        yield as_typed_on_a_phone(line, draw)
                elif draw.random() < 0.25:
                    yield line


def n_bytes(source: Source, tokenizer: Tokenizer) -> int:
    """Count the bytes of the text that a source encodes."""
    text = source.tokens[source.tokens != tokenizer.end_of_text_id]
    ends = len(source.tokens) - len(text)  # each <|endoftext|> replaces a newline of one byte
    return len(tokenizer.decode(text.tolist()).encode()) + ends
