"""Helpers for the chapters: choose a model, show source code and pictures.

A chapter runs as a script or as a notebook. A notebook displays the last expression of each cell. In
a script, source code is printed and a picture is saved to a file.
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

PICTURES = Path("runs/course")  # folder to which a script saves its pictures
DPI = 100


def setting(model: str = "mini") -> tuple[str, str]:
    """Return the model and data set of a chapter: ("mini", "hard"), or e.g. ("124M", "sms").

    The environment variable GPT2_FROM_SCRATCH_COURSE overrides `model`. Raises UsageError if the
    model is neither "mini" nor one of OpenAI's sizes.
    """
    model = known_name(os.environ.get("GPT2_FROM_SCRATCH_COURSE") or model)
    if model not in ("mini", *SIZES):
        raise UsageError(f"the course runs on mini, {', '.join(SIZES)}; not on {model!r}")
    return model, "hard" if model == "mini" else "sms"


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
    """Show a figure in a notebook, or save it in a script.

    The file is `runs/course/NAME.png`.
    """
    if not in_notebook():
        from gpt2_from_scratch.reports.plots import save_picture

        path = PICTURES / f"{name}.png"
        save_picture(figure, path)
        print(f"picture: {path}")
    return Picture(figure, name)


@dataclass(frozen=True, repr=False)
class Source:
    """Source code that a notebook shows with syntax colours."""

    code: str

    def __repr__(self) -> str:
        return self.code.split("\n", 1)[0]

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}```"


@dataclass(frozen=True, repr=False)
class Picture:
    """A figure that a notebook shows as an image."""

    figure: "Figure"
    name: str

    def __repr__(self) -> str:
        return f"picture: {self.name}"

    def _repr_png_(self) -> bytes:
        """Return the figure as PNG, without metadata such as matplotlib's version."""
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        return file.getvalue()


def in_notebook() -> bool:
    """Return whether this code runs in a notebook.

    A notebook displays the last expression of a cell. IPython in a terminal does not count,
    because it can display neither pictures nor Markdown.
    """
    shell = getattr(builtins, "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")
