"""One HTML page a person can open and send: text, tables and pictures, all in one file.

The page asks no one for anything: no scripts, no fonts or styles from elsewhere, pictures inside;
its Content-Security-Policy holds browsers to that. Texts come out as text, whatever is in them.
The layout is in `page.html`.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, StrictUndefined, Template
from matplotlib.figure import Figure

from gpt2_from_scratch.data.messages import CONTROL, REPLACEMENT, on_one_line, without_halves
from gpt2_from_scratch.storage.files import write_text


def escape(text: str) -> str:
    """The text on one line, of which Markdown and HTML take nothing for theirs."""
    return BEGINNING.sub(r"\1\\\2", MARKDOWN.sub(r"\\\1", on_one_line(text)))


MARKDOWN = re.compile(r"([\\`*_\[\]<>|~$&@]|(?<=\bwww)\.|:(?=//))")  # the last three make links


BEGINNING = re.compile(r"^(\d*)([#+\-.)])(?=[\s#+\-]|$)")  # of a heading, a list, a rule


TEMPLATE = Path(__file__).with_name("page.html")
DPI = 96  # of a page: a figure of 9 inches is 864 pixels wide there
SHARPNESS = 2  # pixels of a picture a pixel of the page, for screens that have them
NARROWEST = 460  # pixels: on a phone a wide picture scrolls rather than shrinks below this
AT_ONCE = 300  # characters of a text that are shown before one asks for the rest


@dataclass(frozen=True)
class Text:
    """A paragraph; its line ends are kept."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; those from column `numeric` on stand at the right.

    Columns without any name have no line of their own.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: int = 1


@dataclass(frozen=True)
class Preformatted:
    """Lines in letters of one width, each space as it is."""

    kind: ClassVar[str] = "preformatted"
    text: str


@dataclass(frozen=True)
class Picture:
    """A figure, and what it shows in words for who cannot see it."""

    kind: ClassVar[str] = "picture"
    figure: Figure
    alt: str


@dataclass(frozen=True)
class Texts:
    """Texts with what they are and what was said of them: (text, true, predicted, probability).

    Of a long text the beginning is shown; a click shows the rest.
    """

    kind: ClassVar[str] = "texts"
    rows: Sequence[tuple[str, str, str, float]]


Part = Text | Table | Preformatted | Picture | Texts


@dataclass(frozen=True)
class Section:
    """Parts under a heading."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """What stands on a page, from the top: the summary a paragraph a line, then the warnings."""

    title: str
    summary: list[str]
    warnings: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


def write_page(path: Path, page: Page) -> None:
    """Write the page as one .html file, atomically; equal pages give equal bytes."""
    write_text(path, render(page))


def render(page: Page) -> str:
    """The page as HTML.

    What HTML cannot hold (control characters, lone surrogates) becomes U+FFFD; a carriage return
    becomes the line end that browsers would make of it.
    """
    return _template().render(page=page)


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "address": _address,
        "pixels": _pixels,
        "parted": _parted,
        "percent": _percent,
    }
    environment.globals["NARROWEST"] = NARROWEST
    return environment.from_string(TEMPLATE.read_text("utf-8"))


def _printable(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = without_halves(value).replace("\r\n", "\n").replace("\r", "\n")
    return CONTROL.sub(REPLACEMENT, text)


def _address(figure: Figure) -> str:
    """The figure as a data: address of a PNG on white."""
    file = BytesIO()
    # by default matplotlib writes its version into the file
    figure.savefig(
        file, format="png", dpi=SHARPNESS * DPI, facecolor="white", metadata={"Software": None}
    )
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _pixels(figure: Figure) -> tuple[int, int]:
    """Width and height on the page, so that nothing moves while it loads."""
    width, height = figure.get_size_inches()
    return round(width * DPI), round(height * DPI)


def _parted(text: str) -> tuple[str, str]:
    """What is shown at once, cut at a space if there is one, and the rest of it."""
    if len(text) <= AT_ONCE + AT_ONCE // 4:  # a rest of a few words is not worth a click
        return text, ""
    cut = text.rfind(" ", AT_ONCE // 2, AT_ONCE) + 1 or AT_ONCE
    return text[:cut], text[cut:]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
