"""Pictures of what the model is and does: its parts, what trains, where it looks, what it reads.

Each function returns a matplotlib Figure, as those of `plots.py` do. B texts, T tokens of the
longest, C = n_embd, H = n_head heads, D = C / H, V = n_vocab, K = num_classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from gpt2_from_scratch.config import GPT2Config
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.finetuning import LedgerLine
from gpt2_from_scratch.plots import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SHARES,
    SKY,
    SMALL,
    VERMILION,
    YELLOW,
    shown,
    without_formulas,
)

GREY, DARK = "#D0D0D0", "#404040"
STATES = {"trains": VERMILION, "in part": PURPLE, "frozen": SKY}
REAL, PAD = BLUE, ORANGE
LONGEST = 14  # characters of a token that are shown
# where the opened block stands in the drawing of the network, in inches
LEFT, RIGHT, LOWER, UPPER, STREAM = 3.7, 9.4, 0.3, 8.1, 4.35
ARROW = {"arrowstyle": "-|>", "color": DARK, "shrinkA": 0, "shrinkB": 0}


# --- the network ---


def draw_architecture(config: GPT2Config, num_classes: int | None = None) -> Figure:
    """The network from the bottom up, with shapes and counts of numbers; one block opened beside it.

    With `num_classes` it ends in a classifier's head, without in GPT-2's own, tied to `wte`. Raises
    UsageError for fewer than two classes.
    """
    if num_classes is not None and num_classes < 2:
        raise UsageError(f"num_classes = {num_classes}: a choice needs at least 2")
    numbers = part_numbers(config, num_classes)
    total = sum(numbers[name] for name in ("wte", "wpe", "ln_f", "head"))
    total += config.n_layer * numbers["block"]
    figure = Figure(figsize=(9.5, 8.8), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 9.5), ylim=(0, 8.4))
    axes.set_axis_off()
    kind = "GPT-2" if num_classes is None else f"GPT-2 as a classifier of {num_classes} classes"
    axes.set_title(f"{kind}: {total:,} numbers to learn")
    _draw_network(axes, config, num_classes, numbers)
    _draw_block(axes, config, numbers)
    return without_formulas(figure)


def part_numbers(config: GPT2Config, num_classes: int | None = None) -> dict[str, int]:
    """How many numbers each part has: weights and biases; of a block, of each part in it.

    GPT-2's own head has none, for it is `wte` again.
    """
    C, wide = config.n_embd, 4 * config.n_embd
    block = {
        "ln_1": 2 * C,
        "attn.c_attn": C * 3 * C + 3 * C,
        "attn.c_proj": C * C + C,
        "ln_2": 2 * C,
        "mlp.c_fc": C * wide + wide,
        "mlp.c_proj": wide * C + C,
    }
    return {
        "wte": config.n_vocab * C,
        "wpe": config.n_ctx * C,
        "block": sum(block.values()),
        **block,
        "ln_f": 2 * C,
        "head": 0 if num_classes is None else C * num_classes + num_classes,
    }


def _draw_network(
    axes: Axes, config: GPT2Config, num_classes: int | None, numbers: dict[str, int]
) -> None:
    """On the left: ids, embeddings, blocks, final norm, head."""
    x, y = 1.65, 2.55
    state = f"(B, T, C = {config.n_embd:,})"
    axes.text(x, 0.2, "token ids", ha="center", va="center", weight="bold")
    _up(axes, x, 0.4, 1.05, "(B, T)")
    for side, name, what in ((-0.7, "wte", "token"), (0.7, "wpe", "position")):
        _box(axes, (x + side, 1.45), (1.22, 0.8), f"{name} ({what})\n{numbers[name]:,}", GREEN)
    axes.text(x, 1.45, "+", ha="center", va="center", fontsize=14, weight="bold")
    _up(axes, x, 1.85, y, state)
    y = _draw_blocks(axes, x, y, config.n_layer, numbers["block"])
    _up(axes, x, y, y + 0.6, state)
    _box(axes, (x, y + 0.85), (2.6, 0.5), f"ln_f   {numbers['ln_f']:,}", YELLOW)
    _up(axes, x, y + 1.1, y + 1.7, state)
    count = "wte again" if num_classes is None else f"{numbers['head']:,}"
    _box(axes, (x, y + 1.95), (2.6, 0.5), f"head   {count}", VERMILION)
    out = f"V = {config.n_vocab:,}" if num_classes is None else f"K = {num_classes}"
    _up(axes, x, y + 2.2, y + 2.8, f"(B, T, {out})")
    axes.text(x, y + 3.0, "logits", ha="center", va="center", weight="bold")


def _draw_blocks(axes: Axes, x: float, y: float, n_layer: int, numbers: int) -> float:
    """Up to three blocks, or the first and the last with dots between; returns where they end.

    Dashed lines lead from the last one to where a block is drawn opened up.
    """
    names = [f"blocks.{n}" for n in range(n_layer)]
    if n_layer > 3:
        names[1:-1] = [f"⋮   {n_layer} blocks in all"]
    for name in names:
        if name.startswith("⋮"):
            axes.text(x - 0.03, y + 0.12, name, ha="left", va="center", fontsize=9)
            y += 0.27
        else:
            _box(axes, (x, y + 0.3), (2.6, 0.6), f"{name}\n{numbers:,}", SKY)
            y += 0.6
        if name != names[-1]:
            _up(axes, x, y, y + 0.3)
            y += 0.3
    for low, high in ((y - 0.6, LOWER), (y, UPPER)):
        axes.plot([x + 1.3, LEFT], [low, high], color=SKY, linestyle="--", linewidth=1)
    return y


def _draw_block(axes: Axes, config: GPT2Config, numbers: dict[str, int]) -> None:
    """On the right: one block opened up, the residual stream and its two branches."""
    C, H = config.n_embd, config.n_head
    _box(
        axes, ((LEFT + RIGHT) / 2, (LOWER + UPPER) / 2), (RIGHT - LEFT, UPPER - LOWER), "", SKY, 0.1
    )
    axes.text(RIGHT - 0.15, UPPER - 0.25, f"one block: {numbers['block']:,}", ha="right", va="center", weight="bold")  # fmt: skip
    state = f"(B, T, C = {C:,})"
    _up(axes, STREAM, LOWER - 0.2, UPPER + 0.2, width=3)
    axes.text(STREAM - 0.14, 4.1, f"residual stream {state}", rotation=90, ha="right", va="center", fontsize=9)  # fmt: skip
    attention = [
        (f"ln_1   {numbers['ln_1']:,}", YELLOW, state),
        (f"c_attn   {numbers['attn.c_attn']:,}", ORANGE, f"q, k, v: (B, T, 3C = {3 * C:,})"),
        (f"{H} heads: softmax(q kᵀ / √D) v", ORANGE, f"{H} × (B, T, D = {C // H:,}), side by side"),
        (f"c_proj   {numbers['attn.c_proj']:,}", ORANGE, state),
    ]
    mlp = [
        (f"ln_2   {numbers['ln_2']:,}", YELLOW, state),
        (f"c_fc   {numbers['mlp.c_fc']:,}", PURPLE, f"(B, T, 4C = {4 * C:,})"),
        ("GELU", PURPLE, f"(B, T, 4C = {4 * C:,})"),
        (f"c_proj   {numbers['mlp.c_proj']:,}", PURPLE, state),
    ]
    _draw_branch(axes, 0.65, attention, "attn: looks at earlier positions", ORANGE)
    _draw_branch(axes, 4.3, mlp, "mlp: each position alone", PURPLE)


def _draw_branch(
    axes: Axes, y: float, parts: list[tuple[str, str, str]], name: str, colour: str
) -> None:
    """From the stream through a norm and the parts of attn or mlp, each (text, colour, what comes
    out), and back to be added.
    """
    x, first = 6.75, y + 0.5
    _box(axes, (x + 0.12, first + 0.72 * 2), (3.5, 0.72 * 3 - 0.12), "", colour, 0.12)
    axes.text(x + 1.72, first + 0.72 * 2, name, rotation=90, ha="center", va="center", fontsize=9)
    axes.plot([STREAM, x], [y, y], color=DARK)
    _up(axes, x, y, first - 0.22)
    for n, (text, tint, shape) in enumerate(parts):
        middle = first + 0.72 * n
        _box(axes, (x, middle), (2.9, 0.44), text, tint)
        if n < len(parts) - 1:
            _up(axes, x, middle + 0.22, middle + 0.5, shape)
    end = first + 0.72 * len(parts) - 0.22
    axes.plot([x, x], [end - 0.28, end], color=DARK)
    axes.annotate("", (STREAM + 0.13, end), (x, end), arrowprops=ARROW)
    axes.text(x - 1.2, end + 0.1, parts[-1][2], ha="center", va="bottom", fontsize=8, color=DARK)
    axes.text(STREAM, end, "+", ha="center", va="center", fontsize=12, weight="bold", bbox={"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": DARK})  # fmt: skip


def _box(
    axes: Axes,
    middle: tuple[float, float],
    size: tuple[float, float],
    text: str,
    colour: str,
    tint: float = 0.35,
) -> None:
    """A rounded box with text in it."""
    (x, y), (width, height) = middle, size
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height,
            boxstyle="round,pad=0,rounding_size=0.06", facecolor=(colour, tint), edgecolor=colour,
        )
    )  # fmt: skip
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def _up(axes: Axes, x: float, low: float, high: float, text: str = "", width: float = 1.5) -> None:
    """An arrow upwards, what goes along it written to its right."""
    axes.annotate("", (x, high), (x, low), arrowprops=ARROW | {"linewidth": width})
    if text:
        axes.text(x + 0.1, (low + high) / 2, text, ha="left", va="center", fontsize=8, color=DARK)


# --- what trains ---


def draw_ledger(lines: list[LedgerLine]) -> Figure:
    """The ledger as a stack of boxes, the embeddings at the bottom, coloured by what trains.

    Boxes are of one height; how many numbers a part has is told in figures and by a bar. Raises
    UsageError for a ledger without lines.
    """
    if not lines:
        raise UsageError("there is nothing to draw: the ledger has no lines")
    height = min(0.32, max(0.15, 7.0 / len(lines)))
    size = 9 if height > 0.2 else SMALL
    figure = Figure(figsize=(8.5, 1.3 + height * len(lines)), layout="constrained")
    stack, bars = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2.4))
    most = max(line.numbers for line in lines)
    for y, line in enumerate(lines):
        colour = STATES[_state(line)]
        stack.barh(y, 1, height=0.86, color=(colour, 0.45), edgecolor=colour)
        stack.text(0.5, y, shown(line.part, 24), ha="center", va="center", fontsize=size)
        bars.barh(y, line.trainable / 1e6, height=0.6, color=STATES["trains"])
        bars.barh(y, (line.numbers - line.trainable) / 1e6, left=line.trainable / 1e6, height=0.6, color=STATES["frozen"])  # fmt: skip
        bars.annotate(f"{line.numbers:,}", (line.numbers / 1e6, y), (4, 0), textcoords="offset points", va="center", fontsize=size)  # fmt: skip
    stack.set(xlim=(0, 1), ylim=(-0.6, len(lines) - 0.4), title="Parts, from the bottom up")
    stack.set_axis_off()
    bars.set(title="How many numbers each has", xlabel="numbers (millions)", xlim=(0, 1.25 * most / 1e6))  # fmt: skip
    bars.tick_params(left=False, labelleft=False)
    bars.spines[["top", "right"]].set_visible(False)
    total, trainable = sum(x.numbers for x in lines), sum(x.trainable for x in lines)
    figure.suptitle(f"{trainable:,} of {total:,} numbers train ({100 * trainable / total:.2f} %)")
    found = {_state(line) for line in lines}
    handles = [
        Patch(facecolor=(colour, 0.45), edgecolor=colour, label=state)
        for state, colour in STATES.items()
        if state in found
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return without_formulas(figure)


def _state(line: LedgerLine) -> str:
    return {0: "frozen", line.numbers: "trains"}.get(line.trainable, "in part")


# --- where a block looks ---


def draw_attention(weights: Any, tokens: list[str]) -> Figure:
    """Where each head of a block looks: weights (H, T, T), a tensor or an array, one panel a head.

    A row is the token that looks (query), a column the one that is looked at (key); a row's weights
    add up to 1. What lies behind the query is grey when no weight is there. Raises DataError for
    another shape than `tokens` asks for, and for weights outside 0 to 1.
    """
    weights = _to_array(weights)
    T = len(tokens)
    if weights.ndim != 3 or weights.shape[1:] != (T, T) or not weights.size:
        raise DataError(f"{T} tokens want weights (heads, {T}, {T}), found {weights.shape}")
    if not ((weights >= 0) & (weights <= 1.001)).all():
        raise DataError("attention weights must be from 0 to 1: they come out of a softmax")
    behind = np.triu(np.ones((T, T), dtype=bool), 1)
    masked = behind if not weights[:, behind].any() else np.zeros_like(behind)
    H = len(weights)
    columns = min(H, 2 if H <= 4 else 3 if H <= 9 else 4)
    figure = Figure(figsize=(9.5, 1.2 + 9.0 / columns * math.ceil(H / columns)), layout="constrained")  # fmt: skip
    panels = figure.subplots(math.ceil(H / columns), columns, sharex=True, sharey=True, squeeze=False)  # fmt: skip
    for head, axes in enumerate(panels.flat):
        if head >= H:
            axes.set_axis_off()
            continue
        axes.set_facecolor(GREY)
        image = axes.imshow(np.ma.array(weights[head], mask=masked), cmap=SHARES, norm=PowerNorm(0.5, 0, 1))  # fmt: skip
        axes.set_title(f"Head {head}", fontsize=9)
    _label_tokens(panels, tokens, 7.2 * 72 / columns / T)
    figure.suptitle("Where each head looks" + (" (grey: masked, it comes later)" if masked.any() else ""))  # fmt: skip
    figure.supxlabel("key: the token looked at", fontsize=10)
    figure.supylabel("query: the token that looks", fontsize=10)
    figure.colorbar(image, ax=panels, label="attention weight (a row adds up to 1)", shrink=0.7, ticks=[0, 0.05, 0.2, 0.5, 1])  # fmt: skip
    return without_formulas(figure)


def _to_array(weights: Any) -> np.ndarray:
    if hasattr(weights, "detach"):  # a tensor, on whatever device, in whatever precision
        weights = weights.detach().cpu().float()
    return np.asarray(weights, dtype=float)


def _label_tokens(panels: np.ndarray, tokens: list[str], points: float) -> None:
    """Tokens along the left and the bottom of a grid, every n-th where a cell has few points."""
    step = math.ceil((SMALL + 0.5) / points)
    size = min(9.0, max(SMALL, points - 1))
    labels = [shown(token, LONGEST) for token in tokens][::step]
    for axes in panels.flat:
        axes.set_xticks(range(0, len(tokens), step), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(0, len(tokens), step), labels, fontsize=size)


# --- what padding costs ---


def draw_batches(lengths: Sequence[int], batch_size: int) -> Figure:
    """The same texts as three ways of batching lay them out, with the share of pads in each.

    Padded to the longest of all; padded to the longest of each batch of `batch_size`; packed end to
    end without padding, as `trunk.py` computes them. Cells are tokens, and as large in each panel.
    Raises DataError for no texts and for one without tokens, UsageError for batches of none.
    """
    if not lengths or min(lengths) < 1:
        raise DataError("there is nothing to draw: every text needs a token, and there must be one")
    if batch_size < 1:
        raise UsageError(f"batch_size = {batch_size} must be at least 1")
    longest, N = max(lengths), len(lengths)
    widths = [max(lengths[n - n % batch_size :][:batch_size]) for n in range(N)]
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, to, name in zip(panels, ([longest] * N, widths), ("Padded to the longest of all", "Padded to the longest of its batch"), strict=False):  # fmt: skip
        _draw_padded(axes, lengths, to, name)
    _draw_packed(panels[2], lengths, longest)
    for first in range(batch_size, N, batch_size):
        panels[1].axhline(first - 0.5, color=DARK, linewidth=0.6)
    panels[0].set(xlim=(0, longest), ylim=(N - 0.5, -0.5), ylabel="texts (rows)")
    figure.supxlabel("tokens in a row", fontsize=10)
    handles = [Patch(color=REAL, label="real token"), Patch(color=PAD, label="pad")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.suptitle(f"{N:,} texts of {min(lengths):,} to {longest:,} tokens, in batches of {batch_size:,}")  # fmt: skip
    return without_formulas(figure)


def _draw_padded(axes: Axes, lengths: Sequence[int], widths: list[int], name: str) -> None:
    rows = range(len(lengths))
    pads = [width - length for length, width in zip(lengths, widths, strict=True)]
    axes.barh(rows, lengths, height=1.0, color=REAL)
    axes.barh(rows, pads, left=lengths, height=1.0, color=PAD)
    _say_pads(axes, name, sum(pads), sum(widths))


def _draw_packed(axes: Axes, lengths: Sequence[int], width: int) -> None:
    """Texts end to end, a new row where the panel ends; a white line between two of them."""
    at = 0
    for length in lengths:
        while length:
            row, column = divmod(at, width)
            part = min(length, width - column)
            axes.barh(row, part, left=column, height=1.0, color=REAL)
            at, length = at + part, length - part
        row, column = divmod(at, width)
        axes.plot([column, column], [row - 0.5, row + 0.5], color="white", linewidth=1)
    _say_pads(axes, "Packed, no padding", 0, sum(lengths))


def _say_pads(axes: Axes, name: str, pads: int, cells: int) -> None:
    axes.set_title(f"{name}\n{pads:,} of {cells:,} cells are pads: {100 * pads / cells:.0f} %", fontsize=9)  # fmt: skip


# --- an answer that grows ---


def draw_label_by_token(tokens: list[str], probabilities: Sequence[float], label: str) -> Figure:
    """P(label) after each token of a message; raises DataError unless there is one for each."""
    if not tokens or len(tokens) != len(probabilities):
        raise DataError(f"{len(tokens)} tokens and {len(probabilities)} probabilities: there must be one each")  # fmt: skip
    if not all(0 <= p <= 1 for p in probabilities):
        raise DataError("probabilities must be from 0 to 1")
    T, name = len(tokens), shown(label, 24, visible=False)
    percents = [100 * p for p in probabilities]
    figure = Figure(figsize=(min(9.5, max(7.0, 2 + 0.22 * T)), 4), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(50, 104, color=(VERMILION, 0.08))
    axes.axhline(50, color=DARK, linestyle="--", linewidth=1)
    axes.plot(range(T), percents, color=BLUE, marker="o", markersize=4)
    step = math.ceil(T * (SMALL + 1) / (72 * 8.5))
    axes.set_xticks(range(0, T, step), [shown(token, LONGEST) for token in tokens][::step], rotation=90, fontsize=8 if T <= 45 else SMALL)  # fmt: skip
    axes.set(
        title=f"P({name}) after each token of the message: {percents[-1]:.1f} % at the end",
        xlabel="the message so far, token by token (· is a space)",
        ylabel=f"P({name}) (%)",
        ylim=(-4, 104),
        xlim=(-0.6, T - 0.4),
    )
    axes.grid(axis="y", alpha=0.3)
    return without_formulas(figure)
