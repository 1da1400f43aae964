"""Classification, from labels to scores, compared with torch's means and by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from task_targets import targets_of

from gpt2_from_scratch.classifier.classifier import Prediction
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.classification import Choice
from gpt2_from_scratch.classifier.tasks.multi_label import Labels
from gpt2_from_scratch.classifier.tasks.task import IGNORED, Batch
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import format_evaluation
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

TASK = TASKS["classification"]
LABELS = ("ham", "other", "spam")
WEIGHTS = (0.3, 1.0, 2.5)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- targets ---


def test_classes_are_numbers_weighted_by_their_class(tiny_checkpoint: Path) -> None:
    head = HeadConfig(labels=LABELS, class_weights=(0.5, 1, 3))
    pairs = ("x", "spam"), ("y", None), ("z", "ham"), ("", "spam")
    found, _ = targets_of(Tokenizer(tiny_checkpoint), head, *pairs)
    assert isinstance(found.values, torch.Tensor)
    assert found.values.tolist() == [2, IGNORED, 0, 2] and found.values.dtype == torch.int64
    assert found.weights.tolist() == [3, 0, 0.5, 3]
    assert found.counts.tolist() == [1, 0, 1, 1]
    assert found.batch([3, 1]).tolist() == [2, IGNORED]


@pytest.mark.parametrize("label", ["Ham", ("ham",), 0])
def test_an_unknown_label_is_refused(tiny_checkpoint: Path, label: object) -> None:
    with pytest.raises(DataError, match=re.escape(repr(label)) + ".*ham"):
        targets_of(Tokenizer(tiny_checkpoint), HeadConfig(labels=LABELS), ("the cat", label))


# --- loss ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "weights, smoothing", [((), 0.0), (WEIGHTS, 0.0), ((), 0.2), (WEIGHTS, 0.2)]
)
def test_the_loss_is_torchs_mean_times_the_weights(
    weights: tuple[float, ...], smoothing: float
) -> None:
    head = HeadConfig(labels=LABELS, class_weights=weights, label_smoothing=smoothing)
    outputs, targets = random(6, 3), torch.tensor([0, IGNORED, 2, 1, 2, IGNORED])
    weight = torch.tensor(weights) if weights else None
    expected = F.cross_entropy(outputs, targets, label_smoothing=smoothing, weight=weight)
    divisor = torch.tensor(weights or (1.0,) * 3)[targets[targets != IGNORED]].sum()
    total = TASK.loss_sum(head, outputs, targets, torch.ones(6))
    torch.testing.assert_close(total / divisor, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights, smoothing", [((), 0.0), ((0.5, 3), 0.0), ((0.5, 3), 0.2)])
def test_one_output_is_binary_cross_entropy(weights: tuple[float, ...], smoothing: float) -> None:
    head = HeadConfig(
        labels=("no", "yes"), one_output=True, class_weights=weights, label_smoothing=smoothing
    )
    z, targets = random(5, 1), torch.tensor([0, 1, 1, IGNORED, 0])
    known = targets != IGNORED
    losses = F.binary_cross_entropy_with_logits(
        z[known, 0], targets[known] * (1 - smoothing) + smoothing / 2, reduction="none"
    )
    if not weights:
        torch.testing.assert_close(
            TASK.loss_sum(head, z, targets, torch.ones(5)), losses.sum(), atol=1e-5, rtol=1e-5
        )
    else:  # both terms of the loss have their class's weight
        yes = (targets[known] * (1 - smoothing) + smoothing / 2) * weights[1]
        no = ((1 - targets[known]) * (1 - smoothing) + smoothing / 2) * weights[0]
        expected = -(yes * z[known, 0].sigmoid().log() + no * (-z[known, 0]).sigmoid().log())
        torch.testing.assert_close(
            TASK.loss_sum(head, z, targets, torch.ones(5)), expected.sum(), atol=1e-5, rtol=1e-5
        )
    assert TASK.correct_sum(head, z, targets, torch.ones(5)) == int(
        ((z[known, 0] > 0) == targets[known]).sum()
    )


def test_correct_answers_are_counted() -> None:
    outputs = torch.tensor([[1.0, 2, 0], [0, 0, 5], [9, 0, 0], [0, 9, 0]])
    targets = torch.tensor([1, 2, 1, IGNORED])
    assert TASK.correct_sum(HeadConfig(labels=LABELS), outputs, targets, torch.ones(4)) == 2


# --- answers and scores ---


def test_answers_are_probabilities_at_the_temperature(tiny_checkpoint: Path) -> None:
    head = HeadConfig(labels=("no", "yes"), one_output=True, temperature=2.0)
    batch = Batch(["a", "b"], [[1], [2]], Tokenizer(tiny_checkpoint))
    one, other = TASK.answers(head, torch.tensor([[3.0], [-1.0]]), batch)
    assert (one.label, other.label) == ("yes", "no")
    assert one.probabilities["yes"] == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-7)
    assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-15)
    assert one.as_dict() == {"label": "yes", "probabilities": one.probabilities}
    assert one.in_words() == "yes  (no 0.182, yes 0.818)"
    assert one.as_row() == ["yes", "0.182426", "0.817574"]
    assert TASK.columns(head) == ["label", "no", "yes"]


def test_a_label_is_chosen_at_its_threshold() -> None:
    probabilities = {"ham": 0.3, "spam": 0.5, "ads": 0.2}
    found = Prediction({"label": Choice("spam", probabilities)}, 3, False, False, False)
    assert found.at_threshold("spam", 0.5).label == "spam"
    assert found.at_threshold("spam", 0.51).label == "ham"
    assert found.at_threshold("ads", 0.1).label == "ads"
    assert found.at_threshold("ads", 0.9).probabilities == probabilities
    assert found.label == "spam"


def test_scores_compare_labels_with_answers() -> None:
    """A text without a label is left out."""
    head = HeadConfig(labels=("ham", "spam"))
    labels = ["ham", None, "ham", "ham", "spam"]
    found = TASK.scores(head, labels, [Choice("ham", {})] * 5, [""] * 5)
    assert (found.correct, found.total, found.confusion) == (3, 4, [[3, 0], [1, 0]])
    assert (found.main, found.measure) == (0.75, "accuracy")
    assert found.as_table() == format_evaluation(found)
    assert next(iter(found.as_json().items())) == ("accuracy", 0.75)


def test_an_answer_in_words_is_always_one_line():
    odd = {"a\nb": 0.25, "x" * 100_000: 0.75}
    said = Choice("x" * 100_000, odd).in_words()
    assert "a b 0.250" in said and "\n" not in said and len(said) < 300
    assert "c d" in Labels(["c\nd"], odd).in_words() and len(Labels([*odd], odd).in_words()) < 400
