"""Findings about a run: numbers compared with SciPy's, and each warning only where it applies."""

import ast
import shlex
from dataclasses import replace

import numpy as np
import pytest
from run_facts_example import answers, assessed, baseline, run_facts, scored
from scipy.stats import binomtest

from gpt2_from_scratch.classifier.autotune import Try
from gpt2_from_scratch.classifier.tasks.language import LanguageScores
from gpt2_from_scratch.classifier.tasks.multi_label import multi_label_scores
from gpt2_from_scratch.classifier.tasks.regression import RegressionScores
from gpt2_from_scratch.classifier.tasks.span import SpanScores
from gpt2_from_scratch.classifier.tasks.task import Scores
from gpt2_from_scratch.classifier.train import Epoch
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.evaluation.metrics import ClassScores, evaluate_predictions
from gpt2_from_scratch.reports.findings import (
    RunFacts,
    against_baselines,
    combination,
    confused,
    found_and_marked,
    how_good,
    listed,
    python_lines,
    ranked,
    ranked_scores,
    run_findings,
    shell_commands,
    split_rule,
    trained_on,
)


def test_the_first_lines():
    facts = run_facts()
    first = trained_on(facts)
    assert "1,050 texts of inbox.csv to distinguish ham from spam" in first
    assert "790,786 of its 5,886,466 parameters" in first and "seed 5" in first
    ci = binomtest(285, 300).proportion_ci(method="wilson")
    interval = f"{100 * ci.low:.1f} to {100 * ci.high:.1f}"
    assert f"95.0% (285 of 300 correct; 95% interval {interval})" in how_good(facts)


def test_the_score_without_near_duplicates_is_next_to_it():
    facts = run_facts(assessment=assessed(n_near=100))
    assert "without a near duplicate" in how_good(facts) and "92.5% (185 of 200" in how_good(facts)


def test_the_weights_of_ngrams_and_the_score_of_gpt2_alone():
    assert combination(run_facts()) == ""
    facts = run_facts(ngram_weights=(0.367, 1.5), alone=0.8881)
    reported = combination(facts)
    assert all(fact in reported for fact in ("0.37", "1.50", "GPT-2 alone: 88.8%"))
    assert reported in run_findings(facts)["summary"]
    assert "GPT-2 mini with n-grams, this run" in [name for name, *_ in ranked(facts)]
    [_, selected] = warned(replace(facts, history=[]))
    assert "the weights of GPT-2 and the n-grams" in selected


def test_options_that_were_not_used_are_named_if_a_baseline_is_better():
    def named(**facts) -> set[str]:
        said = against_baselines(run_facts(**facts))
        return {option for option in ("--autotune", "--with-ngrams") if option in said}

    better, worse = [baseline("bag of words", 5)], [baseline("bag of words", 45)]
    tries = [Try(1, {}, 1050, 10, 1.0, 0.9, 0.1)]
    assert named(baselines=worse) == set()
    assert named(baselines=better) == {"--autotune", "--with-ngrams"}
    assert named(baselines=better, tries=tries) == {"--with-ngrams"}
    assert named(baselines=better, ngram_weights=(1.0, 1.0), alone=0.9) == {"--autotune"}
    assert named(baselines=better, split="as in the lecture") == set()


@pytest.mark.parametrize(
    ("n", "reported"),
    [
        (3, "3 labels: c0, c1 and c2."),
        (8, "c6 and c7."),
        (77, "77 labels: c0, c1, c2, c3, c4, c5, c6, c7 and 69 more."),
    ],
)
def test_many_labels(n, reported):
    counts = {"train": {f"c{k}": 10 for k in range(n)}}
    assert reported in trained_on(run_facts(counts=counts))


@pytest.mark.parametrize(
    ("wrong", "facts"),
    [  # this run has 15 mistakes, and the better baselines make only mistakes that are among them
        (
            45,
            (
                "10.0 points more accurate than the text baseline (b: 255 of 300 correct)",
                "is significant",
            ),
        ),
        (
            18,
            (
                "1.0 points more accurate than the text baseline (b: 282 of 300 correct)",
                "is not significant",
            ),
        ),
        (15, ("as accurate as the text baseline (b: 285 of 300 correct)", "is not significant")),
        (
            12,
            (
                "1.0 points less accurate than the text baseline (b: 288 of 300 correct)",
                "is not significant",
            ),
        ),
        (
            0,
            (
                "5.0 points less accurate than the text baseline (b: 300 of 300 correct)",
                "is significant",
            ),
        ),
    ],
)
def test_the_run_is_compared_with_the_baseline(wrong, facts):
    reported = against_baselines(run_facts(baselines=[baseline("b", wrong)]))
    assert "one seed" in reported and not [fact for fact in facts if fact not in reported]
    few = abs(wrong - 15)  # texts that only one of the two has correct; it is always the same one
    p = binomtest(few, few).pvalue if few else 1.0
    assert ("(p < 0.001;" if p < 0.001 else f"(p = {p:.3f};") in reported


def test_the_best_baseline_is_the_one_to_beat():
    facts = run_facts(baselines=[baseline("a", 60), baseline("b", 45), baseline("c", 90)])
    assert "10.0 points more accurate than the best of 3 text baselines (b: " in (
        against_baselines(facts)
    )
    assert against_baselines(run_facts(baselines=[])) == ""


def other_task(scores: Scores, *baselines: tuple[str, Scores]) -> RunFacts:
    counts = {"train": {"texts": 1000}, "val": {"texts": 200}, "test": {"texts": 300}}
    return run_facts(
        scores=scores,
        task="multi-label",
        counts=counts,
        assessment=None,
        baselines=[],
        task_baselines=baselines,
    )


def span_scores(f1: float) -> SpanScores:
    return SpanScores(0, 300, (0.0, 0.01), f1)


def test_another_task_is_compared_with_its_best_baseline():
    facts = other_task(span_scores(0.45), ("the a", span_scores(0.2)), ("b", span_scores(0.312)))
    reported = against_baselines(facts)
    assert reported.startswith("B ") and "an F1 of 31.2%" in reported and "45.0%" in reported
    assert [name for name, _ in ranked_scores(facts)] == ["GPT-2 mini, this run", "b", "the a"]
    assert len(warned(facts)) == 1  # one seed
    values = [RegressionScores(300, r2, []) for r2 in (0.5, -0.0001)]
    facts = other_task(values[0], ("the mean", values[1]))
    reported = against_baselines(facts)
    assert "a mean R2 of 0.000" in reported and "0.500" in reported
    assert against_baselines(other_task(values[0])) == "" and not ranked_scores(facts)[2:]


@pytest.mark.parametrize("f1", [0.45, 0.5])
def test_a_baseline_of_another_task_that_is_as_good_is_a_warning(f1):
    facts = other_task(span_scores(0.45), ("the sentence", span_scores(f1)))
    [reported] = [warning for warning in warned(facts) if "one seed" not in warning]
    assert '"the sentence" is as good or better' in reported and f"{100 * f1:.1f}%" in reported


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
    "small test": (SMALL, ["test set is small", "120 texts", "4 points"]),
    "near duplicates": (
        {
            "n_near_duplicates": 100,
            "assessment": replace(assessed(n_near=100), temperature=1.0, thresholds=[]),
        },
        [
            "100 of 300 test texts have a near duplicate",
            "92.5% (185 of 200 correct; 95% interval "
            f"{100 * TWINLESS.low:.1f} to {100 * TWINLESS.high:.1f})",
            "--keep-together near-duplicates",
        ],
    ),
    "one near duplicate": ({"n_near_duplicates": 1}, ["1 of 300 test texts has a near duplicate"]),
    "baseline as good": ({"baselines": [baseline("bag", 18)]}, ['"bag" is about as good (94.0%']),
    "baseline better": (
        {"baselines": [baseline("bag", 12)]},
        ['"bag" is as good or better (96.0%'],
    ),
    "uneven": (
        {"counts": run_facts().counts | {"train": {"ham": 301, "spam": 100}}},
        ["uneven", "301 texts are ham", "100 are spam", "75.1%"],
    ),
    "cut": ({"n_cut": 17}, ["17 texts", "384 tokens"]),
    "epoch": (
        {
            "history": [
                Epoch(1, 0.7, 0.5, 0.69, 0.6),
                Epoch(2, 0.6, 0.6, 0.5, 0.8),
                Epoch(3, 0.5, 0.7, 0.6, 0.7),
            ]
        },
        ["validation set selected the epoch (2 of 3),"],
    ),
    "temperature": (
        {"assessment": assessed()},
        ["validation set selected the temperature (1.50) and the thresholds,"],
    ),
    "one side": (
        {"scores": LOPSIDED, "baselines": []},
        ["one-sided", "spam has a recall of 80.0% and a precision of 95.0%"],
    ),
    "other side": (
        {"scores": OTHER_SIDE, "baselines": []},
        ["ham has a recall of 95.0% and a precision of 80.0%"],
    ),
    "never": (
        {"scores": SILENT, "baselines": []},
        ["spam was never predicted", "150 texts of the test set"],
    ),
    "small validation set": (
        {"counts": run_facts().counts | {"val": {"ham": 49, "spam": 50}}},
        ["validation set has only 99 texts", "by 1.0 points"],
    ),
}
SPARED = {
    "test large enough": {},
    "half an interval": {"scores": scored(answers(210, 10)), "baselines": []},  # exactly 3.0 points
    "even enough": {"scores": EVEN, "baselines": []},
    "three to one": {"counts": run_facts().counts | {"train": {"ham": 300, "spam": 100}}},
    "validation set of a hundred": {
        "counts": run_facts().counts | {"val": {"ham": 50, "spam": 50}}
    },
    "near duplicates not known": {"n_near_duplicates": None},
}


def warned(facts: RunFacts) -> list[str]:
    return run_findings(facts)["warnings"]


def test_one_seed_is_always_a_warning():
    [reported] = warned(run_facts())
    assert "one seed" in reported and "compare --seeds 1 2 3" in reported


def test_impossible_advice_is_not_given():
    """Other tasks have no `compare`, and `train` cannot change a split that it did not make."""
    [reported] = warned(run_facts(task="multi-label", assessment=None, baselines=[]))
    assert (
        "compare" not in reported and "experiments" not in reported and "train --seed" in reported
    )
    files = {"data": DataConfig(val_source="v.csv", test_source="t.csv")}
    for changed in (files, {"split": "As the lecture does it.", "history": []}):
        [reported, _] = warned(run_facts(n_near_duplicates=2, **changed))
        assert "2 of 300 test texts" in reported and "--keep-together" not in reported


def test_thresholds_of_labels_were_selected():
    scores = multi_label_scores(np.eye(2, dtype=bool), np.eye(2, dtype=bool), ["a", "b"])
    other = {"task": "multi-label", "assessment": None, "baselines": []}
    for thresholds, n in (({}, 0), ({"a": 0.5, "b": 0.25}, 1)):
        warnings = warned(run_facts(scores=replace(scores, thresholds=thresholds), **other))
        assert sum("selected the thresholds" in warning for warning in warnings) == n


def test_without_epochs_no_epoch_was_selected():
    few = {"counts": run_facts().counts | {"val": {"ham": 10, "spam": 10}}}
    [_, reported] = warned(run_facts(history=[], **few))
    assert "by 5.0 points" in reported and "epoch" not in reported
    [_, reported] = warned(run_facts(**few))
    assert "epoch" in reported


@pytest.mark.parametrize("name", CASES)
def test_a_warning_has_its_facts_and_no_other_is_given(name):
    changed, facts = CASES[name]
    [reported] = [w for w in warned(run_facts(**changed)) if "one seed" not in w]
    assert all(fact in reported for fact in facts)


@pytest.mark.parametrize("name", SPARED)
def test_no_warning_without_a_problem(name):
    assert len(warned(run_facts(**SPARED[name]))) == 1


def test_the_uncertainty_is_half_of_wilsons_interval():
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
def test_other_tasks_have_their_own_scores(scores):
    counts = {"train": {"texts": 1000}, "val": {"texts": 200}, "test": {"texts": 300}}
    facts = run_facts(scores=scores, task="span", counts=counts, assessment=None, baselines=[])
    assert "300 texts" in how_good(facts)
    assert scores.as_table().splitlines()[0] in how_good(facts)
    assert "to find the answer to a question in a text" in trained_on(facts)
    assert len(warned(facts)) == 1


# --- wording ---


@pytest.mark.parametrize(
    ("data", "reported"),
    [
        ({}, "Equal texts count once"),
        ({"balance": True}, "equally many texts of each label"),
        ({"keep_together": "near-duplicates"}, "Near duplicates were kept in the same set"),
        ({"val_source": "v.csv", "test_source": "t.csv"}, "separate files"),
    ],
)
def test_how_the_sets_were_made(data, reported):
    assert reported in split_rule(run_facts(data=DataConfig(**data)))


@pytest.mark.parametrize(
    ("data", "reported"),
    [
        ({}, "All questions about a context are in the same set"),
        ({"test_source": "t.csv"}, "without contexts that are also in the training file"),
        ({"val_source": "v.csv", "test_source": "t.csv"}, "Questions whose context is already"),
    ],
)
def test_how_the_sets_of_questions_were_made(data, reported):
    assert reported in split_rule(run_facts(data=DataConfig(**data), task="span"))


def test_another_split_is_described_as_it_was_made():
    assert split_rule(run_facts(split="As the lecture does it.")) == "As the lecture does it."


def test_folders_are_left_out():
    facts = run_facts(model="/home/somebody/models/large")
    found = run_findings(facts)
    reported = " ".join([*found["summary"], *found["warnings"], str(facts.settings)])
    assert "GPT-2 large" in reported and "inbox.csv" in reported and "somebody" not in reported


def test_labels_do_not_break_lines():
    counts = {p: {"a\nb": 300, "c\x1b[31m": 300} for p in ("train", "val", "test")}
    assert r"a b from c\x1b[31m." in run_findings(run_facts(counts=counts))["summary"][0]


def test_the_most_frequent_confusions_come_first():
    true, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([1, 1, 0, 1, 0, 2])
    scores = evaluate_predictions(true, predicted, ["a", "b", "c"])
    assert confused(scores) == [("a", "b", 2), ("c", "a", 1)]


@pytest.mark.parametrize(
    ("names", "reported"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (list("abc"), "a, b and c")],
)
def test_names_in_a_row(names, reported):
    assert listed(names) == reported


@pytest.mark.parametrize("run", ["runs/mini-demo-5", "my runs/it's; rm -rf $HOME", 'C:\\runs\\"x"'])
def test_commands_name_the_folder_whatever_it_is_called(run):
    for line in shell_commands(run).splitlines():
        words = shlex.split(line)
        assert words[0] == "gpt2-classifier" and words[2] == run
    strings = [
        n.value for n in ast.walk(ast.parse(python_lines(run))) if isinstance(n, ast.Constant)
    ]
    assert run in strings


def test_commands_exist(capsys):
    for line in shell_commands("runs/mini-demo-5").splitlines():
        with pytest.raises(SystemExit) as end:
            main([shlex.split(line)[1], "--help"])
        assert end.value.code == 0
        reported = capsys.readouterr().out
        for option in (word for word in line.split() if word.startswith("--")):
            assert option in reported


# --- found and marked ---


@pytest.mark.parametrize("labels", [["ham", "spam"], ["bad", "good"], ["a", "b", "c"]])
def test_found_and_marked_are_those_of_the_rarer_label(labels: list[str]) -> None:
    """10 texts have the second label, 7 of them are found; 3 of the 20 others are marked as it."""
    true = np.array([1] * 10 + [0] * 20)
    predicted = np.array([1] * 7 + [0] * 3 + [1] * 3 + [0] * 17)
    sentence = found_and_marked(evaluate_predictions(true, predicted, labels))
    numbers = [int(word) for word in sentence.split() if word.isdigit()]
    assert numbers == ([7, 10, 3, 20] if len(labels) == 2 else [])
    assert (labels[1] in sentence) is (len(labels) == 2)
