"""What a head ought to answer, as numbers. N texts, B of them in a batch, T tokens of the longest."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.alignment import first_tokens, token_range
from gpt2_from_scratch.data.formats import context_start
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

IGNORED = -100  # the target of a token that has none; torch's cross_entropy passes over it


@dataclass(frozen=True)
class Targets:
    """The targets of one head for N texts.

    `values` are class numbers (N,); 0 and 1 of each label (N, K) float32; standardised values
    (N, K) float32; first and last token (N, 2); or tag numbers, one tensor (T,) a text. `weights`
    (N,) is what each text adds to the weight its batch's loss is divided by, `counts` (N,) how many
    decisions it asks for; both are 0 for a text without a target.
    """

    values: Tensor | list[Tensor]
    weights: Tensor
    counts: Tensor

    def batch(self, numbers: Sequence[int]) -> Tensor:
        """The values of some texts: (B, ...), or (B, T) padded with IGNORED."""
        if isinstance(self.values, Tensor):
            return self.values[list(numbers)]
        ragged = [self.values[n] for n in numbers]
        return pad_sequence(ragged, batch_first=True, padding_value=IGNORED)


def make_targets(
    head: HeadConfig,
    messages: Sequence[Message],
    encoded: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
) -> Targets:
    """The targets of a head for messages and their token ids.

    A word's tag is the target of its first token; the tokens that continue it have none, nor has a
    word behind the point where a text was cut. Raises DataError for a label the head does not know,
    or of another kind than its task has, and for a Span that is not in its text.
    """
    labels = [label_for(head, message) for message in messages]
    pairs = list(zip(messages, encoded, strict=True))
    if head.task == "classification":
        return _weighed(
            head, torch.tensor([_number(head, label) for label in labels], dtype=torch.int64)
        )
    if head.task == "token-classification":
        tags = [
            _tags(head, m.text, ids, label, tokenizer)
            for (m, ids), label in zip(pairs, labels, strict=True)
        ]
        return _weighed(head, tags)
    if head.task == "language":  # each token's target is the next
        return _weighed(head, [torch.tensor([*ids[1:], IGNORED]) for ids in encoded])
    if head.task == "span":
        ends = [
            label is not None and token_range(m.text, ids, _answer_in(m.text, label), tokenizer)
            for (m, ids), label in zip(pairs, labels, strict=True)
        ]
        spans = torch.tensor([end or (IGNORED, IGNORED) for end in ends]).reshape(-1, 2)
        known = (spans[:, 0] != IGNORED).float()
        return Targets(spans, known, known)
    rows = [_row(head, label) for label in labels]
    values = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(head.labels))
    known = (~values.isnan().any(dim=1)).float()
    return Targets(values, known, known)


def label_for(head: HeadConfig, message: Message) -> Any:
    """A message's label for one head; None where it has none for this one."""
    label = message.label
    return label.get(head.name) if isinstance(label, dict) else label


def _number(head: HeadConfig, label: Any) -> int:
    if label is None:
        return IGNORED
    return _number_of(head, label)


def _number_of(head: HeadConfig, label: Any) -> int:
    try:
        return head.labels.index(label)
    except ValueError:
        raise DataError(f"label {label!r} is none of the head's {list(head.labels)}") from None


def _tags(
    head: HeadConfig, text: str, ids: Sequence[int], words: Any, tokenizer: Tokenizer
) -> Tensor:
    """The target of each token of one text: (T,)."""
    targets = torch.full((len(ids),), IGNORED)
    if words:
        words = [_span_in(text, word) for word in words]
        numbers = [_number_of(head, word.label) for word in words]  # behind a cut too
        firsts = first_tokens(text, ids, words, tokenizer)
        for number, first in zip(numbers, firsts, strict=True):
            if first is not None:
                targets[first] = number
    return targets


def _span_in(text: str, span: Any) -> Span:
    if not isinstance(span, Span) or not 0 <= span.start <= span.end <= len(text):
        raise DataError(
            f"{span!r:.80} is no Span of {text!r:.80}, which has {len(text)} characters"
        )
    return span


def _answer_in(text: str, span: Any) -> Span:
    """An answer in the context: one in the first line of several could never be given."""
    if _span_in(text, span).start < context_start(text):
        raise DataError(
            f"the answer {text[span.start : span.end]!r:.80} stands in the first line of "
            f"{text!r:.80}, which is taken for the question"
        )
    return span


def _row(head: HeadConfig, label: Any) -> list[float]:
    """0 and 1 of each label, or the values in the head's units; NaN where there are none."""
    if head.task == "features" or label is None:
        return [float("nan")] * len(head.labels)
    if head.task == "multi-label":
        if not isinstance(label, (tuple, list, set)):  # a str would be taken for its letters
            raise DataError(f"{label!r:.80} must be a tuple of some of {list(head.labels)}")
        numbers = {_number_of(head, name) for name in label}
        return [float(n in numbers) for n in range(len(head.labels))]
    values = label if isinstance(label, tuple) else (label,)
    if len(values) != len(head.labels):
        raise DataError(f"{len(values)} values {values}, where the head has {list(head.labels)}")
    center = head.center or (0.0,) * len(values)
    scale = head.scale or (1.0,) * len(values)
    return [_standardised(*each) for each in zip(values, center, scale, strict=True)]


def _standardised(value: Any, center: float, scale: float) -> float:
    if isinstance(value, Real):  # a string or None is none
        with suppress(OverflowError):
            number = (float(value) - center) / scale
            if abs(number) < torch.finfo(torch.float32).max:
                return number
    raise DataError(f"the value {value!r:.80} is no number that can be learned")


def _weighed(head: HeadConfig, values: Tensor | list[Tensor]) -> Targets:
    """Class numbers with their weights, one text or one token each."""
    weights = torch.tensor(head.class_weights or (1.0,) * max(1, len(head.labels)))

    def total(numbers: Tensor) -> float:
        known = numbers[numbers != IGNORED]
        return float(weights[known].sum()) if head.class_weights else float(len(known))

    each = [value.reshape(-1) for value in values]
    counts = torch.tensor([float((numbers != IGNORED).sum()) for numbers in each])
    return Targets(values, torch.tensor([total(numbers) for numbers in each]), counts)
