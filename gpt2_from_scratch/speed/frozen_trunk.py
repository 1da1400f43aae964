"""Run the frozen first blocks once per common prefix, without padding.

All layers except attention work on each token separately. So a batch does not need to be a padded
rectangle; here it is a list of rows, one per token. With the causal mask, the output for the first tokens
of a text does not depend on the tokens after them. So texts with a common prefix share the rows of
that prefix. Attention needs complete texts: their rows are laid out in rectangles of texts of similar
length, and the output is gathered back to one row per token. Without the causal mask, a token sees
all tokens of its text, and texts do not share rows.

The last bits of a matrix product depend on the shapes of its factors. Here these shapes depend only
on a text's own length: rows go through the layers in tiles of a fixed size, attention pads a text to
its `width`, and only texts of the same width share rows. If the last tile is filled up, the output
for a text is bit-identical, no matter which other texts are in the batch.

A block may stay in its file (see `storage/mapped.py`). It is then copied into memory when it is used,
and the copy is freed afterwards. Reading all blocks once per batch would take longer than computing
them, so `Trunk.run` runs one block after the other on many batches.

Shapes: U rows per batch, B texts per rectangle, T tokens in its longest text, W its width,
C = n_embd.
"""

import copy
import hashlib
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.model import GPT2, TransformerBlock
from gpt2_from_scratch.gpt2.nf4 import packed_weights, unpacked
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.speed.int8 import Int8Linear, gelu_
from gpt2_from_scratch.speed.partial_blocks import is_plain, real_positions
from gpt2_from_scratch.storage.mapped import is_mapped
from gpt2_from_scratch.storage.processes import part_of
from gpt2_from_scratch.storage.tensors import tensors_sha256

# tokens per batch: enough for efficient matrix products, but few enough for the processor's cache
TOKENS = {"cpu": 2048, "cuda": 65536, "mps": 16384}
LAYOUT = "tiles 2"  # part of the cache key; change it when a new layout rounds differently
LAYOUT_INT8 = "tiles 2, GELU by SiLU"  # the same for int8
TILES = 8  # tiles per batch, so a matrix product has TOKENS / TILES rows
# bytes of states for which a block is read from its file; for 1558M 40,000 tokens, which take minutes
WINDOW = 256e6


@dataclass(frozen=True)
class Rectangle:
    """Texts of similar length, laid out for attention."""

    texts: list[int]  # indices of the texts in the batch
    rows: Tensor  # (B, T) the row of each token; 0 for padding
    lengths: Tensor  # (B,)

    @property
    def real(self) -> Tensor:
        """A mask that is true for tokens and false for padding: (B, T) bool."""
        return real_positions(self.lengths, self.rows.shape[1])

    def widened(self, x: Tensor) -> Tensor:
        """Pad to the width that attention uses: (B, T) -> (B, W)."""
        return F.pad(x, (0, width(x.shape[1]) - x.shape[1]))


@dataclass(frozen=True)
class Packed:
    """A batch of texts, with one row per distinct prefix."""

    ids: Tensor  # (U,) the last token of each prefix
    positions: Tensor  # (U,) the position of that token
    rectangles: list[Rectangle]
    home: Tensor  # (U,) where each row first occurs in the concatenated rectangles of width W

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


def width(n_tokens: int) -> int:
    """Round a text's length up to its padded length in attention.

    The result is a multiple of 16. A text of more than 64 tokens gets at most a quarter more.
    """
    step = max(16, 2 ** ((n_tokens - 1).bit_length() - 3))
    return -(-n_tokens // step) * step


def pack(texts: Sequence[Sequence[int]], *, share: bool = True, tile: int = 1) -> Packed:
    """Lay out texts as one batch. No text may be empty.

    With `share`, texts of the same width share the rows of their common prefix. The last tile is
    filled up with rows that do not belong to any text.
    """
    # {(row of the previous token, token, text): row}
    row_of: dict[tuple[int, int, int], int] = {}
    ids, positions, rows = list[int](), list[int](), list[list[int]]()
    for number, text in enumerate(texts):
        row, path = -width(len(text)), list[int]()
        for position, token in enumerate(text):
            row = row_of.setdefault((row, token, 0 if share else number), len(row_of))
            if row == len(ids):
                ids.append(token)
                positions.append(position)
            path.append(row)
        rows.append(path)
    groups: dict[int, list[int]] = {}
    for n, path in enumerate(rows):
        groups.setdefault(width(len(path)), []).append(n)
    rectangles = [
        Rectangle(groups[W], *pad_batch([rows[n] for n in groups[W]], 0))
        for W in sorted(groups, reverse=True)
    ]
    laid_out = torch.cat([r.widened(r.rows).flatten() for r in rectangles])
    places = torch.cat([r.widened(r.real).flatten() for r in rectangles]).nonzero().flatten()
    # the first occurrence of each row
    _, first = np.unique(laid_out[places].numpy(), return_index=True)
    filling = (0, -len(ids) % tile)
    return Packed(
        F.pad(torch.tensor(ids), filling),
        F.pad(torch.tensor(positions), filling),
        rectangles,
        F.pad(places[first], filling),
    )


def batches(
    texts: Sequence[Sequence[int]], tokens: int, *, share: bool = True
) -> Iterator[list[int]]:
    """Yield batches of text indices.

    A batch has at most `tokens` rows, or a single text. Texts are sorted by width and ids, so that
    texts that share rows are in the same batch. For attention, a batch is laid out as at most
    `2 * tokens` tokens.
    """
    batch: list[int] = []
    size = laid_out = W_before = 0
    before: tuple[int, ...] = ()
    for W, text, n in sorted((width(len(text)), tuple(text), n) for n, text in enumerate(texts)):
        new = len(text)
        if share and batch and W == W_before:
            new -= sum(takewhile(bool, map(operator.eq, before, text)))
        if batch and (size + new > tokens or laid_out + W > 2 * tokens):
            yield batch
            batch, size, laid_out, new = [], 0, 0, len(text)
        batch.append(n)
        size, laid_out, before, W_before = size + new, laid_out + W, text, W
    if batch:
        yield batch


def _rounded(block: Any, dtype: torch.dtype) -> Any:
    """Copy a block, with the weights of its matrix products in another precision."""
    block = copy.deepcopy(block).requires_grad_(False)
    for part in (block.attn, block.mlp):
        if dtype == torch.int8:
            for name, layer in [*part.named_children()]:
                setattr(part, name, Int8Linear(layer))
        else:
            part.to(dtype)
    return block


def is_streamed(block: nn.Module) -> bool:
    """Return whether a matrix of a block stays in its file."""
    return any(map(is_mapped, block.parameters()))


class Trunk:
    """The embeddings and the first `depth` blocks of a model, without gradients.

    Args:
        model: a GPT-2 whose first `depth` blocks are plain (see `partial_blocks.is_plain`).
        depth: number of blocks.
        dtype: precision of matrix products. With bfloat16 and int8 they use rounded copies of the
            weights; the residual stream and LayerNorms stay in float32. With int8, so does attention.
            A block that stays in its file is rounded each time it is read.
            Weights in NF4 are not copied; they are dequantised, once per batch, and rounded only to
            bfloat16.
        causal_mask: if false, each token sees all tokens of its text.

    Raises:
        UsageError: a block is not plain.
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
        self._input = torch.float32 if dtype == torch.int8 else dtype  # Int8Linear rounds it itself
        self.blocks: list[Any] = list(model.blocks)[:depth]
        if others := [n for n, block in enumerate(self.blocks) if not is_plain(block)]:
            raise UsageError(
                f"blocks.{others[0]} has parts, hooks or methods that GPT-2 does not have"
            )
        self._weights = {"wte": self.wte, "wpe": self.wpe}  # not rounded to `dtype`
        every = nn.ModuleList(self.blocks)
        self._weights |= {**dict(every.named_parameters()), **dict(every.named_buffers())}
        self._copied: list[tuple[Any, Any]] = []  # (block of the model, its rounded copy)
        for n, block in enumerate(self.blocks):
            if dtype != torch.float32 and not packed_weights(block) and not is_streamed(block):
                self.blocks[n] = _rounded(block, dtype)
                self._copied.append((block, self.blocks[n]))

    @torch.inference_mode()  # this mode can change all copies, whichever mode they were made in
    def follow_weights(self) -> None:
        """Update the rounded copies of the weights. In float32 there are no copies.

        The weights may have changed, and torch offers no reliable way to notice that. Comparing them
        would take longer than rounding them again, which takes 20 ms for 11 blocks of 124M on one
        core.
        """
        for source, block in self._copied:
            weights = dict(source.named_parameters())
            for name, rounded in block.named_parameters():
                rounded.copy_(weights[name])
            for name, part in block.named_modules():
                if isinstance(part, Int8Linear):
                    part.follow(source.get_submodule(name))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.wte.device

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """The number of tokens of an efficient batch on this device."""
        return TOKENS.get(self.device.type, TOKENS["cpu"])

    def sha256(self) -> str:
        """Hash everything on which the outputs depend: weights, arithmetic and layout."""
        weights = tensors_sha256(self._weights)
        heads = [block.attn.n_head for block in self.blocks]
        mask = "" if self.causal_mask else " without the causal mask"
        layout = LAYOUT_INT8 if self.dtype == torch.int8 else LAYOUT
        text = f"{weights} {heads} {self.dtype}{mask} {layout}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def tile(self) -> int:
        """The number of rows that go through a layer together."""
        return self.tokens // TILES

    def batches(self, texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield efficient batches of text indices."""
        return batches(texts, self.tokens, share=self.causal_mask)

    def pack(self, texts: Sequence[Sequence[int]], *, whole_tiles: bool = False) -> Packed:
        """Lay out texts as one batch on this device.

        With the causal mask, texts share the rows of their common prefix. With `whole_tiles`, not
        even the last bits of a text's output depend on the other texts.
        """
        tile = self.tile if whole_tiles else 1
        return pack(texts, share=self.causal_mask, tile=tile).to(self.device)

    def __call__(self, packed: Packed) -> Tensor:
        """Compute the residual stream after the last block: (U, C) float32.

        Raises DataError if a text has more than n_ctx tokens.
        """
        for x in self.layers(packed):
            last = x
        return last

    @torch.no_grad()
    def layers(self, packed: Packed) -> Iterator[Tensor]:
        """Yield the residual stream after the embeddings and after each block: (U, C) each time.

        Raises DataError if a text has more than n_ctx tokens.
        """
        x = self._embedded(packed)
        yield x
        for block in self.blocks:
            x = self._block(self._in_memory(block), x, packed)
            yield x

    @torch.no_grad()
    def run(
        self,
        texts: Sequence[Sequence[int]],
        *,
        whole_tiles: bool = False,
        shared: bool = False,
        advance: Callable[[float], object] | None = None,
    ) -> Iterator[tuple[list[int], Packed, Tensor]]:
        """Run the blocks on any number of texts, in efficient batches.

        The results are those of `batches`, `pack` and a call, batch by batch. If blocks stay in their
        file, each of them runs on a window of several batches before the next one is read.

        Args:
            texts: token ids of each text.
            whole_tiles: see `pack`.
            shared: each of several processes computes a part of the batches.
            advance: called with the number of tokens that were finished. If blocks stay in their
                file, a token is counted block by block.

        Yields:
            The indices of a batch's texts, its layout, and the residual stream after the last block,
            (U, C) float32.

        Raises:
            DataError: a text has more than n_ctx tokens.
        """
        batches = part_of(self.batches(texts)) if shared else self.batches(texts)
        if not any(map(is_streamed, self.blocks)):
            for numbers in batches:
                packed = self.pack([texts[n] for n in numbers], whole_tiles=whole_tiles)
                states = self(packed)
                if advance:
                    advance(sum(len(texts[n]) for n in numbers))
                yield numbers, packed, states
            return
        for window in self._windows(texts, batches, whole_tiles):
            streams = [self._embedded(packed) for _, packed in window]
            for block in self.blocks:
                ready = self._in_memory(block)
                for n, (numbers, packed) in enumerate(window):
                    streams[n] = self._block(ready, streams[n], packed)
                    if advance:
                        advance(sum(len(texts[number]) for number in numbers) / self.depth)
                del ready  # before the next block is read
            for numbers, packed in window:
                yield numbers, packed, streams.pop(0)

    def _windows(
        self,
        texts: Sequence[Sequence[int]],
        batches: Iterator[list[int]],
        whole_tiles: bool,
    ) -> Iterator[list[tuple[list[int], Packed]]]:
        """Yield several batches at once: the indices of their texts, and their layouts."""
        window: list[tuple[list[int], Packed]] = []
        size, row = 0, 4 * self.wte.shape[1]
        for numbers in batches:
            packed = self.pack([texts[n] for n in numbers], whole_tiles=whole_tiles)
            window.append((numbers, packed))
            size += len(packed.ids) * row
            if size >= WINDOW:
                yield window
                window, size = [], 0
        if window:
            yield window

    def _in_memory(self, block: Any) -> Any:
        """Return a block, or a copy in memory if it stays in its file."""
        return _rounded(block, self.dtype) if is_streamed(block) else block

    def _embedded(self, packed: Packed) -> Tensor:
        """Add the embeddings of each row's token and position: (U, C)."""
        if (longest := int(packed.positions.max()) + 1) > len(self.wpe):
            raise DataError(f"{longest} tokens are more than n_ctx = {len(self.wpe)}; cut the text")
        return self.wte[packed.ids] + self.wpe[packed.positions]

    def _block(self, block: TransformerBlock, x: Tensor, packed: Packed) -> Tensor:
        """Compute a block on rows instead of padded texts: (U, C) -> (U, C)."""
        # the states may be cached and reused, so a caller's autocast must not round them
        with torch.autocast(self.device.type, enabled=False):
            return self._computed(block, x, packed)

    def _computed(self, block: TransformerBlock, x: Tensor, packed: Packed) -> Tensor:
        tiles = x.split(self.tile)
        c_attn, attn_proj, c_fc, mlp_proj = (
            unpacked(layer, self._input)
            for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        )
        qkv = torch.cat([c_attn(block.ln_1(rows).to(self._input)) for rows in tiles])
        gathered = []
        for r in packed.rectangles:
            rows = r.widened(r.rows)
            W = rows.shape[1]
            seen = None
            if not self.causal_mask:
                seen = r.widened(r.real)[:, None, None].expand(-1, 1, W, W)
            gathered.append(block.attn.attend(qkv[rows], seen).flatten(0, 1))  # (B * W, C)
        y = torch.cat(gathered)[packed.home]  # (U, C)
        out = []
        for rows, attended in zip(tiles, y.split(self.tile), strict=True):
            rows = rows + attn_proj(attended)
            wide = c_fc(block.ln_2(rows).to(self._input))  # (tile, 4C)
            # in place, because allocating new memory would take longer than the GELU
            if isinstance(block.mlp.c_fc, Int8Linear):
                gelu_(wide)
            else:
                torch.ops.aten.gelu_(wide, approximate="tanh")
            out.append(rows + mlp_proj(wide))
        return torch.cat(out)
