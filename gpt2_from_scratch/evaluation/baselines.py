"""What a text classifier must beat: answers from letters and words alone, without a model.

From always saying the same to logistic regression on pieces of words. Each is fitted on the
training part, and how strongly it is regularised is chosen on the validation part, as finetuning
chooses its epoch.

N texts, K classes, P patterns.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import Answered

log = logging.getLogger(__name__)

PENALTIES = (0.1, 1, 10, 100)  # C of scikit-learn: how little weights are held down
PATTERNS = (r"\d", r"\d{4,}", r"[£$€]", r"https?|www", r"\b[A-Z]{4,}\b", r"!", r"\?")
MOST_WORDS, MOST_PARTS = 500, 5  # of a regular expression: words to choose from, parts chosen
QUICK = ("commonest label", "length alone", "bag of words")


@dataclass(frozen=True)
class Baseline:
    """A fitted classifier: what it is called, and the probabilities (N, K) that it gives N texts."""

    name: str  # the kind of classifier; behind ": " what it learned, where that can be said
    probabilities: Callable[[Sequence[str]], np.ndarray]

    @property
    def kind(self) -> str:
        """The name without what was learned, which differs from split to split."""
        return self.name.split(": ")[0]


Fit = Callable[[Split, Sequence[str]], Baseline | None]


def fit_baselines(
    split: Split, labels: Sequence[str], *, quick: bool = False
) -> Iterator[Baseline]:
    """Each baseline as soon as it is fitted; `quick` leaves out those that take more than a moment.

    `labels` are the K classes in the order of the probabilities. What cannot be had of these texts
    is left out, and `say` is told. Raises UsageError without scikit-learn, DataError for an empty
    part and for a label of the split that is not among `labels`.
    """
    for fit in baseline_fits(quick=quick).values():
        if found := fit(split, labels):
            yield found


def baseline_fits(*, quick: bool = False) -> dict[str, Fit]:
    """{kind: a function that fits it, and gives None where there is nothing to fit}."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    characters = partial(TfidfVectorizer, analyzer="char", ngram_range=(2, 5), sublinear_tf=True)
    fits: dict[str, Fit] = {
        "commonest label": fit_commonest,
        "one regex": fit_regex,
        "length alone": fit_length,
        "bag of words": partial(fit_linear, "bag of words", CountVectorizer),
        "TF-IDF of words": partial(fit_linear, "TF-IDF of words", TfidfVectorizer),
        "TF-IDF of characters, 2 to 5": partial(
            fit_linear, "TF-IDF of characters, 2 to 5", characters
        ),
    }
    return {kind: fit for kind, fit in fits.items() if not quick or kind in QUICK}


def answered_by(
    baseline: Baseline,
    messages: Sequence[Message],
    labels: Sequence[str],
    near_twins: np.ndarray | None = None,
) -> Answered:
    """What a baseline says of labelled messages; `near_twins` (N,), bool, where known."""
    texts = [message.text for message in messages]
    return Answered(
        tuple(labels),
        texts,
        class_numbers(messages, labels),
        baseline.probabilities(texts),
        near_twins,
    )


def class_numbers(messages: Sequence[Message], labels: Sequence[str]) -> np.ndarray:
    """(N,) int: the number of each message's label. Raises DataError for one that is not known."""
    numbers = {label: k for k, label in enumerate(labels)}
    for message in messages:
        if message.label not in numbers:
            raise DataError(f"label {message.label!r:.80} is none of {', '.join(labels)}")
    return np.array([numbers[message.label] for message in messages], dtype=int)


# --- the baselines ---


def fit_commonest(split: Split, labels: Sequence[str]) -> Baseline:
    """Always the commonest label, with the shares that labels have in training."""
    counts = np.bincount(_train(split, labels)[1], minlength=len(labels))  # (K,)
    shares = counts / counts.sum()
    return Baseline(
        f"commonest label: {labels[int(shares.argmax())]}",
        lambda texts: np.tile(shares, (len(texts), 1)),
    )


def fit_regex(split: Split, labels: Sequence[str]) -> Baseline | None:
    """One regular expression: a text that matches has the one label, any other text the other.

    An alternation, grown greedily out of a few plain patterns and the commonest words: the part is
    added that lets most training texts more be right, while one does. Either label is tried as the
    one that matches. A probability is the label's share among the training texts that match, or
    that do not, one more of each label added. Only for two labels; None otherwise.
    """
    if len(labels) != 2:
        log.warning(f"one regex is left out: it tells two labels apart, not {len(labels)}")
        return None
    texts, true = _train(split, labels)
    candidates, hits = _candidates(texts)
    grown = [_grow(hits, true == k) for k in (0, 1)]
    k = max((0, 1), key=lambda k: (grown[k][1], -len(grown[k][0])))  # of equals the shorter
    parts, _ = grown[k]
    if not parts:
        log.warning("one regex is left out: none is right more often than always the same label")
        return None
    pattern = re.compile("|".join(_inline(candidates[n]) for n in parts))
    matches = _matches(pattern, texts)
    shares = np.array([_smoothed(true[matches == there]) for there in (0, 1)])  # (2, K)
    shown = "|".join(candidates[n] for n in parts)
    return Baseline(
        f"one regex: {shown} is {labels[k]}", lambda texts: shares[_matches(pattern, texts)]
    )


def fit_length(split: Split, labels: Sequence[str]) -> Baseline:
    """The number of characters alone: a decision tree of as many leaves as labels."""
    from sklearn.tree import DecisionTreeClassifier

    texts, true = _train(split, labels)
    tree = DecisionTreeClassifier(max_leaf_nodes=max(2, len(labels)), random_state=0)
    tree.fit(_lengths(texts), true)
    return Baseline(
        "length alone" + _cut_told(tree, labels),
        lambda texts: _in_order(tree.predict_proba(_lengths(texts)), tree.classes_, len(labels)),
    )


def fit_linear(
    name: str, vectorizer: Callable[[], Any], split: Split, labels: Sequence[str]
) -> Baseline | None:
    """Logistic regression on the features that `vectorizer()` makes of a text; None if it makes
    none, and where all training texts are of one label. C is the one of `PENALTIES` that is right
    most often on the validation part, of equals the smallest.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, true = _train(split, labels)
    analyze = vectorizer().build_analyzer()
    if not any(analyze(text) for text in texts):
        log.warning(f"{name} is left out: the training texts have none of its features")
        return None
    if len(set(true.tolist())) < 2:
        log.warning(f"{name} is left out: all training texts are of one label")
        return None
    val, val_true = [m.text for m in split.val], class_numbers(split.val, labels)
    best, most = None, -1
    for C in PENALTIES:
        classifier = make_pipeline(vectorizer(), LogisticRegression(max_iter=5000, C=C))
        classifier.fit(texts, true)
        right = int((classifier.predict(val) == val_true).sum())
        if right > most:
            best, most = classifier, right
    assert best is not None
    return Baseline(
        name, lambda texts: _in_order(best.predict_proba(texts), best.classes_, len(labels))
    )


# --- their parts ---


def _train(split: Split, labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Texts of the training part, and the numbers of their labels (N,)."""
    if not split.train or not split.val:
        raise DataError("a baseline is fitted on training texts and chosen on validation texts")
    return [message.text for message in split.train], class_numbers(split.train, labels)


def _in_order(shares: np.ndarray, classes: np.ndarray, K: int) -> np.ndarray:
    """Probabilities of the classes that training had as those of all: (N, fewer) -> (N, K)."""
    found = np.zeros((len(shares), K))
    found[:, classes] = shares
    return found


def _lengths(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text) for text in texts], dtype=float)[:, None]  # (N, 1)


def _cut_told(tree: Any, labels: Sequence[str]) -> str:
    """`: spam from 108 characters`, where a tree tells two labels apart by one cut."""
    below, above = (int(tree.predict([[length]])[0]) for length in (-1.0, np.finfo(np.float32).max))
    if len(labels) != 2 or below == above:
        return ""
    cut = int(np.floor(tree.tree_.threshold[0])) + 1
    return f": {labels[above]} from {cut} characters"


def _candidates(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Patterns to choose from, and which of the texts each matches: P of them, (P, N) bool."""
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    counts = Counter(word for text in texts for word in re.findall(r"\w+", text.lower()))
    common = [word for word, _ in counts.most_common(MOST_WORDS)]
    hits = [_matches(re.compile(pattern), texts) for pattern in PATTERNS]
    # \bword\b matches where a run of word characters is the word: to look it up is quicker
    hits += [np.array([word in some for some in words], dtype=int) for word in common]
    return [*PATTERNS, *(rf"\b{re.escape(word)}\b" for word in common)], np.array(hits, dtype=bool)


def _grow(hits: np.ndarray, wanted: np.ndarray) -> tuple[list[int], int]:
    """Greedily the patterns of an alternation, and how many texts it gets right.

    hits (P, N): the texts each pattern matches; wanted (N,): those that should match.
    """
    parts: list[int] = []
    right, left = int((~wanted).sum()), np.ones(len(wanted), dtype=bool)  # left: none matches yet
    while len(parts) < MOST_PARTS:
        gains = (hits & (left & wanted)).sum(axis=1) - (hits & (left & ~wanted)).sum(axis=1)
        best = int(gains.argmax())  # of equals the first: plain patterns, then the commoner word
        if gains[best] < 1:
            break
        parts.append(best)
        right, left = right + int(gains[best]), left & ~hits[best]
    return parts, right


def _inline(pattern: str) -> str:
    """A pattern as it stands in the alternation: words in upper or lower case."""
    return pattern if pattern in PATTERNS else f"(?i:{pattern})"


def _matches(pattern: re.Pattern, texts: Sequence[str]) -> np.ndarray:
    return np.array([pattern.search(text) is not None for text in texts], dtype=int)


def _smoothed(true: np.ndarray) -> np.ndarray:
    """Shares of two classes among some texts, as if there were one more of each."""
    counts = np.bincount(true, minlength=2) + 1
    return counts / counts.sum()
