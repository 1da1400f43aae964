"""What the README shows in Python runs, and what it lists is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", PYTHON, ids=[f"block {n + 1}" for n in range(len(PYTHON))])
def test_its_python_runs(code: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_it_lists_every_module() -> None:
    listed = set(re.findall(r"\b(\w+\.py)\b", README))
    modules = {path.name for path in (ROOT / "gpt2_from_scratch").glob("*.py")} - {"__init__.py"}
    assert modules <= listed, f"not in the README: {sorted(modules - listed)}"


def test_it_has_no_blanks_left() -> None:
    assert not re.findall(r"@[A-Z_]+@", README)
