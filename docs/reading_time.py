"""How many minutes each chapter takes to read: `python docs/reading_time.py`.

A learner reads 200 words per minute, or 10 lines of code, output or shown source per minute. Pictures,
exercises and runs are not counted. Minutes are rounded to 5. A test compares them with the README.
"""

import json
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[1] / "chapters" / "notebooks"
WORDS, LINES, STEP = 200, 10, 5


def minutes(notebook: Path) -> int:
    """The reading time of a notebook with its outputs."""
    words = lines = 0
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            words += len(text.split())
            continue
        shown = [text, *map(_text, cell["outputs"])]
        lines += sum(bool(line.strip()) for part in shown for line in part.splitlines())
    return STEP * round((words / WORDS + lines / LINES) / STEP)


def _text(output: dict) -> str:
    data = output.get("data", {})
    found = output.get("text") or data.get("text/markdown") or data.get("text/plain") or ""
    return "".join(found)


def main() -> None:
    """Print the minutes of every chapter and their sum."""
    found = {path.stem: minutes(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    for name, time in found.items():
        print(f"{name:<20} {time:>3}")
    print(f"{'all':<20} {sum(found.values()):>3}")


if __name__ == "__main__":
    main()
