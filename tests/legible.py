"""Checks that a picture is legible at the size at which a notebook shows it."""

from functools import lru_cache

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from gpt2_from_scratch.reports.plots import SMALL


@lru_cache(maxsize=2)  # the layout of a picture takes some time
def words(figure: Figure) -> list[tuple[Text, Bbox]]:
    """All drawn texts, with their places in pixels."""
    figure.draw_without_rendering()
    hidden = set[int]()  # labels of ticks that are outside the view or drawn by a neighbour
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not (axes.axison and low <= tick.get_loc() <= high):
                    hidden |= {id(tick.label1), id(tick.label2)}
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    return [(t, t.get_window_extent()) for t in texts if id(t) not in hidden]


def nothing_small(figure: Figure) -> bool:
    """Whether no text is smaller than SMALL."""
    return all(text.get_fontsize() >= SMALL for text, _ in words(figure))


def nothing_leaves(figure: Figure) -> bool:
    """Whether no text is cut off at the edge, and the picture fits into a notebook."""
    width, height = figure.get_size_inches() * figure.dpi
    inside = all(
        box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        for _, box in words(figure)
    )
    return inside and 700 <= width <= 951


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that overlap by more than two pixels."""
    found = words(figure)
    return [
        (one.get_text(), other.get_text())
        for n, (one, a) in enumerate(found)
        for other, b in found[:n]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 2 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2
    ]
