"""What the chapters share: the model and messages they run on, our source on the page, pictures.

A chapter runs as a script and as a notebook. There the last expression of a cell is shown; here a
source is printed and a picture written to a file.
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

PICTURES = Path("runs/course")  # where a script leaves its pictures
DPI = 100


def setting(model: str = "mini") -> tuple[str, str]:
    """(model, data set) of a chapter: ("mini", "sms"), or one of OpenAI's sizes and "sms".

    $GPT2_FROM_SCRATCH_COURSE, where it is set, takes the place of `model`. Raises UsageError for a
    model that is neither "mini" nor one of OpenAI's sizes.
    """
    model = known_name(os.environ.get("GPT2_FROM_SCRATCH_COURSE") or model)
    if model not in ("mini", *SIZES):
        raise UsageError(f"the course runs on mini, {', '.join(SIZES)}; not on {model!r}")
    return model, "sms"


def show(*things: type | Callable) -> "Source":
    """The source of functions, methods or classes, as the package has it."""
    found = []
    for thing in things:
        place = Path(inspect.getsourcefile(thing) or "").name
        found.append(f"# {place}\n{textwrap.dedent(inspect.getsource(thing))}")
    source = Source("\n\n".join(found))
    if not in_notebook():
        print(source.code)
    return source


def picture(figure: "Figure", name: str) -> "Picture":
    """A figure on the page, or, in a script, as the file `runs/course/NAME.png`."""
    if not in_notebook():
        from gpt2_from_scratch.reports.plots import save_picture

        path = PICTURES / f"{name}.png"
        save_picture(figure, path)
        print(f"picture: {path}")
    return Picture(figure, name)


@dataclass(frozen=True, repr=False)
class Source:
    """Source code as a notebook shows it: coloured."""

    code: str

    def __repr__(self) -> str:
        return self.code.split("\n", 1)[0]

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}```"


@dataclass(frozen=True, repr=False)
class Picture:
    """A figure as a notebook shows it."""

    figure: "Figure"
    name: str

    def __repr__(self) -> str:
        return f"picture: {self.name}"

    def _repr_png_(self) -> bytes:
        """As a .png whose bytes depend on nothing but what is on it."""
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        return file.getvalue()


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this, which shows the last expression of a cell by itself.

    IPython in a terminal has none: it could show neither a picture nor a source.
    """
    shell = getattr(builtins, "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")
