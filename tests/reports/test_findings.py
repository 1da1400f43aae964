"""What is told of a run: its numbers against SciPy's, and each warning where it belongs only."""

import ast
import shlex
from dataclasses import replace

import pytest
from run_facts_example import answers, assessed, baseline, run_facts, scored
from scipy.stats import binomtest

from gpt2_from_scratch.classifier.tasks.language import LanguageScores
from gpt2_from_scratch.classifier.tasks.regression import RegressionScores
from gpt2_from_scratch.classifier.tasks.span import SpanScores
from gpt2_from_scratch.classifier.train import Epoch
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.evaluation.metrics import ClassScores
from gpt2_from_scratch.reports.findings import (
    against_baselines,
    how_good,
    listed,
    python_lines,
    run_warnings,
    shell_commands,
    split_rule,
    trained_on,
)


def test_the_first_lines():
    facts = run_facts()
    assert trained_on(facts) == (
        "GPT-2 mini was finetuned on 1,050 texts of inbox.csv to tell ham from spam. 790,786 of its "
        "5,886,466 numbers were trained, in 9.4 seconds, with seed 5."
    )
    ci = binomtest(285, 300).proportion_ci(method="wilson")
    assert how_good(facts) == (
        "On texts kept for the test its accuracy is 95.0 % (285 of 300 right; 95 % interval "
        f"{100 * ci.low:.1f} to {100 * ci.high:.1f})."
    )


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "were trained, with seed"),
        (119, "trained, in 119.0 seconds, with"),
        (150, "in 2.5 minutes,"),
    ],
)
def test_the_time_is_told_if_known(seconds, told):
    assert told in trained_on(run_facts(seconds=seconds))


def test_the_score_without_near_twins_stands_beside_it():
    facts = run_facts(assessment=assessed(twins=100))
    assert "On those that have no near twin in training it is 92.5 % (185 of 200" in how_good(facts)


@pytest.mark.parametrize(
    ("n", "told"),
    [
        (3, "to tell 3 labels apart: c0, c1 and c2."),
        (8, "c6 and c7."),
        (77, "to tell 77 labels apart: c0, c1, c2, c3, c4, c5, c6, c7 and 69 more."),
    ],
)
def test_many_labels(n, told):
    counts = {"train": {f"c{k}": 10 for k in range(n)}}
    assert told in trained_on(run_facts(counts=counts))


@pytest.mark.parametrize(
    ("wrong", "begins"),
    [  # this run has 15 wrong, and every text the better baselines get wrong is among them
        (45, "It beats the text baseline (b) by 10.0 points: 95 % interval of the difference +"),
        (18, "It is right 1.0 points more often than the text baseline (b), which may be chance: "),
        (15, "It is right as often as the text baseline (b): "),
        (12, "It is right 1.0 points less often than the text baseline (b), which may be chance: "),
        (0, "It is worse than the text baseline (b) by 5.0 points: "),
    ],
)
def test_one_sentence_says_whether_it_beats_the_baselines(wrong, begins):
    told = against_baselines(run_facts(baselines=[baseline("b", wrong)]))
    assert told.startswith(begins)
    few = abs(wrong - 15)  # texts that only one of the two has right: all on one side
    p = binomtest(few, few).pvalue if few else 1.0
    assert told.endswith("p < 0.001." if p < 0.001 else f"p = {p:.3f}.")


def test_the_best_baseline_is_the_one_to_beat():
    facts = run_facts(baselines=[baseline("a", 60), baseline("b", 45), baseline("c", 90)])
    assert against_baselines(facts).startswith("It beats the best of 3 text baselines (b) by 10.0")
    assert against_baselines(run_facts(baselines=[])) == ""


def test_a_difference_that_was_not_tested_says_so():
    name, scores, _ = baseline("b", 18)
    told = against_baselines(run_facts(baselines=[(name, scores, None)]))
    assert told == (
        "It is right 1.0 points more often than the text baseline (b); whether that is chance was "
        "not tested."
    )


# --- warnings ---

SMALL = {
    "counts": {p: {"ham": n, "spam": n} for p, n in (("train", 525), ("val", 100), ("test", 60))},
    "scores": scored(answers(120, 6)),
    "baselines": [],
}
LOPSIDED = scored(answers(300, 15))
LOPSIDED = replace(
    LOPSIDED,
    classes=[ClassScores("ham", 0.95, 0.95, 0.95, 150), ClassScores("spam", 0.95, 0.8, 0.87, 150)],
)
OTHER_SIDE = replace(
    LOPSIDED,
    classes=[ClassScores("ham", 0.8, 0.95, 0.87, 150), ClassScores("spam", 0.95, 0.9, 0.92, 150)],
)
SILENT = replace(
    LOPSIDED,
    classes=[ClassScores("ham", 0.5, 1.0, 0.67, 150), ClassScores("spam", None, 0.0, 0.0, 150)],
)
EVEN = replace(
    LOPSIDED,
    classes=[ClassScores("ham", 0.95, 0.86, 0.9, 150), ClassScores("spam", 0.86, 0.95, 0.9, 150)],
)
TWINLESS = binomtest(185, 200).proportion_ci(method="wilson")
CASES = {
    "small test": (SMALL, "The test part is small: 120 texts leave 4 points of doubt"),
    "near twins": (
        {
            "n_near_twins": 100,
            "assessment": replace(assessed(twins=100), temperature=1.0, thresholds=[]),
        },
        "100 of 300 texts to test have a near twin in training, so that the score tells in part what "
        "was remembered. On those that have none its accuracy is 92.5 % (185 of 200 right; 95 % interval "
        f'{100 * TWINLESS.low:.1f} to {100 * TWINLESS.high:.1f}). "train --together near-duplicates" splits',
    ),
    "one near twin": ({"n_near_twins": 1}, "1 of 300 texts to test has a near twin"),
    "baseline as good": (
        {"baselines": [baseline("bag", 18)]},
        "A text baseline, bag, is about as good (94.0 % of the same",
    ),
    "baseline better": (
        {"baselines": [baseline("bag", 12)]},
        "A text baseline, bag, is as good or better (96.0 %",
    ),
    "baseline untested": (
        {"baselines": [(*baseline("bag", 15)[:2], None)]},
        "A text baseline, bag, is as good or better",
    ),
    "uneven": (
        {"counts": run_facts().counts | {"train": {"ham": 301, "spam": 100}}},
        "Labels are uneven in training: 301 texts are ham, 100 are spam. Always answering ham would be "
        "right 75.1 % of the time",
    ),
    "cut": ({"n_cut": 17}, "17 texts of all parts were cut to their first 384 tokens"),
    "epoch": (
        {
            "history": [
                Epoch(1, 0.7, 0.5, 0.69, 0.6),
                Epoch(2, 0.6, 0.6, 0.5, 0.8),
                Epoch(3, 0.5, 0.7, 0.6, 0.7),
            ]
        },
        "The part to choose by has chosen the epoch (2 of 3), so that",
    ),
    "temperature": (
        {"assessment": assessed()},
        "has chosen the temperature (1.50) and the thresholds, so that",
    ),
    "one side": (
        {"scores": LOPSIDED, "baselines": []},
        "Errors fall to one side: of texts that are spam 80.0 % are found, of those called spam 95.0 % are.",
    ),
    "other side": (
        {"scores": OTHER_SIDE, "baselines": []},
        "texts that are ham 95.0 % are found, of those called ham 80.0 % are.",
    ),
    "never": (
        {"scores": SILENT, "baselines": []},
        "spam was never answered, though 150 texts of the test are",
    ),
    "few to choose by": (
        {"counts": run_facts().counts | {"val": {"ham": 49, "spam": 50}}},
        "The part to choose by has 99 texts only: one text more or less right moves its score by 1.0 points.",
    ),
}
SPARED = {
    "test large enough": {},
    "half an interval": {"scores": scored(answers(210, 10)), "baselines": []},  # 3.0 points
    "even enough": {"scores": EVEN, "baselines": []},
    "three to one": {"counts": run_facts().counts | {"train": {"ham": 300, "spam": 100}}},
    "a hundred to choose by": {"counts": run_facts().counts | {"val": {"ham": 50, "spam": 50}}},
    "near twins not known": {"n_near_twins": None},
    "better, untested": {"baselines": [(*baseline("bag", 18)[:2], None)]},
}


def test_one_seed_is_always_told():
    [told] = run_warnings(run_facts())
    assert told.startswith("This is one run, with one seed") and "compare --seeds 1 2 3" in told


def test_what_cannot_be_done_is_not_advised():
    """Other tasks have no `compare`; what `train` did not cut, it cannot cut otherwise."""
    told = run_warnings(run_facts(task="multi-label", assessment=None, baselines=[]))
    assert [line.startswith("This is one run") for line in told] == [True]
    assert "compare" not in told[0] and "experiments" not in told[0] and "train --seed" in told[0]
    files = {"settings": {"val_data": "v.csv", "test_data": "t.csv"}}
    for changed in (files, {"split": "As the lecture does it.", "history": []}):
        [told, _] = run_warnings(run_facts(n_near_twins=2, **changed))
        assert "2 of 300 texts" in told and told.endswith(").") and "--together" not in told


def test_without_epochs_none_was_chosen():
    few = {"counts": run_facts().counts | {"val": {"ham": 10, "spam": 10}}}
    [_, told] = run_warnings(run_facts(history=[], **few))
    assert told.endswith("by 5.0 points. All that is chosen by it is a rough guess.")
    [_, told] = run_warnings(run_facts(**few))
    assert "Which epoch was best" in told


@pytest.mark.parametrize("name", CASES)
def test_what_is_to_be_told_is_told_and_nothing_else(name):
    changed, begins = CASES[name]
    [told] = [w for w in run_warnings(run_facts(**changed)) if "one seed" not in w]
    assert begins in told


@pytest.mark.parametrize("name", SPARED)
def test_what_is_well_is_not_warned_of(name):
    assert len(run_warnings(run_facts(**SPARED[name]))) == 1


def test_the_doubt_is_half_of_wilsons_interval():
    ci = binomtest(114, 120).proportion_ci(method="wilson")
    assert f"{100 * (ci.high - ci.low) / 2:.0f}" == "4"
    ci = binomtest(200, 210).proportion_ci(method="wilson")
    assert 0.029 < (ci.high - ci.low) / 2 <= 0.03


@pytest.mark.parametrize(
    "scores",
    [
        LanguageScores(1, 5, 2.0, 7.4, 1.0),
        RegressionScores(300, 0.5, []),
        SpanScores(290, 300, (0.94, 0.98), 0.97),
    ],
)
def test_other_tasks_are_told_by_their_own_scores(scores):
    counts = {"train": {"texts": 1000}, "val": {"texts": 200}, "test": {"texts": 300}}
    facts = run_facts(scores=scores, task="span", counts=counts, assessment=None, baselines=[])
    assert how_good(facts).startswith("On 300 texts kept for the test: ")
    assert "to find the answer to a question in a text" in trained_on(facts)
    assert len(run_warnings(facts)) == 1


# --- words ---


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "equal texts count once"),
        ({"balance": True}, "20 % to test of as many texts of each label as the rarest has"),
        ({"together": "near-duplicates"}, "nearly the same went into one part"),
        ({"val_data": "v.csv", "test_data": "t.csv"}, "came in files of their own"),
    ],
)
def test_how_the_parts_were_made(settings, told):
    assert told in split_rule(run_facts(settings=settings))


def test_another_split_is_told_as_it_was_made():
    assert split_rule(run_facts(split="As the lecture does it.")) == "As the lecture does it."


def test_folders_are_left_out():
    facts = run_facts(model="/home/somebody/models/large")
    told = " ".join([trained_on(facts), how_good(facts), *run_warnings(facts)])
    assert "GPT-2 large" in told and "somebody" not in told


def test_labels_do_not_break_lines():
    counts = {p: {"a\nb": 300, "c\x1b[31m": 300} for p in ("train", "val", "test")}
    assert "to tell a b from c\ufffd[31m." in trained_on(run_facts(counts=counts))


@pytest.mark.parametrize(
    ("names", "told"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (list("abc"), "a, b and c")],
)
def test_names_in_a_row(names, told):
    assert listed(names) == told


@pytest.mark.parametrize("run", ["runs/mini-demo-5", "my runs/it's; rm -rf $HOME", 'C:\\runs\\"x"'])
def test_commands_name_the_folder_whatever_it_is_called(run):
    for line in shell_commands(run_facts(run=run)).splitlines():
        words = shlex.split(line)
        assert words[0] == "gpt2-classifier" and words[2] == run
    strings = [
        n.value
        for n in ast.walk(ast.parse(python_lines(run_facts(run=run))))
        if isinstance(n, ast.Constant)
    ]
    assert run in strings


def test_commands_are_those_there_are(capsys):
    for line in shell_commands(run_facts()).splitlines():
        with pytest.raises(SystemExit) as end:
            main([shlex.split(line)[1], "--help"])
        assert end.value.code == 0
        told = capsys.readouterr().out
        for option in (word for word in line.split() if word.startswith("--")):
            assert option in told
