"""The heads: their layers, and the states of GPT-2 that they read.

A head can read the residual stream at n_layer + 1 points: after the embeddings (layer 0) and after
each block. A single head replaces GPT-2's own `model.head`; several heads are stored there by name.
B texts, T tokens in the longest, C = n_embd, K outputs of a head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gpt2_from_scratch.classifier.settings import (
    CLASS_TASKS,
    OF_PADS,
    POOLINGS,
    READ_ALL,
    READ_LAST,
    HeadConfig,
    Pooling,
    in_given_order,
)
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.data.messages import refuse_alike
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.changes import alteration
from gpt2_from_scratch.gpt2.lora import LoRALinear
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.speed.partial_blocks import (
    block_at,
    block_on,
    odd_settings,
    real_positions,
    serves_parts,
)

LOGITS = 2**24  # most logits of next tokens that are computed together: 64 MB
ACTIVATION = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


# --- the layers of a head ---


def replace_head(model: GPT2, num_classes: int) -> None:
    """Replace the output head, in place, by a linear layer with bias, (C) -> (K).

    Its weights are drawn with torch's global random generator, as `nn.Linear` does. `wte` stays:
    the old head was tied to it, the new one is not. Raises UsageError for fewer than two classes.
    """
    if num_classes < 2:
        raise UsageError(f"num_classes = {num_classes} must be at least 2")
    model.head = nn.Linear(model.config.n_embd, num_classes, device=model.wte.weight.device)


def replace_heads(model: GPT2, heads: Sequence[HeadConfig]) -> None:
    """Replace the output head, in place, by these heads; their weights are drawn in this order.

    A tied head for `language` is GPT-2's own. It is kept, or restored if it was replaced.
    """
    put_heads(model, {head.name: head_layers(head, model) for head in heads})


def put_heads(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Store heads in `model.head`: a single one directly, several by their names.

    Raises UsageError for a name that torch's modules use themselves, such as `type`.
    """
    if taken := [name for name in layers if hasattr(nn.ModuleDict(), name)]:
        raise UsageError(f"head name {taken[0]!r} is reserved by torch; choose another --name")
    model.head = next(iter(layers.values())) if len(layers) == 1 else nn.ModuleDict(layers)


def head_layers(head: HeadConfig, model: GPT2) -> nn.Module:
    """Make the layers of one head, (..., C) -> (..., K), on the model's device.

    Each hidden width adds dropout, a linear layer and an activation. Dropout and the linear layer
    of the outputs come last. One hidden layer as wide as the model, with tanh, is RoBERTa's head
    (Liu et al. 2019; fairseq's RobertaClassificationHead). Some tasks determine their layers
    themselves.
    """
    if (determined := TASKS[head.task].layers(head, model)) is not None:
        return determined
    device, width = model.wte.weight.device, model.config.n_embd
    layers: dict[str, nn.Module] = {}
    for n, hidden in enumerate((*head.hidden, head.n_outputs)):
        last = n == len(head.hidden)
        if head.dropout:
            layers[f"dropout_{n}"] = nn.Dropout(head.dropout)
        layers["out" if last else f"dense_{n}"] = nn.Linear(width, hidden, device=device)
        if head.activation != "none" and not last:
            layers[f"{head.activation}_{n}"] = ACTIVATION[head.activation]()
        width = hidden
    if len(layers) == 1:
        return layers["out"]
    named = nn.Sequential()
    for name, layer in layers.items():
        named.add_module(name, layer)
    return named


def layers_by_name(model: GPT2, heads: Sequence[HeadConfig]) -> dict[str, nn.Module]:
    """Return the layers of each head of a model, by the heads' names.

    Raises UsageError if the model has other heads.
    """
    several = isinstance(model.head, nn.ModuleDict)
    found = dict(model.head.items()) if several else {heads[0].name: model.head}  # type: ignore[operator]
    if found.keys() != {head.name for head in heads}:
        raise UsageError(
            f"the model has {len(found)} heads, {', '.join(found)}, but its description names "
            f"{', '.join(head.name for head in heads)}"
        )
    return found


def relabelled(
    head: HeadConfig, layers: nn.Module, labels: Sequence[str], model: GPT2
) -> tuple[HeadConfig, nn.Module]:
    """Make a head with other labels from a head and its layers.

    A label that the head already has keeps its output and its threshold. If all labels are new and
    their number is unchanged, they are new names for the outputs, in their order. The outputs of
    other labels are drawn with torch's random generator. So is a single output for two classes,
    unless both labels are known. If the layers fit the new labels but not the old ones, they are
    kept.

    Raises UsageError for a set of labels and for a head without classes, with adapters, or with
    layers of another kind. Raises DataError for labels that differ only in case, spaces or Unicode
    form.

    Args:
        head: The head's settings.
        layers: The head's layers.
        labels: The new labels, in the order of the outputs.
        model: The model that the head belongs to.

    Returns:
        The settings and the layers of the new head.
    """
    labels = in_given_order(labels)
    if head.task not in CLASS_TASKS:
        raise UsageError(f"give labels for a head of {', '.join(CLASS_TASKS)}, not of {head.task}")
    if _has_adapters(layers):
        raise UsageError(f"head {head.name!r} has LoRA adapters: its labels cannot be changed")
    known = [head.labels.index(label) if label in head.labels else None for label in labels]
    if len(labels) == len(head.labels) and known == [None] * len(known):
        known = [*range(len(known))]
    numbers = [n for n in known if n is not None]
    kept = len(numbers) == len(known)  # no label is new
    new = replace(
        head,
        labels=tuple(labels),
        one_output=head.one_output and len(labels) == 2,
        class_weights=tuple(head.class_weights[n] for n in numbers)
        if kept and head.class_weights
        else (),
        temperature=head.temperature if kept else 1.0,
        thresholds=tuple(0.5 if n is None else head.thresholds[n] for n in known)
        if head.thresholds
        else (),
    )
    refuse_alike(new.labels)
    drawn, described = head_layers(new, model), head_layers(head, model)
    if _shapes(layers) == _shapes(described):
        if new.one_output and kept:  # one output for both labels: swapping them changes its sign
            _copy_known(layers, drawn, [0], sign=1 if numbers == [0, 1] else -1)
        else:
            _copy_known(layers, drawn, [] if head.one_output else known)
    elif _shapes(layers) == _shapes(drawn):
        drawn = layers
    else:
        raise UsageError(
            f"the layers of head {head.name!r} fit neither its labels nor the new ones"
        )
    return new, drawn


def _has_adapters(layers: nn.Module) -> bool:
    return any(isinstance(part, LoRALinear) for part in layers.modules())


def _shapes(layers: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in layers.named_parameters()}


@torch.no_grad()
def _copy_known(old: nn.Module, new: nn.Module, known: Sequence[int | None], sign: int = 1) -> None:
    """Copy the hidden layers, and some outputs of the last layer, from `old` to `new`.

    `known` has the number of the old output for each new output; None leaves the new one as it is.
    The copied outputs are multiplied by `sign`.
    """
    values = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        if name.rpartition(".")[0] not in ("", "out"):
            parameter.copy_(values[name])
            continue
        for number, old_number in enumerate(known):
            if old_number is not None:
                parameter[number] = sign * values[name][old_number]


# --- one forward pass for all heads ---


@dataclass
class Logits:
    """The logits of next tokens (B, T, V) of one head, which are computed when they are needed."""

    head: HeadConfig
    layers: nn.Module
    model: GPT2
    states: Tensor  # (B, T, C)
    with_gradient: bool = field(default_factory=torch.is_grad_enabled)

    def at(self, where: Any = ...) -> Tensor:
        """Compute the logits of some texts and positions; of all by default."""
        with torch.set_grad_enabled(self.with_gradient):
            return _checked_outputs(self.head, self.layers, self.states[where], self.model)

    @property
    def most_positions(self) -> int:
        """The number of positions with at most LOGITS logits; at least 1."""
        return max(1, LOGITS // self.model.config.n_vocab)


class Outputs(Mapping[str, Tensor]):
    """The outputs of heads by name: (B, K), or (B, T, K) for a head that answers for every token.

    The logits of a head for language, (B, T, V), are computed each time they are read, and are not
    kept. So the logits of several heads are in memory together only if the caller keeps them.
    """

    def __init__(self, found: Mapping[str, Tensor | Logits]):
        self._found = found

    def __getitem__(self, name: str) -> Tensor:
        found = self._found[name]
        return found.at() if isinstance(found, Logits) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def of_texts(self, rows: Any, longest: int | None = None) -> "Outputs":
        """Select the outputs of some texts, by a slice or by their rows in the batch.

        Outputs for every token are cut to the first `longest` tokens.
        """
        found: dict[str, Tensor | Logits] = {}
        for name, outputs in self._found.items():
            if isinstance(outputs, Logits):
                found[name] = replace(outputs, states=outputs.states[rows][:, :longest])
            else:
                chosen = outputs[rows]
                found[name] = chosen[:, :longest] if chosen.dim() == 3 else chosen
        return Outputs(found)

    def small_parts(self) -> Iterator[slice]:
        """Yield slices of the batch in which each head for language has at most LOGITS logits.

        A single text can have more.
        """
        logits = [found for found in self._found.values() if isinstance(found, Logits)]
        if not logits:
            yield slice(None)
            return
        B, T, _ = logits[0].states.shape
        size = max(1, logits[0].most_positions // T)
        yield from (slice(first, first + size) for first in range(0, B, size))

    def is_separate(self, name: str) -> bool:
        """Whether a head's loss has no gradient before the head's own layers.

        Then `backward` can be called on it alone, without the losses of other heads.
        """
        found = self._found[name]
        return isinstance(found, Logits) and not found.states.requires_grad

    def pieces(self, name: str, wanted: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Yield a head's outputs in pieces: (where, outputs).

        If the head `is_separate`, the pieces are the outputs (U, V) at the positions at which
        `wanted` (B, T) is true, with at most LOGITS logits each. Otherwise all outputs are one piece.
        `where` selects the same texts and positions from a tensor (B, T).
        """
        found = self._found[name]
        if not isinstance(found, Logits) or not self.is_separate(name):
            yield ..., self[name]
            return
        for rows in wanted.nonzero().split(found.most_positions):
            where = rows.unbind(1)
            yield where, found.at(where)


def layer_read(head: HeadConfig, model: GPT2) -> int:
    """Return the number of blocks before the point that this head reads: 0 to n_layer."""
    return len(model.blocks) if head.layer is None else head.layer


def blocks_read(heads: Sequence[HeadConfig], model: GPT2) -> int:
    """Return the number of blocks that the heads need; all blocks if there are no heads."""
    return max((layer_read(head, model) for head in heads), default=len(model.blocks))


def class_logits(model: GPT2, ids: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Compute the logits of each text: ids (B, T) padded on the right, lengths (B,) -> (B, K).

    Attention only looks back, so no real token sees the padding after it. The logits of a text
    therefore depend neither on its padding nor on the other texts in the batch. The exceptions are
    `last_position` and `mean_position`, which read padding.

    Args:
        model: A model whose head chooses among K classes.
        ids: Token ids (B, T), padded on the right.
        lengths: The number of real tokens of each text, (B,).
        pooling: Where a text is read.
    """
    # only the pooling of this head matters; its layers are those of model.head
    head = HeadConfig(task="features", pooling=pooling)
    return outputs_from(model, [head], 0, model.embed(ids), lengths)[head.name]


def outputs_from(
    model: GPT2, heads: Sequence[HeadConfig], depth: int, x: Tensor, lengths: Tensor
) -> Outputs:
    """Run the blocks after the first `depth`, and all heads, in one pass.

    Blocks after the last one that a head reads are not computed. If the heads read only one
    position per text, the last block computes only that position. Padding is computed only if a
    head reads it.

    Args:
        model: The model.
        heads: The heads to run.
        depth: The number of blocks that x has already passed through.
        x: States (B, T, C) of texts padded on the right; padding may contain any values.
        lengths: The number of real tokens of each text, (B,).

    Returns:
        {head's name: (B, K)}, or (B, T, K) for a head that answers for every token. Its values at
        padding positions are meaningless.
    """
    layers, at = layers_by_name(model, heads), {h.name: layer_read(h, model) for h in heads}
    top, outputs = max(at.values()), dict[str, Tensor | Logits]()
    reading = [head for head in heads if at[head.name] == top]
    one_position = (
        (reads_positions_alone(model.ln_f) or not any(head.final_norm for head in reading))
        and len({head.pooling for head in reading}) == 1
        and reading[0].pooling not in READ_ALL
        and all(head.reads_one_state for head in reading)
    )
    blocks = [*model.blocks]
    real = real_positions(lengths, x.shape[1])  # (B, T)
    skip_padding = not (real.all() or any(h.pooling in OF_PADS for h in heads))
    for n in range(depth, top + 1):
        for head in (head for head in heads if at[head.name] == n):
            states = _states_read(model, head, x, lengths)
            if TASKS[head.task].predicts_tokens and not _has_adapters(layers[head.name]):
                outputs[head.name] = Logits(head, layers[head.name], model, states)
            else:  # at once, because dropout depends on the mode and the order
                outputs[head.name] = _checked_outputs(head, layers[head.name], states, model)
        if n == top - 1 and one_position and serves_parts(blocks[n]):
            positions = read_positions(lengths, x.shape[1], reading[0].pooling)
            x = block_at(blocks[n], x, positions)  # (B, C)
        elif n < top and skip_padding and serves_parts(blocks[n]):
            x = block_on(blocks[n], x, real)
        elif n < top:
            x = blocks[n](x)
    return Outputs({head.name: outputs[head.name] for head in heads})


@torch.no_grad()
def outputs_by_token(
    model: GPT2, heads: Sequence[HeadConfig], tokens: Sequence[int], end: Sequence[int]
) -> dict[str, Tensor]:
    """Compute each head's outputs for every beginning of a text, in one pass.

    A head that reads an end token needs one after each beginning. These tokens follow the text in
    the same pass, each at the position after its beginning, and a mask hides from each what its
    beginning does not contain:

        tokens          t0 t1 t2 e0 e1 e2
        positions        0  1  2  1  2  3
        e1 attends to   t0 t1       e1

    So T beginnings cost as much as one text of 2 T tokens. They are exact up to rounding.

    Args:
        model: A model with the causal mask and unchanged blocks.
        heads: Heads that read the last token, or the end token.
        tokens: The ids of the T tokens of a text.
        end: The id of the end token, or nothing.

    Returns:
        {head's name: outputs (T, K) after each token}.
    """
    layers, T = layers_by_name(model, heads), len(tokens)
    blocks: list[Any] = [*model.blocks]
    device = model.wte.weight.device
    of = torch.arange(T, device=device).repeat(1 + len(end))  # the last token that each row reads
    rows = torch.arange(len(of), device=device)
    positions = of + (rows >= T)
    seen = (rows < T) & (rows <= of[:, None]) | (rows == rows[:, None])
    ids = torch.tensor([*tokens, *[*end] * T], device=device)
    x, outputs = (model.wte(ids) + model.wpe(positions))[None], dict[str, Tensor]()
    for n in range(blocks_read(heads, model) + 1):
        for head in (head for head in heads if layer_read(head, model) == n):
            states = _states_read(model, head, x[0, -T:], positions)
            outputs[head.name] = _checked_outputs(head, layers[head.name], states, model)
        if len(outputs) < len(heads):
            block = blocks[n]
            x = x + block.attn.c_proj(block.attn.attend(block.attn.c_attn(block.ln_1(x)), seen))
            x = x + block.mlp(block.ln_2(x))
    return {head.name: outputs[head.name] for head in heads}


def _checked_outputs(head: HeadConfig, layers: nn.Module, states: Tensor, model: GPT2) -> Tensor:
    """Run a head's layers: (..., C) -> (..., K). Raises UsageError if their outputs do not fit."""
    width = model.config.n_vocab if TASKS[head.task].predicts_tokens else head.n_outputs
    fits = not isinstance(layers, nn.Linear) or layers.in_features == states.shape[-1]
    outputs = layers(states) if fits else states
    expected = (*states.shape[:-1], width)
    if not fits or (width and tuple(getattr(outputs, "shape", ())) != expected):
        raise UsageError(
            f"head {head.name!r} must have {width} outputs, but the model's head is {layers!r:.80}. "
            "Use Classifier.relabel for other labels"
        )
    return outputs


def reads_positions_alone(norm: nn.Module) -> bool:
    """Whether a final norm is an unmodified LayerNorm, which normalises each state alone."""
    return type(norm) is nn.LayerNorm and not (alteration(norm) or odd_settings(norm))


def _states_read(model: GPT2, head: HeadConfig, x: Tensor, lengths: Tensor) -> Tensor:
    """The states that a head reads: x (B, T, C) -> (B, T, C), or (B, C) for one state per text.

    x is (B, C) if the last block computed only one position per text.
    """
    if not head.gradient:
        x = x.detach()
    # a tuned lens reads the residual stream, and contains the norm
    norm = model.ln_f if head.final_norm and head.form != "tuned lens" else nn.Identity()
    if head.reads_one_state and x.dim() == 3:
        if head.pooling in READ_ALL or not (
            type(norm) is nn.Identity or reads_positions_alone(norm)
        ):
            state = pool(norm(x), lengths, head.pooling)
        else:
            state = norm(pool(x, lengths, head.pooling))
    else:
        state = norm(x)
    return state if head.gradient else state.detach()


# --- where a text is read ---


def pool(states: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Reduce to one state per text: states (B, T, C), lengths (B,) -> (B, C).

    Texts are padded on the right. Real tokens are found by their count, not by the padding's id, so
    a text may contain any token. Lengths must be at least 1, because an empty text has no state to
    read.
    """
    if pooling == "mean":
        real = real_positions(lengths, states.shape[1])  # (B, T)
        return (states * real[:, :, None]).sum(dim=1) / lengths[:, None]
    if pooling == "mean_position":
        return states.mean(dim=1)
    rows = torch.arange(len(states), device=states.device)
    return states[rows, read_positions(lengths, states.shape[1], pooling)]


def read_positions(lengths: Tensor, T: int, pooling: Pooling) -> Tensor:
    """Return the one position at which each text is read: lengths (B,) -> (B,)."""
    if pooling in READ_LAST:
        return lengths - 1
    if pooling == "last_position":
        return torch.full_like(lengths, T - 1)
    if pooling == "first_token":
        return torch.zeros_like(lengths)
    raise UsageError(f"unknown pooling {pooling!r}; choose from: {', '.join(POOLINGS)}")


def pad_right(ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Move real tokens to the front: ids (B, T), real (B, T) bool -> ids (B, T), lengths (B,).

    This is for batches that were padded elsewhere, for example on the left. GPT-2 counts positions
    from the first column.
    """
    order = real.int().argsort(dim=1, descending=True, stable=True)  # real tokens first, in order
    return ids.gather(1, order), real.sum(dim=1)
