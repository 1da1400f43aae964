"""Assessments are checked by hand and by scikit-learn."""

import json
import re
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.assessment import (
    PredictedText,
    assess,
    assessment_as_json,
    format_assessment,
)
from gpt2_from_scratch.evaluation.calibration import calibration
from gpt2_from_scratch.evaluation.metrics import (
    LabelledPredictions,
    evaluate_predictions,
    format_evaluation,
)

LABELS = ("ham", "spam")


def two(spam: list[float], true: str, near: list[int] | None = None) -> LabelledPredictions:
    """Make predictions for ham and spam. `true` has one letter per text, h or s."""
    shares = np.array(spam)
    return LabelledPredictions(
        LABELS,
        [f"text {n}" for n in range(len(spam))],
        np.array(["hs".index(letter) for letter in true]),
        np.stack([1 - shares, shares], axis=1),
        None if near is None else np.array(near, dtype=bool),
    )


def made_up(seed: int, K: int, N: int = 200) -> LabelledPredictions:
    rng = np.random.default_rng(seed)
    true = rng.integers(K, size=N)
    p = rng.dirichlet(np.ones(K), size=N) + 0.7 * np.eye(K)[true]
    p /= p.sum(axis=1, keepdims=True)
    labels = tuple(f"label {k}" for k in range(K))
    return LabelledPredictions(
        labels, [f"text {n}" for n in range(N)], true, p, rng.random(N) < 0.3
    )


TEST = two([0.9, 0.2, 0.95, 0.44, 0.55, 0.7, 0.08, 0.28], "shhshshs", [0, 1, 0, 0, 1, 0, 0, 0])
VAL = two([0.9, 0.8, 0.6, 0.4, 0.2, 0.1], "shshhh")


# --- what is found ---


def test_texts_by_hand():
    """Texts 2 (ham, 0.95), 7 (spam, 0.28), 3 (spam, 0.44) and 4 (ham, 0.55) are wrong."""
    found = assess(TEST)
    assert found.mistakes == [
        PredictedText("text 2", "ham", "spam", 0.95),
        PredictedText("text 7", "spam", "ham", 0.72),
        PredictedText("text 3", "spam", "ham", pytest.approx(0.56)),
        PredictedText("text 4", "ham", "spam", 0.55),
    ]
    assert [shown.text for shown in found.least_certain] == [
        f"text {n}" for n in (4, 3, 5, 7, 1, 0, 6, 2)
    ]
    short = assess(TEST, n_shown=2)
    assert short.mistakes == found.mistakes[:2] and short.least_certain == found.least_certain[:2]
    assert assess(TEST, n_shown=0).mistakes == []


def test_the_margin_is_between_the_two_most_probable_classes():
    """The first text has the lowest maximum, but the second has the smallest margin."""
    p = np.array([[0.45, 0.3, 0.25], [0.5, 0.48, 0.02], [0.9, 0.05, 0.05]])
    found = assess(LabelledPredictions(("a", "b", "c"), ["x", "y", "z"], np.array([0, 0, 0]), p))
    assert [shown.text for shown in found.least_certain] == ["y", "x", "z"]


def test_without_near_duplicates():
    """Without texts 1 and 4, three of six predictions are correct."""
    found = assess(TEST)
    assert (found.evaluation.correct, found.evaluation.total) == (4, 8)
    assert (found.without_near_duplicates.correct, found.without_near_duplicates.total) == (3, 6)
    assert assess(VAL).without_near_duplicates is None
    assert assess(two([0.9, 0.2], "sh", [1, 1])).without_near_duplicates is None
    assert assess(two([0.9, 0.2], "sh", [0, 0])).without_near_duplicates.total == 2


def test_thresholds_are_chosen_on_one_set_and_counted_on_the_other():
    """P(spam) in VAL: 0.8, 0.4, 0.2 and 0.1 for ham, 0.9 and 0.6 for spam."""
    found = assess(TEST, VAL, allowed_per_1000=(0, 300, 1000)).thresholds
    assert [at.threshold for at in found] == pytest.approx([0.85, 0.5, 0.0])
    # P(spam) in TEST: 0.2, 0.95, 0.55 and 0.08 for ham, 0.9, 0.44, 0.7 and 0.28 for spam
    assert [
        (at.false_positives, at.negatives, at.true_positives, at.positives) for at in found
    ] == [
        (1, 4, 1, 4),
        (2, 4, 2, 4),
        (4, 4, 4, 4),
    ]
    assert [at.allowed_per_1000 for at in found] == [0, 300, 1000] and {
        at.label for at in found
    } == {"spam"}


def test_which_label_is_positive():
    rare_ham = two([0.9, 0.8, 0.6, 0.4, 0.2, 0.1], "sshsss")
    # in TEST both labels have 4 texts, so the second one is positive
    assert assess(TEST, VAL).positive == "spam" == assess(TEST).positive
    assert assess(TEST, rare_ham).positive == "ham"  # the rarer label of the validation set
    assert assess(rare_ham).positive == "ham"
    assert assess(TEST, rare_ham, positive="spam").thresholds[0].label == "spam"
    three = made_up(0, 3)
    assert assess(three, three).thresholds == [] and assess(three, three).positive is None
    named = assess(three, three, positive="label 1").thresholds
    assert [at.label for at in named] == ["label 1"] * 4
    assert [at.allowed_per_1000 for at in named] == [0, 5, 10, 20]


def test_no_thresholds():
    assert assess(TEST).thresholds == []
    for one_sided in ("hhhhhh", "ssssss"):
        val = two([0.9, 0.8, 0.6, 0.4, 0.2, 0.1], one_sided)
        assert assess(TEST, val, positive="spam").thresholds == []


@pytest.mark.parametrize("K", [2, 4])
def test_scikit_learns_scores(K):
    test = made_up(1, K)
    found = assess(test)
    assert found.evaluation.accuracy == accuracy_score(test.true, test.predicted)
    alone = ~test.near_duplicates
    expected = accuracy_score(test.true[alone], test.predicted[alone])
    assert found.without_near_duplicates.accuracy == expected != found.evaluation.accuracy
    assert found.calibration.log_loss == pytest.approx(log_loss(test.true, test.probabilities))
    areas = [roc_auc_score(test.true == k, test.probabilities[:, k]) for k in range(K)]
    assert [r.roc_auc for r in found.rankings] == pytest.approx(areas)
    assert [r.label for r in found.rankings] == list(test.labels)


def test_calibration_without_the_temperature():
    sharper = two([0.99, 0.02, 0.999, 0.4, 0.6, 0.9, 0.01, 0.1], "shhshshs")
    found = assess(TEST, temperature=2.5, uncalibrated=sharper)
    assert found.temperature == 2.5 and assess(TEST).uncalibrated is None
    assert found.uncalibrated == calibration(sharper.probabilities, sharper.true)
    eces = f"ECE {found.uncalibrated.ece:.4f} -> {found.calibration.ece:.4f} (temperature 2.5)"
    assert found.uncalibrated.ece != found.calibration.ece and eces in format_assessment(found)


def test_the_threshold_of_a_cost():
    """With the threshold 3 / 4, texts 0 and 2 get the label. Spam texts 3, 5 and 7 do not."""
    found = assess(TEST, cost=3.0).at_cost
    assert (found.label, found.threshold, found.false_positive_cost) == ("spam", 0.75, 3.0)
    assert (found.false_positives, found.true_positives) == (1, 1)
    assert found.mean_cost == pytest.approx((3 + 3) / 8)
    assert assess(TEST).at_cost is None
    line = format_assessment(assess(TEST, cost=3.0))
    assert "spam if p >= 0.7500; 1 false positives, 1 true positives, cost per text 0.7500" in line
    for wrong in (0.0, -1.0):
        with pytest.raises(UsageError, match="cost"):
            assess(TEST, cost=wrong)
    with pytest.raises(UsageError, match="--positive"):
        assess(made_up(0, 3), cost=3.0)


def test_what_does_not_fit():
    with pytest.raises(DataError, match="label 0, label 1"):
        assess(TEST, made_up(0, 2))
    with pytest.raises(UsageError, match="'egg'; choose from: ham, spam"):
        assess(TEST, VAL, positive="egg")
    with pytest.raises(DataError, match="no labelled texts"):
        assess(TEST.only(np.zeros(8, dtype=bool)))


# --- as text ---


def test_the_report():
    found = assess(TEST, VAL, allowed_per_1000=(0, 300), n_shown=2)
    scores = format_evaluation(evaluate_predictions(TEST.true, TEST.predicted, LABELS))
    report = format_assessment(found)
    assert report.startswith(scores + "\n\n")
    near, ranking, calibrated, _, _, head, *rows = report[len(scores) + 2 :].splitlines()
    assert near.endswith("accuracy 50.00%  (3 of 6; 95% interval 18.8 to 81.2)")
    areas = next(r for r in found.rankings if r.label == "spam")
    assert ranking.endswith(
        f"spam: ROC-AUC {areas.roc_auc:.4f}, PR-AUC {areas.average_precision:.4f}"
    )
    c = found.calibration
    assert calibrated.endswith(f"Brier {c.brier:.4f}, log loss {c.log_loss:.4f}, ECE {c.ece:.4f}")
    assert re.split("  +", head.strip())[:3] == [
        "allowed per 1,000",
        "spam if p >=",
        "false positives",
    ]
    # the bounds are Clopper and Pearson's for 1 of 4 and 2 of 4
    assert [re.split("  +", row.strip()) for row in rows[:2]] == [
        ["0", "0.8500", "1 of 4 (25.00%)", "75.14%", "1 of 4 (25.00%)"],
        ["300", "0.5000", "2 of 4 (50.00%)", "90.24%", "2 of 4 (50.00%)"],
    ]
    assert "(2 of 4)" in rows[3]
    texts = [re.split("  +", row) for row in (*rows[5:7], *rows[9:])]
    assert texts == [
        ["ham", "spam", "0.9500", "text 2"],
        ["spam", "ham", "0.7200", "text 7"],
        ["true", "predicted", "p", "text"],
        ["ham", "spam", "0.5500", "text 4"],
        ["spam", "ham", "0.5600", "text 3"],
    ]


@pytest.mark.parametrize("K", [20, 77])
def test_the_text_for_many_labels_is_bounded(K):
    found = assess(made_up(2, K))
    lines = format_assessment(found).splitlines()
    ranked = [line for line in lines if line.startswith("ranking")]
    if K == 20:
        assert len(ranked) == 20
        return
    assert len(lines) <= 75 and max(map(len, lines)) <= 200
    known = [r for r in found.rankings if r.roc_auc is not None]
    assert len(ranked) == 2 and f"mean over {len(known)} classes" in ranked[0]
    assert ranked[0].endswith(
        f"ROC-AUC {sum(r.roc_auc for r in known) / len(known):.4f}, "
        f"PR-AUC {sum(r.average_precision for r in known) / len(known):.4f}"
    )
    worst = min(known, key=lambda r: r.roc_auc)
    assert f"of {worst.label}: ROC-AUC {worst.roc_auc:.4f}" in ranked[1]


def test_more_labels_and_a_temperature():
    test = made_up(2, 3)
    lines = format_assessment(assess(test, temperature=1.5, uncalibrated=test)).splitlines()
    assert sum(line.startswith("ranking by the probability of label") for line in lines) == 3
    (line,) = (line for line in lines if line.startswith("calibration"))
    ece = f"{calibration(test.probabilities, test.true).ece:.4f}"
    assert line.endswith(f"ECE {ece} -> {ece} (temperature 1.5)")
    assert not any("thresholds" in line for line in lines)
    (line,) = (
        x
        for x in format_assessment(assess(test, temperature=0.75)).splitlines()
        if x.startswith("cal")
    )
    assert line.endswith(f"ECE {ece} (temperature 0.75)")


def test_no_mistakes_and_a_class_without_texts():
    report = format_assessment(assess(two([0.1, 0.2], "hh")))
    assert "mistakes" not in report and "ROC-AUC -, PR-AUC -" in report


def test_long_and_hostile_texts():
    """The output has no characters that control a terminal, and one line per text."""
    long = LabelledPredictions(
        LABELS,
        ["a\n\x1b[2J" + "b" * 200, "c" * 100],
        np.array([0, 0]),
        np.array([[0.1, 0.9], [0.2, 0.8]]),
    )
    report = format_assessment(assess(long))
    assert "\x1b" not in report
    rows = [line for line in report.splitlines() if re.match("ham +spam +0", line)]
    shown = {line.split("  ")[-1] for line in rows}
    assert shown == {r"a \x1b[2J" + "b" * 90 + "…", "c" * 100}


# --- as JSON ---


def test_as_json():
    found = assess(TEST, VAL, uncalibrated=TEST)
    plain = json.loads(json.dumps(assessment_as_json(found), allow_nan=False))
    fewer = plain["without_near_duplicates"]
    assert (plain["accuracy"], plain["correct"], fewer["accuracy"]) == (0.5, 4, 0.5)
    assert plain["classes"][1]["label"] == "spam" and plain["confusion"] == [[2, 2], [2, 2]]
    assert plain["mistakes"][0] == asdict(PredictedText("text 2", "ham", "spam", 0.95))
    assert (
        plain["thresholds"][0]["allowed_per_1000"] == 0 and plain["rankings"][1]["label"] == "spam"
    )
    assert plain["calibration"] == plain["uncalibrated"] == asdict(found.calibration)
    assert assessment_as_json(assess(VAL))["without_near_duplicates"] is None


def test_every_key():
    """Other programs read these keys, so changing one requires a new version."""
    plain = assessment_as_json(assess(TEST, VAL, cost=3.0))
    assert [*plain] == (
        "version accuracy macro_f1 correct total interval classes confusion "
        "without_near_duplicates temperature calibration uncalibrated rankings thresholds mistakes "
        "least_certain positive at_cost"
    ).split()
    keys = (
        "label threshold false_positives negatives true_positives positives "
        "false_positive_rate_bound allowed_per_1000 false_positive_cost mean_cost"
    ).split()
    assert [*plain["thresholds"][0]] == [*plain["at_cost"]] == keys and plain["version"] == 2


def test_light():
    code = "import sys, gpt2_from_scratch.evaluation.assessment; print({'torch', 'sklearn', 'scipy', 'pandas', 'matplotlib', 'tiktoken'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout == "set()\n"
