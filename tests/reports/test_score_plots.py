"""What is on the pictures of scores is what was given, and can be read."""

from dataclasses import replace

import numpy as np
import pytest
from legible import nothing_leaves, nothing_small, overlapping
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.calibration import NEVER, at_threshold, calibration
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.reports.plots import (
    BLUE,
    ORANGE,
    VERMILION,
    plot_reliability,
    plot_scores,
    plot_trade,
    save_picture,
)

NAMES = ["GPT-2 124M, last block", r"one regex: \d{4,}|£|$x_1$", "_length alone"]
VALUES = [0.97, 0.9, 0.805]
INTERVALS = [(0.944, 0.984), (0.861, 0.929), None]


def can_be_read(figure: Figure) -> bool:
    return nothing_leaves(figure) and nothing_small(figure) and not overlapping(figure)


def in_legend(owner: Figure | Axes) -> list[str]:
    legends = owner.legends if isinstance(owner, Figure) else [owner.get_legend()]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


# --- classifiers beside each other ---


def test_a_dot_and_a_line_a_row():
    axes, numbers = plot_scores(NAMES, VALUES, INTERVALS, reference=1).axes
    dashed, *drawn = axes.lines
    assert list(dashed.get_xdata()) == [90, 90] and dashed.get_linestyle() == "--"
    dots = {int(d.get_ydata()[0]): d for d in drawn if d.get_marker() == "o"}
    bars = {int(d.get_ydata()[0]): d for d in drawn if d.get_marker() != "o"}
    assert [dots[row].get_xdata()[0] for row in range(3)] == pytest.approx([97, 90, 80.5])
    assert sorted(bars) == [0, 1]
    for row, bar in bars.items():
        assert list(bar.get_xdata()) == pytest.approx([100 * x for x in INTERVALS[row]])
        assert list(bar.get_ydata()) == [row, row]
    colours = [to_rgb(dots[row].get_color()) for row in range(3)]
    assert colours == [to_rgb(BLUE), to_rgb(VERMILION), to_rgb(BLUE)]
    assert [t.get_text() for t in axes.get_yticklabels()] == NAMES
    told = [t.get_text() for t in numbers.get_yticklabels()]
    assert told == ["97.0  (94.4 to 98.4)", "90.0  (86.1 to 92.9)", "80.5"]
    assert axes.get_ylim() == numbers.get_ylim() and axes.get_ylim()[0] > axes.get_ylim()[1]
    assert axes.get_xlabel() == "test accuracy (%)"


def test_scores_from_elsewhere():
    figure = plot_scores(
        NAMES,
        VALUES,
        INTERVALS,
        reference=None,
        others=[0.95, None, 0.8],
        others_name="the book",
        unit="F1 (%)",
    )
    axes = figure.axes[0]
    (diamonds,) = (line for line in axes.lines if line.get_marker() == "D")
    assert list(diamonds.get_xdata()) == pytest.approx([95, 80])
    assert [round(y) for y in diamonds.get_ydata()] == [0, 2]
    assert to_rgb(diamonds.get_color()) == to_rgb(ORANGE)
    assert in_legend(figure) == ["the book"] and axes.get_xlabel() == "F1 (%)"
    assert not any(line.get_linestyle() == "--" for line in axes.lines)
    none = plot_scores(NAMES, VALUES, INTERVALS, reference=0, others=[None] * 3, others_name="x")
    assert none.legends == []


@pytest.mark.parametrize("count", [1, 2, 12, 40])
def test_few_and_many_rows(count):
    names = [f"{n}: {'a long name of a classifier ' * 3}" for n in range(count)]
    values = np.linspace(0.5, 1, count).tolist()
    bounds = [wilson_interval(round(300 * value), 300) for value in values]
    figure = plot_scores(names, values, bounds, reference=0, others=values, others_name="book")
    assert can_be_read(figure)


@pytest.mark.parametrize(
    ("names", "values", "intervals", "others"),
    [
        ([], [], [], []),
        (NAMES, VALUES[:2], INTERVALS, []),
        (NAMES, VALUES, INTERVALS[:1], []),
        (NAMES, VALUES, INTERVALS, [0.5]),
    ],
)
def test_rows_that_do_not_fit(names, values, intervals, others):
    with pytest.raises(DataError, match="as many of each, and one at least"):
        plot_scores(names, values, intervals, reference=None, others=others)


# --- reliability ---


def calibrated(seed: int, sharpness: float, K: int = 2):
    rng = np.random.default_rng(seed)
    true = rng.integers(K, size=300)
    p = np.exp(sharpness * (rng.normal(size=(300, K)) + 2 * np.eye(K)[true]))
    return calibration(p / p.sum(axis=1, keepdims=True), true)


def test_reliability_is_the_bins():
    found = {"as trained": calibrated(0, 4.0), "$T$ = 2": calibrated(0, 2.0)}
    figure = plot_reliability(found)
    upper, lower = figure.axes
    assert list(upper.lines[0].get_xdata()) == list(upper.lines[0].get_ydata()) == [0, 100]
    assert len(upper.containers) == 2
    for curve, one in zip(upper.containers, found.values(), strict=True):
        line, _, (bars,) = curve
        full = [b for b in one.bins if b.count]
        assert len(full) > 3
        assert list(line.get_xdata()) == pytest.approx([100 * b.confidence for b in full])
        assert list(line.get_ydata()) == pytest.approx([100 * b.accuracy for b in full])
        ends = [wilson_interval(round(b.accuracy * b.count), b.count) for b in full]
        assert np.allclose([bar[:, 1] for bar in bars.get_segments()], 100 * np.array(ends))
    heights = [bar.get_height() for bar in lower.patches]
    assert heights == [b.count for one in found.values() for b in one.bins if b.count]
    for bar, b in zip(
        lower.patches, [b for o in found.values() for b in o.bins if b.count], strict=True
    ):
        assert 100 * b.low < bar.get_x() < bar.get_x() + bar.get_width() < 100 * b.high
    eces = [f"{one.ece:.3f}" for one in found.values()]
    assert in_legend(figure) == [
        "as it says",
        f"as trained (ECE {eces[0]})",
        f"$T$ = 2 (ECE {eces[1]})",
    ]


@pytest.mark.parametrize("sharpness", [0.2, 2.0, 40.0])
@pytest.mark.parametrize("K", [2, 10])
def test_reliability_can_be_read(sharpness, K):
    figure = plot_reliability(
        {"as trained": calibrated(1, sharpness, K), "other": calibrated(2, 1, K)}
    )
    assert can_be_read(figure)
    tallest = max(bar.get_height() for bar in figure.axes[1].patches)
    assert figure.axes[1].get_ylim()[1] > tallest


def test_nothing_to_be_reliable_about():
    with pytest.raises(DataError, match="nothing to draw"):
        plot_reliability({})


# --- what a threshold costs ---

SHARES = np.array([0.9, 0.8, 0.7, 0.7, 0.3, 0.2, 0.1])
IS_IT = np.array([1, 0, 1, 0, 1, 0, 0]).astype(bool)  # good: 0.8 0.7 0.2 0.1


def test_every_threshold():
    axes = plot_trade(SHARES, IS_IT, "spam").axes[0]
    (curve,) = axes.lines
    points = list(zip(curve.get_xdata(), curve.get_ydata(), strict=True))
    expected = [(0, 0), (0, 1), (1, 1), (2, 2), (2, 3), (3, 3), (4, 3)]  # of 4 and of 3
    assert points == [pytest.approx((250 * lost, 100 * hit / 3)) for lost, hit in expected]
    assert curve.get_drawstyle() == "steps-post"
    assert axes.get_xlabel() == "lost of 1,000 others (one of the 4 texts here is 250)"
    assert axes.get_ylabel() == "spam caught (%)"


def test_chosen_ones_are_marked_once():
    one = at_threshold(SHARES, IS_IT, "spam", 0.75)
    chosen = [replace(one, allowed_per_1000=asked) for asked in (0.0, 5.0)]
    never = at_threshold(SHARES, IS_IT, "spam", NEVER)
    axes = plot_trade(SHARES, IS_IT, "spam", [*chosen, never]).axes[0]
    first, second = axes.containers
    line, _, (bar,) = first
    assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx((250, 100 / 3))
    assert bar.get_segments()[0][:, 0] == pytest.approx([250, 1000 * one.false_positive_rate_bound])
    assert (second[0].get_xdata()[0], second[0].get_ydata()[0]) == (0, 0)
    assert in_legend(axes) == [
        "every threshold",
        "to lose at most 0, 5 of 1,000: p ≥ 0.7500",
        "never",
    ]


@pytest.mark.parametrize("N", [20, 300, 5000])
def test_the_trade_can_be_read(N):
    rng = np.random.default_rng(N)
    is_it = rng.random(N) < 0.3
    shares = np.where(is_it, rng.beta(4, 1, N), rng.beta(1, 4, N))
    chosen = [at_threshold(shares, is_it, "s", t) for t in (0.5, 0.8, 0.9, 0.99)]
    figure = plot_trade(shares, is_it, "a label of more than twenty characters", chosen)
    assert can_be_read(figure)


@pytest.mark.parametrize("is_it", [np.zeros(7, dtype=bool), np.ones(7, dtype=bool)])
def test_one_sided(is_it):
    with pytest.raises(DataError, match="one of each is needed"):
        plot_trade(SHARES, is_it, "spam")


def test_dollars_are_no_formula(tmp_path):
    """Written as one, this would be an error."""
    bad = r"$\none$"
    figures = [
        plot_scores([bad], [0.5], [None], reference=0, others=[0.5], others_name=bad, unit=bad),
        plot_reliability({bad: calibrated(3, 2.0)}),
        plot_trade(SHARES, IS_IT, bad, [at_threshold(SHARES, IS_IT, bad, 0.75)]),
    ]
    for n, figure in enumerate(figures):
        save_picture(figure, tmp_path / f"{n}.png")
        assert any(bad in text.get_text() for text in figure.findobj(Text))
