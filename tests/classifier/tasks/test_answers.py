"""Answers as they are printed: every digit in a table, every head in JSON."""

import csv
import io
import json
from dataclasses import fields

import pytest

from gpt2_from_scratch.classifier.settings import TAKEN, HeadConfig
from gpt2_from_scratch.classifier.tasks.answers import Csv, as_json
from gpt2_from_scratch.classifier.tasks.predictions import Choice, Prediction, Values
from gpt2_from_scratch.errors import UsageError


def prediction(**answers: object) -> Prediction:
    return Prediction(answers, 1, truncated=False, empty=False, replaced=False)


def test_values_keep_their_digits_in_a_table() -> None:
    out = io.StringIO()
    table = Csv(out, [HeadConfig("when", "regression", labels=("s", "m"))])
    table.write(1, "x", prediction(when=Values({"s": 1700000005.0, "m": 28.77985954})))
    assert list(csv.reader(io.StringIO(out.getvalue())))[1] == ["1", "1700000005", "28.77985954"]


@pytest.mark.parametrize("name", TAKEN)
def test_no_head_has_the_name_of_another_key(name: str) -> None:
    with pytest.raises(UsageError, match="that key already"):
        HeadConfig(name, labels=("a", "b"))


def test_the_names_that_are_taken_are_all_there_are() -> None:
    assert {"number"} | {f.name for f in fields(Prediction)} - {"answers"} == {*TAKEN}
    one = Choice("a", {"a": 1.0, "b": 0.0})
    found = json.loads(as_json(1, prediction(kind=one, other=one)))
    assert found.keys() == {*TAKEN, "kind", "other"}
