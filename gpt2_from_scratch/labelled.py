"""Messages as what trains takes them up. N texts, K classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch.classifier import Classifier
from gpt2_from_scratch.data import Message
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.feature_store import FeatureStore
from gpt2_from_scratch.features import Texts


@dataclass(frozen=True)
class Labelled:
    """Messages as what trains takes them up, and the number of each one's class."""

    texts: Texts
    labels: Tensor  # (N,) int64


def to_labelled(
    classifier: Classifier,
    messages: Sequence[Message],
    *,
    store: FeatureStore | None = None,
    quiet: bool = True,
    say: Callable[[str], None] = print,
) -> Labelled:
    """Encode messages for a classifier, run what is frozen of it, say how many had to be cut.

    Raises DataError for a label the classifier does not know.
    """
    names = classifier.description.labels
    unknown = sorted({message.label for message in messages} - set(names))
    if unknown:
        raise DataError(f"labels {unknown} are none of the classifier's {names}")
    encoded, cut = classifier.encode([message.text for message in messages])
    if any(cut):
        limit = classifier.description.max_tokens
        say(f"{sum(cut)} of {len(cut)} messages are longer than {limit} tokens and were cut")
    texts = classifier.texts(encoded, store=store, quiet=quiet, say=say)
    return Labelled(texts, torch.tensor([names.index(message.label) for message in messages]))


def loss_and_accuracy(classifier: Classifier, labelled: Labelled) -> tuple[float, float]:
    """Mean cross-entropy in nats and the share of right answers, over all texts."""
    logits = classifier.all_logits(labelled.texts)
    right = logits.argmax(dim=1) == labelled.labels
    return F.cross_entropy(logits, labelled.labels).item(), right.float().mean().item()
