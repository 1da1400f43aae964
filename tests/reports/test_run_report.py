"""The page of a run has what belongs on it, and leaves out what does not."""

from dataclasses import replace

import numpy as np
import pytest
from html_reader import Reader
from run_facts_example import LABELS, answers, assessed, baseline, run_facts, scored

from gpt2_from_scratch.classifier.tasks.span import SpanScores
from gpt2_from_scratch.evaluation.assessment import assess
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions, evaluate_predictions
from gpt2_from_scratch.reports.findings import RunFacts, against_baselines, how_good, trained_on
from gpt2_from_scratch.reports.render import (
    Page,
    Picture,
    Preformatted,
    Table,
    Texts,
    render,
    write_page,
)
from gpt2_from_scratch.reports.run_report import run_page

ALL = [
    "What was trained",
    "Data",
    "Ledger",
    "Curves",
    "Scores",
    "Confusion",
    "Baselines on the same split",
    "Calibration",
    "Thresholds",
    "Mistakes",
    "Least certain",
    "How to use it",
    "Versions and seeds",
]


def whole() -> RunFacts:
    return run_facts(assessment=assessed(twins=100), n_near_twins=100, n_cut=3)


def tables(page: Page, title: str) -> list[Table]:
    [section] = [section for section in page.sections if section.title == title]
    return [part for part in section.parts if isinstance(part, Table)]


def test_all_of_it_in_order():
    facts = whole()
    page = run_page(facts)
    assert page.title == "GPT-2 mini on inbox.csv"
    assert page.summary == [trained_on(facts), how_good(facts), against_baselines(facts)]
    assert [section.title for section in page.sections] == ALL
    pictures = [
        part for section in page.sections for part in section.parts if isinstance(part, Picture)
    ]
    assert len(pictures) == 4 and all(len(picture.alt) > 40 for picture in pictures)


def test_the_page_is_whole_html_of_a_size_that_can_be_sent(tmp_path):
    write_page(tmp_path / "a.html", run_page(whole()))
    raw = (tmp_path / "a.html").read_bytes()
    assert len(raw) < 3_000_000
    read = Reader(raw.decode("utf-8"))
    assert len(read.all("img")) == 4 and len(read.texts["h2"]) == len(ALL) + 1  # the warnings'
    write_page(tmp_path / "b.html", run_page(whole()))
    assert (tmp_path / "b.html").read_bytes() == raw


def test_nobodys_folders_are_on_it():
    html = render(run_page(whole()))
    assert "inbox.csv" in html and "somebody" not in html and "secret folder" not in html


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ({"n_last_blocks": 0}, "none"),
        ({"n_last_blocks": 1}, "the last"),
        ({"n_last_blocks": 3}, "the last 3"),
        ({"n_last_blocks": 1, "trainable": "head.*"}, "head.*"),
        ({}, "–"),
    ],
)
def test_what_trained(settings, blocks):
    [table] = tables(run_page(run_facts(settings=settings)), "What was trained")
    told = dict(table.rows)
    assert told["blocks that train"] == blocks and told["epochs run, at most"] == "1 of –"
    assert told["numbers that train"] == "790,786 of 5,886,466 (13.4 %)"


def test_the_trade_is_drawn_where_the_answers_are_known():
    facts = run_facts(assessment=assessed(), answered=answers(300, 15))
    [section] = [section for section in run_page(facts).sections if section.title == "Thresholds"]
    [picture] = [part for part in section.parts if isinstance(part, Picture)]
    assert picture.alt.startswith("How many that are spam each threshold finds")
    assert "spam" in picture.figure.axes[0].get_title()


def test_the_counts_and_the_scores():
    page = run_page(whole())
    [data] = tables(page, "Data")
    assert data.rows == [
        ["ham", "525", "100", "150", "775"],
        ["spam", "525", "100", "150", "775"],
        ["all", "1,050", "200", "300", "1,550"],
    ]
    accuracies, classes = tables(page, "Scores")
    assert [row[1] for row in accuracies.rows] == ["95.0 %", "92.5 %"]
    assert [row[3:] for row in accuracies.rows] == [["285", "300"], ["185", "200"]]
    # of the first 15 texts, called wrong, 8 are ham: 142 of 150 found, of 149 called so
    assert classes.rows[0][:5] == ["ham", "95.3 %", "94.7 %", "95.0 %", "150"]
    assert classes.columns[5:] == ["ROC-AUC", "average precision"]


def test_areas_are_scikit_learns():
    from sklearn.metrics import roc_auc_score

    test = answers(300, 15)
    [_, classes] = tables(run_page(whole()), "Scores")
    area = roc_auc_score(test.true, test.probabilities[:, 1])
    assert [row[5] for row in classes.rows] == [f"{area:.4f}"] * 2


def test_baselines_stand_beside_the_run_the_best_first():
    facts = run_facts(
        baselines=[
            baseline("length | alone", 100),
            baseline("bag", 12),
            (*baseline("regex", 60)[:2], None),
        ]
    )
    [table] = tables(run_page(facts), "Baselines on the same split")
    names = ["bag", "GPT-2 mini, this run", "regex", "length | alone"]
    assert [row[0] for row in table.rows] == names
    assert [row[1] for row in table.rows] == ["96.0 %", "95.0 %", "80.0 %", "66.7 %"]
    assert [row[3] for row in table.rows] == ["-1.0", "–", "–", "+28.3"]
    assert [row[5] for row in table.rows] == ["0.250", "–", "–", "< 0.001"]  # 2 / 2 ** 3
    [section] = [found for found in run_page(facts).sections if found.title.startswith("Baselines")]
    about = "p is McNemar's, adjusted for the number of baselines (Holm)."
    assert section.parts[0].text.endswith(about)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"temperature": 1.0}, ["as trained"]),
        ({"temperature": 1.0, "uncalibrated": None}, ["as trained"]),
        ({}, ["as trained", "temperature 1.50"]),
        ({"uncalibrated": None}, ["temperature 1.50"]),
    ],
)
def test_probabilities_are_told_as_they_are(changed, names):
    found = replace(assessed(), **changed)
    page = run_page(run_facts(assessment=found))
    [table] = tables(page, "Calibration")
    assert [row[0] for row in table.rows] == names
    assert table.rows[-1][1] == f"{found.calibration.brier:.4f}"
    [section] = [section for section in page.sections if section.title == "Calibration"]
    assert ("fitted" in section.parts[0].text) == (names[-1] != "as trained")


def test_thresholds_are_told_as_asked():
    page = run_page(run_facts(assessment=assessed()))
    [table] = tables(page, "Thresholds")
    assert [row[0] for row in table.rows] == [f"{n} of 1,000" for n in (0, 5, 10, 20)]
    for row in table.rows:
        assert row[2].endswith(" of 150") and row[4].endswith(" of 150")


@pytest.mark.parametrize(
    ("share", "told"), [(1.0, "never"), (1 - 1e-7, "1.0000"), (1 - 1e-5, "0.999995"), (0.5, "0.7")]
)
def test_a_threshold_never_looks_like_one_that_it_is_not(share, told):
    """A good text that gets `share` of spam: the threshold lies midway from there to 1, or above."""
    shares = np.array([[1 - share, share], [0.1, 0.9 * share + 0.1 - 0.1 * share]])
    shares[1] = [1 - shares[1, 1], shares[1, 1]]
    val = LabelledPredictions(LABELS, ["good", "spam"], np.array([0, 1]), shares)
    found = assess(answers(300, 15), val, positive="spam", allowed_per_1000=(0,))
    [table] = tables(run_page(run_facts(assessment=found)), "Thresholds")
    assert table.rows[0][1].startswith(told)


def test_mistakes_are_shown_as_they_are():
    page = run_page(whole())
    [section] = [section for section in page.sections if section.title == "Mistakes"]
    [texts] = [part for part in section.parts if isinstance(part, Texts)]
    assert texts.rows[0] == ("text 0", "ham", "spam", pytest.approx(0.9))
    assert len(texts.rows) == 10


def test_most_often_confused_of_many_labels():
    labels = [f"c{k}" for k in range(40)]
    true = np.repeat(np.arange(40), 5)
    said = np.where(true == 7, 3, true)
    said[0] = 9
    scores = evaluate_predictions(true, said, labels)
    counts = {p: dict.fromkeys(labels, 5) for p in ("train", "val", "test")}
    page = run_page(run_facts(scores=scores, counts=counts, assessment=None, baselines=[]))
    [table] = tables(page, "Confusion")
    assert table.rows == [["c7", "c3", "5"], ["c0", "c9", "1"]]
    [section] = [section for section in page.sections if section.title == "Confusion"]
    assert not [part for part in section.parts if isinstance(part, Picture)]  # no room for 40


def test_another_task_has_its_own_scores_and_no_classes():
    scores = SpanScores(290, 300, (0.94, 0.98), 0.97)
    counts = {"train": {"texts": 1000}, "val": {"texts": 200}, "test": {"texts": 300}}
    page = run_page(
        run_facts(task="span", scores=scores, counts=counts, assessment=None, baselines=[])
    )
    left = [
        "What was trained",
        "Data",
        "Ledger",
        "Curves",
        "Scores",
        "How to use it",
        "Versions and seeds",
    ]
    assert [section.title for section in page.sections] == left
    [scores_section] = [section for section in page.sections if section.title == "Scores"]
    assert scores_section.parts == [Preformatted(scores.as_table())]
    Reader(render(page))


def test_hostile_labels_and_texts_come_out_as_text():
    evil = ("<img src=x onerror=alert(1)>", "'\"</style><script>")
    test = answers(300, 15, evil)
    test.texts[:] = [f"<script>{n}</script>" for n in range(300)]
    counts = {p: dict.fromkeys(evil, 150) for p in ("train", "val", "test")}
    found = assess(test, answers(200, 8, evil))
    facts = run_facts(counts=counts, scores=scored(test), assessment=found, data="<b>.csv")
    read = Reader(render(run_page(facts)))
    assert not {"script", "b"} & {tag for tag, _ in read.tags}
    assert len(read.all("img")) == 4 and "<script>0</script>" in read.texts["td"]
    assert evil[0] in read.texts["th"] and "GPT-2 mini on <b>.csv" in read.texts["h1"]


def test_no_history_no_curves():
    page = run_page(run_facts(history=[]))
    titles = [section.title for section in page.sections]
    assert "Curves" not in titles and "Calibration" in titles
    [table] = tables(page, "What was trained")
    assert "epochs run, at most" not in dict(table.rows) and "task" in dict(table.rows)
