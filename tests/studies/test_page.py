"""The page of a study: whether ours beats text baselines, warnings, what only one has correct.

These facts have to be proved of reports/templates/study.html when it takes this page's place.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from html_reader import Reader

from gpt2_from_scratch.evaluation.metrics import Answered
from gpt2_from_scratch.evaluation.significance import compare_paired, format_p, holm
from gpt2_from_scratch.reports.render import Page, Table, Texts, write_page
from gpt2_from_scratch.studies.page import beats_text, compare_page, experiment_page, told_by_kind
from gpt2_from_scratch.studies.rows import TEXT, Book, Result, Row
from gpt2_from_scratch.studies.scoreboard import ENSEMBLE, make_scoreboard

OURS, BAG = Row("GPT-2 mini, last block"), Row("bag of words", TEXT)
LENGTH = Row("length alone", TEXT)
SETTINGS = {"model": "/home/somebody/mini", "source": "/home/somebody/inbox.csv", "lr": 0.0005}
HOSTILE = "</td></table><script>alert('owned')</script> {{ page }} \u202e\x00 \ud800 &lt; "


def result(row: Row, wrong: range, n: int = 200, split: str = "seed 1", twins=None) -> Result:
    """Answers that are correct but for the texts of these numbers, the first the most certain."""
    true = np.arange(n) % 2
    called = true.copy()
    called[list(wrong)] = 1 - true[list(wrong)]
    p = np.full((n, 2), 0.0)
    p[np.arange(n), called] = np.linspace(0.99, 0.6, n)
    p[np.arange(n), 1 - called] = 1 - p[np.arange(n), called]
    texts = [f"{split}, text {k}" for k in range(n)]
    return Result(row, split, Answered(("ham", "spam"), texts, true, p, twins), 700, seconds=1.5)


def board_of(results: list[Result]):
    return make_scoreboard(results, OURS.name, positive="spam")


def page_of(results: list[Result], settings=SETTINGS) -> Page:
    return compare_page(board_of(results), results, settings, {"torch": "2.9"})


def section(page: Page, title: str, kind: type) -> list:
    [found] = [section for section in page.sections if section.title == title]
    return [part for part in found.parts if isinstance(part, kind)]


@pytest.mark.parametrize(
    ("ours", "bag", "facts"),
    [
        (10, 40, r" beats .*best of 2.* 15\.00 points more"),
        (40, 10, r" loses to .*best of 2.* 15\.00 points less"),
        (10, 12, r" does not beat .* 1\.00 points more.*chance"),
        (12, 10, r" does not beat .* 1\.00 points less.*chance"),
        (10, 10, r" does not beat .*both"),
    ],
)
def test_a_win_a_loss_and_a_tie(ours: int, bag: int, facts: str):
    results = [
        result(OURS, range(ours)),
        result(LENGTH, range(80)),
        result(BAG, range(200 - bag, 200)),
    ]
    told = beats_text(board_of(results))
    assert re.search(facts, told)
    right = [r.predictions.right for r in results]
    found = compare_paired(right[0], right[2])  # ours minus the bag
    [low, high] = map(float, re.findall(r"difference (\S+) to (\S+) points", told)[0])
    assert (low, high) == pytest.approx([100 * bound for bound in found.interval], abs=1.01)
    _, p = holm([compare_paired(right[n], right[0]).p for n in (1, 2)])
    assert f"{format_p(p)}, adjusted by Holm" in told


def test_it_is_holms_p_that_decides():
    ours, close = result(OURS, range(4)), result(BAG, range(5, 19))
    assert 0.025 < compare_paired(close.predictions.right, ours.predictions.right).p < 0.05
    assert " beats " in beats_text(board_of([ours, close]))
    others = [result(Row("frozen"), range(10)), result(Row("random"), range(11))]
    assert " does not beat " in beats_text(board_of([ours, close, *others]))
    assert "No text baseline" in beats_text(board_of([ours, *others]))


def test_the_first_lines_and_warnings():
    twins = np.arange(60) < 7
    results = [result(OURS, range(10), 60, twins=twins), result(BAG, range(12), 60, twins=twins)]
    page = page_of(results)
    for fact in ("2 classifiers", "ham from spam", "inbox.csv", "mini", "700 texts", "60 texts"):
        assert fact in page.summary[0]
    assert "somebody" not in page.summary[0] and f"{OURS.name}: 83.3 %" in page.summary[1]
    assert [line.split()[0] for line in page.warnings] == ["This", "The", "7", "Chance"]
    assert "7 of 60" in page.warnings[2] and "+3.33 points, p = 0.500" in page.warnings[3]
    results = [
        result(row, range(start, start + wrong + n % 2), 2000, f"seed {n}", np.zeros(2000, bool))
        for n in range(1, 11)
        for row, start, wrong in ((OURS, 0, 20), (BAG, 500, 400))
    ]
    page = page_of(results)
    assert page.warnings == [] and " beats " in page.summary[2]
    assert "10 splits" in page.summary[0] and "2 more" in page.summary[0]


def test_an_ensemble_is_mentioned_where_it_is_better():
    a, b = result(OURS, range(20)), result(BAG, range(100, 130))
    page = page_of([a, b, replace(result(ENSEMBLE, range(2)), learned=BAG.name)])
    assert f"{OURS.name}: 90.0 %" in page.summary[1] and "99.0 %" in page.summary[1]
    assert any("validation" in line for line in page.warnings)
    assert ENSEMBLE.name not in page_of([a, b, result(ENSEMBLE, range(30))]).summary[1]


def test_what_only_one_has_correct_is_shown_once():
    page = page_of([result(OURS, range(20)), result(BAG, range(15, 38))])
    [mine] = section(page, f"Only {BAG.name} has these right", Texts)
    [theirs] = section(page, f"Only {OURS.name} has these right", Texts)
    assert [row[0] for row in mine.rows] == [f"seed 1, text {k}" for k in range(15)]
    assert mine.rows[0] == ("seed 1, text 0", "ham", "spam", 0.99)
    assert [row[0] for row in theirs.rows] == [f"seed 1, text {k}" for k in range(20, 35)]
    texts = [f"text {k}" for k in range(200)]
    results = [
        replace(one, predictions=replace(one.predictions, texts=texts))
        for split in ("fold 1", "fold 2")
        for one in (result(OURS, range(3), split=split), result(BAG, range(3, 8), split=split))
    ]
    [mine] = section(page_of(results), f"Only {BAG.name} has these right", Texts)
    assert [row[0] for row in mine.rows] == ["text 0", "text 1", "text 2"]


def test_the_tables_have_the_numbers():
    bag = replace(result(BAG, range(100, 140)), learned="a|b")
    page = page_of([result(OURS, range(10)), bag], SETTINGS | {"runs": {"/home/x/one": "ab12"}})
    scores, learned = section(page, "Scoreboard", Table)
    assert [row[:2] for row in scores.rows] == [[OURS.name, "95.0 %"], [BAG.name, "80.0 %"]]
    assert learned.rows == [[BAG.name, "seed 1", "a|b"]]
    [chance] = section(page, "What chance does", Table)
    assert chance.rows[0][:2] == [BAG.name, "+15.00"] and chance.rows[0][3:] == ["< 0.001", "no"]
    [settings] = section(page, "Settings", Table)
    assert ["lr", "0.0005"] in settings.rows and ["SHA-256 of run one", "ab12"] in settings.rows


def test_hostile_texts_stay_texts(tmp_path: Path):
    labels = ("ham", "<b>spam</b>")
    results = [
        replace(
            one,
            learned=HOSTILE if one.row is BAG else "",
            predictions=replace(
                one.predictions,
                texts=[HOSTILE + text for text in one.predictions.texts],
                labels=labels,
            ),
        )
        for one in (result(OURS, range(3)), result(BAG, range(9, 19)))
    ]
    board = make_scoreboard(results, OURS.name, positive="<b>spam</b>")
    page = compare_page(board, results, SETTINGS | {"x": HOSTILE}, {})
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, page)
    raw = (tmp_path / "a.html").read_bytes()
    assert raw == (tmp_path / "b.html").read_bytes()
    read = Reader(raw.decode("utf-8"))
    assert not read.all("script") and not read.all("b") and len(read.all("img")) == 2
    shown = [text for text in read.texts["td"] if text.startswith("</td></table><script>")]
    assert len(shown) == 3 + 10 + 1 + 1  # mistakes of either, what was learned, the setting
    assert all("{{ page }}" in text for text in shown)


def test_a_table_of_experiments():
    default = Row("default", "", Book(16, 98.33))
    rows = [
        default,
        Row("first token", "token position"),
        Row("mean", "token position"),
        Row(HOSTILE, "head"),
    ]
    wrong = [range(20), range(100), range(21), range(1)]
    results = [
        result(row, w, split=f"seed {n}")
        for n in (1, 2, 3)
        for row, w in zip(rows, wrong, strict=True)
    ]
    board = make_scoreboard(results, "default", ranked=False)
    page = experiment_page(board, SETTINGS)
    assert page.title == "Experiments with GPT-2 mini on inbox.csv"
    assert "3 changes" in page.summary[0] and "3 seeds (1, 2, 3)" in page.summary[0]
    assert "90.0 %" in page.summary[1] and "99.5 %" in page.summary[1]
    told = told_by_kind(board.rows)
    assert "first token is worse" in told[0] and "-40.00 points" in told[0]
    assert "of 1 more row" in told[0] and len(page.warnings) == 1
    [table] = section(page, "All rows", Table)
    assert table.rows[0][-1] == "98.33 % (row 16)" and table.rows[1][4] == "-40.00"
    one = experiment_page(
        make_scoreboard(results[:1] + results[2:3], "default", ranked=False), SETTINGS
    )
    assert [line.split()[0] for line in one.warnings] == ["This", "No", "Who"]
