"""What a classifier said, in memory and on disk."""

import numpy as np
import pytest

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import (
    LabelledPredictions,
    read_predictions,
    write_predictions,
)


def some(near_twins=None):
    return LabelledPredictions(
        ("ham", "spam"),
        ["see you\u2028at six", 'win "now"', "é \x1f \ud800 ok"],
        np.array([0, 1, 0]),
        np.array([[0.9, 0.1], [0.25, 0.75], [1 / 3, 2 / 3]]),
        near_twins,
    )


def test_predicted_and_right():
    assert some().predicted.tolist() == [0, 1, 1]
    assert some().right.tolist() == [True, True, False]


def test_of_equals_the_first_class():
    answered = LabelledPredictions(("a", "b"), ["x"], np.array([1]), np.array([[0.5, 0.5]]))
    assert answered.predicted.tolist() == [0]


def test_only_some():
    part = some(np.array([True, False, True])).only(np.array([False, True, True]))
    assert part.texts == ['win "now"', "é \x1f \ud800 ok"] and part.true.tolist() == [1, 0]
    assert part.probabilities.tolist() == [[0.25, 0.75], [1 / 3, 2 / 3]]
    assert part.near_twins.tolist() == [False, True]


@pytest.mark.parametrize("twins", [None, np.array([True, False, False])])
def test_written_and_read(tmp_path, twins):
    write_predictions(tmp_path / "a.jsonl", some(twins))
    again = read_predictions(tmp_path / "a.jsonl")
    assert again.texts == some().texts and again.labels == some().labels
    assert np.array_equal(again.probabilities, some().probabilities)  # to the bit
    assert again.true.tolist() == [0, 1, 0]
    assert twins is None and again.near_twins is None or again.near_twins.tolist() == twins.tolist()


@pytest.mark.parametrize("content", ["", "{}\n", "no json", '{"probabilities": 3}\n', "[1]\n"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match="no file of answers"):
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
