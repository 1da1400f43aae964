"""The page of a table of experiments has its rows, and the order against the book."""

import json
from dataclasses import asdict

import pytest
from html_reader import Reader

from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.reports.render import write_study_report
from gpt2_from_scratch.reports.study_findings import StudyFacts
from gpt2_from_scratch.studies.ablations import Book
from gpt2_from_scratch.studies.experiment_report import experiment_facts
from gpt2_from_scratch.studies.experiment_table import Agreement, Summary
from gpt2_from_scratch.studies.experiments import Result


def summary(row: str, about: str, mean: float, p: float, n: int = 3, book: Book | None = None):
    spread, interval = 0.01, (mean - 0.02, mean + 0.02)
    return Summary(row, about, [mean] * n, mean, spread, interval, mean - 0.9, p / 2, p, book, 3.0)


ROWS = [
    summary("default", "", 0.9, 1.0, book=Book(16, 98.33)),
    summary("first token", "token position", 0.6, 0.0002, book=Book(2, 75.0)),
    summary("everything", "trained part", 0.94, 0.049),
]


def facts_of(rows: list[Summary], agrees: Agreement | None = None, notes: str = "") -> StudyFacts:
    results = [
        Result(s.row, n, s.mean, 0.9, "1" * 30, 70, 5, 10, 1.5, 1.0)
        for s in rows
        for n in range(len(s.accuracies))
    ]
    return experiment_facts(
        rows, agrees, results, notes, model="/home/somebody/mini", data="/home/x/in.csv"
    )


def test_the_rows() -> None:
    facts = facts_of(ROWS)
    assert facts.title == "Experiments with GPT-2 mini on in.csv"
    assert facts.reference == "default" and facts.splits == ["seed 0", "seed 1", "seed 2"]
    default, first, every = facts.rows
    assert default.difference is None and default.published == pytest.approx(0.9833)
    assert (first.difference, first.p) == (pytest.approx(-0.3), 0.0002)
    assert (first.change, first.published_as) == ("token position", "row 2")
    assert every.published is None and facts.tries_changes
    assert (facts.n_test, facts.n_train) == (30, 70)


def test_the_order_against_the_book() -> None:
    reversed_pair = Agreement(5, 0.25, 0.03, [("everything", "first token")])
    *_, told = facts_of(ROWS, reversed_pair, "- a note").notes
    assert "0.25 (p = 0.030)" in told and "first token is better than everything" in told
    assert "No pair is reversed" in facts_of(ROWS, Agreement(5, 1.0, 0.03, [])).notes[0]
    assert facts_of(ROWS, None, "- a note").notes == ["a note"]


def test_the_page_has_no_folders(tmp_path) -> None:
    write_study_report(facts_of(ROWS, None, "- a note"), tmp_path, "experiments")
    html = (tmp_path / "experiments.html").read_text("utf-8")
    assert "somebody" not in html and (tmp_path / "experiments.png").exists()
    read = Reader(html)
    assert "first token" in read.texts["th"] and "a note" in read.texts["p"]
    assert "75.0% (row 2)" in read.texts["td"]


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
