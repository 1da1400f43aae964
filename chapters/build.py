"""Build `notebooks/` from the scripts of the course: convert them, run them, keep their output.

    python chapters/build.py                    all chapters and solutions, into chapters/notebooks
    python chapters/build.py 03 05              two chapters and their solutions
    python chapters/build.py --out somewhere    elsewhere

The scripts are the source; nobody edits a notebook. On one machine, two builds give the same bytes:
the cells are numbered, the miniature and the shipped messages are used, each script has one thread
and an empty feature cache, and standard error (progress) is left out. The output of cells tagged
`clock` is left out too, because another machine takes other times.

What follows from the scripts and from pyproject.toml is brought up to date: the road maps and reading
times in the chapters, the line numbers in LECTURE.md, and the lines of the README that need this
repository's address.
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from contents import CHAPTERS, NOTEBOOKS, reading_time, with_facts
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from gpt2_from_scratch.storage.files import write_text

LECTURE = CHAPTERS / "LECTURE.md"
README = CHAPTERS.parent / "README.md"
SECONDS = 900  # time limit of a cell
AT_ONCE = 2  # scripts; each has one thread
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)")  # to a file


def scripts(names: list[str]) -> list[Path]:
    """The scripts of the chapters whose names begin with one of `names`, and of their solutions.

    All of them if `names` is empty.
    """
    found = [
        path
        for folder in (CHAPTERS, CHAPTERS / "solutions")
        for path in sorted(folder.glob("[0-9][0-9]_*.py"))
    ]
    return [path for path in found if not names or path.name.startswith(tuple(names))]


def notebook_of(script: Path) -> Path:
    """Where the notebook of a script is kept."""
    return NOTEBOOKS / script.relative_to(CHAPTERS).with_suffix(".ipynb")


def environment(scratch: Path) -> dict[str, str]:
    """Environment variables that make builds equal; `scratch` is an empty folder.

    The number of threads changes the last bits of sums, files of an earlier run change what is
    printed, and a start-up file of the user would run first.
    """
    own = ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "GPT2_FROM_SCRATCH_CACHE")
    return {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",
        "COLUMNS": "100",
        "GPT2_FROM_SCRATCH_COURSE": "mini",
    } | {name: str(scratch / name) for name in own}


def repository() -> str:
    """The address of this repository: `Repository` under [project.urls] in pyproject.toml, or "".

    It is written there and nowhere else; the links to Colab and `git clone` follow from it.
    """
    with (CHAPTERS.parent / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"].get("urls", {}).get("Repository", "")


# --- from a script to a notebook ---


def to_notebook(script: Path, address: str = "") -> NotebookNode:
    """The script's cells, not executed, and after the title what Colab needs."""
    notebook = jupytext.reads(script.read_text("utf-8"), fmt="py:percent")
    for cell in notebook.cells:
        cell.metadata = _metadata(cell.metadata)
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda link: f"]({_target(link[1], script)}", cell.source)
    cells = [notebook.cells[0], *_opening(script, address), *notebook.cells[1:]]
    for number, cell in enumerate(cells, start=1):
        cell.id = f"cell-{number:02}"  # jupytext draws a new one each time
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def _metadata(found: NotebookNode) -> NotebookNode:
    """A cell's tags; a check is folded (Jupyter knows `source_hidden`, other tools the tag)."""
    tags = list(found.get("tags", []))
    if found.get("title") == "check":
        return NotebookNode(tags=["hide-input", *tags], jupyter=NotebookNode(source_hidden=True))
    return NotebookNode(tags=tags) if tags else NotebookNode()


def _target(target: str, script: Path) -> str:
    """Where a link of the script leads from its notebook: a notebook if it leads to a script."""
    file = (script.parent / target).resolve()
    return _from_notebook(notebook_of(file) if file in scripts([]) else file, script)


def _from_notebook(file: Path, script: Path) -> str:
    """The relative path of a file from the folder of the script's notebook."""
    return Path(os.path.relpath(file, notebook_of(script).parent)).as_posix()


def _opening(script: Path, address: str) -> list[NotebookNode]:
    """Where the notebook comes from; with an address, how to open it in Colab."""
    name = script.relative_to(CHAPTERS.parent).as_posix()
    how = f"This notebook is built from [`{name}`]({_from_notebook(script, script)})"
    how = f"*{how}. To change it, edit that file.*"
    if not address:
        return [nbformat.v4.new_markdown_cell(how)]
    place = notebook_of(script).relative_to(CHAPTERS.parent).as_posix()
    page = f"{address.removeprefix('https://github.com/')}/blob/main/{place}"
    colab = f"[Open in Colab](https://colab.research.google.com/github/{page})."
    code = (
        'if "google.colab" in str(get_ipython()):\n'
        f'    %pip install --quiet "gpt2-from-scratch[pretrain] @ git+{address}"'
    )
    return [nbformat.v4.new_markdown_cell(f"{colab} {how}"), nbformat.v4.new_code_cell(code)]


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells, in place, in `folder`. Raises CellExecutionError if one fails."""
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors only, no warnings
        resources={"metadata": {"path": str(folder)}},
    )
    asyncio.run(client.async_execute())  # closes its event loop, as `execute` does not
    notebook.metadata = NotebookNode(METADATA)  # without this Python's version
    without_this_machine(notebook.cells)


def without_this_machine(cells: list[NotebookNode]) -> None:
    """Leave out, in place, what another machine or another run would print differently."""
    for cell in cells:
        if cell.cell_type == "code":
            clocked = "clock" in cell.metadata.get("tags", [])
            cell.outputs = [
                out for out in cell.outputs if not clocked and out.get("name") != "stderr"
            ]


def build(script: Path, out: Path, address: str) -> float:
    """Build the executed notebook of a script in `out`; return the seconds it took."""
    began = time.perf_counter()
    notebook = to_notebook(script, address)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    if script.parent == CHAPTERS:
        title = notebook.cells[0]
        title.source = with_facts(title.source, script.stem, reading_time(notebook.cells))
    nbformat.validate(notebook)
    path = out / notebook_of(script).relative_to(NOTEBOOKS)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, nbformat.writes(notebook) + "\n")
    return time.perf_counter() - began


def build_all(chosen: list[Path], out: Path, address: str) -> list[str]:
    """Build notebooks, two at a time, and print how long each took; return the errors."""
    failed = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(build, script, out, address) for script in chosen]
        for script, notebook in zip(chosen, running, strict=True):
            name = script.relative_to(CHAPTERS).with_suffix("").as_posix()
            try:
                print(f"{name:<30} {notebook.result():5.1f} s", flush=True)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                message = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without colours
                failed.append(f"{name}.py failed\n{message}")
                print(f"{name:<30} failed", flush=True)
    return failed


def point_to_lines(page: str) -> str:
    """Point links of the form [..](file.py#L12) `code` to the first line that contains the code.

    Raises ValueError if no line of the file contains it.
    """

    def pointed(match: re.Match) -> str:
        file, code = match.groups()
        lines = (CHAPTERS / file).read_text("utf-8").splitlines()
        numbers = [number for number, line in enumerate(lines, start=1) if code in line]
        if not numbers:
            raise ValueError(f"no line of {file} has {code!r}")
        return f"({file}#L{numbers[0]}) `{code}`"

    return re.sub(r"\(([\w./]+\.py)#L\d*\) `([^`]+)`", pointed, page)


def state_facts(script: Path) -> None:
    """Put the road map and the reading time of its notebook into the title of a chapter."""
    cells = nbformat.read(notebook_of(script), as_version=4).cells
    text = script.read_text("utf-8")
    write_text(script, with_facts(text, script.stem, reading_time(cells)))


def with_address(page: str, address: str) -> str:
    """The README with the lines that get the repository, which need its address."""
    clone = "This project has no public address yet. In a checkout of the repository, with make:\n\n```sh"
    if address:
        folder = address.rpartition("/")[2]
        clone = f"With git and make:\n\n```sh\ngit clone {address}\ncd {folder}"
    text = f"<!-- address -->\n{clone}\nmake demo\n```\n<!-- /address -->"
    return re.sub(r"<!-- address -->.*?<!-- /address -->", lambda _: text, page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapters", nargs="*", help="beginnings of their names (default: all)")
    parser.add_argument(
        "--out",
        type=Path,
        default=NOTEBOOKS,
        help="folder to write to (default: chapters/notebooks)",
    )
    parser.add_argument("--repository", default=repository(), help="this repository's address")
    arguments = parser.parse_args()
    chosen = scripts(arguments.chapters)
    if not chosen:
        parser.error(f"no chapter begins with {' or '.join(arguments.chapters)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= environment(Path(scratch))
        failed = build_all(chosen, arguments.out, arguments.repository)
    if failed:
        sys.exit("\n".join(failed))
    if arguments.out.resolve() == NOTEBOOKS:
        for script in chosen:
            if script.parent == CHAPTERS:
                state_facts(script)
        write_text(LECTURE, point_to_lines(LECTURE.read_text("utf-8")))
        write_text(README, with_address(README.read_text("utf-8"), arguments.repository))


if __name__ == "__main__":
    main()
