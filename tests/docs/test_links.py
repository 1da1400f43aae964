"""Links between the pages lead somewhere, in the repository and in the site."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "chapters" / "LECTURE.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "data").rglob("*.md")),
    *sorted((ROOT / "weights").glob("README.md")),
    ROOT / "weights" / "mini" / "README.md",
    ROOT / "tests" / "campaigns" / "FAULTS.md",
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_without_code(page: Path) -> str:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    for link in LINK.findall(text_without_code(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_every_page_of_docs_is_listed_and_in_the_menu() -> None:
    """On the first page and in the menu of the site, each once."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    menu = re.findall(r"^ +- (?:\w+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert menu.count(name) == 1, name
        assert name == "index.md" or f"({name})" in index, name


def collector():
    """The module `docs/site.py`."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_has_every_file_that_a_page_links_to(tmp_path: Path) -> None:
    collector().collect(tmp_path)
    course = tmp_path / "repository" / "chapters" / "notebooks"
    assert (course / "01_messages.md").is_file() and (
        course / "solutions" / "01_messages.md"
    ).is_file()
    for page in tmp_path.rglob("*.md"):
        for link in LINK.findall(text_without_code(page)):
            name = link.partition("#")[0]
            if name and not re.match(r"[a-z]+:", name):
                target = (page.parent / name).resolve()
                assert target.is_relative_to(tmp_path.resolve()), f"{page}: {link}"
                assert target.exists(), f"{page}: {link}"


def test_a_notebook_becomes_a_page_with_its_pictures_and_without_the_code_of_checks() -> None:
    notebook = ROOT / "chapters" / "notebooks" / "01_messages.ipynb"
    text, pictures = collector().read(notebook)
    assert pictures and all(raw.startswith(b"\x89PNG") for raw in pictures.values())
    assert {link for link in LINK.findall(text) if link.endswith(".png")} == set(pictures)
    assert "checked: " in text and "assert " not in text


def test_links_out_of_docs_are_changed() -> None:
    page = ROOT / "docs" / "tutorials" / "some.md"
    text = (
        "[a](../../LICENSE) [b](../../chapters/LECTURE.md#x) [c](../index.md) [d](https://e.f/g.md)"
    )
    assert collector().with_links_of_the_site(text, page) == (
        "[a](../repository/LICENSE) [b](../repository/chapters/LECTURE.md#x) "
        "[c](../index.md) [d](https://e.f/g.md)"
    )


def test_a_line_number_of_code_is_left_out() -> None:
    page, link = ROOT / "chapters" / "LECTURE.md", "[x](06_head.py#L53)"
    assert collector().with_links_of_the_site(link, page) == "[x](06_head.py)"
