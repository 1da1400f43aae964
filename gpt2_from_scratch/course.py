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
