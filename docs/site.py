"""Collect the pages of the site in `build/docs`: `python docs/site.py`, or `make docs`.

Pages link to files of the repository as usual, for instance to `../chapters/LECTURE.md`. For the
site, each such file is added as `repository/chapters/LECTURE.md` and the links are changed. Markdown
and notebooks become pages, whose own links are followed in the same way; other files are copied. In
a notebook's page the code of its checks is left out.
"""

import os
import re
import shutil
from pathlib import Path, PurePosixPath

from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUT = ROOT / "build" / "docs"
PAGES = (".md", ".ipynb")  # what becomes a page
# [text](target#anchor) or ![text](target)
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def collect(out: Path) -> list[Path]:
    """Write all pages and the files they link to; return the files of the repository in it."""
    waiting = [path for path in sorted(DOCS.rglob("*")) if path.suffix in (".md", ".png")]
    found: list[Path] = []
    while waiting:
        source = waiting.pop(0)
        if source in found:
            continue
        found.append(source)
        page = out / place(source)
        page.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix not in PAGES:
            shutil.copyfile(source, page)
            continue
        text, pictures = read(source)
        page.write_text(with_links_of_the_site(text, source), encoding="utf-8")
        for name, content in pictures.items():
            (page.parent / name).write_bytes(content)
        waiting += targets(text, source)
    return found


def read(source: Path) -> tuple[str, dict[str, bytes]]:
    """The text of a page as Markdown, and the pictures of a notebook by the names that it uses."""
    if source.suffix == ".md":
        return source.read_text(encoding="utf-8"), {}
    settings = Config()
    settings.TagRemovePreprocessor.remove_input_tags = {"hide-input"}
    text, resources = MarkdownExporter(config=settings).from_filename(str(source))
    named = {name: f"{source.stem}-{name}" for name in resources["outputs"]}
    for name, new in named.items():
        text = text.replace(f"]({name})", f"]({new})")
    return text, {named[name]: content for name, content in resources["outputs"].items()}


def place(source: Path) -> PurePosixPath:
    """Where a file of the repository is in the site."""
    inside = source.is_relative_to(DOCS)
    if source.suffix in PAGES:
        source = source.with_suffix(".md")
    return PurePosixPath(
        source.relative_to(DOCS) if inside else Path("repository", source.relative_to(ROOT))
    )


def targets(text: str, source: Path) -> list[Path]:
    """The files of the repository that a page links to."""
    found = (target(link[2], source) for link in LINK.finditer(text))
    return [path for path in found if path]


def target(link: str, source: Path) -> Path | None:
    """The file that a relative link leads to; None for addresses, folders and missing files."""
    if re.match(r"[a-z]+:", link):
        return None
    path = Path(os.path.normpath(source.parent / link))
    return path if path.is_relative_to(ROOT) and path.is_file() else None


def with_links_of_the_site(text: str, source: Path) -> str:
    """The text of a page with its links changed to the places of their targets in the site."""

    def changed(link: re.Match[str]) -> str:
        path = target(link[2], source)
        if path is None:
            return link[0]
        new = os.path.relpath(place(path), place(source).parent).replace(os.sep, "/")
        anchor = (link[3] or "") if path.suffix in PAGES else ""  # in code, a line number
        return f"{link[1]}{new}{anchor}{link[4]}"

    return LINK.sub(changed, text)


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    print(f"{len(collect(OUT))} files in {OUT.relative_to(ROOT)}")
