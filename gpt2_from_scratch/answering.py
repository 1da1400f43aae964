"""A classifier's answers to labelled texts, and the temperature that makes its shares honest.

N texts, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from gpt2_from_scratch.answered import Answered
from gpt2_from_scratch.calibration import fit_temperature
from gpt2_from_scratch.classifier import Classifier
from gpt2_from_scratch.data import Message
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.feature_store import FeatureStore
from gpt2_from_scratch.labelled import to_labelled
from gpt2_from_scratch.losses import class_scores


def class_logits_of(
    classifier: Classifier,
    messages: Sequence[Message],
    *,
    store: FeatureStore | None = None,
    say: Callable[[str], None] = print,
) -> tuple[np.ndarray, np.ndarray]:
    """What the first head gives each class, before any softmax (N, K) float64, and true classes (N,).

    Raises UsageError for a head that does not choose one class, DataError for an unknown label.
    """
    head = classifier.description.head
    if head.task != "classification":
        raise UsageError(f"head {head.name!r} is for {head.task}; this is for classification")
    labelled = to_labelled(classifier, messages, store=store, say=say)
    with torch.no_grad():
        scores = class_scores(head, classifier.all_logits(labelled.texts))
    return scores.double().numpy(), labelled.labels.numpy()


def answered_with(
    classifier: Classifier,
    messages: Sequence[Message],
    *,
    store: FeatureStore | None = None,
    say: Callable[[str], None] = print,
) -> Answered:
    """What a classifier says of labelled messages. Raises as `class_logits_of` does."""
    logits, true = class_logits_of(classifier, messages, store=store, say=say)
    return answers_at(classifier.description.head.temperature, classifier, messages, logits, true)


def answers_at(
    temperature: float,
    classifier: Classifier,
    messages: Sequence[Message],
    logits: np.ndarray,
    true: np.ndarray,
    near_twins: np.ndarray | None = None,
) -> Answered:
    """The answers that logits (N, K) of messages give at a temperature; `near_twins` (N,) are the
    texts to which training had one that is nearly the same.
    """
    shares = torch.from_numpy(logits / temperature).softmax(dim=1).numpy()
    texts = [message.text for message in messages]
    return Answered(classifier.description.head.labels, texts, true, shares, near_twins)


def calibrate(
    classifier: Classifier,
    messages: Sequence[Message],
    *,
    store: FeatureStore | None = None,
    say: Callable[[str], None] = print,
) -> Answered:
    """Set the first head's temperature by messages it was not trained on; its answers to them, then.

    No answer changes, only how sure it claims to be. Source: Guo et al. 2017, "On Calibration of
    Modern Neural Networks". Raises as `class_logits_of` does.
    """
    logits, true = class_logits_of(classifier, messages, store=store, say=say)
    temperature = fit_temperature(logits, true)
    first, *others = classifier.description.heads
    heads = (replace(first, temperature=temperature), *others)
    classifier.description = replace(classifier.description, heads=heads)
    return answers_at(temperature, classifier, messages, logits, true)
