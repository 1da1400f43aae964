"""Words with a plain English replacement do not occur in the texts that users read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = {  # pattern: what to write instead; words that also have a proper use are left to the reader
    r"near twins?": "near duplicates",
    r"to choose by": "validation set",
    r"told": "reported, logged or shown",
    r"mend(s|ed|ing)?": "fix",
    r"numbers that train": "trainable parameters",
    r"numbers trained": "trained parameters",
    r"what trains": "the trainable parameters",
    r"go(es)? on with": "continue with",
    r"likeliest": "most probable",
    r"held against": "compared with",
    r"of equals the": "on a tie, the",
    r"(is|are) none of": "unknown, or not one of",
    r"(?<!there )is no (number|list|text|label)": "is not a",
    r"(not|is|are) to be had": "available",
    # the texts use British spelling; names of other programs, such as optimizer, stay as they are
    r"(recogni|organi|summari|standardi|regulari|emphasi|initiali)z(es?|ed|ing|ation)": "-ise",
    r"(un)?labeled": "labelled",
    r"neighbor(s|ing)?": "neighbour",
    r"misspelled": "misspelt",
    r"behaviors?": "behaviour",
    r"colored": "coloured",
}
FOLDERS = ("gpt2_from_scratch", "benchmarks", "chapters", "data", "docs")
READ = (".py", ".md", ".html")  # the prose of a chapter is in the comments of its script
BANNED = re.compile(rf"\b({'|'.join(WORDS)})\b")


def files() -> list[str]:
    """All files with text for users."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    names = [str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *found]]
    return sorted(name for name in names if name.endswith(READ))


def test_files_contain_none_of_these_words():
    found = []
    for name in files():
        text = " ".join(
            (ROOT / name).read_text("utf-8").lower().split()
        )  # a phrase may span two lines
        found += [
            f"{name}: ...{text[max(0, word.start() - 40) : word.end() + 20]}..."
            for word in BANNED.finditer(text)
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("the first fault is told", "told"),
        ("Near twins\nstay together", "near twins"),
        ("a recommended setting", None),
        ("there is no number", None),
        ("x is no number", "is no number"),
    ],
)
def test_words_are_found_as_whole_words(text: str, word: str | None):
    found = BANNED.search(" ".join(text.lower().split()))
    assert (found and found[0]) == word
