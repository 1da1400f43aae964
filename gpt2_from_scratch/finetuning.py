"""What trains: nothing is frozen unless it is frozen here, and the ledger shows what is."""

from dataclasses import dataclass

from torch import nn

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.last_block import is_plain
from gpt2_from_scratch.model import GPT2


def set_trainable(model: GPT2, n_last_blocks: int = 1, final_norm: bool = True) -> None:
    """Freeze everything, then let the head, the last blocks and the final norm train.

    `n_last_blocks` goes from 0 (head and norm alone) to n_layer (all but the embeddings). Raises
    UsageError for another number, and for a head still tied to `wte`, where training one would
    train the other.
    """
    if model.head.weight is model.wte.weight:
        raise UsageError("the head is still GPT-2's own, tied to wte: call replace_head first")
    if not 0 <= n_last_blocks <= model.config.n_layer:
        raise UsageError(
            f"n_last_blocks = {n_last_blocks}: this model has {model.config.n_layer} blocks"
        )
    # the method, not the attribute: a misspelt `require_grad = False` would silently freeze nothing
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    model.ln_f.requires_grad_(final_norm)
    for block in model.blocks[model.config.n_layer - n_last_blocks :]:
        block.requires_grad_(True)


def frozen_depth(model: GPT2) -> tuple[int, str]:
    """How many of the first blocks give one output for a text, for ever; and why not more.

    The reason is empty where the next block trains, or there is none.
    """
    if model.wte.weight.requires_grad or model.wpe.weight.requires_grad:
        return 0, "the embeddings train"
    depth, reason = plain_depth(model)
    for n, block in enumerate(model.blocks[:depth]):
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


@dataclass(frozen=True)
class LedgerLine:
    """One part of the model: how many numbers it has, and how many of them train."""

    part: str
    numbers: int
    trainable: int

    @property
    def state(self) -> str:
        """`trains`, `frozen`, or `in part`."""
        return {0: "frozen", self.numbers: "trains"}.get(self.trainable, "in part")


def ledger(model: GPT2) -> list[LedgerLine]:
    """Every parameter exactly once, by part: embeddings, each block, final norm, head."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        pieces = name.split(".")
        part = ".".join(pieces[:2]) if pieces[0] == "blocks" else pieces[0]
        parts.setdefault(part, []).append(parameter)
    return [
        LedgerLine(
            part,
            sum(p.numel() for p in parameters),
            sum(p.numel() for p in parameters if p.requires_grad),
        )
        for part, parameters in parts.items()
    ]


def format_ledger(lines: list[LedgerLine]) -> str:
    """The ledger as a table; neighbours of one size and state share a line."""
    rows: list[tuple[str, int, str, int]] = []
    for line in lines:
        if rows and line.part.startswith("blocks.") and rows[-1][0].startswith("blocks."):
            first, numbers, before, count = rows[-1]
            if (numbers // count, before) == (line.numbers, line.state):
                rows[-1] = (first, numbers + line.numbers, before, count + 1)
                continue
        rows.append((line.part, line.numbers, line.state, 1))
    table = []
    for part, numbers, state, count in rows:
        if count > 1:
            part = f"{part} to {int(part.split('.')[1]) + count - 1}"
        table.append(f"  {part:<16} {numbers:>13,}  {state}")
    total, trainable = sum(x.numbers for x in lines), sum(x.trainable for x in lines)
    table.append(
        f"  {'all':<16} {total:>13,}  {trainable:,} train ({100 * trainable / total:.2f} %)"
    )
    return "\n".join(table)
