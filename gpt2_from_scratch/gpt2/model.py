"""The network of GPT-2, written by hand.

Shapes: B texts, T tokens in the longest text, C = n_embd, H = n_head, D = C / H, V outputs of the
head. Names are those of OpenAI's checkpoint, with two exceptions: `blocks` (h0, h1, ... in the
checkpoint) and `head` (not in the checkpoint, because its weight is `wte`).

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
    """Multi-head attention in which a position reads only itself and earlier positions."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value together
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        return self.c_proj(self.attend(self.c_attn(x)))

    def attend(self, qkv: Tensor, seen: Tensor | None = None) -> Tensor:
        """Attend with concatenated queries, keys and values: (B, T, 3C) -> (B, T, C).

        A position reads the positions at which `seen` (B, 1, T, T) is true. By default it reads
        itself and all earlier positions.
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
    """Two linear layers with a GELU, applied to each position separately."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        # OpenAI trained with the tanh approximation; the exact (erf) GELU changes logits by 1e-3
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class TransformerBlock(nn.Module):
    """Attention followed by an MLP. Each reads the normalised residual stream and adds to it."""

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
    """The complete network, which maps token ids to logits.

    The head shares its weight with `wte` until `heads.replace_head` replaces the head.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.n_vocab, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.n_embd, config.n_vocab, bias=False)
        self.head.weight = self.wte.weight  # one matrix embeds the tokens and computes the logits

    def embed(self, ids: Tensor) -> Tensor:
        """Add the embeddings of each token and its position: (B, T) -> (B, T, C).

        Raises DataError unless `ids` are integers from 0 to n_vocab - 1, at most n_ctx per text.
        """
        _check_ids(ids, self.config)
        T = ids.shape[1]
        return self.wte(ids) + self.wpe.weight[:T]

    def hidden(self, ids: Tensor) -> Tensor:
        """Compute the final normalised state of each position: (B, T) -> (B, T, C)."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.ln_f(x)

    def forward(self, ids: Tensor) -> Tensor:
        """Compute logits at each position from all tokens up to it: (B, T) -> (B, T, V)."""
        return self.head(self.hidden(ids))


def _check_ids(ids: Tensor, config: GPT2Config) -> None:
    if not isinstance(ids, Tensor):
        raise DataError(
            f"ids must be a tensor (B, T), not {type(ids).__name__}. Use torch.tensor(ids)."
        )
    if ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise DataError(
            f"ids must be integers (B, T), found {ids.dtype} {tuple(ids.shape)}. "
            "For a single text of integers (T,) use ids[None]."
        )
    if ids.numel() == 0:
        raise DataError(f"ids of shape {tuple(ids.shape)} are empty; give at least one token")
    if (T := ids.shape[1]) > config.n_ctx:
        raise DataError(f"{T} tokens are more than n_ctx = {config.n_ctx}; cut the text")
    if not torch.compiler.is_compiling():  # on a GPU an invalid id would abort the process later
        low, high = ids.aminmax()
        if low < 0 or high >= config.n_vocab:
            raise DataError(
                f"ids are from {low} to {high}; they must be from 0 to {config.n_vocab - 1}"
            )


@torch.no_grad()
def init_weights(model: GPT2, generator: torch.Generator) -> None:
    """Initialise every parameter at random, as OpenAI did.

    Weights are normal with standard deviation 0.02 (wpe: 0.01). For the two projections that write
    to the residual stream, the standard deviation is divided by sqrt(2 n_layer), so that the variance
    of the stream does not grow with depth. Biases are 0, and the gains of LayerNorm are 1.
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
