"""Baselines for text classifiers, without a language model.

They predict labels from characters and words. Each baseline is fitted with scikit-learn on the
training set. The strength of its regularisation is selected on the validation set, just as
finetuning selects its best epoch there.

Shapes: N texts, K classes.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions, several

log = logging.getLogger(__name__)

INVERSE_PENALTIES = (0.1, 1, 10, 100)  # values of scikit-learn's C for the linear baselines
PATTERNS = (r"\d", r"\d{4,}", r"[£$€]", r"https?|www", r"\b[A-Z]{4,}\b", r"!", r"\?")
MOST_HINTS = 500  # patterns and words that the tree can use; only the most common ones are used
WORDS_AND_CHARACTERS = "TF-IDF of words and characters"  # usually the strongest baseline
QUICK = ("commonest label", "length alone", "bag of words")


@dataclass(frozen=True)
class Baseline:
    """A fitted classifier."""

    name: str  # the kind of classifier, followed by ": " and the learned rule if it is short
    probabilities: Callable[[Sequence[str]], np.ndarray]  # N texts -> (N, K)

    @property
    def kind(self) -> str:
        """The name without the learned rule, which depends on the split."""
        return self.name.split(": ")[0]


Fit = Callable[[Split, Sequence[str]], Baseline | None]


def fit_baselines(
    split: Split,
    labels: Sequence[str],
    *,
    quick: bool = False,
    fitted: Sequence[Baseline] = (),
) -> Iterator[Baseline]:
    """Fit the baselines one by one.

    With `quick`, slow baselines are skipped. `labels` are the K classes in the order of the
    probabilities. Baselines that are already `fitted` to the split are not fitted again. A baseline
    that cannot be fitted to these texts is skipped, and the reason is logged. Raises DataError if
    the training or validation set is empty, or if the split has a label that is not in `labels`.
    """
    known = {baseline.kind: baseline for baseline in fitted}
    fits = baseline_fits(quick=quick)
    for kind in fits | known:
        if found := known.get(kind) or fits[kind](split, labels):
            yield found


def baseline_fits(*, quick: bool = False) -> dict[str, Fit]:
    """Return {kind: function that fits this baseline}.

    The function returns None if the baseline cannot be fitted.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    fits: dict[str, Fit] = {
        "commonest label": fit_commonest,
        "patterns and words": fit_patterns,
        "length alone": fit_length,
    }
    for kind, vectorizer in (
        ("bag of words", CountVectorizer),
        ("TF-IDF of words", TfidfVectorizer),
        ("TF-IDF of characters, 2 to 5", characters),
        (WORDS_AND_CHARACTERS, words_and_characters),
    ):
        fits[kind] = partial(fit_linear, kind, vectorizer)
    return {kind: fit for kind, fit in fits.items() if not quick or kind in QUICK}


def predictions_of(
    baseline: Baseline,
    messages: Sequence[Message],
    labels: Sequence[str],
    near_duplicates: np.ndarray | None = None,
) -> LabelledPredictions:
    """Apply a baseline to labelled messages.

    Args:
        baseline: a fitted baseline.
        messages: the N labelled messages.
        labels: the K classes in the order of the baseline's probabilities.
        near_duplicates: whether the training set contains a near duplicate of each message, (N,)
            bool; None if unknown.

    Returns:
        The labelled predictions.

    Raises:
        DataError: a message has a label that is not in `labels`.
    """
    texts = [message.text for message in messages]
    true, probabilities = class_numbers(messages, labels), baseline.probabilities(texts)
    return LabelledPredictions(tuple(labels), texts, true, probabilities, near_duplicates)


def class_numbers(messages: Sequence[Message], labels: Sequence[str]) -> np.ndarray:
    """Return the index of each message's label: (N,) int. Raises DataError for an unknown label."""
    numbers = {label: k for k, label in enumerate(labels)}
    for message in messages:
        if message.label not in numbers:
            raise DataError(
                f"unknown label {message.label!r:.80}; the labels are: {several(labels)}"
            )
    return np.array([numbers[message.label] for message in messages], dtype=int)


# --- The baselines ---


def fit_commonest(split: Split, labels: Sequence[str]) -> Baseline:
    """Fit a baseline that always predicts the most common training label.

    Each label's probability is its proportion in the training set.
    """
    from sklearn.dummy import DummyClassifier

    texts, true = _training_set(split, labels)
    model = DummyClassifier(strategy="prior").fit(texts, true)
    commonest = labels[model.predict(texts[:1])[0]]
    return _as_baseline(f"commonest label: {commonest}", model, labels)


def fit_patterns(split: Split, labels: Sequence[str]) -> Baseline | None:
    """Fit a decision tree on patterns and words.

    The tree asks at most three times whether a text has a certain pattern or word. It can use
    `PATTERNS` and the most common words of the training set. Returns None if no pattern or word
    changes the prediction.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.tree import DecisionTreeClassifier

    texts, true = _training_set(split, labels)
    vectorizer = CountVectorizer(analyzer=_hints, binary=True, max_features=MOST_HINTS)
    tree = DecisionTreeClassifier(max_depth=3, random_state=0)
    if any(map(_hints, texts)):
        model = make_pipeline(vectorizer, tree).fit(texts, true)
        names = [labels[k] for k in tree.classes_]
        rule = _rule(tree.tree_, vectorizer.get_feature_names_out(), names)
        if rule not in labels:
            return _as_baseline(f"patterns and words: {rule}", model, labels)
    log.warning("skipping patterns and words: no pattern or word changes the prediction")
    return None


def fit_length(split: Split, labels: Sequence[str]) -> Baseline:
    """Fit a decision tree on the number of characters only. It has one leaf per label."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.tree import DecisionTreeClassifier

    texts, true = _training_set(split, labels)
    tree = DecisionTreeClassifier(max_leaf_nodes=max(2, len(labels)), random_state=0)
    model = make_pipeline(FunctionTransformer(_lengths), tree).fit(texts, true)
    learned = ""
    below, above = (int(tree.predict([[n]])[0]) for n in (-1.0, np.finfo(np.float32).max))
    if len(labels) == 2 and below != above:  # the tree has a single threshold
        learned = f": {labels[above]} from {int(np.floor(tree.tree_.threshold[0])) + 1} characters"
    return _as_baseline("length alone" + learned, model, labels)


def characters() -> Any:
    """Make a vectorizer of character n-grams of lengths 2 to 5."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True)


def words_and_characters() -> Any:
    """Make a vectorizer of words, pairs of words, and character n-grams of lengths 2 to 5."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), characters())


def features_of(
    name: str, vectorizer: Callable[[], Any], split: Split
) -> tuple[Any, Any, Any] | None:
    """Fit a vectorizer on the training texts.

    Args:
        name: name of the baseline, for the log.
        vectorizer: makes a scikit-learn vectorizer.
        split: the texts.

    Returns:
        The fitted vectorizer and the features of the training and validation texts, or None if the
        training texts have no features.
    """
    fitted = vectorizer()
    try:
        train = fitted.fit_transform([message.text for message in split.train])
    except ValueError:  # scikit-learn refuses an empty vocabulary
        log.warning(f"skipping {name}: the training texts have none of its features")
        return None
    return fitted, train, fitted.transform([message.text for message in split.val])


def fit_linear(
    name: str, vectorizer: Callable[[], Any], split: Split, labels: Sequence[str]
) -> Baseline | None:
    """Fit the baseline of `linear_model`, which describes the arguments and errors."""
    model = linear_model(name, vectorizer, split, labels)
    return None if model is None else _as_baseline(name, model, labels)


def linear_model(
    name: str, vectorizer: Callable[[], Any], split: Split, labels: Sequence[str]
) -> Any:
    """Fit logistic regression on features of the texts.

    Args:
        name: name of the baseline.
        vectorizer: makes a scikit-learn vectorizer, which computes the features.
        split: the texts. C is the value in `INVERSE_PENALTIES` with the most correct predictions on
            the validation set, or the smallest of these values on a tie.
        labels: the K classes in the order of the probabilities.

    Returns:
        scikit-learn's pipeline of the vectorizer and the regression, or None if the training texts
        have no features or only one label.

    Raises:
        DataError: the training or validation set is empty, or a label is not in `labels`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    true = _training_set(split, labels)[1]
    if len(set(true.tolist())) < 2:
        log.warning(f"skipping {name}: all training texts have the same label")
        return None
    found = features_of(name, vectorizer, split)
    if found is None:
        return None
    fitted, features, val = found
    val_true = class_numbers(split.val, labels)
    models = [LogisticRegression(max_iter=5000, C=C).fit(features, true) for C in INVERSE_PENALTIES]
    best = max(models, key=lambda model: model.score(val, val_true))
    return make_pipeline(fitted, best)


def refuse_empty(split: Split) -> None:
    """Raise DataError if the training or validation set is empty."""
    if not split.train or not split.val:
        raise DataError(
            "a baseline needs a training set and a validation set; one of them is empty"
        )


def _training_set(split: Split, labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the training texts and the indices of their labels (N,)."""
    refuse_empty(split)
    return [message.text for message in split.train], class_numbers(split.train, labels)


def _as_baseline(name: str, model: Any, labels: Sequence[str]) -> Baseline:
    """Wrap a fitted scikit-learn model.

    A label that is not in the training set gets probability 0.
    """

    def probabilities(texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), len(labels)))
        if len(texts):
            found[:, model.classes_] = model.predict_proba(texts)
        return found

    return Baseline(name, probabilities)


def _hints(text: str) -> set[str]:
    """Return the patterns and words that a text contains. No pattern can also be a word."""
    return {p for p in PATTERNS if re.search(p, text)} | {*re.findall(r"\w+", text.lower())}


def _lengths(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text) for text in texts], dtype=float)[:, None]  # (N, 1)


def _rule(tree: Any, features: Sequence[str], labels: Sequence[str], node: int = 0) -> str:
    """Format a tree as text.

    An example is `spam if \\d{4,} else (spam if free else ham)`.
    """
    left, right = tree.children_left[node], tree.children_right[node]
    if left == right:  # a leaf
        return labels[int(tree.value[node][0].argmax())]
    without, with_it = (_rule(tree, features, labels, child) for child in (left, right))
    if without == with_it:
        return without
    without, with_it = (f"({r})" if r not in labels else r for r in (without, with_it))
    return f"{with_it} if {features[tree.feature[node]]} else {without}"
