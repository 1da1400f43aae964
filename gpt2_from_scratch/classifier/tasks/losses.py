"""What each task holds against a head's outputs: its loss, and how much of it was right.

Sums, not means: a batch may go through in parts, and the tokens of a text are not as many as those
of the next. `Targets.weights` says what to divide by.

B texts, T tokens of the longest, K outputs of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.targets import IGNORED


def loss_sum(head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """The sum of the losses of all decisions of a batch, each weighed by its class: a number.

    classification: outputs (B, K), targets (B,): cross-entropy. token-classification and language:
    (B, T, K), (B, T): the same, token by token. multi-label: (B, K), (B, K) of 0 and 1: binary
    cross-entropy, the mean over labels. regression: (B, K), (B, K): squared error, the mean over
    values. span: (B, T, 2), (B, 2): the mean of the cross-entropies of start and end over the
    text's real tokens. Losses are in nats. What has no target (IGNORED, or NaN) has no loss.
    """
    if head.task == "multi-label":
        known = ~targets.isnan().any(dim=1)
        soft = targets[known] * (1 - head.label_smoothing) + head.label_smoothing / 2
        positive = _class_weights(head, outputs)
        losses = F.binary_cross_entropy_with_logits(
            outputs[known], soft, pos_weight=positive, reduction="sum"
        )
        return losses / len(head.labels)
    if head.task == "regression":
        known = ~targets.isnan().any(dim=1)
        return F.mse_loss(outputs[known], targets[known], reduction="sum") / len(head.labels)
    if head.task == "span":
        scores = within(outputs, lengths)  # (B, T, 2)
        return F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum") / 2
    return F.cross_entropy(
        class_scores(head, outputs).flatten(0, -2),
        targets.flatten(),
        weight=_class_weights(head, outputs),
        ignore_index=IGNORED,
        label_smoothing=head.label_smoothing,
        reduction="sum",
    )


def right_sum(head: HeadConfig, outputs: Tensor, targets: Tensor, lengths: Tensor) -> float:
    """How many decisions of a batch are right; a text counts 1, or as many as it has tokens.

    multi-label: the share of its labels that are right. regression: 1 less the squared error, in
    units in which the training targets' variance is 1, so that the mean is the share of variance
    explained. span: both ends.
    """
    if head.task == "multi-label":
        known = ~targets.isnan().any(dim=1)
        return float(((outputs > 0) == (targets > 0.5))[known].float().mean(dim=1).sum())
    if head.task == "regression":
        known = ~targets.isnan().any(dim=1)
        return float((1 - (outputs - targets)[known] ** 2).mean(dim=1).sum())
    if head.task == "span":
        found = within(outputs, lengths).argmax(dim=1)  # (B, 2)
        return float((found == targets).all(dim=1).sum())
    return float((class_scores(head, outputs).argmax(dim=-1) == targets).sum())


def class_scores(head: HeadConfig, outputs: Tensor) -> Tensor:
    """One score a class. One output z with a sigmoid is two scores, 0 and z, with a softmax."""
    return F.pad(outputs, (1, 0)) if head.one_output else outputs


def within(outputs: Tensor, lengths: Tensor, start: Tensor | None = None) -> Tensor:
    """Scores of positions (B, T, 2), with those outside each text, and before `start` (B,), -inf."""
    position = torch.arange(outputs.shape[1], device=outputs.device)[None]  # (1, T)
    outside = position >= lengths[:, None]
    if start is not None:
        outside = outside | (position < start[:, None])
    return outputs.masked_fill(outside[:, :, None], -torch.inf)


def _class_weights(head: HeadConfig, outputs: Tensor) -> Tensor | None:
    return outputs.new_tensor(head.class_weights) if head.class_weights else None
