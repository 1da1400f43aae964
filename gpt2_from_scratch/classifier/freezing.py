"""Freeze a model, unfreeze what should be trained, and list both in a ledger."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from gpt2_from_scratch.classifier.heads import (
    blocks_read,
    layers_by_name,
    reads_positions_alone,
)
from gpt2_from_scratch.classifier.settings import HeadConfig, TrainConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.changes import ORIGINAL, alteration, parameters_by_name
from gpt2_from_scratch.gpt2.lora import LoRALinear
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.nf4 import packed_weights
from gpt2_from_scratch.speed.partial_blocks import change_of
from gpt2_from_scratch.storage.mapped import is_mapped


def set_trainable(
    model: GPT2,
    n_last_blocks: int = 1,
    final_norm: bool = True,
    *,
    pattern: str = "",
    heads: Sequence[HeadConfig] = (),
) -> None:
    """Freeze everything, then unfreeze the heads, the last blocks and the final norm.

    LoRA adapters are always unfrozen.

    Args:
        model: The model, changed in place.
        n_last_blocks: The number of blocks to unfreeze, from 0 (only head and norm) to n_layer (all
            but the embeddings). They are the last blocks that `heads` read, because later blocks do
            not affect the outputs.
        final_norm: Whether to unfreeze the final LayerNorm.
        pattern: Patterns of parameter names, such as `head.*,blocks.11.mlp.*`. If given, exactly
            the matching parameters are unfrozen, and `n_last_blocks` and `final_norm` are ignored.
        heads: The model's heads. Those with `trainable` are unfrozen. By default `model.head` is.

    Raises:
        UsageError: The model does not have that many blocks, a weight to train is stored in NF4, a
            pattern matches no name, or a head is still tied to `wte` and `heads` does not name it.
            Training such a head would also train `wte`.
    """
    if not heads and any(p is model.wte.weight for p in model.head.parameters()):
        raise UsageError("the head is still GPT-2's own, tied to wte: call replace_head first")
    top = blocks_read(heads, model)
    if not 0 <= n_last_blocks <= top:
        what = "this model has" if top == model.config.n_layer else "the heads read"
        raise UsageError(f"n_last_blocks = {n_last_blocks}: {what} {top} blocks")
    packed = packed_weights(model)
    patterns = [part.strip() for part in pattern.split(",")] if pattern else []
    patterns = patterns or [f"blocks.{n}.*" for n in range(top - n_last_blocks, top)]
    for name in packed:
        if any(fnmatchcase(name, wanted) for wanted in patterns):
            raise UsageError(
                f"{name} cannot be trained, because it is stored in NF4. "
                + (f"Leave it out of {pattern!r:.80}." if pattern else "Set n_last_blocks = 0.")
            )
    # the method, not the attribute: a misspelt `require_grad = False` would silently freeze nothing
    model.requires_grad_(False)
    if pattern:
        _unfreeze_named(model, pattern)
    else:
        frozen = {head.name for head in heads if not head.trainable}
        for name, part in (layers_by_name(model, heads) if heads else {"": model.head}).items():
            part.requires_grad_(name not in frozen)
        model.wte.requires_grad_(False)  # heads for language share it, and a lens also ln_f
        norm_is_read = not heads or any(head.final_norm for head in heads)
        model.ln_f.requires_grad_(final_norm and norm_is_read)
        for block in model.blocks[top - n_last_blocks : top]:
            block.requires_grad_(True)
    for name, part in model.named_modules():
        if isinstance(part, LoRALinear):
            if name.removeprefix("_orig_mod.").startswith(
                "head"
            ):  # an adapted head is frozen; see LoRAConfig
                part.requires_grad_(False)
            part.lora_A.requires_grad_(True)
            part.lora_B.requires_grad_(True)


def _unfreeze_named(model: GPT2, pattern: str) -> None:
    for wanted in pattern.split(","):
        named = [
            p for name, p in parameters_by_name(model).items() if fnmatchcase(name, wanted.strip())
        ]
        if not named:
            known = ", ".join(parameters_by_name(model))
            raise UsageError(f"no parameter is named {wanted.strip()!r}; names: {known:.300}...")
        for parameter in named:
            parameter.requires_grad_(True)


def blocks_training(config: TrainConfig, epoch: int) -> int:
    """Return the number of last blocks that are trainable in an epoch, counted from 1.

    With `unfreeze_every` = E, no block is trainable in the first E epochs, one in the next E
    epochs, and so on. This is gradual unfreezing (Howard & Ruder 2018, ULMFiT).
    """
    if not config.unfreeze_every:
        return config.n_last_blocks
    return min(config.n_last_blocks, (epoch - 1) // config.unfreeze_every)


def parameter_groups(
    model: GPT2, config: TrainConfig, heads: Sequence[HeadConfig] = ()
) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: [{"params", "names", "lr", "weight_decay"}].

    The head and the final norm have the learning rate `lr`. The learning rate of each block is that
    of the part above it divided by `rate_decay`, and the embeddings follow the first block
    (discriminative learning rates; ULMFiT divides by 2.6). Only matrices have weight decay: moving
    biases, norms and positions towards 0 would not make the function simpler.
    """
    top = blocks_read(heads, model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters_by_name(model).items():
        if not parameter.requires_grad:
            continue
        parts_above = 0
        if name.startswith("blocks."):
            parts_above = top - int(name.split(".")[1])
        elif name.startswith(("wte.", "wpe.")):
            parts_above = top + 1
        lr = config.lr / config.rate_decay**parts_above
        decays = parameter.dim() > 1 and not name.startswith("wpe.")
        decay = config.weight_decay if decays else 0.0
        group = groups.setdefault(
            (lr, decay), {"params": [], "names": [], "lr": lr, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def frozen_depth(model: GPT2) -> tuple[int, str]:
    """Return the number of leading blocks whose output for a text never changes.

    The second value is the reason why the number is not higher, or "" if this is only because the
    next block is trainable.
    """
    if model.wte.weight.requires_grad or model.wpe.weight.requires_grad:
        first_learns = any(parameter.requires_grad for parameter in model.blocks[0].parameters())
        return 0, "" if first_learns else "the embeddings are trainable"
    depth, reason = plain_depth(model)
    for n, block in enumerate(model.blocks[: depth + 1]):
        if any(parameter.requires_grad for parameter in block.parameters()):
            return n, ""
    return depth, reason


def plain_depth(model: GPT2, top: int | None = None) -> tuple[int, str]:
    """Return the number of unmodified leading blocks, and why it is not higher.

    An unmodified block computes exactly what its weights describe. With `top`, blocks from that
    index on are ignored.
    """
    if reason := _change_of_embeddings(model):
        return 0, reason
    blocks = [*model.blocks][:top]
    for n, block in enumerate(blocks):
        if reason := change_of(block):
            return n, f"blocks.{n} was changed: {reason}"
        if any(isinstance(part, LoRALinear) for part in block.modules()):
            return n, f"blocks.{n} has LoRA adapters"
        n_head = block.get_submodule("attn").n_head
        if n_head != model.config.n_head:
            return n, f"blocks.{n} was changed: it has {n_head} attention heads"
        # a matrix that stays in its file may be in another type, because a Trunk converts it
        if any(p.dtype != torch.float32 and not is_mapped(p) for p in block.parameters()):
            return n, f"blocks.{n} is not in float32"
    return len(blocks), ""


def changed_part(model: GPT2, depth: int, top: int) -> str:
    """Describe a modified part among those that compute the states after `top` blocks.

    The first `depth` blocks are known to be unmodified. The result is empty if all parts compute
    what their weights and adapters describe. A modified part may mix positions, so it must see each
    text without padding, as in `model(ids)`.
    """
    if reason := _change_of_embeddings(model):
        return reason
    for n in range(depth, top):
        if reason := change_of(model.blocks[n]):
            return f"blocks.{n} was changed: {reason}"
    return "" if reads_positions_alone(model.ln_f) else "ln_f was changed"


def refuse_other_forward(model: GPT2) -> None:
    """Raise UsageError if the model's forward pass is not the one that its parts describe.

    A classifier runs the parts itself: embeddings, blocks, final norm, heads.
    """
    changed = ""
    while inner := getattr(model, "_orig_mod", None):  # the model that torch.compile wrapped
        if not hasattr(vars(model).get("forward"), "_torchdynamo_orig_callable"):
            changed = "forward"
        if model._forward_hooks or model._forward_pre_hooks:
            changed = "a hook of the whole model"
        model = inner
    for name in ("forward", "hidden"):
        if name in vars(model) or getattr(type(model), name, None) is not ORIGINAL[GPT2][name]:
            changed = name
    if model._forward_hooks or model._forward_pre_hooks:
        changed = "a hook of the whole model"
    if changed:
        raise UsageError(
            f"{changed} was changed, but a classifier runs the model's parts; change embed, a "
            "block, ln_f or the head instead"
        )
    if len(model.blocks) != model.config.n_layer:
        raise UsageError(
            f"the model has {len(model.blocks)} blocks, but its config n_layer = "
            f"{model.config.n_layer}. To leave blocks out, let the heads read an earlier layer."
        )


def _change_of_embeddings(model: GPT2) -> str:
    model = getattr(model, "_orig_mod", model)  # the model that torch.compile wrapped
    if "embed" in vars(model) or type(model).embed is not ORIGINAL[GPT2]["embed"]:
        return "embed was changed"
    for name, part in (("wte", model.wte), ("wpe", model.wpe)):
        if type(part) is not nn.Embedding or part.max_norm is not None:
            return f"{name} was changed: it is another kind of layer"
        if reason := alteration(part):
            return f"{name} was changed: it {reason}"
        if part.weight.dtype != torch.float32:
            return f"{name} is not in float32"
    return ""


def trainable_names(model: nn.Module) -> list[str]:
    """List the names of the trainable parameters, in the model's order."""
    return [
        name for name, parameter in parameters_by_name(model).items() if parameter.requires_grad
    ]


def count_trainable(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@dataclass(frozen=True)
class LedgerLine:
    """The parameters of one part of the model: their number, and how they are trained."""

    part: str
    parameters: int
    trainable: int
    lr: float = 0.0  # highest learning rate; 0 if frozen or if no config is given
    weight_decay: float = 0.0
    decayed: int = 0  # parameters with weight decay

    @property
    def state(self) -> str:
        """Return `trainable`, `frozen` or `partly`."""
        return {0: "frozen", self.parameters: "trainable"}.get(self.trainable, "partly")


def ledger(
    model: GPT2, config: TrainConfig | None = None, heads: Sequence[HeadConfig] = ()
) -> list[LedgerLine]:
    """Count every parameter exactly once, by part: embeddings, each block, final norm, head.

    Weights in NF4 count as frozen parameters. If `config` is given, the lines also show the
    learning rate and the weight decay.
    """
    groups = parameter_groups(model, config, heads) if config else []
    group_of = {name: group for group in groups for name in group["names"]}
    parts: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters_by_name(model).items():
        parts.setdefault(_part_of(name), {})[name] = parameter
    packed = Counter[str]()  # {part: its weights in NF4}
    for name, weight in packed_weights(model).items():
        packed[_part_of(name)] += weight.shape.numel()
    lines = []
    for part, parameters in parts.items():
        trained = {n: p.numel() for n, p in parameters.items() if p.requires_grad}
        decayed = {
            n: size for n, size in trained.items() if group_of.get(n, {}).get("weight_decay")
        }
        lines.append(
            LedgerLine(
                part,
                sum(p.numel() for p in parameters.values()) + packed[part],
                sum(trained.values()),
                max((group_of[n]["lr"] for n in trained if n in group_of), default=0.0),
                config.weight_decay if config and decayed else 0.0,
                sum(decayed.values()),
            )
        )
    return lines


def _part_of(name: str) -> str:
    """The part of a model to which a parameter belongs."""
    first, *others = name.split(".")
    return f"{first}.{others[0]}" if first == "blocks" else first


def format_ledger(lines: list[LedgerLine]) -> str:
    """Format the ledger as a table; consecutive blocks that are trained alike have one line."""
    runs: list[list[LedgerLine]] = []
    for line in lines:
        alike = runs and replace(runs[-1][0], part="") == replace(line, part="")
        if alike and line.part.startswith("blocks.") and runs[-1][0].part.startswith("blocks."):
            runs[-1].append(line)
        else:
            runs.append([line])
    rows = []
    for first, *others in runs:
        n, part = 1 + len(others), first.part
        if others:
            part = f"{part} to {others[-1].part.split('.')[1]}"
        lr = f"lr {first.lr:.1e}" if first.lr else ""
        decay = f"decay {first.weight_decay} of {n * first.decayed:,}" if first.decayed else ""
        rows.append([part, f"{n * first.parameters:,}", first.state, lr, decay])
    total, trainable = sum(x.parameters for x in lines), sum(x.trainable for x in lines)
    share = f"{trainable:,} trainable ({100 * trainable / total:.2f}%)"
    table = tabulate(rows, tablefmt="plain", colalign=("left", "right"), disable_numparse=True)
    return f"{table}\n{share} of {total:,} parameters"
