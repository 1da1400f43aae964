"""Scores against scikit-learn's, intervals against published ones and the equation they solve."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import (
    Evaluation,
    evaluate_predictions,
    format_evaluation,
    wilson_interval,
)

LABELS = ["ham", "other", "spam"]


def random_answers(seed: int, K: int = 3, N: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted classes (N,), right about two times in three."""
    rng = np.random.default_rng(seed)
    true = rng.choice(K, N, p=rng.dirichlet(np.ones(K)))
    return true, np.where(rng.random(N) < 0.5, true, rng.integers(K, size=N))


@pytest.mark.parametrize("seed", range(10))
def test_scores_are_scikit_learns(seed):
    true, predicted = random_answers(seed)
    found = evaluate_predictions(true, predicted, LABELS)
    expected = precision_recall_fscore_support(
        true, predicted, labels=range(3), zero_division=np.nan
    )
    ours = [(s.precision, s.recall, s.f1, s.support) for s in found.classes]
    numbers = np.array([[math.nan if x is None else x for x in row] for row in ours])
    np.testing.assert_allclose(numbers.T, np.array(expected), atol=1e-12, rtol=0)
    assert found.confusion == confusion_matrix(true, predicted, labels=range(3)).tolist()
    assert found.accuracy == accuracy_score(true, predicted)
    assert [s.label for s in found.classes] == LABELS
    assert (found.correct, found.total) == (int((true == predicted).sum()), 200)


def test_rows_are_true_and_columns_predicted():
    found = evaluate_predictions(np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1]), ["ham", "spam"])
    assert found.confusion == [[1, 2], [0, 1]]
    ham, spam = found.classes
    assert (ham.precision, ham.recall, ham.f1, ham.support) == (1.0, 1 / 3, 0.5, 3)
    assert (spam.precision, spam.recall, spam.f1, spam.support) == (1 / 3, 1.0, 0.5, 1)


def test_none_where_there_is_nothing_to_divide_by():
    """Class 1 is there and never called, class 2 called and never there, class 3 neither."""
    found = evaluate_predictions(np.array([0, 0, 1]), np.array([0, 2, 0]), ["a", "b", "c", "d"])
    scores = [(s.precision, s.recall, s.f1, s.support) for s in found.classes]
    assert scores == [
        (0.5, 0.5, 0.5, 2),
        (None, 0.0, 0.0, 1),
        (0.0, None, 0.0, 0),
        (None, None, None, 0),
    ]


def test_plain_python_numbers():
    """So that json can write them."""
    found = evaluate_predictions(*random_answers(3), LABELS)
    assert type(found.correct) is type(found.total) is type(found.confusion[0][0]) is int
    assert {type(s.precision) for s in found.classes} == {float}
    assert {type(s.support) for s in found.classes} == {int}


def test_nothing_to_evaluate():
    empty = np.array([], dtype=int)
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate_predictions(empty, empty, LABELS)
    with pytest.raises(DataError, match="nothing to evaluate"):
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
    """0 of n gives [0, z²/(n + z²)], n of n its mirror; never outside 0 and 1."""
    z2 = 1.959964**2
    assert wilson_interval(0, total)[0] == 0 and wilson_interval(total, total)[1] == 1
    assert wilson_interval(0, total) == pytest.approx((0, z2 / (total + z2)), abs=1e-12)
    assert wilson_interval(total, total) == pytest.approx((total / (total + z2), 1), abs=1e-12)
    for correct in range(0, total + 1, max(1, total // 7)):
        low, high = wilson_interval(correct, total)
        assert 0 <= low <= correct / total <= high <= 1
        assert wilson_interval(total - correct, total) == pytest.approx((1 - high, 1 - low))


def test_the_bounds_solve_wilsons_equation():
    """Each bound b is where the share found lies z standard errors of b away: |p - b| = z
    √(b(1-b)/n).
    """
    for correct, total in [(3, 10), (287, 300), (5, 1000)]:
        for bound in wilson_interval(correct, total):
            error = math.sqrt(bound * (1 - bound) / total)
            assert abs(correct / total - bound) / error == pytest.approx(1.959964)


def test_the_interval_covers_as_it_says():
    """Over all outcomes of 50 texts: the probability that the true share lies within is near 95 %."""
    total = 50
    for share in (0.5, 0.8, 0.9, 0.95):
        inside = 0.0
        for correct in range(total + 1):
            low, high = wilson_interval(correct, total)
            chance = math.comb(total, correct) * share**correct * (1 - share) ** (total - correct)
            inside += chance * (low <= share <= high)
        assert 0.92 < inside < 0.985


# --- as a person reads it ---


def test_the_report():
    true = np.array([0] * 150 + [1] * 150)
    predicted = np.array([0] * 145 + [1] * 5 + [0] * 8 + [1] * 142)
    text = format_evaluation(evaluate_predictions(true, predicted, ["ham", "spam"]))
    assert text.splitlines() == [
        "accuracy 95.67 %  (287 of 300; 95 % interval 92.7 to 97.5)",
        "",
        "class      precision  recall      F1   texts",
        "ham            94.77   96.67   95.71     150",
        "spam           96.60   94.67   95.62     150",
        "",
        "true / predicted       ham      spam",
        "ham                    145         5",
        "spam                     8       142",
    ]


def test_a_dash_where_there_is_no_number():
    lines = format_evaluation(evaluate_predictions(np.array([0]), np.array([0]), ["a", "b"]))
    assert [line.split() for line in lines.splitlines() if line.startswith("b")] == [
        ["b", "-", "-", "-", "0"],
        ["b", "0", "0"],
    ]


@pytest.mark.parametrize("labels", [["a", "b"], ["x" * 30, "b"], ["ham", "a rather long label"]])
def test_columns_stand_below_each_other(labels):
    found = evaluate_predictions(np.array([0, 1] * 500), np.array([0, 0] * 500), labels)
    _, _, head, *classes, _, _, _, _ = lines = format_evaluation(found).splitlines()
    assert len({len(line) for line in (head, *classes)}) == 1
    assert len({len(line) for line in lines[-3:]}) == 1
    assert all(line.startswith(label) for line, label in zip(classes, labels, strict=True))


def test_accuracy_is_the_share():
    assert Evaluation(3, 4, (0.0, 1.0), [], []).accuracy == 0.75
