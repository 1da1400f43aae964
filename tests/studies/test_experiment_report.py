"""The page of a table of experiments: what differs beyond chance, and what one should beware of."""

import json
from dataclasses import asdict

import pytest
from html_reader import Reader
from matplotlib.figure import Figure

from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.reports.render import Page, Table, render
from gpt2_from_scratch.studies.ablations import Book
from gpt2_from_scratch.studies.experiment_report import experiment_page, told_by_kind
from gpt2_from_scratch.studies.experiment_table import Agreement, Summary
from gpt2_from_scratch.studies.experiments import Result

HOSTILE = "</td></table><script>alert('owned')</script> {{ page }} &lt;"


def summary(row: str, about: str, mean: float, p: float, n: int = 3, book: Book | None = None):
    return Summary(
        row,
        about,
        [mean] * n,
        mean,
        0.01,
        (mean - 0.02, mean + 0.02),
        mean - 0.9,
        p / 2,
        p,
        book,
        3.0,
    )


DEFAULT = summary("default", "", 0.9, 1.0, book=Book(16, 98.33))
ROWS = [
    DEFAULT,
    summary("first token", "token position", 0.6, 0.0002, book=Book(2, 75.0)),
    summary("mean over tokens", "token position", 0.91, 0.7),
    summary("everything", "trained part", 0.94, 0.049),
    summary("two layers", "head", 0.93, 0.05),
]


def page_of(rows: list[Summary], agrees: Agreement | None = None, notes: str = "") -> Page:
    results = [
        Result(s.row, n, s.mean, 0.9, "1" * 30, 70, 5, 10, 1.5, 1.0)
        for s in rows
        for n in range(len(s.accuracies))
    ]
    return experiment_page(
        rows, agrees, results, notes, Figure(), model="/home/somebody/mini", data="/home/x/in.csv"
    )


def tables(page: Page, title: str) -> list[Table]:
    [found] = [section for section in page.sections if section.title == title]
    return [part for part in found.parts if isinstance(part, Table)]


def test_a_kind_is_told_where_p_of_so_many_is_below_5_in_100() -> None:
    assert told_by_kind(ROWS) == [
        "Token position: first token is worse than the default (-30.00 points, p < 0.001, adjusted by "
        "Holm); of 1 more row that cannot be said.",
        "Trained part: everything is better than the default (+4.00 points, p = 0.049, adjusted by "
        "Holm).",
    ]
    assert told_by_kind([DEFAULT, ROWS[2], ROWS[4]]) == []


def test_the_first_lines() -> None:
    page = page_of(ROWS)
    assert page.title == "Experiments with GPT-2 mini on in.csv"
    assert page.summary == [
        "4 changes of the default were tried on in.csv with GPT-2 mini: 3 seeds (0, 1, 2), 30 texts to test each.",
        "The default is right for 90.0 % of them (95 % interval 88.0 to 92.0); most often right is "
        "everything, 94.0 % (+4.00 points, p = 0.049, adjusted by Holm).",
    ]
    assert page_of(ROWS[:2]).summary[1].endswith("(95 % interval 88.0 to 92.0).")


def test_the_table_has_all_rows() -> None:
    [table] = tables(page_of(ROWS), "All rows")
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert table.rows[0] == [
        "default",
        "90.0 %",
        "1.00",
        "88.0 to 92.0",
        "",
        "",
        "",
        "98.33 % (row 16)",
    ]
    assert table.rows[1][-4:] == ["-30.00", "< 0.001", "< 0.001", "75.00 % (row 2)"]


@pytest.mark.parametrize(
    ("rows", "begins"),
    [
        (ROWS, ["Who takes"]),
        ([DEFAULT, ROWS[2]], ["No row", "Who takes"]),
        (
            [summary("default", "", 0.9, 1.0, 1), summary("a", "b", 0.6, 0.01, 1)],
            ["This is one", "Who takes"],
        ),
        ([DEFAULT], []),
    ],
)
def test_warnings(rows: list[Summary], begins: list[str]) -> None:
    told = page_of(rows).warnings
    assert len(told) == len(begins)
    assert all(line.startswith(begin) for line, begin in zip(told, begins, strict=True))


def test_one_seed_has_no_spread() -> None:
    [table] = tables(page_of([summary("default", "", 0.9, 1.0, 1)]), "All rows")
    assert "spread" not in table.columns and len(table.rows[0]) == len(table.columns)


def test_the_order_against_the_book() -> None:
    page = page_of(ROWS, Agreement(5, 0.25, 0.03, [("everything", "first token")]))
    [table] = tables(page, "Order against the book")
    assert table.rows == [("everything", "first token")]
    html = render(page)
    assert "is 0.25 (p = 0.030)." in html and "No pair is reversed" not in html
    same = render(page_of(ROWS, Agreement(5, 1.0, 0.03, [])))
    assert "No pair is reversed here beyond chance" in same
    assert "Order against the book" not in render(page_of(ROWS))


def test_hostile_names_stay_text() -> None:
    rows = [DEFAULT, summary(HOSTILE, HOSTILE, 0.5, 0.001)]
    page = page_of(rows, notes=f"- one note {HOSTILE}\n- another")
    html = render(page)
    assert html == render(page_of(rows, notes=f"- one note {HOSTILE}\n- another"))
    read = Reader(html)
    assert not read.all("script") and HOSTILE in read.texts["th"] and "somebody" not in html
    assert f"one note {HOSTILE}" in read.texts["p"] and "another" in read.texts["p"]


def test_the_command_writes_it(tmp_path, monkeypatch, capsys) -> None:
    def made_up(plan, rows, out, **options) -> list[Result]:
        found = [
            Result(row.name, seed, 0.8, 0.9, "11110" * 6, 70, 5, 10, 1.5, 1.0)
            for row in rows
            for seed in plan.seeds
        ]
        lines = "".join(json.dumps(asdict(result)) + "\n" for result in found)
        (out / "results.jsonl").write_text(lines)  # all that the folder has is shown
        return found

    monkeypatch.setattr("gpt2_from_scratch.studies.experiments.run_experiments", made_up)
    given = ["experiments", "--rows", "head alone", "first token", "--seeds", "1", "2"]
    assert main([*given, "--out", str(tmp_path)]) == 0
    assert "experiments.html" in capsys.readouterr().err
    read = Reader((tmp_path / "experiments.html").read_text("utf-8"))
    assert read.texts["h1"] == ["Experiments with GPT-2 mini on demo"]
    assert {"head alone", "first token"} <= set(read.texts["th"]) and len(read.all("img")) == 1
