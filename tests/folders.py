"""Folders in an unusual state."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only_folder(**files: bytes) -> Iterator[Path]:
    """A folder with these files that nobody can write to; root becomes "nobody" for the test."""
    if not hasattr(os, "geteuid"):
        pytest.skip("there are no permissions of this kind here")
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
