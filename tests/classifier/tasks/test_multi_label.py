"""Multi-label classification, compared with torch, scikit-learn and by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from task_targets import targets_of

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.multi_label import Labels, multi_label_scores
from gpt2_from_scratch.classifier.tasks.task import Batch
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

TASK = TASKS["multi-label"]
LABELS = ("ham", "other", "spam")
HEAD = HeadConfig(task="multi-label", labels=LABELS)
NONE = (None, None, None)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_targets_are_zeros_and_ones(tiny_checkpoint: Path) -> None:
    pairs = [("x", ("spam", "ham")), ("y", ()), ("z", None), ("w", ["other", "other"])]
    found, _ = targets_of(Tokenizer(tiny_checkpoint), HEAD, *pairs)
    expected = [[1, 0, 1], [0, 0, 0], [np.nan] * 3, [0, 1, 0]]
    np.testing.assert_equal(found.values.numpy(), np.array(expected, dtype=np.float32))
    assert found.weights.tolist() == found.counts.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(
    "label, fact",
    [(("ham", "eggs"), "'eggs'"), (("ham", None), "None"), ("ham", "'ham'"), (3, "3")],
)
def test_other_labels_are_refused(tiny_checkpoint: Path, label: object, fact: str) -> None:
    with pytest.raises(DataError, match=rf"{fact}.*ham, other, spam"):
        targets_of(Tokenizer(tiny_checkpoint), HEAD, ("the cat", label))


@pytest.mark.parametrize("weights", [(), (0.3, 1.0, 2.5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs(weights: tuple[float, ...], smoothing: float) -> None:
    """Class weights correspond to torch's pos_weight: they apply to labels that are present."""
    head = HeadConfig(
        task="multi-label", labels=LABELS, class_weights=weights, label_smoothing=smoothing
    )
    outputs, targets = random(5, 3), (random(5, 3, seed=1) > 0).float()
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights) if weights else None)
    expected = loss(outputs, targets * (1 - smoothing) + smoothing / 2)
    found = TASK.loss_sum(head, outputs, targets, torch.ones(5)) / 5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    right = ((outputs > 0) == (targets > 0)).float().mean()
    assert TASK.correct_sum(head, outputs, targets, torch.ones(5)) / 5 == pytest.approx(
        float(right)
    )


def test_each_label_has_its_threshold(tiny_checkpoint: Path) -> None:
    """Probabilities: 0.5 for the output 0, 0.731 for 1, 0.269 for -1."""
    head = replace(HEAD, thresholds=(0.5, 0.75, 0.2))
    outputs = torch.tensor([[0.0, 1.0, -1.0], [1.0, 2.0, -2.0], [1e-3, 1.0986, 1.0986]])
    batch = Batch([""] * 3, [[]] * 3, Tokenizer(tiny_checkpoint))
    found = [answer.labels for answer in TASK.answers(head, outputs, batch)]
    assert found == [["spam"], ["ham", "other"], ["ham", "spam"]]
    plain = [answer.labels for answer in TASK.answers(HEAD, outputs, batch)]
    assert plain == [["other"], ["ham", "other"], ["ham", "other", "spam"]]
    targets = torch.zeros(3, 3)
    chosen = np.array([[name in labels for name in LABELS] for labels in found])
    correct = TASK.correct_sum(head, outputs, targets, torch.ones(3))
    assert correct == pytest.approx((~chosen).mean(axis=1).sum())


# --- scores ---


def row(scores):
    return scores.precision, scores.recall, scores.f1, scores.support


def table(classes):
    """In scikit-learn's format: (4, K), with nan instead of None."""
    return np.array([[math.nan if x is None else x for x in row(s)] for s in classes]).T


def random_sets(seed, N=60, K=4):
    rng = np.random.default_rng(seed)
    true = rng.random((N, K)) < rng.random(K)
    return true, np.where(rng.random((N, K)) < 0.7, true, rng.random((N, K)) < 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_sets_of_labels_are_scikit_learns(seed):
    true, predicted = random_sets(seed)
    found = multi_label_scores(true, predicted, "abcd")
    undefined = {"zero_division": np.nan}
    expected = sklearn.metrics.precision_recall_fscore_support(true, predicted, **undefined)
    np.testing.assert_allclose(table(found.classes), np.array(expected), atol=1e-12)
    assert [s.label for s in found.classes] == list("abcd")
    for average in ("micro", "macro"):
        f1 = sklearn.metrics.f1_score(true, predicted, average=average, **undefined)
        assert getattr(found, f"{average}_f1") == pytest.approx(f1, abs=1e-12)
    assert found.exact == sklearn.metrics.accuracy_score(true, predicted, normalize=False)
    assert found.total == 60 and found.interval == wilson_interval(found.exact, 60)
    assert (found.main, found.measure) == (found.micro_f1, "micro F1")


def test_labels_without_an_f1():
    """Label b never occurs and is never predicted, so the mean excludes it (zero_division=nan)."""
    true = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0]], dtype=bool)
    predicted = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=bool)
    found = multi_label_scores(true, predicted, ["a", "b", "c"])
    assert [row(s) for s in found.classes] == [(1, 0.5, 2 / 3, 2), (*NONE, 0), (0, 0, 0, 1)]
    macro = sklearn.metrics.f1_score(true, predicted, average="macro", zero_division=np.nan)
    assert found.macro_f1 == pytest.approx(macro, abs=1e-12) == pytest.approx(1 / 3)
    assert (found.exact, found.micro_f1) == (1, 2 / 5)
    nothing = multi_label_scores(true & False, true & False, ["a", "b", "c"])
    assert (nothing.micro_f1, nothing.macro_f1, nothing.main, nothing.exact) == (None, None, 0, 3)


def test_one_label_alone_is_a_column() -> None:
    """scikit-learn would treat (N, 1) as two classes."""
    true = np.array([[True], [False], [True]])
    found = multi_label_scores(true, np.array([[True], [True], [False]]), ["a"])
    assert [row(s) for s in found.classes] == [(0.5, 0.5, 0.5, 2)] and found.exact == 1


def test_scores_as_a_table_and_as_json() -> None:
    labels = [("politics",), ("politics", "sport"), (), ("politics",), None]
    answers = [["politics"], ["politics"], [], ["sport"], ["weather"]]
    head = HeadConfig(task="multi-label", labels=("politics", "sport", "weather"))
    found = TASK.scores(head, labels, [Labels(names, {}) for names in answers], [""] * 5)
    assert found.as_table().splitlines() == [
        "micro F1 57.14%, macro F1 40.00%",
        "exact match 50.00%  (2 of 4; 95% interval 15.0% to 85.0%)",
        "",
        "label       precision    recall      F1    texts",
        "politics      100.00%    66.67%  80.00%        3",
        "sport           0.00%     0.00%   0.00%        1",
        "weather             -         -       -        0",
    ]
    assert next(iter(found.as_json().items())) == ("micro_f1", pytest.approx(4 / 7))
    head = replace(head, thresholds=(0.25, 0.5, 0.125))
    found = TASK.scores(head, labels, [Labels(names, {}) for names in answers], [""] * 5)
    assert found.as_json()["thresholds"] == {"politics": 0.25, "sport": 0.5, "weather": 0.125}
    assert [line.split()[-1] for line in found.as_table().splitlines()[3:]] == [
        "threshold",
        "0.250",
        "0.500",
        "0.125",
    ]
    one = Labels(["politics"], {"politics": 0.75, "sport": 0.25})
    assert one.in_words() == "politics  (politics 0.750, sport 0.250)"
    assert Labels([], {}).in_words().startswith("-")
    assert Labels(["a", "b"], {"a": 0.9, "b": 0.6}).as_row() == ["a|b", "0.900000", "0.600000"]
