"""The frozen first blocks over many texts at once: each token once, and no padding.

All but attention looks at one position at a time, so texts need not stand in a padded rectangle: a
batch is a list of rows, one a token. And since attention looks back only, what the blocks make of a
text's beginning does not depend on how it goes on: texts that begin alike share the rows of their
common beginning. Only attention needs the texts as such; for it rows are laid out in rectangles of
texts of about one length, and what comes out is taken back to one row a token. Without the causal
mask attention looks both ways, at a text's own tokens, and no beginning is shared.

U rows of a batch, B texts of a rectangle, T tokens of its longest, C = n_embd.
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.model import GPT2, TransformerBlock
from gpt2_from_scratch.gpt2.weights import tensors_sha256
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.speed.partial_blocks import real_positions

# tokens in a batch: enough to keep matrix products busy, few enough for a processor's cache
TOKENS = {"cpu": 2048, "cuda": 65536, "mps": 16384}
SLACK = 0.75  # a rectangle takes texts of at least this share of its longest one


@dataclass(frozen=True)
class Rectangle:
    """Texts of about one length, as attention and the last block want them."""

    texts: list[int]  # their numbers in the batch
    rows: Tensor  # (B, T) the row of each of their tokens; 0 behind a text's end
    lengths: Tensor  # (B,)


@dataclass(frozen=True)
class Packed:
    """A batch of texts as the tree of their beginnings, one row a token."""

    ids: Tensor  # (U,) the token of each row
    positions: Tensor  # (U,) and where it stands
    rectangles: list[Rectangle]
    home: Tensor  # (U,) where each row first stands in the rectangles, laid end to end

    def to(self, device: torch.device) -> "Packed":
        """The same on another device."""
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
    """Lay out token ids of texts, none of them empty, as one batch; beginnings shared, or not."""
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
    rectangles = [_rectangle(rows, group) for group in _of_about_one_length(rows)]
    laid_out = torch.cat([r.rows.flatten() for r in rectangles])
    real = torch.cat([_is_real(r).flatten() for r in rectangles])
    places = real.nonzero().flatten()
    _, first = np.unique(laid_out[places].numpy(), return_index=True)  # of each row, in order
    return Packed(torch.tensor(ids), torch.tensor(positions), rectangles, places[first])


def batches(texts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Numbers of texts, in batches of at most `tokens` tokens (or one text), alike ones together."""
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
    """The embeddings and the first `depth` blocks of a model, for forward passes without gradients.

    In bfloat16 the matrix products are done in it, on copies of the weights; the residual stream
    and the norms stay float32. The blocks must be plain (`last_block.is_plain`). Without
    `causal_mask` each token sees all of its text.
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
        self._weights = {"wte": self.wte, "wpe": self.wpe}  # as they are, not as they are rounded
        self._weights |= dict(nn.ModuleList(self.blocks).named_parameters())
        if dtype != torch.float32:
            self.blocks = [_in_dtype(block, dtype) for block in self.blocks]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.wte.device

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """How many tokens make a good batch."""
        return TOKENS.get(self.device.type, TOKENS["cpu"])

    def sha256(self) -> str:
        """Identity of all that its outputs depend on, but for rounding: weights and arithmetic."""
        weights = tensors_sha256(self._weights)
        mask = "" if self.causal_mask else " without the causal mask"
        return hashlib.sha256(f"{weights} {self.dtype}{mask}".encode()).hexdigest()

    def pack(self, texts: Sequence[Sequence[int]]) -> Packed:
        """Texts as one batch, on its device, beginnings shared where they are all a token sees."""
        return pack(texts, share=self.causal_mask).to(self.device)

    def __call__(self, packed: Packed) -> Tensor:
        """The residual stream behind the last of its blocks: (U, C) float32.

        Raises DataError for a text of more than n_ctx tokens.
        """
        for x in self.layers(packed):
            last = x
        return last

    @torch.no_grad()
    def layers(self, packed: Packed) -> Iterator[Tensor]:
        """The residual stream behind the embeddings and behind each block: depth + 1 times (U, C).

        Raises DataError for a text of more than n_ctx tokens.
        """
        if (longest := int(packed.positions.max()) + 1) > len(self.wpe):
            raise DataError(f"{longest} tokens are more than n_ctx = {len(self.wpe)}; cut the text")
        x = self.wte[packed.ids] + self.wpe[packed.positions]
        yield x
        for block in self.blocks:
            x = self._block(block, x, packed)
            yield x

    def _block(self, block: TransformerBlock, x: Tensor, packed: Packed) -> Tensor:
        """`TransformerBlock.forward`, with rows in place of texts: (U, C) -> (U, C)."""
        qkv = block.attn.c_attn(block.ln_1(x).to(self.dtype))  # (U, 3C)
        gathered = [
            block.attn.attend(qkv[r.rows], None if self.causal_mask else _is_seen(r)).flatten(0, 1)
            for r in packed.rectangles
        ]
        y = torch.cat(gathered)[packed.home]  # (U, C)
        x = x + block.attn.c_proj(y)
        wide = block.mlp.c_fc(block.ln_2(x).to(self.dtype))  # (U, 4C)
        # in place: to write 25 MB elsewhere takes longer than the GELU
        torch.ops.aten.gelu_(wide, approximate="tanh")
        return x + block.mlp.c_proj(wide)


def _in_dtype(block: Any, dtype: torch.dtype) -> Any:
    block = copy.deepcopy(block).requires_grad_(False)
    block.attn.to(dtype)
    block.mlp.to(dtype)
    return block


def _of_about_one_length(rows: list[list[int]]) -> Iterator[list[int]]:
    group: list[int] = []
    for n in sorted(range(len(rows)), key=lambda n: -len(rows[n])):
        if group and len(rows[n]) < SLACK * len(rows[group[0]]):
            yield group
            group = []
        group.append(n)
    if group:
        yield group


def _rectangle(rows: list[list[int]], texts: list[int]) -> Rectangle:
    return Rectangle(texts, *pad_batch([rows[n] for n in texts], 0))


def _is_real(rectangle: Rectangle) -> Tensor:
    return real_positions(rectangle.lengths, rectangle.rows.shape[1])  # (B, T)


def _is_seen(rectangle: Rectangle) -> Tensor:
    """All tokens of a text by all of them, pads by none: (B, 1, T, T)."""
    B, T = rectangle.rows.shape
    return _is_real(rectangle)[:, None, None, :].expand(B, 1, T, T)
