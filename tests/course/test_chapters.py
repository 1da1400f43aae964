"""The course: every chapter keeps to its form, runs, and says nothing that its run does not show.

A test runs a script's cells in its own process, in IPython, as a notebook would run them: a kernel for
each would import everything again. What differs from one processor to another (the last bits of
trained numbers) is not compared; cells, kinds of output and our own source on the page are.
"""

import ast
import re
import types
from base64 import b64decode
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from building import CHAPTERS, NAMES, SCRIPTS, SOLUTIONS, read
from contents import NOTEBOOKS, PARTS, reading_time, with_facts
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import gpt2_from_scratch

# phrases with numbers that a chapter quotes from elsewhere, and the test or page that holds them
QUOTED = {
    "07": {"1,044 of 1,045": "test_lecture.py"},
    "09": {"The 95% interval": "metrics.wilson_interval, test_metrics.py"},
    "12": {"600 messages": "tests/data/test_messages.py"},
    "13": {"95.00%\nfor the last position and 98.33%": "the book's table, studies/book.py"},
    "14": {"20 to 35 times faster": "benchmarks/finetune.py"},
    "15": {
        "119.5 MB of text: the steps processed 49 million tokens": "weights/mini/README.md",
        "1.488 bits per byte": "weights/mini/README.md",
    },
}


def cells_of(path: Path) -> list[tuple[str, str]]:
    """(what follows the %%, text) of each cell of a script."""
    pieces = re.split(r"^# %%(.*)\n", path.read_text("utf-8"), flags=re.MULTILINE)
    assert pieces[0].strip() == "", "a script begins with a cell"
    return [(head.strip(), body) for head, body in zip(pieces[1::2], pieces[2::2], strict=True)]


def prose(body: str) -> str:
    """A Markdown cell without its comment signs."""
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.splitlines())


def parts_of(path: Path) -> dict[str, list[tuple[str, str]]]:
    """{heading: the cells from it to the next} of the second-level headings."""
    parts: dict[str, list[tuple[str, str]]] = {}
    for head, body in cells_of(path):
        heading = re.search(r"^# ## (.+)$", body, re.MULTILINE) if head == "[markdown]" else None
        if heading:
            parts[heading[1]] = []
        if parts:
            parts[[*parts][-1]].append((head, body))
    return parts


def nodes_of(path: Path) -> list[ast.AST]:
    return [*ast.walk(ast.parse(path.read_text("utf-8")))]


def has_assert(body: str) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(body)))


# --- the form of a chapter ---


def test_the_course_is_whole():
    assert NAMES == [name for part in PARTS for name in part]
    assert [int(name[:2]) for name in NAMES] == [*range(len(NAMES))]
    assert [path.name for path in SOLUTIONS] == [path.name for path in SCRIPTS]
    for folder in (NOTEBOOKS, NOTEBOOKS / "solutions"):
        assert sorted(path.stem for path in folder.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_the_title_says_where_you_are_and_how_long_it_takes(path):
    head, title = cells_of(path)[0]
    assert head == "[markdown]" and prose(title).startswith(f"# {int(path.stem[:2])}. ")
    for fact in ("**You are here:**", "**At the end you will know**", "**Running time:**"):
        assert fact in title
    minutes = reading_time(read(NOTEBOOKS / f"{path.stem}.ipynb")["cells"])
    assert f"**Reading time:** {minutes} minutes" in title
    assert with_facts(title, path.stem, minutes) == title, "run `make notebooks`"


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_it_ends_with_what_you_know_the_checks_and_exercises(path):
    """What is checked is checked at the end, where it does not interrupt."""
    parts = parts_of(path)
    assert [*parts][-3:] == ["What you know now", "Checks", "Exercises"] and len(parts) >= 5
    for heading, cells in parts.items():
        for head, body in cells:
            if head != "[markdown]":
                assert (heading == "Checks") == head.startswith("check") == has_assert(body), body
                assert (heading == "Checks") == ('"checked: ' in body), body


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_it_has_a_picture_and_each_cell_at_most_one(path):
    pictures = 0
    for head, body in cells_of(path):
        if head == "[markdown]":
            continue
        tree = ast.parse(body)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        shown = [node for node in calls if getattr(node.func, "id", "") in ("show", "picture")]
        last = getattr(tree.body[-1], "value", None)
        assert len(shown) <= 1 and all(last is node for node in shown)
        pictures += sum(node.func.id == "picture" for node in shown)
    assert pictures >= 1


@pytest.mark.parametrize(
    "path", [*SCRIPTS, *SOLUTIONS], ids=lambda path: str(path.parent.name + "/" + path.stem)
)
def test_its_code_is_plain(path):
    """No assignment inside an expression, no class but PyTorch's kind of data set; of this project
    only what users import.
    """
    nodes = nodes_of(path)
    assert not [node.lineno for node in nodes if isinstance(node, ast.NamedExpr)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    assert all([ast.unparse(base) for base in node.bases] == ["Dataset"] for node in classes)
    sources = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    own = {source for source in sources if source and source.startswith("gpt2_from_scratch")}
    assert own <= {"gpt2_from_scratch", "gpt2_from_scratch.course"}


def test_the_minutes_of_the_lecture_are_on_its_page():
    page = (CHAPTERS / "LECTURE.md").read_text("utf-8")
    for path in SCRIPTS:
        for head, body in cells_of(path):
            if head == "[markdown]":
                for minute in re.findall(r"\b\d\d:\d\d\b", body):
                    assert minute in page, f"{path.name}: {minute}"


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_one_variable_sets_the_model(path):
    text = path.read_text("utf-8")
    assert len(re.findall(r'^MODEL, DATA = setting\("mini"\)', text, re.M)) == 1


def test_it_defines_nothing_that_the_package_exports():
    for path in (*SCRIPTS, *SOLUTIONS):
        defined = {node.name for node in nodes_of(path) if isinstance(node, ast.FunctionDef)}
        assert not defined & set(gpt2_from_scratch.__all__), f"{path.name}: import it"


@pytest.mark.parametrize("path", SOLUTIONS, ids=NAMES)
def test_three_exercises_with_hints_and_three_solutions(path):
    """A solution repeats its question."""
    exercises = prose(parts_of(CHAPTERS / path.name)["Exercises"][0][1])
    found = re.findall(
        r"^\d\. \((easy|medium|hard)\) (.+?)\s*<details><summary>Hint</summary>.+?</details>",
        exercises,
        re.MULTILINE | re.DOTALL,
    )
    assert len(found) == 3 and f"](solutions/{path.name})" in exercises
    solutions = {
        heading: " ".join(re.findall(r"^> ?(.*)$", prose(cells[0][1]), re.MULTILINE))
        for heading, cells in parts_of(path).items()
    }
    assert [heading[:2] for heading in solutions] == ["1.", "2.", "3."]
    for (_, question), repeated in zip(found, solutions.values(), strict=True):
        assert " ".join(question.split()) == " ".join(repeated.split())
    for cells in parts_of(path).values():
        assert any(has_assert(body) for head, body in cells if head != "[markdown]")


# --- what its run shows ---


@pytest.fixture
def shell(monkeypatch, tmp_path) -> Iterator[InteractiveShell]:
    """IPython as a kernel has it, without the user's settings and history, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    settings = Config()
    settings.HistoryManager.enabled = False
    shell = InteractiveShell.instance(user_module=types.ModuleType("chapter"), config=settings)
    shell.kernel = None  # what `course.in_notebook` looks for
    with torch.set_grad_enabled(True), torch.random.fork_rng(devices=[]):
        yield shell
    torch.set_default_dtype(torch.float32)  # a chapter computes with 64-bit numbers
    torch.set_printoptions(profile="default")
    InteractiveShell.clear_instance()


def run(cells: list[dict[str, Any]], shell: InteractiveShell) -> None:
    """Run the code cells and keep what they print and show as a notebook does, in place."""
    values: list[Any] = []
    shell.display_trap.hook = values.append  # the value of a cell's last line
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        values.clear()
        with redirect_stdout(StringIO()) as printed:
            shell.run_cell(cell["source"]).raise_error()
        text = printed.getvalue()
        stream = {"output_type": "stream", "name": "stdout", "text": text}
        cell["outputs"] = [stream] if text else []
        for value in values:
            if value is not None:
                data, _ = shell.display_formatter.format(value)
                cell["outputs"].append({"output_type": "execute_result", "data": data})


def kinds(output: dict[str, Any]) -> list[str]:
    return [output["output_type"], *sorted(output.get("data", {}))]


def text_of(cell: dict[str, Any]) -> str:
    """All that a cell printed, and its source for the page."""
    found = []
    for output in cell["outputs"]:
        found += output.get("text", [])
        found += output.get("data", {}).get("text/markdown", [])
    return "".join(found)


def words(lines: list[str] | str) -> list[str]:
    """What was printed but for numbers, which trained ones make differ in their last digits."""
    return re.sub(r"[-+]?\d[\d.,e+-]*", "#", "".join(lines)).split()


def size_of(png: str | bytes | None) -> tuple[int, int] | None:
    """Width and height of a picture, which is opened for it."""
    if png is None:
        return None
    raw = png if isinstance(png, bytes) else b64decode(png)
    return matplotlib.image.imread(BytesIO(raw)).shape[:2]


def assert_up_to_date(now: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
    """Rebuild with `make notebooks`. A cell tagged `varies` prints words that hang on trained numbers."""
    for key in ("cell_type", "metadata"):
        assert [cell[key] for cell in now] == [cell[key] for cell in kept]
    assert [cell["source"] for cell in now] == ["".join(cell["source"]) for cell in kept]
    for cell, old_cell in zip(now, kept, strict=True):
        tags = cell["metadata"].get("tags", [])
        if "clock" in tags:
            continue
        ours, theirs = cell.get("outputs", []), old_cell.get("outputs", [])
        assert [*map(kinds, ours)] == [*map(kinds, theirs)]
        for new, old in zip(ours, theirs, strict=True):
            new_data, old_data = new.get("data", {}), old.get("data", {})
            new_source = new_data.get("text/markdown", "")
            assert new_source == "".join(old_data.get("text/markdown", ""))
            assert size_of(new_data.get("image/png")) == size_of(old_data.get("image/png"))
            if "varies" not in tags:
                assert words(new.get("text", "")) == words(old.get("text", ""))


# the reading time, minutes of the lecture, links, code, where else to look, the chapter's own number
BESIDE = r"\*\*Reading time:\*\* \d+|\b\d\d?:\d\d\b|\]\([^)]*\)|`[^`]*`|[Cc]hapters? \d+|^# \d+\. |^\d\. "
NUMBER = r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?!\w)"


def assert_numbers_come_from_the_run(name: str, cells: list[dict[str, Any]]) -> None:
    """Every number of two digits or more in a Markdown cell stands in the code, in what it printed,
    or in a phrase quoted from elsewhere, for which other tests answer.
    """
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    known = " ".join(["".join(cell["source"]) + text_of(cell) for cell in code])
    numbers = set(re.findall(NUMBER, known.replace("_", "")))
    numbers |= {n.replace(",", "") for n in numbers}
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    said = "\n\n".join(text for text in texts if not text.startswith("## Exercises"))
    for phrase in QUOTED.get(name[:2], {}):
        assert phrase in said, f"{phrase!r} is quoted no more"
        said = said.replace(phrase, "")
    said = re.sub(BESIDE, "", said, flags=re.MULTILINE)
    wrong = {
        n for n in re.findall(NUMBER, said) if len(n) > 1 and n.replace(",", "") not in numbers
    }
    assert not wrong, f"these numbers come from nowhere: {sorted(wrong)}"


def clocked(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells that print this machine's seconds."""
    return [cell for cell in cells if "clock" in cell["metadata"].get("tags", [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_shows_what_its_notebook_shows(name, builder, shell):
    cells = builder.to_notebook(CHAPTERS / f"{name}.py", builder.repository()).cells
    run(cells, shell)
    assert_up_to_date(cells, read(NOTEBOOKS / f"{name}.ipynb")["cells"])
    assert_numbers_come_from_the_run(name, cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_solutions_show_what_their_notebook_shows(name, builder, shell):
    cells = builder.to_notebook(CHAPTERS / "solutions" / f"{name}.py", builder.repository()).cells
    run(cells, shell)
    assert_up_to_date(cells, read(NOTEBOOKS / "solutions" / f"{name}.ipynb")["cells"])


@pytest.mark.parametrize(
    "path", sorted(NOTEBOOKS.rglob("*.ipynb")), ids=lambda path: str(path.relative_to(NOTEBOOKS))
)
def test_a_kept_notebook_shows_nothing_of_the_machine_that_built_it(path):
    """Neither its seconds nor its folders nor what a program told on standard error."""
    cells = read(path)["cells"]
    assert not any(cell["outputs"] for cell in clocked(cells))
    assert {out.get("name", "stdout") for c in cells for out in c.get("outputs", [])} == {"stdout"}
    assert not re.search(r"/(tmp|home|root|Users|work)/", path.read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_a_kept_notebook_come_from_its_run(name):
    assert_numbers_come_from_the_run(name, read(NOTEBOOKS / f"{name}.ipynb")["cells"])


def test_some_cells_print_seconds():
    assert any(clocked(read(NOTEBOOKS / f"{name}.ipynb")["cells"]) for name in NAMES)
