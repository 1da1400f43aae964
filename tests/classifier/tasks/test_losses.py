"""The loss of every task, held against torch's means and numpy, whole and in parts.

B texts, T tokens of the longest, K outputs.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.losses import loss_sum, right_sum, within
from gpt2_from_scratch.classifier.tasks.targets import IGNORED
from gpt2_from_scratch.errors import UsageError

LABELS = ("a", "b", "c")
WEIGHTS = (0.3, 1.0, 2.5)
WEIGHED = [((), 0.0), (WEIGHTS, 0.0), ((), 0.2), (WEIGHTS, 0.2)]


def close(found: Tensor | float, expected: Tensor | float) -> None:
    np.testing.assert_allclose(float(found), float(expected), atol=1e-5, rtol=1e-5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight_of(head: HeadConfig, targets: Tensor) -> Tensor:
    """What torch's mean divides by: the sum of the weights of the classes that are asked for."""
    known = targets[targets != IGNORED]
    return torch.tensor(head.class_weights or (1.0,) * 3)[known].sum()


# --- against torch's means ---


@pytest.mark.parametrize("weights, smoothing", WEIGHED)
@pytest.mark.parametrize("task", ["classification", "token-classification"])
def test_classes(task: str, weights: tuple[float, ...], smoothing: float) -> None:
    head = HeadConfig(task=task, labels=LABELS, class_weights=weights, label_smoothing=smoothing)
    shape = (6,) if task == "classification" else (6, 4)
    outputs = random(*shape, 3)
    targets = torch.randint(3, shape, generator=torch.Generator().manual_seed(1))
    targets[1] = IGNORED
    targets.view(-1)[-1] = IGNORED
    expected = F.cross_entropy(
        outputs.flatten(0, -2),
        targets.flatten(),
        label_smoothing=smoothing,
        weight=torch.tensor(weights) if weights else None,
    )
    total = loss_sum(head, outputs, targets, torch.full((6,), 4))
    close(total / weight_of(head, targets), expected)


@pytest.mark.parametrize("weights, smoothing", [((), 0.0), ((0.5, 3), 0.0), ((0.5, 3), 0.2)])
def test_one_output_is_binary_cross_entropy(weights: tuple[float, ...], smoothing: float) -> None:
    head = HeadConfig(
        labels=("no", "yes"), one_output=True, class_weights=weights, label_smoothing=smoothing
    )
    z, targets = random(5, 1), torch.tensor([0, 1, 1, IGNORED, 0])
    known = targets != IGNORED
    losses = F.binary_cross_entropy_with_logits(
        z[known, 0], targets[known] * (1 - smoothing) + smoothing / 2, reduction="none"
    )
    if not weights:
        close(loss_sum(head, z, targets, torch.ones(5)), losses.sum())
    else:  # each side of the target has its class's weight
        yes = (targets[known] * (1 - smoothing) + smoothing / 2) * weights[1]
        no = ((1 - targets[known]) * (1 - smoothing) + smoothing / 2) * weights[0]
        expected = -(yes * z[known, 0].sigmoid().log() + no * (-z[known, 0]).sigmoid().log())
        close(loss_sum(head, z, targets, torch.ones(5)), expected.sum())
    assert right_sum(head, z, targets, torch.ones(5)) == int(
        ((z[known, 0] > 0) == targets[known]).sum()
    )


@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_labels(weights: tuple[float, ...], smoothing: float) -> None:
    """Class weights are pos_weight: of the labels that are there, as in torch."""
    head = HeadConfig(
        task="multi-label", labels=LABELS, class_weights=weights, label_smoothing=smoothing
    )
    outputs, targets = random(5, 3), (random(5, 3, seed=1) > 0).float()
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights) if weights else None)
    expected = loss(outputs, targets * (1 - smoothing) + smoothing / 2)
    close(loss_sum(head, outputs, targets, torch.ones(5)) / 5, expected)
    right = ((outputs > 0) == (targets > 0)).float().mean()
    close(right_sum(head, outputs, targets, torch.ones(5)) / 5, right)


def test_values() -> None:
    head = HeadConfig(task="regression", labels=LABELS)
    outputs, targets = random(5, 3), random(5, 3, seed=1)
    close(loss_sum(head, outputs, targets, torch.ones(5)) / 5, torch.nn.MSELoss()(outputs, targets))
    close(right_sum(head, outputs, targets, torch.ones(5)) / 5, 1 - F.mse_loss(outputs, targets))


def test_ends_of_a_span() -> None:
    """One text after the other, without its pads."""
    head, outputs = HeadConfig(task="span"), 3 * random(4, 6, 2)
    lengths = torch.tensor([6, 2, 4, 1])
    targets = torch.tensor([[1, 5], [1, 1], [IGNORED, IGNORED], [0, 0]])
    expected, right = 0.0, 0
    for row, n, ends in zip(outputs, lengths, targets, strict=True):
        if ends[0] != IGNORED:
            losses = [F.cross_entropy(row[None, :n, k], ends[k, None]) for k in range(2)]
            expected += sum(float(loss) for loss in losses) / 2
            right += row[:n].argmax(dim=0).tolist() == ends.tolist()
    close(loss_sum(head, outputs, targets, lengths), expected)
    assert right_sum(head, outputs, targets, lengths) == right >= 1


def test_scores_within_a_text() -> None:
    found = within(torch.zeros(2, 4, 2), torch.tensor([4, 2]), torch.tensor([1, 0]))
    assert (found == 0)[:, :, 0].tolist() == [[False, True, True, True], [True, True, False, False]]
    assert torch.equal(found[..., 0], found[..., 1])


def test_right_answers_of_classes() -> None:
    outputs = torch.tensor([[1.0, 2, 0], [0, 0, 5], [9, 0, 0], [0, 9, 0]])
    targets = torch.tensor([1, 2, 1, IGNORED])
    assert right_sum(HeadConfig(labels=LABELS), outputs, targets, torch.ones(4)) == 2
    tags = HeadConfig(task="token-classification", labels=LABELS)
    assert right_sum(tags, outputs[None], targets[None], torch.tensor([4])) == 2


# --- in parts ---

HEADS = [
    HeadConfig(labels=LABELS, class_weights=WEIGHTS, label_smoothing=0.1),
    HeadConfig(labels=LABELS[:2], one_output=True, class_weights=(1, 4)),
    HeadConfig(task="token-classification", labels=LABELS, class_weights=WEIGHTS),
    HeadConfig(task="multi-label", labels=LABELS, class_weights=WEIGHTS, label_smoothing=0.1),
    HeadConfig(task="regression", labels=LABELS),
    HeadConfig(task="span"),
    HeadConfig(task="language"),
]


def random_batch(head: HeadConfig, lengths: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets, some of which are missing, of texts of these lengths."""
    B, T = len(lengths), int(lengths.max())
    if head.task in ("multi-label", "regression"):
        targets = random(B, 3, seed=2)
        targets = (targets > 0).float() if head.task == "multi-label" else targets
        targets[missing] = torch.nan
        return random(B, 3), targets
    if head.task == "classification":
        targets = torch.randint(2, (B,), generator=torch.Generator().manual_seed(3))
        targets[missing] = IGNORED
        return random(B, head.n_outputs), targets
    width = {"span": 2, "language": 9}.get(head.task, 3)
    if head.task == "span":
        targets = torch.stack([lengths // 2, lengths - 1], dim=1)
    else:
        targets = torch.randint(3, (B, T), generator=torch.Generator().manual_seed(4))
        targets[torch.arange(T) >= lengths[:, None]] = IGNORED
    targets[missing] = IGNORED
    return random(B, T, width), targets


@settings(max_examples=40, deadline=None)
@given(
    head=st.sampled_from(HEADS),
    texts=st.lists(
        st.tuples(st.integers(1, 7), st.booleans(), st.booleans()), min_size=1, max_size=7
    ),
)
def test_parts_of_a_batch_add_up(head: HeadConfig, texts: list[tuple[int, bool, bool]]) -> None:
    """However it is cut, each part padded to its own longest; also with all targets of a part missing."""
    lengths = torch.tensor([length for length, _, _ in texts])
    missing = torch.tensor([absent for _, absent, _ in texts])
    outputs, targets = random_batch(head, lengths, missing)
    outputs.requires_grad_(True)
    whole, right = (
        loss_sum(head, outputs, targets, lengths),
        right_sum(head, outputs.detach(), targets, lengths),
    )
    (gradient,) = torch.autograd.grad(whole, outputs)
    cuts = [0, *(n for n, (_, _, cut) in enumerate(texts) if cut and n), len(texts)]
    parts = 0.0
    for first, behind in zip(cuts, cuts[1:], strict=False):
        part, T = slice(first, behind), int(lengths[first:behind].max())
        some = outputs[part] if head.reads_one_state else outputs[part, :T]
        each_token = head.task in ("token-classification", "language")
        wanted = targets[part, :T] if each_token else targets[part]
        loss = loss_sum(head, some, wanted, lengths[part])
        assert loss.isfinite()
        loss.backward()
        parts += loss.item()
        right -= right_sum(head, some.detach(), wanted, lengths[part])
    close(parts, whole.detach())
    close(right, 0.0)
    assert outputs.grad.isfinite().all()
    torch.testing.assert_close(outputs.grad, gradient, atol=1e-5, rtol=0)
    assert not outputs.grad[missing].any()


@pytest.mark.parametrize("head", HEADS)
def test_without_any_target_there_is_no_loss(head: HeadConfig) -> None:
    lengths = torch.tensor([3, 1])
    outputs, targets = random_batch(head, lengths, torch.tensor([True, True]))
    outputs.requires_grad_(True)
    loss = loss_sum(head, outputs, targets, lengths)
    loss.backward()
    assert loss.item() == 0 and not outputs.grad.any() and outputs.grad.isfinite().all()
    assert right_sum(head, outputs.detach(), targets, lengths) == 0


# --- settings that would do nothing ---


@pytest.mark.parametrize(
    "values",
    [
        {"task": "span", "label_smoothing": 0.1},
        {"task": "regression", "labels": ("x",), "label_smoothing": 0.1},
        {"task": "language", "label_smoothing": 0.1},
        {"task": "features", "label_smoothing": 0.1},
        {"task": "language", "dropout": 0.1},
        {"task": "features", "dropout": 0.1},
        {"task": "regression", "labels": ("x",), "center": (float("nan"),)},
        {"task": "regression", "labels": ("x",), "center": (float("inf"),)},
    ],
)
def test_settings_without_effect_are_refused(values: dict) -> None:
    with pytest.raises(UsageError):
        HeadConfig(**values)
