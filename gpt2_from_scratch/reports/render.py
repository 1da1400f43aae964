"""Render findings with the templates: HTML pages and Markdown cards.

A page loads nothing from the network. It has no scripts, it contains its styles, and its pictures
are embedded. Its Content-Security-Policy makes browsers enforce this. Every value is escaped.
"""

import base64
import re
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from gpt2_from_scratch.data.messages import on_one_line, without_halves
from gpt2_from_scratch.evaluation.calibration import format_threshold
from gpt2_from_scratch.evaluation.metrics import MOST_CLASSES
from gpt2_from_scratch.evaluation.significance import format_p
from gpt2_from_scratch.explain.tokens import Explanation
from gpt2_from_scratch.progress import visible
from gpt2_from_scratch.reports.findings import (
    ALPHA,
    RunFacts,
    between,
    file_name,
    percent,
    run_findings,
)
from gpt2_from_scratch.reports.plots import (
    plot_confusion,
    plot_epochs,
    plot_reliability,
    plot_scores,
    plot_trade,
    save_picture,
)
from gpt2_from_scratch.reports.study_findings import MOST_MISTAKES, StudyFacts, study_findings
from gpt2_from_scratch.storage.files import write_text
from gpt2_from_scratch.storage.paths import HUB, expanded

DPI = 96  # pixels per inch on a page: a figure of 9 inches is 864 pixels wide
SHARPNESS = 2  # pixels of a picture per pixel of the page, for high-resolution screens
NARROWEST = 460  # pixels; on a phone, a picture scrolls instead of becoming narrower
AT_ONCE = 300  # characters of a text shown before a click

# the last three would make links
MARKDOWN = re.compile(r"([\\`*_\[\]<>|~$&@]|(?<=\bwww)\.|:(?=//))")
# the beginning of a heading, a list or a rule
BEGINNING = re.compile(r"^(\d*)([#+\-.)])(?=[\s#+\-]|$)")


def write_run_report(facts: RunFacts, folder: str | Path, curves: Figure | None = None) -> None:
    """Write report.html, model_card.md and curves.png into a run's folder.

    If `curves` is None, the curves are drawn from the history. The same facts give the same bytes.
    """
    folder = expanded(folder)
    curves = curves or plot_epochs(facts.history, facts.scores.measure)
    save_picture(curves, folder / "curves.png")
    found = run_findings(facts)
    page = render("run.html", **found, curves=curves, **run_pictures(found))
    write_text(folder / "report.html", page)
    write_text(folder / "model_card.md", render("model_card.md", **found))


def write_study_report(facts: StudyFacts, folder: str | Path, name: str = "scoreboard") -> None:
    """Write the page NAME.html, and the picture of all scores, NAME.png, into a folder."""
    folder = expanded(folder)
    rows = facts.rows
    picture = plot_scores(
        [row.name for row in rows],
        [row.accuracy for row in rows],
        [row.interval for row in rows],
        reference=[row.name for row in rows].index(facts.reference),
        others=[row.published for row in rows],
        others_name=facts.published_in,
    )
    save_picture(picture, folder / f"{name}.png")
    found = study_findings(facts)
    calibrations = found["calibrations"]
    reliability = plot_reliability(calibrations) if calibrations else None
    page = render("study.html", **found, scores=picture, reliability=reliability)
    write_text(folder / f"{name}.html", page)


def write_explanations(
    explained: Sequence[tuple[Explanation, Sequence[tuple[str, float]]]], path: str | Path
) -> None:
    """Write a page that shows explanations, each with the answer after each token.

    `explained` has the explanation of each text and the pairs of `tokens.after_each_token`. All
    explanations use the same method.
    """
    write_text(expanded(path), render("explanation.html", explained=explained))


def render(template: str, **findings: Any) -> str:
    """Fill a template, .html or .md, with the findings, and return the page.

    Every value that the template prints is escaped for its format. Control characters and
    characters that change the text direction are shown as escapes, and lone surrogates as U+FFFD. A
    carriage return becomes a line end, as in browsers.
    """
    return environment(Path(template).suffix).get_template(template).render(**findings)


def escape_markdown(text: str) -> str:
    """Write a text on one line, escaped so that Markdown and HTML see no markup in it."""
    return BEGINNING.sub(r"\1\\\2", MARKDOWN.sub(r"\\\1", on_one_line(text)))


@cache
def environment(suffix: str) -> Environment:
    """Return the jinja2 environment of a format; every value that it prints is escaped for it."""
    made = Environment(
        loader=PackageLoader("gpt2_from_scratch.reports"),
        undefined=StrictUndefined,
        autoescape=suffix == ".html",
        finalize=_in_markdown if suffix == ".md" else _in_html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "between": between,
        "count": lambda n: f"{n:,}",
        "fenced": _fenced,
        "file_name": file_name,
        "four_digits": lambda value: "–" if value is None else f"{value:.4f}",
        "image": _image,
        "one_line": lambda value: on_one_line(str(value)),
        "p": lambda p: format_p(p).removeprefix("p ").removeprefix("= "),
        "parted": _parted,
        "percent": percent,
        "points": lambda difference, digits=1: f"{100 * difference:+.{digits}f}",
        "signed": lambda value: f"{value:+z.3f}",  # z: never "-0.000"
        "threshold": format_threshold,
    }
    made.globals |= {
        "ALPHA": ALPHA,
        "HUB": HUB,
        "MOST_MISTAKES": MOST_MISTAKES,
        "NARROWEST": NARROWEST,
    }
    return made


def _in_html(value: object) -> object:
    """Prepare a value for HTML. jinja2 then escapes the result, unless it is already markup."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return visible(without_halves(value).replace("\r\n", "\n").replace("\r", "\n"))


def _in_markdown(value: object) -> object:
    """A value as Markdown text, unless the template marks it as `safe`."""
    return value if hasattr(value, "__html__") else escape_markdown(str(value))


def _fenced(text: str, language: str = "") -> str:
    """A Markdown code block; its fences are longer than any run of backticks in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{visible(text)}\n{fence}"


def run_pictures(found: dict[str, Any]) -> dict[str, Figure | None]:
    """Draw the pictures of a run's page except its curves; None for those that do not apply."""
    facts: RunFacts = found["facts"]
    ranked = found["ranked"]
    confusion = trade = None
    if facts.classified and len(facts.classified.classes) <= MOST_CLASSES:
        confusion = plot_confusion(facts.classified)
    thresholds = facts.assessment.thresholds if facts.assessment else []
    if facts.predictions and thresholds and thresholds[0].negatives and thresholds[0].positives:
        label = thresholds[0].label
        trade = plot_trade(*facts.predictions.one_class(label), label, thresholds)
    return {
        "confusion": confusion,
        "accuracies": plot_scores(
            [name for name, _, _ in ranked],
            [scores.accuracy for _, scores, _ in ranked],
            [scores.interval for _, scores, _ in ranked],
            reference=[paired for _, _, paired in ranked].index(None),
        )
        if ranked
        else None,
        "reliability": plot_reliability(found["calibrations"]) if found["calibrations"] else None,
        "trade": trade,
    }


def _image(figure: Figure) -> tuple[str, int, int]:
    """The figure as the data: URL of a PNG on white, and its width and height on the page."""
    file = BytesIO()
    # leave out matplotlib's version, which it writes by default
    figure.savefig(
        file, format="png", dpi=SHARPNESS * DPI, facecolor="white", metadata={"Software": None}
    )
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    width, height = figure.get_size_inches()  # known sizes keep the page from moving while it loads
    return address, round(width * DPI), round(height * DPI)


def _parted(text: str) -> tuple[str, str]:
    """Split a text into the part that is shown at once and the rest, if possible at a space."""
    if len(text) <= AT_ONCE + AT_ONCE // 4:  # a few more words are not worth a click
        return text, ""
    cut = text.rfind(" ", AT_ONCE // 2, AT_ONCE) + 1 or AT_ONCE
    return text[:cut], text[cut:]
