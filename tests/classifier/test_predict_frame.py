"""Predictions as a table: the index of the texts, one column per probability or value, the marks."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hub_dataset import Column
from three_blocks import LABEL, LANGUAGE, classifier_with

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.errors import DataError, UsageError

TEXTS = ["the cat", "", "you " * 40, "half \ud83d"]
MARKS = ["n_tokens", "truncated", "empty", "replaced"]


def test_a_frame_has_the_answers_and_the_index(base: Path) -> None:
    classifier = classifier_with(base, LABEL)
    series = pd.Series(TEXTS, index=["p", "q", "q", 9], name="text")
    found, predictions = classifier.predict_frame(series), classifier.predict(TEXTS)
    assert [*found.columns] == ["label", "ham", "other", "spam", *MARKS]
    assert found.index.equals(series.index)
    for one, (_, row) in zip(predictions, found.iterrows(), strict=True):
        assert row["label"] == one.label
        assert row[["ham", "other", "spam"]].to_dict() == one.probabilities
        assert row[MARKS].to_dict() == {name: getattr(one, name) for name in MARKS}
    assert found["truncated"].tolist() == [False, False, True, False]
    assert found["empty"].tolist() == [False, True, False, False]
    assert found["replaced"].tolist() == [False, False, False, True]
    assert found.dtypes[["ham", "n_tokens", "empty"]].tolist() == [np.float64, np.int64, bool]


@pytest.mark.parametrize("texts", [TEXTS, np.array(TEXTS, dtype=object), Column(TEXTS)])
def test_texts_without_an_index_are_counted(base: Path, texts) -> None:
    assert classifier_with(base, LABEL).predict_frame(texts).index.tolist() == [0, 1, 2, 3]


def test_no_text_is_a_frame_without_rows(base: Path) -> None:
    found = classifier_with(base, LABEL).predict_frame([])
    assert found.shape == (0, 8) and "spam" in found


def test_labels_and_values_are_columns_too(base: Path) -> None:
    topics = HeadConfig("t", "multi-label", ("label", "empty", "x"), pooling="last_token")
    classifier = classifier_with(base, topics)
    found, (one,) = classifier.predict_frame(["the cat"]), classifier.predict(["the cat"])
    assert [*found.columns] == ["label", "(label)", "(empty)", "x", *MARKS]
    assert found["label"][0] == "|".join(one.answer.labels)
    assert found["(empty)"][0] == one.probabilities["empty"]
    values = HeadConfig("v", "regression", ("stars",), pooling="last_token")
    classifier = classifier_with(base, values)
    found, (one,) = classifier.predict_frame(["the cat"]), classifier.predict(["the cat"])
    assert [*found.columns] == ["stars", *MARKS] and found["stars"][0] == one.answer.values["stars"]


def test_what_has_no_rows_is_refused(base: Path) -> None:
    with pytest.raises(UsageError, match="several heads"):
        classifier_with(base, LABEL, LANGUAGE).predict_frame(TEXTS)
    tags = HeadConfig("t", "token-classification", ("O", "B"), pooling="last_token")
    with pytest.raises(UsageError, match="token-classification"):
        classifier_with(base, tags).predict_frame(TEXTS)


@pytest.fixture
def classifier(base: Path) -> Classifier:
    return classifier_with(base, LABEL)


def test_a_missing_text_is_named(classifier: Classifier) -> None:
    with pytest.raises(DataError, match="text 1, counted from 0"):
        classifier.predict_frame(pd.Series(["a", None], index=[5, 6]))
