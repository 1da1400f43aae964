"""Scores, rankings and intervals are checked by hand and by published numbers."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import (
    Evaluation,
    LabelledPredictions,
    Ranking,
    evaluate_predictions,
    format_evaluation,
    rankings,
    read_predictions,
    several,
    wilson_interval,
    write_predictions,
)

LABELS = ["ham", "other", "spam"]


# --- labelled predictions ---


def some(near_duplicates=None):
    return LabelledPredictions(
        ("ham", "spam"),
        ["see you\u2028at six", 'win "now"', "é \x1f \ud800 ok"],
        np.array([0, 1, 0]),
        np.array([[0.9, 0.1], [0.25, 0.75], [1 / 3, 2 / 3]]),
        near_duplicates,
    )


def test_predicted_and_correct():
    assert some().predicted.tolist() == [0, 1, 1]
    assert some().correct.tolist() == [True, True, False]


def test_ties_go_to_the_first_class():
    predictions = LabelledPredictions(("a", "b"), ["x"], np.array([1]), np.array([[0.5, 0.5]]))
    assert predictions.predicted.tolist() == [0]


def test_only_some():
    part = some(np.array([True, False, True])).only(np.array([False, True, True]))
    assert part.texts == ['win "now"', "é \x1f \ud800 ok"] and part.true.tolist() == [1, 0]
    assert part.probabilities.tolist() == [[0.25, 0.75], [1 / 3, 2 / 3]]
    assert part.near_duplicates.tolist() == [False, True]


@pytest.mark.parametrize("near", [None, np.array([True, False, False])])
def test_written_and_read(tmp_path, near):
    write_predictions(tmp_path / "a.jsonl", some(near))
    again = read_predictions(tmp_path / "a.jsonl")
    assert again.texts == some().texts and again.labels == some().labels
    assert np.array_equal(again.probabilities, some().probabilities)  # bit-identical
    assert again.true.tolist() == [0, 1, 0]
    assert (
        near is None
        and again.near_duplicates is None
        or again.near_duplicates.tolist() == near.tolist()
    )


def test_predictions_of_earlier_versions_are_read(tmp_path):
    """Their key for near duplicates is near_twin."""
    near = np.array([True, False, False])
    write_predictions(tmp_path / "a.jsonl", some(near))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [*lines[0]] == ["text", "label", "predicted", "probabilities", "near_duplicate"]
    for line in lines:
        line["near_twin"] = line.pop("near_duplicate")
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_predictions(tmp_path / "old.jsonl").near_duplicates.tolist() == near.tolist()


def test_one_class_against_the_others():
    probabilities, is_class = some().one_class("spam")
    assert probabilities.tolist() == [0.1, 0.75, 2 / 3]
    assert is_class.tolist() == [False, True, False]


@pytest.mark.parametrize("content", ["", "{}\n", "no json", '{"probabilities": 3}\n', "[1]\n"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match="a.jsonl is not"):
        read_predictions(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    "true, probabilities",
    [
        ([0, 2, 0], [[1, 0]] * 3),
        ([0, 1], [[1, 0]] * 3),
        ([0, 1, 0], [[1, 0.1]] * 3),
        ([0, 1, 0], [[1.5, -0.5]] * 3),
        ([0, -1, 0], [[1, 0]] * 3),
        ([0, 1, 0], [[np.nan, 1]] * 3),
    ],
)
def test_what_does_not_fit_is_refused(true, probabilities):
    with pytest.raises(DataError):
        LabelledPredictions(
            ("a", "b"), ["x", "y", "z"], np.array(true), np.array(probabilities, dtype=float)
        )


# --- scores ---


def random_answers(seed: int, K: int = 3, N: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Draw true and predicted classes (N,).

    About two thirds of them are equal.
    """
    rng = np.random.default_rng(seed)
    true = rng.choice(K, N, p=rng.dirichlet(np.ones(K)))
    return true, np.where(rng.random(N) < 0.5, true, rng.integers(K, size=N))


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_counts_divided(seed):
    """The counts are made text by text with Python's integers."""
    true, predicted = random_answers(seed)
    found = evaluate_predictions(true, predicted, LABELS)
    pairs = list(zip(true.tolist(), predicted.tolist(), strict=True))
    assert found.confusion == [[pairs.count((t, p)) for p in range(3)] for t in range(3)]
    for k, scores in enumerate(found.classes):
        hits = pairs.count((k, k))
        called, support = sum(p == k for _, p in pairs), sum(t == k for t, _ in pairs)
        assert (scores.label, scores.support) == (LABELS[k], support)
        assert scores.precision == (pytest.approx(hits / called) if called else None)
        assert scores.recall == (pytest.approx(hits / support) if support else None)
        both = called + support
        assert scores.f1 == (pytest.approx(2 * hits / both) if both else None)
    assert (found.correct, found.total) == (sum(t == p for t, p in pairs), 200)
    assert found.accuracy == found.correct / 200
    expected = f1_score(true, predicted, average="macro")
    assert found.macro_f1 == found.as_json()["macro_f1"] == pytest.approx(expected, abs=1e-12)


def test_rows_are_true_and_columns_predicted():
    found = evaluate_predictions(np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1]), ["ham", "spam"])
    assert found.confusion == [[1, 2], [0, 1]]
    ham, spam = found.classes
    assert (ham.precision, ham.recall, ham.f1, ham.support) == (1.0, 1 / 3, 0.5, 3)
    assert (spam.precision, spam.recall, spam.f1, spam.support) == (1 / 3, 1.0, 0.5, 1)


def test_none_where_there_is_nothing_to_divide_by():
    """Class 1 is never predicted, class 2 has no texts, and class 3 has neither."""
    found = evaluate_predictions(np.array([0, 0, 1]), np.array([0, 2, 0]), ["a", "b", "c", "d"])
    scores = [(s.precision, s.recall, s.f1, s.support) for s in found.classes]
    assert scores == [
        (0.5, 0.5, 0.5, 2),
        (None, 0.0, 0.0, 1),
        (0.0, None, 0.0, 0),
        (None, None, None, 0),
    ]
    assert found.macro_f1 == pytest.approx((0.5 + 0 + 0) / 3)


def test_one_class_alone():
    found = evaluate_predictions(np.array([0, 0]), np.array([0, 0]), ["a"])
    assert found.confusion == [[2]] and found.classes[0].f1 == 1.0


def test_plain_python_numbers():
    """The json module cannot write numpy numbers."""
    found = evaluate_predictions(*random_answers(3), LABELS)
    assert type(found.correct) is type(found.total) is type(found.confusion[0][0]) is int
    assert {type(s.precision) for s in found.classes} == {float}
    assert {type(s.support) for s in found.classes} == {int}


def test_nothing_to_evaluate():
    empty = np.array([], dtype=int)
    with pytest.raises(DataError, match="no labelled texts"):
        evaluate_predictions(empty, empty, LABELS)
    with pytest.raises(DataError, match="no labelled texts"):
        wilson_interval(0, 0)


# --- the interval ---


@pytest.mark.parametrize(
    ("correct", "total", "low", "high", "digits"),
    [
        (287, 300, 92.7, 97.5, 1),
        (295, 300, 96.2, 99.3, 1),
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (81, 263, 25.53, 36.62, 2),
        (15, 148, 6.24, 16.05, 2),
        (0, 20, 0.00, 16.11, 2),
        (1, 29, 0.61, 17.18, 2),
        (29, 29, 88.30, 100.00, 2),
    ],
)
def test_published_intervals(correct, total, low, high, digits):
    found = [round(100 * bound, digits) for bound in wilson_interval(correct, total)]
    assert found == [low, high]


@pytest.mark.parametrize("total", [1, 2, 7, 100, 5574])
def test_the_ends_of_the_interval(total):
    """0 of n gives [0, z²/(n + z²)], and n of n gives its mirror image."""
    z2 = 1.959963984540054**2
    assert wilson_interval(0, total)[0] == 0 and wilson_interval(total, total)[1] == 1
    assert wilson_interval(0, total) == pytest.approx((0, z2 / (total + z2)), abs=1e-12)
    assert wilson_interval(total, total) == pytest.approx((total / (total + z2), 1), abs=1e-12)
    for correct in range(0, total + 1, max(1, total // 7)):
        low, high = wilson_interval(correct, total)
        assert 0 <= low <= correct / total <= high <= 1
        assert wilson_interval(total - correct, total) == pytest.approx((1 - high, 1 - low))


def test_the_bounds_solve_wilsons_equation():
    """The observed proportion p is z standard errors from each bound b: |p - b| = z √(b(1-b)/n)."""
    for correct, total in [(3, 10), (287, 300), (5, 1000)]:
        for bound in wilson_interval(correct, total):
            error = math.sqrt(bound * (1 - bound) / total)
            assert abs(correct / total - bound) / error == pytest.approx(1.959964)


def test_the_coverage_of_the_interval_is_near_95_percent():
    """The probability that the true proportion is inside is summed over all outcomes of 50 texts."""
    total = 50
    for share in (0.5, 0.8, 0.9, 0.95):
        inside = 0.0
        for correct in range(total + 1):
            low, high = wilson_interval(correct, total)
            chance = math.comb(total, correct) * share**correct * (1 - share) ** (total - correct)
            inside += chance * (low <= share <= high)
        assert 0.92 < inside < 0.985


# --- as text ---


def test_the_table():
    true = np.array([0] * 150 + [1] * 150)
    predicted = np.array([0] * 145 + [1] * 5 + [0] * 8 + [1] * 142)
    text = format_evaluation(evaluate_predictions(true, predicted, ["ham", "spam"]))
    accuracy, _, *classes, _, head, ham, spam = text.splitlines()
    first = "accuracy 95.67%  (287 of 300; 95% interval 92.7 to 97.5)"
    assert accuracy == f"{first}, macro F1 {100 * f1_score(true, predicted, average='macro'):.2f}%"
    assert [line.split() for line in classes] == [
        ["class", "precision", "recall", "F1", "texts"],
        ["ham", "94.77", "96.67", "95.71", "150"],
        ["spam", "96.60", "94.67", "95.62", "150"],
    ]
    assert head.split() == ["true", "/", "predicted", "ham", "spam"]
    assert [ham.split(), spam.split()] == [["ham", "145", "5"], ["spam", "8", "142"]]


def many(K: int, N: int = 2000) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw true and predicted classes of N texts. One class in seven has no texts."""
    draw = np.random.RandomState(K)
    true = draw.randint(K, size=N) // 7 * 7
    true += draw.randint(1, 7, size=N)
    true = np.minimum(true, K - 1)
    predicted = np.where(draw.rand(N) < 0.6, true, draw.randint(K, size=N))
    return true, predicted, [f"label {k} {'x' * 300}\n" for k in range(K)]


@pytest.mark.parametrize("K", [21, 77, 1000])
def test_the_table_of_many_classes_is_bounded(K):
    true, predicted, labels = many(K)
    scores = evaluate_predictions(true, predicted, labels)
    lines = format_evaluation(scores).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    p, r, f1, _ = precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)
    means = f"precision {100 * p:.2f}, recall {100 * r:.2f}, F1 {100 * f1:.2f}"
    n_counted = len({*true.tolist(), *predicted.tolist()})
    assert lines[1].endswith(means) and f"{n_counted} of {K:,}" in lines[1]
    assert lines[0].endswith(f", macro F1 {100 * f1:.2f}%")
    present = sorted(set(true.tolist()))
    f1s = f1_score(true, predicted, labels=present, average=None, zero_division=0)
    n_weakest = min(20, len(present))
    shown = [float(line.split()[-2]) for line in lines[4 : 4 + n_weakest]]
    assert shown == pytest.approx(sorted(100 * f1s)[:n_weakest], abs=0.005)
    assert f"class ({n_weakest} weakest of {K:,})" in lines[3]
    pairs = Counter(zip(true.tolist(), predicted.tolist(), strict=True))
    wrong = sorted((n for (a, b), n in pairs.items() if a != b), reverse=True)
    assert [int(line.split()[-1]) for line in lines[-10:]] == wrong[:10]
    assert f"({sum(wrong[:10]):,} of {sum(wrong):,} mistakes)" in lines[-12]


def test_twenty_classes_have_a_matrix():
    true, predicted, labels = many(20)
    lines = format_evaluation(evaluate_predictions(true, predicted, labels)).splitlines()
    assert len(lines) == 1 + 1 + 21 + 1 + 21 and "weakest" not in "".join(lines)


def test_an_error_names_a_few_labels():
    assert several(["a", "b\n"]) == "a, b"
    assert several([str(n) for n in range(1021)]).endswith(", 18, 19 and 1,001 more")
    assert len(several(["x" * 10**6] * 30)) < 1000


def test_a_dash_where_there_is_no_number():
    lines = format_evaluation(evaluate_predictions(np.array([0]), np.array([0]), ["a", "b"]))
    assert [line.split() for line in lines.splitlines() if line.startswith("b")] == [
        ["b", "-", "-", "-", "0"],
        ["b", "0", "0"],
    ]


def test_labels_are_not_changed():
    """By default, tabulate turns "007" into a number and a label with a line break into two lines."""
    found = evaluate_predictions(np.array([0, 1]), np.array([0, 0]), ["007", "1e5\n\x1b[2J"])
    lines = format_evaluation(found).splitlines()
    assert len(lines) == 9 and "\x1b" not in "".join(lines)
    assert sum(line.startswith("007 ") for line in lines) == 2
    assert sum(line.startswith("1e5 ") for line in lines) == 2


def test_accuracy_is_the_proportion():
    found = Evaluation(3, 4, (0.0, 1.0), [], [])
    assert found.accuracy == found.main == found.as_json()["accuracy"] == 0.75
    assert found.macro_f1 is None
    assert [*found.as_json()] == [
        "accuracy",
        "macro_f1",
        "correct",
        "total",
        "interval",
        "classes",
        "confusion",
    ]


# --- rankings ---


def pairs(is_class: np.ndarray, scores: np.ndarray) -> float:
    """Compute the proportion of pairs in the correct order.

    A pair has one text of the class and one other text. A tie counts half.
    """
    above = scores[is_class][:, None] - scores[~is_class]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def cuts(is_class: np.ndarray, scores: np.ndarray) -> float:
    """Compute the mean precision at all cut-offs.

    Each is weighted by the recall that it adds.
    """
    total, recall = 0.0, 0.0
    for cut in sorted(set(scores), reverse=True):
        hits, predicted = (is_class & (scores >= cut)).sum(), (scores >= cut).sum()
        total += hits / predicted * (hits / is_class.sum() - recall)
        recall = hits / is_class.sum()
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("digits", [1, 6])  # with one digit there are many ties
def test_areas_equal_their_definitions(seed, digits):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), size=80).round(digits)
    true = np.where(rng.random(80) < 0.5, p.argmax(axis=1), rng.integers(3, size=80))
    found = rankings(p, true, ["a", "b", "c"])
    assert [r.label for r in found] == ["a", "b", "c"]
    for k, ranking in enumerate(found):
        assert ranking.roc_auc == pytest.approx(pairs(true == k, p[:, k]))
        assert ranking.average_precision == pytest.approx(cuts(true == k, p[:, k]))
        assert type(ranking.roc_auc) is type(ranking.average_precision) is float


def test_two_classes_on_paper():
    """Spam ranks first, third and fifth of five. 3 of 6 pairs are in order; P is 1, 2/3, 3/5."""
    spam = np.array([0.9, 0.8, 0.7, 0.4, 0.1])
    true = np.array([1, 0, 1, 0, 1])
    ham, found = rankings(np.stack([1 - spam, spam], axis=1), true, ("ham", "spam"))
    assert (found.roc_auc, ham.roc_auc) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.average_precision == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert ham.average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_one_class_only_has_no_ranking():
    found = rankings(np.eye(3)[[0, 0]], np.array([0, 0]), ["a", "b", "c"])
    assert found == [Ranking(label, None, None) for label in "abc"]


def test_shapes_that_do_not_fit():
    with pytest.raises(DataError, match="2 texts and 3 labels"):
        rankings(np.eye(2), np.array([0, 1]), ["a", "b", "c"])
