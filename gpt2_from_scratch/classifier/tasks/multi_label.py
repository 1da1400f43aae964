"""Any of K labels per text. B texts in a batch, N texts in all."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.task import (
    LONGEST,
    Answer,
    Batch,
    Encoded,
    Scores,
    Targets,
    Task,
    by_label,
    class_number,
    class_table,
    has_target,
    label_for,
    labelled_only,
    percent,
    probabilities_in_words,
    proportion_in_words,
)
from gpt2_from_scratch.data.messages import Message, short
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import ClassScores, macro_f1, several, wilson_interval
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer


@dataclass(frozen=True)
class Labels(Answer):
    """The labels whose probability is above their threshold, and the probability of each label."""

    labels: list[str]
    probabilities: dict[str, float]

    def in_words(self) -> str:
        """Format the labels ("-" if there are none) and the probabilities."""
        chosen = ", ".join(short(label, LONGEST) for label in self.labels) or "-"
        return f"{chosen}  ({probabilities_in_words(self.probabilities)})"

    def as_row(self) -> list[str]:
        """Return the labels, separated by bars, and each probability."""
        return ["|".join(self.labels), *(f"{p:.6f}" for p in self.probabilities.values())]


@dataclass(frozen=True)
class MultiLabelScores(Scores):
    """The scores of predicted label sets."""

    measure: ClassVar[str] = "micro F1"
    exact: int  # texts whose set of labels is exactly correct
    total: int
    interval: tuple[float, float]  # 95% Wilson interval of exact / total
    micro_f1: float | None  # over all N × K decisions
    macro_f1: float | None  # mean over the labels that have an F1
    classes: list[ClassScores]
    # {label: the probability above which it is predicted}; empty: 0.5 for every label
    thresholds: dict[str, float] = field(default_factory=dict)

    @property
    def main(self) -> float:
        """Micro F1."""
        return self.micro_f1 or 0.0

    def as_table(self) -> str:
        """Format the F1s, the proportion of exact sets, and each label's scores and threshold."""
        exact = proportion_in_words("exact match", self.exact, self.total, self.interval)
        f1s = f"micro F1 {percent(self.micro_f1)}, macro F1 {percent(self.macro_f1)}"
        table = class_table(self.classes, "label", "texts", thresholds=self.thresholds)
        return f"{f1s}\n{exact}\n\n{table}"


class MultiLabel(Task):
    """Choose any of K labels, each with its own sigmoid."""

    def targets(
        self, head: HeadConfig, messages: Sequence[Message], encoded: Encoded, tokenizer: Tokenizer
    ) -> Targets:
        """Mark each message's labels with 1: (N, K) float32, NaN for a message without a label."""
        values = torch.full((len(messages), len(head.labels)), torch.nan)
        for row, message in zip(values, messages, strict=True):
            labels = label_for(head, message)
            if labels is None:
                continue
            # a string would be read as a sequence of letters
            if not isinstance(labels, (tuple, list)):
                raise DataError(
                    f"{labels!r:.80} must be a tuple of labels from {several(head.labels)}"
                )
            row.fill_(0.0)
            row[[class_number(head, label) for label in labels]] = 1.0
        known = has_target(values).float()
        return Targets(values, known, known)

    def loss_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> Tensor:
        """Sum each text's mean binary cross-entropy over the labels: outputs and targets (B, K)."""
        known = has_target(targets)
        soft = targets[known] * (1 - head.label_smoothing) + head.label_smoothing / 2
        positive = outputs.new_tensor(head.class_weights) if head.class_weights else None
        losses = F.binary_cross_entropy_with_logits(
            outputs[known], soft, pos_weight=positive, reduction="sum"
        )
        return losses / len(head.labels)

    def correct_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> float:
        """Sum each text's proportion of labels that are correct."""
        known = has_target(targets)
        limits = torch.tensor(thresholds_of(head), dtype=torch.float64).logit().to(outputs)
        return float(((outputs > limits) == (targets > 0.5))[known].float().mean(dim=1).sum())

    def answers(self, head: HeadConfig, outputs: Tensor, batch: Batch) -> list[Labels]:
        """Choose the labels of each text: outputs (B, K)."""
        rows = label_probabilities(outputs)
        chosen = [np.flatnonzero(marks) for marks in rows > thresholds_of(head)]
        return [
            Labels([head.labels[k] for k in numbers], by_label(head, row))
            for row, numbers in zip(rows, chosen, strict=True)
        ]

    def scores(
        self, head: HeadConfig, labels: Sequence[Any], answers: Sequence[Any], texts: Sequence[str]
    ) -> MultiLabelScores:
        """Compare the sets of labels."""
        labels, answers = labelled_only(labels, answers)
        true, predicted = (
            np.array([[name in chosen for name in head.labels] for chosen in sets], dtype=bool)
            for sets in (labels, [answer.labels for answer in answers])
        )
        thresholds = dict(zip(head.labels, head.thresholds, strict=False))  # none: all are 0.5
        return replace(multi_label_scores(true, predicted, head.labels), thresholds=thresholds)

    def answer_of(self, head: HeadConfig, text: str, label: Any) -> Labels:
        """Choose exactly these labels, without probabilities."""
        return Labels([*label], {})

    def evidence(self, head: HeadConfig, outputs: Tensor, number: int) -> Tensor:
        """Return the log odds of a label, which is its logit: (B, K) -> (B,)."""
        return outputs[:, number]

    def columns(self, head: HeadConfig) -> list[str]:
        """The names of the columns: "label" for the chosen labels, then each label."""
        return ["label", *head.labels]


def label_probabilities(outputs: Tensor) -> np.ndarray:
    """Return the probability of each label, in float64: outputs (N, K) -> (N, K)."""
    return outputs.float().sigmoid().cpu().numpy().astype(np.float64)


def thresholds_of(head: HeadConfig) -> tuple[float, ...]:
    """The probability above which each label is chosen, by default 0.5."""
    return head.thresholds or (0.5,) * len(head.labels)


def multi_label_scores(
    true: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> MultiLabelScores:
    """Score sets of labels: true and predicted (N, K) bool."""
    classes = [_label_scores(label, true[:, k], predicted[:, k]) for k, label in enumerate(labels)]
    exact, total = int((true == predicted).all(axis=1).sum()), len(true)
    return MultiLabelScores(
        exact,
        total,
        wilson_interval(exact, total),
        micro_f1=_label_scores("all", true.ravel(), predicted.ravel()).f1,
        macro_f1=macro_f1(classes),
        classes=classes,
    )


def _label_scores(label: str, true: np.ndarray, predicted: np.ndarray) -> ClassScores:
    """The scores of one yes-or-no decision: true and predicted (N,) bool."""
    from sklearn.metrics import precision_recall_fscore_support

    found = precision_recall_fscore_support(true, predicted, average="binary", zero_division=np.nan)
    precision, recall, f1 = (None if np.isnan(score) else float(score) for score in found[:3])
    return ClassScores(label, precision, recall, f1, int(true.sum()))
