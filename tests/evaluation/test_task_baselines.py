"""The baselines of the other tasks, compared with numpy, scikit-learn, and answers by hand."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from said import listen
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from task_targets import words_of

from gpt2_from_scratch.data.formats import TASKS
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.task_baselines import (
    FITS,
    MEAN,
    PENALTIES,
    PER_LABEL,
    RIDGE,
    SENTENCE,
    TAG,
    fit_mean,
    fit_most_frequent_tag,
    fit_per_label,
    fit_ridge,
    fit_task_baselines,
    fit_word_overlap,
)

WORDS = "good fine bad poor ice tea sun rain dog cat bus car".split()


def split_of(*labels: object) -> Split:
    """All parts have the same messages "a b"."""
    some = [Message("a b", label) for label in labels]
    return Split(some, some, some)


def ngrams() -> FeatureUnion:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True)
    return FeatureUnion([("words", words), ("characters", characters)])


def texts_of(part: list[Message]) -> list[str]:
    return [message.text for message in part]


# --- all of them ---


def test_every_task_but_classification_has_its_baselines() -> None:
    assert {*FITS} == {*TASKS} - {"classification", "language", "features"}


@pytest.mark.parametrize(
    ("task", "label", "names", "quick"),
    [
        ("token-classification", (Span(0, 1, "X"),), [TAG], [TAG]),
        ("regression", (1.0,), [MEAN, RIDGE], [MEAN]),
        ("token-regression", ((1, 1.0),), [MEAN], [MEAN]),
        ("multi-label", ("x",), [PER_LABEL], []),
        ("span", Span(0, 1), [SENTENCE], [SENTENCE]),
        ("classification", "x", [], []),
    ],
)
def test_slow_baselines_are_skipped_on_request(task, label, names, quick) -> None:
    split = Split(*[[Message("some words", label)]] * 3)
    assert [found.name for found in fit_task_baselines(task, split, ["x"])] == names
    said = listen()
    fast = [found.name for found in fit_task_baselines(task, split, ["x"], quick=True)]
    assert fast == quick
    assert len(said) == len(names) - len(quick)
    assert all("too large" in line for line in said)


def test_a_split_without_validation_is_refused() -> None:
    some = split_of((1.0,)).train
    with pytest.raises(DataError, match="validation set"):
        list(fit_task_baselines("regression", Split(some, [], some), ["x"]))


@pytest.mark.parametrize("fit", [fit_ridge, fit_per_label])
def test_texts_without_words_are_skipped(fit) -> None:
    said = listen()
    assert fit(split_of((1.0,), (2.0,)), ["x"]) is None
    assert len(said) == 1 and "none of its features" in said[0]


# --- tags ---


def tagged(*pairs: tuple[str, str]) -> Split:
    """Messages with a tag per word; they are the training set."""
    train = []
    for words, tags in pairs:
        spans = words_of(words)
        label = tuple(s._replace(label=t) for s, t in zip(spans, tags.split(), strict=True))
        train.append(Message(words, label))
    return Split(train, train, [])


def tags_of(split: Split, text: str) -> list[str]:
    """The tags of a text, whose own tags the baseline must ignore."""
    found = fit_most_frequent_tag(split)
    assert found
    [answer] = found.answers([Message(text, tuple(words_of(text, "unknown")))])
    assert [span[:2] for span in answer] == [span[:2] for span in words_of(text)]
    return [span.label for span in answer]


def test_the_most_frequent_tag() -> None:
    split = tagged(
        ("the run", "D N"),
        ("a run", "D N"),
        ("I run", "P V"),
        ("I fish", "P N"),
        ("fish swim", "V V"),
        ("The end", "D N"),
    )
    assert tags_of(split, "the run I swim The end") == list("DNPVDN")
    assert tags_of(split, "fish") == ["N"], "of N and V, once each, the first"
    assert tags_of(split, "unseen") == ["N"], "four N, three D and V, two P"


def test_an_unknown_word_has_the_most_frequent_tag_of_all() -> None:
    split = tagged(("in Rome Paris", "O B-LOC B-LOC"))
    assert tags_of(split, "in Rome rome") == ["O", "B-LOC", "B-LOC"]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_rule_tags_more_training_words_correctly(seed: int) -> None:
    """All 4^5 rules are tried."""
    rng = random.Random(seed)
    words = [[rng.choice("vwxyz") for _ in range(6)] for _ in range(6)]
    tags = [[rng.choice("ABCD") for _ in text] for text in words]
    split = tagged(*((" ".join(w), " ".join(t)) for w, t in zip(words, tags, strict=True)))
    pairs = Counter(zip(itertools.chain(*words), itertools.chain(*tags), strict=True))
    best = max(
        sum(pairs[pair] for pair in zip("vwxyz", rule, strict=True))
        for rule in itertools.product("ABCD", repeat=5)
    )
    found = [tags_of(split, " ".join(text)) for text in words]
    assert sum(a == b for a, b in zip(sum(found, []), sum(tags, []), strict=True)) == best


def test_no_words_have_no_most_frequent_tag() -> None:
    said = listen()
    assert fit_most_frequent_tag(split_of((), ())) is None
    assert len(said) == 1 and "no tagged words" in said[0]


# --- numbers ---


def valued(n: int, seed: int) -> list[Message]:
    """Texts of three words, and two values that depend on the words and on noise."""
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(n):
        chosen = rng.randint(0, len(WORDS), 3)
        values = (float(chosen.sum() + rng.randn()), float(1000 + 50 * rng.randn() * chosen[0]))
        found.append(Message(" ".join(WORDS[k] for k in chosen), values))
    return found


def test_the_mean_by_hand() -> None:
    found = fit_mean(split_of((1.0, 10.0), (2.0, 30.0)), ["x", "y"])
    assert found.answers(split_of(None, None, None).test) == [(1.5, 20.0)] * 3
    assert fit_mean(split_of(1.0, 4.0), ["x"]).answers(split_of(7.0).test) == [(2.5,)]


@pytest.mark.parametrize("n_values", [1, 2])
def test_ridge_regression_is_that_of_numpy(n_values: int) -> None:
    train, val, test = (
        [Message(m.text, m.label[:n_values]) for m in valued(n, seed)]
        for n, seed in ((60, 1), (30, 2), (10, 3))
    )
    vectorizer = ngrams()
    X = vectorizer.fit_transform(texts_of(train)).toarray()
    V, T = (vectorizer.transform(texts_of(part)).toarray() for part in (val, test))
    y, y_val = (np.array([m.label for m in part]) for part in (train, val))
    predictions, errors = [], []
    for penalty in PENALTIES:  # closed form, with centered features and values
        centered = X - X.mean(axis=0)
        gram = centered @ centered.T + penalty * np.eye(len(X))
        weights = centered.T @ np.linalg.solve(gram, y - y.mean(axis=0))
        at = [(part - X.mean(axis=0)) @ weights + y.mean(axis=0) for part in (V, T)]
        errors.append((((at[0] - y_val) / y.std(axis=0)) ** 2).mean())
        predictions.append(at[1])
    best = int(np.argmin(errors))
    found = fit_ridge(Split(train, val, test), ["x", "y"][:n_values])
    assert found
    np.testing.assert_allclose(found.answers(test), predictions[best], rtol=1e-3)
    assert sum(np.allclose(found.answers(test), p, rtol=1e-3) for p in predictions) == 1


def test_a_constant_value_stays_constant() -> None:
    train = [Message(m.text, (5.0,)) for m in valued(10, 0)]
    found = fit_ridge(Split(train, train, train), ["x"])
    assert found
    np.testing.assert_allclose(found.answers(train), 5.0)


# --- several labels ---


def labelled(n: int, seed: int) -> list[Message]:
    """Texts of four words; half of the words suggest a label, with some noise."""
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(n):
        chosen = rng.choice(len(WORDS), 4, replace=False)
        marks = [k in chosen or rng.rand() < 0.1 for k in range(3)]
        labels = tuple(x for x, marked in zip("xyz", marks, strict=True) if marked)
        found.append(Message(" ".join(WORDS[k] for k in chosen), labels))
    return found


def marks_of(part: list[Message]) -> np.ndarray:
    return np.array([[x in message.label for x in "xyz"] for message in part], dtype=int)


def test_each_label_has_scikit_learns_logistic_regression() -> None:
    train, val, test = (labelled(n, seed) for n, seed in ((50, 1), (40, 2), (40, 3)))
    predictions, f1s = [], []
    for C in (0.1, 1, 10, 100):
        each = OneVsRestClassifier(LogisticRegression(C=C, solver="liblinear"))
        model = make_pipeline(ngrams(), each).fit(texts_of(train), marks_of(train))
        f1s.append(f1_score(marks_of(val), model.predict(texts_of(val)), average="micro"))
        predictions.append(model.predict(texts_of(test)))
    found = fit_per_label(Split(train, val, test), "xyz")
    assert found
    answered = marks_of([Message("", answer) for answer in found.answers(test)])
    np.testing.assert_array_equal(answered, predictions[int(np.argmax(f1s))])
    assert len({p.tobytes() for p in predictions}) > 1
    assert f1_score(marks_of(test), answered, average="micro") > 0.7


def test_labels_of_all_texts_or_of_none() -> None:
    train = [Message(m.text, ("always",)) for m in labelled(10, 0)]
    found = fit_per_label(Split(train, train, train), ["never", "always"])
    assert found and found.answers(train[:2]) == [("always",)] * 2


# --- answers in a text ---


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Who ate fish?\nBirds fly. A cat ate a fish! It slept.", "A cat ate a fish!"),
        ("Who ATE?\nBirds fly.\nThe cat ate 3.5 fish\nIt slept.", "The cat ate 3.5 fish"),
        ("fish fish fish cat\nfish fish. fish cat.", "fish cat."),  # each word counts once
        ("cat\nThe cat. A cat.", "The cat."),  # on a tie, the first
        ("cat\nNo. Yes.", "No."),
        ("cat\n", ""),
        ("Only a context with a cat.", "Only a context with a cat."),
    ],
)
def test_the_sentence_that_shares_most_words_with_the_question(text: str, answer: str) -> None:
    [found] = fit_word_overlap(split_of()).answers([Message(text, None)])
    assert text[found.start : found.end] == answer
    assert found.start > text.find("\n") or not answer
