"""Build `notebooks/` from the chapter scripts: convert them, run them, keep their output.

    python chapters/build.py                    all chapters, into chapters/notebooks
    python chapters/build.py 03 05              two of them
    python chapters/build.py --out somewhere    elsewhere

The scripts are the source; nobody edits a notebook. On one machine, two builds give the same bytes:
the cells are numbered, the miniature and the shipped messages are used, each chapter has one thread
and an empty feature cache, and standard error (progress) is left out. The output of cells tagged
`clock` is left out too, because another machine takes other times. A build also updates the line
numbers in LECTURE.md.
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
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from gpt2_from_scratch.storage.files import write_text

CHAPTERS = Path(__file__).parent
NOTEBOOKS = CHAPTERS / "notebooks"
LECTURE = CHAPTERS / "LECTURE.md"
SECONDS = 900  # time limit of a cell
AT_ONCE = 2  # chapters; each has one thread
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
COLAB = "https://colab.research.google.com/github/"


def scripts(names: list[str]) -> list[Path]:
    """The chapters' scripts whose names begin with one of `names`; all of them if it is empty."""
    found = sorted(CHAPTERS.glob("[0-9][0-9]_*.py"))
    return [path for path in found if not names or path.name.startswith(tuple(names))]


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
    """The project's address on GitHub, if pyproject.toml has one under [project.urls]."""
    with (CHAPTERS.parent / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"].get("urls", {}).get("Repository", "")


def to_notebook(script: Path, address: str = "") -> NotebookNode:
    """The script's cells, not executed, with what Colab needs after the title."""
    notebook = jupytext.reads(script.read_text("utf-8"), fmt="py:percent")
    title, *rest = notebook.cells
    cells = [title, *_opening(script, address), *rest]
    for number, cell in enumerate(cells, start=1):
        cell.id = f"cell-{number:02}"  # jupytext draws a new one each time
        if cell.cell_type == "markdown":  # links are from the scripts' folder, one above
            cell.source = re.sub(r"\]\((?![a-z]+:|#|\.\./)", "](../", cell.source)
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def _opening(script: Path, address: str) -> list[NotebookNode]:
    """How to open the notebook in Colab, and the cell that installs the package there."""
    place = f"{address.removeprefix('https://github.com/')}/blob/main/chapters/notebooks"
    link = f"{COLAB}{place}/{script.stem}.ipynb" if address else COLAB
    how = (
        "" if address else ": enter the address of this repository there, and also in the next cell"
    )
    text = (
        f"*This notebook is built from [`chapters/{script.name}`](../{script.name}); edit that file. "
        f"[Open in Colab]({link}){how}.*"
    )
    code = (
        f'REPOSITORY = "{address}"  # in Colab: https://github.com/NAME/PROJECT; here: leave it\n'
        'if REPOSITORY and "google.colab" in str(get_ipython()):\n'
        '    %pip install --quiet "gpt2-from-scratch[pretrain] @ git+{REPOSITORY}"'
    )
    return [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(code)]


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
    for cell in notebook.cells:
        if cell.cell_type == "code":
            clocked = "clock" in cell.metadata.get("tags", [])
            cell.outputs = [
                out for out in cell.outputs if not clocked and out.get("name") != "stderr"
            ]


def build(script: Path, out: Path, address: str) -> float:
    """Build the executed notebook of a chapter in `out`; return the seconds it took."""
    began = time.perf_counter()
    notebook = to_notebook(script, address)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    nbformat.validate(notebook)
    write_text(out / f"{script.stem}.ipynb", nbformat.writes(notebook) + "\n")
    return time.perf_counter() - began


def build_all(chosen: list[Path], out: Path, address: str) -> list[str]:
    """Build chapters, two at a time, and print how long each took; return the errors."""
    failed = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(build, script, out, address) for script in chosen]
        for script, chapter in zip(chosen, running, strict=True):
            try:
                print(f"{script.stem:<20} {chapter.result():5.1f} s", flush=True)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                message = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without colours
                failed.append(f"{script.name} failed\n{message}")
                print(f"{script.stem:<20} failed", flush=True)
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "chapters", nargs="*", help="beginnings of their names (default: all chapters)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=NOTEBOOKS,
        help="folder to write to (default: chapters/notebooks)",
    )
    parser.add_argument("--repository", default=repository(), help="address for the Colab link")
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
    if arguments.out.resolve() == NOTEBOOKS.resolve():
        write_text(LECTURE, point_to_lines(LECTURE.read_text("utf-8")))


if __name__ == "__main__":
    main()
