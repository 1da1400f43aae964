"""What the README shows in Python runs, and what it lists is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=[f"block {n + 1}" for n in range(len(PYTHON))])
def test_its_python_runs(code: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_it_has_no_blanks_left() -> None:
    assert not re.findall(r"@[A-Z_]+@", README)
