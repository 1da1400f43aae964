"""A transformer block whose output is wanted at one position of each text.

The answer for a text is read at one position, and behind the last block nothing mixes positions any
more. So that block owes us one query, one output projection and one MLP a text, not one a token.
Keys and values seem to be owed for every token still, but they need never be made. Write a_t for
ln_1(x_t), and look at one head. The score of position t is

    q . k_t  =  q . (W_k a_t + b_k)  =  (W_k^T q) . a_t  +  q . b_k

where q . b_k is the same for all t, so that softmax does not see it. And since the weights w_t that
softmax gives sum to 1, what is gathered is

    sum_t w_t v_t  =  sum_t w_t (W_v a_t + b_v)  =  W_v (sum_t w_t a_t)  +  b_v

The query goes back through W_k once a text, instead of every token forward through it; and W_v is
applied once, to the weighted mean, instead of to every token. Same numbers, but for rounding, and
the same gradients; the key bias has none, because no answer depends on it.

B texts, T tokens of the longest, C = n_embd, H = n_head heads, D = C / H.
"""

import torch
from torch import Tensor, nn

from gpt2_from_scratch.gpt2.lora import LoRALinear
from gpt2_from_scratch.gpt2.model import MLP, CausalSelfAttention, TransformerBlock

PLAIN = (TransformerBlock, CausalSelfAttention, MLP, nn.LayerNorm, nn.Linear)


def is_plain(block: nn.Module) -> bool:
    """Whether a block is made of `model.py`'s parts alone, so that its weights say all it does.

    A hook, a dropout or an adapter that somebody put in would be passed over by what reads weights.
    """
    return all(type(part) in PLAIN and not _is_hooked(part) for part in block.modules())


def serves_parts(block: nn.Module) -> bool:
    """Whether `block_at`, or a block's parts called one by one, do what it does: it is plain, or has
    LoRA whose dropout is off.
    """
    for part in block.modules():
        adapted = type(part) is LoRALinear and not (part.dropout and part.training)
        if _is_hooked(part) or (type(part) not in PLAIN and not adapted):
            return False
    return True


def _is_hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def block_at(block: TransformerBlock, x: Tensor, positions: Tensor) -> Tensor:
    """`block(x)` at one position of each text alone: x (B, T, C), positions (B,) -> (B, C)."""
    B, T, C = x.shape
    H = block.attn.n_head
    c_attn: nn.Linear | LoRALinear = block.attn.c_attn
    weight = c_attn.whole_weight() if isinstance(c_attn, LoRALinear) else c_attn.weight
    W_q, W_k, W_v = (W.view(H, C // H, C) for W in weight.split(C))  # (H, D, C)
    b_q, _, b_v = (b.view(H, C // H) for b in block.attn.c_attn.bias.split(C))  # (H, D)
    texts = torch.arange(B, device=x.device)

    a = block.ln_1(x)  # (B, T, C)
    q = torch.einsum("bc,hdc->bhd", a[texts, positions], W_q) + b_q
    u = torch.einsum("bhd,hdc->bhc", q, W_k)  # the query, carried back through W_k
    scores = u @ a.transpose(1, 2) / (C // H) ** 0.5  # (B, H, T)
    later = torch.arange(T, device=x.device) > positions[:, None]  # (B, T): pads among them
    w = scores.masked_fill(later[:, None], -torch.inf).softmax(dim=2)
    y = torch.einsum("bhc,hdc->bhd", w @ a, W_v) + b_v

    x = x[texts, positions] + block.attn.c_proj(y.reshape(B, C))  # (B, C)
    return x + block.mlp(block.ln_2(x))


# --- A transformer block over the real tokens of a padded batch, and not over its pads. ---


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
