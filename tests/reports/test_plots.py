"""Pictures are written whole, in the size asked for, and what is on them is what was given."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from legible import nothing_leaves, nothing_small, overlapping
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from gpt2_from_scratch.classifier.settings import POOLINGS, Pooling
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import evaluate_predictions, wilson_interval
from gpt2_from_scratch.reports.plots import (
    BLUE,
    PALETTE,
    TRAIN,
    VAL,
    VERMILION,
    plot_confusion,
    plot_pretraining,
    plot_seconds,
    plot_training,
    save_picture,
    shown,
)
from gpt2_from_scratch.studies.probes import Probe, plot_probes

LOSSES = ([0.69, 0.4, 0.2], [0.69, 0.5, 0.4])
ACCURACIES = ([0.5, 0.8, 0.95], [0.5, 0.75, 0.9])


def pixels_of(image: np.ndarray, colour: str) -> int:
    """How many pixels have just this colour."""
    return int((np.abs(image[..., :3] - to_rgb(colour)).max(-1) < 0.02).sum())


def read(path: Path, width: int, height: int) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = matplotlib.image.imread(path)
    assert image.shape[:2] == (height, width)
    return image


def test_two_panels_of_two_curves(tmp_path):
    path = tmp_path / "new" / "curves.png"
    save_picture(plot_training([1, 2, 3], LOSSES, ACCURACIES), path)
    image = read(path, 1080, 432)  # 9 by 3.6 inches of 120 dots
    assert image.std() > 0.05
    for half in (image[:, :540], image[:, 540:]):
        assert pixels_of(half, TRAIN) > 200 and pixels_of(half, VAL) > 200
    assert list(path.parent.iterdir()) == [path]


def test_losses_and_accuracies_of_other_lengths(tmp_path):
    """The lecture looks at the loss every 50 steps, at the accuracy once an epoch."""
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


def test_other_numbers_other_picture_same_numbers_same_picture(tmp_path):
    for name, losses in (("a", LOSSES), ("b", LOSSES), ("c", (LOSSES[1], LOSSES[0]))):
        save_picture(plot_training([1, 2, 3], losses, ACCURACIES), tmp_path / f"{name}.png")
    a, b, c = (read(tmp_path / f"{name}.png", 1080, 432) for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert np.array_equal(a[:, 560:], c[:, 560:])  # the accuracies are the same


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
    axes = plot_confusion(scored(counts, ["ham", "$x_1$", "no_one"])).axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {
        (0, 0): "50\n83.3 %",
        (1, 0): "10\n16.7 %",
        (2, 0): "0\n0.0 %",
        (0, 1): "3\n6.8 %",
        (1, 1): "40\n90.9 %",
        (2, 1): "1\n2.3 %",
        (0, 2): "0\n–",
        (1, 2): "0\n–",
        (2, 2): "0\n–",
    }
    assert np.allclose(axes.images[0].get_array()[1], [3 / 44, 40 / 44, 1 / 44])
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["ham", "$x_1$", "no_one"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted label", "true label")
    assert axes.get_title().startswith("Confusion matrix: 90 of 104 right (86.5 %)")


def test_confusion_of_many_long_labels():
    labels = [f"a label of more than twenty characters {k}" for k in range(13)]
    for K, first in ((10, "5\n100.0 %"), (13, "5")):
        figure = plot_confusion(scored((5 * np.eye(K, dtype=int)).tolist(), labels[:K]))
        assert figure.axes[0].texts[0].get_text() == first
        assert len(figure.axes) == 1 + (K == 13)  # where shares are not written: a colour bar
        assert nothing_leaves(figure) and nothing_small(figure)
        ticks = figure.axes[0].get_yticklabels()
        assert {len(label.get_text()) for label in ticks} == {20}


def test_white_on_dark_and_black_on_light():
    axes = plot_confusion(scored([[9, 1], [4, 6]], ["a", "b"])).axes[0]
    assert [text.get_color() for text in axes.texts] == ["white", "black", "black", "white"]


# --- where the time goes ---

BARS = {"plain": {"steps": 90.0, "looks": 10.0}, "ours_$x$_1": {"_once": 3.0, "steps": 1.0}}


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
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "ours_$x$_1"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    assert (axes.get_title(), axes.get_xlabel()) == ("Where the time goes", "seconds")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["steps", "looks", "_once"]
    assert [to_rgb(patch.get_facecolor()) for patch in legend.get_patches()] == [steps, looks, once]


def test_a_bar_of_next_to_nothing_is_seen(tmp_path):
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
def test_seconds_that_are_none(seconds):
    with pytest.raises(DataError, match="nothing to draw|is no number from 0 up"):
        plot_seconds(seconds)


# --- probes ---


def probed(layers: int, *poolings: Pooling) -> list[Probe]:
    """Right more often the deeper they read, and once more behind the final norm."""
    return [
        Probe(
            n, norm, p, 0.1, 99, 1.0, 0.8, n + norm + 7, 60, wilson_interval(n + norm + 7, 60), 0.4
        )
        for p in poolings
        for norm in (False, True)
        for n in range(layers)
    ]


def test_probes_are_a_curve_a_layer_and_a_panel_a_pooling():
    figure = plot_probes(probed(4, "mean", "last_token"))
    assert [axes.get_title() for axes in figure.axes] == ["mean", "last_token"]
    for axes in figure.axes:
        (raw, normed), (dashed, *_) = axes.containers, axes.lines
        assert list(dashed.get_ydata()) == pytest.approx([40, 40])
        for curve, colour, more in ((raw, BLUE, 0), (normed, VERMILION, 1)):
            line, _, (bars,) = curve
            assert to_rgb(line.get_color()) == to_rgb(colour)
            assert [round(x) for x in line.get_xdata()] == [0, 1, 2, 3]
            right = [7 + n + more for n in range(4)]
            assert list(line.get_ydata()) == pytest.approx([100 * n / 60 for n in right])
            ends = [[100 * bound for bound in wilson_interval(n, 60)] for n in right]
            assert np.allclose([bar[:, 1] for bar in bars.get_segments()], ends)
    (legend,) = figure.legends
    names = {"always the most common label", "raw", "final-normed"}
    assert {text.get_text() for text in legend.get_texts()} == names


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("layers", [2, 13, 49])
def test_probes_can_be_read_at_a_notebook_s_size(count, layers):
    figure = plot_probes(probed(layers, *POOLINGS[:count]))
    assert nothing_leaves(figure) and nothing_small(figure) and not overlapping(figure)


def test_no_probes():
    with pytest.raises(DataError, match="no probes"):
        plot_probes([])


# --- words on pictures ---


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        (" free", "·free"),
        ("\n", "↵"),
        ("\t\r", "⇥\\r"),
        ("$x_1$", "$x_1$"),
        ("\x1b[0m", "\\x1b[0m"),
        ("\ud83d", "\\ud83d"),
        ("\ufffd", "\ufffd"),
        ("é中", "é□"),
        ("abcdefghij", "abcdefgh…"),
    ],
)
def test_tokens_are_visible(token, seen):
    assert shown(token, 9) == seen


def test_spaces_of_labels_stay():
    assert shown("not spam", 9, visible=False) == "not spam"


def test_dollars_are_no_formula(tmp_path):
    """Written as one, `$x_1$` would be narrower, and `$\\none$` an error."""
    for name in ("$x_1$", r"$\none$"):
        figure = plot_seconds({name: {name: 1.0}}, unit=name, title=name)
        save_picture(figure, tmp_path / "a.png")
        assert not any(text.get_parse_math() for text in figure.findobj(Text))


def test_the_same_once_more(tmp_path):
    for name in "ab":
        save_picture(plot_seconds(BARS), tmp_path / f"{name}.png")
        save_picture(
            plot_confusion(scored([[9, 1], [4, 6]], ["a", "b"])), tmp_path / f"c{name}.png"
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "ca.png").read_bytes() == (tmp_path / "cb.png").read_bytes()
