"""What is written from the code is current, and the README is short."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from contents import reading_time

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    path = ROOT / "docs" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["commands", "settings"])
def test_the_reference_is_current(page: str) -> None:
    """Otherwise run `python docs/reference/generate.py`."""
    generate = script("reference/generate.py")
    written = (ROOT / "docs" / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert getattr(generate, f"{page}_page")() == written


def test_every_option_is_in_the_reference() -> None:
    from gpt2_from_scratch.cli.main import build_parser

    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    (commands,) = [a for a in build_parser()._actions if a.dest != "help" and a.choices]
    for name, parser in commands.choices.items():
        assert f"\n## {name}\n" in page
        for option in parser._option_string_actions:
            assert option in ("-h", "-v", "--help") or option in page, f"{name} {option}"


def test_exit_codes_are_those_of_the_errors() -> None:
    from gpt2_from_scratch import errors

    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if hasattr(kind, "exit_code")}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, flags=re.M)} == (
        codes | {0, 130, 143}
    )


def test_every_file_of_a_run_is_described() -> None:
    from gpt2_from_scratch.runs.folder import FILES

    page = (ROOT / "docs" / "reference" / "run-folder.md").read_text(encoding="utf-8")
    for name in (*FILES, "report.html", "model_card.md", "curves.png", "MANIFEST.json"):
        assert f"`{name}`" in page


def test_every_pooling_and_task_is_described() -> None:
    from gpt2_from_scratch.classifier.settings import POOLINGS
    from gpt2_from_scratch.data.formats import TASKS

    poolings = (ROOT / "docs" / "concepts" / "last-token.md").read_text(encoding="utf-8")
    tasks = (ROOT / "docs" / "how-to" / "other-tasks.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in poolings for name in POOLINGS)
    assert all(f"`{name}`" in tasks for name in TASKS)


def test_the_readme_is_a_page() -> None:
    assert len(README.encode()) <= 8192


def test_reading_times_are_those_of_the_notebooks() -> None:
    """Otherwise run `python chapters/contents.py` and correct the table."""
    rows = re.findall(r"\]\((chapters/notebooks/\S+)\) \|.*\| (\d+) \| [^|]+ \|$", README, re.M)
    assert [path for path, _ in rows] == [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "chapters" / "notebooks").glob("*.ipynb"))
    ]
    for path, number in rows:
        assert int(number) == reading_time(json.loads((ROOT / path).read_text("utf-8"))["cells"]), (
            path
        )
