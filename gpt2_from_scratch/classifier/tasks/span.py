"""Answers extracted from a text: the positions where they start and end.

A text is a question on the first line, followed by its context. Its label is one Span, or several if
there are several gold answers. B texts in a batch, N texts in all,
T tokens in the longest. The source of the task and of its scores is Rajpurkar et al. 2016 (SQuAD
1.1).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.task import (
    IGNORED,
    Answer,
    Batch,
    Encoded,
    Scores,
    Targets,
    Task,
    characters_of,
    checked_span,
    first_tokens,
    label_for,
    labelled_only,
    percent,
    proportion_in_words,
    token_range,
)
from gpt2_from_scratch.data.formats import context_start
from gpt2_from_scratch.data.messages import Message, Span, gold_answers, on_one_line
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

LONGEST_ANSWER = 30  # most tokens in an extracted answer
PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Extract(Answer):
    """The most probable answer, `text[start:end]`, and its probability."""

    text: str
    start: int
    end: int
    probability: float

    def in_words(self) -> str:
        """Format the answer, its position and its probability."""
        place = f"{self.start} to {self.end}, {self.probability:.3f}"
        return f"{on_one_line(self.text)!r}  ({place})"


@dataclass(frozen=True)
class SpanScores(Scores):
    """The scores of extracted answers."""

    measure: ClassVar[str] = "F1"
    exact: int  # answers that are equal to a gold answer after normalisation
    total: int
    interval: tuple[float, float]  # 95% Wilson interval of exact / total
    f1: float  # F1 of the words with the best gold answer, averaged over texts

    @property
    def main(self) -> float:
        """The mean F1."""
        return self.f1

    def as_table(self) -> str:
        """Format the F1 and the proportion of exact answers."""
        exact = proportion_in_words("exact match", self.exact, self.total, self.interval)
        return f"F1 {percent(self.f1)}\n{exact}"


class SpanExtraction(Task):
    """Choose the first and the last token of an answer: output 0 scores starts, output 1 ends."""

    def targets(
        self, head: HeadConfig, messages: Sequence[Message], encoded: Encoded, tokenizer: Tokenizer
    ) -> Targets:
        """Find the first and last token of each first answer: (N, 2), IGNORED if there is none."""
        ends = []
        for message, ids in zip(messages, encoded, strict=True):
            label, found = label_for(head, message), None
            if label is not None:
                spans = [checked_span(message.text, span) for span in gold_answers(label)]
                for start, end, _ in spans:
                    if start < context_start(message.text):  # answers are searched in the context
                        raise DataError(
                            f"the answer {message.text[start:end]!r:.80} is in the first line of "
                            f"{message.text!r:.80}, which is taken for the question"
                        )
                found = token_range(message.text, ids, spans[0], tokenizer)
            ends.append(found or (IGNORED, IGNORED))
        values = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2)
        known = (values[:, 0] != IGNORED).float()
        return Targets(values, known, known)

    def loss_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> Tensor:
        """Sum the cross-entropies over positions, averaged over start and end.

        The shapes are outputs (B, T, 2) and targets (B, 2).
        """
        scores = within(outputs, lengths)  # (B, T, 2)
        return F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum") / 2

    def correct_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> float:
        """Count the texts whose start and end are both correct."""
        found = within(outputs, lengths).argmax(dim=1)  # (B, 2)
        return float((found == targets).all(dim=1).sum())

    def answers(self, head: HeadConfig, outputs: Tensor, batch: Batch) -> list[Extract]:
        """Extract the most probable part of each text's context: outputs (B, T, 2)."""
        return [
            _extract(row, text, ids, batch.tokenizer)
            for row, text, ids in zip(
                outputs.float().cpu(), batch.texts, batch.encoded, strict=True
            )
        ]

    def answers_by_token(self, head: HeadConfig, outputs: Tensor, tokenizer: Tokenizer) -> None:
        """None, because an answer needs the whole text."""

    def scores(
        self, head: HeadConfig, labels: Sequence[Any], answers: Sequence[Any], texts: Sequence[str]
    ) -> SpanScores:
        """Compare answers with all gold answers, word by word."""
        labels, answers, texts = labelled_only(labels, answers, texts)
        true = [
            [text[span.start : span.end] for span in gold_answers(label)]
            for label, text in zip(labels, texts, strict=True)
        ]
        return span_scores(true, [answer.text for answer in answers])

    def answer_of(self, head: HeadConfig, text: str, label: Any) -> Extract:
        """Extract this span, with probability 1."""
        return Extract(text[label.start : label.end], label.start, label.end, 1.0)


def within(outputs: Tensor, lengths: Tensor, start: Tensor | None = None) -> Tensor:
    """Set the scores (B, T, 2) outside each text, and before `start` (B,), to -inf."""
    position = torch.arange(outputs.shape[1], device=outputs.device)[None]  # (1, T)
    outside = position >= lengths[:, None]
    if start is not None:
        outside = outside | (position < start[:, None])
    return outputs.masked_fill(outside[:, :, None], -torch.inf)


def _extract(outputs: Tensor, text: str, ids: Sequence[int], tokenizer: Tokenizer) -> Extract:
    """Choose the best start and the best end at or after it, in the context: outputs (T, 2)."""
    begins = first_tokens(text, ids, [Span(context_start(text), len(text))], tokenizer)[0]
    if begins is None:  # the question left no room for the context
        return Extract("", len(text), len(text), 0.0)
    length, start = torch.tensor([len(ids)]), torch.tensor([begins])
    scores = within(outputs[None, : len(ids)], length, start)[0].log_softmax(dim=0)  # (T, 2)
    pairs = scores[:, None, 0] + scores[None, :, 1]  # (T, T): start, end
    allowed = torch.ones_like(pairs).triu().tril(LONGEST_ANSWER - 1).bool()
    best = int(pairs.masked_fill(~allowed, -torch.inf).argmax())
    first, last = divmod(best, len(ids))
    a, b = characters_of(text, ids, first, last, tokenizer)
    return Extract(text[a:b], a, b, float(pairs[first, last].exp()))


def span_scores(true: Sequence[Sequence[str]], predicted: Sequence[str]) -> SpanScores:
    """Score one answer per text. Raises DataError if there are no answers.

    Both scores are those of the best of a text's gold answers, as in SQuAD. Answers are compared as
    lists of words, made by `answer_words`. Two answers without words count as equal, as in SQuAD
    2.0.
    """
    exact, f1s = 0, list[float]()
    for gold, answer in zip(true, predicted, strict=True):
        words = answer_words(answer)
        every = [answer_words(one) for one in gold]
        exact += words in every
        f1s.append(max(_f1(one, words) for one in every))
    interval = wilson_interval(exact, len(f1s))
    return SpanScores(exact, len(f1s), interval, math.fsum(f1s) / len(f1s))


def _f1(true: list[str], predicted: list[str]) -> float:
    """The F1 of two lists of words. Each common word counts as often as it occurs in both."""
    shared = (Counter(true) & Counter(predicted)).total()
    return 2 * shared / (len(true) + len(predicted)) if true or predicted else 1.0


def answer_words(answer: str) -> list[str]:
    """Split an answer as SQuAD does: lower case, no ASCII punctuation, no articles.

    Punctuation is removed first and leaves no gap: "U.S." becomes "us", and "well-known"
    becomes "wellknown".
    """
    return ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split()
