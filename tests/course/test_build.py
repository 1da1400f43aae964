"""How notebooks are built from scripts, and what else follows from them."""

import re
import sys
from collections import Counter

import pytest
from building import CHAPTERS, ROOT, read
from contents import NOTEBOOKS

BUILT = "03"  # this chapter has tensors, sources and pictures
ADDRESS = "https://github.com/somebody/project"


@pytest.mark.slow
def test_the_command_builds_a_chapter_and_its_solutions(builder, tmp_path, monkeypatch, capsys):
    """In a kernel of its own, with the same bytes each time; outside Colab nothing is installed."""
    for folder in ("first", "second"):
        arguments = ["build.py", BUILT, "--out", str(tmp_path / folder), "--repository", ADDRESS]
        monkeypatch.setattr(sys, "argv", arguments)
        builder.main()
    printed = Counter(line.split()[0] for line in capsys.readouterr().out.splitlines())
    first = sorted((tmp_path / "first").rglob("*.ipynb"))
    assert len(first) == 2 and [*printed.values()] == [2, 2]
    for path in first:
        place = path.relative_to(tmp_path / "first")
        assert path.with_suffix("").relative_to(tmp_path / "first").as_posix() in printed
        assert path.read_bytes() == (tmp_path / "second" / place).read_bytes()
        _, how, install, *rest = read(path)["cells"]
        assert f"somebody/project/blob/main/chapters/notebooks/{place.as_posix()})" in "".join(
            how["source"]
        )
        assert ADDRESS in "".join(install["source"]) and not install["outputs"]
        assert any(cell.get("outputs") for cell in rest)


def test_without_an_address_nothing_pretends_to_lead_there(builder):
    script = CHAPTERS / "01_messages.py"
    cells, known = (builder.to_notebook(script, address).cells for address in ("", ADDRESS))
    assert len(known) == len(cells) + 1 and "colab" not in str(cells).lower()
    assert "colab.research.google.com" in known[1].source and "%pip install" in known[2].source


def test_links_of_a_notebook_lead_to_notebooks(builder):
    """A link to a script leads to its notebook, any other link to the same file."""
    for script in builder.scripts([]):
        notebook = builder.notebook_of(script)
        for cell in builder.to_notebook(script).cells:
            if cell.cell_type == "markdown":
                for link in builder.LINK.findall(cell.source):
                    assert (notebook.parent / link).resolve().exists(), f"{script}: {link}"
    (*_, last) = builder.to_notebook(CHAPTERS / "01_messages.py").cells
    assert "](solutions/01_messages.ipynb)" in last.source


def test_checks_are_folded(builder):
    cells = builder.to_notebook(CHAPTERS / "01_messages.py").cells
    folded = [cell for cell in cells if "hide-input" in cell.metadata.get("tags", [])]
    assert folded and all(cell.metadata.jupyter.source_hidden for cell in folded)
    assert [
        cell for cell in cells if "assert " in cell.source and cell.cell_type == "code"
    ] == folded


def test_no_such_chapter(builder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["build.py", "99", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        builder.main()
    assert stopped.value.code == 2 and "no chapter begins with 99" in capsys.readouterr().err


def test_the_lecture_page_points_at_the_lines_it_names(builder):
    """Its line numbers are set by `make notebooks`."""
    page = (CHAPTERS / "LECTURE.md").read_text("utf-8")
    assert builder.point_to_lines(page) == page
    links = re.findall(r"\(([\w./]+\.py)#L(\d+)\) `([^`]+)`", page)
    assert len(links) >= 20 and page.count("#L") == len(links)
    for file, line, code in links:
        assert code in (CHAPTERS / file).read_text("utf-8").splitlines()[int(line) - 1]
    minutes = """5:00 10:00 20:29 22:01 23:43 25:04 25:30 26:04 26:24 27:22 28:28 28:50 29:15 29:59
    30:36 31:21 31:46 32:29 33:10"""
    for minute in minutes.split():
        assert minute in page


def test_the_address_of_the_repository_is_set_in_one_place(builder):
    """pyproject.toml; `make notebooks` brings it to the README and the notebooks."""
    readme, address = (ROOT / "README.md").read_text("utf-8"), builder.repository()
    assert builder.with_address(readme, address) == readme
    assert ("git clone" in readme) == bool(address)
    told = builder.with_address(readme, ADDRESS)
    assert f"```sh\ngit clone {ADDRESS}\ncd project\nmake demo\n```" in told
    assert builder.with_address(told, "") == builder.with_address(readme, "")
    assert NOTEBOOKS == builder.NOTEBOOKS
