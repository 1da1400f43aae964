"""How good a model is at tasks other than one class a text; that one is in metrics.py.

Every kind of scores has `main`, the number epochs are chosen by (higher is better), and `measure`,
its name. Where `main` is not defined, as nothing could be divided by, it counts as 0.

N texts, K labels or values.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from gpt2_from_scratch.data.formats import entities, is_bio
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import (
    ClassScores,
    Evaluation,
    class_scores,
    evaluate_predictions,
    wilson_interval,
)

# --- any of K labels a text ---


@dataclass(frozen=True)
class MultiLabelScores:
    """The scores of sets of labels."""

    measure: ClassVar[str] = "micro F1"
    exact: int  # texts with exactly the right set
    total: int
    interval: tuple[float, float]  # 95 % Wilson interval of the share of these
    micro_f1: float | None  # of all answers (N × K) together
    macro_f1: float | None  # mean over the labels that have an F1
    classes: list[ClassScores]

    @property
    def main(self) -> float:
        """Micro F1."""
        return self.micro_f1 or 0.0


def multi_label_scores(
    true: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> MultiLabelScores:
    """Score sets of labels: true and predicted (N, K), bool. Raises DataError for N = 0."""
    _check_shapes(true, predicted, labels)
    hits, called = (true & predicted).sum(axis=0), predicted.sum(axis=0)  # (K,)
    support = true.sum(axis=0)  # (K,)
    classes = [
        class_scores(label, int(hits[k]), int(called[k]), int(support[k]))
        for k, label in enumerate(labels)
    ]
    exact, total = int((true == predicted).all(axis=1).sum()), len(true)
    return MultiLabelScores(
        exact,
        total,
        wilson_interval(exact, total),
        class_scores("all", int(hits.sum()), int(called.sum()), int(support.sum())).f1,
        _mean([scores.f1 for scores in classes]),
        classes,
    )


# --- K numbers a text ---


@dataclass(frozen=True)
class ValueScores:
    """One of the values that are predicted. None for what a constant value leaves undefined."""

    name: str
    pearson: float | None
    spearman: float | None
    r2: float | None  # 1 - sum of squared errors / sum of squared distances from the mean
    rmse: float  # in the value's own unit, as is
    mae: float


@dataclass(frozen=True)
class RegressionScores:
    """The scores of predicted numbers."""

    measure: ClassVar[str] = "mean R2"
    total: int
    mean_r2: float | None  # over the values that have one
    values: list[ValueScores]

    @property
    def main(self) -> float:
        """Mean R2; 0, as for answering the mean, where no value has one."""
        return self.mean_r2 or 0.0


def regression_scores(
    true: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> RegressionScores:
    """Score numbers: true and predicted (N, K), in the values' own units.

    Raises DataError for N = 0 and for what is no finite number.
    """
    _check_shapes(true, predicted, names)
    for what, numbers in (("true", true), ("predicted", predicted)):
        finite = np.isfinite(numbers).all(axis=1)  # (N,)
        if not finite.all():
            n = int(finite.argmin())
            raise DataError(f"text {n}, counted from 0: {what} values {numbers[n]} are not finite")
    true, predicted = true.astype(np.float64), predicted.astype(np.float64)  # (N, K)
    values = [_value_scores(name, true[:, k], predicted[:, k]) for k, name in enumerate(names)]
    return RegressionScores(len(true), _mean([value.r2 for value in values]), values)


def _value_scores(name: str, true: np.ndarray, predicted: np.ndarray) -> ValueScores:
    """One value: true and predicted (N,)."""
    errors = predicted - true
    pearson = spearman = r2 = None
    # by comparison: the mean of equal numbers may be off by rounding, and the variance not 0
    if true.min() < true.max():
        r2 = float(1 - (errors**2).sum() / ((true - true.mean()) ** 2).sum())
        pearson = _correlation(true, predicted, "pearson")
        spearman = _correlation(true, predicted, "spearman")
    rmse, mae = math.sqrt((errors**2).mean()), float(np.abs(errors).mean())
    return ValueScores(name, pearson, spearman, r2, rmse, mae)


def _correlation(true: np.ndarray, predicted: np.ndarray, method: str) -> float | None:
    import pandas  # here, as it takes half a second

    # of a table: Series.corr would want SciPy for Spearman's
    table = pandas.DataFrame({"true": true, "predicted": predicted})
    found = float(table.corr(method=method).loc["true", "predicted"])
    return None if math.isnan(found) else found  # answers that are all the same


# --- a tag for every word ---


@dataclass(frozen=True)
class TagScores:
    """The scores of tagged words."""

    correct: int  # words with the right tag
    total: int
    interval: tuple[float, float]  # 95 % Wilson interval, as if words were right independently
    entities: ClassScores | None  # all of them together; None where tags do not name entities
    classes: list[ClassScores]  # one a type of entity, or one a tag

    @property
    def accuracy(self) -> float:
        """The share of words with the right tag."""
        return self.correct / self.total

    @property
    def main(self) -> float:
        """F1 of entities, if the tags name such; else the accuracy."""
        return self.accuracy if self.entities is None else self.entities.f1 or 0.0

    @property
    def measure(self) -> str:
        """Which of the two `main` is."""
        return "word accuracy" if self.entities is None else "entity F1"


def tag_scores(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str] = ()
) -> TagScores:
    """Score the tags of words, one list a text.

    An entity counts as found if its first word, its last and its type are all right. `labels`,
    all tags there can be, tells that tags name entities even where all words here are O. Raises
    DataError for texts without a word. Source: Tjong Kim Sang & De Meulder 2003 (CoNLL).
    """
    pairs = [
        (a, b)
        for tags, answers in zip(true, predicted, strict=True)
        for a, b in zip(tags, answers, strict=True)
    ]
    correct, total = sum(a == b for a, b in pairs), len(pairs)
    interval = wilson_interval(correct, total)
    names = [*dict.fromkeys([*labels, *sorted({tag for pair in pairs for tag in pair})])]
    if is_bio(names):
        types = sorted({name[2:] for name in names if name != "O"})
        everything, classes = _entity_scores(true, predicted, types)
        return TagScores(correct, total, interval, everything, classes)
    number = {name: k for k, name in enumerate(names)}
    numbers = np.array([(number[a], number[b]) for a, b in pairs])  # (words, 2)
    classes = evaluate_predictions(numbers[:, 0], numbers[:, 1], names).classes
    return TagScores(correct, total, interval, None, classes)


def _entity_scores(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], types: Sequence[str]
) -> tuple[ClassScores, list[ClassScores]]:
    """The scores of all entities together, and of each type."""
    hits, called, support = Counter[str](), Counter[str](), Counter[str]()
    for tags, answers in zip(true, predicted, strict=True):
        there, found = set(entities(tags)), set(entities(answers))
        support.update(kind for _, _, kind in there)
        called.update(kind for _, _, kind in found)
        hits.update(kind for _, _, kind in there & found)
    classes = [class_scores(kind, hits[kind], called[kind], support[kind]) for kind in types]
    return class_scores("all", hits.total(), called.total(), support.total()), classes


# --- an answer inside a text ---


@dataclass(frozen=True)
class SpanScores:
    """The scores of answers that are pieces of texts."""

    measure: ClassVar[str] = "F1"
    exact: int  # the same answer after normalisation
    total: int
    interval: tuple[float, float]  # 95 % Wilson interval of the share of these
    f1: float  # mean over the texts of the F1 of an answer's words

    @property
    def main(self) -> float:
        """The mean F1."""
        return self.f1


def span_scores(true: Sequence[str], predicted: Sequence[str]) -> SpanScores:
    """Score answers, one a text. Raises DataError for none.

    Answers are compared as lists of words, by `answer_words`. Two without any word agree, as in
    SQuAD 2.0. Source: Rajpurkar et al. 2016 (SQuAD 1.1).
    """
    pairs = [(answer_words(a), answer_words(b)) for a, b in zip(true, predicted, strict=True)]
    exact, total = sum(a == b for a, b in pairs), len(pairs)
    interval = wilson_interval(exact, total)
    return SpanScores(exact, total, interval, math.fsum(_word_f1(a, b) for a, b in pairs) / total)


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def answer_words(answer: str) -> list[str]:
    """The words of an answer as SQuAD compares them: lower case, no ASCII punctuation, no articles.

    Punctuation goes first and leaves no gap: "U.S." is us, "well-known" is wellknown.
    """
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()


def _word_f1(true: list[str], predicted: list[str]) -> float:
    """F1 of the words two answers share, each as often as both have it."""
    if not true and not predicted:
        return 1.0
    shared = (Counter(true) & Counter(predicted)).total()
    return 2 * shared / (len(true) + len(predicted))


# --- the next token ---


@dataclass(frozen=True)
class LanguageScores:
    """The scores of a language model on some text."""

    measure: ClassVar[str] = "next-token accuracy"
    right: int  # tokens that were the likeliest
    tokens: int
    nats_per_token: float  # mean cross-entropy
    perplexity: float | None  # e to this power; None beyond what a float can hold
    bits_per_byte: float | None  # comparable between tokenizers; None for no bytes

    @property
    def main(self) -> float:
        """The share of next tokens guessed."""
        return self.right / self.tokens


def language_scores(nats: float, right: int, tokens: int, n_bytes: int) -> LanguageScores:
    """Score the guessing of `tokens` next tokens, which are `n_bytes` of text in UTF-8.

    `nats` is the sum of their cross-entropies, not the mean; `right` of them were the likeliest.
    Raises DataError for no tokens.
    """
    if tokens < 1:
        raise DataError("there is nothing to evaluate: no tokens to guess")
    mean = nats / tokens
    perplexity = math.exp(mean) if mean < math.log(np.finfo(float).max) else None
    bits = nats / math.log(2) / n_bytes if n_bytes else None
    return LanguageScores(right, tokens, mean, perplexity, bits)


# --- as a person reads them ---

Scores = Evaluation | MultiLabelScores | RegressionScores | TagScores | SpanScores | LanguageScores


def scores_as_json(scores: Any) -> dict[str, Any]:
    """Scores of any task as JSON takes them, the main measure first, under its name."""
    name = scores.measure.replace(" ", "_").replace("-", "_").lower()
    return {name: scores.main} | asdict(scores)


def _check_shapes(true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> None:
    """Numpy would broadcast (N, 1) and (N,) to (N, N), and score that."""
    if not len(true):
        raise DataError("there is nothing to evaluate: no labelled texts")
    if not true.shape == predicted.shape == (len(true), len(names)):
        raise DataError(
            f"true {true.shape} and predicted {predicted.shape} must both be "
            f"({len(true)}, {len(names)}): a row a text, a column a name"
        )


def _mean(values: list[float | None]) -> float | None:
    """The mean of those that are defined."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
