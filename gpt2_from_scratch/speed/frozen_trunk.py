"""Run the frozen first blocks over many texts, once per distinct beginning and without padding.

Everything except attention works on each token alone, so a batch needs no padded rectangle: it is a
list of rows, one row per token. Attention only looks back, so the output for the beginning of a text
does not depend on the rest: texts that begin alike share the rows of their common beginning. Only
attention needs whole texts; for it the rows are laid out in rectangles of texts of similar length,
and its output is gathered back to one row per token. Without the causal mask attention sees all
tokens of a text, and no beginnings are shared.

U rows per batch, B texts per rectangle, T tokens of its longest text, C = n_embd.
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.model import GPT2, TransformerBlock
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.speed.partial_blocks import is_plain, real_positions
from gpt2_from_scratch.storage.tensors import tensors_sha256

# tokens per batch: enough to keep matrix products busy, few enough for the processor's cache
TOKENS = {"cpu": 2048, "cuda": 65536, "mps": 16384}
SIMILAR = 0.75  # a rectangle takes texts of at least this proportion of its longest text


@dataclass(frozen=True)
class Rectangle:
    """Texts of similar length, laid out for attention and for the last block."""

    texts: list[int]  # their numbers in the batch
    rows: Tensor  # (B, T) the row of each token; 0 after the end of a text
    lengths: Tensor  # (B,)

    @property
    def real(self) -> Tensor:
        """Where there are tokens and not padding: (B, T) bool."""
        return real_positions(self.lengths, self.rows.shape[1])


@dataclass(frozen=True)
class Packed:
    """A batch of texts, one row per distinct beginning."""

    ids: Tensor  # (U,) the last token of each beginning
    positions: Tensor  # (U,) and its position
    rectangles: list[Rectangle]
    home: Tensor  # (U,) where each row first occurs in the rectangles, laid end to end

    def to(self, device: torch.device) -> "Packed":
        """Copy the batch to another device."""
        return Packed(
            self.ids.to(device),
            self.positions.to(device),
            [
                replace(r, rows=r.rows.to(device), lengths=r.lengths.to(device))
                for r in self.rectangles
            ],
            self.home.to(device),
        )


def pack(texts: Sequence[Sequence[int]], *, share: bool = True) -> Packed:
    """Lay out texts as one batch; no text may be empty.

    With `share`, texts that begin alike share the rows of their common beginning.
    """
    row_of: dict[tuple[int, int, int], int] = {}  # (row of the token before, token, text) -> row
    ids, positions, rows = list[int](), list[int](), list[list[int]]()
    for number, text in enumerate(texts):
        row, path = -1, list[int]()
        for position, token in enumerate(text):
            row = row_of.setdefault((row, token, 0 if share else number), len(row_of))
            if row == len(ids):
                ids.append(token)
                positions.append(position)
            path.append(row)
        rows.append(path)
    rectangles = [
        Rectangle(group, *pad_batch([rows[n] for n in group], 0)) for group in _by_length(rows)
    ]
    laid_out = torch.cat([r.rows.flatten() for r in rectangles])
    places = torch.cat([r.real.flatten() for r in rectangles]).nonzero().flatten()
    _, first = np.unique(laid_out[places].numpy(), return_index=True)  # per row, in order
    return Packed(torch.tensor(ids), torch.tensor(positions), rectangles, places[first])


def _by_length(rows: list[list[int]]) -> Iterator[list[int]]:
    """Yield groups of text numbers whose texts have similar lengths, the longest first."""
    group: list[int] = []
    for n in sorted(range(len(rows)), key=lambda n: -len(rows[n])):
        if group and len(rows[n]) < SIMILAR * len(rows[group[0]]):
            yield group
            group = []
        group.append(n)
    if group:
        yield group


def batches(texts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Yield batches of text numbers, at most `tokens` tokens or one text each.

    Texts are in the order of their ids, so that those that begin alike are in one batch. Without the
    texts of the first batches, the other batches stay as they are.
    """
    batch: list[int] = []
    size = 0
    for n in sorted(range(len(texts)), key=lambda n: tuple(texts[n])):
        if batch and size + len(texts[n]) > tokens:
            yield batch
            batch, size = [], 0
        batch.append(n)
        size += len(texts[n])
    if batch:
        yield batch


class Trunk:
    """The embeddings and the first `depth` blocks of a model, without gradients.

    The blocks must be plain (see `partial_blocks`). With `dtype` bfloat16 the matrix products
    are computed in bfloat16, on copies of the weights; the residual stream and the norms stay
    float32. Without `causal_mask` each token sees all tokens of its text. Raises UsageError for a
    block that is not plain.
    """

    def __init__(
        self,
        model: GPT2,
        depth: int,
        dtype: torch.dtype = torch.float32,
        *,
        causal_mask: bool = True,
    ):
        self.wte, self.wpe = model.wte.weight, model.wpe.weight
        self.dtype, self.causal_mask = dtype, causal_mask
        self.blocks: list[Any] = list(model.blocks)[:depth]
        if others := [n for n, block in enumerate(self.blocks) if not is_plain(block)]:
            raise UsageError(
                f"blocks.{others[0]} has parts, hooks or methods that GPT-2 does not have"
            )
        self._weights = {"wte": self.wte, "wpe": self.wpe}  # before rounding to `dtype`
        self._weights |= dict(nn.ModuleList(self.blocks).named_parameters())
        if dtype != torch.float32:
            self.blocks = [copy.deepcopy(block).requires_grad_(False) for block in self.blocks]
            for block in self.blocks:
                block.attn.to(dtype)
                block.mlp.to(dtype)

    @property
    def device(self) -> torch.device:
        """The device it computes on."""
        return self.wte.device

    @property
    def depth(self) -> int:
        """The number of its blocks."""
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """The number of tokens of an efficient batch on its device."""
        return TOKENS.get(self.device.type, TOKENS["cpu"])

    def sha256(self) -> str:
        """Hash everything that its outputs depend on, except rounding: weights and arithmetic."""
        weights = tensors_sha256(self._weights)
        heads = [block.attn.n_head for block in self.blocks]
        mask = "" if self.causal_mask else " without the causal mask"
        return hashlib.sha256(f"{weights} {heads} {self.dtype}{mask}".encode()).hexdigest()

    def pack(self, texts: Sequence[Sequence[int]]) -> Packed:
        """Lay out texts as one batch on its device, with shared beginnings if the mask allows it."""
        return pack(texts, share=self.causal_mask).to(self.device)

    def __call__(self, packed: Packed) -> Tensor:
        """Compute the residual stream after its last block: (U, C) float32.

        Raises DataError if a text has more than n_ctx tokens.
        """
        for x in self.layers(packed):
            last = x
        return last

    @torch.no_grad()
    def layers(self, packed: Packed) -> Iterator[Tensor]:
        """Yield the residual stream after the embeddings and after each block: depth + 1 x (U, C).

        Raises DataError if a text has more than n_ctx tokens.
        """
        if (longest := int(packed.positions.max()) + 1) > len(self.wpe):
            raise DataError(f"{longest} tokens are more than n_ctx = {len(self.wpe)}; cut the text")
        x = self.wte[packed.ids] + self.wpe[packed.positions]
        yield x
        for block in self.blocks:
            x = self._block(block, x, packed)
            yield x

    def _block(self, block: TransformerBlock, x: Tensor, packed: Packed) -> Tensor:
        """Compute `TransformerBlock.forward` on rows instead of texts: (U, C) -> (U, C)."""
        qkv = block.attn.c_attn(block.ln_1(x).to(self.dtype))  # (U, 3C)
        gathered = []
        for r in packed.rectangles:
            T = r.rows.shape[1]
            seen = None if self.causal_mask else r.real[:, None, None].expand(-1, 1, T, T)
            gathered.append(block.attn.attend(qkv[r.rows], seen).flatten(0, 1))  # (B * T, C)
        y = torch.cat(gathered)[packed.home]  # (U, C)
        x = x + block.attn.c_proj(y)
        wide = block.mlp.c_fc(block.ln_2(x).to(self.dtype))  # (U, 4C)
        # in place, because writing 25 MB to new memory takes longer than the GELU
        torch.ops.aten.gelu_(wide, approximate="tanh")
        return x + block.mlp.c_proj(wide)
