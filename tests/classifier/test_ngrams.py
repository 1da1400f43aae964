"""N-grams next to GPT-2: the regression, the combination, the file, and what cannot carry them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import hstack
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from gpt2_from_scratch import Classifier, HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.ngrams import LOWEST, NGrams
from gpt2_from_scratch.classifier.saving import (
    FORMAT,
    WITH_NGRAMS,
    read_classifier,
    write_classifier,
)
from gpt2_from_scratch.classifier.train import finetune
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.storage.tensors import read_tensors, write_tensors

WORDS = {"ham": "see you at home", "other": "the meeting is at", "spam": "win a prize at"}
TEXTS = ["you win a prize", "", "home home é", "\ud800 half", "a meeting\nat six", "zzz"]


def messages(labels: tuple[str, ...], start: int, n: int) -> list[Message]:
    return [Message(f"{WORDS[k]} {start + i}", k) for i in range(n) for k in labels]


def split_of(*labels: str) -> Split:
    """Every fifth validation text has a wrong label, so that the weights have an optimum."""
    val = messages(labels, 50, 10)
    for n in range(0, len(val), 5):
        val[n] = replace(val[n], label=labels[(labels.index(val[n].label) + 1) % len(labels)])
    return Split(messages(labels, 0, 20), val, messages(labels, 90, 5))


def fitted(labels: list[str], *present: str) -> NGrams:
    split = split_of(*present)
    found = NGrams.fitted(split, labels)
    assert found is not None
    logits = np.random.RandomState(3).normal(size=(len(split.val), len(labels)))
    true = np.array([labels.index(message.label) for message in split.val])
    return found.weighted(logits + 2 * np.eye(len(labels))[true], split.val, true)


@pytest.fixture
def with_ngrams(classifier: Classifier) -> Classifier:
    """The classifier of ham, other and spam, with n-grams."""
    classifier.ngrams = fitted(["ham", "other", "spam"], "ham", "other", "spam")
    return classifier


# --- the regression and the combination ---


@pytest.mark.parametrize("present", [("ham", "spam"), ("ham", "other", "spam")])
def test_the_regression_is_the_one_of_scikit_learn(present: tuple[str, ...]) -> None:
    split, texts = split_of(*present), [text for text in TEXTS if text != "\ud800 half"]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True)
    train, val, asked = (
        [message.text for message in split.train],
        [message.text for message in split.val],
        texts,
    )
    x = hstack([vectorizer.fit_transform(train) for vectorizer in (words, characters)])
    x_val, x_asked = (
        hstack([vectorizer.transform(part) for vectorizer in (words, characters)])
        for part in (val, asked)
    )
    models = [
        LogisticRegression(C=C, max_iter=5000).fit(x, [m.label for m in split.train])
        for C in (0.1, 1, 10, 100)
    ]
    scores = [model.score(x_val, [m.label for m in split.val]) for model in models]
    expected = models[int(np.argmax(scores))].predict_proba(x_asked)
    found = NGrams.fitted(split, present)
    assert found is not None
    np.testing.assert_allclose(found.probabilities(texts), expected, atol=1e-6)


def test_a_label_without_training_texts_has_probability_0_and_finite_logits() -> None:
    found = fitted(["ham", "never", "spam"], "ham", "spam")
    p = found.probabilities(TEXTS)
    assert (p[:, 1] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)
    logits = np.random.RandomState(0).normal(size=p.shape)
    combined = found.combined(logits, TEXTS)
    a, b = found.weights
    np.testing.assert_allclose(combined, a * logits + b * np.log(np.clip(p, LOWEST, 1)))
    assert np.isfinite(combined).all()
    assert found.probabilities([]).shape == found.combined(np.zeros((0, 3)), []).shape == (0, 3)


def test_texts_without_ngrams_and_single_labels_give_no_regression() -> None:
    assert NGrams.fitted(split_of("ham"), ["ham", "spam"]) is None
    letters = [Message("!", "ham"), Message("?", "spam")]
    assert NGrams.fitted(Split(letters, letters, []), ["ham", "spam"]) is None


def test_predictions_combine_both(with_ngrams: Classifier) -> None:
    ngrams = with_ngrams.ngrams
    assert ngrams is not None
    gpt2 = with_ngrams.logits(with_ngrams.encode(TEXTS)[0]).double().numpy()
    p = softmax(ngrams.combined(gpt2, TEXTS), axis=1)
    for found in (
        with_ngrams.predict(TEXTS),
        [prediction for _, prediction in with_ngrams.predict_stream(TEXTS)],
    ):
        np.testing.assert_allclose([[*x.probabilities.values()] for x in found if x], p, atol=1e-6)
    with_ngrams.ngrams = None
    alone = [[*x.probabilities.values()] for x in with_ngrams.predict(TEXTS) if x]
    np.testing.assert_allclose(alone, softmax(gpt2, axis=1), atol=1e-6)


def test_one_output_counts_as_logits_0_and_z(tiny_checkpoint: Path) -> None:
    head = HeadConfig(labels=("ham", "spam"), one_output=True)
    classifier = Classifier.on_base(tiny_checkpoint, heads=[head])
    ngrams = classifier.ngrams = fitted(["ham", "spam"], "ham", "spam")
    z = classifier.logits(classifier.encode(TEXTS)[0]).double().numpy()
    logits = np.concatenate([np.zeros_like(z), z], axis=1)
    found = [[*x.probabilities.values()] for x in classifier.predict(TEXTS) if x]
    np.testing.assert_allclose(found, softmax(ngrams.combined(logits, TEXTS), axis=1), atol=1e-6)


# --- the file ---


def test_a_saved_classifier_gives_the_same_answers(with_ngrams: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with_ngrams.save(path)
    loaded = Classifier.load(path, with_ngrams._base)
    assert with_ngrams.ngrams is not None and loaded.ngrams is not None
    assert loaded.ngrams.weights == with_ngrams.ngrams.weights
    found, expected = (c.probabilities(TEXTS) for c in (loaded.ngrams, with_ngrams.ngrams))
    assert np.array_equal(found, expected)
    assert loaded.predict(TEXTS) == with_ngrams.predict(TEXTS)
    with pytest.raises(CheckpointError, match=WITH_NGRAMS):  # as an older version reads it
        read_tensors(path, FORMAT)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_file_without_ngrams_has_the_earlier_format(classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "c.safetensors")
    _, tensors = read_tensors(tmp_path / "c.safetensors", FORMAT)
    assert not [name for name in tensors if name.startswith("ngrams")]
    assert read_classifier(tmp_path / "c.safetensors")[2] is None


def as_bytes(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


DAMAGE = {
    "words that are not UTF-8": {"words": torch.full((9,), 0xFF, dtype=torch.uint8)},
    "words that are not JSON": {"words": torch.full((9,), 0x5B, dtype=torch.uint8)},
    "words that are a dictionary": {"words": as_bytes({"a": 1})},
    "words that are numbers": {"words": as_bytes([1, 2])},
    "no words": {"words": as_bytes([])},
    "words that occur twice": {"words": as_bytes(["a", "a"])},
    "another number of words": {"words": as_bytes(["a"])},
    "words in two dimensions": {"words": torch.ones((2, 2), dtype=torch.uint8)},
    "words of another type": {"words": torch.ones(9)},
    "characters that are missing": {"characters": None},
    "an unknown tensor": {"more": torch.ones(1)},
    "an idf that is too long": {"idf": torch.ones(10_000)},
    "a negative idf": {"idf": -1},
    "coefficients of too few classes": {"coefficients": torch.ones(1, 10)},
    "intercepts of too many classes": {"intercepts": torch.ones(4)},
    "infinite intercepts": {"intercepts": torch.full((3,), torch.inf)},
    "numbers of classes that do not exist": {"seen": torch.tensor([0, 1, 7])},
    "a class that occurs twice": {"seen": torch.tensor([0, 1, 1])},
    "a single class": {"seen": torch.tensor([1])},
    "NaN as weight": {"weights": torch.tensor([1.0, torch.nan])},
    "a negative weight": {"weights": torch.tensor([1.0, -1.0])},
    "three weights": {"weights": torch.ones(3)},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_ngrams_are_refused(damage: str, with_ngrams: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with_ngrams.save(path)
    metadata, tensors = read_tensors(path, WITH_NGRAMS)
    for name, value in DAMAGE[damage].items():
        if value is None:
            del tensors[f"ngrams.{name}"]
        else:
            one = tensors.get(f"ngrams.{name}")
            tensors[f"ngrams.{name}"] = one * value if isinstance(value, int) else value  # type: ignore[operator]
    write_tensors(path, tensors, metadata)
    with pytest.raises(CheckpointError, match="n-grams"):
        read_classifier(path)


def test_the_format_must_match_the_tensors(with_ngrams: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with_ngrams.save(path)
    metadata, tensors = read_tensors(path, WITH_NGRAMS)
    model = {name: value for name, value in tensors.items() if not name.startswith("ngrams.")}
    for found, format in ((tensors, FORMAT), (model, WITH_NGRAMS)):
        write_tensors(path, found, metadata | {"format": format})
        with pytest.raises(CheckpointError, match="contradicts"):
            read_classifier(path)


def test_ngrams_of_another_task_are_refused(with_ngrams: Classifier, tmp_path: Path) -> None:
    head = replace(with_ngrams.description.head, task="multi-label")
    description = replace(with_ngrams.description, heads=(head,))
    write_classifier(tmp_path / "c.safetensors", description, {}, with_ngrams.ngrams)
    with pytest.raises(CheckpointError, match="multi-label"):
        read_classifier(tmp_path / "c.safetensors")


# --- what cannot carry them ---


def test_answers_after_each_token_are_refused(with_ngrams: Classifier) -> None:
    with pytest.raises(UsageError, match="with_ngrams"):
        with_ngrams.predict_by_token("see you")


@pytest.mark.parametrize("labels", [["ham", "spam"], ["spam", "other", "ham"], ["ham", "b", "c"]])
def test_other_labels_are_refused(with_ngrams: Classifier, labels: list[str]) -> None:
    with pytest.raises(UsageError, match="with_ngrams"):
        with_ngrams.relabel(labels)
    assert with_ngrams.description.labels == ["ham", "other", "spam"]


def test_new_names_for_the_labels_are_allowed(with_ngrams: Classifier) -> None:
    before = [[*x.probabilities.values()] for x in with_ngrams.predict(TEXTS) if x]
    with_ngrams.relabel(["a", "b", "c"])
    after = [[*x.probabilities.values()] for x in with_ngrams.predict(TEXTS) if x]
    assert after == before


def test_they_cannot_be_attached(with_ngrams: Classifier, tmp_path: Path) -> None:
    head = HeadConfig("second", labels=("a", "b"))
    other = Classifier.on_base(with_ngrams._base, heads=[head])
    other.save(tmp_path / "other.safetensors")
    with_ngrams.save(tmp_path / "c.safetensors")
    for here, there in ((other, "c.safetensors"), (with_ngrams, "other.safetensors")):
        with pytest.raises(UsageError, match="with_ngrams"):
            here.attach(tmp_path / there)


def test_training_further_is_refused(with_ngrams: Classifier, tmp_path: Path) -> None:
    split = split_of("ham", "other", "spam")
    with pytest.raises(UsageError, match="with_ngrams"):
        finetune(with_ngrams, split, TrainConfig(epochs=1), tmp_path)


def test_other_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match="with_ngrams"):
        HeadSettings(task="multi-label", with_ngrams=True)
