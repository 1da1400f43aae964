"""Pictures of how good classifiers are and how sure one can be of it.

Each function returns a matplotlib Figure, as those of `plots.py` do. N texts.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gpt2_from_scratch.calibration import Calibration
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.metrics import wilson_interval
from gpt2_from_scratch.plots import BLUE, DARK, ORANGE, PALETTE, VERMILION, shown, without_formulas
from gpt2_from_scratch.thresholds import NEVER, AtThreshold, format_threshold

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
    lost = 1000 * at.lost / at.good if at.good else 0.0
    caught = 100 * at.caught / at.wanted if at.wanted else 0.0
    asked = ", ".join(f"{one.asked:g}" for one in same if one.asked is not None)
    p = "never" if at.threshold >= NEVER else f"p ≥ {format_threshold(at.threshold)}"
    axes.errorbar(
        [lost],
        [caught],
        xerr=[[0.0], [1000 * at.lost_at_most - lost]],
        color=PALETTE[1:][n % (len(PALETTE) - 1)],
        marker=MARKS[n % len(MARKS)],
        markersize=7,
        linewidth=0,
        elinewidth=1.2,
        capsize=3,
        label=f"to lose at most {asked} of 1,000: {p}" if asked else p,
    )
