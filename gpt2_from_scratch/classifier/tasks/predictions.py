"""Outputs of heads as answers a person can use. B texts, T tokens of the longest, K outputs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.alignment import characters_of, first_tokens
from gpt2_from_scratch.classifier.tasks.losses import class_scores, within
from gpt2_from_scratch.data.formats import context_start, entities
from gpt2_from_scratch.data.messages import Span
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

LONGEST_ANSWER = 30  # tokens of an extracted answer


@dataclass(frozen=True)
class Choice:
    """classification: one label, and the probability of each; they sum to 1."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Labels:
    """multi-label: those of more than even probability, and the probability of each."""

    labels: list[str]
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Values:
    """regression: the values, in the units of the training data."""

    values: dict[str, float]


@dataclass(frozen=True)
class Tag:
    """A word of a text, `text[start:end]`, its tag, and the tag's probability."""

    word: str
    start: int
    end: int
    label: str
    probability: float


@dataclass(frozen=True)
class Tags:
    """token-classification: a tag for each word. Words behind a cut have the tag O, or the first."""

    words: list[Tag]

    @property
    def entities(self) -> list[Span]:
        """What BIO tags mark, as characters of the text and a type."""
        found = entities([tag.label for tag in self.words])
        return [Span(self.words[a].start, self.words[b - 1].end, kind) for a, b, kind in found]


@dataclass(frozen=True)
class Extract:
    """span: the likeliest part of the text, `text[start:end]`, and its probability."""

    text: str
    start: int
    end: int
    probability: float


@dataclass(frozen=True)
class Likelihood:
    """language: how well GPT-2 foresaw the text's tokens, all but the first."""

    nats: float  # the sum over tokens
    right: int  # tokens that were its first guess
    tokens: int
    n_bytes: int  # of these tokens


@dataclass(frozen=True)
class State:
    """features: the hidden state itself, C numbers."""

    values: list[float]


Answer = Choice | Labels | Values | Tags | Extract | Likelihood | State


@dataclass(frozen=True)
class Prediction:
    """What the heads say of one text."""

    answers: dict[str, Any]  # {head's name: an Answer}
    n_tokens: int
    truncated: bool  # the text was longer than the classifier reads
    empty: bool  # the text held nothing but white space, and was read as one <|endoftext|>
    replaced: bool  # the text held halves of characters (lone surrogates), read as U+FFFD

    @property
    def answer(self) -> Any:
        """The first head's answer: the only one, mostly."""
        return next(iter(self.answers.values()))

    @property
    def label(self) -> str:
        """The label, where the first head chooses one."""
        return self.answer.label

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of every label, where the first head has labels."""
        return self.answer.probabilities


def at_least(prediction: Prediction, label: str, threshold: float) -> Prediction:
    """The first head's answer is `label` where its probability is at least `threshold`, elsewhere
    the likeliest of the others.
    """
    name, choice = next(iter(prediction.answers.items()))
    others = {k: p for k, p in choice.probabilities.items() if k != label}
    best = (
        label if choice.probabilities[label] >= threshold else max(others, key=others.__getitem__)
    )
    chosen = {**prediction.answers, name: replace(choice, label=best)}
    return replace(prediction, answers=chosen)


def answers(
    head: HeadConfig,
    outputs: Tensor,
    texts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    words: Sequence[Sequence[Span]] | None = None,
) -> list[Answer]:
    """The answers of one head for a batch: outputs (B, K) or (B, T, K), B texts and their ids.

    `words` are the words to tag (none: what white space separates).
    """
    pairs = list(zip(texts, encoded, strict=True))
    outputs = outputs.detach().float()
    if head.task == "classification":
        rows = _shares(class_scores(head, outputs) / head.temperature)
        return [Choice(head.labels[int(row.argmax())], _named(head, row)) for row in rows]
    if head.task == "multi-label":
        rows = outputs.sigmoid().cpu().numpy().astype(np.float64)
        return [
            Labels([n for n, p in _named(head, r).items() if p > 0.5], _named(head, r))
            for r in rows
        ]
    if head.task == "regression":
        # in float64: around 1.7e9, a date in seconds, float32 has one number in 128
        values = outputs.cpu().numpy().astype(np.float64)
        values = values * (head.scale or 1.0) + (head.center or 0.0)
        return [Values(_named(head, row)) for row in values]
    if head.task == "token-classification":
        words = words or [[Span(*m.span()) for m in re.finditer(r"\S+", t)] for t in texts]
        return [
            _tags(head, _shares(row[: len(ids)]), text, ids, spans, tokenizer)
            for row, (text, ids), spans in zip(outputs, pairs, words, strict=True)
        ]
    if head.task == "span":
        return [
            _extract(row, text, ids, tokenizer)
            for row, (text, ids) in zip(outputs, pairs, strict=True)
        ]
    if head.task == "language":
        return [_likelihood(row, ids, tokenizer) for row, ids in zip(outputs, encoded, strict=True)]
    return [State(row) for row in outputs.cpu().tolist()]


def _shares(scores: Tensor) -> np.ndarray:
    shares = scores.softmax(dim=-1).cpu().numpy().astype(np.float64)
    return shares / shares.sum(axis=-1, keepdims=True)


def _named(head: HeadConfig, row: np.ndarray) -> dict[str, float]:
    return dict(zip(head.labels, row.tolist(), strict=True))


def _tags(
    head: HeadConfig,
    shares: np.ndarray,
    text: str,
    ids: Sequence[int],
    words: Sequence[Span],
    tokenizer: Tokenizer,
) -> Tags:
    cut = head.labels.index("O") if "O" in head.labels else 0
    tags = []
    for word, token in zip(words, first_tokens(text, ids, words, tokenizer), strict=True):
        best = cut if token is None else int(shares[token].argmax())
        share = 0.0 if token is None else float(shares[token][best])
        start, end = word.start, word.end
        tags.append(Tag(text[start:end], start, end, head.labels[best], share))
    return Tags(tags)


def _extract(outputs: Tensor, text: str, ids: Sequence[int], tokenizer: Tokenizer) -> Extract:
    """The best start and end behind it, in the context, which begins behind the first line."""
    begins = first_tokens(text, ids, [Span(context_start(text), len(text))], tokenizer)[0]
    if begins is None:  # the question alone filled the text
        return Extract("", len(text), len(text), 0.0)
    one, start = torch.tensor([len(ids)]), torch.tensor([begins])
    scores = within(outputs[None, : len(ids)].cpu(), one, start)[0].log_softmax(dim=0)  # (T, 2)
    pairs = scores[:, None, 0] + scores[None, :, 1]  # (T, T): start, end
    allowed = torch.ones_like(pairs).triu().tril(LONGEST_ANSWER - 1).bool()
    best = int(pairs.masked_fill(~allowed, -torch.inf).argmax())
    first, last = divmod(best, len(ids))
    a, b = characters_of(text, ids, first, last, tokenizer)
    return Extract(text[a:b], a, b, float(pairs[first, last].exp()))


def _likelihood(outputs: Tensor, ids: Sequence[int], tokenizer: Tokenizer) -> Likelihood:
    following = torch.tensor(ids[1:], device=outputs.device, dtype=torch.int64)
    logs = outputs[: len(following)].log_softmax(dim=1)  # (T - 1, V)
    nats = -logs.gather(1, following[:, None]).sum()
    right = (logs.argmax(dim=1) == following).sum() if len(following) else 0
    n_bytes = sum(len(tokenizer.token_bytes(token)) for token in ids[1:])
    return Likelihood(float(nats), int(right), len(following), n_bytes)
