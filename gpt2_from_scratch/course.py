"""What the chapters share: their model and data set, and how they show source code and pictures.

A chapter runs as a script or as a notebook. A notebook displays source code and pictures itself; a
script prints the source code and writes the picture to a file.
"""

import builtins
import inspect
import io
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import SIZES
from gpt2_from_scratch.storage.paths import known_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = Path("runs/course")  # where a script writes its pictures
DPI = 100
STEPS = {  # of part I: name: (chapters, column and row on its map, where its arrows lead)
    "message": ("1", (0, 1), ("tokens",)),
    "tokens": ("2", (1, 1), ("network",)),
    "network": ("3, 4", (2, 1), ("head",)),
    "head": ("6", (3, 1), ("last token",)),
    "last token": ("7", (4, 1), ("use", "loss")),
    "use": ("11", (5, 1), ()),
    "weights": ("5", (1, 0), ("network",)),
    "freezing": ("8", (2, 0), ("network",)),
    "finetuning": ("10", (3, 0), ("head", "freezing")),
    "loss": ("9", (4, 0), ("finetuning",)),
}
TRAINING = ("freezing", "finetuning", "loss")


def setting(model: str = "mini") -> tuple[str, str]:
    """(model, data set) of a chapter: ("mini", "sms"), or one of OpenAI's sizes and "sms".

    The environment variable GPT2_FROM_SCRATCH_COURSE replaces `model` if it is set. Raises UsageError
    if the model is neither "mini" nor one of OpenAI's sizes.
    """
    model = known_name(os.environ.get("GPT2_FROM_SCRATCH_COURSE") or model)
    if model not in ("mini", *SIZES):
        raise UsageError(f"the course runs on mini, {', '.join(SIZES)}; not on {model!r}")
    return model, "sms"


def show(*things: type | Callable) -> "Source":
    """Show the package's source code of functions, methods or classes."""
    found = []
    for thing in things:
        place = Path(inspect.getsourcefile(thing) or "").name
        found.append(f"# {place}\n{textwrap.dedent(inspect.getsource(thing))}")
    source = Source("\n\n".join(found))
    if not in_notebook():
        print(source.code)
    return source


def picture(figure: "Figure", name: str) -> "Picture":
    """Show a figure in a notebook; in a script, write it to `runs/course/NAME.png`."""
    if not in_notebook():
        from gpt2_from_scratch.reports.plots import save_picture

        path = PICTURES / f"{name}.png"
        save_picture(figure, path)
        print(f"picture: {path}")
    return Picture(figure, name)


def draw_map() -> "Figure":
    """Draw the steps from a message to an answer, each with its chapter."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.5, 5.5), ylim=(-0.35, 1.35))
    axes.set_title("From a message to an answer (blue), and the training (orange)")
    axes.set_axis_off()
    arrow = {"arrowstyle": "-|>", "color": "#404040", "shrinkA": 30, "shrinkB": 32}
    for name, (chapters, place, following) in STEPS.items():
        for other in following:
            axes.annotate("", STEPS[other][1], place, arrowprops=arrow)
        colour = "#F9DFA8" if name in TRAINING else "#CFE3F1"
        box = {"boxstyle": "round,pad=0.5", "facecolor": colour}
        text = f"{name}\nchapter{'s' if ',' in chapters else ''} {chapters}"
        axes.text(*place, text, ha="center", va="center", fontsize=8.5, bbox=box)
    return figure


@dataclass(frozen=True, repr=False)
class Source:
    """Source code, which a notebook displays with syntax highlighting."""

    code: str

    def __repr__(self) -> str:
        return self.code.split("\n", 1)[0]

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}```"


@dataclass(frozen=True, repr=False)
class Picture:
    """A figure, which a notebook displays."""

    figure: "Figure"
    name: str

    def __repr__(self) -> str:
        return f"picture: {self.name}"

    def _repr_png_(self) -> bytes:
        """The figure as a .png file whose bytes depend only on the figure."""
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        return file.getvalue()


def in_notebook() -> bool:
    """Whether a notebook runs this, which displays the last expression of a cell.

    IPython in a terminal has no kernel, and can display neither pictures nor highlighted source.
    """
    shell = getattr(builtins, "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")
