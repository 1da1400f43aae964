"""Drawings of the model: its parts, the ledger, attention, batches, answers by token and by layer.

Each function returns a matplotlib Figure, like those of `plots.py`. B texts, T tokens of the
longest, C = n_embd, H = n_head heads, D = C / H, V = n_vocab, K = num_classes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle

from gpt2_from_scratch.classifier.freezing import LedgerLine
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.explain.attribution import Contributions
from gpt2_from_scratch.explain.lenses import AnswerByLayer, NextTokens
from gpt2_from_scratch.gpt2.config import GPT2Config
from gpt2_from_scratch.reports.plots import (
    BLUE,
    DARK,
    GREEN,
    ORANGE,
    PALETTE,
    PROPORTIONS,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    YELLOW,
    shown,
    shown_token,
)

GREY = "#D0D0D0"
TRAINABLE, PARTLY, FROZEN = ORANGE, YELLOW, GREY
REAL, PAD = BLUE, ORANGE
LONGEST = 14  # most characters of a token that are shown
MOST_COLUMNS = 16  # most tokens of a text that a table of layers shows
TOWARDS = LinearSegmentedColormap.from_list("towards", [BLUE, "white", VERMILION])


# --- what is trained ---


def draw_ledgers(ledgers: Mapping[str, Sequence[LedgerLine]]) -> Figure:
    """Draw ledgers next to one another, to compare what is trained.

    Each is a stack of boxes with the embeddings at the bottom and the head on top. All boxes have
    the same height. An arrow shows how far down `backward()` has to go.

    Args:
        ledgers: {name of what is trained: the lines of its ledger}.

    Raises:
        UsageError: There is no ledger, or one without lines.
    """
    if not ledgers or not all(ledgers.values()):
        raise UsageError("there is nothing to draw: the ledger has no lines")
    most = max(map(len, ledgers.values()))
    height = min(0.32, max(0.15, 7.0 / most))  # of a box, in inches
    width = min(9.5, max(7.0, 1.9 * len(ledgers)))
    figure = Figure(figsize=(width, 1.5 + height * most), layout="constrained")
    columns = figure.subplots(1, len(ledgers), squeeze=False).flat
    for axes, (name, lines) in zip(columns, ledgers.items(), strict=True):
        _draw_stack(axes, lines, 8 if height > 0.2 else SMALL)
        axes.set_title(shown(name, 40), fontsize=9)
        total, trainable = sum(x.parameters for x in lines), sum(x.trainable for x in lines)
        below = f"{trainable:,} trainable\n({100 * trainable / total:.2f}%)"
        axes.text(0.5, -0.7, below, ha="center", va="top", fontsize=9)
    found = {_colour_of(line) for lines in ledgers.values() for line in lines}
    names = {TRAINABLE: "trainable", PARTLY: "partly trainable", FROZEN: "frozen"}
    handles: list[Any] = [Patch(color=c, label=name) for c, name in names.items() if c in found]
    if found != {FROZEN}:
        handles.append(Line2D([], [], color=TRAINABLE, label="backward() goes down to the arrow"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _draw_stack(axes: Axes, lines: Sequence[LedgerLine], points: float) -> None:
    """Draw the parts from the bottom up, and an arrow down to the lowest trainable one."""
    for y, line in enumerate(lines):
        axes.barh(y, 1, height=0.86, color=_colour_of(line))
        text = f"{shown(line.part, 24)}  {line.parameters:,}"
        axes.text(0.5, y, text, ha="center", va="center", fontsize=points)
    axes.set(xlim=(-0.02, 1.2), ylim=(-0.6, len(lines) - 0.4))
    axes.set_axis_off()
    lowest = next((y for y, line in enumerate(lines) if line.trainable), None)
    if lowest is not None:
        arrow = ARROW | {"color": TRAINABLE, "linewidth": 2}
        axes.annotate("", (1.1, lowest - 0.45), (1.1, len(lines) - 0.55), arrowprops=arrow)


def _colour_of(line: LedgerLine) -> str:
    if line.trainable == line.parameters:
        return TRAINABLE
    return PARTLY if line.trainable else FROZEN


# --- where each head looks ---


def draw_attention(
    weights: Any, tokens: list[str], *, title: str = "Where each head looks"
) -> Figure:
    """Draw the attention weights of a block's heads, one panel per head.

    A row is the token that looks (query), and a column the token it looks at (key). The weights of
    a row add up to 1. Positions after the query are grey if their weight is 0.

    Args:
        weights: (H, T, T), a tensor or an array.
        tokens: T tokens as text.
        title: The title of the figure.

    Raises:
        DataError: The shape of `weights` does not match `tokens`, or a weight is outside 0 to 1.
    """
    T = len(tokens)
    if hasattr(weights, "detach"):  # a tensor on any device and in any precision
        weights = weights.detach().cpu().float()
    weights = np.asarray(weights, dtype=float)
    if weights.ndim != 3 or weights.shape[1:] != (T, T) or not weights.size:
        raise DataError(f"{T} tokens need weights (heads, {T}, {T}), found {weights.shape}")
    if not ((weights >= 0) & (weights <= 1.001)).all():
        raise DataError("attention weights must be from 0 to 1, the range of a softmax")
    later = np.triu(np.ones((T, T), dtype=bool), 1)
    masked = later if not weights[:, later].any() else np.zeros_like(later)
    H = len(weights)
    columns = 2 if 2 <= H <= 4 else min(H, 3 if H <= 9 else 4)
    rows, side = math.ceil(H / columns), min(8.2 / columns, 5.7)  # the side of a panel in inches
    size = (1.3 + side * columns, 1.9 + (side + 0.15) * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    _label_cells(panels, tokens, 72 * (side - 0.05) / T)
    for head, axes in enumerate(panels.flat):
        if head >= H:
            axes.set_axis_off()
            continue
        axes.set_facecolor(GREY)
        cells = np.ma.array(weights[head], mask=masked)
        image = axes.imshow(cells, cmap=PROPORTIONS, norm=PowerNorm(0.5, 0, 1))
        axes.set_title(f"Head {head}", fontsize=9)
        axes.tick_params(labelbottom=head + columns >= H)  # only the lowest panel of each column
    figure.suptitle(title + (" (grey: masked, comes later)" if masked.any() else ""))
    figure.supylabel("query: the token that looks", fontsize=10)
    figure.supxlabel("key: the token it looks at", fontsize=10)
    bar = figure.colorbar(
        image,
        ax=panels,
        location="top",
        fraction=0.03,
        pad=0.01,
        aspect=50,
        ticks=[0, 0.05, 0.2, 0.5, 1],
    )
    bar.set_label("attention weight (a row adds up to 1)", fontsize=9)
    return figure


def _label_cells(panels: np.ndarray, tokens: list[str], points: float) -> None:
    """Label rows and columns with tokens, or with every n-th token if cells are small."""
    step = math.ceil(SMALL / points)
    size = min(9.0, max(SMALL, points - 1))
    labels = [shown_token(token, LONGEST) for token in tokens][::step]
    for axes in panels.flat:
        axes.set_xticks(range(0, len(tokens), step), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(0, len(tokens), step), labels, fontsize=size)


# --- the cost of padding ---


def draw_batches(lengths: Sequence[int], batch_size: int) -> Figure:
    """Draw three ways to arrange the same texts in batches, and the proportion of padding in each.

    Texts are padded to the longest of all, padded to the longest of each batch of `batch_size`, or
    packed end to end without padding, as in `FrozenTrunk`. Each cell is a token. Raises DataError
    if there are no texts or a text has no tokens, and UsageError for a batch size below 1.
    """
    lengths = [int(length) for length in lengths]  # accept arrays and tensors as well
    if not lengths or min(lengths) < 1:
        raise DataError("there is nothing to draw: give texts with at least one token each")
    if batch_size < 1:
        raise UsageError(f"batch_size = {batch_size} must be at least 1")
    longest, N = max(lengths), len(lengths)
    widths = [max(lengths[n - n % batch_size :][:batch_size]) for n in range(N)]
    column = np.arange(longest)
    real = column < np.array(lengths)[:, None]  # (N, T)
    filled = column < np.array(widths)[:, None]
    ends = np.cumsum(lengths)
    packed = (np.arange(-(-ends[-1] // longest) * longest) < ends[-1]).reshape(-1, longest)
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, name, cells in (
        (panels[0], "Padded to the longest text", np.where(real, 1, 2)),
        (panels[1], "Padded to the longest text in the batch", np.where(real, 1, 2 * filled)),
        (panels[2], "Packed, no padding", packed.astype(int)),
    ):
        axes.imshow(  # 0: empty, 1: a real token, 2: padding
            cells,
            ListedColormap(["white", REAL, PAD]),
            vmin=0,
            vmax=2,
            aspect="auto",
            interpolation="nearest",
            extent=(0, longest, len(cells) - 0.5, -0.5),
        )
        padding, total = int((cells == 2).sum()), int((cells > 0).sum())
        axes.set_title(
            f"{name}\n{padding:,} of {total:,} cells are padding: {100 * padding / total:.0f}%",
            fontsize=9,
        )
        axes.set_xlabel("tokens in a row")
    frames = [
        Rectangle((0, first - 0.5), widths[first], min(batch_size, N - first))
        for first in range(0, N, batch_size)
    ]
    panels[1].add_collection(PatchCollection(frames, facecolor="none", edgecolor=DARK, lw=0.7))
    rows, columns = np.divmod(ends[:-1], longest)
    # lines between texts
    panels[2].vlines(columns, rows - 0.5, rows + 0.5, color="white", linewidth=1)
    panels[0].set(xlim=(0, longest), ylim=(N - 0.5, -0.5), ylabel="rows")
    panels[0].yaxis.get_major_locator().set_params(integer=True)
    handles = [Patch(color=REAL, label="real token"), Patch(color=PAD, label="padding")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.suptitle(
        f"{N:,} texts of {min(lengths):,} to {longest:,} tokens, in batches of {batch_size:,}"
    )
    return figure


# --- from tokens to a label ---


def draw_outputs(outputs: Any, tokens: list[str], labels: Sequence[str]) -> Figure:
    """Draw how each token of a text gets its logits, and how the last row becomes a label.

    Args:
        outputs: The logits of one text, (T, K), a tensor or an array.
        tokens: T tokens as text.
        labels: The names of the K classes.

    Raises:
        DataError: The shape of `outputs` does not match `tokens` and `labels`.
    """
    if hasattr(outputs, "detach"):
        outputs = outputs.detach().cpu().float()
    rows = np.asarray(outputs, dtype=float)
    T, K = len(tokens), len(labels)
    if rows.shape != (T, K) or not rows.size:
        raise DataError(f"{T} tokens and {K} labels need outputs ({T}, {K}), found {rows.shape}")
    exponentials = np.exp(rows[-1] - rows[-1].max())
    percents = 100 * exponentials / exponentials.sum()
    top = 2.95 + 0.26 * K  # upper end of the logits, in inches
    end = 1.6 * T  # right end of the network
    figure = Figure(figsize=(end + 2.6, top + 0.75), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, end + 2.6), ylim=(0, top + 0.3))
    axes.set_axis_off()
    axes.set_title(f"One text, {T} tokens, {K} classes: outputs of shape (1, {T}, {K})")
    body = "GPT-2: embeddings, blocks, final norm"
    _box(axes, (end / 2, 1.15), (end - 0.2, 0.5), body, SKY)
    _box(axes, (end / 2, 2.15), (end - 0.2, 0.4), f"head: {K} outputs", VERMILION)
    for t, token in enumerate(tokens):
        x, last = 1.6 * t + 0.8, t == T - 1
        _box(axes, (x, 0.3), (1.4, 0.4), shown_token(token, LONGEST), GREEN)
        _up(axes, x, 0.5, 0.9)
        _up(axes, x, 1.4, 1.95, "state")
        _up(axes, x, 2.35, 2.75)
        lines = [f"{shown(n, LONGEST)} {v:.2f}" for n, v in zip(labels, rows[t], strict=True)]
        middle = (2.75 + top) / 2
        _box(axes, (x, middle), (1.5, top - 2.75), "\n".join(lines), DARK if last else GREY, 0.2)
    axes.annotate("", (end + 0.75, middle), (end - 0.1, middle), arrowprops=ARROW)
    axes.text(end + 0.32, middle + 0.1, "softmax", ha="center", va="bottom", fontsize=8)
    best = int(rows[-1].argmax())
    for k, name in enumerate(labels):
        y = middle + 0.26 * ((K - 1) / 2 - k)
        weight = "bold" if k == best else "normal"
        text = f"{shown(name, LONGEST)} {percents[k]:.0f}%"
        axes.text(end + 0.85, y, text, va="center", fontsize=9, weight=weight)
    axes.text(
        end + 0.85,
        middle - 0.85,
        f"argmax: {best}\nlabel: {shown(labels[best], LONGEST)}",
        va="center",
    )
    return figure


# --- answers that change token by token ---


def draw_label_by_token(
    tokens: list[str], probabilities: Sequence[float], label: str, *, pads: int = 0
) -> Figure:
    """Draw the probability of a label after each token of a message.

    Args:
        tokens: The tokens as text.
        probabilities: The probability of the label after each token.
        label: The label.
        pads: The number of tokens of padding at the end.

    Raises:
        DataError: There is not one probability per token, or no token before the padding.
    """
    if not tokens or len(tokens) != len(probabilities):
        raise DataError(
            f"{len(tokens)} tokens and {len(probabilities)} probabilities: give one per token"
        )
    if not all(0 <= p <= 1 for p in probabilities):
        raise DataError("probabilities must be from 0 to 1")
    if not 0 <= pads < len(tokens):
        raise DataError(f"{pads} tokens of padding among {len(tokens)} tokens leave no message")
    T, name = len(tokens), shown(label, 24)
    percents = [100 * float(p) for p in probabilities]
    figure = Figure(figsize=(min(9.5, max(7.0, 2 + 0.22 * T)), 4), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(50, 104, color=(VERMILION, 0.08))
    axes.text(
        1.01,
        0.75,
        "50%",
        transform=axes.transAxes,
        rotation=270,
        va="center",
        fontsize=8,
    )
    axes.axhline(50, color=DARK, linestyle="--", linewidth=1)
    axes.plot(range(T), percents, color=BLUE, marker="o", markersize=4)
    _label_positions(axes, tokens)
    title = f"P({name}) after each token of the message: {percents[-1 - pads]:.1f}% at the end"
    if pads:
        axes.axvspan(T - pads - 0.5, T - 0.5, color=(PAD, 0.25), lw=0)
        title += f", {percents[-1]:.1f}% after the padding"
    axes.set(
        title=title,
        xlabel="the message so far, token by token (· is a space)",
        ylabel=f"P({name}) (%)",
        ylim=(-4, 104),
        xlim=(-0.6, T - 0.4),
    )
    axes.grid(axis="y", alpha=0.3)
    return figure


def draw_heads_by_token(
    tokens: list[str],
    curves: dict[str, Sequence[float]],
    classes: dict[str, Sequence[str]] | None = None,
    *,
    n_prompt: int = 0,
) -> Figure:
    """Draw the answers of several heads after each of T tokens: curves, and strips of classes.

    Args:
        tokens: T tokens as text.
        curves: {name: T numbers}; each name has its own panel and scale.
        classes: {name: T labels}; each name has its own strip.
        n_prompt: The number of tokens of the prompt, which are shaded.

    Raises:
        DataError: A name does not have exactly one value per token, or there are no names.
    """
    T, classes = len(tokens), classes or {}
    for name, values in (*curves.items(), *classes.items()):
        if not 0 < len(values) == T:
            raise DataError(f"{name}: {len(values)} values for {T} tokens: give one per token")
    if not curves and not classes:
        raise DataError("there is nothing to draw: no head has an answer")
    heights = [2.0] * len(curves) + [0.5] * len(classes)
    figure = Figure(figsize=(9.5, 1.2 + 0.9 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)
    for axes, (name, values) in zip(panels.flat, curves.items(), strict=False):
        numbers = [float(value) for value in values]
        axes.plot(range(T), numbers, color=BLUE, marker="o", markersize=4)
        axes.set_title(shown(name, 60), fontsize=9, loc="left")
        axes.grid(axis="y", alpha=0.3)
    for axes, (name, labels) in zip(panels.flat[len(curves) :], classes.items(), strict=True):
        _draw_strip(axes, name, labels)
    for axes in panels.flat:
        axes.axvspan(-0.5, n_prompt - 0.5, color=(GREY, 0.5), lw=0, zorder=0)
    _label_positions(axes, tokens)
    axes.set(xlim=(-0.5, T - 0.5), xlabel="the text so far, token by token (grey: prompt)")
    return figure


def _label_positions(axes: Axes, tokens: list[str]) -> None:
    """Label positions along the bottom with tokens, or with every n-th token if there are many."""
    T = len(tokens)
    step = math.ceil(T * (SMALL + 1) / (72 * 8.5))
    labels = [shown_token(token, LONGEST) for token in tokens][::step]
    size = 8 if T <= 45 else SMALL
    axes.set_xticks(range(0, T, step), labels, rotation=90, fontsize=size)


def _draw_strip(axes: Axes, name: str, labels: Sequence[str]) -> None:
    """Draw a coloured cell per label; the most frequent label is nearly white."""
    names = list(dict.fromkeys(labels))
    common = max(names, key=list(labels).count)
    others = [label for label in names if label != common]
    colours = {common: "#F2F2F2"} | {n: PALETTE[k % len(PALETTE)] for k, n in enumerate(others)}
    for t, label in enumerate(labels):
        axes.axvspan(t - 0.42, t + 0.42, 0.1, 0.9, color=colours[label], zorder=2)
    axes.set_title(shown(name, 60), fontsize=9, loc="left")
    handles = [Patch(facecolor=colours[n], edgecolor=DARK, label=shown(n, 20)) for n in names]
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(names),
        fontsize=8,
        frameon=False,
    )
    axes.set_yticks([])


# --- what each part adds, and what each layer would answer ---


def draw_contributions(found: Contributions) -> Figure:
    """Draw what each part of GPT-2 adds to a logit: a row per block, a column per head.

    The last column is the MLP. The row at the bottom has the embeddings and the biases. Parts that
    raise the logit are vermilion, and parts that lower it are blue. If there is room, each cell has
    its number.
    """
    L, H = found.heads.shape
    cells = np.hstack([found.heads, found.mlps[:, None]])  # (L, H + 1)
    below = np.array([[found.token, found.position, found.biases]])
    most = max(np.abs(cells).max(initial=0), np.abs(below).max(), 1e-9)
    width = min(9.5, max(7.0, 2.4 + 0.55 * (H + 1)))
    height = 0.34 if (width - 2.4) / (H + 1) >= 0.42 else 0.22  # of a row; lower without numbers
    figure = Figure(figsize=(width, 2.2 + height * (L + 1)), layout="constrained")
    heights = [max(L, 1), 1]
    upper, lower = figure.subplots(2, height_ratios=heights, squeeze=False)[:, 0]
    columns = [*(f"head {h}" if H <= 8 else str(h) for h in range(H)), "MLP"]
    rows = [f"block {n}" for n in range(L)]
    for axes, values, names in (
        (upper, cells, columns),
        (lower, below, ["token embedding", "position embedding", "biases"]),
    ):
        if not values.size:  # the head reads the embeddings
            axes.set_axis_off()
            continue
        axes.imshow(values, cmap=TOWARDS, vmin=-most, vmax=most, aspect="auto")
        axes.invert_yaxis()  # the last block on top, as in the other drawings
        axes.set_xticks(range(values.shape[1]), names, fontsize=8)
        axes.set_yticks(range(len(values)), rows if axes is upper else [""], fontsize=8)
        axes.tick_params(length=0)
        if height > 0.3 or axes is lower:
            texts = [[f"{value:+.2f}" for value in row] for row in values]
            _write_cells(axes, texts, np.abs(values) / most > 0.7)
    if H > 8 and L:
        upper.set_xlabel("head", fontsize=8)
    what = f"logit of {shown(found.label, 24)}"
    if found.other:
        what += f" minus logit of {shown(found.other, 24)}"
    figure.suptitle(f"{what}: {found.logit:+.2f} is the sum of all cells", fontsize=11)
    bar = figure.colorbar(lower.images[0], ax=[upper, lower], fraction=0.04, pad=0.02, aspect=30)
    bar.set_label("contribution", fontsize=9)
    return figure


def draw_next_tokens(found: NextTokens) -> Figure:
    """Draw the most probable next token after each token, read at each layer.

    The darker a cell, the more probable the token. Of a long text the last 16 tokens are shown.
    """
    T, last = len(found.tokens), min(len(found.tokens), MOST_COLUMNS)
    texts = [[str(token) for token in row[T - last :, 0]] for row in found.predicted]
    title = "The most probable next token, read at each layer"
    return _draw_layers(found.tokens, found.probabilities[:, :, 0], texts, title)


def draw_answer_by_layer(found: AnswerByLayer, label: str) -> Figure:
    """Draw the probability of a label in percent, if the head read each token at each layer.

    Of a long text the last 16 tokens are shown. Raises DataError for an unknown label.
    """
    if label not in found.labels:
        raise DataError(f"unknown label {label!r:.80}; choose from: {', '.join(found.labels)}")
    p = found.by_token[:, :, found.labels.index(label)]  # (L + 1, T)
    texts = [[f"{100 * value:.0f}" for value in row[-MOST_COLUMNS:]] for row in p]
    title = f"P({shown(label, 24)}) in percent, read at each layer"
    return _draw_layers(found.tokens, p, texts, title)


def _draw_layers(
    tokens: Sequence[str], p: np.ndarray, texts: Sequence[Sequence[str]], title: str
) -> Figure:
    """Draw probabilities p (L + 1, T) as a table; `texts` has the text of each shown cell."""
    last = min(len(tokens), MOST_COLUMNS)
    rows = p[:, len(tokens) - last :]
    width = min(9.5, max(7.0, 1.6 + 0.62 * last))
    fit = max(3, int((width - 1.6) / last * 72 / (0.66 * SMALL)))  # characters in a cell
    figure = Figure(figsize=(width, 2.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(rows, cmap=PROPORTIONS, vmin=0, vmax=1, aspect="auto")
    axes.invert_yaxis()
    _write_cells(axes, [[shown_token(text, fit) for text in row] for row in texts], rows > 0.5)
    labels = [shown_token(token, LONGEST) for token in tokens[-last:]]
    axes.set_xticks(range(last), labels, rotation=90, fontsize=8)
    names = ["embeddings", *(f"block {n}" for n in range(len(rows) - 1))]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel(
        "the text, token by token (· is a space)"
        if last == len(tokens)
        else f"the last {last} of {len(tokens):,} tokens (· is a space)"
    )
    axes.set_title(f"{title}; dark: probable", fontsize=10)
    return figure


def _write_cells(axes: Axes, texts: Sequence[Sequence[str]], is_dark: np.ndarray) -> None:
    """Write a text into each cell of an image, in white where the cell is dark."""
    for y, row in enumerate(texts):
        for x, text in enumerate(row):
            colour = "white" if is_dark[y, x] else DARK
            axes.text(x, y, text, ha="center", va="center", fontsize=SMALL, color=colour)


# --- the network ---


# position of the detailed block, in inches
LEFT, RIGHT, LOWER, UPPER, STREAM = 3.7, 9.4, 0.3, 8.1, 4.35
ARROW = {"arrowstyle": "-|>", "color": DARK, "shrinkA": 0, "shrinkB": 0}


def draw_architecture(config: GPT2Config, num_classes: int | None = None) -> Figure:
    """Draw the network from the bottom up, with shapes and parameter counts.

    One block is drawn in detail. With `num_classes` the network ends in a classifier's head,
    otherwise in GPT-2's own head, tied to `wte`. Raises UsageError for fewer than two classes.
    """
    if num_classes is not None and num_classes < 2:
        raise UsageError(f"num_classes = {num_classes}: a classifier needs at least 2")
    counts = parameter_counts(config, num_classes)
    total = sum(counts[name] for name in ("wte", "wpe", "ln_f", "head"))
    total += config.n_layer * counts["block"]
    figure = Figure(figsize=(9.5, 8.8), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 9.5), ylim=(0, 8.4))
    axes.set_axis_off()
    kind = "GPT-2" if num_classes is None else f"GPT-2 as a classifier of {num_classes} classes"
    axes.set_title(f"{kind}: {total:,} parameters")
    _draw_network(axes, config, num_classes, counts)
    _draw_block(axes, config, counts)
    return figure


def parameter_counts(config: GPT2Config, num_classes: int | None = None) -> dict[str, int]:
    """Count the parameters of each part, and of each part of a block.

    GPT-2's own head has no parameters of its own, because it shares `wte`.
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
    axes: Axes, config: GPT2Config, num_classes: int | None, counts: dict[str, int]
) -> None:
    """Draw ids, embeddings, blocks, final norm and head on the left."""
    x, y = 1.65, 2.55
    state = f"(B, T, C = {config.n_embd:,})"
    axes.text(x, 0.2, "token ids", ha="center", va="center", weight="bold")
    _up(axes, x, 0.4, 1.05, "(B, T)")
    for side, name, what in ((-0.7, "wte", "token"), (0.7, "wpe", "position")):
        _box(axes, (x + side, 1.45), (1.22, 0.8), f"{name} ({what})\n{counts[name]:,}", GREEN)
    axes.text(x, 1.45, "+", ha="center", va="center", fontsize=14, weight="bold")
    _up(axes, x, 1.85, y, state)
    names = [f"blocks.{n}" for n in range(config.n_layer)]
    if len(names) > 3:  # draw only the first and the last block
        names[1:-1] = [f"⋮   {len(names)} blocks in total"]
    for name in names:
        if name.startswith("⋮"):
            axes.text(x - 0.03, y + 0.12, name, ha="left", va="center", fontsize=9)
            y += 0.27
        else:
            _box(axes, (x, y + 0.3), (2.6, 0.6), f"{name}\n{counts['block']:,}", SKY)
            y += 0.6
        if name != names[-1]:
            _up(axes, x, y, y + 0.3)
            y += 0.3
    for low, high in ((y - 0.6, LOWER), (y, UPPER)):  # lines to the block that is drawn in detail
        axes.plot([x + 1.3, LEFT], [low, high], color=SKY, linestyle="--", linewidth=1)
    _up(axes, x, y, y + 0.6, state)
    _box(axes, (x, y + 0.85), (2.6, 0.5), f"ln_f   {counts['ln_f']:,}", YELLOW)
    _up(axes, x, y + 1.1, y + 1.7, state)
    count = "wte again" if num_classes is None else f"{counts['head']:,}"
    _box(axes, (x, y + 1.95), (2.6, 0.5), f"head   {count}", VERMILION)
    out = f"V = {config.n_vocab:,}" if num_classes is None else f"K = {num_classes}"
    _up(axes, x, y + 2.2, y + 2.8, f"(B, T, {out})")
    axes.text(x, y + 3.0, "logits", ha="center", va="center", weight="bold")


def _draw_block(axes: Axes, config: GPT2Config, counts: dict[str, int]) -> None:
    """Draw one block on the right: the residual stream and its two branches."""
    C, H = config.n_embd, config.n_head
    _box(
        axes, ((LEFT + RIGHT) / 2, (LOWER + UPPER) / 2), (RIGHT - LEFT, UPPER - LOWER), "", SKY, 0.1
    )
    axes.text(
        RIGHT - 0.15,
        UPPER - 0.25,
        f"one block: {counts['block']:,} parameters",
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
        (f"ln_1   {counts['ln_1']:,}", YELLOW, state),
        (f"c_attn   {counts['attn.c_attn']:,}", ORANGE, f"q, k, v: (B, T, 3C = {3 * C:,})"),
        (f"{H} heads: softmax(q kᵀ / √D) v", ORANGE, f"(B, H = {H}, T, D = {C // H:,})"),
        (f"c_proj   {counts['attn.c_proj']:,}", ORANGE, state),
    ]
    mlp = [
        (f"ln_2   {counts['ln_2']:,}", YELLOW, state),
        (f"c_fc   {counts['mlp.c_fc']:,}", PURPLE, f"(B, T, 4C = {4 * C:,})"),
        ("GELU", PURPLE, f"(B, T, 4C = {4 * C:,})"),
        (f"c_proj   {counts['mlp.c_proj']:,}", PURPLE, state),
    ]
    _draw_branch(axes, 0.55, attention, "attn: looks back, never ahead", ORANGE)
    _draw_branch(axes, 4.25, mlp, "mlp: each position alone", PURPLE)


def _draw_branch(
    axes: Axes, y: float, parts: list[tuple[str, str, str]], name: str, colour: str
) -> None:
    """Draw a branch of the residual stream: norm, the parts of attn or mlp, and the addition.

    Each part is (text, colour, shape of its output).
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
    """Draw a rounded box with text, filled with an opaque tint of its colour."""
    fill = tuple(1 - tint * (1 - part) for part in to_rgb(colour))
    (x, y), (width, height) = middle, size
    corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.06"
    box = FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=fill, edgecolor=colour)
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def _up(axes: Axes, x: float, low: float, high: float, text: str = "", width: float = 1.5) -> None:
    """Draw an arrow upwards, with text to its right."""
    axes.annotate("", (x, high), (x, low), arrowprops=ARROW | {"linewidth": width})
    if text:
        axes.text(x + 0.1, (low + high) / 2, text, ha="left", va="center", fontsize=8, color=DARK)
