"""Baselines for the tasks other than classification, without a language model.

Each baseline is fitted on the training set. The strength of its regularisation is selected on the
validation set. It answers a message in the form of the message's label: a Span with a tag per word,
a tuple of values, a tuple of labels, or the Span of an answer.

Shapes: N texts, K labels or values.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2_from_scratch.data.formats import context_start, values_in
from gpt2_from_scratch.data.messages import FINAL_MARKS, Message, Span
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.evaluation.baselines import (
    INVERSE_PENALTIES,
    features_of,
    refuse_empty,
    words_and_characters,
)

log = logging.getLogger(__name__)

TAG = "the most frequent tag of each word"
MEAN = "the mean of the training values"
RIDGE = "ridge regression on n-grams of words and characters"
PER_LABEL = "one logistic regression per label on n-grams of words and characters"
SENTENCE = "the sentence of the context that shares most words with the question"
SLOW = (RIDGE, PER_LABEL)
PENALTIES = (0.1, 0.3, 1, 3, 10, 30)  # values of scikit-learn's alpha for ridge regression
# a sentence ends at a mark before white space, or at the end of its line
SENTENCES = re.compile(rf"\S(?:.*?(?<=[{FINAL_MARKS}])(?=\s)|.*)")


@dataclass(frozen=True)
class TaskBaseline:
    """A fitted baseline; its name can be the subject of a sentence."""

    name: str
    answers: Callable[[Sequence[Message]], list[Any]]  # N messages -> N answers, as labels


Fit = Callable[[Split, Sequence[str]], TaskBaseline | None]


def fit_task_baselines(
    task: str, split: Split, labels: Sequence[str], *, quick: bool = False
) -> Iterator[TaskBaseline]:
    """Fit the baselines of a task one by one; classification has its own in `baselines.py`.

    A baseline that cannot be fitted to these texts is skipped, and the reason is logged.

    Args:
        task: The task.
        split: The messages.
        labels: The K labels, or the names of the K values.
        quick: Skip slow baselines.

    Raises:
        DataError: The training or validation set is empty.
    """
    refuse_empty(split)
    for name, fit in FITS.get(task, {}).items():
        if quick and name in SLOW:
            log.warning(f"skipping {name}: the training set is too large")
        elif found := fit(split, labels):
            yield found


def fit_most_frequent_tag(split: Split, labels: Sequence[str] = ()) -> TaskBaseline | None:
    """Fit the baseline that gives each word its most frequent tag in training.

    Unknown words get the most frequent tag of all. On a tie, the tag that was seen first is used.
    Returns None if there are no tagged words. Source: Jurafsky & Martin, Speech and Language
    Processing, the most frequent class baseline.
    """
    counts: dict[str, Counter[str]] = {}
    overall = Counter[str]()
    for message in split.train:
        for start, end, tag in message.label:
            counts.setdefault(message.text[start:end], Counter())[tag] += 1
            overall[tag] += 1
    if not overall:
        log.warning(f"skipping {TAG}: the training texts have no tagged words")
        return None
    unknown = overall.most_common(1)[0][0]
    known = {word: its_counts.most_common(1)[0][0] for word, its_counts in counts.items()}

    def tagged(message: Message) -> tuple[Span, ...]:
        return tuple(
            Span(start, end, known.get(message.text[start:end], unknown))
            for start, end, _ in message.label
        )

    return TaskBaseline(TAG, lambda messages: [tagged(message) for message in messages])


def fit_mean(split: Split, names: Sequence[str]) -> TaskBaseline:
    """Fit the baseline that always predicts the mean of each value in the training set."""
    mean = tuple(_values(split.train).mean(axis=0).tolist())
    return TaskBaseline(MEAN, lambda messages: [mean] * len(messages))


def fit_mean_of_tokens(split: Split, names: Sequence[str] = ()) -> TaskBaseline | None:
    """Fit the baseline that predicts the mean value at every position; None without any value."""
    values = [value for message in split.train for (value,) in values_in(message.label)]
    if not values:
        return None
    mean = float(np.mean(values))

    def answers(messages: Sequence[Message]) -> list[Any]:
        labels = [message.label for message in messages]
        return [
            tuple((position, mean) for position, _ in label) if isinstance(label, tuple) else mean
            for label in labels
        ]

    return TaskBaseline(MEAN, answers)


def fit_ridge(split: Split, names: Sequence[str]) -> TaskBaseline | None:
    """Fit ridge regression on n-grams of words and characters.

    The penalty is the value in `PENALTIES` with the smallest error on the validation set: the
    squared error, averaged over texts and values, each in units of its standard deviation in
    training. Returns None if the texts have no n-grams.
    """
    from sklearn.linear_model import Ridge

    found = features_of(RIDGE, words_and_characters, split)
    if found is None:
        return None
    vectorizer, train, val = found
    values = _values(split.train)  # (N, K)
    center, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale == 0] = 1.0  # a constant value
    val_values = (_values(split.val) - center) / scale

    def standardised(model: Any, features: Any) -> np.ndarray:
        return model.predict(features).reshape(-1, len(scale))

    models = [Ridge(alpha=penalty).fit(train, (values - center) / scale) for penalty in PENALTIES]
    best = min(models, key=lambda model: ((standardised(model, val) - val_values) ** 2).mean())

    def answers(messages: Sequence[Message]) -> list[tuple[float, ...]]:
        features = vectorizer.transform([message.text for message in messages])
        return [*map(tuple, (standardised(best, features) * scale + center).tolist())]

    return TaskBaseline(RIDGE, answers)


def fit_per_label(split: Split, labels: Sequence[str]) -> TaskBaseline | None:
    """Fit one logistic regression per label on n-grams of words and characters.

    A label is predicted if its probability is above 0.5. C is the value in `INVERSE_PENALTIES` with
    the highest micro F1 on the validation set; it is the same for all labels. Returns None if the
    texts have no n-grams.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    found = features_of(PER_LABEL, words_and_characters, split)
    if found is None:
        return None
    vectorizer, train, val = found
    true, val_true = (  # (N, K) bool
        np.array([[label in message.label for label in labels] for message in part])
        for part in (split.train, split.val)
    )

    def fitted(C: float) -> list[Any]:
        return [
            LogisticRegression(solver="liblinear", C=C).fit(train, column)
            if column.min() < column.max()
            else DummyClassifier(strategy="prior").fit(train, column)  # all texts, or none
            for column in true.T
        ]

    def predicted(models: list[Any], features: Any) -> np.ndarray:
        return np.stack([model.predict(features) for model in models], axis=1)

    best = max(
        map(fitted, INVERSE_PENALTIES),
        key=lambda models: f1_score(
            val_true, predicted(models, val), average="micro", zero_division=0
        ),
    )

    def answers(messages: Sequence[Message]) -> list[tuple[str, ...]]:
        rows = predicted(best, vectorizer.transform([message.text for message in messages]))
        return [tuple(label for label, yes in zip(labels, row, strict=True) if yes) for row in rows]

    return TaskBaseline(PER_LABEL, answers)


def fit_word_overlap(split: Split, labels: Sequence[str] = ()) -> TaskBaseline:
    """The baseline that answers with the sentence that shares most words with the question.

    Words are compared in lower case, and each counts once. On a tie, the first sentence is used.
    Nothing is learned.
    """
    return TaskBaseline(
        SENTENCE, lambda messages: [_closest_sentence(message.text) for message in messages]
    )


def _closest_sentence(text: str) -> Span:
    """The sentence of the context that shares most words with the question, or an empty Span."""
    begins = context_start(text)
    asked = _words(text[:begins])
    sentences = [Span(*match.span()) for match in SENTENCES.finditer(text, begins)]
    return max(
        sentences,
        key=lambda span: len(asked & _words(text[span.start : span.end])),
        default=Span(len(text), len(text)),
    )


def _words(text: str) -> set[str]:
    return {*re.findall(r"\w+", text.lower())}


def _values(messages: Sequence[Message]) -> np.ndarray:
    return np.array([np.atleast_1d(message.label) for message in messages], dtype=float)  # (N, K)


FITS: dict[str, dict[str, Fit]] = {  # the tasks' names are those of data.formats.TASKS
    "token-classification": {TAG: fit_most_frequent_tag},
    "regression": {MEAN: fit_mean, RIDGE: fit_ridge},
    "token-regression": {MEAN: fit_mean_of_tokens},
    "multi-label": {PER_LABEL: fit_per_label},
    "span": {SENTENCE: fit_word_overlap},
}
