"""The page of a comparison: its sentence on text baselines, its warnings, what only one has right."""

import re
from dataclasses import replace

import numpy as np
import pytest
from html_reader import Reader

from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.data.messages import Message, write_messages
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions
from gpt2_from_scratch.evaluation.significance import compare_paired, format_p, holm
from gpt2_from_scratch.reports.render import Page, Picture, Table, Text, Texts, render, write_page
from gpt2_from_scratch.studies.compare import compare
from gpt2_from_scratch.studies.compare_report import beats_text, compare_page
from gpt2_from_scratch.studies.contest import ENSEMBLE
from gpt2_from_scratch.studies.scoreboard import Result, make_scoreboard, mean_result

OURS, BAG, LENGTH = "GPT-2 mini, last block", "bag of words", "length alone"
SETTINGS = {"model": "/home/somebody/mini", "data": "/home/somebody/inbox.csv", "lr": 0.0005}
VERSIONS = {"torch": "2.9", "processor": "x86_64"}
HOSTILE = "</td></table><script>alert('owned')</script> {{ page }} \u202e\x00 \ud800 &lt; "


def result(name: str, wrong: range, n: int = 200, split: str = "seed 1", twins=None) -> Result:
    """Answers that are right but for the texts of these numbers, the first of them the surest."""
    true = np.arange(n) % 2
    called = true.copy()
    called[list(wrong)] = 1 - true[list(wrong)]
    shares = np.full((n, 2), 0.0)
    shares[np.arange(n), called] = np.linspace(0.99, 0.6, n)
    shares[np.arange(n), 1 - called] = 1 - shares[np.arange(n), called]
    texts = [f"{split}, text {k}" for k in range(n)]
    return Result(
        split, name, LabelledPredictions(("ham", "spam"), texts, true, shares, twins), 1.5
    )


def page_of(results: list[Result], settings=SETTINGS, **options) -> Page:
    board = make_scoreboard(results, OURS, 700, watched="spam", **options)
    return compare_page(board, results, settings, VERSIONS)


def section(page: Page, title: str, kind: type) -> list:
    [found] = [section for section in page.sections if section.title == title]
    return [part for part in found.parts if isinstance(part, kind)]


# --- does ours beat the best text baseline ---


@pytest.mark.parametrize(
    ("ours", "bag", "expected"),
    [
        (
            10,
            40,
            f"{OURS} beats {BAG} (the best of 2 text baselines): it is right 15.00 points more often; ",
        ),
        (
            40,
            10,
            f"{OURS} loses to {BAG} (the best of 2 text baselines): it is right 15.00 points less often; ",
        ),
        (
            10,
            12,
            f"{OURS} does not beat {BAG} (the best of 2 text baselines): it is right 1.00 points more often, which may be chance; ",
        ),
        (
            12,
            10,
            f"{OURS} does not beat {BAG} (the best of 2 text baselines): it is right 1.00 points less often, which may be chance; ",
        ),
        (
            10,
            10,
            f"{OURS} does not beat {BAG} (the best of 2 text baselines): both are right as often; ",
        ),
    ],
)
def test_a_win_a_loss_and_a_tie(ours: int, bag: int, expected: str) -> None:
    results = [
        result(OURS, range(ours)),
        result(LENGTH, range(80)),
        result(BAG, range(200 - bag, 200)),
    ]
    told = beats_text(make_scoreboard(results, OURS, 700))
    right = [r.answered.correct for r in results]
    found = compare_paired(right[0], right[2])  # ours less the bag: signs as a reader expects them
    [low, high] = map(float, re.findall(r"difference (\S+) to (\S+) points", told)[0])
    assert (low, high) == pytest.approx(
        [100 * bound for bound in found.interval], abs=1.01
    )  # another draw
    assert low <= 0 <= high if ours - bag in (-2, 0, 2) else low * high > 0
    _, p = holm([compare_paired(right[n], right[0]).p for n in (1, 2)])
    assert told.startswith(expected + "95 % interval of the difference ")
    assert told.endswith(f"points, {format_p(p)}, adjusted by Holm.")


def test_it_is_holms_p_that_decides() -> None:
    """p is 0.03 by itself, and above 0.05 as one of three."""
    close = result(BAG, range(5, 5 + 14))  # 4 texts against 14
    ours = result(OURS, range(4))
    alone = compare_paired(close.answered.correct, ours.answered.correct).p
    assert 0.025 < alone < 0.05
    assert " beats " in beats_text(make_scoreboard([ours, close], OURS, 700))
    others = [result("frozen", range(10)), result("random", range(11))]
    assert " does not beat " in beats_text(make_scoreboard([ours, close, *others], OURS, 700))


def test_what_is_no_text_baseline_is_none() -> None:
    results = [result(OURS, range(10)), result("another run", range(2))]
    page = page_of(results)
    assert page.summary[2] == f"No text baseline was run: nothing shows whether {OURS} beats one."
    assert page.summary[1].startswith("Most often right is another run: 99.0 % of the test texts (")
    assert f"; {OURS} against it: -4.00 points, " in page.summary[1]
    assert not any(section.title.startswith("Only") for section in page.sections)


def test_the_first_lines() -> None:
    page = page_of([result(OURS, range(10)), result(BAG, range(10))])
    assert page.summary[0] == (
        "2 classifiers were compared at how well they tell ham from spam in inbox.csv. Base model: "
        "mini. 1 split (seed 1), with 700 texts to train on and 200 texts to test."
    )
    assert page.summary[1] == f"Most often right are {OURS} and {BAG}: 95.0 % of the test texts."


def test_that_both_together_are_better_is_told() -> None:
    a, b = result(OURS, range(20)), result(BAG, range(100, 130))
    both = replace(result(ENSEMBLE, range(2)), name=f"{ENSEMBLE}: {BAG}")
    page = page_of([a, b, both], combined=[ENSEMBLE])
    assert f"Most often right is {OURS}: 90.0 %" in page.summary[1]
    assert f". The {ENSEMBLE} is right more often, 99.0 %; ours alone" in page.summary[1]
    assert any("look at the validation part only" in line for line in page.warnings)
    worse = mean_result(ENSEMBLE, [b, b])
    assert ENSEMBLE not in page_of([a, b, worse], combined=[ENSEMBLE]).summary[1]


# --- warnings ---


def test_warnings_where_they_apply() -> None:
    twins = np.arange(60) < 7
    some = [result(OURS, range(10), 60, twins=twins), result(BAG, range(12), 60, twins=twins)]
    told = page_of(some, notes=("a third: left out",)).warnings
    assert [line.split()[0] for line in told] == ["This", "The", "7", "Chance", "a"]
    assert "7 of 60 texts to test have a near twin" in told[2]
    assert f"from {BAG} (+3.33 points, p = 0.500)" in told[3]


def test_no_warning_where_none_applies() -> None:
    splits = [f"seed {n}" for n in range(1, 11)]
    results = [
        result(name, range(start, start + wrong + n % 2), 2000, split, np.zeros(2000, bool))
        for n, split in enumerate(splits)
        for name, start, wrong in ((OURS, 0, 20), (BAG, 500, 400))
    ]
    page = page_of(results)
    assert page.warnings == [] and " beats " in page.summary[2]
    assert "10 splits (seed 1, " in page.summary[0] and "seed 8 and 2 more)" in page.summary[0]


# --- sections ---


def test_what_only_one_has_right() -> None:
    page = page_of([result(OURS, range(20)), result(BAG, range(15, 38))])
    [mine] = section(page, f"Only {BAG} has these right", Texts)
    [theirs] = section(page, f"Only {OURS} has these right", Texts)
    assert [row[0] for row in mine.rows] == [f"seed 1, text {k}" for k in range(15)]
    assert mine.rows[0] == ("seed 1, text 0", "ham", "spam", 0.99)
    assert mine.rows[1][1:3] == ("spam", "ham")
    assert [row[0] for row in theirs.rows] == [f"seed 1, text {k}" for k in range(20, 35)]


def test_a_text_of_several_splits_stands_once() -> None:
    results = [
        replace(one, answered=replace(one.answered, texts=[f"text {k}" for k in range(200)]))
        for split in ("fold 1", "fold 2")
        for one in (result(OURS, range(3), split=split), result(BAG, range(3, 8), split=split))
    ]
    [mine] = section(page_of(results), f"Only {BAG} has these right", Texts)
    assert [row[0] for row in mine.rows] == ["text 0", "text 1", "text 2"]


def test_the_tables() -> None:
    page = page_of([result(OURS, range(10)), result(f"{BAG}: a|b", range(100, 140))])
    scores, learned = section(page, "Scoreboard", Table)
    assert [row[:2] for row in scores.rows] == [[OURS, "95.0 %"], [BAG, "80.0 %"]]
    assert {len(row) for row in scores.rows} == {len(scores.columns)}
    assert learned.rows == [[BAG, "seed 1", "a|b"]]
    [chance] = section(page, "What chance does", Table)
    assert chance.rows[0][:2] == [BAG, "+15.00"] and chance.rows[0][3:] == ["< 0.001", "no"]
    low, high = map(float, chance.rows[0][2].split(" to "))
    assert 0 < low < 15 < high < 30
    [settings] = section(page, "Settings", Table)
    assert settings.rows == [["model", "mini"], ["data", "inbox.csv"], ["lr", "0.0005"]]
    [versions] = section(page, "Versions and seeds", Table)
    assert versions.rows[-1] == ["splits and their seeds", "seed 1"]


def test_reliability_is_of_all_splits_together() -> None:
    splits = ("seed 1", "seed 2")
    results = [
        result(name, range(wrong + n), split=split)
        for n, split in enumerate(splits)
        for name, wrong in ((OURS, 10), (BAG, 20))
    ]
    [picture] = section(page_of(results), "Do probabilities mean what they say?", Picture)
    [about] = section(page_of(results), "Do probabilities mean what they say?", Text)
    assert "have a temperature fitted on the validation part, unless" in about.text
    counts = [bar.get_height() for bar in picture.figure.axes[1].patches]
    assert sum(counts) == 2 * 2 * 200
    assert OURS in picture.alt and BAG in picture.alt


def test_runs_are_named_without_their_folders() -> None:
    settings = {"data": "", "runs": {"/home/somebody/one": "ab12"}}
    html = render(page_of([result(OURS, range(3)), result(BAG, range(9))], settings))
    assert "SHA-256 of run one" in html and "somebody" not in html and "Base model" not in html


# --- the file ---


def test_compare_writes_it_and_writes_the_same_again(tiny_checkpoint, tmp_path) -> None:
    data, out = tmp_path / "inbox.csv", tmp_path / "out"
    words = [("ham", "see you"), ("spam", "win now")]
    write_messages(
        data, [Message(f"{w} {n} {'abc'[n % 3] * n}", k) for k, w in words for n in range(20)]
    )
    config, quietly = TrainConfig(epochs=1), {"quiet": True, "say": lambda line: None}
    found = []
    for _ in range(2):  # the second time all answers are there
        compare(tiny_checkpoint, data, config=config, quick=True, out=out, cache=False, **quietly)
        found.append((out / "scoreboard.html").read_bytes())
    assert found[0] == found[1]
    read = Reader(found[0].decode("utf-8"))
    assert f"GPT-2 {tiny_checkpoint.name}, last block and what it must beat" in read.texts["h1"]
    assert "in inbox.csv. Base model: " in read.texts["p"][0] and str(tmp_path) not in str(
        read.texts
    )


def test_hostile_texts_stay_texts(tmp_path) -> None:
    one, other = result(OURS, range(3)), result(BAG, range(9, 19))
    texts = [HOSTILE + text for text in one.answered.texts]
    labels = ("ham", "<b>spam</b>")
    results = [
        replace(one, answered=replace(one.answered, texts=texts, labels=labels)),
        replace(
            other,
            name=f"{BAG}: {HOSTILE}",
            answered=replace(other.answered, texts=texts, labels=labels),
        ),
    ]
    board = make_scoreboard(results, OURS, 700, watched="<b>spam</b>")
    for name in ("a.html", "b.html"):
        write_page(
            tmp_path / name, compare_page(board, results, SETTINGS | {"x": HOSTILE}, VERSIONS)
        )
    raw = (tmp_path / "a.html").read_bytes()
    assert raw == (tmp_path / "b.html").read_bytes() and len(raw) < 3_000_000
    read = Reader(raw.decode("utf-8"))
    assert not read.all("script") and not read.all("b") and len(read.all("img")) == 2
    shown = [text for text in read.texts["td"] if text.startswith("</td></table><script>")]
    assert len(shown) == 3 + 10 + 1 + 1  # mistakes of either, what was learned, the setting
    assert all("{{ page }}" in text for text in shown)


def test_the_sentence_on_its_own_is_the_pages() -> None:
    results = [result(OURS, range(3)), result(BAG, range(90, 119))]
    board = make_scoreboard(results, OURS, 700)
    assert beats_text(board) == page_of(results).summary[2]
    assert "(the only text baseline)" in beats_text(board)
