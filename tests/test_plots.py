"""Pictures are written whole, in the size asked for, and there is something on them."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from gpt2_from_scratch.plots import TRAIN, VAL, plot_pretraining, plot_training, save_picture

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


def test_a_picture_that_cannot_be_drawn_leaves_the_old(tmp_path):
    path = tmp_path / "curves.png"
    figure = plot_training([1, 2, 3], LOSSES, ACCURACIES)
    save_picture(figure, path)
    before = path.read_bytes()
    figure.axes[0].set_title("$\\no_such_formula$")
    with pytest.raises(ValueError):
        save_picture(figure, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
