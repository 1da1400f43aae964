"""The page of a comparison has what its scoreboard has."""

import numpy as np
import pytest
from html_reader import Reader

from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.data.messages import Message, write_messages
from gpt2_from_scratch.evaluation.metrics import Answered
from gpt2_from_scratch.evaluation.significance import compare_paired, holm
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.reports.study_findings import StudyFacts, beats_text, study_findings
from gpt2_from_scratch.studies.compare import compare
from gpt2_from_scratch.studies.compare_report import comparison_facts
from gpt2_from_scratch.studies.contest import ENSEMBLE
from gpt2_from_scratch.studies.scoreboard import Result, make_scoreboard, mean_result

OURS, BAG, LENGTH = "GPT-2 mini, last block", "bag of words", "length alone"
SETTINGS = {"model": "/home/somebody/mini", "data": "/home/somebody/inbox.csv", "lr": 0.0005}


def result(name: str, wrong: range, n: int = 200, split: str = "seed 1", twins=None) -> Result:
    """Answers that are right but for the texts of these numbers, the first of them the surest."""
    true = np.arange(n) % 2
    called = true.copy()
    called[list(wrong)] = 1 - true[list(wrong)]
    shares = np.full((n, 2), 0.0)
    shares[np.arange(n), called] = np.linspace(0.99, 0.6, n)
    shares[np.arange(n), 1 - called] = 1 - shares[np.arange(n), called]
    texts = [f"{split}, text {k}" for k in range(n)]
    return Result(split, name, Answered(("ham", "spam"), texts, true, shares, twins), 1.5)


def facts_of(results: list[Result], settings=SETTINGS, **options) -> StudyFacts:
    board = make_scoreboard(results, OURS, 700, watched="spam", **options)
    return comparison_facts(board, results, settings, {"torch": "2.9"})


def test_the_rows_are_the_scoreboards() -> None:
    results = [result(OURS, range(10)), result(f"{BAG}: a|b", range(100, 140))]
    facts = facts_of(results)
    ours, bag = facts.rows
    assert (ours.name, ours.accuracy, ours.difference) == (OURS, 0.95, None)
    assert (bag.name, bag.accuracy, list(bag.learned)) == (BAG, 0.8, ["a|b"])
    assert bag.is_text_baseline and not ours.is_text_baseline
    assert bag.difference == pytest.approx(-0.15)
    found = compare_paired(results[1].answered.right, results[0].answered.right)
    assert bag.difference_interval == found.interval and bag.p == found.p
    assert facts.reference == OURS and (facts.n_train, facts.n_test) == (700, 200)
    assert facts.labels == ("ham", "spam") and facts.positive == "spam"
    assert facts.predictions[BAG] == [results[1].answered]


def test_it_is_holms_p_that_decides() -> None:
    """p is 0.03 by itself, and above 0.05 as one of three."""
    close = result(BAG, range(5, 5 + 14))  # 4 texts against 14
    ours = result(OURS, range(4))
    alone = compare_paired(close.answered.right, ours.answered.right).p
    assert 0.025 < alone < 0.05
    assert " beats " in beats_text(facts_of([ours, close]))
    others = [result("frozen", range(10)), result("random", range(11))]
    rights = [r.answered.right for r in (close, *others)]
    expected = holm([compare_paired(right, ours.answered.right).p for right in rights])[0]
    facts = facts_of([ours, close, *others])
    assert facts.best_text_baseline.p == pytest.approx(expected)
    assert " does not beat " in beats_text(facts)


def test_the_combination_comes_last() -> None:
    a, b = result(OURS, range(20)), result(BAG, range(100, 130))
    facts = facts_of([a, b, mean_result(f"{ENSEMBLE}: {BAG}", [a, b])], combined=[ENSEMBLE])
    assert [row.is_combination for row in facts.rows] == [False, False, True]


def test_near_duplicates_and_notes_are_warned_of() -> None:
    twins = np.arange(60) < 7
    some = [result(OURS, range(10), 60, twins=twins), result(BAG, range(12), 60, twins=twins)]
    told = " ".join(study_findings(facts_of(some, notes=("a third: left out",)))["warnings"])
    assert "7 of 60 test texts" in told and "a third: left out" in told


def test_runs_are_named_without_their_folders() -> None:
    settings = {"data": "", "runs": {"/home/somebody/one": "ab12"}}
    found = study_findings(facts_of([result(OURS, range(3)), result(BAG, range(9))], settings))
    assert found["settings"] == {"data": "", "SHA-256 of run one": "ab12"}
    assert "Base model" not in found["summary"][0]


def test_compare_writes_it_and_writes_the_same_again(tiny_checkpoint, tmp_path) -> None:
    data, out = tmp_path / "inbox.csv", tmp_path / "out"
    words = [("ham", "see you"), ("spam", "win now")]
    write_messages(
        data, [Message(f"{w} {n} {'abc'[n % 3] * n}", k) for k, w in words for n in range(20)]
    )
    found = []
    for _ in range(2):  # the second time all answers are there
        with silenced():
            config = TrainConfig(epochs=1)
            compare(tiny_checkpoint, data, config=config, quick=True, out=out, cache=False)
        found.append((out / "scoreboard.html").read_bytes())
    assert found[0] == found[1]
    read = Reader(found[0].decode("utf-8"))
    assert f"GPT-2 {tiny_checkpoint.name}, last block and what it must beat" in read.texts["h1"]
    assert "on inbox.csv" in read.texts["p"][0] and str(tmp_path) not in str(read.texts)
    assert (out / "scoreboard.png").exists()
