"""Tasks of the model itself: predict the next token, or return the hidden state ("features").

B texts in a batch, N texts in all, T tokens in the longest, C = n_embd, V = n_vocab.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.classification import Classification, weighted_targets
from gpt2_from_scratch.classifier.tasks.task import (
    IGNORED,
    Answer,
    Batch,
    Encoded,
    Scores,
    Targets,
    Task,
    number,
    percent,
)
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer


@dataclass(frozen=True)
class Likelihood(Answer):
    """How well GPT-2 predicts the tokens of a text, except the first."""

    nats: float  # the sum over tokens
    correct: int  # tokens that were the most probable
    tokens: int
    n_bytes: int  # length of these tokens in bytes

    def in_words(self) -> str:
        """Format the mean cross-entropy."""
        return f"{self.nats / max(1, self.tokens):.3f} nats per token"


@dataclass(frozen=True)
class State(Answer):
    """The hidden state itself, C numbers."""

    values: list[float]

    def in_words(self) -> str:
        """Format the number of values, and the first four."""
        return f"{len(self.values)} numbers: {', '.join(f'{x:.3f}' for x in self.values[:4])}, ..."


@dataclass(frozen=True)
class LanguageScores(Scores):
    """The scores of a language model on some texts."""

    measure: ClassVar[str] = "next-token accuracy"
    correct: int  # tokens that were the most probable
    tokens: int
    nats_per_token: float  # mean cross-entropy
    perplexity: float | None  # exp(nats_per_token); None if it overflows
    bits_per_byte: float | None  # comparable between tokenizers; None if there are no bytes

    @property
    def main(self) -> float:
        """The proportion of next tokens that were the most probable."""
        return self.correct / self.tokens

    def as_table(self) -> str:
        """Format the accuracy, cross-entropy, perplexity and bits per byte."""
        return (
            f"next-token accuracy {percent(self.main)}  ({self.correct} of {self.tokens})\n"
            f"{self.nats_per_token:.4f} nats per token, perplexity {number(self.perplexity)}, "
            f"{number(self.bits_per_byte)} bits per byte"
        )


class Language(Classification):
    """Predict the next token; the loss is that of classification into V classes.

    The head is GPT-2's own or one of two that are trained, at any layer (see `LanguageForm`).
    """

    predicts_tokens = True

    def targets(
        self, head: HeadConfig, messages: Sequence[Message], encoded: Encoded, tokenizer: Tokenizer
    ) -> Targets:
        """Use the next token as each token's target: N tensors (T,); labels are not used."""
        return weighted_targets(head, [torch.tensor([*ids[1:], IGNORED]) for ids in encoded])

    def answers(self, head: HeadConfig, outputs: Tensor, batch: Batch) -> list[Likelihood]:  # type: ignore[override]
        """Sum the cross-entropies of each text's tokens: outputs (B, T, V)."""
        found = []
        for row, ids in zip(outputs.float(), batch.encoded, strict=True):
            following = torch.tensor(ids[1:], device=row.device, dtype=torch.int64)
            logs = row[: len(following)].log_softmax(dim=1)  # (T - 1, V)
            nats = -logs.gather(1, following[:, None]).sum()
            correct = int((logs.argmax(dim=1) == following).sum())
            n_bytes = sum(len(batch.tokenizer.token_bytes(token)) for token in ids[1:])
            found.append(Likelihood(float(nats), correct, len(following), n_bytes))
        return found

    def answers_by_token(self, head: HeadConfig, outputs: Tensor, tokenizer: Tokenizer) -> None:
        """None, because a likelihood belongs to the whole text."""

    def scores(  # type: ignore[override]
        self, head: HeadConfig, labels: Sequence[Any], answers: Sequence[Any], texts: Sequence[str]
    ) -> LanguageScores:
        """Add up the likelihoods of all texts, with or without labels."""
        return language_scores(
            *(
                sum(getattr(a, of) for a in answers)
                for of in ("nats", "correct", "tokens", "n_bytes")
            )
        )

    def layers(self, head: HeadConfig, model: GPT2) -> nn.Module:
        """The head's layers, (..., C) -> (..., V), by its form. They draw no random numbers."""
        if head.form == "tuned lens":
            return TunedLens(model)
        return full_head(head, model) if head.form == "full" else tied_head(model)

    columns = Task.columns  # type: ignore[assignment]  # an answer is not a row


# --- three forms of a head ---


class TunedLens(nn.Module):
    """Predict the next token from a state inside the network, with GPT-2's own norm and head.

    The state x of any layer is first changed by an affine map of its own: x + A x + b. Then come
    GPT-2's final norm and its own head, which the lens shares with the model. A and b start at 0, so
    the lens starts as the logit lens, which reads the state without any change (nostalgebraist
    2020).

    Source: Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens"
    (arXiv 2303.08112). They train the map to give the same distribution as the last layer (KL
    divergence). Here it learns as every head for language does, from the next token of the text
    (cross-entropy). So its loss can be compared with that of any other head, and it also has a
    meaning after finetuning, where the last layer may no longer predict tokens. But such a lens
    also learns the kind of text, even at the last layer.
    """

    def __init__(self, model: GPT2):
        super().__init__()
        C, device = model.config.n_embd, model.wte.weight.device
        self.change = nn.utils.skip_init(nn.Linear, C, C, device=device)
        with torch.no_grad():
            self.change.weight.zero_()
            self.change.bias.zero_()
        self.ln_f, self.own = model.ln_f, tied_head(model)  # the model's own parameters

    def forward(self, x: Tensor) -> Tensor:
        """Residual stream (..., C) -> logits (..., V)."""
        return self.own(self.ln_f(x + self.change(x)))


def tied_head(model: GPT2) -> nn.Linear:
    """GPT-2's own head, (..., C) -> (..., V), tied to `wte`."""
    own = nn.Linear(model.config.n_embd, model.config.n_vocab, bias=False, device="meta")
    own.weight = model.wte.weight
    return own


def full_head(head: HeadConfig, model: GPT2) -> nn.Linear:
    """A linear layer of its own, (..., C) -> (..., V), that starts as GPT-2's own head.

    Its weight is a copy of `wte` and its bias is 0. From random weights it would have to learn every
    token anew, and it would learn nothing about tokens that the training texts do not contain.
    Layer 0 is an exception: there a copy of `wte` would predict the token that it has just read, so
    the weight starts at 0.
    """
    wte = model.wte.weight
    layer = nn.utils.skip_init(nn.Linear, wte.shape[1], wte.shape[0], device=wte.device)
    with torch.no_grad():
        layer.bias.zero_()
        if head.layer == 0:
            layer.weight.zero_()
        else:
            layer.weight.copy_(wte)
    return layer


def language_scores(nats: float, correct: int, tokens: int, n_bytes: int) -> LanguageScores:
    """Score the prediction of `tokens` next tokens, whose text has `n_bytes` bytes in UTF-8.

    `nats` is the sum of their cross-entropies, not the mean. Raises DataError if `tokens` is 0.
    """
    if tokens < 1:
        raise DataError("there are no tokens to predict, so nothing can be evaluated")
    mean = nats / tokens
    perplexity = math.exp(mean) if mean < math.log(np.finfo(float).max) else None
    bits = nats / math.log(2) / n_bytes if n_bytes else None
    return LanguageScores(correct, tokens, mean, perplexity, bits)


class Features(Task):
    """Return the hidden state itself; there is nothing to learn."""

    has_loss = False

    def targets(
        self, head: HeadConfig, messages: Sequence[Message], encoded: Encoded, tokenizer: Tokenizer
    ) -> Targets:
        """Return empty targets with weight 0."""
        nothing = torch.zeros(len(messages))
        return Targets(torch.zeros(len(messages), 0), nothing, nothing)

    def loss_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> Tensor:
        """Return 0, because there is no loss."""
        return outputs.new_zeros(())

    def correct_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> float:
        """Return 0, because nothing is decided."""
        return 0.0

    def answers(self, head: HeadConfig, outputs: Tensor, batch: Batch) -> list[State]:
        """Return each text's state: outputs (B, C)."""
        return [State(row) for row in outputs.float().cpu().tolist()]

    def scores(
        self, head: HeadConfig, labels: Sequence[Any], answers: Sequence[Any], texts: Sequence[str]
    ) -> None:
        """None, because a state cannot be correct or wrong."""

    def layers(self, head: HeadConfig, model: GPT2) -> nn.Module:
        """The identity, (..., C) -> (..., C)."""
        return nn.Identity()
