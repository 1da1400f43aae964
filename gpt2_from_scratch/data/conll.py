"""Words with a tag each, one word a line, as CoNLL's shared tasks publish them; entities from tags.

    Alex    B-person
    is      O
    in      O
    New     B-location
    York    I-location

A blank line, or one of white space only, ends a sentence.

Sources: https://www.clips.uantwerpen.be/conll2003/ner/ and its script conlleval; Ramshaw & Marcus,
1995, https://aclanthology.org/W95-0107, for the tags.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from gpt2_from_scratch.data.lines import Fault, Row, read_lines
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.errors import DataError

DOCUMENT = "-DOCSTART-"  # stands alone in front of each document of CoNLL-2003
COLUMNS = (2, 3, 4)  # word and tag; parts of speech and phrases may stand between
TAG = re.compile(r"O|[A-Z]-\S+")
BIO = re.compile(r"O|[BI]-\S+")


def read_conll(path: Path, encoding: str = "utf-8") -> Iterator[Message | Fault]:
    """Each sentence, its words joined by spaces and labelled with a Span each, or its first fault.

    The word is the first column, the tag the last; tabs part them or, in a line without one,
    spaces. A word may begin with #: a comment is only a line without a tab that begins with "# ",
    stands in front of a sentence, and does not end in a tag such as O or B-person. Lines of
    -DOCSTART- end a sentence and are left out. A fault takes its whole sentence with it. Raises
    DataError when there is no such file.
    """
    return _sentences(read_lines(path, encoding))


def entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first word, behind the last word, type) of each entity in a sentence's BIO tags.

    B- begins an entity and I- continues one of its own type; where there is none to continue, I-
    begins one too, as in conlleval and seqeval. Raises DataError for a tag that is not of BIO.
    """
    found: list[tuple[int, int, str]] = []
    for place, tag in enumerate(tags):
        if not BIO.fullmatch(tag):
            raise DataError(f"{tag!r} is no BIO tag; such are O, B-person and I-person")
        if tag == "O":
            continue
        start, kind = place, tag[2:]
        if tag[0] == "I" and found and found[-1][1:] == (place, kind):
            start = found.pop()[0]
        found.append((start, place + 1, kind))
    return found


def is_bio(labels: Sequence[str]) -> bool:
    """Whether these are BIO tags, so that they mark entities: O, B-..., I-..., and not O alone."""
    return all(BIO.fullmatch(label) for label in labels) and bool(set(labels) - {"O"})


def _sentences(lines: Iterator[Row | Fault]) -> Iterator[Message | Fault]:
    words: list[tuple[str, ...]] = []  # the sentence at hand: the columns of each word
    fault: Fault | None = None  # its first
    for line in chain(lines, [Row(0, ("",))]):  # the last sentence ends too
        if isinstance(line, Fault):
            fault = fault or line
            continue
        columns = _columns(line.values[0])
        if columns and columns[0] != DOCUMENT:
            if words or fault or not _is_comment(line.values[0], columns):
                words.append(columns)
                fault = fault or _fault(line.line, columns)
            continue
        if fault:
            yield fault
        elif words:
            yield _message([(columns[0], columns[-1]) for columns in words])
        words, fault = [], None


def _columns(line: str) -> tuple[str, ...]:
    """None for a blank line; some files end sentences with a line of one tab."""
    if not line.strip():
        return ()
    return tuple(line.split("\t") if "\t" in line else re.split(" +", line.strip(" ")))


def _is_comment(line: str, columns: tuple[str, ...]) -> bool:
    return line.startswith("# ") and "\t" not in line and not TAG.fullmatch(columns[-1])


def _fault(number: int, columns: tuple[str, ...]) -> Fault | None:
    """What is wrong with a word's line, if anything is."""
    if len(columns) not in COLUMNS:
        what = f"expected a word and its tag, in 2 to 4 columns; found {list(columns)!r:.200}"
        return Fault(number, what, "lines that are not a word and its tag")
    for name, value in (("word", columns[0]), ("tag", columns[-1])):
        if value.split() != [value]:
            what = f"the {name} {value!r:.80} is empty or has white space in it"
            return Fault(number, what, f"{name}s that are empty or have white space in them")
    return None


def _message(words: Sequence[tuple[str, str]]) -> Message:
    spans, end = [], -1
    for word, tag in words:
        start, end = end + 1, end + 1 + len(word)
        spans.append(Span(start, end, tag))
    return Message(" ".join(word for word, _ in words), tuple(spans))
