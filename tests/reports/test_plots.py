"""Plots show what they were given, are legible, and are written completely in the right size."""

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from legible import nothing_leaves, nothing_small, overlapping
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from gpt2_from_scratch.classifier.train import Epoch
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.calibration import NEVER, at_threshold, calibration
from gpt2_from_scratch.evaluation.metrics import evaluate_predictions, wilson_interval
from gpt2_from_scratch.reports.plots import (
    BLUE,
    ORANGE,
    PALETTE,
    TRAIN,
    VAL,
    VERMILION,
    plot_confusion,
    plot_epochs,
    plot_pretraining,
    plot_reliability,
    plot_scores,
    plot_seconds,
    plot_trade,
    plot_training,
    save_picture,
    shown,
    shown_token,
)

LOSSES = ([0.69, 0.4, 0.2], [0.69, 0.5, 0.4])
ACCURACIES = ([0.5, 0.8, 0.95], [0.5, 0.75, 0.9])


def pixels_of(image: np.ndarray, colour: str) -> int:
    """The number of pixels with exactly this colour."""
    return int((np.abs(image[..., :3] - to_rgb(colour)).max(-1) < 0.02).sum())


def read(path: Path, width: int, height: int) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = matplotlib.image.imread(path)
    assert image.shape[:2] == (height, width)
    return image


def test_two_panels_of_two_curves(tmp_path):
    path = tmp_path / "new" / "curves.png"
    save_picture(plot_training([1, 2, 3], LOSSES, ACCURACIES), path)
    image = read(path, 1080, 432)  # 9 by 3.6 inches at 120 dots per inch
    assert image.std() > 0.05
    for half in (image[:, :540], image[:, 540:]):
        assert pixels_of(half, TRAIN) > 200 and pixels_of(half, VAL) > 200
    assert list(path.parent.iterdir()) == [path]


def test_losses_and_accuracies_of_other_lengths(tmp_path):
    """The lecture computes the loss every 50 steps, but the accuracy once per epoch."""
    losses = ([0.7, 0.6, 0.5, 0.4], [0.7, 0.65, 0.6, 0.55])
    left, right = plot_training([0, 50, 100, 150], losses, ACCURACIES, step_name="step").axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("step", "epoch")
    assert list(left.lines[0].get_xdata()) == [0, 50, 100, 150]
    assert list(right.lines[1].get_xdata()) == [1, 2, 3]
    assert list(right.lines[1].get_ydata()) == [50, 75, 90]


@pytest.mark.parametrize("epochs", [1, 40])
def test_few_and_many_epochs(tmp_path, epochs):
    curve = list(np.linspace(0.9, 0.1, epochs))
    figure = plot_training(range(1, epochs + 1), (curve, curve), (curve, curve))
    save_picture(figure, tmp_path / "a.png")
    read(tmp_path / "a.png", 1080, 432)


@pytest.mark.slow
def test_other_numbers_other_picture_same_numbers_same_picture(tmp_path):
    for name, losses in (("a", LOSSES), ("b", LOSSES), ("c", (LOSSES[1], LOSSES[0]))):
        save_picture(plot_training([1, 2, 3], losses, ACCURACIES), tmp_path / f"{name}.png")
    a, b, c = (read(tmp_path / f"{name}.png", 1080, 432) for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert np.array_equal(a[:, 560:], c[:, 560:])  # the accuracies are the same


def test_the_kept_epoch_is_marked():
    """The best validation score is that of epoch 2; one epoch alone needs no mark."""
    scores = [0.5, 0.8, 0.7]
    history = [Epoch(n + 1, 0.7, score, 0.6, score) for n, score in enumerate(scores)]
    for axes in plot_epochs(history).axes:
        assert list(axes.lines[2].get_xdata()) == [2, 2]
        assert axes.lines[2].get_label() == "kept epoch"
    assert all(len(axes.lines) == 2 for axes in plot_epochs(history[:1]).axes)


def test_pretraining(tmp_path):
    tokens, bits = [1e6, 2e6, 4e6], [2.2, 1.9, 1.7]
    save_picture(plot_pretraining(tokens, bits, {}), tmp_path / "plain.png")
    save_picture(plot_pretraining(tokens, bits, {"gzip": 3.0, "xz": 2.5}), tmp_path / "lines.png")
    plain, lines = (read(tmp_path / name, 840, 480) for name in ("plain.png", "lines.png"))
    assert pixels_of(plain, TRAIN) > 100 and pixels_of(lines, TRAIN) > 100
    assert pixels_of(plain, VAL) == 0 and pixels_of(lines, VAL) > 300


def test_axes_in_units_that_can_be_read():
    ticks = plot_training([1, 2, 3], LOSSES, ACCURACIES).axes[0].get_xticks()
    assert all(tick == round(tick) for tick in ticks), "there is no half an epoch"
    small = plot_pretraining([0, 20_000, 120_000], [4.3, 3.5, 2.8], {}).axes[0]
    assert small.get_xlabel() == "tokens seen (thousands)"
    assert small.lines[0].get_xdata() == pytest.approx([0, 20, 120])


def test_a_picture_that_cannot_be_drawn_leaves_the_old(tmp_path):
    path = tmp_path / "curves.png"
    figure = plot_training([1, 2, 3], LOSSES, ACCURACIES)
    save_picture(figure, path)
    before = path.read_bytes()
    figure.axes[0].set_title("$\\no_such_formula$")
    with pytest.raises(ValueError):
        save_picture(figure, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_picture_has_no_trace_of_who_drew_it(tmp_path):
    """The bytes stay when matplotlib's version changes, as long as the pixels do."""
    save_picture(plot_training([1, 2, 3], LOSSES, ACCURACIES), tmp_path / "a.png")
    assert b"matplotlib" not in (tmp_path / "a.png").read_bytes().lower()


# --- confusion ---


def scored(confusion: list[list[int]], labels: list[str]):
    cells = [(t, p) for t, row in enumerate(confusion) for p, n in enumerate(row) for _ in range(n)]
    true, predicted = np.array(cells).T
    return evaluate_predictions(true, predicted, labels)


def test_confusion_cells_hold_the_counts_and_the_shares_of_their_row():
    counts = [[50, 10, 0], [3, 40, 1], [0, 0, 0]]
    axes = plot_confusion(scored(counts, ["ham", "x_1", "no_one"])).axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {
        (0, 0): "50\n83.3%",
        (1, 0): "10\n16.7%",
        (2, 0): "0\n0.0%",
        (0, 1): "3\n6.8%",
        (1, 1): "40\n90.9%",
        (2, 1): "1\n2.3%",
        (0, 2): "0\n–",
        (1, 2): "0\n–",
        (2, 2): "0\n–",
    }
    assert np.allclose(axes.images[0].get_array()[1], [3 / 44, 40 / 44, 1 / 44])
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["ham", "x_1", "no_one"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted label", "true label")
    assert axes.get_title().startswith("Confusion matrix: 90 of 104 correct (86.5%)")


@pytest.mark.slow
def test_confusion_of_many_long_labels():
    labels = [f"a label of more than twenty characters {k}" for k in range(13)]
    for K, first in ((10, "5\n100.0%"), (13, "5")):
        figure = plot_confusion(scored((5 * np.eye(K, dtype=int)).tolist(), labels[:K]))
        assert figure.axes[0].texts[0].get_text() == first
        assert nothing_leaves(figure) and nothing_small(figure)
        ticks = figure.axes[0].get_yticklabels()
        assert {len(label.get_text()) for label in ticks} == {20}


@pytest.mark.parametrize("K", [21, 150])
def test_confusion_of_very_many_labels(K):
    figure = plot_confusion(scored(np.eye(K, dtype=int).tolist(), [f"label {k}" for k in range(K)]))
    axes = figure.axes[0]
    assert not axes.texts and len(axes.get_yticklabels()) <= 60
    assert nothing_leaves(figure) and nothing_small(figure)


def test_white_on_dark_and_black_on_light():
    axes = plot_confusion(scored([[9, 1], [4, 6]], ["a", "b"])).axes[0]
    assert [text.get_color() for text in axes.texts] == ["white", "black", "black", "white"]


# --- where the time goes ---

BARS = {"plain": {"steps": 90.0, "looks": 10.0}, "ours_x_1": {"once": 3.0, "steps": 1.0}}


def test_seconds_are_stacked_in_the_order_given():
    figure = plot_seconds(BARS)
    axes = figure.axes[0]
    bars = {
        (round(bar.get_y() + bar.get_height() / 2), bar.get_facecolor()[:3]): bar
        for bar in axes.patches
    }
    steps, looks, once = map(to_rgb, PALETTE[:3])
    found = {key: (bar.get_x(), bar.get_width()) for key, bar in bars.items()}
    assert found == {
        (0, steps): (0, 90),
        (0, looks): (90, 10),
        (1, steps): (0, 1),
        (1, once): (1, 3),
    }
    assert [bar.get_linewidth() for bar in axes.patches] == [1.5] * 4  # seen even if thin
    assert [text.get_text() for text in axes.texts] == [
        "100 seconds",
        "4.00 seconds  (25 times less)",
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "ours_x_1"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    assert (axes.get_title(), axes.get_xlabel()) == ("Where the time goes", "seconds")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["steps", "looks", "once"]
    assert [to_rgb(patch.get_facecolor()) for patch in legend.get_patches()] == [steps, looks, once]


def test_a_tiny_bar_is_visible(tmp_path):
    save_picture(plot_seconds({"a": {"long": 1e5}, "b": {"short": 1e-3}}), tmp_path / "a.png")
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert pixels_of(image[:, : image.shape[1] // 4], PALETTE[1]) > 20


@pytest.mark.parametrize(
    ("amount", "total", "axis"),
    [
        (0.0, "0 adds", "adds"),
        (0.0123, "0.0123 adds", "adds"),
        (12.34, "12.3 adds", "adds"),
        (98765, "98,765 adds", "adds"),
        (4.731e6, "4.73 million", "million adds"),
        (2e10, "20.0 billion", "billion adds"),
        (7e14, "700 trillion", "trillion adds"),
    ],
)
def test_amounts_of_every_size(amount, total, axis):
    axes = plot_seconds({"a": {"x": amount}}, unit="adds", title="Work").axes[0]
    assert axes.texts[0].get_text() == total
    assert (axes.get_title(), axes.get_xlabel()) == ("Work", axis)


def test_more_parts_than_colours():
    figure = plot_seconds({"a": {f"part {n}": 1.0 for n in range(9)}})
    looks = [(bar.get_facecolor(), bar.get_hatch()) for bar in figure.axes[0].patches]
    assert len(set(looks)) == 9
    assert nothing_leaves(figure) and nothing_small(figure)


@pytest.mark.parametrize("seconds", [{}, {"a": {}}, {"a": {"x": -1.0}}, {"a": {"x": float("nan")}}])
def test_invalid_seconds(seconds):
    with pytest.raises(DataError, match="nothing to draw|number from 0 up"):
        plot_seconds(seconds)


# --- scores with intervals ---

NAMES = ["GPT-2 124M, last block", r"one regex: \d{4,}|£|x_1", "_length alone"]
VALUES = [0.97, 0.9, 0.805]
INTERVALS = [(0.944, 0.984), (0.861, 0.929), None]


def can_be_read(figure: Figure) -> bool:
    return nothing_leaves(figure) and nothing_small(figure) and not overlapping(figure)


def in_legend(owner: Figure | Axes) -> list[str]:
    legends = owner.legends if isinstance(owner, Figure) else [owner.get_legend()]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_a_dot_and_a_line_per_row():
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
    reported = [t.get_text() for t in numbers.get_yticklabels()]
    assert reported == ["97.0  (94.4 to 98.4)", "90.0  (86.1 to 92.9)", "80.5"]
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


@pytest.mark.slow
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
    with pytest.raises(DataError, match="one length"):
        plot_scores(names, values, intervals, reference=None, others=others)


# --- reliability ---


def calibrated(seed: int, sharpness: float, K: int = 2):
    rng = np.random.default_rng(seed)
    true = rng.integers(K, size=300)
    p = np.exp(sharpness * (rng.normal(size=(300, K)) + 2 * np.eye(K)[true]))
    return calibration(p / p.sum(axis=1, keepdims=True), true)


def test_reliability_is_the_bins():
    found = {"as trained": calibrated(0, 4.0), "T = 2": calibrated(0, 2.0)}
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
        "perfectly calibrated",
        f"as trained (ECE {eces[0]})",
        f"T = 2 (ECE {eces[1]})",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [0.2, 2.0, 40.0])
@pytest.mark.parametrize("K", [2, 10])
def test_reliability_can_be_read(sharpness, K):
    figure = plot_reliability(
        {"as trained": calibrated(1, sharpness, K), "other": calibrated(2, 1, K)}
    )
    assert can_be_read(figure)
    tallest = max(bar.get_height() for bar in figure.axes[1].patches)
    assert figure.axes[1].get_ylim()[1] > tallest


def test_reliability_needs_texts():
    with pytest.raises(DataError, match="nothing to draw"):
        plot_reliability({})


# --- what a threshold costs ---

PROBABILITIES = np.array([0.9, 0.8, 0.7, 0.7, 0.3, 0.2, 0.1])
IS_IT = np.array([1, 0, 1, 0, 1, 0, 0]).astype(bool)  # good: 0.8 0.7 0.2 0.1


def test_every_threshold():
    axes = plot_trade(PROBABILITIES, IS_IT, "spam").axes[0]
    (curve,) = axes.lines
    points = list(zip(curve.get_xdata(), curve.get_ydata(), strict=True))
    expected = [(0, 0), (0, 1), (1, 1), (2, 2), (2, 3), (3, 3), (4, 3)]  # of 4 and of 3
    assert points == [pytest.approx((250 * lost, 100 * hit / 3)) for lost, hit in expected]
    assert curve.get_drawstyle() == "steps-post"
    assert (
        axes.get_xlabel()
        == "false positives per 1,000 other texts (one of the 4 texts here is 250)"
    )
    assert "spam" in axes.get_title() and axes.get_ylabel() == "true positives (%)"


def test_chosen_ones_are_marked_once():
    one = at_threshold(PROBABILITIES, IS_IT, "spam", 0.75)
    chosen = [replace(one, allowed_per_1000=allowed) for allowed in (0.0, 5.0)]
    never = at_threshold(PROBABILITIES, IS_IT, "spam", NEVER)
    axes = plot_trade(PROBABILITIES, IS_IT, "spam", [*chosen, never]).axes[0]
    first, second = axes.containers
    line, _, (bar,) = first
    assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx((250, 100 / 3))
    assert bar.get_segments()[0][:, 0] == pytest.approx([250, 1000 * one.false_positive_rate_bound])
    assert (second[0].get_xdata()[0], second[0].get_ydata()[0]) == (0, 0)
    assert in_legend(axes) == [
        "every threshold",
        "limit 0, 5 of 1,000: p ≥ 0.7500",
        "never",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("N", [20, 300, 5000])
def test_the_trade_can_be_read(N):
    rng = np.random.default_rng(N)
    is_it = rng.random(N) < 0.3
    probabilities = np.where(is_it, rng.beta(4, 1, N), rng.beta(1, 4, N))
    chosen = [at_threshold(probabilities, is_it, "s", t) for t in (0.5, 0.8, 0.9, 0.99)]
    figure = plot_trade(probabilities, is_it, "a label of more than twenty characters", chosen)
    assert can_be_read(figure)


@pytest.mark.parametrize("is_it", [np.zeros(7, dtype=bool), np.ones(7, dtype=bool)])
def test_one_sided(is_it):
    with pytest.raises(DataError, match="one of each is needed"):
        plot_trade(PROBABILITIES, is_it, "spam")


# --- text on pictures ---


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        (" free", "·free"),
        ("\n", "↵"),
        ("\t\r", "⇥↵"),
        ("$x_1$", r"\$x_1\$"),
        ("\x1b[0m", r"\x1b[0m"),
        ("\ud83d", r"\ud83d"),
        ("é中", "é□"),
        ("abcdefghij", "abcdefgh…"),
    ],
)
def test_tokens_are_visible(token, seen):
    assert shown_token(token, 9) == seen


def test_spaces_of_labels_stay():
    assert shown("not spam", 9) == "not spam"


@pytest.mark.slow
def test_dollars_are_not_a_formula(tmp_path):
    """As a formula, `$\\none$` would be an error, and `$x_1$` narrower."""
    bad, mark = r"$\none$", at_threshold(PROBABILITIES, IS_IT, "a", 0.75)
    figures = [
        plot_seconds({bad: {bad: 1.0}}),
        plot_confusion(scored([[9, 1], [4, 6]], [bad, "$x_1$"])),
        plot_scores([bad], [0.5], [None], reference=0, others=[0.5], others_name=bad),
        plot_reliability({bad: calibrated(3, 2.0)}),
        plot_trade(PROBABILITIES, IS_IT, bad, [mark]),
    ]
    for n, figure in enumerate(figures):
        save_picture(figure, tmp_path / f"{n}.png")
        assert any(shown(bad, 44) in text.get_text() for text in figure.findobj(Text))


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in "ab":
        save_picture(plot_seconds(BARS), tmp_path / f"{name}.png")
        save_picture(
            plot_confusion(scored([[9, 1], [4, 6]], ["a", "b"])), tmp_path / f"c{name}.png"
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "ca.png").read_bytes() == (tmp_path / "cb.png").read_bytes()
