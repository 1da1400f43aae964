"""NF4: store the matrices of frozen blocks with four bits per weight.

QLoRA trains LoRA adapters next to such a matrix. The matrix is quantised once, never trained, and
dequantised whenever it is used. The values of a matrix are taken row by row, in blocks of 64:

    absmax  =  max |w|                          one number per block
    w       ~  absmax * NF4_LEVELS[code]            one code of four bits per weight

The 16 levels divide a normal distribution into parts of about equal probability, because pretrained
weights are nearly normal. One of the levels is 0. The absmax are quantised too ("double
quantisation"): their mean is subtracted, and the rest is stored as 8-bit floats, in groups of 256
with one scale each. In total these are 4 + 8/64 + 32/(64 * 256) = 4.127 bits per weight.

Embeddings, norms, biases and heads are not quantised.

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv 2305.14314),
section 3; the levels are those of its appendix E.
"""

import hashlib
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.changes import alteration
from gpt2_from_scratch.gpt2.config import WHOLE
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.storage.mapped import release

BLOCK = 64  # weights that share an absmax
GROUP = 256  # absmax that share a scale
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
TINY = torch.finfo(torch.float32).tiny  # divides instead of 0 in a block of zeros
MATRICES = ("attn.c_attn", *WHOLE)  # the matrices of a block


class NF4Weight(nn.Module):
    """A matrix of a linear layer in NF4. Calling it returns the dequantised matrix: (out, in).

    Its buffers are `codes`, two per byte with the first in the higher four bits; `absmax`, one
    8-bit float per block of 64 weights; `scales`, one per group of 256 absmax; and the `mean` of
    the absmax. The last block is filled up with zeros.

    Raises UsageError if the matrix contains NaN or infinite values.
    """

    codes: Tensor
    absmax: Tensor
    scales: Tensor
    mean: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.shape = weight.shape
        for name, value in _quantized(weight.detach()).items():
            self.register_buffer(name, value)

    def forward(self) -> Tensor:
        """Dequantise: () -> (out, in) float32"""
        pairs, float8 = _tables(self.codes.device)
        values = F.embedding(self.codes.int(), pairs).view(-1, BLOCK)
        values *= self.dequantized_absmax(float8)[:, None]
        return values.flatten()[: self.shape.numel()].view(self.shape)

    def dequantized_absmax(self, float8: Tensor) -> Tensor:
        """Return the absmax of each block; `float8` are the values of the 256 8-bit floats."""
        deviations = float8[self.absmax.int()]
        deviations *= self.scales.repeat_interleave(GROUP)[: len(deviations)]
        return (deviations + self.mean).relu_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NF4Weight":
        """Move to a device. A change of precision is ignored, because it would change the matrix."""
        scales, mean = self.scales, self.mean
        super()._apply(fn, recurse)
        self.scales, self.mean = (x.to(self.codes.device) for x in (scales, mean))
        return self


class NF4Linear(nn.Module):
    """A linear layer whose weight is stored in NF4. Its weight cannot be trained."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = NF4Weight(linear.weight)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The dequantised weight (out, in), a new tensor at each access."""
        return self.packed()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return nf4_linear(x, self.packed, self.bias)


class _Product(torch.autograd.Function):
    """F.linear that dequantises its weight again for the gradient instead of keeping it.

    N rows at once: (N, in) -> (N, out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: NF4Weight, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return F.linear(x, packed(), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        dx = dy @ ctx.packed().to(dy.dtype) if ctx.needs_input_grad[0] else None
        db = dy.sum(0) if ctx.needs_input_grad[2] else None
        return dx, None, db


def nf4_linear(x: Tensor, packed: NF4Weight, bias: Tensor | None) -> Tensor:
    """Compute `F.linear` with a packed weight: (..., in) -> (..., out).

    The dequantised weight is freed after the product. For the gradient it is dequantised again.
    """
    rows = _Product.apply(x.reshape(-1, x.shape[-1]), packed, bias)
    return rows.view(*x.shape[:-1], rows.shape[-1])


def unpacked(layer: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a function that computes a layer; a packed weight is dequantised only once.

    The function takes inputs of `dtype`. Another layer is returned as it is.
    """
    if not isinstance(layer, NF4Linear):
        return layer
    weight, bias = layer.weight.to(dtype), layer.bias.to(dtype)
    return lambda x: F.linear(x, weight, bias)


def quantize_blocks(model: GPT2) -> None:
    """Replace the matrices of all blocks by matrices in NF4, in place.

    Raises UsageError if a matrix is not in a plain nn.Linear, is already quantised, or contains NaN
    or infinite values. The model is unchanged in the first two cases.
    """
    names = [f"blocks.{n}.{name}" for n in range(model.config.n_layer) for name in MATRICES]
    for name in names:
        part = model.get_submodule(name)
        if type(part) is not nn.Linear or alteration(part):
            raise UsageError(f"{name} is not a plain nn.Linear, so it cannot be quantised")
        if not (part.weight.is_meta or part.weight.isfinite().all()):
            raise UsageError(f"{name}.weight contains NaN or infinite values; not quantised")
        release(part.weight)
    for name in names:  # one after the other, so that each matrix is freed before the next one
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        layer = NF4Linear(linear)
        layer.bias.requires_grad_(False)
        layer.train(linear.training)
        model.set_submodule(name, layer)


def packed_weights(model: nn.Module) -> dict[str, NF4Weight]:
    """Return the matrices in NF4 by the names of the parameters that they replace."""
    return {
        f"{name.replace('_orig_mod.', '').removesuffix('packed')}weight": part
        for name, part in model.named_modules()
        if isinstance(part, NF4Weight)
    }


def packed_sha256(model: nn.Module) -> str:
    """Hash the codes and scales of all matrices in NF4; "" if there are none."""
    digest, weights = hashlib.sha256(), packed_weights(model)
    for name, packed in sorted(weights.items()):
        for kind, value in packed.named_buffers():
            digest.update(f"{name} {kind} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().data)
    return digest.hexdigest() if weights else ""


def _quantized(weight: Tensor) -> dict[str, Tensor]:
    """Return the buffers of `NF4Weight` for a matrix; without values if it is on the meta device."""
    n_blocks = -(-weight.numel() // BLOCK)
    n_groups = -(-n_blocks // GROUP)
    if weight.is_meta:
        codes, absmax = weight.new_empty(n_blocks * BLOCK // 2), weight.new_empty(n_blocks)
        found = {"codes": codes.to(torch.uint8), "absmax": absmax.to(torch.uint8)}
        return found | {"scales": weight.new_empty(n_groups), "mean": weight.new_empty(())}
    values = F.pad(weight.float().flatten(), (0, -weight.numel() % BLOCK)).view(n_blocks, BLOCK)
    absmax = values.abs().amax(1)  # (n_blocks,)
    values = values / absmax.clamp(min=TINY)[:, None]
    codes = torch.zeros(values.shape, dtype=torch.uint8, device=weight.device)
    levels = torch.tensor(NF4_LEVELS)
    for middle in ((levels[1:] + levels[:-1]) / 2).tolist():
        codes += values > middle  # a third of the time of torch.bucketize
    # rounded once, so it does not depend on the order of the additions
    mean = math.fsum(absmax.tolist()) / n_blocks
    deviations = F.pad(absmax - mean, (0, -n_blocks % GROUP)).view(n_groups, GROUP)
    scales = deviations.abs().amax(1) / LARGEST
    small = (deviations / scales.clamp(min=TINY)[:, None]).to(FLOAT8).view(torch.uint8)
    return {
        "codes": (codes[:, ::2] << 4 | codes[:, 1::2]).flatten(),
        "absmax": small.flatten()[:n_blocks].clone(),
        "scales": scales,
        "mean": scales.new_tensor(mean),
    }


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """The two levels of each byte of codes (256, 2), and the value of each 8-bit float (256,)."""
    every = torch.arange(256, dtype=torch.uint8)
    levels = torch.tensor(NF4_LEVELS)
    pairs = torch.stack([levels[(every >> 4).int()], levels[(every & 15).int()]], dim=1)
    return pairs.to(device), every.view(FLOAT8).float().to(device)
