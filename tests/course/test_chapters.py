"""The course: every chapter runs, keeps to its form, and says nothing that its run does not show.

Each test of a notebook builds its own, in a folder of its own, so that several processes can share
the work. What differs from one processor to another (the last bits of trained numbers) is not
compared; cells, kinds of output and our own source on the page are.
"""

import ast
import importlib.util
import json
import re
import runpy
import sys
from base64 import b64decode
from functools import cache
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import matplotlib.image
import pytest
import torch

from gpt2_from_scratch import course
from gpt2_from_scratch.errors import UsageError

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"
SCRIPTS = sorted(CHAPTERS.glob("[0-9][0-9]_*.py"))
SOLUTIONS = sorted((CHAPTERS / "solutions").glob("[0-9][0-9]_*.py"))
NAMES = [path.stem for path in SCRIPTS]
BUILT_TWICE = "04_network"  # it has tensors, sources and pictures

# phrases with numbers that a chapter quotes from elsewhere, and the test or page that holds them
QUOTED = {
    **{
        ("00", minute): "a minute of the lecture, LECTURE.md"
        for minute in ("26:04", "28:50", "29:15", "29:59", "30:36")
    },
    ("02", "There are only 256 different"): "a byte has 8 bits",
    ("07", "The 95% interval"): "metrics.wilson_interval, test_metrics.py",
    ("07", "87 of 100 messages are ham"): "data.SMS_SPAM_COUNTS, test_data.py",
    (
        "08",
        "learning rate of 5e-5 was chosen for a network with 768 numbers per\ntoken",
    ): "lecture.LR, config.SIZES",
    ("09", "the 600 messages of `hard`"): "tests/data/test_messages.py",
    (
        "09",
        "a bag of words gets 95.67%",
    ): "published of the lecture; of a bag of words: test_lecture.py",
    ("09", "37 of 300 are such"): "test_lecture.py",
    ("10", "1,044 of 1,045"): "test_lecture.py",
    (
        "10",
        "95.00% for the last position and 98.33% for the last token",
    ): "the book's table",
    ("11", "20 to 35 times faster"): "benchmarks/finetune.py",
    ("13", "forty gigabytes"): "GPT-2's paper",
    ("13", "on\n119.5 MB of text: the steps processed 49 million tokens"): "weights/mini/README.md",
    ("13", "needed 1.488 bits per byte"): "weights/mini/README.md",
    (
        "15",
        "reaches 72.00% on the test\nset if only the head is trained, and 95.00%",
    ): "the book's table, rows 3 and 1",
    ("15", "1,044 of 1,045"): "test_lecture.py",
}


def cells_of(path: Path) -> list[tuple[str, str]]:
    """(what stands behind the %%, text) of each cell of a script."""
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


# --- the form of a chapter ---


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_it_is_short_and_says_what_it_is_for(path):
    assert 60 <= path.read_text("utf-8").count("\n") <= 260
    head, title = cells_of(path)[0]
    assert head == "[markdown]" and prose(title).startswith(f"# {int(path.stem[:2])}. ")
    assert "**At the end you will know**" in title and "**Time:**" in title
    assert len(re.findall(r'^MODEL, DATA = setting\("mini"\)', path.read_text("utf-8"), re.M)) == 1


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_every_part_ends_with_a_check(path):
    parts = parts_of(path)
    assert len(parts) >= 3 and [*parts][-1] == "Exercises"
    for heading, cells in [*parts.items()][:-1]:
        head, body = cells[-1]
        assert head == "check", f"{heading}: its last cell is no check"
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(body))), heading
        assert "print(" in body, f"{heading}: its check says nothing"


@cache
def functions_of_the_package() -> set[str]:
    trees = [ast.parse(p.read_text("utf-8")) for p in (ROOT / "gpt2_from_scratch").rglob("*.py")]
    return {n.name for t in trees for n in t.body if isinstance(n, ast.FunctionDef)}


@pytest.mark.slow
@pytest.mark.parametrize("path", [*SCRIPTS, *SOLUTIONS], ids=lambda path: path.stem)
def test_it_defines_nothing_that_the_package_should(path):
    nodes = [*ast.walk(ast.parse(path.read_text("utf-8")))]
    assert not [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert not defined & functions_of_the_package(), "the package has these"


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_one_source_or_picture_a_cell_and_it_comes_last(path):
    for head, body in cells_of(path):
        if head == "[markdown]":
            continue
        tree = ast.parse(body)
        shown = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("show", "picture")
        ]
        last = getattr(tree.body[-1], "value", None)
        assert len(shown) <= 1 and all(last is node for node in shown)


def test_the_course_is_whole():
    assert [int(name[:2]) for name in NAMES] == [*range(len(NAMES))]
    assert [path.name for path in SOLUTIONS] == [path.name for path in SCRIPTS]
    assert sorted(path.stem for path in (CHAPTERS / "notebooks").iterdir()) == NAMES


# --- what came out of the run ---


@pytest.fixture
def builder(tmp_path, monkeypatch) -> ModuleType:
    """chapters/build.py as a module, in an environment as its command makes it."""
    spec = importlib.util.spec_from_file_location("build", CHAPTERS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (scratch := tmp_path / "scratch").mkdir()
    for name, value in module.environment(scratch).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return module


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def kept_notebook(name: str) -> dict[str, Any]:
    return read(CHAPTERS / "notebooks" / f"{name}.ipynb")


def kinds(output: dict[str, Any]) -> list[str]:
    return [output["output_type"], *sorted(output.get("data", {}))]


def text_of(cell: dict[str, Any]) -> str:
    """All that a cell printed, and its source for the page."""
    found = []
    for output in cell["outputs"]:
        found += output.get("text", [])
        found += output.get("data", {}).get("text/markdown", [])
    return "".join(found)


def words(lines: list[str]) -> list[str]:
    """What was printed but for numbers, which trained ones make differ in their last digits."""
    return re.sub(r"[-+]?\d[\d.,e+-]*", "#", "".join(lines)).split()


def size_of(png: str | None) -> tuple[int, int] | None:
    """Width and height of a picture, which is opened for it."""
    return None if png is None else matplotlib.image.imread(BytesIO(b64decode(png))).shape[:2]


def assert_up_to_date(now: dict[str, Any], kept: dict[str, Any]) -> None:
    """Rebuild with `make notebooks`. A cell tagged `varies` prints words that hang on trained numbers."""
    assert now["metadata"] == kept["metadata"]
    assert [c["source"] for c in now["cells"]] == [c["source"] for c in kept["cells"]]
    for cell, old_cell in zip(now["cells"], kept["cells"], strict=True):
        ours, theirs = cell.get("outputs", []), old_cell.get("outputs", [])
        assert [*map(kinds, ours)] == [*map(kinds, theirs)]
        for new, old in zip(ours, theirs, strict=True):
            new_data, old_data = new.get("data", {}), old.get("data", {})
            assert new_data.get("text/markdown") == old_data.get("text/markdown")
            assert size_of(new_data.get("image/png")) == size_of(old_data.get("image/png"))
            if "varies" not in cell["metadata"].get("tags", []):
                assert words(new.get("text", [])) == words(old.get("text", []))


# links, code, where else to look, the chapter's own number
BESIDE = r"\]\([^)]*\)|`[^`]*`|[Cc]hapters? \d+|^# \d+\. |^\d\. "
NUMBER = r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?!\w)"


def assert_numbers_come_from_the_run(name: str, cells: list[dict[str, Any]]) -> None:
    """Every number of two digits or more in a Markdown cell stands in the code, in what it printed,
    or in a phrase quoted from elsewhere, for which other tests answer.
    """
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    known = " ".join(["".join(cell["source"]) + text_of(cell) for cell in code])
    numbers = set(re.findall(NUMBER, known.replace("_", "")))
    numbers |= {n.replace(",", "") for n in numbers}
    said = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for phrase in [phrase for chapter, phrase in QUOTED if name.startswith(chapter)]:
        assert phrase in said, f"{phrase!r} is quoted no more"
        said = said.replace(phrase, "")
    said = re.sub(BESIDE, "", said, flags=re.MULTILINE)
    wrong = {n for n in re.findall(NUMBER, said) if len(n) > 1} - numbers
    assert not wrong, f"these numbers come from nowhere: {sorted(wrong)}"


def clocked(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells that print this machine's seconds."""
    return [cell for cell in cells if "clock" in cell["metadata"].get("tags", [])]


def assert_this_machine_does_not_show(cells: list[dict[str, Any]]) -> None:
    """Neither its seconds nor what a program tells on standard error."""
    assert not any(cell["outputs"] for cell in clocked(cells))
    assert {out.get("name", "stdout") for c in cells for out in c.get("outputs", [])} == {"stdout"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_up_to_date(name, builder, tmp_path):
    """The chapter runs, and what it shows now is what the kept notebook shows."""
    script, path = CHAPTERS / f"{name}.py", tmp_path / f"{name}.ipynb"
    builder.build(script, tmp_path, "")
    now, raw = read(path), path.read_bytes()
    assert_up_to_date(now, kept_notebook(name))
    assert_numbers_come_from_the_run(name, now["cells"])
    assert_this_machine_does_not_show(now["cells"])
    if name == BUILT_TWICE:
        builder.build(script, tmp_path, "")
        assert path.read_bytes() == raw, "a second build gives other bytes"


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_notebook_is_sound(name):
    cells = kept_notebook(name)["cells"]
    assert_numbers_come_from_the_run(name, cells)
    assert_this_machine_does_not_show(cells)
    raw = (CHAPTERS / "notebooks" / f"{name}.ipynb").read_text("utf-8")
    assert not re.search(r"/(tmp|home|root|Users|work)/", raw), "somebody's folder"


def test_some_cells_print_seconds():
    assert any(clocked(kept_notebook(name)["cells"]) for name in NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions(path, tmp_path, monkeypatch, capsys):
    """Three exercises, three solutions, which run and hold."""
    exercises = prose(parts_of(CHAPTERS / path.name)["Exercises"][0][1])
    assert re.findall(r"^(\d)\. ", exercises, re.MULTILINE) == ["1", "2", "3"]
    assert f"solutions/{path.name}" in exercises
    solved = re.findall(r"^# ## (\d)\. ", path.read_text("utf-8"), re.MULTILINE)
    assert solved == ["1", "2", "3"]
    asserts = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Assert)]
    assert len(asserts) >= 3
    monkeypatch.chdir(tmp_path)
    with torch.set_grad_enabled(True), torch.random.fork_rng(devices=[]):  # some switch it off
        runpy.run_path(str(path))
    assert capsys.readouterr().out


# --- the command ---


ADDRESS = "https://github.com/somebody/project"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "link"),
    [
        ("", "https://colab.research.google.com/github/)"),
        (
            ADDRESS,
            "https://colab.research.google.com/github/somebody/project/blob/main/chapters/notebooks/01_messages.ipynb)",
        ),
    ],
)
def test_what_colab_needs(address, link, builder):
    """The link and the cell that installs the package, once it is known where it can be had."""
    _, how, install, *_ = builder.to_notebook(CHAPTERS / "01_messages.py", address).cells
    first, *_, last = install["source"].splitlines()
    assert link in how["source"] and first.startswith(f'REPOSITORY = "{address}"')
    assert last == '    %pip install --quiet "gpt2-from-scratch[pretrain] @ git+{REPOSITORY}"'


@pytest.mark.slow
def test_the_command_builds_one_chapter(builder, tmp_path, monkeypatch, capsys):
    """Outside Colab, the cell that installs the package does nothing."""
    words = ["build.py", "01", "--out", str(tmp_path / "new"), "--repository", ADDRESS]
    monkeypatch.setattr(sys, "argv", words)
    builder.main()
    assert re.fullmatch(r"01_messages +[\d.]+ s\n", capsys.readouterr().out)
    (notebook,) = (tmp_path / "new").iterdir()
    _, how, install, *rest = read(notebook)["cells"]
    assert f"{ADDRESS.removeprefix('https://github.com/')}/blob" in "".join(how["source"])
    assert not install["outputs"] and any(cell.get("outputs") for cell in rest)


def test_no_such_chapter(builder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["build.py", "99", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        builder.main()
    assert stopped.value.code == 2 and "no chapter begins with 99" in capsys.readouterr().err


def test_the_companion_points_at_the_lines_it_names(builder):
    """Its line numbers are set by `make notebooks`."""
    page = (CHAPTERS / "LECTURE.md").read_text("utf-8")
    assert builder.point_to_lines(page) == page
    links = re.findall(r"\(([\w./]+\.py)#L(\d+)\) `([^`]+)`", page)
    assert len(links) >= 20 and page.count("#L") == len(links)
    for file, line, code in links:
        assert code in (CHAPTERS / file).read_text("utf-8").splitlines()[int(line) - 1]
    for stamp in (
        "5:00",
        "10:00",
        "20:29",
        "22:01",
        "23:43",
        "25:04",
        "26:24",
        "27:22",
        "28:28",
        "29:15",
        "30:36",
        "31:21",
        "31:46",
        "33:10",
    ):
        assert stamp in page


# --- what the chapters share ---


def test_setting(monkeypatch):
    monkeypatch.delenv("GPT2_FROM_SCRATCH_COURSE", raising=False)
    assert course.setting() == ("mini", "sms") and course.setting("124M") == ("124M", "sms")
    monkeypatch.setenv("GPT2_FROM_SCRATCH_COURSE", "355M")
    assert course.setting("mini") == ("355M", "sms")
    monkeypatch.setenv("GPT2_FROM_SCRATCH_COURSE", "125M")
    with pytest.raises(UsageError, match="125M"):
        course.setting("mini")


def test_a_script_prints_sources_and_saves_pictures(tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure

    monkeypatch.chdir(tmp_path)
    course.show(course.setting)
    assert capsys.readouterr().out.startswith("# course.py\ndef setting(model")
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2])
    shown = course.picture(figure, "line")
    assert (tmp_path / "runs/course/line.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.replace("\\", "/") == "picture: runs/course/line.png\n"
    assert shown._repr_png_() == shown._repr_png_()


def test_a_notebook_shows_them_itself(monkeypatch, capsys):
    shell = SimpleNamespace()
    monkeypatch.setattr("builtins.get_ipython", lambda: shell, raising=False)
    assert not course.in_notebook(), "IPython in a terminal"
    shell.kernel = None
    shown = course.show(course.setting, course.Picture._repr_png_)
    assert capsys.readouterr().out == ""
    assert "```python\n# course.py\ndef setting" in shown._repr_markdown_()
    assert "\n\n# course.py\ndef _repr_png_(self)" in shown._repr_markdown_()
    assert repr(shown) == "# course.py"
