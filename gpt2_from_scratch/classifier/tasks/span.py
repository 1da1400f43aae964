"""An answer extracted from the text: where it starts and where it ends.

A text is a question on the first line and its context after it. B texts in a batch, N texts in all,
T tokens in the longest. Source: Rajpurkar et al. 2016 (SQuAD 1.1), for the scores too.
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
from gpt2_from_scratch.data.messages import Message, Span, on_one_line
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

LONGEST_ANSWER = 30  # tokens of an extracted answer
PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Extract(Answer):
    """The most probable part of the text, `text[start:end]`, and its probability."""

    text: str
    start: int
    end: int
    probability: float

    def in_words(self) -> str:
        """Say the part, its place and its probability."""
        place = f"{self.start} to {self.end}, {self.probability:.3f}"
        return f"{on_one_line(self.text)!r}  ({place})"


@dataclass(frozen=True)
class SpanScores(Scores):
    """The scores of extracted answers."""

    measure: ClassVar[str] = "F1"
    exact: int  # answers that are the same after normalisation
    total: int
    interval: tuple[float, float]  # 95% Wilson interval of their proportion
    f1: float  # mean over the texts of the F1 of an answer's words

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
        """Locate the first and last token of each answer: (N, 2), IGNORED if there is none."""
        ends = []
        for message, ids in zip(messages, encoded, strict=True):
            span, found = label_for(head, message), None
            if span is not None:
                start, end = checked_span(message.text, span)[:2]
                if start < context_start(message.text):  # no answer is ever looked for there
                    raise DataError(
                        f"the answer {message.text[start:end]!r:.80} is in the first line of "
                        f"{message.text!r:.80}, which is taken for the question"
                    )
                found = token_range(message.text, ids, span, tokenizer)
            ends.append(found or (IGNORED, IGNORED))
        values = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2)
        known = (values[:, 0] != IGNORED).float()
        return Targets(values, known, known)

    def loss_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> Tensor:
        """Sum the cross-entropies over the positions of each text, the mean of start and end:
        outputs (B, T, 2), targets (B, 2).
        """
        scores = within(outputs, lengths)  # (B, T, 2)
        return F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum") / 2

    def correct_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> float:
        """Count the texts of which both start and end are correct."""
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
        """None: an answer needs the whole text."""

    def scores(
        self, head: HeadConfig, labels: Sequence[Any], answers: Sequence[Any], texts: Sequence[str]
    ) -> SpanScores:
        """Compare answers word by word."""
        spans, answers, texts = labelled_only(labels, answers, texts)
        true = [text[span.start : span.end] for span, text in zip(spans, texts, strict=True)]
        return span_scores(true, [answer.text for answer in answers])


def within(outputs: Tensor, lengths: Tensor, start: Tensor | None = None) -> Tensor:
    """Set the scores (B, T, 2) of positions outside each text, and before `start` (B,), to -inf."""
    position = torch.arange(outputs.shape[1], device=outputs.device)[None]  # (1, T)
    outside = position >= lengths[:, None]
    if start is not None:
        outside = outside | (position < start[:, None])
    return outputs.masked_fill(outside[:, :, None], -torch.inf)


def _extract(outputs: Tensor, text: str, ids: Sequence[int], tokenizer: Tokenizer) -> Extract:
    """Choose the best start and the best end at or after it, in the context: outputs (T, 2)."""
    begins = first_tokens(text, ids, [Span(context_start(text), len(text))], tokenizer)[0]
    if begins is None:  # the question alone filled the text
        return Extract("", len(text), len(text), 0.0)
    length, start = torch.tensor([len(ids)]), torch.tensor([begins])
    scores = within(outputs[None, : len(ids)], length, start)[0].log_softmax(dim=0)  # (T, 2)
    pairs = scores[:, None, 0] + scores[None, :, 1]  # (T, T): start, end
    allowed = torch.ones_like(pairs).triu().tril(LONGEST_ANSWER - 1).bool()
    best = int(pairs.masked_fill(~allowed, -torch.inf).argmax())
    first, last = divmod(best, len(ids))
    a, b = characters_of(text, ids, first, last, tokenizer)
    return Extract(text[a:b], a, b, float(pairs[first, last].exp()))


def span_scores(true: Sequence[str], predicted: Sequence[str]) -> SpanScores:
    """Score answers, one per text. Raises DataError if there are none.

    Answers are compared as lists of words, by `answer_words`. Two without any word agree, as in
    SQuAD 2.0.
    """
    pairs = [(answer_words(a), answer_words(b)) for a, b in zip(true, predicted, strict=True)]
    exact, total = sum(a == b for a, b in pairs), len(pairs)
    interval = wilson_interval(exact, total)
    f1s = list[float]()
    for a, b in pairs:
        shared = (Counter(a) & Counter(b)).total()  # each word as often as both answers have it
        f1s.append(2 * shared / (len(a) + len(b)) if a or b else 1.0)
    return SpanScores(exact, total, interval, math.fsum(f1s) / total)


def answer_words(answer: str) -> list[str]:
    """Split an answer as SQuAD does: lower case, no ASCII punctuation, no articles.

    Punctuation goes first and leaves no gap: "U.S." is us, "well-known" is wellknown.
    """
    return ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split()
