"""A corpus is read, split, and encoded without loss."""

import csv
import random
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from said import listen

from gpt2_from_scratch.data.messages import load_messages
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.gpt2.corpus import (
    HELD_OUT_ONE_IN,
    TEXTING,
    as_typed_on_a_phone,
    bpe_sample,
    encode_corpus,
    encode_source,
    is_held_out,
    n_bytes,
    read_documents,
    registers,
    train_bpe,
)
from gpt2_from_scratch.gpt2.overlap import Overlap
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer, write_bpe
from gpt2_from_scratch.storage.paths import embedded

CONFIG = PretrainConfig(seed=1)  # conversation has weight 2, and its phone copy has weight 1
LINES = [
    "See you tomorrow, don't be late!",
    "What's the number?",
    "OK.",
    "I",
    "'tis you're",
    "Grüße 😀",
    "call 08001234567 before 10.30",
    "  spaces  ",
    "\ttab",
    "you",
    "...",
    "Are you for or to?",
]


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


def write_corpus(folder: Path, manifest: bool = True) -> dict[str, list[str]]:
    """Write a chat and a book.

    Each has 900 documents of two lines.
    """
    folder.mkdir()
    draw = random.Random(3)
    documents = {
        name: ["\n".join(f"{draw.choice(LINES)} {kind} {n}" for _ in range(2)) for n in range(900)]
        for name, kind in (("book.txt", "page"), ("chat.txt", "turn"))
    }
    for name, texts in documents.items():
        (folder / name).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    if manifest:
        rows = (
            "file\tbytes\tregister\nchat.txt\t1\tconversation\nbook.txt\t1\tbooks\ngone.txt\t1\tx\n"
        )
        (folder / "MANIFEST.tsv").write_text(rows)
    return documents


# --- reading ---


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("", []),
        ("\n \n\n", []),
        ("one", ["one"]),
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("\n\none\n\n\n\ntwo\n \t\n\nthree\n\n", ["one", "two", "three"]),
        ("one\r\ntwo\r\n\r\nthree\r\n", ["one\ntwo", "three"]),
        ("Grüße 😀\n\n£5", ["Grüße 😀", "£5"]),
    ],
)
def test_a_blank_line_ends_a_document(tmp_path, text, documents):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read_documents(tmp_path / "a.txt") == documents


def test_text_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(DataError, match="a.txt.*UTF-8"):
        read_documents(tmp_path / "a.txt")


def test_one_document_in_250_is_held_out():
    documents = [f"document {n}" for n in range(50_000)]
    aside = [document for document in documents if is_held_out(document)]
    assert aside == [d for d in documents if zlib.crc32(d.encode("utf-8")) % 250 == 0]
    # 200 documents are expected, with a standard deviation of 14
    assert HELD_OUT_ONE_IN == 250 and 150 < len(aside) < 250


def test_registers_come_from_the_manifest(tmp_path):
    write_corpus(tmp_path / "corpus")
    (tmp_path / "corpus" / "new.txt").write_text("not listed")
    assert registers(tmp_path / "corpus") == {
        "book.txt": "books",
        "chat.txt": "conversation",
        "new.txt": "general",
    }


def test_without_a_manifest_the_register_is_general(tmp_path):
    write_corpus(tmp_path / "corpus", manifest=False)
    assert registers(tmp_path / "corpus") == {"book.txt": "general", "chat.txt": "general"}


def test_the_manifest_of_our_corpus_lists_every_file(shared):
    found = registers(shared / "corpus")
    with (shared / "corpus" / "MANIFEST.tsv").open(encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert found == {name: row["register"] for name, row in rows.items()}
    assert {"books", "conversation", "general"} <= set(found.values())
    sizes = {name: (shared / "corpus" / name).stat().st_size for name in found}
    assert sizes == {name: int(row["bytes"]) for name, row in rows.items()}


def test_a_folder_without_text_files_is_refused(tmp_path):
    (tmp_path / "MANIFEST.tsv").write_text("file\tregister\n")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match=r"no \.txt files") as error:
            registers(folder)
        assert str(folder) in str(error.value)


# --- as typed on a phone ---


def test_typing_depends_only_on_its_random_generator():
    for line in LINES:
        typed = [as_typed_on_a_phone(line, random.Random(seed)) for seed in range(50)]
        assert typed == [as_typed_on_a_phone(line, random.Random(seed)) for seed in range(50)]
    line = "What are you doing tomorrow? Don't be late, please call me."
    assert len({as_typed_on_a_phone(line, random.Random(seed)) for seed in range(50)}) > 10


@pytest.mark.parametrize("line", LINES)
def test_typing_never_empties_a_line(line):
    draw = random.Random(1)
    for _ in range(300):
        typed = as_typed_on_a_phone(line, draw)
        assert typed.strip() and "\n" not in typed


def test_typing_keeps_digits_and_punctuation():
    """Only words are shortened, and only apostrophes are dropped. Nothing else changes."""
    line = "Call 0800 123 4567 (free!), £5 - now; or www.win.example?"
    for seed in range(300):
        typed = as_typed_on_a_phone(line, random.Random(seed))
        assert re.findall(r"[^\sA-Za-z]+", typed) == re.findall(r"[^\sA-Za-z]+", line)


def test_short_forms_are_shorter_than_their_words():
    assert all(word == word.lower() and short for word, short in TEXTING.items())
    assert all(len(short) < len(word) for word, short in TEXTING.items() if word != "know")
    typed = {as_typed_on_a_phone("are you for tomorrow", random.Random(s)) for s in range(300)}
    assert {"r u 4 tmrw", "are you for tomorrow", "ARE YOU FOR TOMORROW"} <= typed


# --- encoding ---


def test_decoding_the_tokens_gives_the_text(tokenizer):
    documents = ["one\ntwo", "  three  ", "Grüße 😀\n<|endoftext|>\nthe end"]
    source = encode_source("a.txt", documents, tokenizer, 2.5)
    assert tokenizer.decode(source.tokens.tolist()) == "".join(
        d + "<|endoftext|>" for d in documents
    )
    assert (source.tokens == tokenizer.end_of_text_id).sum() == 3
    assert source.tokens[-1] == tokenizer.end_of_text_id
    assert (source.name, source.weight, source.tokens.dtype) == ("a.txt", 2.5, np.uint16)


def test_line_starts_point_at_line_starts(tokenizer):
    documents = [f"{a}\n{b}" for a, b in zip(LINES, LINES[1:], strict=False)]
    source = encode_source("a.txt", documents, tokenizer, 1.0)
    lines = [line for document in documents for line in document.split("\n")]
    ends = [*source.line_starts[1:].tolist(), len(source.tokens)]
    found = [
        tokenizer.decode(source.tokens[start : end - 1].tolist())
        for start, end in zip(source.line_starts.tolist(), ends, strict=True)
    ]
    assert found == lines and source.line_starts[0] == 0
    last = {tokenizer.decode([int(source.tokens[end - 1])]) for end in ends}
    assert last == {"\n", "<|endoftext|>"}


def test_bytes_are_those_of_the_text(tokenizer):
    """<|endoftext|> counts as the newline that it replaces, which is one byte."""
    documents = ["one\ntwo", "Grüße 😀", "three"]
    found = n_bytes(encode_source("a.txt", documents, tokenizer, 1.0), tokenizer)
    text = sum(len(document.encode()) for document in documents)
    assert text <= found <= text + len(documents)


def test_encoding_a_corpus(tmp_path, tokenizer):
    documents = write_corpus(tmp_path / "corpus")
    train, held_out = encode_corpus(tmp_path / "corpus", tokenizer, CONFIG)
    assert [source.name for source in train] == ["book.txt", "chat.txt", "chat.txt typed"]
    assert [source.name for source in held_out] == ["book.txt", "chat.txt"]
    for source in train[:2]:
        kept = [d for d in documents[source.name] if not is_held_out(d)]
        assert tokenizer.decode(source.tokens.tolist()).split("<|endoftext|>")[:-1] == kept
    for source in held_out:
        aside = [d for d in documents[source.name] if is_held_out(d)]
        assert tokenizer.decode(source.tokens.tolist()).split("<|endoftext|>")[:-1] == aside
    book, chat, typed = (source.weight for source in train)
    kept = {name: [d for d in texts if not is_held_out(d)] for name, texts in documents.items()}
    assert book == sum(map(len, kept["book.txt"]))
    assert chat == 2 * sum(map(len, kept["chat.txt"])) and typed == chat / 2


def test_registers_have_weights(tmp_path, tokenizer):
    write_corpus(tmp_path / "corpus")
    config = replace(CONFIG, register_weights="books=0.25, conversation=3", phone=0.0)
    book, chat = encode_corpus(tmp_path / "corpus", tokenizer, config)[0]
    plain = replace(CONFIG, register_weights="", phone=0.0)
    plain_book, plain_chat = encode_corpus(tmp_path / "corpus", tokenizer, plain)[0]
    assert (book.weight, chat.weight) == (plain_book.weight / 4, 3 * plain_chat.weight)
    assert (book.register, chat.register) == ("books", "conversation")
    with pytest.raises(UsageError, match="'poems'.*books, conversation"):
        encode_corpus(tmp_path / "corpus", tokenizer, replace(CONFIG, register_weights="poems=1"))


@pytest.mark.parametrize(
    "wrong", ["news", "news=", "=2", "news=-1", "news=nan", "a=1,a=2", "a=inf"]
)
def test_invalid_register_weights_are_refused(wrong):
    with pytest.raises(UsageError, match=re.escape(repr(wrong.split(",")[-1]))):
        PretrainConfig(register_weights=wrong)


def test_excluded_lines_are_removed_from_the_training_text_only(tmp_path, tokenizer):
    documents = write_corpus(tmp_path / "corpus")
    kept, aside = (
        next(d for d in documents["chat.txt"] if is_held_out(d) == held and d.find("\n") > 25)
        for held in (False, True)
    )
    line = kept.split("\n")[0]
    before = encode_corpus(tmp_path / "corpus", tokenizer, CONFIG)
    lines = listen()
    excluded = Overlap([line.upper() + "  ", *aside.split("\n")])
    after = encode_corpus(tmp_path / "corpus", tokenizer, CONFIG, excluded)
    texts = [tokenizer.decode(source.tokens.tolist()) for source in after[0]]
    assert not any(f"{line}\n" in text for text in texts)
    count = before[0][1].tokens.tolist().count(tokenizer.end_of_text_id)
    assert after[0][1].tokens.tolist().count(tokenizer.end_of_text_id) == count
    assert [len(s.line_starts) for s in after[0]] == [
        len(s.line_starts) - removed for s, removed in zip(before[0], (0, 1, 1), strict=True)
    ]
    for a, b in zip(after[1], before[1], strict=True):  # held-out text does not change
        assert np.array_equal(a.tokens, b.tokens)
    assert "removed 1 " in lines[-1] and "1 of chat.txt" in lines[-1]


def test_typed_lines_replace_the_lines(tmp_path, tokenizer):
    documents = write_corpus(tmp_path / "corpus")
    typed = [
        encode_corpus(tmp_path / "corpus", tokenizer, replace(CONFIG, seed=seed))[0][2]
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(typed[0].tokens, typed[1].tokens)
    assert not np.array_equal(typed[0].tokens, typed[2].tokens)
    kept = [d for d in documents["chat.txt"] if not is_held_out(d)]
    found = tokenizer.decode(typed[0].tokens.tolist()).split("<|endoftext|>")[:-1]
    assert [d.count("\n") for d in found] == [d.count("\n") for d in kept]
    numbers = [d.split()[-1] for d in kept]  # no short form changes the number in "turn 17"
    assert [d.split()[-1] for d in found] == numbers


def test_with_phone_0_there_are_no_typed_lines(tmp_path, tokenizer):
    write_corpus(tmp_path / "corpus")
    train, _ = encode_corpus(tmp_path / "corpus", tokenizer, replace(CONFIG, phone=0.0))
    assert [source.name for source in train] == ["book.txt", "chat.txt"]


def test_a_file_without_training_text_is_not_a_source(tmp_path, tokenizer):
    """An empty file, or one whose only document is held out."""
    write_corpus(tmp_path / "corpus")
    aside = next(f"document {n}" for n in range(9999) if is_held_out(f"document {n}"))
    (tmp_path / "corpus" / "empty.txt").write_text("\n\n")
    (tmp_path / "corpus" / "aside.txt").write_text(aside)
    train, held_out = encode_corpus(tmp_path / "corpus", tokenizer, replace(CONFIG, phone=0.0))
    assert [source.name for source in train] == ["book.txt", "chat.txt"]
    assert [source.name for source in held_out] == ["aside.txt", "book.txt", "chat.txt"]


# --- the vocabulary ---


@pytest.fixture
def digits_and_words() -> list[str]:
    draw = random.Random(0)
    numbers = [f"call 0800{draw.randrange(10**7)} or 2019, 12:30, £{n}.99" for n in range(200)]
    return numbers + [line for line in LINES for _ in range(20)]


@pytest.mark.parametrize("n_vocab", [257, 258, 320])
def test_a_vocabulary_has_the_requested_size(tmp_path, digits_and_words, n_vocab):
    pytest.importorskip("tokenizers")
    merges = train_bpe(digits_and_words, n_vocab)
    assert len(merges) == n_vocab - 257  # the 256 bytes and <|endoftext|> are not merges
    write_bpe(tmp_path, merges)
    tokenizer = Tokenizer(tmp_path)
    assert (tokenizer.n_vocab, tokenizer.end_of_text_id) == (n_vocab, n_vocab - 1)
    for text in digits_and_words:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_merge_joins_two_digits(tmp_path, digits_and_words):
    pytest.importorskip("tokenizers")
    merges = train_bpe(digits_and_words, 320)
    assert not [pair for pair in merges if len(re.findall(r"\d", "".join(pair))) > 1]
    write_bpe(tmp_path, merges)
    tokenizer = Tokenizer(tmp_path)
    number = tokenizer.encode("call 08001234567")
    assert [tokenizer.decode([n]) for n in number[-10:]] == list("8001234567")
    words = {tokenizer.decode([n]) for n in range(256, 319)}
    assert " you" in words and "all" in "".join(words)  # but letters are merged


def test_too_little_text_for_the_number_of_tokens(digits_and_words):
    """A vocabulary smaller than the model's n_vocab would only be noticed by a classifier later."""
    pytest.importorskip("tokenizers")
    with pytest.raises(DataError, match="4096"):
        train_bpe(digits_and_words, 4096)


def test_the_miniatures_vocabulary_joins_no_digits():
    merges = (embedded("weights/mini") / "vocab.bpe").read_text("utf-8")
    pairs = merges.splitlines()[1:]
    assert len(pairs) == 4096 - 257
    assert not [pair for pair in pairs if len(re.findall(r"\d", pair)) > 1]


def test_the_vocabulary_never_sees_held_out_text(tmp_path):
    documents = write_corpus(tmp_path / "corpus")
    silent = replace(CONFIG, phone=0.0)
    sample = list(bpe_sample(tmp_path / "corpus", silent))
    assert sample == list(bpe_sample(tmp_path / "corpus", silent))
    assert sample != list(bpe_sample(tmp_path / "corpus", replace(silent, seed=2)))
    kept = {
        name: [line for d in texts if not is_held_out(d) for line in d.split("\n")]
        for name, texts in documents.items()
    }
    aside = {
        line
        for texts in documents.values()
        for d in texts
        if is_held_out(d)
        for line in d.split("\n")
    }
    assert aside and not aside & set(sample)
    assert [line for line in sample if " turn " in line] == kept["chat.txt"]
    pages = [line for line in sample if " page " in line]
    assert set(pages) <= set(kept["book.txt"])
    assert 0.2 < len(pages) / len(kept["book.txt"]) < 0.3  # a quarter of the lines
    assert len(list(bpe_sample(tmp_path / "corpus", CONFIG))) > len(sample) + 400


# --- the corpus does not contain the test data ---

WIDTH = 20  # bytes; shorter messages ("Ok", "I'll call you later") may occur by chance

# ham messages of the collection that are common phrases, as found by this test
ANYBODYS = {
    "how are you holding up?",
    "i am great! how are you?",
    "i wanna watch that movie",
    "i'll meet you in the lobby",
    "university of southern california.",
}


def normalised(text: str) -> str:
    return " ".join(text.lower().split())


def window_hashes(data: bytes) -> np.ndarray:
    """Hash the 20 bytes at each position to 22 bits.

    The hash is built from hashes of 1, 2, 4, 8 and 16 bytes.
    """
    factor, hashes, widths = 0x9E3779B1, np.frombuffer(data, np.uint8).astype(np.uint32), {}
    for width in (1, 2, 4, 8):
        hashes = hashes[:-width] * np.uint32(pow(factor, width, 2**32)) + hashes[width:]
        widths[2 * width] = hashes
    last = widths[4][16 : 16 + len(data) - WIDTH + 1]
    return (widths[16][: len(last)] * np.uint32(pow(factor, 4, 2**32)) + last) >> np.uint32(10)


def places(messages: list[str], folder: Path) -> dict[str, list[str]]:
    """Return {message: files in which it occurs}.

    Messages of fewer than 20 bytes are left out. A table of hashes selects the few positions of
    the corpus at which a message may begin.
    """
    beginning: dict[bytes, list[bytes]] = {}
    for raw in {message.encode() for message in messages}:
        beginning.setdefault(raw[:WIDTH], []).append(raw)
    wanted = np.zeros(2**22, dtype=bool)
    for first in beginning:
        wanted[window_hashes(first)] = True
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        data = normalised(path.read_text(encoding="utf-8")).encode()
        for place in np.flatnonzero(wanted[window_hashes(data)]).tolist():
            for raw in beginning.get(data[place : place + WIDTH], ()):
                if data.startswith(raw, place) and path.name not in found.get(raw.decode(), ()):
                    found.setdefault(raw.decode(), []).append(path.name)
    return found


def test_places_are_found(tmp_path):
    messages = [
        "a message of some length",
        "twenty bytes exactly",
        "Ünïcode of some length".lower(),
    ]
    text = "So: a  MESSAGE\nof some length, TWENTY bytes exactly\n\nünïcode of some lengt twenty"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt").write_text("nothing here, nothing at all", encoding="utf-8")
    (tmp_path / "c.txt").write_text(f"{messages[2]} twenty bytes exactly", encoding="utf-8")
    assert places(messages, tmp_path) == {
        messages[0]: ["a.txt"],
        messages[1]: ["a.txt", "c.txt"],
        messages[2]: ["c.txt"],
    }


@pytest.mark.slow
def test_the_collection_is_not_in_the_corpus(shared):
    """Of its 5,032 distinct messages of at least 20 characters, at most five are in the corpus.

    These are common phrases of at most 34 characters, and none of them is spam. So the corpus does
    not contain a copy of the collection.
    """
    if not (shared / "corpus").is_dir():
        pytest.skip("needs the corpus")
    messages = {normalised(m.text): m.label for m in load_messages("sms")}
    long = [text for text in messages if len(text) >= 20]
    assert len(long) == 5032
    found = places(long, shared / "corpus")
    assert found.keys() <= ANYBODYS
    assert {messages[text] for text in found} == {"ham"}
