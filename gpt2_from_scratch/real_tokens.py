"""A transformer block over the real tokens of a padded batch, and not over its pads.

All but attention looks at one position at a time, so only attention needs texts as rows of one
length. The rest runs over one row a real token: in a batch of messages half of the positions are
pads, and half of the work goes with them. Same numbers at every real token, but for rounding.

B texts, T tokens of the longest, C = n_embd, U real tokens of all texts.
"""

import torch
from torch import Tensor

from gpt2_from_scratch.model import TransformerBlock


def real_positions(lengths: Tensor, T: int) -> Tensor:
    """Where texts that are padded on the right have tokens: lengths (B,) -> (B, T) bool."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


def block_on(block: TransformerBlock, x: Tensor, real: Tensor) -> Tensor:
    """`block(x)` where `real` (B, T) holds, 0 elsewhere: x (B, T, C) -> (B, T, C)."""
    rows = x[real]  # (U, C)
    qkv = block.attn.c_attn(block.ln_1(rows))  # (U, 3C)
    y = block.attn.attend(_spread(qkv, real))[real]  # (U, C)
    rows = rows + block.attn.c_proj(y)
    rows = rows + block.mlp(block.ln_2(rows))
    return _spread(rows, real)


def _spread(rows: Tensor, real: Tensor) -> Tensor:
    """Rows to where they stand, zeros at the pads: (U, C) -> (B, T, C)."""
    out = rows.new_zeros(*real.shape, rows.shape[1])
    out[real] = rows
    return out
