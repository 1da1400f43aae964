"""Plots of probes: one curve per norm, one panel per pooling."""

import numpy as np
import pytest
from legible import nothing_leaves, nothing_small, overlapping
from matplotlib.colors import to_rgb

from gpt2_from_scratch.classifier.settings import POOLINGS, Pooling
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.reports.plots import BLUE, VERMILION
from gpt2_from_scratch.studies.probes import Probe, plot_probes


def probed(layers: int, *poolings: Pooling) -> list[Probe]:
    """Accuracy rises with depth, and is higher after the final norm."""
    return [
        Probe(
            n, norm, p, 0.1, 99, 1.0, 0.8, n + norm + 7, 60, wilson_interval(n + norm + 7, 60), 0.4
        )
        for p in poolings
        for norm in (False, True)
        for n in range(layers)
    ]


def test_probes_have_a_curve_per_norm_and_a_panel_per_pooling():
    figure = plot_probes(probed(4, "mean", "last_token"))
    assert [axes.get_title() for axes in figure.axes] == ["mean", "last token"]
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
    names = {"always predicting the most common label", "raw", "final-normed"}
    assert {text.get_text() for text in legend.get_texts()} == names


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("layers", [2, 13, 49])
def test_probes_can_be_read_at_a_notebook_s_size(count, layers):
    figure = plot_probes(probed(layers, *POOLINGS[:count]))
    assert nothing_leaves(figure) and nothing_small(figure) and not overlapping(figure)


def test_no_probes():
    with pytest.raises(DataError, match="no probes"):
        plot_probes([])
