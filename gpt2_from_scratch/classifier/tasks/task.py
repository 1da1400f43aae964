"""The interface of a task: targets, loss, answers, scores; and characters located in tokens.

Shapes: B texts in a batch, N texts in all, T tokens in the longest text, K outputs of a head, L
characters.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.data.messages import Message, Span, short
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.metrics import (
    MOST_CLASSES,
    ClassScores,
    head_of_weakest,
    several,
    weakest,
)
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

Encoded = Sequence[Sequence[int]]  # the token ids of each text
MOST_PROBABLE = 5  # number of answers shown if there are more than MOST_CLASSES
LONGEST = 100  # most characters of a label in a printed answer
IGNORED = -100  # marks a text or token that has no target; torch's cross_entropy skips it


@dataclass(frozen=True)
class Targets:
    """The targets of one head for N texts.

    `values` has a shape that depends on the task:

        - class numbers (N,);
        - 0 or 1 for each label (N, K) float32;
        - standardised values (N, K) float32;
        - first and last token (N, 2);
        - tag numbers, or standardised values as float32, one tensor (T,) per text.

        The loss of a batch is divided by the sum of its texts' `weights` (N,). `counts` (N,) is
        the number of decisions in each text. Both are 0 for a text without a target.
    """

    values: Tensor | list[Tensor]
    weights: Tensor
    counts: Tensor

    def batch(self, numbers: Sequence[int]) -> Tensor:
        """Select the values of some texts: (B, ...), or (B, T) padded with IGNORED or NaN."""
        if isinstance(self.values, Tensor):
            return self.values[list(numbers)]
        ragged = [self.values[n] for n in numbers]
        padding = math.nan if ragged[0].is_floating_point() else IGNORED
        return pad_sequence(ragged, batch_first=True, padding_value=padding)


def has_target(values: Tensor) -> Tensor:
    """Whether each text has a target: (N, K), with NaN if there is none -> (N,) bool."""
    return ~values.isnan().any(dim=1)


@dataclass(frozen=True)
class Batch:
    """B texts as a classifier read them."""

    texts: Sequence[str]
    encoded: Encoded
    tokenizer: Tokenizer
    # the words to tag; by default the text is split at white space
    words: Sequence[Sequence[Span]] | None = None


class Answer(ABC):
    """A head's answer for one text; subclasses are dataclasses."""

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as a dictionary that JSON accepts."""
        return asdict(self)  # type: ignore[call-overload]

    @abstractmethod
    def in_words(self) -> str:
        """Format the answer as one readable line."""


class Scores(ABC):
    """The scores of answers; subclasses are dataclasses. A higher `main` is better."""

    measure: ClassVar[str]  # the name of `main`

    @property
    @abstractmethod
    def main(self) -> float:
        """The task's main score; 0 if it is not defined."""

    @property
    def main_in_words(self) -> str:
        """Format the main score, which is a proportion, with one decimal."""
        return f"{100 * self.main:.1f}%"

    @abstractmethod
    def as_table(self) -> str:
        """Format the scores as text, the main score first; "-" if one is not defined."""

    def as_json(self) -> dict[str, Any]:
        """Return the scores as a dictionary that JSON accepts, the main score first."""
        name = self.measure.replace(" ", "_").replace("-", "_").lower()
        return {name: self.main} | asdict(self)  # type: ignore[call-overload]


class Task(ABC):
    """One kind of answer.

    `loss_sum` and `correct_sum` are sums, because a batch may be processed in parts, and texts
    differ in their number of tokens. The mean loss is `loss_sum` divided by the sum of
    `Targets.weights`. The proportion of correct decisions is `correct_sum` divided by the sum of
    `Targets.counts`.
    """

    has_loss: ClassVar[bool] = True  # False if there is nothing to learn
    predicts_tokens: ClassVar[bool] = False  # True if the outputs can continue a text

    @abstractmethod
    def targets(
        self, head: HeadConfig, messages: Sequence[Message], encoded: Encoded, tokenizer: Tokenizer
    ) -> Targets:
        """Make the targets of N messages with these token ids.

        Raises DataError for a label that the head does not know or that is of another task's kind.

        Args:
            head: The head.
            messages: N messages.
            encoded: The token ids of each message.
            tokenizer: The tokenizer that made `ids`.
        """

    @abstractmethod
    def loss_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> Tensor:
        """Sum the losses of a batch in nats: outputs (B, K) or (B, T, K), lengths (B,) -> scalar.

        Texts and tokens without a target (IGNORED or NaN) have no loss.

        Args:
            head: The head.
            outputs: The head's outputs, (B, K) or (B, T, K).
            targets: The targets, as `Targets.batch` selects them.
            lengths: The number of real tokens of each text, (B,).
        """

    @abstractmethod
    def correct_sum(
        self, head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor
    ) -> float:
        """Count the correct decisions in a batch; the arguments are those of `loss_sum`."""

    @abstractmethod
    def answers(self, head: HeadConfig, outputs: Tensor, batch: Batch) -> Sequence[Any]:
        """Turn a batch's outputs, (B, K) or (B, T, K), into B answers."""

    @abstractmethod
    def scores(
        self, head: HeadConfig, labels: Sequence[Any], answers: Sequence[Any], texts: Sequence[str]
    ) -> Any:
        """Score N answers, leaving out texts whose label is None.

        Raises DataError if no text is left.

        Args:
            head: The head.
            labels: The label of each text, or None.
            answers: The head's answer for each text.
            texts: The texts.
        """

    def answer_of(self, head: HeadConfig, text: str, label: Any) -> Any:
        """Return the answer to a text that equals a label, so that `scores` accepts it.

        Only tasks with baselines in `evaluation.task_baselines` have it.
        """
        raise NotImplementedError

    def evidence(self, head: HeadConfig, outputs: Tensor, number: int) -> Tensor:
        """Return how strongly outputs (B, K) speak for the label with this number: (B,).

        This is what explanations explain. It has gradients if the outputs have them. Raises
        UsageError for a task without labels.
        """
        raise UsageError(
            f"{head.task} does not choose a label or predict a value, so there is nothing to explain"
        )

    def words(self, labels: Sequence[Any]) -> Sequence[Sequence[Span]] | None:
        """Return the words to tag in labelled texts; None if the task does not tag words."""
        return None

    def answers_by_token(
        self, head: HeadConfig, outputs: Tensor, tokenizer: Tokenizer
    ) -> Sequence[Any] | None:
        """Return the T answers after each of T tokens, or None if the task has none.

        `outputs` are those after each token, (T, K).
        """
        T = len(outputs)
        return self.answers(head, outputs, Batch([""] * T, [[]] * T, tokenizer))

    def layers(self, head: HeadConfig, model: GPT2) -> nn.Module | None:
        """Return the head's layers if the task determines them; otherwise None."""
        return None

    def columns(self, head: HeadConfig) -> list[str] | None:
        """Name the columns of an answer's `as_row`; None if its answers have no such method."""
        return None


# --- labels ---


def label_for(head: HeadConfig, message: Message) -> Any:
    """Return a message's label for one head; None if it has none."""
    label = message.label
    return label.get(head.name) if isinstance(label, dict) else label


def class_number(head: HeadConfig, label: Any) -> int:
    """Return the number of a label in the head. Raises DataError for an unknown label."""
    try:
        return head.labels.index(label)
    except ValueError:
        raise DataError(
            f"unknown label {label!r:.80}; the head has {several(head.labels)}"
        ) from None


def checked_span(text: str, span: Any) -> Span:
    """Return the span. Raises DataError unless it is a Span inside the text."""
    if not isinstance(span, Span) or not 0 <= span.start <= span.end <= len(text):
        raise DataError(f"{span!r:.80} is not a Span in {text!r:.80} ({len(text)} characters)")
    return span


def labelled_only(labels: Sequence[Any], *columns: Sequence[Any]) -> list[list[Any]]:
    """Keep the texts whose label is not None: their labels, and the same rows of each column.

    Raises DataError if there are none.
    """
    known = [n for n, label in enumerate(labels) if label is not None]
    if not known:
        raise DataError("there are no labelled texts, so nothing can be evaluated")
    return [[column[n] for n in known] for column in (labels, *columns)]


# --- text and tables ---


def by_label(head: HeadConfig, row: np.ndarray) -> dict[str, float]:
    """Map the head's labels to a row of K numbers."""
    return dict(zip(head.labels, row.tolist(), strict=True))


def probabilities_in_words(probabilities: dict[str, float]) -> str:
    """Format probabilities as in "ham 0.250, spam 0.750"; only the most probable of many."""
    if len(probabilities) > MOST_CLASSES:
        best = sorted(probabilities, key=probabilities.__getitem__, reverse=True)[:MOST_PROBABLE]
        probabilities = {label: probabilities[label] for label in best}
    return ", ".join(f"{short(label, LONGEST)} {p:.3f}" for label, p in probabilities.items())


def proportion_in_words(name: str, part: int, total: int, interval: tuple[float, float]) -> str:
    """Format a proportion with its 95% interval.

    Args:
        name: What the proportion is, such as "accuracy".
        part: The numerator of the proportion, such as the number of correct texts.
        total: The number of all texts.
        interval: The 95% interval of the proportion, from 0 to 1.
    """
    low, high = (100 * bound for bound in interval)
    return (
        f"{name} {100 * part / total:.2f}%  ({part} of {total}; "
        f"95% interval {low:.1f}% to {high:.1f}%)"
    )


def percent(value: float | None) -> str:
    """Format a proportion as a percentage; "-" if it is not defined."""
    return "-" if value is None else f"{100 * value:.2f}%"


def number(value: float | None) -> str:
    """Format a number with four decimals, or four digits if it is large; "-" if undefined."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Format a table whose first column is aligned left and whose others are aligned right."""
    align = ("left", *("right",) * (len(headers) - 1))
    return tabulate(rows, headers, "plain", colalign=align, disable_numparse=True)


def class_table(
    classes: Sequence[ClassScores],
    name: str,
    counted: str,
    together: ClassScores | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> str:
    """Format precision, recall and F1 of each class; `counted` is the unit of its support.

    If there are more than MOST_CLASSES classes, only the weakest are shown. The last row is
    `together`, if it is given.

    Args:
        classes: The scores of each class.
        name: The title of the column of classes.
        counted: The title of the column of supports.
        together: The scores of all classes together.
        thresholds: {label: the probability above which it is predicted}, for a last column.
    """
    rows = [
        [short(c.label), percent(c.precision), percent(c.recall), percent(c.f1), str(c.support)]
        + ([f"{thresholds[c.label]:.3f}"] if thresholds else [])
        for c in (*weakest(classes), *filter(None, [together]))
    ]
    headers = [head_of_weakest(name, classes), "precision", "recall", "F1", counted]
    return table(rows, headers + (["threshold"] if thresholds else []))


# --- Characters to tokens and back, exact in bytes. ---
#
# A byte-level BPE does not know characters. It may cut one character into several tokens, and a
# token may begin with the space before its word. Positions are therefore compared in the UTF-8
# bytes of the text, which the tokens divide into consecutive pieces. `ids` are always
# those of the text, or of its beginning if it was cut.


def first_tokens(
    text: str, ids: Sequence[int], spans: Sequence[Span], tokenizer: Tokenizer
) -> list[int | None]:
    """Return the first token of each span: the first token that contains one of its bytes.

    Tokens are counted from 0. The result is None for a span that was cut off and for a span without
    characters. Two spans can have the same first token if no space separates them.

    Args:
        text: The text.
        ids: The token ids of the text, which may have been cut off.
        spans: The spans to locate.
        tokenizer: The tokenizer that made `ids`.
    """
    ends = np.array(_token_ends(ids, tokenizer), dtype=np.int64)
    starts = _bytes_before(text)[np.array([span.start for span in spans], dtype=np.int64)]
    # the first token that ends after the start
    tokens = np.searchsorted(ends, starts, side="right")
    return [
        int(token) if token < len(ids) and span.start < span.end else None
        for span, token in zip(spans, tokens, strict=True)
    ]


def token_range(
    text: str, ids: Sequence[int], span: Span, tokenizer: Tokenizer
) -> tuple[int, int] | None:
    """Return the first and the last token that contain a byte of the span, counted from 0.

    The result is None if part of the span was cut off, and for a span without characters.

    Args:
        text: The text.
        ids: The token ids of the text, which may have been cut off.
        span: The span to locate.
        tokenizer: The tokenizer that made `ids`.
    """
    bytes_before = _bytes_before(text)
    ends = _token_ends(ids, tokenizer)
    start, end = bytes_before[span.start], bytes_before[span.end]
    if not ends or end > ends[-1] or span.start >= span.end:
        return None
    return int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, end))


def characters_read(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return the number of complete characters of the text up to the end of each token."""
    ends = np.array(_token_ends(ids, tokenizer), dtype=np.int64)
    return (np.searchsorted(_bytes_before(text), ends, side="right") - 1).tolist()


def characters_of(
    text: str, ids: Sequence[int], first: int, last: int, tokenizer: Tokenizer
) -> tuple[int, int]:
    """Return (start, end) of the characters in the tokens `first` to `last`, inclusive.

    A character counts if part of it is in these tokens. White space at either end does not count.
    Start and end are equal if the tokens contain only white space.

    Args:
        text: The text.
        ids: The token ids of the text, which may have been cut off.
        first: The first token, counted from 0.
        last: The last token, counted from 0.
        tokenizer: The tokenizer that made `ids`.
    """
    bytes_before = _bytes_before(text)
    ends = _token_ends(ids[: last + 1], tokenizer)
    start = int(np.searchsorted(bytes_before, ends[first - 1] if first else 0, side="right")) - 1
    end = int(np.searchsorted(bytes_before, ends[last]))
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip())


def _token_ends(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Where each token ends, in bytes from the beginning of the text: T numbers."""
    sizes = [len(tokenizer.token_bytes(token)) for token in ids]
    return [int(end) for end in np.cumsum(sizes, dtype=np.int64)]


def _bytes_before(text: str) -> np.ndarray:
    """The number of bytes before each character, and in the whole text: (L + 1,).

    The tokenizer reads a lone surrogate as U+FFFD, which has three bytes. It reads a surrogate pair
    as one character of four bytes, which count here as two bytes per surrogate.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)  # (L,)
    high, low = codes >> 10 == 0xD800 >> 10, codes >> 10 == 0xDC00 >> 10
    pairs = np.flatnonzero(high[:-1] & low[1:])
    sizes[pairs] = sizes[pairs + 1] = 2
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
