"""What is an extra is asked for by name when it is missing."""

import subprocess
import sys

import pytest

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.extras import need_sklearn


def test_scikit_learn_is_there():
    need_sklearn("this test")  # raises nothing


def test_scikit_learn_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    with pytest.raises(UsageError) as caught:
        need_sklearn("the area under a curve")
    assert str(caught.value) == (
        "the area under a curve needs scikit-learn: pip install 'gpt2-from-scratch[eval]'"
    )


def test_nothing_is_imported_before_it_is_needed():
    code = "import sys, gpt2_from_scratch.extras; print({'sklearn', 'scipy', 'numpy'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout == "set()\n"
