"""GPT-2, written by hand: the network and nothing else.

B texts, T tokens in the longest, C = n_embd, H = n_head heads, D = C / H, V outputs of the head.
Names are those of OpenAI's checkpoint, except `blocks` (h0, h1, ... there) and `head` (wte again).

Source: https://github.com/openai/gpt-2/blob/master/src/model.py and Radford et al. 2019, "Language
Models are Unsupervised Multitask Learners".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.config import GPT2Config

LAYER_NORM_EPS = 1e-5  # added to the variance, inside the root, as in OpenAI's `norm`


class CausalSelfAttention(nn.Module):
    """Each position reads itself and the positions before it, with H heads in parallel."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        return self.c_proj(self.attend(self.c_attn(x)))

    def attend(self, qkv: Tensor, seen: Tensor | None = None) -> Tensor:
        """Attend with queries, keys and values side by side: (B, T, 3C) -> (B, T, C).

        A position reads those where `seen` (B, 1, T, T) is true; by default itself and those before
        it.
        """
        B, T, C = *qkv.shape[:2], qkv.shape[2] // 3
        q, k, v = qkv.split(C, dim=2)  # 3 x (B, T, C)
        q, k, v = (
            part.view(B, T, self.n_head, -1).transpose(1, 2) for part in (q, k, v)
        )  # (B, H, T, D)
        # softmax(q k^T / sqrt(D), without the positions after the query) v
        y = F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None)  # (B, H, T, D)
        return y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again


class MLP(nn.Module):
    """Each position alone: four times wider, GELU, back to C."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        # the tanh form, as OpenAI trained with it; the exact (erf) GELU changes logits by 1e-3
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class TransformerBlock(nn.Module):
    """Attention, then MLP; each reads the normalised residual stream and adds to it."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT2(nn.Module):
    """Token ids in, logits out. The head is tied to `wte` until `heads.replace_head` replaces it."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.n_vocab, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.n_embd, config.n_vocab, bias=False)
        self.head.weight = self.wte.weight  # one matrix reads tokens in and writes logits out

    def embed(self, ids: Tensor) -> Tensor:
        """Add the embeddings of each token and its position: (B, T) -> (B, T, C).

        Raises DataError if there are more than n_ctx positions.
        """
        T = ids.shape[1]
        if T > self.config.n_ctx:
            raise DataError(f"{T} tokens are more than n_ctx = {self.config.n_ctx}; cut the text")
        return self.wte(ids) + self.wpe.weight[:T]

    def hidden(self, ids: Tensor) -> Tensor:
        """Compute the final, normalised state of each position: (B, T) -> (B, T, C)."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.ln_f(x)

    def forward(self, ids: Tensor) -> Tensor:
        """Compute each position's logits from it and those before it: (B, T) -> (B, T, V)."""
        return self.head(self.hidden(ids))


@torch.no_grad()
def init_weights(model: GPT2, generator: torch.Generator) -> None:
    """Draw every parameter as GPT-2's paper does before training.

    Weights are normal with std 0.02 (wpe 0.01). The std of the two projections that write to the
    residual stream is divided by sqrt(2 n_layer), so that the stream's variance does not grow with
    depth. Biases are 0, gains of norms are 1.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif ".ln_" in name or name.startswith("ln_f"):
            parameter.fill_(1.0)
        else:
            std = 0.01 if name == "wpe.weight" else 0.02
            if name.endswith("c_proj.weight"):
                std /= (2 * model.config.n_layer) ** 0.5
            parameter.normal_(0.0, std, generator=generator)
