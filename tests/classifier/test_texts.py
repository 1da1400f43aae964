"""Accepted and refused kinds of texts, for every function that takes texts."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hub_dataset import Column, Dataset
from three_blocks import LABEL, LANGUAGE, classifier_with

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.generate import generate_with_heads
from gpt2_from_scratch.classifier.train import to_labelled
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.speed.batching import encode_texts

TEXTS = ["the cat", "win", ""]
FRAME = pd.DataFrame({"text": TEXTS, "label": ["a", "b", "c"]})
ACCEPTED = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "series": FRAME["text"],
    "series with another index": FRAME["text"].set_axis([7, 7, -1]),
    "string dtype": FRAME["text"].astype("string"),
    "categories": FRAME["text"].astype("category"),
    "index": pd.Index(TEXTS),
    "objects": np.array(TEXTS, dtype=object),
    "fixed width": np.array(TEXTS),
    "numpy strings": [np.str_(text) for text in TEXTS],
    "column of a data set": Column(TEXTS),
    "deque": deque(TEXTS),
    "keys": dict.fromkeys(TEXTS).keys(),
    "values": dict(enumerate(TEXTS)).values(),
}
REFUSED = {
    "frame": (FRAME, r'df\["text"\] \(columns: text, label\)'),
    "frame of one column": (FRAME[["text"]], r'df\["text"\]'),
    "data set": (Dataset({"text": TEXTS}), r'df\["text"\] \(columns: text\)'),
    "string": ("the cat", "not one string"),
    "bytes": (b"the cat", "not one string"),
    "None": (None, "not NoneType"),
    "number": (3, "not int"),
    "dictionary": ({"text": TEXTS}, "not dict"),
    "set": ({*TEXTS}, "not set"),
    "frozen set": (frozenset(TEXTS), "not frozenset"),
    "path": (Path("texts.txt"), "not"),
    "message": (Message("the cat", "a"), "not Message"),
    "two axes": (np.array([TEXTS, TEXTS]), r"shape \(2, 3\)"),
    "no axis": (np.array("the cat"), r"shape \(\)"),
    "tensor": (torch.zeros(2), "text 0, counted from 0, must be a string, not Tensor"),
    "lists": ([TEXTS], "text 0, counted from 0, must be a string, not list"),
    "dictionaries": ([{"text": "the cat"}], "text 0, .* not dict"),
    "None inside": (["a", None], "text 1, .* not NoneType.*dropna"),
    "bytes inside": (["a", "b", b"c"], "text 2, .* not bytes"),
    "NaN in a series": (pd.Series(["a", np.nan]), "text 1, .* not float.*dropna"),
    "NA": (pd.Series(["a", None], dtype="string"), "text 1, .* must be a string.*dropna"),
    "numbers": (pd.Series([1, 2]), "text 0, .* must be a string, not int$"),
    "messages": ([Message("the cat", "a")], "text 0, .* not Message"),
}
USES: dict[str, Callable] = {
    "predict": lambda classifier, texts: classifier.predict(texts),
    "predict_stream": lambda classifier, texts: [p for _, p in classifier.predict_stream(texts)],
    "encode": lambda classifier, texts: classifier.encode(texts),
    "encode_texts": lambda classifier, texts: encode_texts(texts, classifier.tokenizer, 32),
}


@pytest.fixture(scope="module")
def classifier(base: Path) -> Classifier:
    return classifier_with(base, LABEL, LANGUAGE)


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("use", USES)
def test_any_column_of_texts_is_accepted(classifier: Classifier, use: str, kind: str) -> None:
    assert USES[use](classifier, ACCEPTED[kind]) == USES[use](classifier, TEXTS)


@pytest.mark.parametrize("use", USES)
def test_a_stream_is_accepted(classifier: Classifier, use: str) -> None:
    assert USES[use](classifier, (text for text in TEXTS)) == USES[use](classifier, TEXTS)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("use", USES)
def test_something_else_than_texts_is_one_error(
    classifier: Classifier, use: str, kind: str
) -> None:
    texts, message = REFUSED[kind]
    with pytest.raises(DataError, match=message):
        USES[use](classifier, texts)


@pytest.mark.parametrize("kind", ["frame", "string", "dictionary", "None", "set"])
def test_a_whole_table_is_never_skipped(classifier: Classifier, kind: str) -> None:
    with pytest.raises(DataError):
        classifier.predict(REFUSED[kind][0], on_error="skip")
    with pytest.raises(DataError):
        list(classifier.predict_stream(REFUSED[kind][0], on_error="skip"))


@pytest.mark.parametrize("wrong", [["the cat"], [3], "the cat", [b"ab", "c"], [None]])
def test_texts_in_place_of_ids_are_one_error(classifier: Classifier, wrong) -> None:
    for use in (classifier.texts, lambda ids: list(classifier.outputs(ids))):
        with pytest.raises(DataError, match=r"list of ids|ids are from 0"):
            use(wrong)


@pytest.mark.parametrize("wrong", [FRAME, "the cat", None, TEXTS, {"a": 1}])
def test_messages_are_messages(classifier: Classifier, wrong) -> None:
    with pytest.raises(DataError, match="list of Message|must be a Message"):
        to_labelled(classifier, wrong)


@pytest.mark.parametrize("wrong", [TEXTS, None, b"the", 3, FRAME["text"]])
def test_a_prompt_is_a_string(classifier: Classifier, wrong) -> None:
    with pytest.raises(DataError, match="must be a string"):
        generate_with_heads(classifier, wrong, 2)
