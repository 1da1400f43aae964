"""Classification, the lecture's task: one class per text.

B texts in a batch, N texts in all, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.task import (
    IGNORED,
    LONGEST,
    Answer,
    Batch,
    Encoded,
    Targets,
    Task,
    by_label,
    class_number,
    label_for,
    labelled_only,
    probabilities_in_words,
)
from gpt2_from_scratch.data.messages import Message, short
from gpt2_from_scratch.evaluation.metrics import Evaluation, evaluate_predictions
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer


@dataclass(frozen=True)
class Choice(Answer):
    """One label, and the probability of each label; the probabilities sum to 1."""

    label: str
    probabilities: dict[str, float]

    def in_words(self) -> str:
        """Format the label and the probabilities."""
        return f"{short(self.label, LONGEST)}  ({probabilities_in_words(self.probabilities)})"

    def as_row(self) -> list[str]:
        """Return the label and each probability."""
        return [self.label, *(f"{p:.6f}" for p in self.probabilities.values())]

    def at_threshold(self, label: str, threshold: float) -> "Choice":
        """Choose `label` if its probability is at least `threshold`, else the best other label."""
        if self.probabilities[label] >= threshold:
            return replace(self, label=label)
        others = {name: p for name, p in self.probabilities.items() if name != label}
        return replace(self, label=max(others, key=others.__getitem__))


class Classification(Task):
    """Choose one of K classes."""

    def targets(
        self, head: HeadConfig, messages: Sequence[Message], encoded: Encoded, tokenizer: Tokenizer
    ) -> Targets:
        """Convert each label to its class number: (N,) int64, IGNORED for a message without one."""
        labels = [label_for(head, message) for message in messages]
        numbers = [IGNORED if label is None else class_number(head, label) for label in labels]
        return weighted_targets(head, torch.tensor(numbers, dtype=torch.int64))

    def loss_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> Tensor:
        """Sum the cross-entropies: outputs (B, K), targets (B,).

        For a task that chooses a class for each token: outputs (B, T, K), targets (B, T).
        """
        return F.cross_entropy(
            logit_per_class(head, outputs).flatten(0, -2),
            targets.flatten(),
            weight=outputs.new_tensor(head.class_weights) if head.class_weights else None,
            ignore_index=IGNORED,
            label_smoothing=head.label_smoothing,
            reduction="sum",
        )

    def correct_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> float:
        """Count the texts, or tokens, whose most probable class is the target."""
        return float((logit_per_class(head, outputs).argmax(dim=-1) == targets).sum())

    def answers(self, head: HeadConfig, outputs: Tensor, batch: Batch) -> list[Choice]:
        """Choose the most probable class of each text: outputs (B, K)."""
        rows = probabilities_of(logit_per_class(head, outputs.float()) / head.temperature)
        return [Choice(head.labels[int(row.argmax())], by_label(head, row)) for row in rows]

    def scores(
        self, head: HeadConfig, labels: Sequence[Any], answers: Sequence[Any], texts: Sequence[str]
    ) -> Evaluation:
        """Compute accuracy, precision, recall, F1 and the confusion matrix."""
        labels, answers = labelled_only(labels, answers)
        true = np.array([class_number(head, label) for label in labels])
        predicted = np.array([class_number(head, answer.label) for answer in answers])
        return evaluate_predictions(true, predicted, list(head.labels))

    def evidence(self, head: HeadConfig, outputs: Tensor, number: int) -> Tensor:
        """Return the log odds of a class, log(p / (1 - p)): (B, K) -> (B,).

        For two classes this is the difference between their logits, divided by the temperature.
        """
        logits = logit_per_class(head, outputs) / head.temperature
        others = torch.cat([logits[:, :number], logits[:, number + 1 :]], dim=1)
        return logits[:, number] - others.logsumexp(dim=1)

    def columns(self, head: HeadConfig) -> list[str]:
        """The names of the columns: "label", then each label."""
        return ["label", *head.labels]


def logit_per_class(head: HeadConfig, outputs: Tensor) -> Tensor:
    """Return one logit per class. One output z with a sigmoid is the same as logits 0 and z."""
    return F.pad(outputs, (1, 0)) if head.one_output else outputs


def probabilities_of(logits: Tensor) -> np.ndarray:
    """Apply softmax over the last dimension, and normalise the rows to a sum of 1 in float64."""
    p = logits.softmax(dim=-1).cpu().numpy().astype(np.float64)
    return p / p.sum(axis=-1, keepdims=True)


def weighted_targets(head: HeadConfig, values: Tensor | list[Tensor]) -> Targets:
    """Make targets of class numbers, one per text or one per token.

    `weights` is the sum of the class weights by which `loss_sum` multiplies a text's
    cross-entropies.
    """
    flat = [value.reshape(-1) for value in values]
    known = [numbers[numbers != IGNORED] for numbers in flat]
    counts = torch.tensor([float(len(numbers)) for numbers in known])
    if not head.class_weights:
        return Targets(values, weights=counts, counts=counts)
    weight = torch.tensor(head.class_weights)
    weights = torch.tensor([float(weight[numbers].sum()) for numbers in known])
    return Targets(values, weights=weights, counts=counts)
