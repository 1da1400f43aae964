"""Run a transformer block at selected positions only.

`block_at` computes the output at one position of each text. A classifier reads only that position,
and no later layer mixes positions. So the last block needs one query, one output projection and one
MLP per text instead of one per token. It seems to need the keys and values of every token, but even
these do not have to be computed. Let a_t be ln_1(x_t), and consider one head. The score of position t is

    q . k_t  =  q . (W_k a_t + b_k)  =  (W_k^T q) . a_t  +  q . b_k

The term q . b_k is the same for every t, so softmax ignores it. The weights w_t that softmax returns
sum to 1, so the head's output is

    sum_t w_t v_t  =  sum_t w_t (W_v a_t + b_v)  =  W_v (sum_t w_t a_t)  +  b_v

So W_k is applied once per text, to the query, instead of to every token. W_v is also applied once per
text, to the weighted mean, instead of to every token. Outputs and gradients are the same up to
rounding. The key bias gets no gradient, because the output does not depend on it.

`block_on` computes the output at all tokens, without the padding. All layers except attention work
on each token separately. So only attention needs the padded batch.

Shapes: B texts, T tokens in the longest text, U tokens in all texts, C = n_embd, H = n_head,
D = C / H.
"""

import torch
from torch import Tensor, nn

from gpt2_from_scratch.gpt2.changes import alteration
from gpt2_from_scratch.gpt2.lora import LoRALinear
from gpt2_from_scratch.gpt2.model import LAYER_NORM_EPS, MLP, CausalSelfAttention, TransformerBlock
from gpt2_from_scratch.gpt2.nf4 import NF4Linear, NF4Weight

PARTS: dict[str, type[nn.Module]] = {
    "": TransformerBlock,
    "ln_1": nn.LayerNorm,
    "attn": CausalSelfAttention,
    "attn.c_attn": nn.Linear,
    "attn.c_proj": nn.Linear,
    "ln_2": nn.LayerNorm,
    "mlp": MLP,
    "mlp.c_fc": nn.Linear,
    "mlp.c_proj": nn.Linear,
}


def is_plain(block: nn.Module) -> bool:
    """Return whether a block is an unchanged `TransformerBlock`, possibly quantised.

    The output of such a block depends only on its weights. Code that reads only the weights would
    ignore hooks, a replaced `forward`, dropout and adapters.
    """
    return not any(isinstance(part, LoRALinear) for part in block.modules()) and serves_parts(block)


def serves_parts(block: nn.Module) -> bool:
    """Return whether the functions in this file are exact for a block.

    They are exact if the block is plain, or if it has LoRA adapters that do not apply dropout.
    """
    return not change_of(block)


def change_of(block: nn.Module) -> str:
    """Describe how a block differs from `TransformerBlock`.

    Returns an empty string if it has no changes, or only LoRA adapters or weights in NF4.
    """
    parts = {name: p for name, p in block.named_modules() if not isinstance(p, NF4Weight)}
    if others := sorted(parts.keys() ^ PARTS.keys()):
        return f"{others[0]} was added or is missing"
    for name, part in parts.items():
        if type(part) is LoRALinear and PARTS[name] is nn.Linear:
            if part.dropout and part.training:
                return f"{name} applies dropout"
        elif type(part) is NF4Linear and PARTS[name] is nn.Linear:
            pass
        elif type(part) is not PARTS[name]:
            return f"{name or 'it'} is of type {type(part).__name__}"
        if reason := alteration(part) or odd_settings(part):
            return f"{name or 'it'} {reason}"
    return ""


def odd_settings(part: nn.Module) -> str:
    """Describe settings of a layer that GPT-2's layers do not have.

    Returns an empty string if there are none.
    """
    if isinstance(part, nn.LayerNorm):
        if part.eps != LAYER_NORM_EPS or len(part.normalized_shape) != 1 or part.bias is None:
            return "has settings that GPT-2 does not use"
    elif isinstance(part, nn.Linear | NF4Linear | LoRALinear) and part.bias is None:
        return "has no bias"
    return ""


def block_at(block: TransformerBlock, x: Tensor, positions: Tensor) -> Tensor:
    """Compute `block(x)` at one position of each text: x (B, T, C), positions (B,) -> (B, C)."""
    B, T, C = x.shape
    H = block.attn.n_head
    c_attn: nn.Linear | NF4Linear | LoRALinear = block.attn.c_attn
    weight = c_attn.whole_weight() if isinstance(c_attn, LoRALinear) else c_attn.weight
    W_q, W_k, W_v = weight.view(3, H, C // H, C)  # (H, D, C) each
    b_q, _, b_v = block.attn.c_attn.bias.view(3, H, C // H)  # (H, D) each
    texts = torch.arange(B, device=x.device)

    a = block.ln_1(x)  # (B, T, C)
    # not as an einsum, whose gradient would be transposed and take a millisecond to copy
    q = (a[texts, positions] @ W_q.reshape(C, C).T).view(B, H, C // H) + b_q
    u = torch.einsum("bhd,hdc->bhc", q, W_k)  # the query, carried back through W_k
    scores = u @ a.transpose(1, 2) / (C // H) ** 0.5  # (B, H, T)
    later = torch.arange(T, device=x.device) > positions[:, None]  # (B, T), padding included
    w = scores.masked_fill(later[:, None], -torch.inf).softmax(dim=2)
    y = torch.einsum("bhc,hdc->bhd", w @ a, W_v) + b_v

    x = x[texts, positions] + block.attn.c_proj(y.reshape(B, C))  # (B, C)
    return x + block.mlp(block.ln_2(x))


def block_on(block: TransformerBlock, x: Tensor, real: Tensor) -> Tensor:
    """Compute `block(x)` where `real` (B, T) is true, and 0 elsewhere: (B, T, C) -> (B, T, C)."""
    rows = x[real]  # (U, C)
    qkv = block.attn.c_attn(block.ln_1(rows))  # (U, 3C)
    y = block.attn.attend(_spread(qkv, real))[real]  # (U, C)
    rows = rows + block.attn.c_proj(y)
    rows = rows + block.mlp(block.ln_2(rows))
    return _spread(rows, real)


def _spread(rows: Tensor, real: Tensor) -> Tensor:
    """Put rows into a batch padded with zeros: (U, C) -> (B, T, C)."""
    out = rows.new_zeros(*real.shape, rows.shape[1])
    out[real] = rows
    return out


def real_positions(lengths: Tensor, T: int) -> Tensor:
    """Return a mask that is true for tokens and false for padding: lengths (B,) -> (B, T) bool.

    The texts are padded on the right.
    """
    return torch.arange(T, device=lengths.device) < lengths[:, None]
