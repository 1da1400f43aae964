"""Regression, compared with torch, SciPy, scikit-learn and by hand; the miniature learns it."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torch.nn.functional as F
from task_targets import targets_of

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.regression import Values, regression_scores
from gpt2_from_scratch.classifier.tasks.task import Batch
from gpt2_from_scratch.classifier.train import finetune, loss_and_scores, to_labelled
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

TASK = TASKS["regression"]
HEAD = HeadConfig(task="regression", labels=("a", "b"), center=(10.0, -1), scale=(4.0, 0.5))
NONE = (None, None, None)


def test_targets_are_in_the_heads_units(tiny_checkpoint: Path) -> None:
    pairs = ("x", (10.0, 0)), ("y", None), ("z", (np.float32(2), -1.5))
    found, _ = targets_of(Tokenizer(tiny_checkpoint), HEAD, *pairs)
    expected = [[0, 2], [np.nan, np.nan], [-2, -1]]
    np.testing.assert_equal(found.values.numpy(), np.array(expected, dtype=np.float32))
    assert found.weights.tolist() == [1, 0, 1]


def test_one_value_needs_no_tuple(tiny_checkpoint: Path) -> None:
    head = HeadConfig(task="regression", labels=("stars",))
    pairs = ("x", 4), ("y", (2.5,)), ("z", -1e30)
    found, _ = targets_of(Tokenizer(tiny_checkpoint), head, *pairs)
    np.testing.assert_allclose(found.values.numpy(), [[4], [2.5], [-1e30]], rtol=1e-6)


@pytest.mark.parametrize(
    "label, fact",
    [
        (1.0, r"1 values \(1.0,\).*a, b"),
        ((1.0, 2.0, 3.0), "3 values"),
        ((1.0, "2"), "'2'"),
        ((1.0, None), "None"),
        ((1.0, float("nan")), "nan"),
        ((float("-inf"), 1.0), "-inf"),
        ((10**400, 1.0), "1000"),
        ((1e300, 1.0), "1e.300"),
    ],
)
def test_other_labels_are_refused(tiny_checkpoint: Path, label: object, fact: str) -> None:
    with pytest.raises(DataError, match=fact):
        targets_of(Tokenizer(tiny_checkpoint), HEAD, ("the cat", label))


def test_the_loss_is_torchs() -> None:
    head = HeadConfig(task="regression", labels=("a", "b", "c"))
    outputs, targets = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    found = TASK.loss_sum(head, outputs, targets, torch.ones(5)) / 5
    torch.testing.assert_close(found, torch.nn.MSELoss()(outputs, targets), atol=1e-5, rtol=1e-5)
    correct = TASK.correct_sum(head, outputs, targets, torch.ones(5)) / 5
    assert correct == pytest.approx(1 - float(F.mse_loss(outputs, targets)), abs=1e-5)


def test_values_keep_the_digits_of_their_unit(tiny_checkpoint: Path) -> None:
    """float32 has no value between 1,700,000,000 and 1,700,000,128."""
    head = HeadConfig("when", "regression", labels=("s",), center=(1.7e9,), scale=(10.0,))
    batch = Batch(["a", "b"], [[1], [1]], Tokenizer(tiny_checkpoint))
    found = TASK.answers(head, torch.tensor([[0.5], [-2.0]]), batch)
    assert [answer.values["s"] for answer in found] == [1700000005.0, 1699999980.0]
    assert Values({"s": 1700000005.0, "m": 28.77985954}).as_row() == ["1700000005", "28.77985954"]
    assert Values({"s": 0.5, "m": 1e7}).in_words() == "s 0.5, m 1e+07"


# --- scores ---


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_scipys_and_scikit_learns(seed):
    """The second value has many ties; the third is far from 0 and varies little."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(50, 3)) * [1, 1.5, 300] + [0, 3, 1000]
    true[:, 1] = true[:, 1].round()
    predicted = true + rng.normal(size=(50, 3)) * [0.3, 1, 500]
    predicted[:, 1] = predicted[:, 1].round()
    found = regression_scores(true, predicted, ["a", "b", "c"])
    for value, name, *pair in zip(found.values, "abc", true.T, predicted.T, strict=True):
        expected = (
            name,
            scipy.stats.pearsonr(*pair).statistic,
            scipy.stats.spearmanr(*pair).statistic,
            sklearn.metrics.r2_score(*pair),
            sklearn.metrics.root_mean_squared_error(*pair),
            sklearn.metrics.mean_absolute_error(*pair),
        )
        assert value.name == expected[0]
        np.testing.assert_allclose(
            [value.pearson, value.spearman, value.r2, value.rmse, value.mae],
            expected[1:],
            atol=1e-9,
        )
    assert found.mean_r2 == pytest.approx(sklearn.metrics.r2_score(true, predicted), abs=1e-9)
    assert found.values[2].r2 < 0, "one that is worse than answering the mean"
    assert (found.main, found.measure, found.total) == (found.mean_r2, "mean R2", 50)


def test_numbers_by_hand():
    found = regression_scores(
        np.array([[1.0], [2], [2], [3]]), np.array([[2.0], [1], [1], [5]]), "y"
    )
    (value,) = found.values
    assert value.spearman == pytest.approx(1 / 3)  # the ranks are 1 2.5 2.5 4 and 3 1.5 1.5 4
    assert (value.r2, value.mae) == (1 - 7 / 2, 5 / 4)
    assert value.rmse == pytest.approx(math.sqrt(7 / 4))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9 + 0.1, -7.3])  # the mean of 7 × 0.1 is not 0.1
def test_constants_leave_correlations_undefined(constant):
    some, same = np.arange(7.0)[:, None] / 3, np.full((7, 1), constant)
    (value,) = regression_scores(some, same, "y").values
    assert (value.pearson, value.spearman) == (None, None)
    assert value.r2 == pytest.approx(sklearn.metrics.r2_score(some, same)) and value.r2 <= 0
    found = regression_scores(same, some, "y")
    (value,) = found.values
    assert (value.pearson, value.spearman, value.r2) == NONE
    assert value.mae == pytest.approx(np.abs(some - constant).mean())
    assert (found.mean_r2, found.main) == (None, 0)
    both = regression_scores(np.hstack([same, some]), np.hstack([some, some]), ["x", "y"])
    assert both.mean_r2 == both.main == 1, "the mean of those that have one"
    (one,) = regression_scores(some[:1], some[:1], "y").values
    assert (one.pearson, one.r2, one.rmse) == (None, None, 0)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_values_that_are_not_numbers_are_refused(odd):
    good, bad = np.zeros((3, 2)), np.zeros((3, 2))
    bad[1, 1] = odd
    with pytest.raises(DataError, match="text 1.*predicted"):
        regression_scores(good, bad, "ab")
    with pytest.raises(DataError, match="text 1.*true"):
        regression_scores(bad, good, "ab")


def test_scores_as_a_table() -> None:
    true = np.array([[1.0, 5], [2, 5], [3, 5]])
    predicted = np.array([[1.5, 5], [2, 6], [3, 123456]])
    found = regression_scores(true, predicted, ["age", "income"])
    assert found.as_table().splitlines() == [
        "mean R2 0.8750  (3 texts)",
        "",
        "value      Pearson    Spearman      R2       RMSE        MAE",
        "age         0.9820      1.0000  0.8750     0.2887     0.1667",
        "income           -           -       -  7.127e+04  4.115e+04",
    ]
    assert next(iter(found.as_json().items())) == ("mean_r2", 0.875)


# --- learned ---


@pytest.mark.slow
def test_numbers_are_learned(tmp_path: Path) -> None:
    """It counts the things in a list, two values at once, much better than the mean does."""
    draw = random.Random(1)
    things = "kettle ladder garden window ticket basket hammer candle mirror bottle".split()
    messages = []
    for name in 20 * "Anna Tom Maria Henry Julia Oscar Peter Wanda Olga Felix Ruth Alice".split():
        some = draw.choices(things, k=draw.randint(1, 12))
        values = float(len(some)), 250.0 * len(some) + 1e6
        messages.append(Message(f"{name} bought " + ", ".join(some), values))
    split = Split(messages[:168], messages[168:192], messages[192:])
    settings = HeadSettings(task="regression", labels="things,cost", layer=3, pooling="mean")
    head = settings.head_config([], split.train, 256)
    classifier = Classifier.on_base("mini", heads=[head])
    finetune(classifier, split, TrainConfig(epochs=6, lr=2e-3), tmp_path)
    scores = loss_and_scores(classifier, to_labelled(classifier, split.test))[1]["label"]
    assert scores.mean_r2 > 0.8 and scores.total == 48
    [found] = classifier.predict(["Tom bought " + ", ".join(things[:6])])
    assert abs(found.answer.values["things"] - 6) < 3
    assert abs(found.answer.values["cost"] - 1e6 - 1500) < 750
