"""A picture of the network: every part with its shapes and counts, and one block opened up.

Returns a matplotlib Figure, as the functions of `plots.py` do. B texts, T tokens of the longest,
C = n_embd, H = n_head heads, D = C / H, V = n_vocab, K = num_classes.
"""

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from gpt2_from_scratch.config import GPT2Config
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.plots import (
    DARK,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    without_formulas,
)

# where the opened block stands, in inches
LEFT, RIGHT, LOWER, UPPER, STREAM = 3.7, 9.4, 0.3, 8.1, 4.35
ARROW = {"arrowstyle": "-|>", "color": DARK, "shrinkA": 0, "shrinkB": 0}


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
    axes.set_title(f"{kind}: {total:,} numbers")
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
    axes.text(
        RIGHT - 0.15,
        UPPER - 0.25,
        f"one block: {numbers['block']:,} numbers",
        ha="right",
        va="center",
        weight="bold",
    )
    state = f"(B, T, C = {C:,})"
    _up(axes, STREAM, LOWER - 0.2, UPPER + 0.2, width=3)
    axes.text(
        STREAM - 0.14,
        4.1,
        f"residual stream {state}",
        rotation=90,
        ha="right",
        va="center",
        fontsize=9,
    )
    attention = [
        (f"ln_1   {numbers['ln_1']:,}", YELLOW, state),
        (f"c_attn   {numbers['attn.c_attn']:,}", ORANGE, f"q, k, v: (B, T, 3C = {3 * C:,})"),
        (
            f"{H} heads: softmax(q kᵀ / √D) v",
            ORANGE,
            f"(B, H = {H}, T, D = {C // H:,})",
        ),
        (f"c_proj   {numbers['attn.c_proj']:,}", ORANGE, state),
    ]
    mlp = [
        (f"ln_2   {numbers['ln_2']:,}", YELLOW, state),
        (f"c_fc   {numbers['mlp.c_fc']:,}", PURPLE, f"(B, T, 4C = {4 * C:,})"),
        ("GELU", PURPLE, f"(B, T, 4C = {4 * C:,})"),
        (f"c_proj   {numbers['mlp.c_proj']:,}", PURPLE, state),
    ]
    _draw_branch(axes, 0.55, attention, "attn: looks back, never ahead", ORANGE)
    _draw_branch(axes, 4.25, mlp, "mlp: each position alone", PURPLE)


def _draw_branch(
    axes: Axes, y: float, parts: list[tuple[str, str, str]], name: str, colour: str
) -> None:
    """From the stream through a norm and the parts of attn or mlp, each (text, colour, what comes
    out), and back to be added.
    """
    x = 6.75
    middles = [y + 0.5 + 0.72 * n + (0.14 if n else 0) for n in range(len(parts))]
    end = middles[-1] + 0.5
    _box(axes, (x + 0.37, (middles[1] + middles[-1]) / 2), (3.8, 2.02), "", colour, 0.15)
    axes.text(x + 2.05, middles[2], name, rotation=90, ha="center", va="center", fontsize=9)
    axes.plot([STREAM, x], [y, y], color=DARK)
    _up(axes, x, y, middles[0] - 0.22)
    for n, (text, tint, shape) in enumerate(parts):
        _box(axes, (x, middles[n]), (2.9, 0.44), text, tint)
        if n < len(parts) - 1:
            _up(axes, x, middles[n] + 0.22, middles[n + 1] - 0.22, shape)
    axes.plot([x, x], [middles[-1] + 0.22, end], color=DARK)
    axes.annotate("", (STREAM + 0.13, end), (x, end), arrowprops=ARROW)
    axes.text(x - 1.2, end + 0.1, parts[-1][2], ha="center", va="bottom", fontsize=8, color=DARK)
    circle = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": DARK}
    axes.text(STREAM, end, "+", ha="center", va="center", fontsize=12, weight="bold", bbox=circle)


def _box(
    axes: Axes,
    middle: tuple[float, float],
    size: tuple[float, float],
    text: str,
    colour: str,
    tint: float = 0.4,
) -> None:
    """A rounded box with text in it, filled with a tint that lets nothing through."""
    fill = tuple(1 - tint * (1 - part) for part in to_rgb(colour))
    (x, y), (width, height) = middle, size
    corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.06"
    box = FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=fill, edgecolor=colour)
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def _up(axes: Axes, x: float, low: float, high: float, text: str = "", width: float = 1.5) -> None:
    """An arrow upwards, what goes along it written to its right."""
    axes.annotate("", (x, high), (x, low), arrowprops=ARROW | {"linewidth": width})
    if text:
        axes.text(x + 0.1, (low + high) / 2, text, ha="left", va="center", fontsize=8, color=DARK)
