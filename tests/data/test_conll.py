"""Words and tags: read as written, faults told, the published counts; entities by CoNLL's rules."""

import random
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from gpt2_from_scratch.data.conll import entities, is_bio, read_conll
from gpt2_from_scratch.data.lines import Fault
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.errors import DataError


def read(path: Path, raw: bytes | str, encoding: str = "utf-8") -> list[Message | Fault]:
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode(encoding))
    return list(read_conll(path, encoding))


def words_and_tags(message: Message | Fault) -> list[tuple[str, str]]:
    assert isinstance(message, Message), message
    return [(message.text[start:end], tag) for start, end, tag in message.label]


# --- files ---


def test_a_sentence_by_hand(tmp_path: Path):
    found = read(
        tmp_path / "a.conll", "Alex\tB-person\nis\tO\nin\tO\nNew\tB-location\nYork\tI-location\n"
    )
    label = (
        (0, 4, "B-person"),
        (5, 7, "O"),
        (8, 10, "O"),
        (11, 14, "B-location"),
        (15, 19, "I-location"),
    )
    assert found == [Message("Alex is in New York", label)]
    assert isinstance(found[0], Message) and all(type(s) is Span for s in found[0].label)


@pytest.mark.parametrize("seed", range(20))
def test_what_was_written_is_read(tmp_path: Path, seed: int):
    """Any words but such with white space; every way to end a line and a sentence."""
    draw = random.Random(seed)
    words = [
        "#hashtag",
        "#",
        "##",
        "-DOC",
        "can't",
        "👍🏽",
        "語",
        "a\u200bb",
        "\ufeff",
        "O",
        "...",
        "\x01",
        '"',
        "e\u0301",
    ]
    end, between = draw.choice(["\n", "\r\n"]), draw.choice(["\t", " ", "  "])
    middle = [[], ["NN"], ["NN", "I-NP"]][draw.randrange(3)]
    raw, expected = "", []
    for _ in range(10):
        sentence = [
            (draw.choice(words), draw.choice(["O", "B-x", "I-y-z"]))
            for _ in range(draw.randrange(1, 6))
        ]
        raw += "".join(between.join([word, *middle, tag]) + end for word, tag in sentence)
        raw += draw.choice(["", "\t", "  "]) + end + draw.choice(["", end])
        expected.append(sentence)
    raw = "\ufeff" + raw if draw.random() < 0.5 else "x O\n\n" + raw
    expected = expected if raw.startswith("\ufeff") else [[("x", "O")], *expected]
    found = read(tmp_path / "a.bio", raw)
    assert [words_and_tags(message) for message in found] == expected
    assert [m.text for m in found] == [" ".join(w for w, _ in s) for s in expected]  # type: ignore[union-attr]


def test_the_form_of_conll_2003(tmp_path: Path):
    """The first lines of its README: documents begin with -DOCSTART-, four columns."""
    raw = (
        "-DOCSTART- -X- -X- O\n\nU.N. NNP I-NP I-ORG\nofficial NN I-NP O\nEkeus NNP I-NP I-PER\n"
        "\n-DOCSTART- -X- O O\n\nBaghdad NNP I-NP I-LOC\n. . O O\n-DOCSTART-\nx NN I-NP O"
    )
    assert [words_and_tags(message) for message in read(tmp_path / "eng.train", raw)] == [
        [("U.N.", "I-ORG"), ("official", "O"), ("Ekeus", "I-PER")],
        [("Baghdad", "I-LOC"), (".", "O")],
        [("x", "O")],
    ]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("# sent_id = 1\n# a comment\nx\tO\n", [[("x", "O")]]),
        ("# text = # 1\nx O\n\n# another\n\n# one\ny O\n", [[("x", "O")], [("y", "O")]]),
        ("#\tO\n# \tO\n", []),  # the second word has a space in it: see the faults
        ("#winning\tO\n#\tB-x\n", [[("#winning", "O"), ("#", "B-x")]]),
        ("# O\n# B-x\n", [[("#", "O"), ("#", "B-x")]]),
        ("# # B-NP O\n", [[("#", "O")]]),
        ("x NN\n# #\n", [[("x", "NN"), ("#", "#")]]),  # inside a sentence it is a word
        ("# nothing\n\n\n", []),
        ("", []),
    ],
)
def test_a_comment_and_a_word_with_its_sign(tmp_path: Path, raw: str, expected: list):
    found = read(tmp_path / "a.conll", raw)
    assert [words_and_tags(m) for m in found if isinstance(m, Message)] == expected


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("word", r"expected a word and its tag, in 2 to 4 columns; found \['word'\]"),
        ("a\tb\tc\td\tO", "2 to 4 columns; found"),
        ("a b c d O", "2 to 4 columns; found"),
        ("#comment", "2 to 4 columns"),
        ("\tO", "the word '' is empty"),
        ("word\t", "the tag '' is empty"),
        ("two words\tO", "the word 'two words' is empty or has white space"),
        ("two\xa0words\tO", "the word"),
        ("\u3000\tO", "the word"),
        ("word\tB person", "the tag 'B person'"),
    ],
)
def test_a_fault_takes_its_sentence_only(tmp_path: Path, line: str, what: str):
    raw = f"a\tO\n\nb\tO\n{line}\nc\tO\nword\n\nd\tO\n"
    first, fault, last = read(tmp_path / "a.conll", raw)
    assert words_and_tags(first) == [("a", "O")] and words_and_tags(last) == [("d", "O")]
    assert isinstance(fault, Fault) and fault.line == 4
    assert re.search(what, fault.what)


def test_bytes_that_are_no_text(tmp_path: Path):
    found = read(tmp_path / "a.conll", b"a\tO\n\xff\tO\n\nb\tO\n")
    assert isinstance(found[0], Fault) and found[0].line == 2 and "0xff" in found[0].what
    assert words_and_tags(found[1]) == [("b", "O")]
    (fault,) = read(tmp_path / "a.conll", b"word\n\xff\tO\n")  # the first of two is told
    assert isinstance(fault, Fault) and fault.line == 1


def test_other_encodings(tmp_path: Path):
    for encoding in ("utf-16", "cp1252"):
        assert read(tmp_path / "a.conll", "Grüße\tO\n", encoding) == [
            Message("Grüße", (Span(0, 5, "O"),))
        ]


def test_no_file(tmp_path: Path):
    with pytest.raises(DataError, match="is not a file"):
        read_conll(tmp_path / "none.conll")


# --- the published data ---

PUBLISHED = {  # sentences and tokens, as published; entities, as `grep -cP '\\tB-'` counts them
    "wnut17train.conll": (3394, 62730, 1975),
    "emerging.dev.conll": (1009, 15733, 836),
    "emerging.test.annotated": (1287, 23394, 1079),
}
TYPES = {
    "corporation": 66,
    "creative-work": 142,
    "group": 165,
    "location": 150,
    "person": 429,
    "product": 127,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_emerging_entities(shared: Path, name: str):
    path = shared / "data" / "wnut17" / name
    if not path.exists():
        pytest.skip(f"put {name} of WNUT 2017 into {path.parent} to run this test")
    found = list(read_conll(path))
    tags = [[tag for _, tag in words_and_tags(message)] for message in found]
    marked = [kind for sentence in tags for _, _, kind in entities(sentence)]
    assert (len(found), sum(map(len, tags)), len(marked)) == PUBLISHED[name]
    # every word and tag, as a plain reader of lines finds them
    lines = [line.split("\t") for line in path.read_text("utf-8").split("\n") if line.strip()]
    assert [list(pair) for message in found for pair in words_and_tags(message)] == lines
    if name == "emerging.test.annotated":
        assert Counter(marked) == TYPES


# --- entities ---


def conlleval(tags: list[str]) -> list[tuple[int, int, str]]:
    """The two tables of conlleval's startOfChunk and endOfChunk for B, I and O, word by word."""
    found, start = [], 0
    before, kind_before = "O", ""
    for n, tag in enumerate([*tags, "O"]):
        part, _, kind = tag.partition("-")
        ends = (before, part) in {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O")}
        ends |= before != "O" and kind != kind_before
        if ends:
            found.append((start, n, kind_before))
        begins = (before, part) in {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I")}
        begins |= part != "O" and kind != kind_before
        start = n if begins else start
        before, kind_before = part, kind
    return found


def test_entities_as_conlleval_finds_them():
    """All sequences of up to five tags."""
    for size in range(6):
        for tags in product(["O", "B-a", "I-a", "B-b-c", "I-b-c"], repeat=size):
            assert entities(tags) == conlleval(list(tags)), tags


def test_entities_by_hand():
    tags = ["I-ORG", "O", "I-PER", "O", "B-LOC", "I-LOC", "B-LOC", "I-creative-work"]
    assert entities(tags) == [
        (0, 1, "ORG"),
        (2, 3, "PER"),
        (4, 6, "LOC"),
        (6, 7, "LOC"),
        (7, 8, "creative-work"),
    ]


@pytest.mark.parametrize("tag", ["", "B", "B-", "E-x", "NN", "o", "B x", "BO", "O-x", "B-x y"])
def test_tags_that_are_not_bio(tag: str):
    with pytest.raises(DataError, match="no BIO tag"):
        entities(["O", tag])
    assert not is_bio(["O", "B-x", tag])


def test_is_bio():
    assert is_bio(["O", "B-x", "I-x"]) and is_bio(("B-x", "B-y")) and is_bio(["I-x"])
    assert not is_bio([]) and not is_bio(["O"]) and not is_bio(["NN", "VB"])
