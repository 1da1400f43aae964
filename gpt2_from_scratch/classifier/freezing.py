"""What trains: nothing is frozen unless it is frozen here, and the ledger shows what is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from gpt2_from_scratch.classifier.heads import blocks_read, layers_by_name
from gpt2_from_scratch.classifier.settings import HeadConfig, TrainConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.lora import LoRALinear
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.speed.partial_blocks import is_plain


def set_trainable(
    model: GPT2,
    n_last_blocks: int = 1,
    final_norm: bool = True,
    *,
    pattern: str = "",
    heads: Sequence[HeadConfig] = (),
) -> None:
    """Freeze everything, then let the head, the last blocks and the final norm train.

    `n_last_blocks` goes from 0 (head and norm alone) to n_layer (all but the embeddings); they are
    the last of those that `heads` read: blocks behind a head that reads in the middle do nothing. A
    `pattern`, of names with * separated by commas, says it all instead: `head.*,blocks.11.mlp.*`.
    LoRA that was added trains either way. Of several `heads` those train that are to. Raises
    UsageError for another number, a pattern that no name fits, and for a head still tied to `wte`,
    where training one would train the other, unless `heads` say that it is meant.
    """
    if not heads and any(p is model.wte.weight for p in model.head.parameters()):
        raise UsageError("the head is still GPT-2's own, tied to wte: call replace_head first")
    top = blocks_read(heads, model)
    if not 0 <= n_last_blocks <= top:
        what = "this model has" if top == model.config.n_layer else "the heads read"
        raise UsageError(f"n_last_blocks = {n_last_blocks}: {what} {top} blocks")
    # the method, not the attribute: a misspelt `require_grad = False` would silently freeze nothing
    model.requires_grad_(False)
    if pattern:
        _unfreeze_named(model, pattern)
    else:
        _unfreeze_heads(model, heads)
        normed = not heads or any(head.final_norm for head in heads)
        model.ln_f.requires_grad_(final_norm and normed)
        for block in model.blocks[top - n_last_blocks : top]:
            block.requires_grad_(True)
    _unfreeze_lora(model)


def _unfreeze_heads(model: GPT2, heads: Sequence[HeadConfig]) -> None:
    """The one head, or of several those that are to train."""
    layers = layers_by_name(model, heads) if heads else {"": model.head}
    frozen = {head.name for head in heads if not head.trainable}
    for name, part in layers.items():
        part.requires_grad_(name not in frozen)
    model.wte.requires_grad_(False)  # a head for language is tied to it


def _unfreeze_lora(model: GPT2) -> None:
    for name, part in model.named_modules():
        if isinstance(part, LoRALinear):
            if name.startswith("head"):  # adapted heads are frozen themselves: see lora.LoRAConfig
                part.requires_grad_(False)
            part.lora_A.requires_grad_(True)
            part.lora_B.requires_grad_(True)


def _unfreeze_named(model: GPT2, pattern: str) -> None:
    for wanted in pattern.split(","):
        named = [p for name, p in model.named_parameters() if fnmatchcase(name, wanted.strip())]
        if not named:
            known = ", ".join(name for name, _ in model.named_parameters())
            raise UsageError(
                f"no parameter is called {wanted.strip()!r}; there are {known:.300}..."
            )
        for parameter in named:
            parameter.requires_grad_(True)


def blocks_training(config: TrainConfig, epoch: int) -> int:
    """How many last blocks train in an epoch, counted from 1: with `unfreeze_every` E, none in the
    first E epochs, one in the next E, and so on (gradual unfreezing: Howard & Ruder 2018, ULMFiT).
    """
    if not config.unfreeze_every:
        return config.n_last_blocks
    return min(config.n_last_blocks, (epoch - 1) // config.unfreeze_every)


def parameter_groups(
    model: GPT2, config: TrainConfig, heads: Sequence[HeadConfig] = ()
) -> list[dict[str, Any]]:
    """What trains, for AdamW: {"params", "names", "lr", "weight_decay"} of each rate and decay.

    Head and final norm learn at `lr`; each block at the rate of the part above it divided by
    `rate_decay`, the embeddings below the first (discriminative rates: ULMFiT has 2.6). Decay is
    for matrices: pulling biases, norms and positions to 0 would not make the function simpler.
    """
    top = blocks_read(heads, model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = config.lr / config.rate_decay ** _parts_above(name, top)
        decay = config.weight_decay if _decays(name, parameter) else 0.0
        group = groups.setdefault(
            (lr, decay), {"params": [], "names": [], "lr": lr, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _parts_above(name: str, top: int) -> int:
    if name.startswith("blocks."):
        return top - int(name.split(".")[1])
    return top + 1 if name.startswith(("wte.", "wpe.")) else 0


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1 and not name.startswith("wpe.")


def frozen_depth(model: GPT2) -> tuple[int, str]:
    """How many of the first blocks give one output for a text, for ever; and why not more.

    The reason is empty where the next block trains, or there is none.
    """
    if model.wte.weight.requires_grad or model.wpe.weight.requires_grad:
        return 0, "the embeddings train"
    depth, reason = plain_depth(model)
    for n, block in enumerate(model.blocks[: depth + 1]):
        if any(parameter.requires_grad for parameter in block.parameters()):
            return n, ""
    return depth, reason


def plain_depth(model: GPT2) -> tuple[int, str]:
    """How many of the first blocks do what their weights say and no more; and why not more."""
    for name, part in (("wte", model.wte), ("wpe", model.wpe)):
        if type(part) is not nn.Embedding or part._forward_hooks or part._forward_pre_hooks:
            return 0, f"{name} was changed"
    for n, block in enumerate(model.blocks):
        if not is_plain(block):
            return n, f"blocks.{n} holds a part or a hook that is not GPT-2's"
    return len(model.blocks), ""


def trainable_names(model: nn.Module) -> list[str]:
    """The names of all parameters that train, in the model's order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def count_trainable(model: nn.Module) -> int:
    """How many numbers train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@dataclass(frozen=True)
class LedgerLine:
    """One part of the model: how many numbers it has, how many of them train, and how."""

    part: str
    numbers: int
    trainable: int
    lr: float = 0.0  # the highest learning rate; 0 where nothing trains or it was not asked for
    weight_decay: float = 0.0
    decayed: int = 0  # numbers that decay

    @property
    def state(self) -> str:
        """`trains`, `frozen`, or `in part`."""
        return {0: "frozen", self.numbers: "trains"}.get(self.trainable, "in part")


def ledger(
    model: GPT2, config: TrainConfig | None = None, heads: Sequence[HeadConfig] = ()
) -> list[LedgerLine]:
    """Every parameter exactly once, by part: embeddings, each block, final norm, head.

    With a `config` its learning rate and weight decay too.
    """
    groups = parameter_groups(model, config, heads) if config else []
    group_of = {name: group for group in groups for name in group["names"]}
    parts: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        pieces = name.split(".")
        part = ".".join(pieces[:2]) if pieces[0] == "blocks" else pieces[0]
        parts.setdefault(part, {})[name] = parameter
    lines = []
    for part, parameters in parts.items():
        trained = {n: p.numel() for n, p in parameters.items() if p.requires_grad}
        decayed = {
            n: size for n, size in trained.items() if group_of.get(n, {}).get("weight_decay")
        }
        lines.append(
            LedgerLine(
                part,
                sum(p.numel() for p in parameters.values()),
                sum(trained.values()),
                max((group_of[n]["lr"] for n in trained if n in group_of), default=0.0),
                config.weight_decay if config and decayed else 0.0,
                sum(decayed.values()),
            )
        )
    return lines


def format_ledger(lines: list[LedgerLine]) -> str:
    """The ledger as a table; neighbours of one size and state share a line."""
    rows: list[list[LedgerLine]] = []
    for line in lines:
        same = rows and replace(rows[-1][0], part="") == replace(line, part="")
        if same and line.part.startswith("blocks.") and rows[-1][0].part.startswith("blocks."):
            rows[-1].append(line)
        else:
            rows.append([line])
    table = []
    for row in rows:
        line, part = row[0], row[0].part
        if len(row) > 1:
            part = f"{part} to {row[-1].part.split('.')[1]}"
        how = f"  {line.state}"
        if line.lr:
            how = f"  {line.state:<7}  rate {line.lr:.1e}"
        if line.decayed:
            how += f"  decay {line.weight_decay} of {len(row) * line.decayed:,}"
        table.append(f"  {part:<16} {len(row) * line.numbers:>13,}{how}")
    total, trainable = sum(x.numbers for x in lines), sum(x.trainable for x in lines)
    table.append(
        f"  {'all':<16} {total:>13,}  {trainable:,} train ({100 * trainable / total:.2f} %)"
    )
    return "\n".join(table)
