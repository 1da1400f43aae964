"""The program that builds notebooks."""

import importlib.util
from types import ModuleType

import pytest
from building import CHAPTERS, ROOT


@pytest.fixture
def builder(tmp_path, monkeypatch) -> ModuleType:
    """chapters/build.py as a module, in an environment as its command makes it."""
    spec = importlib.util.spec_from_file_location("build_notebooks", CHAPTERS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (scratch := tmp_path / "scratch").mkdir()
    for name, value in module.environment(scratch).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return module
