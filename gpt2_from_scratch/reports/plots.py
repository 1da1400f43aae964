"""Plots of results: training curves, confusion, scores with intervals, calibration, amounts.

Each function returns a matplotlib Figure, which a notebook can show and `save_picture` can write.
The functions do not use pyplot, so no window, back end or global state is involved. Proportions are
from 0 to 1 in arguments, and in percent in the plots.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from gpt2_from_scratch.classifier.train import Epoch, best_epoch
from gpt2_from_scratch.data.messages import on_one_line
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.calibration import (
    NEVER,
    AtThreshold,
    Calibration,
    format_threshold,
)
from gpt2_from_scratch.evaluation.metrics import MOST_CLASSES, Evaluation, wilson_interval
from gpt2_from_scratch.storage.files import atomic_path
from gpt2_from_scratch.storage.paths import expanded

# Okabe and Ito's colours, which colour-blind people can distinguish
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
DARK = "#404040"  # colour of lines and small text
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW)
TRAIN, VAL = BLUE, VERMILION
PROPORTIONS = "Blues"  # colour map from 0 (nearly white) to 1
MARKERS = "osD^vPX"
MANY = 12  # with more classes, only counts fit into the cells of a confusion matrix
MOST_LABELS = 60  # most labels on an axis of classes; of more, only every n-th is shown
SMALL = 7  # smallest text size, in points
LONGEST = 44  # most characters of a name
VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\r": "↵", "\t": "⇥"})


# --- training ---


def plot_training(
    steps: Sequence[float],
    losses: tuple[Sequence[float], Sequence[float]],
    accuracies: tuple[Sequence[float], Sequence[float]],
    *,
    step_name: str = "epoch",
    titles: tuple[str, str] = ("Loss (cross-entropy, nats)", "Accuracy (%)"),
    kept: float | None = None,
) -> Figure:
    """Plot loss and accuracy in two panels, each with a training and a validation curve.

    If a pair of curves does not have one point per step, it is plotted against epochs from 1.

    Args:
        steps: The x values of the curves.
        losses: Training and validation loss.
        accuracies: Training and validation accuracy, from 0 to 1.
        step_name: The name of a step.
        titles: The titles of the two panels.
        kept: The step or epoch whose weights were kept, marked by a vertical line.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    percentages = [[100 * accuracy for accuracy in curve] for curve in accuracies]
    for axes, curves, title in zip(
        figure.subplots(1, 2), (losses, percentages), titles, strict=True
    ):
        per_step = len(steps) == len(curves[0])
        for curve, name, colour, marker in zip(
            curves, ("training", "validation"), (TRAIN, VAL), "os", strict=True
        ):
            x = steps if per_step else range(1, len(curve) + 1)
            axes.plot(x, curve, color=colour, marker=marker, markersize=4, label=name)
        if kept is not None:
            name = f"kept {step_name if per_step else 'epoch'}"
            axes.axvline(kept, color=DARK, linestyle=":", linewidth=1, label=name)
        axes.set(title=title, xlabel=step_name if per_step else "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # epochs are whole numbers
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def plot_epochs(history: Sequence[Epoch], measure: str = "accuracy") -> Figure:
    """Plot loss and score per epoch, and mark the epoch whose weights were kept.

    `measure` is the name of the validation score.
    """
    titles = ("Loss (cross-entropy, nats)", "Accuracy (%)")
    if measure != "accuracy":
        titles = ("Loss", f"Training accuracy, validation {measure} (%)")
    return plot_training(
        [e.epoch for e in history],
        ([e.train_loss for e in history], [e.val_loss for e in history]),
        ([e.train_score for e in history], [e.val_score for e in history]),
        titles=titles,
        kept=best_epoch(history).epoch if len(history) > 1 else None,
    )


def plot_rates(rates: Sequence[float], losses: Sequence[float], suggested: float) -> Figure:
    """Plot the loss while the learning rate rises, and the suggested learning rate."""
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
    """Plot bits per byte of held-out text against tokens trained on, with reference lines."""
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


# --- scores of classifiers, and their uncertainty ---


def plot_confusion(evaluation: Evaluation) -> Figure:
    """Plot the confusion matrix (K, K): true labels in rows, predicted labels in columns.

    A cell shows its number of texts and their proportion of the row, which is also its colour. With
    more than 12 classes only the numbers are printed, and with more than 20 nothing is.
    """
    labels = [shown(scores.label, 20) for scores in evaluation.classes]
    counts = np.array(evaluation.confusion)  # (K, K)
    K, totals = len(counts), counts.sum(axis=1, keepdims=True)
    proportions = counts / np.maximum(totals, 1)
    size = min(9.5, max(4.6, 2.4 + 0.62 * K))  # inches
    figure = Figure(figsize=(max(7.0, size), size - 0.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(proportions, cmap=PROPORTIONS, vmin=0, vmax=1)
    for true, predicted in product(range(K), repeat=2) if K <= MOST_CLASSES else ():
        text, proportion = f"{counts[true, predicted]:,}", proportions[true, predicted]
        if K <= MANY:
            text += f"\n{100 * proportion:.1f}%" if totals[true] else "\n–"
        colour = "white" if proportion > 0.55 else "black"
        points = 11 if K <= 6 else 8 if K <= MANY else SMALL
        axes.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=points)
    step = math.ceil(K / MOST_LABELS)
    axes.set_xticks(range(0, K, step), labels[::step], fontsize=SMALL if K > MOST_CLASSES else None)
    axes.set_yticks(range(0, K, step), labels[::step], fontsize=SMALL if K > MOST_CLASSES else None)
    if K > 3:
        axes.tick_params(axis="x", rotation=90)
    axes.set(
        title=f"Confusion matrix: {evaluation.correct:,} of {evaluation.total:,} correct "
        f"({100 * evaluation.accuracy:.1f}%)",
        xlabel="predicted label",
        ylabel="true label",
    )
    figure.colorbar(image, ax=axes, label="proportion of the row", shrink=0.7)
    return figure


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
    """Plot one row per classifier, the first on top: its score as a dot, its interval as a line.

    Args:
        names: One name per row.
        values: The scores, from 0 to 1.
        intervals: Their intervals, or None where unknown.
        reference: The row whose score is drawn as a dashed line through all rows; None for no line.
        others: Scores from elsewhere, one per row or None, drawn as diamonds.
        others_name: The name of `others` in the legend.
        unit: The label of the axis.

    Raises:
        DataError: There are no rows, or lengths differ.
    """
    rows = range(len(names))
    others = others or [None] * len(names)
    lengths = [len(names), len(values), len(intervals), len(others)]
    if not names or len(set(lengths)) > 1:
        raise DataError(
            "names, values, intervals and others must have one length, at least 1; found {}, {}, {}"
            " and {}".format(*lengths)
        )
    figure = Figure(figsize=(9, 1.3 + 0.33 * len(names)), layout="constrained")
    axes = figure.subplots()
    if reference is not None:
        axes.axvline(100 * values[reference], color=VERMILION, linestyle="--", linewidth=1)
    numbers = []
    for row, value, interval in zip(rows, values, intervals, strict=True):
        colour = VERMILION if row == reference else BLUE
        number = f"{100 * value:.1f}"
        if interval:
            low, high = (100 * bound for bound in interval)
            axes.plot([low, high], [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
            number += f"  ({low:.1f} to {high:.1f})"
        axes.plot([100 * value], [row], "o", color=colour, markersize=6)
        numbers.append(number)
    known = [(100 * other, row + 0.25) for row, other in enumerate(others) if other is not None]
    if known:
        label = shown(others_name, LONGEST)
        axes.plot(*zip(*known, strict=True), "D", color=ORANGE, markersize=4.5, label=label)
        figure.legend(loc="outside lower right", fontsize=9)
    axes.set_yticks(rows, [shown(name, LONGEST) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(unit)
    axes.grid(alpha=0.3)
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.set_yticks(rows, numbers)
    for side in (axes, right):
        side.spines[["left", "top", "right"]].set_visible(False)
        side.tick_params(axis="y", length=0)
    return figure


def plot_reliability(calibrations: Mapping[str, Calibration]) -> Figure:
    """Plot how often the most probable class is correct against its probability.

    There is one point per bin, at its mean probability, with its 95% Wilson interval. Perfectly
    calibrated probabilities are on the diagonal. The lower panel shows the texts per bin. Raises
    DataError if there are no texts.
    """
    bins = [bin for one in calibrations.values() for bin in one.bins if bin.count]
    if not bins:
        raise DataError("there is nothing to draw: no bin with a text")
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    upper.plot(
        [0, 100], [0, 100], color=DARK, linestyle="--", linewidth=1, label="perfectly calibrated"
    )
    for n, (name, one) in enumerate(calibrations.items()):
        label = f"{shown(name, LONGEST)} (ECE {one.ece:.3f})"
        _draw_bins(upper, lower, one, label, (n, len(calibrations)))
    upper.set(title="Reliability diagram", ylabel="correct (%)", ylim=(-3, 103))
    lower.set(xlabel="probability of the most probable class (%)", ylabel="texts", yscale="log")
    lower.set_xlim(100 * min(bin.low for bin in bins) - 2, 102)
    lower.set_ylim(0.5, 2 * max(bin.count for bin in bins))
    lower.yaxis.set_major_formatter(
        FuncFormatter(lambda count, _: f"{count:,.0f}" if count >= 1 else "")
    )
    lower.yaxis.set_minor_formatter(NullFormatter())
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    handles = upper.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _draw_bins(
    upper: Axes, lower: Axes, one: Calibration, label: str, place: tuple[int, int]
) -> None:
    """Draw the points and counts of one calibration.

    `place` is (its index, the number of calibrations).
    """
    n, of = place
    colour, marker = PALETTE[n % len(PALETTE)], MARKERS[n % len(MARKERS)]
    bins = [bin for bin in one.bins if bin.count]
    ends = [wilson_interval(round((bin.accuracy or 0.0) * bin.count), bin.count) for bin in bins]
    points = [(bin.confidence, bin.accuracy) for bin in bins]
    if not bins:
        return
    x, y = 100 * np.array(points, dtype=float).T  # (bins,) each
    low, high = 100 * np.array(ends).T
    upper.errorbar(
        x,
        y,
        yerr=[y - low, high - y],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.2,
        elinewidth=0.8,
        label=label,
    )
    for bin in bins:
        width = 100 * (bin.high - bin.low) * 0.9 / of
        left = 100 * bin.low + 5 * (bin.high - bin.low) + n * width
        lower.bar(left, bin.count, width, align="edge", color=colour)


def plot_trade(
    probabilities: np.ndarray,
    is_it: np.ndarray,
    label: str,
    chosen: Sequence[AtThreshold] = (),
) -> Figure:
    """Plot true positives against false positives, for every threshold of the probability.

    Selected thresholds are marked with a line to the 95% upper bound of their false positives;
    equal ones are marked once. The scale of false positives is logarithmic from one text on.

    Args:
        probabilities: The probability of `label` for each text, (N,).
        is_it: Whether each text has the label, (N,) bool.
        label: The positive label.
        chosen: Selected thresholds, with their effect on these texts.

    Raises:
        DataError: No text has the label, or all texts have it.
    """
    negatives, positives = int((~is_it).sum()), int(is_it.sum())
    if not negatives or not positives:
        raise DataError(
            f"{positives} texts of {label} and {negatives} others: one of each is needed"
        )
    cuts = [NEVER, *np.unique(probabilities)[::-1].tolist()]  # from the strictest to the loosest
    false = [1000 * float((probabilities[~is_it] >= cut).sum()) / negatives for cut in cuts]
    true = [100 * float((probabilities[is_it] >= cut).sum()) / positives for cut in cuts]
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(false, true, color=BLUE, drawstyle="steps-post", label="every threshold")
    for n, threshold in enumerate(dict.fromkeys(at.threshold for at in chosen)):
        _draw_chosen(axes, [at for at in chosen if at.threshold == threshold], n)
    name = shown(label, 20)
    axes.set(title=f"True and false positives of {name}", ylabel="true positives (%)")
    axes.set_xlabel(
        f"false positives per 1,000 other texts (one of the {negatives:,} texts here is "
        f"{1000 / negatives:.3g})"
    )
    axes.set_xscale("symlog", linthresh=1000 / negatives, linscale=0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.4g}"))
    axes.set_xlim(-0.15 * 1000 / negatives, 1000)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    return figure


def _draw_chosen(axes: Axes, same: Sequence[AtThreshold], n: int) -> None:
    """Draw one threshold; the legend lists the limits for which it was selected."""
    at = same[0]
    false = 1000 * at.false_positives / at.negatives if at.negatives else 0.0
    true = 100 * at.true_positives / at.positives if at.positives else 0.0
    limits = ", ".join(
        f"{one.allowed_per_1000:g}" for one in same if one.allowed_per_1000 is not None
    )
    p = "never" if at.threshold >= NEVER else f"p ≥ {format_threshold(at.threshold)}"
    axes.errorbar(
        [false],
        [true],
        xerr=[[0.0], [1000 * at.false_positive_rate_bound - false]],
        color=PALETTE[1:][n % (len(PALETTE) - 1)],
        marker=MARKERS[n % len(MARKERS)],
        markersize=7,
        linewidth=0,
        elinewidth=1.2,
        capsize=3,
        label=f"limit {limits} of 1,000: {p}" if limits else p,
    )


# --- amounts ---


def plot_seconds(
    seconds: dict[str, dict[str, float]],
    *,
    unit: str = "seconds",
    title: str = "Where the time goes",
) -> Figure:
    """Plot one horizontal bar per method, with its parts stacked.

    Each bar is labelled with its total, and with how many times smaller it is than the largest.
    Amounts from a million on are shown in millions, billions or trillions.

    Args:
        seconds: {method: {part: amount}}.
        unit: The unit of the amounts.
        title: The title of the figure.

    Raises:
        DataError: There is nothing to draw, or an amount is negative or not finite.
    """
    if not seconds or not any(seconds.values()):
        raise DataError("there is nothing to draw: no method with a part")
    for method, amounts in seconds.items():
        for part, amount in amounts.items():
            if not 0 <= amount < math.inf:
                raise DataError(f"{method}, {part}: {amount} is not a number from 0 up")
    totals = [sum(amounts.values()) for amounts in seconds.values()]
    scale, many = _scale(max(totals))
    parts = list(dict.fromkeys(part for amounts in seconds.values() for part in amounts))
    height = 1.6 + 0.5 * len(seconds) + 0.2 * math.ceil(len(parts) / 4)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    patches, left = [], np.zeros(len(seconds))
    for n, part in enumerate(parts):
        colour = PALETTE[n % len(PALETTE)]
        # after the last colour, repeat the colours with stripes
        edge, hatch = (colour, None) if n < len(PALETTE) else ("black", "//")
        for row, amounts in enumerate(seconds.values()):
            amount = amounts.get(part, 0.0) / scale
            for bar in draw_bar(axes, row, left[row], amount, colour):
                bar.set(edgecolor=edge, hatch=hatch)
            left[row] += amount
        patches.append(Patch(facecolor=colour, edgecolor=edge, hatch=hatch))
    for row, total in enumerate(totals):
        axes.annotate(
            _amount(total, max(totals), unit),
            (total / scale, row),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(totals)), [shown(method, 40) for method in seconds])
    axes.set(title=title, xlabel=f"{many} {unit}".strip())
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.invert_yaxis()
    make_room(axes, max(totals) / scale, 1.3)
    names = [shown(part, 40) for part in parts]
    figure.legend(patches, names, loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _scale(largest: float) -> tuple[float, str]:
    """The number that amounts are divided by, and its name, such as a million."""
    for scale, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if largest >= scale:
            return scale, word
    return 1.0, ""


def _amount(total: float, largest: float, unit: str) -> str:
    """A total to three digits, and how many times smaller than the largest it is."""
    scale, many = _scale(total)
    amount = total / scale
    places = 0 if amount >= 100 or amount == 0 else 1 - math.floor(math.log10(amount)) + 1
    text = f"{amount:,.{places}f} {many or unit}"
    ratio = largest / total if total else 1.0
    return text if ratio < 1.05 else f"{text}  ({ratio:,.{0 if ratio >= 10 else 1}f} times less)"


# --- used by all pictures ---


def save_picture(figure: Figure, path: str | Path) -> None:
    """Write a picture as .png with 120 dots per inch. The file appears whole or not at all.

    Raises ResourceError if it cannot be written.
    """
    path = expanded(path)
    with atomic_path(path) as temporary:
        # leave out matplotlib's version, which it writes by default
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def draw_bar(axes: Axes, y: float, left: float, width: float, colour: str) -> Sequence[Any]:
    """Draw a horizontal bar, unless its width is 0. Its edge keeps a very narrow bar visible."""
    if not width:
        return []
    return axes.barh(
        y, width, left=left, height=0.62, color=colour, edgecolor=colour, linewidth=1.5
    ).patches


def make_room(axes: Axes, most: float, times: float) -> None:
    """Leave room to the right of horizontal bars, and keep the frame off the smallest bar."""
    axes.set_xlim(-0.003 * most, times * most or 1.0)
    axes.spines[["left", "top", "right"]].set_visible(False)


def shown(text: str, longest: int) -> str:
    """Shorten a name for a picture: on one line, at most `longest` characters, never a formula.

    The font shows characters that it does not have as boxes.
    """
    found = "".join(c if _font().get_char_index(ord(c)) else "□" for c in on_one_line(text))
    if len(found) > longest:
        found = found[: longest - 1] + "…"
    return found.replace("$", r"\$")  # matplotlib would read a pair of $ as a formula


def shown_token(token: str, longest: int) -> str:
    """Write a token for a picture, with its spaces, line ends and tabs visible."""
    return shown(token.translate(VISIBLE), longest)


@cache
def _font() -> Any:
    return get_font(findfont(FontProperties()))
