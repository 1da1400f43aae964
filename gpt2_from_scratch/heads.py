"""From GPT-2's output for every position to one answer for a text: the head, and where it reads.

B texts, T tokens of the longest, C = n_embd, K = num_classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gpt2_from_scratch.config import POOLINGS, Pooling
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.last_block import block_at, is_plain
from gpt2_from_scratch.model import GPT2


def replace_head(model: GPT2, num_classes: int) -> None:
    """Put a new linear layer with bias, (C) -> (K), in place of the output head, in place.

    The new layer is drawn from torch's global random numbers, as `nn.Linear` does. `wte` stays:
    the old head was tied to it, the new one is not. Raises UsageError for fewer than two classes.
    """
    if num_classes < 2:
        raise UsageError(f"num_classes = {num_classes}: a choice needs at least 2")
    model.head = nn.Linear(model.config.n_embd, num_classes, device=model.wte.weight.device)


def class_logits(model: GPT2, ids: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Logits of each text: ids (B, T) padded on the right, lengths (B,) -> (B, K).

    Attention looks back only, so no real token sees the pads behind it: the answer for a text
    depends neither on how far it was padded nor on the texts beside it (but for `last_position`,
    which reads the pads).
    """
    return logits_from(model, 0, model.embed(ids), lengths, pooling)


def logits_from(model: GPT2, depth: int, x: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Logits of each text from where the first `depth` blocks left off: x (B, T, C) -> (B, K).

    Texts are padded on the right to T, with anything. Of the last block only the position that is
    read is computed, where one is.
    """
    blocks: list[Any] = list(model.blocks)[depth:]
    one_position = pooling != "mean" and blocks and is_plain(blocks[-1])
    for block in blocks[:-1] if one_position else blocks:
        x = block(x)
    if one_position:
        x = block_at(blocks[-1], x, read_positions(lengths, x.shape[1], pooling))
        return model.head(model.ln_f(x))
    return model.head(pool(model.ln_f(x), lengths, pooling))


def pool(states: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """One state a text: (B, T, C) and the number of real tokens (B,) -> (B, C).

    Texts are padded on the right. Real tokens are counted, never recognised by the pad's id, so a
    text may hold any token. Lengths must be at least 1 (an empty text has nothing to read).
    """
    if pooling == "mean":
        real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]  # (B, T)
        return (states * real[:, :, None]).sum(dim=1) / lengths[:, None]
    rows = torch.arange(len(states), device=states.device)
    return states[rows, read_positions(lengths, states.shape[1], pooling)]


def read_positions(lengths: Tensor, T: int, pooling: Pooling) -> Tensor:
    """Where each text is read, if at one position: (B,) -> (B,)."""
    if pooling == "last_token":
        return lengths - 1
    if pooling == "last_position":
        return torch.full_like(lengths, T - 1)
    if pooling == "first_token":
        return torch.zeros_like(lengths)
    raise UsageError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")


def pad_right(ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Move real tokens to the front: ids (B, T), real (B, T) bool -> ids (B, T), lengths (B,).

    For batches padded elsewhere, on the left for instance: GPT-2 counts positions from the first
    column.
    """
    order = real.int().argsort(dim=1, descending=True, stable=True)  # real tokens first, in order
    return ids.gather(1, order), real.sum(dim=1)
