"""Messages as what trains takes them up, and how well a classifier answers them. N texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2_from_scratch.batches import by_length
from gpt2_from_scratch.classifier import Classifier
from gpt2_from_scratch.data import Message
from gpt2_from_scratch.feature_store import FeatureStore
from gpt2_from_scratch.features import Texts
from gpt2_from_scratch.head_config import HeadConfig
from gpt2_from_scratch.losses import loss_sum
from gpt2_from_scratch.metrics import evaluate_predictions
from gpt2_from_scratch.predictions import answers
from gpt2_from_scratch.scores import (
    language_scores,
    multi_label_scores,
    regression_scores,
    span_scores,
    tag_scores,
)
from gpt2_from_scratch.targets import Targets, label_for, make_targets


@dataclass(frozen=True)
class Labelled:
    """Messages as what trains takes them up, and what each head ought to answer."""

    texts: Texts
    messages: list[Message]
    targets: dict[str, Targets]  # by the heads' names

    @property
    def labels(self) -> Tensor:
        """The number of each message's class, where the first head chooses one: (N,) int64."""
        values = next(iter(self.targets.values())).values
        assert isinstance(values, Tensor)
        return values


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
    encoded, cut = classifier.encode([message.text for message in messages])
    targets = {
        head.name: make_targets(head, messages, encoded, classifier.tokenizer)
        for head in classifier.description.heads
    }
    if any(cut):
        limit = classifier.description.max_tokens
        say(f"{sum(cut)} of {len(cut)} messages are longer than {limit} tokens and were cut")
    texts = classifier.texts(encoded, store=store, quiet=quiet, say=say)
    return Labelled(texts, [*messages], targets)


@torch.no_grad()
def loss_and_scores(classifier: Classifier, labelled: Labelled) -> tuple[float, dict[str, Any]]:
    """The weighted sum of the heads' mean losses, in nats, and the scores of each, over all texts."""
    classifier.model.eval()
    heads, messages = classifier.description.heads, labelled.messages
    encoded = labelled.texts.encoded
    losses = dict.fromkeys((head.name for head in heads), 0.0)
    found: dict[str, dict[int, Any]] = {head.name: {} for head in heads}
    for batch in by_length(encoded, 32):
        outputs, lengths = classifier.batch_outputs(labelled.texts, batch)
        some = [messages[n].text for n in batch], [encoded[n] for n in batch]
        for head in heads:
            targets = labelled.targets[head.name].batch(batch).to(lengths.device)
            if head.task != "features":
                losses[head.name] += float(loss_sum(head, outputs[head.name], targets, lengths))
            words = [label_for(head, messages[n]) or () for n in batch]
            tagged = words if head.task == "token-classification" else None
            told = answers(head, outputs[head.name], *some, classifier.tokenizer, tagged)
            found[head.name] |= zip(batch, told, strict=True)
    loss = sum(
        head.loss_weight
        * losses[head.name]
        / max(float(labelled.targets[head.name].weights.sum()), 1e-9)
        for head in heads
    )
    return loss, {
        head.name: _scores(head, messages, found[head.name])
        for head in heads
        if head.task != "features"
    }


def _scores(head: HeadConfig, messages: Sequence[Message], found: dict[int, Any]) -> Any:
    """The scores of one head over the messages that have a label for it."""
    if head.task == "language":
        every = found.values()
        sums = [
            sum(getattr(a, name) for a in every) for name in ("nats", "right", "tokens", "n_bytes")
        ]
        return language_scores(*sums)
    pairs = [(label_for(head, m), found[n], m) for n, m in enumerate(messages)]
    pairs = [pair for pair in pairs if pair[0] is not None]
    names = list(head.labels)
    if head.task == "classification":
        true, predicted = (
            np.array([names.index(label) for label in some], dtype=int)
            for some in ((label for label, _, _ in pairs), (a.label for _, a, _ in pairs))
        )
        return evaluate_predictions(true, predicted, names)
    if head.task == "multi-label":
        true, predicted = (
            np.array([[name in labels for name in names] for labels in some], dtype=bool)
            for some in ([label for label, _, _ in pairs], [a.labels for _, a, _ in pairs])
        )
        return multi_label_scores(true, predicted, names)
    if head.task == "regression":
        wanted = np.array([np.atleast_1d(label) for label, _, _ in pairs], dtype=float)
        values = np.array([[a.values[name] for name in names] for _, a, _ in pairs])
        return regression_scores(wanted, values, names)
    if head.task == "span":
        return span_scores(
            [m.text[s.start : s.end] for s, _, m in pairs], [a.text for _, a, _ in pairs]
        )
    return tag_scores(
        [[word.label for word in words] for words, _, _ in pairs],
        [[tag.label for tag in a.words] for _, a, _ in pairs],
        names,
    )
