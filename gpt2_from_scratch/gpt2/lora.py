"""LoRA: next to a frozen matrix, train the product of two narrow matrices.

The weight W (out, in) of a linear layer stays as it is. A low-rank product is added to its output:

    y  =  W x + b  +  (alpha / rank) B A x        A (rank, in), B (out, rank)

A starts random and B zero, so the model starts unchanged. GPT-2 keeps query, key and value in one
matrix `c_attn` (3C, C). Each of the three is adapted on its own, with its own A and B, as if there
were three matrices. After training the product can be added to W: then the model is a plain GPT-2
again.

B texts, T tokens in the longest, C = n_embd, r = rank, P adapted parts of a matrix.

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


class LoRALinear(nn.Module):
    """A linear layer with adapters, one per given range of its outputs.

    It holds the parameters of the layer that it replaces, under the same names, so the names of the
    model's parameters do not change. All ranges have the same width.
    """

    def __init__(
        self, linear: nn.Linear, slices: list[slice], config: LoRAConfig, generator: torch.Generator
    ):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.slices, self.dropout = slices, config.dropout
        self.scale = config.alpha / config.rank
        P, r, n_in = len(slices), config.rank, linear.in_features
        bound = n_in**-0.5  # kaiming-uniform with a = sqrt(5), as nn.Linear draws its weight
        A = torch.empty(P, r, n_in, device="meta" if linear.weight.is_meta else "cpu")
        if not A.is_meta:
            A.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(A.to(linear.weight))
        width = slices[0].stop - slices[0].start
        self.lora_B = nn.Parameter(linear.weight.new_zeros(P, width, r))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        y = F.linear(x, self.weight, self.bias)  # (..., out)
        x = F.dropout(x, self.dropout, self.training)  # once for all adapters, as in loralib
        for outputs, A, B in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            y[..., outputs] += self.scale * F.linear(F.linear(x, A), B)
        return y

    def whole_weight(self) -> Tensor:
        """Add the products to a copy of the weight, with gradients: (out, in)."""
        weight = self.weight.clone()
        for outputs, A, B in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            weight[outputs] += self.scale * (B @ A)
        return weight

    @torch.no_grad()
    def rounds_to(self, value: Tensor) -> bool:
        """Return whether the weight is `value` (out, in) but for rounding by merging and unmerging."""
        value = value.to(self.weight)
        error = 2 * torch.finfo(value.dtype).eps * (self.whole_weight().abs() + value.abs())
        return bool(((self.weight - value).abs() <= error).all())

    @torch.no_grad()
    def add_to_weight(self, times: int) -> None:
        """Add the products to the weight, in place: once (1), or subtract them again (-1)."""
        for outputs, A, B in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            self.weight[outputs] += times * self.scale * (B @ A)


def add_lora(
    model: GPT2, config: LoRAConfig, seed: int = 123, blocks_read: int | None = None
) -> None:
    """Add trainable adapters to the matrices of a model, in place; its logits do not change.

    Freeze the rest first: `freezing.set_trainable` called afterwards would freeze the adapters too.
    Head layers that are adapted are frozen here; nothing else is. GPT-2's own head, which is tied to
    `wte`, is never adapted. A is drawn on the CPU from `seed` alone, not from torch's global random
    numbers, so it is the same on every device.

    Args:
        model: a GPT-2 without adapters, with any head.
        config: which matrices are adapted, and how.
        seed: draws A.
        blocks_read: number of blocks that the heads read, if not all. The last blocks are counted
            from there, and blocks after it get no adapters.

    Raises:
        UsageError: the model has adapters already, the rank is above n_embd, there are fewer blocks
            than asked for, or a part to adapt is not a plain linear layer. The model is unchanged.
    """
    if lora_names(model):
        raise UsageError("the model has LoRA adapters already; merge them first")
    if config.rank > model.config.n_embd:
        raise UsageError(f"LoRA: rank {config.rank} is above n_embd = {model.config.n_embd}")
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for name, slices in _targets(model, config, blocks_read).items():
        linear = _linear_at(model, name)
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
    """Add every product to its weight, in place, and put back plain linear layers.

    Returns {module name: adapter} for `unmerge_lora`. The layers hold the same parameters as before,
    with new values. Raises UsageError for an adapter with hooks or other additions.
    """
    adapters = {
        name.removeprefix("_orig_mod."): part  # the name without what torch.compile puts before it
        for name, part in model.named_modules()
        if isinstance(part, LoRALinear)
    }
    for name, adapter in adapters.items():
        if reason := alteration(adapter):
            raise UsageError(f"{name} {reason}, which merging would lose")
    for name, adapter in adapters.items():
        adapter.add_to_weight(1)
        out, n_in = adapter.weight.shape
        linear = nn.Linear(n_in, out, device="meta")  # draws nothing: its parameters follow
        linear.weight, linear.bias = adapter.weight, adapter.bias
        _put(model, name, linear)
    return adapters


def unmerge_lora(model: GPT2, adapters: dict[str, LoRALinear]) -> None:
    """Subtract every product from its weight, in place, and put the adapters back.

    Adding and subtracting rounds: a weight comes back to about 1e-7 of the largest number added to
    it, not to the bit. Raises UsageError if the adapters were not merged into this model.
    """
    for name, adapter in adapters.items():
        if _linear_at(model, name).weight is not adapter.weight:
            raise UsageError(f"these adapters were not merged into this model's {name}")
    for name, adapter in adapters.items():
        adapter.to(adapter.weight.device)  # the model may have moved meanwhile
        adapter.add_to_weight(-1)
        _put(model, name, adapter)


def _targets(model: GPT2, config: LoRAConfig, blocks_read: int | None) -> dict[str, list[slice]]:
    """{name of a linear layer: ranges of outputs to adapt}; no ranges: all outputs."""
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
            raise UsageError(
                "LoRA: the head has no linear layer of its own to adapt; call replace_head first"
            )
        targets |= {name: [] for name in layers}
    return targets


def _linear_at(model: GPT2, name: str) -> nn.Linear:
    """Get a layer that can be replaced without losing hooks or other additions to it."""
    try:
        part = model.get_submodule(name)
    except AttributeError:
        part = None
    if type(part) is not nn.Linear or alteration(part):
        raise UsageError(f"{name} is not a plain nn.Linear, so it cannot have adapters")
    return part


def _put(model: GPT2, name: str, part: nn.Module) -> None:
    """Replace a part of the model; the new part takes over the training mode of the old one."""
    part.train(model.get_submodule(name).training)
    model.set_submodule(name, part)
