"""Pictures of what a run gave: curves, confusion, where the time went.

Each function returns a matplotlib Figure, which a notebook shows and `save_picture` writes. Drawn
without pyplot, so that no window, back end or global state is involved.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from gpt2_from_scratch.epochs import Epoch
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.files import atomic_path
from gpt2_from_scratch.metrics import Evaluation
from gpt2_from_scratch.probe_report import Probe

# Okabe and Ito's colours, told apart by people who confuse red and green too
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
DARK = "#404040"  # lines and small print
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW)
TRAIN, VAL = BLUE, VERMILION
SHARES = "Blues"  # for numbers from 0 (nearly white) to 1
MANY = 12  # classes: with more, only counts fit into a confusion matrix
SMALL = 7  # points: nothing is written smaller
VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥"}


def plot_training(
    steps: Sequence[float],
    losses: tuple[Sequence[float], Sequence[float]],
    accuracies: tuple[Sequence[float], Sequence[float]],
    *,
    step_name: str = "epoch",
    titles: tuple[str, str] = ("Loss (cross-entropy, nats)", "Accuracy (%)"),
) -> Figure:
    """Loss and accuracy (shares of 1), (training, validation) each, in two panels."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, curves, title in zip(
        figure.subplots(1, 2),
        (losses, [[100 * a for a in curve] for curve in accuracies]),
        titles,
        strict=True,
    ):
        for curve, name, colour, mark in zip(
            curves, ("training", "validation"), (TRAIN, VAL), "os", strict=True
        ):
            x = steps if len(steps) == len(curve) else range(1, len(curve) + 1)
            axes.plot(x, curve, color=colour, marker=mark, markersize=4, label=name)
        axes.set(title=title, xlabel=step_name if len(steps) == len(curves[0]) else "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half an epoch
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def plot_epochs(history: Sequence[Epoch], measure: str = "accuracy") -> Figure:
    """Loss and score of each epoch of a finetuning run; `measure` is the validation score's name."""
    titles = ("Loss (cross-entropy, nats)", "Accuracy (%)")
    if measure != "accuracy":
        titles = ("Loss", f"Right in training, {measure} in validation (%)")
    return plot_training(
        [e.epoch for e in history],
        ([e.train_loss for e in history], [e.val_loss for e in history]),
        ([e.train_score for e in history], [e.val_score for e in history]),
        titles=titles,
    )


def plot_rates(rates: Sequence[float], losses: Sequence[float], suggested: float) -> Figure:
    """The loss at each learning rate of a short run in which it rises, and the rate suggested."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=TRAIN)
    axes.axvline(suggested, color=VAL, linestyle="--", label=f"suggested: {suggested:.1e}")
    axes.set(xscale="log", title="A rising learning rate", xlabel="learning rate", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_pretraining(
    tokens: Sequence[float], bits_per_byte: Sequence[float], references: dict[str, float]
) -> Figure:
    """Bits per byte of held-out text against tokens seen, with reference lines."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    unit, name = (1e6, "millions") if max(tokens) >= 1e6 else (1e3, "thousands")
    axes.plot([n / unit for n in tokens], bits_per_byte, color=TRAIN, marker="o", markersize=3)
    for n, (reference, value) in enumerate(references.items()):
        style, label = ("--", ":", "-.")[n % 3], f"{reference}: {value:.2f}"
        axes.axhline(value, color=VAL, linestyle=style, label=label)
    axes.set(title="Pretraining: held-out text", xlabel=f"tokens seen ({name})")
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    if references:
        axes.legend()
    return figure


def plot_confusion(evaluation: Evaluation) -> Figure:
    """The confusion matrix (K, K): true labels in rows, predicted in columns.

    A cell tells how many texts are in it and which share of its row they are; its colour is that
    share. Of more than 12 classes the share is told by the colour only.
    """
    labels = [shown(scores.label, 20, visible=False) for scores in evaluation.classes]
    K, rows = len(labels), evaluation.confusion
    shares = [[n / sum(row) if sum(row) else 0.0 for n in row] for row in rows]
    size = min(9.5, max(4.6, 2.4 + 0.62 * K))  # inches
    figure = Figure(figsize=(max(7.0, size), size - 0.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1)
    for true, predicted in product(range(K), repeat=2):
        n, share = rows[true][predicted], shares[true][predicted]
        percent = f"{100 * share:.1f} %" if sum(rows[true]) else "–"
        axes.text(
            predicted,
            true,
            f"{n:,}" if K > MANY else f"{n:,}\n{percent}",
            ha="center",
            va="center",
            color="white" if share > 0.55 else "black",
            fontsize=SMALL if K > MANY else 8 if K > 6 else 11,
        )
    turned: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if K > 3 else {}
    )
    axes.set_xticks(range(K), labels, **turned)
    axes.set_yticks(range(K), labels)
    axes.set(
        title=f"Confusion matrix: {evaluation.correct:,} of {evaluation.total:,} right "
        f"({100 * evaluation.accuracy:.1f} %)\n"
        f"{'Colour' if K > MANY else 'Percent and colour'}: share of the row",
        xlabel="predicted label",
        ylabel="true label",
    )
    if K > MANY:
        figure.colorbar(image, ax=axes, label="share of the row", shrink=0.7)
    return without_formulas(figure)


def plot_seconds(
    seconds: dict[str, dict[str, float]],
    *,
    unit: str = "seconds",
    title: str = "Where the time goes",
) -> Figure:
    """One horizontal bar a method, {method: {part: amount}}, its parts stacked from the left.

    At its end stands the total, and how many times less than the largest that is. Amounts of a
    million and more are told in millions or billions. Raises DataError where there is nothing to
    draw or an amount is no number from 0 up.
    """
    _check_amounts(seconds)
    totals = [sum(parts.values()) for parts in seconds.values()]
    scale, many = _scale(max(totals))
    parts = list(dict.fromkeys(part for row in seconds.values() for part in row))
    height = 1.6 + 0.5 * len(seconds) + 0.2 * math.ceil(len(parts) / 4)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    rows = [[row.get(part, 0.0) / scale for part in parts] for row in seconds.values()]
    patches = [_stack(axes, rows, n) for n in range(len(parts))]
    for row, total in enumerate(totals):
        axes.annotate(
            _told(total, max(totals), unit),
            (total / scale, row),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(totals)), [shown(method, 40, visible=False) for method in seconds])
    axes.set(title=title, xlabel=f"{many} {unit}".strip())
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.invert_yaxis()
    make_room(axes, max(totals) / scale, 1.3)
    _legend(figure, patches, parts)
    return without_formulas(figure)


def plot_probes(probes: Sequence[Probe]) -> Figure:
    """Test accuracy of a probe at each layer with its 95 % interval: a panel a pooling, raw and
    final-normed beside each other, the share of the commonest label dashed.

    Raises DataError for no probes.
    """
    if not probes:
        raise DataError("there is nothing to draw: no probes")
    poolings = list(dict.fromkeys(probe.pooling for probe in probes))
    columns = len(poolings) if len(poolings) < 4 else 2
    rows = math.ceil(len(poolings) / columns)
    figure = Figure(figsize=(min(9.5, 5.5 + 1.5 * columns), 1.1 + 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(poolings) :]:
        axes.set_visible(False)
    for axes, pooling in zip(panels.flat, poolings, strict=False):
        axes.axhline(
            100 * probes[0].majority,
            color=DARK,
            linestyle="--",
            linewidth=1,
            label="always the commonest label",
        )
        for final_norm, aside in ((False, -0.1), (True, 0.1)):
            found = [p for p in probes if (p.pooling, p.final_norm) == (pooling, final_norm)]
            _draw_probes(axes, found, final_norm, aside)
        axes.set_title(pooling, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"A probe at each layer: {probes[0].n_train:,} texts to fit on, {probes[0].total:,} to test"
    )
    for axes in panels[-1]:
        axes.set_xlabel("layer" if columns > 2 else "layer (0: behind the embeddings)")
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    return without_formulas(figure)


def save_picture(figure: Figure, path: Path) -> None:
    """Write a picture as .png of 120 dots an inch, atomically; raises ResourceError."""
    with atomic_path(path) as temporary:
        # by default matplotlib writes its version into the file
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def draw_bar(axes: Axes, y: float, left: float, width: float, colour: str) -> Sequence[Any]:
    """A horizontal bar, if it has a width; its edge keeps in sight what is narrower than a pixel."""
    if not width:
        return []
    return axes.barh(
        y, width, left=left, height=0.62, color=colour, edgecolor=colour, linewidth=1.5
    ).patches


def make_room(axes: Axes, most: float, times: float) -> None:
    """Let horizontal bars end well before the right side, and no frame cover the smallest."""
    axes.set_xlim(-0.003 * most, times * most or 1.0)
    axes.spines[["left", "top", "right"]].set_visible(False)


def shown(text: str, longest: int, *, visible: bool = True) -> str:
    """A token or a label as a picture can show it, cut to so many characters.

    Spaces, line ends and tabs become visible, or, with `visible` off, spaces stay; what else cannot
    be printed is escaped; what the font has no glyph for becomes a box.
    """
    has_glyph = _font().get_char_index
    out = ""
    for c in text:
        if c in VISIBLE:
            out += c if c == " " and not visible else VISIBLE[c]
        elif not c.isprintable():
            out += c.encode("unicode_escape").decode("ascii")
        else:
            out += c if has_glyph(ord(c)) else "□"
    return out if len(out) <= longest else out[: longest - 1] + "…"


def without_formulas(figure: Figure) -> Figure:
    """The same figure, in which nothing between two $ is taken for a formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


@cache
def _font() -> Any:
    return get_font(findfont(FontProperties()))


def _draw_probes(axes: Axes, probes: Sequence[Probe], final_norm: bool, aside: float) -> None:
    """One curve with its intervals, moved aside so that two of them can be told apart."""
    layers = [probe.layer + aside for probe in probes]
    accuracies = [100 * probe.accuracy for probe in probes]
    below = [100 * (p.accuracy - p.interval[0]) for p in probes]
    above = [100 * (p.interval[1] - p.accuracy) for p in probes]
    colour, mark, name = (VERMILION, "s", "final-normed") if final_norm else (BLUE, "o", "raw")
    axes.errorbar(
        layers,
        accuracies,
        yerr=[below, above],
        color=colour,
        marker=mark,
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        label=name,
    )


def _stack(axes: Axes, rows: list[list[float]], n: int) -> Patch:
    """Draw part n of each method's bar behind the parts before it; what the legend shows of it."""
    colour = PALETTE[n % len(PALETTE)]
    # every colour has been used: from here on with stripes
    edge, hatch = ("black", "//") if n >= len(PALETTE) else (colour, None)
    for y, row in enumerate(rows):
        for bar in draw_bar(axes, y, sum(row[:n]), row[n], colour):
            bar.set(edgecolor=edge, hatch=hatch)
    return Patch(facecolor=colour, edgecolor=edge, hatch=hatch)


def _legend(figure: Figure, patches: Sequence[Patch], names: Sequence[str]) -> None:
    """Below the picture; names are written afterwards, because one may begin with `_`."""
    legend = figure.legend(
        patches, ["-"] * len(names), loc="outside lower center", ncols=4, fontsize=9
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(shown(name, 40, visible=False))


def _check_amounts(seconds: dict[str, dict[str, float]]) -> None:
    if not seconds or not any(seconds.values()):
        raise DataError("there is nothing to draw: no method with a part")
    for method, parts in seconds.items():
        for part, amount in parts.items():
            if not 0 <= amount < math.inf:
                raise DataError(f"{method}, {part}: {amount} is no number from 0 up")


def _scale(largest: float) -> tuple[float, str]:
    """What amounts are divided by, and the word for it."""
    for scale, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if largest >= scale:
            return scale, word
    return 1.0, ""


def _told(total: float, largest: float, unit: str) -> str:
    """A total to three digits, and how many times less than the largest it is."""
    scale, many = _scale(total)
    amount = total / scale
    places = 0 if amount >= 100 or amount == 0 else 1 - math.floor(math.log10(amount)) + 1
    text = f"{amount:,.{places}f} {many or unit}"
    ratio = largest / total if total else 1.0
    return text if ratio < 1.05 else f"{text}  ({ratio:,.{0 if ratio >= 10 else 1}f} times less)"
