"""One number after every token, such as a value function for reinforcement learning.

The label of a text is a number, which holds at every token, or pairs (position, number). The
position is a number of characters: the number is the target of the token that contains the last of
these characters. Tokens without a target have no loss.

B texts in a batch, N texts in all, T tokens in the longest text. The head's outputs are
standardised: 1.0 means `center` + `scale`, in the units of the data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.regression import (
    Regression,
    RegressionScores,
    Values,
    regression_scores,
    standardised,
)
from gpt2_from_scratch.classifier.tasks.task import (
    Answer,
    Batch,
    Encoded,
    Targets,
    Task,
    characters_read,
    label_for,
    labelled_only,
)
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenValue:
    """A token, the number of characters of the text up to its end, and the value after it."""

    token: str
    end: int  # a character that continues in the next token does not count
    value: float


@dataclass(frozen=True)
class TokenValues(Answer):
    """The predicted value after each token, in the units of the training data."""

    tokens: list[TokenValue]

    def after(self, positions: Sequence[int]) -> list[float]:
        """Return the values after so many characters; the last value if they were cut off."""
        tokens = np.searchsorted([x.end for x in self.tokens], positions)
        return [self.tokens[min(token, len(self.tokens) - 1)].value for token in tokens.tolist()]

    def in_words(self) -> str:
        """Format the last value, and the range of all."""
        values = [x.value for x in self.tokens]
        return (
            f"{values[-1]:.4g} after the last of {len(values)} tokens "
            f"(from {min(values):.4g} to {max(values):.4g})"
        )


@dataclass(frozen=True)
class TokenRegressionScores(RegressionScores):
    """The scores of values after tokens; `total` is the number of compared positions."""

    measure: ClassVar[str] = "R2"
    places: ClassVar[str] = "positions"


class TokenRegression(Regression):
    """Predict a number after each token."""

    def targets(
        self, head: HeadConfig, messages: Sequence[Message], encoded: Encoded, tokenizer: Tokenizer
    ) -> Targets:
        """Standardise the values of each text's tokens: N tensors (T,), NaN without a target.

        Of several positions in one token, the last one counts. Positions that were cut off have no
        target.
        """
        center, scale = (head.center or (0.0,))[0], (head.scale or (1.0,))[0]
        rows = []
        for message, ids in zip(messages, encoded, strict=True):
            row = torch.full((len(ids),), math.nan)
            label = label_for(head, message)
            if label is not None and not isinstance(label, tuple):
                row[:] = standardised(label, center, scale)
            elif label:
                ends = characters_read(message.text, ids, tokenizer)
                for position, value in _pairs(message.text, label):
                    token = int(np.searchsorted(ends, position))
                    if token < len(ids):
                        row[token] = standardised(value, center, scale)
            rows.append(row)
        counts = torch.tensor([float((~row.isnan()).sum()) for row in rows])
        return Targets(rows, counts, counts)

    def loss_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> Tensor:
        """Sum the squared errors of the tokens with a target: outputs (B, T, 1), targets (B, T)."""
        known = ~targets.isnan()
        return F.mse_loss(outputs[known][:, 0], targets[known], reduction="sum")

    def correct_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> float:
        """Sum 1 - squared error over the tokens with a target."""
        known = ~targets.isnan()
        return float((1 - (outputs[known][:, 0] - targets[known]) ** 2).sum())

    def answers(  # type: ignore[override]
        self, head: HeadConfig, outputs: Tensor, batch: Batch
    ) -> list[TokenValues]:
        """Convert the outputs (B, T, 1) into the units of the data."""
        center, scale = (head.center or (0.0,))[0], (head.scale or (1.0,))[0]
        found = []
        for row, text, ids in zip(outputs, batch.texts, batch.encoded, strict=True):
            values = row[: len(ids), 0].double().cpu().numpy() * scale + center
            ends = characters_read(text, ids, batch.tokenizer)
            tokens = [batch.tokenizer.decode([token]) for token in ids]
            parts = zip(tokens, ends, values.tolist(), strict=True)
            found.append(TokenValues([TokenValue(*part) for part in parts]))
        return found

    def answers_by_token(
        self, head: HeadConfig, outputs: Tensor, tokenizer: Tokenizer
    ) -> list[Values]:
        """Convert the outputs after each token (T, 1) into values."""
        return super().answers(head, outputs, Batch([], [], tokenizer))

    def scores(
        self, head: HeadConfig, labels: Sequence[Any], answers: Sequence[Any], texts: Sequence[str]
    ) -> TokenRegressionScores:
        """Compare the values at each labelled position; a number is compared at the text's end."""
        true, predicted = [], []
        for label, answer, text in zip(*labelled_only(labels, answers, texts), strict=True):
            pairs = label if isinstance(label, tuple) else ((len(text), label),)
            true += [[value] for _, value in pairs]
            predicted += [[value] for value in answer.after([position for position, _ in pairs])]
        if not true:
            raise DataError("no text has a value at any position, so nothing can be evaluated")
        found = regression_scores(np.array(true, float), np.array(predicted, float), head.labels)
        return TokenRegressionScores(**vars(found))

    def answer_of(self, head: HeadConfig, text: str, label: Any) -> TokenValues:  # type: ignore[override]
        """Give the part of the text up to each position its value."""
        pairs = label if isinstance(label, tuple) else ((len(text), label),)
        ends = [0, *(position for position, _ in pairs)]
        parts = zip(ends, ends[1:], (value for _, value in pairs), strict=False)
        return TokenValues([TokenValue(text[a:b], b, value) for a, b, value in parts])

    evidence = Task.evidence  # one value per token cannot be explained
    columns = Task.columns  # type: ignore[assignment]  # an answer is not a row


def _pairs(text: str, label: tuple) -> list[tuple[int, Any]]:
    """Check pairs (position, value). Raises DataError for a position that is not in the text."""
    before = 0
    for pair in label:
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and type(pair[0]) is int
        if not is_pair or not before < pair[0] <= len(text):
            raise DataError(
                f"{pair!r:.80} is not a pair (position, value) in {text!r:.80}, with ascending "
                f"positions from 1 to {len(text)}"
            )
        before = pair[0]
    return [(position, value) for position, value in label]
