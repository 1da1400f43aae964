"""Baselines are compared with scikit-learn and checked by hand."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from said import listen
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline

from gpt2_from_scratch.data.messages import Message, load_messages
from gpt2_from_scratch.data.split import Split, split_messages
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.baselines import (
    PATTERNS,
    QUICK,
    Baseline,
    baseline_fits,
    fit_baselines,
    fit_commonest,
    fit_length,
    fit_patterns,
    predictions_of,
)
from gpt2_from_scratch.evaluation.metrics import evaluate_predictions

ROOT = Path(__file__).parents[2]
VECTORIZERS = {
    "bag of words": CountVectorizer,
    "TF-IDF of words": TfidfVectorizer,
    "TF-IDF of characters, 2 to 5": partial(
        TfidfVectorizer, analyzer="char", ngram_range=(2, 5), sublinear_tf=True
    ),
    "TF-IDF of words and characters": lambda: FeatureUnion(
        [
            ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
            ("chars", TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True)),
        ]
    ),
}


def messages(pairs: list[tuple[str, str]]) -> list[Message]:
    return [Message(text, label) for text, label in pairs]


@pytest.fixture(scope="module")
def demo() -> Split:
    return split_messages(load_messages("hard"), seed=1)


@pytest.fixture(scope="module")
def fitted(demo: Split) -> dict[str, Baseline]:
    return {baseline.kind: baseline for baseline in fit_baselines(demo, ["ham", "spam"])}


def texts_of(part: list[Message]) -> list[str]:
    return [message.text for message in part]


# --- all of them ---


@pytest.mark.slow
def test_the_order_of_all_baselines_and_of_the_quick_ones(
    fitted: dict[str, Baseline], demo: Split
) -> None:
    assert [*fitted] == ["commonest label", "patterns and words", "length alone", *VECTORIZERS]
    quick = [baseline.kind for baseline in fit_baselines(demo, ["ham", "spam"], quick=True)]
    assert quick == [*QUICK] == [*baseline_fits(quick=True)]


def test_fitted_baselines_are_not_fitted_again(demo: Split) -> None:
    known = [Baseline("length alone: x", len), Baseline("another", len)]  # type: ignore[arg-type]
    found = list(fit_baselines(demo, ["ham", "spam"], quick=True, fitted=known))
    assert [baseline.kind for baseline in found] == [*QUICK, "another"]
    assert [found[1], found[3]] == known


@pytest.mark.slow
def test_probabilities_have_the_requested_order_of_labels(
    fitted: dict[str, Baseline], demo: Split
) -> None:
    texts = texts_of(demo.test)
    for there in fit_baselines(demo, ["spam", "ham"]):
        here = fitted[there.kind].probabilities(texts)
        assert here.shape == (len(texts), 2)
        np.testing.assert_allclose(there.probabilities(texts)[:, ::-1], here, atol=1e-6)


@pytest.mark.slow
def test_predictions_have_the_texts_and_labels_of_the_messages(
    fitted: dict[str, Baseline], demo: Split
) -> None:
    twins = np.arange(len(demo.test)) % 2 == 0
    answered = predictions_of(fitted["bag of words"], demo.test, ["ham", "spam"], twins)
    assert answered.texts == texts_of(demo.test) and answered.near_duplicates is twins
    true = [answered.labels[k] for k in answered.true]
    assert true == [message.label for message in demo.test]
    with pytest.raises(DataError, match="'egg'; the labels are: ham, spam"):
        predictions_of(fitted["bag of words"], [Message("a", "egg")], ["ham", "spam"])


def test_a_split_without_validation_is_refused(demo: Split) -> None:
    with pytest.raises(DataError, match="validation set"):
        fit_commonest(Split(demo.train, [], demo.test), ["ham", "spam"])


# --- logistic regression ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", VECTORIZERS)
def test_linear_baselines_use_scikit_learn_with_the_best_C_on_validation(
    fitted: dict[str, Baseline], demo: Split, kind: str
) -> None:
    train, labels = texts_of(demo.train), [message.label for message in demo.train]
    models = []
    for C in (0.1, 1, 10, 100):
        model = make_pipeline(VECTORIZERS[kind](), LogisticRegression(max_iter=5000, C=C))
        models.append(model.fit(train, labels))
    right = [model.score(texts_of(demo.val), [m.label for m in demo.val]) for model in models]
    expected = models[int(np.argmax(right))].predict_proba(texts_of(demo.test))
    found = fitted[kind].probabilities(texts_of(demo.test))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    others = [model.predict_proba(texts_of(demo.test)) for model in models]
    assert sum(np.allclose(found, other, atol=1e-6) for other in others) == 1


@pytest.mark.slow
def test_the_numbers_published_in_the_readme(sms_file) -> None:
    """The README's numbers were measured by other code on the same splits, with 262 test texts."""
    split = split_messages(load_messages(sms_file), balance=True, seed=3)
    fits = baseline_fits()
    for kind, accuracy in zip([*VECTORIZERS][:3], ("95.0", "94.7", "96.2"), strict=True):
        found = fits[kind](split, ["ham", "spam"])
        assert found
        answered = predictions_of(found, split.test, ["ham", "spam"])
        evaluation = evaluate_predictions(answered.true, answered.predicted, ["ham", "spam"])
        assert f"{100 * evaluation.accuracy:.1f}" == accuracy and evaluation.total == 262


@pytest.mark.slow
def test_the_numbers_published_for_the_hard_messages() -> None:
    """They are in data/hard/README.md and in chapter 12, on the same split."""
    split = split_messages(load_messages("hard"), balance=True)
    table = (ROOT / "data/hard/README.md").read_text("utf-8")
    published = [int(row) for row in re.findall(r"^\|[^|]+\| +(\d+) \| [\d.]+% \|", table, re.M)]
    found = [
        int(predictions_of(baseline, split.test, ["ham", "spam"]).correct.sum())
        for baseline in fit_baselines(split, ["ham", "spam"])
    ]
    assert found == published and len(split.test) == 120


def test_a_baseline_is_skipped_if_texts_have_no_features() -> None:
    """scikit-learn ignores words of one letter, and raises an error for an empty vocabulary."""
    some = messages([("a", "x"), ("b c", "y")] * 5)
    said = listen()
    kinds = [b.kind for b in fit_baselines(Split(some, some, some), ["x", "y"])]
    assert "bag of words" not in kinds and "TF-IDF of characters, 2 to 5" in kinds
    assert [line for line in said if "skipping bag of words" in line]


def test_logistic_regression_is_skipped_if_training_texts_have_one_label() -> None:
    one, both = messages([("good dog", "x")] * 5), messages([("good dog", "x"), ("bad cat", "y")])
    said = listen()
    found = list(fit_baselines(Split(one, both, both), ["x", "y"]))
    assert [baseline.kind for baseline in found] == ["commonest label", "length alone"]
    for kind in VECTORIZERS:
        assert any(f"skipping {kind}" in line and "same label" in line for line in said)
    for baseline in found:
        assert predictions_of(baseline, both, ["x", "y"]).correct.tolist() == [True, False]


def test_a_class_without_training_texts_has_probability_0() -> None:
    some = messages([("good dog", "x"), ("bad cat", "y")] * 5)
    for found in fit_baselines(Split(some, some, some), ["w", "x", "y"]):
        shares = found.probabilities(["good dog", "bad cat"])
        assert shares[:, 0].tolist() == [0, 0]
        np.testing.assert_allclose(shares.sum(axis=1), 1)


# --- the simple baselines ---


def test_the_probability_of_the_commonest_label_is_its_proportion() -> None:
    train = messages([("a", "ham")] * 3 + [("b", "spam")])
    found = fit_commonest(Split(train, train, []), ["spam", "ham"])
    assert found.name == "commonest label: ham"
    assert found.probabilities(["x", "y"]).tolist() == [[0.25, 0.75]] * 2


def test_length_has_one_threshold_between_two_labels() -> None:
    lengths = {"ham": (3, 5, 6, 9, 30), "spam": (4, 20, 21, 22, 25)}
    train = messages([("x" * n, label) for label, some in lengths.items() for n in some])
    found = fit_length(Split(train, train, []), ["ham", "spam"])
    # the threshold is halfway between 9 and 20; 1 of 4 texts below is spam, 1 of 5 above is ham
    assert found.name == "length alone: spam from 15 characters"
    shares = found.probabilities(["x" * n for n in (14, 15, 1000)])
    np.testing.assert_allclose(shares, [[0.8, 0.2], [0.2, 0.8], [0.2, 0.8]])


def test_length_of_several_labels_has_a_leaf_each() -> None:
    train = messages([("x" * n, label) for label, n in zip("abc" * 3, (1, 5, 9) * 3, strict=True)])
    found = fit_length(Split(train, train, []), ["a", "b", "c"])
    assert found.name == "length alone"
    assert found.probabilities(["x" * n for n in (1, 5, 9)]).tolist() == np.eye(3).tolist()


def test_patterns_by_hand() -> None:
    """The tree asks the best question first: a number of four digits, then the word claim."""
    train = messages(
        [("win 5000 now", "spam"), ("Claim 5000", "spam"), ("see 7000", "spam")]
        + [("call Claim line", "spam"), ("no claims here", "ham"), ("see you", "ham")]
        + [("at 5 then", "ham"), ("ok", "ham"), ("call", "ham")]
    )
    found = fit_patterns(Split(train, train, []), ["ham", "spam"])
    assert found and found.kind == "patterns and words"
    assert found.name.endswith(r": spam if \d{4,} else (spam if claim else ham)")
    shares = found.probabilities(["12345", "CLAIM it", "claims", "5 at 5"])
    assert shares.tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]]


def test_patterns_of_three_labels() -> None:
    train = messages(
        [("why?", "a"), ("who is?", "a"), ("no!", "b"), ("go!", "b"), ("x", "c"), ("y", "c")] * 3
    )
    found = fit_patterns(Split(train, train, []), ["a", "b", "c"])
    assert found and found.probabilities(["when?", "!", "z"]).tolist() == np.eye(3).tolist()


def test_the_rule_that_is_shown_is_the_one_that_is_followed(demo: Split) -> None:
    """The rule is evaluated here as nested Python conditions whose answers come from re."""
    found = fit_patterns(demo, ["ham", "spam"])
    assert found
    rule = found.name.removeprefix("patterns and words: ")
    questions = {*re.findall(r" if (.+?) else ", rule)}
    assert 1 <= len(questions) <= 7
    texts = texts_of(demo.test)
    for text, row in zip(texts, found.probabilities(texts), strict=True):
        code, words = rule, re.findall(r"\w+", text.lower())
        for asked in questions:
            there = re.search(asked, text) is not None if asked in PATTERNS else asked in words
            code = code.replace(f" if {asked} else ", f" if {there} else ")
        while " if " in code:  # replaces the innermost condition first
            code = re.sub(r"(\w+) if True else \w+|\w+ if False else (\w+)", r"\1\2", code)
            code = re.sub(r"\((\w+)\)", r"\1", code)
        assert row[["ham", "spam"].index(code)] >= 0.5


def test_no_tree_if_no_pattern_or_word_helps() -> None:
    same = messages([("the same", "a"), ("the same", "b")] * 4)
    nothing = messages([(" ", "a"), ("  ", "b")] * 4)
    for some in (same, nothing):
        said = listen()
        assert fit_patterns(Split(some, some, []), ["a", "b"]) is None
        assert "skipping patterns and words" in said[0]
