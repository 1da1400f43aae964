"""Lengths and what is remarked on, against scikit-learn, scipy and counts by hand."""

import random

import numpy as np
import pytest
from scipy.stats import binomtest, mannwhitneyu
from sklearn.metrics import roc_auc_score

from gpt2_from_scratch.data.check import (
    Cut,
    LabelLengths,
    Lengths,
    cut,
    lengths_by_label,
    remarks,
    spread,
)


@pytest.mark.parametrize("seed", range(5))
def test_longer_is_the_area_under_the_curve(seed):
    draw = random.Random(seed)
    labels = draw.choices(["a", "b", "c"], [5, 3, 1], k=120)
    lengths = [draw.randrange(1, 12) + 2 * (label == "c") for label in labels]  # many are equal
    found = lengths_by_label(lengths, labels)
    assert list(found) == sorted(set(labels))
    for label, of in found.items():
        own = [n for n, other in zip(lengths, labels, strict=True) if other == label]
        others = [n for n, other in zip(lengths, labels, strict=True) if other != label]
        is_own = [other == label for other in labels]
        assert of.longer == pytest.approx(roc_auc_score(is_own, lengths))
        u = mannwhitneyu(own, others).statistic
        assert of.longer == pytest.approx(u / (len(own) * len(others)))
        assert of.median == np.median(own)


def test_lengths_by_hand():
    assert lengths_by_label([3, 3, 5], ["a", "b", "b"]) == {
        "a": LabelLengths(3.0, 0.25),
        "b": LabelLengths(4.0, 0.75),
    }
    assert lengths_by_label([3, 4], ["a", "a"]) == {"a": LabelLengths(3.5, None)}
    assert lengths_by_label([], []) == {} and spread([]) is None
    assert spread([5, 1, 2]) == Lengths(1, 2.0, 5)
    assert cut([3, 10, 12], 10) == Cut(10, 1, 2, 25) and cut([], 4) == Cut(4, 0, 0, 0)


@pytest.mark.parametrize(("ham", "told"), [(100, False), (300, False), (301, True)])
def test_uneven_labels(ham, told):
    found = remarks({"eggs": 150, "ham": ham, "spam": 100}, {}, None)
    assert len(found) == told
    if told:
        assert found[0].startswith("labels are uneven: 3.0 ham for one spam")
        assert "--balance" in found[0] and "--class-weights balanced" in found[0]


@pytest.mark.parametrize(
    ("ham", "spam", "expected"),
    [
        (0.21, 0.79, ""),
        (0.15, 0.85, "spam is the longer in 85 %"),
        (0.05, None, "ham is the shorter in 95 %"),
    ],
)
def test_telling_lengths(ham, spam, expected):
    lengths = {"ham": LabelLengths(3.0, ham), "spam": LabelLengths(4.0, spam)}
    (found,) = remarks({"ham": 1, "spam": 1}, lengths, None) or [""]
    assert (expected in found) if expected else found == ""


@pytest.mark.parametrize("n", [1, 20, 120, 200, 2000])
def test_a_small_test_part(n):
    interval = binomtest(round(0.95 * n), n).proportion_ci(method="wilson")
    half = (interval.high - interval.low) / 2
    found = remarks({"a": 1, "b": 1}, {}, n)
    assert found == [
        f"{n} test texts: an accuracy of 95 % would be known to plus or minus {100 * half:.0f} points"
    ] * int(half > 0.03)
    assert (n == 2000) == (found == []) and ("minus 4 points" in str(found)) == (n == 120)


def test_no_test_part_is_no_small_one():
    assert remarks({"a": 1, "b": 1}, {"a": LabelLengths(3.0, None)}, None) == []
