"""LoRA: train the product of two narrow matrices next to a frozen one.

The weight W (out, in) of a linear layer is frozen. A low-rank product is added to the layer's output:

    y  =  W x + b  +  (alpha / rank) B A x        A (rank, in), B (out, rank)

A is initialised at random and B with zeros, so the model's outputs do not change at first. GPT-2
stores query, key and value in one matrix `c_attn` (3C, C). Each of these three parts gets an A and a
B of its own, as if there were three matrices. After training, the product can be added to W. The
model is then an ordinary GPT-2 again. With QLoRA, W is stored in NF4 (see `nf4`), and the product
cannot be added to it.

Shapes: C = n_embd, r = rank, P adapted parts of a matrix.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), and
its loralib, https://github.com/microsoft/LoRA.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.changes import alteration, parameters_by_name
from gpt2_from_scratch.gpt2.config import FUSED, WHOLE, LoRAConfig
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.nf4 import NF4Linear, NF4Weight, nf4_linear, quantize_blocks
from gpt2_from_scratch.storage.mapped import hold


class LoRALinear(nn.Module):
    """A linear layer with adapters, one per given range of its outputs.

    It keeps the parameters of the layer that it replaces, under the same names. All ranges must have
    the same width. A weight in NF4 is kept as `packed`; there is then no `weight`.
    """

    weight: Tensor
    packed: NF4Weight | None

    def __init__(
        self,
        linear: nn.Linear | NF4Linear,
        slices: list[slice],
        config: LoRAConfig,
        generator: torch.Generator,
    ):
        super().__init__()
        self.packed = linear.packed if isinstance(linear, NF4Linear) else None
        if isinstance(linear, nn.Linear):
            self.weight = linear.weight
        self.bias = linear.bias
        like = self.bias if self.packed else self.weight
        self.slices, self.dropout = slices, config.dropout
        self.scale = config.alpha / config.rank
        P, r, n_in = len(slices), config.rank, linear.in_features
        bound = n_in**-0.5  # the same distribution as the initial weight of an nn.Linear
        A = torch.empty(P, r, n_in, device="meta" if like.is_meta else "cpu")
        if not A.is_meta:
            A.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(A.to(like))
        width = slices[0].stop - slices[0].start
        self.lora_B = nn.Parameter(like.new_zeros(P, width, r))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        if self.packed is None:
            y = F.linear(x, self.weight, self.bias)  # (..., out)
        else:
            y = nf4_linear(x, self.packed, self.bias)
        x = F.dropout(x, self.dropout, self.training)  # once for all adapters, as in loralib
        for outputs, A, B in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            y[..., outputs] += self.scale * F.linear(F.linear(x, A), B)
        return y

    def whole_weight(self) -> Tensor:
        """Return a copy of the weight with the products added, with gradients: (out, in)."""
        weight = (self.weight if self.packed is None else self.packed()).clone()
        for outputs, A, B in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            weight[outputs] += self.scale * (B @ A)
        return weight

    @torch.no_grad()
    def rounds_to(self, value: Tensor) -> bool:
        """Return whether the weight equals `value` (out, in), except for rounding.

        Merging and unmerging adapters rounds the weight.
        """
        value = value.to(self.weight)
        error = 2 * torch.finfo(value.dtype).eps * (self.whole_weight().abs() + value.abs())
        return bool(((self.weight - value).abs() <= error).all())

    @torch.no_grad()
    def add_to_weight(self, times: int) -> None:
        """Add the products to the weight, in place.

        `times` is 1, or -1 to subtract the products again.
        """
        for outputs, A, B in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            self.weight[outputs] += times * self.scale * (B @ A)


def add_lora(
    model: GPT2, config: LoRAConfig, seed: int = 123, blocks_read: int | None = None
) -> None:
    """Add trainable adapters to the matrices of a model, in place.

    The logits do not change, unless the blocks are quantised first, as `config.quantize` asks.

    Freeze the model before this call, because `freezing.set_trainable` would freeze the adapters too.
    This function freezes only the head layers that it adapts. It never adapts GPT-2's own head, whose
    weight is `wte`. A is drawn on the CPU from `seed` and not from torch's global generator, so it is
    the same on every device.

    Args:
        model: a GPT-2 without adapters, with any head.
        config: which matrices are adapted, and how.
        seed: random seed for A.
        blocks_read: number of leading blocks whose output the heads use; None for all. Later blocks
            get no adapters, and `config.n_last_blocks` counts back from the last of these blocks.

    Raises:
        UsageError: the model already has adapters, the rank exceeds n_embd, the model has fewer
            blocks than requested, or a part to adapt or to quantise is not a plain linear layer.
            The model is unchanged.
    """
    if lora_names(model):
        raise UsageError("the model already has LoRA adapters; merge them first")
    if config.rank > model.config.n_embd:
        raise UsageError(f"LoRA: rank {config.rank} exceeds n_embd = {model.config.n_embd}")
    generator = torch.Generator().manual_seed(seed)
    targets = _targets(model, config, blocks_read)
    for name in targets:
        _linear_at(model, name)  # before anything is changed
    if config.quantize == "nf4":
        quantize_blocks(model)
    adapters = {}
    for name, slices in targets.items():
        linear = _linear_at(model, name)
        hold(linear)
        outputs = slices or [slice(0, linear.out_features)]
        adapters[name] = LoRALinear(linear, outputs, config, generator)
    for name, adapter in adapters.items():
        _put(model, name, adapter)
        if name.startswith("head"):
            adapter.weight.requires_grad_(False)
            if adapter.bias is not None:
                adapter.bias.requires_grad_(False)


def lora_names(model: nn.Module) -> list[str]:
    """List the names of all adapter parameters, in the model's order."""
    return [name for name in parameters_by_name(model) if name.endswith(("lora_A", "lora_B"))]


def merge_lora(model: GPT2) -> dict[str, LoRALinear]:
    """Add all products to their weights, and restore plain linear layers.

    This changes the values of the existing parameters in place. Returns {module name: adapter} for
    `unmerge_lora`. Raises UsageError if an adapter has hooks or was changed in another way, and if
    the weights are in NF4, which has only 16 values per block.
    """
    adapters = {
        name.removeprefix("_orig_mod."): part  # without the prefix that torch.compile adds
        for name, part in model.named_modules()
        if isinstance(part, LoRALinear)
    }
    for name, adapter in adapters.items():
        if reason := alteration(adapter):
            raise UsageError(f"{name} {reason}, which would be lost by merging")
        if adapter.packed:
            raise UsageError(
                f"{name} is stored in NF4, which could not hold the sum of the weight and the "
                "product. Export the classifier to merge it in float32."
            )
    for name, adapter in adapters.items():
        adapter.add_to_weight(1)
        out, n_in = adapter.weight.shape
        linear = nn.Linear(n_in, out, device="meta")  # draws no values, because they are replaced
        linear.weight, linear.bias = adapter.weight, adapter.bias
        _put(model, name, linear)
    return adapters


def unmerge_lora(model: GPT2, adapters: dict[str, LoRALinear]) -> None:
    """Subtract all products from their weights, and restore the adapters.

    The weights are changed in place. They are only approximately the same as before the merge,
    because adding and subtracting round. The error is about 1e-7 of the largest value that was added.
    Raises UsageError if the adapters were not merged into this model.
    """
    for name, adapter in adapters.items():
        if _linear_at(model, name).weight is not adapter.weight:
            raise UsageError(f"these adapters were not merged into this model's {name}")
    for name, adapter in adapters.items():
        adapter.to(adapter.weight.device)  # the model may have been moved to another device
        adapter.add_to_weight(-1)
        _put(model, name, adapter)


def _targets(model: GPT2, config: LoRAConfig, blocks_read: int | None) -> dict[str, list[slice]]:
    """Return {name of a linear layer: ranges of outputs to adapt}.

    An empty list means all outputs.
    """
    C, top = model.config.n_embd, model.config.n_layer if blocks_read is None else blocks_read
    count = top if config.n_last_blocks is None else config.n_last_blocks
    if count > top:
        what = "this model has" if top == model.config.n_layer else "the heads read"
        raise UsageError(f"LoRA: n_last_blocks = {count}, but {what} {top} blocks")
    thirds = [slice(n * C, n * C + C) for n in range(3) if FUSED[n] in config.matrices]
    targets: dict[str, list[slice]] = {}
    for n in range(top - count, top):
        if thirds:
            targets[f"blocks.{n}.attn.c_attn"] = thirds
        targets |= {f"blocks.{n}.{name}": [] for name in WHOLE if name in config.matrices}
    if config.head:
        layers = [
            name
            for name, part in model.head.named_modules(prefix="head")
            if isinstance(part, nn.Linear) and part.weight is not model.wte.weight
        ]
        if not layers:
            raise UsageError("LoRA: the model has no new head to adapt; call replace_head first")
        targets |= {name: [] for name in layers}
    return targets


def _linear_at(model: GPT2, name: str) -> nn.Linear | NF4Linear:
    """Return the linear layer of this name.

    Raises UsageError if replacing the layer would lose hooks or other changes.
    """
    try:
        part = model.get_submodule(name)
    except AttributeError:
        part = None
    if isinstance(part, nn.Linear | NF4Linear) and type(part) in (nn.Linear, NF4Linear):
        if not alteration(part):
            return part
    raise UsageError(f"{name} is not a plain nn.Linear, so it cannot have adapters")


def _put(model: GPT2, name: str, part: nn.Module) -> None:
    """Replace a module of the model. The new module takes over the old one's training mode."""
    part.train(model.get_submodule(name).training)
    model.set_submodule(name, part)
