"""Exactly the lines that overlap with other texts are found."""

import random

import numpy as np
import pytest

from gpt2_from_scratch.gpt2.overlap import FACTOR, SHORTEST, WIDTH, Overlap, window_hashes

PRIZE = "You have WON a prize of   ten thousand pounds, call 0800 1234567 now"


@pytest.mark.parametrize("length", [0, 1, 31, 49, 50, 51, 300])
def test_hashes_are_those_of_a_plain_loop(length):
    data = random.Random(length).randbytes(length)
    expected = []
    for start in range(length - WIDTH + 1):
        value = 0
        for byte in data[start : start + WIDTH]:
            value = (value * FACTOR + byte + 1) % 2**64
        expected.append(value)
    assert window_hashes(data).tolist() == expected


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (PRIZE, True),
        (PRIZE.lower().replace("   ", "\t"), True),
        (f"He wrote: {PRIZE}!", True),
        ("so you have won a prize of ten thousand pounds, call 08", True),
        ("so you have won a prize of ten thousand pounds, cal", False),  # 49 common bytes
        ("call 0800 1234567 now", False),
        ("twenty bytes exactly", True),
        ("So: twenty bytes exactly", False),  # shorter than WIDTH, so it would have to be equal
        ("see you tomorrow", False),  # equal, but too short to count
        ("", False),
    ],
)
def test_a_line_overlaps_if_it_is_equal_or_shares_fifty_bytes(line, found):
    overlap = Overlap([PRIZE, "twenty bytes exactly\nsee you tomorrow"])
    assert len("twenty bytes exactly") == SHORTEST
    assert overlap.find([line]).tolist() == [found]


def test_each_line_is_judged_separately():
    """The texts are cut out of the lines; the witness is a plain search for each window."""
    draw = random.Random(1)
    lines = ["".join(draw.choices("ab c", k=draw.randrange(160))) for _ in range(200)]
    texts = [line[3 : 3 + draw.randrange(40, 70)] for line in lines[::4]]
    normal = [" ".join(line.split()) for line in lines]
    normal_texts = [" ".join(text.split()) for text in texts]
    windows = {t[i : i + WIDTH] for t in normal_texts for i in range(len(t) - WIDTH + 1)}
    expected = [
        any(window in line for window in windows)
        or (len(line) >= SHORTEST and line in normal_texts)
        for line in normal
    ]
    assert 10 < sum(expected) < 60
    assert Overlap(texts).find(lines).tolist() == expected


def test_a_text_that_spans_two_lines_is_not_an_overlap():
    first, second = PRIZE[:40], PRIZE[40:]
    assert not Overlap([f"{first}\n{second}"]).find([f"{first} {second}"]).any()
    assert not Overlap([f"{first} {second}"]).find([first, second]).any()


def test_without_texts_or_lines_there_is_no_overlap():
    assert Overlap([]).find(["a line of some length, longer than fifty bytes in all"]).tolist() == [
        False
    ]
    assert Overlap([PRIZE]).find([]).dtype == np.dtype(bool)
