"""LoRA: beside a frozen matrix, the product of two narrow ones that trains in its place.

A linear layer's W (out, in) stays as it is, and what it gives is changed by a low-rank product:

    y  =  W x + b  +  (alpha / rank) B A x        A (rank, in), B (out, rank)

A begins random and B zero, so that the model begins as it was. GPT-2 has query, key and value in
one matrix `c_attn`, (3C, C); each is adapted on its own, with an A and a B of its own, as if there
were three. Afterwards the product can be added to W: then the model is a plain GPT-2 again.

B texts, T tokens of the longest, C = n_embd, r = rank, P parts of a matrix that are adapted.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), and
its loralib, https://github.com/microsoft/LoRA.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import FUSED, WHOLE, LoRAConfig
from gpt2_from_scratch.gpt2.model import GPT2


class LoRALinear(nn.Module):
    """A linear layer and its adapters, one for each of some ranges of its outputs.

    It holds the very parameters of the layer it stands in for, under the same names, so that the
    model's other parameters keep their names. All ranges are equally wide.
    """

    def __init__(
        self, linear: nn.Linear, slices: list[slice], config: LoRAConfig, generator: torch.Generator
    ):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.slices, self.dropout = slices, config.dropout
        self.scale = config.alpha / config.rank
        P, r, n_in = len(slices), config.rank, linear.in_features
        bound = n_in**-0.5  # kaiming-uniform with a = sqrt(5), what nn.Linear draws its weight from
        A = torch.empty(P, r, n_in, device="cpu").uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(A.to(linear.weight))
        width = slices[0].stop - slices[0].start
        self.lora_B = nn.Parameter(linear.weight.new_zeros(P, width, r))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        y = F.linear(x, self.weight, self.bias)  # (..., out)
        x = F.dropout(x, self.dropout, self.training)  # once for all of them, as in loralib
        for outputs, A, B in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            y[..., outputs] += self.scale * F.linear(F.linear(x, A), B)
        return y

    def whole_weight(self) -> Tensor:
        """Weight and products as one matrix, with gradients: (out, in)."""
        weight = self.weight.clone()
        for outputs, A, B in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            weight[outputs] += self.scale * (B @ A)
        return weight

    @torch.no_grad()
    def add_to_weight(self, times: int) -> None:
        """Add the product to the weight, in place: 1 puts it in, -1 takes it out again."""
        for outputs, A, B in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            self.weight[outputs] += times * self.scale * (B @ A)


def add_lora(
    model: GPT2, config: LoRAConfig, seed: int = 123, blocks_read: int | None = None
) -> None:
    """Put adapters beside the matrices of a model, in place; they train.

    Where heads read no more than the first `blocks_read` blocks, blocks are counted from there, and
    those behind get none. The logits stay as they are, to the bit. Head layers that are adapted are frozen, nothing else
    is: freeze the rest before, for `finetuning.set_trainable` behind this would freeze the adapters
    too. GPT-2's own head, tied to `wte`, is never adapted. A is drawn on the processor from `seed`
    alone, not from torch's global random numbers: it is the same on every device.

    Raises UsageError for a model that has adapters already, a rank above n_embd, more blocks than
    there are, and parts that are no plain linear layers where they should be. The model is then as
    it was.
    """
    if lora_names(model):
        raise UsageError("the model has LoRA already: merge it before adding it again")
    if config.rank > model.config.n_embd:
        raise UsageError(f"LoRA's rank {config.rank} is above n_embd = {model.config.n_embd}")
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
    """The names of all parameters of adapters, in the model's order."""
    return [name for name, _ in model.named_parameters() if name.endswith(("lora_A", "lora_B"))]


def merge_lora(model: GPT2) -> dict[str, LoRALinear]:
    """Add every product to its weight and leave plain linear layers, in place.

    Returns the adapters by the names of their modules, for `unmerge_lora`; none if there are none.
    The layers hold the same parameters as before, with other numbers in them.
    """
    adapters = {name: part for name, part in model.named_modules() if isinstance(part, LoRALinear)}
    for name, adapter in adapters.items():
        adapter.add_to_weight(1)
        out, n_in = adapter.weight.shape
        linear = nn.Linear(n_in, out, device="meta")  # nothing is drawn: it gets what there is
        linear.weight, linear.bias = adapter.weight, adapter.bias
        _put(model, name, linear)
    return adapters


def unmerge_lora(model: GPT2, adapters: dict[str, LoRALinear]) -> None:
    """Take every product out of its weight again and put the adapters back, in place.

    Adding and taking away rounds: a weight comes back to about 1e-7 of the largest number added to
    it, not to the bit. Raises UsageError for adapters that were not merged into this model.
    """
    for name, adapter in adapters.items():
        if _linear_at(model, name).weight is not adapter.weight:
            raise UsageError(f"{name} is not the layer that these adapters were merged into")
    for name, adapter in adapters.items():
        adapter.to(adapter.weight.device)  # the model may have moved meanwhile
        adapter.add_to_weight(-1)
        _put(model, name, adapter)


def _targets(model: GPT2, config: LoRAConfig, blocks_read: int | None) -> dict[str, list[slice]]:
    """Names of the linear layers to adapt, and which outputs of each; no slices: all of them."""
    C, top = model.config.n_embd, model.config.n_layer if blocks_read is None else blocks_read
    count = top if config.n_last_blocks is None else config.n_last_blocks
    if count > top:
        what = "this model has" if top == model.config.n_layer else "the heads read"
        raise UsageError(f"LoRA: n_last_blocks = {count}: {what} {top} blocks")
    thirds = [slice(n * C, n * C + C) for n in range(3) if FUSED[n] in config.matrices]
    targets: dict[str, list[slice]] = {}
    for n in range(top - count, top):
        if thirds:
            targets[f"blocks.{n}.attn.c_attn"] = thirds
        targets |= {f"blocks.{n}.{name}": [] for name in WHOLE if name in config.matrices}
    if config.head:
        targets |= {name: [] for name in _head_linears(model)}
    return targets


def _head_linears(model: GPT2) -> list[str]:
    names = [
        name
        for name, part in model.head.named_modules(prefix="head")
        if isinstance(part, nn.Linear) and part.weight is not model.wte.weight
    ]
    if not names:
        raise UsageError(
            "LoRA: the head has no linear layer of its own to adapt: call replace_head first"
        )
    return names


def _linear_at(model: GPT2, name: str) -> nn.Linear:
    """A linear layer that can be exchanged without losing what somebody hung on it."""
    try:
        part = model.get_submodule(name)
    except AttributeError:
        part = None
    if type(part) is not nn.Linear or part._forward_hooks or part._forward_pre_hooks:
        raise UsageError(f"{name} is no plain nn.Linear: adapters have no place there")
    return part


def _put(model: GPT2, name: str, part: nn.Module) -> None:
    """Exchange a part of the model for another, which then trains or predicts as that did."""
    part.train(model.get_submodule(name).training)
    model.set_submodule(name, part)
