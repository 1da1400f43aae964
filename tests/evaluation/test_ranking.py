"""Areas under curves, counted pair by pair and cut by cut."""

import sys

import numpy as np
import pytest

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.metrics import Ranking, rankings


def pairs(is_it: np.ndarray, shares: np.ndarray) -> float:
    """The share of pairs (one of the class, one not) in which the first ranks above; ties half."""
    above = shares[is_it][:, None] - shares[~is_it]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def cuts(is_it: np.ndarray, shares: np.ndarray) -> float:
    """Precision at each cut, weighed by the recall it adds."""
    total, recall = 0.0, 0.0
    for cut in sorted(set(shares), reverse=True):
        hits, called = (is_it & (shares >= cut)).sum(), (shares >= cut).sum()
        total += hits / called * (hits / is_it.sum() - recall)
        recall = hits / is_it.sum()
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("digits", [1, 6])  # with one digit there are many ties
def test_areas_are_what_they_mean(seed, digits):
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
    """Spam ranks first, third and fifth of five: 3 of 6 pairs, precision 1, 2/3 and 3/5."""
    spam = np.array([0.9, 0.8, 0.7, 0.4, 0.1])
    true = np.array([1, 0, 1, 0, 1])
    ham, found = rankings(np.stack([1 - spam, spam], axis=1), true, ("ham", "spam"))
    assert (found.roc_auc, ham.roc_auc) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.average_precision == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert ham.average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_missing_and_alone():
    found = rankings(np.eye(3)[[0, 0]], np.array([0, 0]), ["a", "b", "c"])
    assert found == [Ranking(label, None, None) for label in "abc"]


def test_what_does_not_fit_and_what_is_missing(monkeypatch):
    with pytest.raises(DataError, match="2 texts and 3 labels"):
        rankings(np.eye(2), np.array([0, 1]), ["a", "b", "c"])
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match="needs scikit-learn"):
        rankings(np.eye(2), np.array([0, 1]), ["a", "b"])
