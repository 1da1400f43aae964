"""Which words or tokens of a text matter: explanations, and leave-one-out.

An explanation is about the evidence for one label: its log odds, log(p / (1 - p)), or the predicted
value in its own unit. A probability near 0 or 1 hardly changes whatever is left out, but the log
odds do. For two classes they are the difference between the two logits.

`Classifier.predict_by_token` has the answer after each token, and `gradients` has the methods that
use derivatives.

N texts in all, n tokens of a text, K outputs of a head.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal

import regex
import torch
from torch import Tensor

from gpt2_from_scratch.classifier.classifier import Classifier, refuse_infinite
from gpt2_from_scratch.classifier.settings import CLASS_TASKS, OF_PADS, HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.evaluation.metrics import several
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.speed.batching import end_tokens

Unit = Literal["word", "token"]
LIMITS = {  # method: what it cannot say
    "leave-one-out": "Exact, but only one part is missing at a time. Parts that say the same, or that "
    "matter only together, are not recognised.",
    "gradient-x-input": "This approximation is valid for very small changes of an embedding. It does not "
    "say what the answer would be without a part.",
    "integrated-gradients": "The values depend on the baseline. They do not say what the answer would be "
    "without a part.",
}
BOUNDARY = regex.compile(r"(?V1w)\b")  # with w, \b is a word boundary of Unicode's UAX #29


# --- explanations ---


@dataclass(frozen=True)
class Part:
    """A word or a token of a text, and how much it matters."""

    text: str  # an incomplete character is shown as U+FFFD
    characters: tuple[int, int]  # start and end in the text
    tokens: tuple[int, int]  # start and end, counted from 0
    value: float  # what it adds to the evidence for the label
    probability: float | None = None  # what it adds to the label's probability; None if unknown


@dataclass(frozen=True)
class Explanation:
    """How much each word or token of a text adds to the evidence for a label."""

    method: str
    text: str  # as the classifier reads it: tidied, and cut if it is too long
    truncated: bool  # whether it was cut
    head: str
    label: str
    evidence: float  # the log odds of the label, or the predicted value
    probability: float | None  # of the label; None for a predicted value
    parts: tuple[Part, ...]
    baseline: str  # what the text is compared with
    total: float  # the evidence in the text minus the evidence in the baseline
    steps: int = 0  # number of points at which gradients were computed

    @property
    def quantity(self) -> str:
        """What the evidence is."""
        return "value" if self.probability is None else "log odds"

    @property
    def limit(self) -> str:
        """What the method cannot say."""
        return LIMITS[self.method]

    @property
    def error(self) -> float:
        """The sum of the values minus `total`."""
        return sum(part.value for part in self.parts) - self.total

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as a dictionary that JSON accepts."""
        return asdict(self) | {"error": self.error}


def leave_one_out(
    classifier: Classifier, text: str, label: str = "", *, unit: Unit = "word", head: str = ""
) -> Explanation:
    """Compute how much the evidence for a label falls if one word or token is left out.

    This is exact: each value equals the evidence in the text minus the evidence in the text without
    the part, and the same for the probability. All variants are answered together.

    Limits: Token ids are removed, and the others stay as they are. A shortened text that is typed
    again may have other tokens, and therefore another answer. Only one part is missing at a time. If
    two words say the same, leaving out either of them changes little, although both together may
    decide. The values therefore need not add up to `total`, the evidence that disappears if all
    parts are left out. A shortened text may also be unlike every text of the training set.

    Source: Li, Monroe and Jurafsky 2016, "Understanding Neural Networks through Representation
    Erasure", https://arxiv.org/abs/1612.08220; Zeiler and Fergus 2014 for images.

    Args:
        classifier: The classifier.
        text: The text.
        label: The label to explain; by default the most probable label, or the first value.
        unit: Whether words or single tokens are left out (see `parts_of`).
        head: The name of the head; by default the first head.

    Raises:
        UsageError: The head or label is unknown, the head does not give one answer per text, or
            the classifier has n-grams.
    """
    about = Question.of(classifier, text, label, head)
    ranges = parts_of(about.tokens, classifier.tokenizer, unit)
    shortened = [about.tokens[:start] + about.tokens[end:] for start, end in ranges]
    outputs = _outputs(classifier, about.head, [about.tokens, *shortened, []])
    whole, *without, nothing = about.evidence(outputs).tolist()
    chance, *chances = about.probabilities([whole, *without])
    return about.explanation(
        "leave-one-out",
        whole,
        ranges,
        [whole - evidence for evidence in without],
        [None if chance is None else chance - other for other in chances],  # type: ignore[operator]
        baseline="every token left out",
        total=whole - nothing,
    )


def after_each_token(
    classifier: Classifier, text: str, label: str, *, head: str = ""
) -> list[tuple[str, float]]:
    """Return each token, and the label's probability (or the value) in the text up to it.

    These are the answers of `Classifier.predict_by_token`, which are exact. Limits: A token changes
    the answer to what came before it. The same token elsewhere may change it otherwise, and the
    answer may already be certain before an important word.

    The arguments and errors are those of `leave_one_out`.
    """
    name = Question.of(classifier, text, label, head).head.name
    found = []
    for token, answers in classifier.predict_by_token(text):
        answer = answers[name].as_dict()
        numbers = answer["values"] if "values" in answer else answer["probabilities"]
        found.append((token, numbers[label]))
    return found


# --- what is explained ---


@dataclass(frozen=True)
class Question:
    """What an explanation is about: a text as a classifier reads it, and one label of a head."""

    classifier: Classifier
    head: HeadConfig
    number: int  # of the label in the head
    tokens: list[int]  # n token ids, without an end token
    truncated: bool

    @classmethod
    def of(cls, classifier: Classifier, text: str, label: str = "", head: str = "") -> "Question":
        """Read a text, and choose the label to explain.

        The arguments and errors are those of `leave_one_out`.
        """
        classifier.refuse_ngrams("explanations")
        heads = {each.name: each for each in classifier.description.heads}
        found = heads.get(head or classifier.description.head.name)
        if found is None:
            raise UsageError(f"no head is named {head!r:.80}; there are {', '.join(heads)}")
        if not found.reads_one_state:
            raise UsageError(
                f"head {found.name!r} answers for every token; only one answer per text is explained"
            )
        if label and label not in found.labels:
            raise UsageError(f"unknown label {label!r:.80}; the head has {several(found.labels)}")
        (ids,), (truncated,) = classifier.encode([text])
        tokens = ids[: len(ids) - len(end_of(classifier))]
        about = cls(classifier, found, 0, tokens, truncated)
        if label:
            return replace(about, number=found.labels.index(label))
        outputs = _outputs(classifier, found, [tokens])
        evidence = [
            replace(about, number=n).evidence(outputs).item()
            for n in range(max(1, len(found.labels)))
        ]
        best = max(evidence) if found.task in CLASS_TASKS else evidence[0]
        return replace(about, number=evidence.index(best))

    def evidence(self, outputs: Tensor) -> Tensor:
        """The evidence for the label: outputs (N, K) -> (N,)."""
        return TASKS[self.head.task].evidence(self.head, outputs, self.number)

    def probabilities(self, evidence: Sequence[float]) -> list[float | None]:
        """The probability of the label for each amount of evidence; None for a value."""
        if self.head.task not in CLASS_TASKS:
            return [None] * len(evidence)
        return torch.tensor(evidence, dtype=torch.float64).sigmoid().tolist()

    def explanation(
        self,
        method: str,
        evidence: float,
        ranges: Sequence[tuple[int, int]],
        values: Sequence[float],
        probabilities: Sequence[float | None],
        **about: Any,
    ) -> Explanation:
        """Make an explanation.

        Args:
            method: The name of the method.
            evidence: The evidence in the text.
            ranges: The start and end of each part, in tokens.
            values: What each part adds to the evidence.
            probabilities: What each part adds to the probability.
            about: The explanation's baseline, total and steps.
        """
        tokens, tokenizer = self.tokens, self.classifier.tokenizer
        before = _characters_before(tokens, tokenizer)
        parts = []
        for (start, end), value, change in zip(ranges, values, probabilities, strict=True):
            first = before[start] - _continues(tokens[start], tokenizer)
            text = tokenizer.decode(tokens[start:end])
            parts.append(Part(text, (first, before[end]), (start, end), value, change))
        return Explanation(
            method,
            tokenizer.decode(tokens),
            self.truncated,
            self.head.name,
            self.head.labels[self.number],
            evidence,
            self.probabilities([evidence])[0],
            tuple(parts),
            **about,
        )


def end_of(classifier: Classifier) -> list[int]:
    """The end token that a classifier appends to every text, or nothing."""
    description = classifier.description
    return end_tokens(classifier.tokenizer) if description.reads_end_token else []


def _outputs(classifier: Classifier, head: HeadConfig, texts: Sequence[Sequence[int]]) -> Tensor:
    """Compute a head's outputs for texts without their end tokens: (N, K) float64, on the CPU.

    A text without tokens is read as `predict` reads an empty text.
    """
    nothing = [classifier.tokenizer.end_of_text_id]
    encoded = [[*tokens, *end_of(classifier)] or nothing for tokens in texts]
    # these poolings read padding up to the longest text of a batch
    alone = head.pooling in OF_PADS and classifier.description.pad_to is None
    rows = []
    for batch in [[ids] for ids in encoded] if alone else [encoded]:
        found: dict[int, Tensor] = {}
        for numbers, outputs, lengths in classifier.outputs(batch):
            refuse_infinite(head, outputs[head.name], lengths)
            found |= zip(numbers, outputs[head.name].double().cpu(), strict=True)
        rows += [found[n] for n in range(len(batch))]
    return torch.stack(rows)


# --- words and tokens ---


def parts_of(tokens: Sequence[int], tokenizer: Tokenizer, unit: Unit) -> list[tuple[int, int]]:
    """Divide the tokens of a text into parts: the start and end of each, in tokens.

    A word ends where a token ends at a word boundary of Unicode (UAX #29, which keeps "don't" and
    "1,000.50" together, and separates punctuation marks, Chinese characters and emoji). Tokens that
    contain pieces of the same character, or of several words, are therefore never separated. White
    space belongs to the word after it, and at the end to the last word.

    Raises UsageError for an unknown unit.
    """
    if unit not in ("word", "token"):
        raise UsageError(f"unknown unit {unit!r:.80}; choose from: word, token")
    if unit == "token":
        return [(n, n + 1) for n in range(len(tokens))]
    text, before = tokenizer.decode(tokens), _characters_before(tokens, tokenizer)
    borders = {found.start() for found in BOUNDARY.finditer(text)}
    starts = [0]
    for n in range(1, len(tokens)):
        at = before[n]
        is_border = at in borders and not _continues(tokens[n], tokenizer)
        if is_border and text[before[starts[-1]] : at].strip() and text[at:].strip():
            starts.append(n)
    return [*pairwise([*starts, len(tokens)])] if tokens else []


def _characters_before(tokens: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The number of characters that begin before each token, and in the whole text: n + 1."""
    begun = [sum(not _is_inside(byte) for byte in tokenizer.token_bytes(token)) for token in tokens]
    return [0, *accumulate(begun)]


def _continues(token: int, tokenizer: Tokenizer) -> bool:
    """Whether a token begins inside a character."""
    return _is_inside(tokenizer.token_bytes(token)[0])


def _is_inside(byte: int) -> bool:
    """Whether a byte of UTF-8 is not the first byte of its character."""
    return byte & 0xC0 == 0x80
