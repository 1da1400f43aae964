"""K numbers per text. B texts in a batch, N texts in all.

The head's outputs are standardised: 1.0 means `center` + `scale`, in the units of the data.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.task import (
    Answer,
    Batch,
    Encoded,
    Scores,
    Targets,
    Task,
    by_label,
    has_target,
    label_for,
    labelled_only,
    number,
    table,
)
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import several
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer


@dataclass(frozen=True)
class Values(Answer):
    """The predicted values, in the units of the training data."""

    values: dict[str, float]

    def in_words(self) -> str:
        """Format each value with its name."""
        return ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())

    def as_row(self) -> list[str]:
        """Return each value."""
        return [f"{value:.12g}" for value in self.values.values()]


@dataclass(frozen=True)
class ValueScores:
    """The scores of one predicted value. A score is None if constant values leave it undefined."""

    name: str
    pearson: float | None
    spearman: float | None
    r2: float | None  # 1 - sum of squared errors / sum of squared distances from the mean
    rmse: float  # in the value's unit
    mae: float  # in the value's unit


@dataclass(frozen=True)
class RegressionScores(Scores):
    """The scores of predicted values."""

    measure: ClassVar[str] = "mean R2"
    places: ClassVar[str] = "texts"  # what `total` counts
    total: int
    mean_r2: float | None  # mean over the values for which it is defined
    values: list[ValueScores]

    @property
    def main(self) -> float:
        """Mean R2; 0 if it is undefined for all values. Always answering the mean also scores 0."""
        return self.mean_r2 or 0.0

    @property
    def main_in_words(self) -> str:
        """Format the mean R2, which is negative for answers worse than the mean."""
        return f"{self.main:z.3f}"  # z: never "-0.000"

    def as_table(self) -> str:
        """Format the mean R2 and each value's scores."""
        rows = [
            [v.name, number(v.pearson), number(v.spearman), number(v.r2)]
            + [f"{v.rmse:.4g}", f"{v.mae:.4g}"]
            for v in self.values
        ]
        headers = ["value", "Pearson", "Spearman", "R2", "RMSE", "MAE"]
        return (
            f"{self.measure} {number(self.mean_r2)}  ({self.total} {self.places})\n\n"
            f"{table(rows, headers)}"
        )


class Regression(Task):
    """Predict K numbers."""

    def targets(
        self, head: HeadConfig, messages: Sequence[Message], encoded: Encoded, tokenizer: Tokenizer
    ) -> Targets:
        """Standardise each message's values: (N, K) float32, NaN for a message without a label."""
        center = head.center or (0.0,) * len(head.labels)
        scale = head.scale or (1.0,) * len(head.labels)
        rows = []
        for label in (label_for(head, message) for message in messages):
            if label is None:
                rows.append([math.nan] * len(head.labels))
                continue
            given = label if isinstance(label, tuple) else (label,)
            if len(given) != len(head.labels):
                raise DataError(f"{len(given)} values {given}; the head has {several(head.labels)}")
            rows.append([standardised(*each) for each in zip(given, center, scale, strict=True)])
        values = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(head.labels))
        known = has_target(values).float()
        return Targets(values, known, known)

    def loss_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> Tensor:
        """Sum each text's mean squared error over the values: outputs and targets (B, K)."""
        known = has_target(targets)
        return F.mse_loss(outputs[known], targets[known], reduction="sum") / len(head.labels)

    def correct_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> float:
        """Sum each text's mean of 1 - squared error over the values.

        The training targets have variance 1, so the mean is the proportion of variance explained.
        """
        known = has_target(targets)
        return float((1 - (outputs - targets)[known] ** 2).mean(dim=1).sum())

    def answers(self, head: HeadConfig, outputs: Tensor, batch: Batch) -> list[Values]:
        """Convert the outputs (B, K) into the units of the data."""
        # float64, because float32 rounds dates in seconds (1.7e9) to multiples of 128
        values = outputs.float().cpu().numpy().astype(np.float64)
        values = values * (head.scale or 1.0) + (head.center or 0.0)
        return [Values(by_label(head, row)) for row in values]

    def scores(
        self, head: HeadConfig, labels: Sequence[Any], answers: Sequence[Any], texts: Sequence[str]
    ) -> RegressionScores:
        """Compare the values in their own units."""
        labels, answers = labelled_only(labels, answers)
        true = np.array([np.atleast_1d(label) for label in labels], dtype=float)
        predicted = np.array([[a.values[name] for name in head.labels] for a in answers])
        return regression_scores(true, predicted, head.labels)

    def answer_of(self, head: HeadConfig, text: str, label: Any) -> Values:
        """Name the values."""
        return Values(by_label(head, np.atleast_1d(label)))

    def evidence(self, head: HeadConfig, outputs: Tensor, number: int) -> Tensor:
        """Return a value in its own unit: (B, K) -> (B,)."""
        scale = head.scale[number] if head.scale else 1.0
        center = head.center[number] if head.center else 0.0
        return outputs[:, number] * scale + center

    def columns(self, head: HeadConfig) -> list[str]:
        """The names of the values."""
        return [*head.labels]


def standardised(value: Any, center: float, scale: float) -> float:
    """Return the value in units of `scale`, from `center`. Raises DataError if it is not one."""
    if isinstance(value, Real):  # excludes strings and None
        with suppress(OverflowError):
            found = (float(value) - center) / scale
            if abs(found) < torch.finfo(torch.float32).max:
                return found
    raise DataError(f"the value {value!r:.80} is not a number, or is too large for training")


def regression_scores(
    true: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> RegressionScores:
    """Score values: true and predicted (N, K). Raises DataError for a value that is not finite."""
    for what, given in (("true", true), ("predicted", predicted)):
        finite = np.isfinite(given).all(axis=1)  # (N,)
        if not finite.all():
            n = int(finite.argmin())
            raise DataError(f"text {n}, counted from 0: {what} values {given[n]} are not finite")
    values = [_value_scores(name, true[:, k], predicted[:, k]) for k, name in enumerate(names)]
    defined = [value.r2 for value in values if value.r2 is not None]
    return RegressionScores(len(true), float(np.mean(defined)) if defined else None, values)


def _value_scores(name: str, true: np.ndarray, predicted: np.ndarray) -> ValueScores:
    """Score one value: true and predicted (N,)."""
    import pandas
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    pearson = spearman = r2 = None
    # detect constants by comparison: rounding may make their variance nonzero
    if true.min() < true.max():
        r2 = float(r2_score(true, predicted))
        both = pandas.DataFrame({"true": true, "predicted": predicted})
        found = [float(both.corr(m).loc["true", "predicted"]) for m in ("pearson", "spearman")]
        # both are NaN if the answers are constant
        pearson, spearman = (None if math.isnan(r) else r for r in found)
    rmse, mae = root_mean_squared_error(true, predicted), mean_absolute_error(true, predicted)
    return ValueScores(name, pearson, spearman, r2, float(rmse), float(mae))
