"""Pictures of what a run gave: curves, confusion, where the time went.

Each function returns a matplotlib Figure, which a notebook shows and `save_picture` writes. Drawn
without pyplot, so that no window, back end or global state is involved.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.files import atomic_path
from gpt2_from_scratch.metrics import Evaluation

# Okabe and Ito's colours, told apart by people who confuse red and green too
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW)
TRAIN, VAL = BLUE, VERMILION
SHARES = "Blues"  # for numbers from 0 (nearly white) to 1
SMALL = 7  # points: nothing is written smaller
VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥"}


def plot_training(
    steps: Sequence[float],
    losses: tuple[Sequence[float], Sequence[float]],
    accuracies: tuple[Sequence[float], Sequence[float]],
    *,
    step_name: str = "epoch",
) -> Figure:
    """Loss and accuracy (shares of 1), (training, validation) each, in two panels."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, curves, title in zip(
        figure.subplots(1, 2),
        (losses, [[100 * a for a in curve] for curve in accuracies]),
        ("Loss (cross-entropy, nats)", "Accuracy (%)"),
        strict=True,
    ):
        for curve, name, colour, mark in zip(
            curves, ("training", "validation"), (TRAIN, VAL), "os", strict=True
        ):
            x = steps if len(steps) == len(curve) else range(1, len(curve) + 1)
            axes.plot(x, curve, color=colour, marker=mark, markersize=4, label=name)
        axes.set(title=title, xlabel=step_name if len(steps) == len(curves[0]) else "epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def plot_pretraining(
    tokens: Sequence[float], bits_per_byte: Sequence[float], references: dict[str, float]
) -> Figure:
    """Bits per byte of held-out text against tokens seen, with reference lines."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([n / 1e6 for n in tokens], bits_per_byte, color=TRAIN, marker="o", markersize=3)
    for n, (name, value) in enumerate(references.items()):
        axes.axhline(
            value, color=VAL, linestyle=("--", ":", "-.")[n % 3], label=f"{name}: {value:.2f}"
        )
    axes.set(
        title="Pretraining: held-out text", xlabel="tokens seen (millions)", ylabel="bits per byte"
    )
    axes.grid(alpha=0.3)
    if references:
        axes.legend()
    return figure


def plot_confusion(evaluation: Evaluation) -> Figure:
    """The confusion matrix (K, K): true labels in rows, predicted in columns.

    A cell tells how many texts are in it and which share of its row they are; its colour is that
    share. Beyond 12 classes the shares are colour only.
    """
    labels = [shown(scores.label, 18) for scores in evaluation.classes]
    rows = evaluation.confusion
    K = len(labels)
    shares = [[n / sum(row) if sum(row) else 0.0 for n in row] for row in rows]
    size = min(9.5, max(4.6, 2.4 + 0.62 * K))
    figure = Figure(figsize=(max(7.0, size), size - 0.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1)
    for true, row in enumerate(rows):
        for predicted, n in enumerate(row):
            share = shares[true][predicted]
            text = f"{n:,}" if K > 12 else f"{n:,}\n{100 * share:.1f} %" if sum(row) else "0\n–"
            colour = "white" if share > 0.55 else "black"
            size = SMALL if K > 12 else 8 if K > 6 else 11
            axes.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=size)
    axes.set_xticks(range(K), labels, rotation=0 if K <= 3 else 40, ha="center" if K <= 3 else "right", rotation_mode="anchor")  # fmt: skip
    axes.set_yticks(range(K), labels)
    axes.set(
        title=f"Confusion matrix: {evaluation.correct:,} of {evaluation.total:,} right "
        f"({100 * evaluation.accuracy:.1f} %)",
        xlabel="predicted label",
        ylabel="true label",
    )
    bar = figure.colorbar(image, ax=axes, label="share of the row (%)")
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100"])
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
    figure = Figure(figsize=(9, 1.5 + 0.5 * len(seconds)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(seconds)
    for n, part in enumerate(parts):
        widths = [row.get(part, 0.0) / scale for row in seconds.values()]
        colour = PALETTE[n % len(PALETTE)]
        hatch = "/" if n >= len(PALETTE) else None
        # the edge keeps a bar in sight that would be narrower than a pixel
        edges = [1.0 if width else 0.0 for width in widths]
        axes.barh(range(len(left)), widths, left=left, color=colour, edgecolor=colour, linewidth=edges, height=0.62, hatch=hatch)  # fmt: skip
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, total in enumerate(totals):
        axes.annotate(
            _told(total, max(totals), scale), (total / scale, row), (5, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_yticks(range(len(left)), [shown(method, 40, visible=False) for method in seconds])
    axes.set(title=title, xlabel=f"{unit} ({many})" if many else unit)
    axes.set_xlim(0, 1.3 * max(left) or 1.0)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes, parts)
    return without_formulas(figure)


def save_picture(figure: Figure, path: Path) -> None:
    """Write a picture as .png of 120 dots an inch, atomically; raises ResourceError."""
    with atomic_path(path) as temporary:
        # by default matplotlib writes its version into the file
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


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
def _font():  # type: ignore[no-untyped-def]
    return get_font(findfont(FontProperties()))


def _legend(axes: Axes, names: Sequence[str]) -> None:
    """One entry a bar container; written afterwards, because a name may begin with `_`."""
    legend = axes.legend(axes.containers, ["-"] * len(names), loc="lower right", fontsize=9)
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
    for scale, word in ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions")):
        if largest >= scale:
            return scale, word
    return 1.0, ""


def _told(total: float, largest: float, scale: float) -> str:
    """A total to three digits, and how many times less than the largest it is."""
    amount = total / scale
    places = 0 if amount >= 100 or amount == 0 else 1 - math.floor(math.log10(amount)) + 1
    text = f"{amount:,.{places}f}"
    ratio = largest / total if total else 1.0
    return text if ratio < 1.05 else f"{text}  ({ratio:,.{0 if ratio >= 10 else 1}f} times less)"
