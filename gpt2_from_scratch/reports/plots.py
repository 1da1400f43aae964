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

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gpt2_from_scratch.classifier.train import Epoch
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.calibration import (
    NEVER,
    AtThreshold,
    Calibration,
    format_threshold,
)
from gpt2_from_scratch.evaluation.metrics import Evaluation, wilson_interval
from gpt2_from_scratch.storage.files import atomic_path

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


# --- Pictures of how good classifiers are and how sure one can be of it. ---


LONGEST = 44  # characters of a name
MARKS = "osD^vPX"


def plot_scores(
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    *,
    reference: int | None,
    others: Sequence[float | None] = (),
    others_name: str = "",
    unit: str = "test accuracy (%)",
) -> Figure:
    """A row a classifier, the first on top: its score as a dot, its interval as a line.

    Scores are shares of 1, drawn in per cent. The score of row `reference` is a dashed line through
    all rows. `others` are scores from elsewhere, a row each or None, drawn as diamonds under the
    dots and called `others_name`. Raises DataError for no rows and for lengths that differ.
    """
    rows = range(len(names))
    others = others or [None] * len(names)
    if not names or not len(names) == len(values) == len(intervals) == len(others):
        counts = f"{len(names)} names, {len(values)} values, {len(intervals)} intervals, {len(others)} others"
        raise DataError(f"there must be as many of each, and one at least: {counts}")
    figure = Figure(figsize=(9, 1.3 + 0.33 * len(names)), layout="constrained")
    axes = figure.subplots()
    if reference is not None:
        axes.axvline(100 * values[reference], color=VERMILION, linestyle="--", linewidth=1)
    for row in rows:
        _draw_score(axes, row, values[row], intervals[row], row == reference)
    there = [(100 * other, row + 0.25) for row, other in enumerate(others) if other is not None]
    if there:
        axes.plot(
            *zip(*there, strict=True),
            "D",
            color=ORANGE,
            markersize=4.5,
            label=shown(others_name, LONGEST, visible=False),
        )
        figure.legend(loc="outside lower right", fontsize=9)
    axes.set_yticks(rows, [shown(name, LONGEST, visible=False) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(unit)
    axes.grid(alpha=0.3)
    numbers = axes.twinx()
    numbers.set_ylim(axes.get_ylim())
    numbers.set_yticks(rows, [_told_scores(v, i) for v, i in zip(values, intervals, strict=True)])
    for side in (axes, numbers):
        side.spines[["left", "top", "right"]].set_visible(False)
        side.tick_params(axis="y", length=0)
    return without_formulas(figure)


def plot_reliability(calibrations: dict[str, Calibration]) -> Figure:
    """How often the likeliest class is right, against its probability; below, how many texts.

    A point a bin, at the mean probability in it, with the 95 % Wilson interval of the share that is
    right; on the diagonal probabilities mean what they say. Raises DataError for no text.
    """
    found = [bin for one in calibrations.values() for bin in one.bins if bin.count]
    if not found:
        raise DataError("there is nothing to draw: no bin with a text")
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 100], [0, 100], color=DARK, linestyle="--", linewidth=1, label="as it says")
    for n, (name, one) in enumerate(calibrations.items()):
        _draw_reliability(upper, name, one, n)
        _draw_counts(lower, one, n, len(calibrations))
    upper.set(
        title="Do probabilities mean what they say?", ylabel="of these right (%)", ylim=(-3, 103)
    )
    lower.set(xlabel="probability of the likeliest class (%)", ylabel="texts", yscale="log")
    lower.set_xlim(100 * min(bin.low for bin in found) - 2, 102)
    lower.set_ylim(0.5, 2 * max(bin.count for bin in found))
    lower.yaxis.set_major_formatter(
        FuncFormatter(lambda count, _: f"{count:,.0f}" if count >= 1 else "")
    )
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.legend(
        *upper.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9
    )
    return without_formulas(figure)


def plot_trade(
    shares: np.ndarray, is_it: np.ndarray, label: str, chosen: Sequence[AtThreshold] = ()
) -> Figure:
    """How much spam each threshold catches, against how many good texts of 1,000 it loses.

    shares (N,): the probability of `label`, spam; is_it (N,) bool. The thresholds chosen are
    marked, equal ones once, with a line to the number that is surely not exceeded (95 %). The scale
    of what is lost is logarithmic from one text on. Raises DataError where there are no spam or no
    good texts.
    """
    good, wanted = int((~is_it).sum()), int(is_it.sum())
    if not good or not wanted:
        raise DataError(f"{wanted} texts of {label} and {good} others: one of each is needed")
    cuts = [NEVER, *np.unique(shares)[::-1].tolist()]  # from the strictest on
    lost = [1000 * float((shares[~is_it] >= cut).sum()) / good for cut in cuts]
    caught = [100 * float((shares[is_it] >= cut).sum()) / wanted for cut in cuts]
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(lost, caught, color=BLUE, drawstyle="steps-post", label="every threshold")
    for n, threshold in enumerate(dict.fromkeys(at.threshold for at in chosen)):
        _draw_chosen(axes, [at for at in chosen if at.threshold == threshold], n)
    name = shown(label, 20, visible=False)
    axes.set(title=f"What it costs to catch {name}", ylabel=f"{name} caught (%)")
    axes.set_xlabel(f"lost of 1,000 others (one of the {good:,} texts here is {1000 / good:.3g})")
    axes.set_xscale("symlog", linthresh=1000 / good, linscale=0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.4g}"))
    axes.set_xlim(-0.15 * 1000 / good, 1000)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    return without_formulas(figure)


def _draw_score(
    axes: Axes, row: int, value: float, interval: tuple[float, float] | None, is_reference: bool
) -> None:
    colour = VERMILION if is_reference else BLUE
    if interval is not None:
        axes.plot(
            [100 * bound for bound in interval],
            [row, row],
            color=colour,
            linewidth=1.6,
            solid_capstyle="butt",
        )
    axes.plot([100 * value], [row], "o", color=colour, markersize=6)


def _told_scores(value: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f}  ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _draw_reliability(axes: Axes, name: str, one: Calibration, n: int) -> None:
    points = [
        (bin.confidence, bin.accuracy, *wilson_interval(round(bin.accuracy * bin.count), bin.count))
        for bin in one.bins
        if bin.confidence is not None and bin.accuracy is not None
    ]
    if not points:
        return
    x, y, low, high = 100 * np.array(points).T  # (bins that are not empty,) each
    axes.errorbar(
        x,
        y,
        yerr=[y - low, high - y],
        color=PALETTE[n % len(PALETTE)],
        marker=MARKS[n % len(MARKS)],
        markersize=5,
        linewidth=1.2,
        elinewidth=0.8,
        label=f"{shown(name, LONGEST, visible=False)} (ECE {one.ece:.3f})",
    )


def _draw_counts(axes: Axes, one: Calibration, n: int, of: int) -> None:
    """Bars of bins beside those of the other calibrations."""
    for bin in one.bins:
        width = 100 * (bin.high - bin.low) * 0.9 / of
        left = 100 * bin.low + 5 * (bin.high - bin.low) + n * width
        if bin.count:
            axes.bar(left, bin.count, width, align="edge", color=PALETTE[n % len(PALETTE)])


def _draw_chosen(axes: Axes, same: Sequence[AtThreshold], n: int) -> None:
    """One threshold, and in the legend the numbers for which it was chosen."""
    at = same[0]
    lost = 1000 * at.false_positives / at.negatives if at.negatives else 0.0
    caught = 100 * at.true_positives / at.positives if at.positives else 0.0
    asked = ", ".join(
        f"{one.allowed_per_1000:g}" for one in same if one.allowed_per_1000 is not None
    )
    p = "never" if at.threshold >= NEVER else f"p ≥ {format_threshold(at.threshold)}"
    axes.errorbar(
        [lost],
        [caught],
        xerr=[[0.0], [1000 * at.false_positive_rate_bound - lost]],
        color=PALETTE[1:][n % (len(PALETTE) - 1)],
        marker=MARKS[n % len(MARKS)],
        markersize=7,
        linewidth=0,
        elinewidth=1.2,
        capsize=3,
        label=f"to lose at most {asked} of 1,000: {p}" if asked else p,
    )
