"""Where the course is, for its tests."""

import json
from pathlib import Path
from typing import Any

from contents import CHAPTERS

ROOT = CHAPTERS.parent
SCRIPTS = sorted(CHAPTERS.glob("[0-9][0-9]_*.py"))
SOLUTIONS = sorted((CHAPTERS / "solutions").glob("[0-9][0-9]_*.py"))
NAMES = [path.stem for path in SCRIPTS]


def read(path: Path) -> dict[str, Any]:
    """A notebook as it is in its file: a text is a list of lines."""
    return json.loads(path.read_text("utf-8"))
