"""Characters that trip up what reads them next."""

import csv
import io
import json
import random
import unicodedata

import pytest

from gpt2_from_scratch.data.messages import (
    CONTROL,
    for_spreadsheet,
    has_halves,
    on_one_line,
    without_halves,
)


@pytest.mark.parametrize("seed", range(10))
def test_halves_against_json(seed: int) -> None:
    """json joins the halves that belong together when it reads them escaped."""
    draw = random.Random(seed)
    for _ in range(200):
        text = "".join(draw.choices("a é😀\ud83d\ude00\udfff\ud800", k=draw.randrange(6)))
        joined = json.loads(json.dumps(text))
        lone = [c for c in joined if unicodedata.category(c) == "Cs"]
        assert has_halves(text) == bool(lone)
        assert without_halves(text) == "".join("\ufffd" if c in lone else c for c in joined)


def test_what_controls_are() -> None:
    every = {c for c in map(chr, range(0x110000)) if unicodedata.category(c) == "Cc"}
    assert {c for c in map(chr, range(0x110000)) if CONTROL.match(c)} == every - set("\t\n\r")


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0"]
)
def test_no_formula_is_left(text: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerow([for_spreadsheet(text)])
    field = next(csv.reader(io.StringIO(file.getvalue(), newline="")))[0]
    assert field == "'" + text


@pytest.mark.parametrize("text", ["", "a=1", "'=1", "1-1", " =1", "é"])
def test_other_texts_stay(text: str) -> None:
    assert for_spreadsheet(text) == text


def test_nothing_a_terminal_would_obey() -> None:
    assert on_one_line("a\n b\t\x1b[31m\x07\u202e c\x00") == "a b \ufffd[31m\ufffd\ufffd c\ufffd"
