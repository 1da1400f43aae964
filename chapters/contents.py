"""The course's table of contents: its parts, its road maps and how long each chapter takes to read.

    python chapters/contents.py

prints the minutes of every chapter. A learner reads 200 words per minute, or 10 lines of code, output
or shown source per minute. Pictures, checks, exercises and runs are not counted. Minutes are rounded
to 5. Each chapter and the README state them, and tests compare.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHAPTERS = Path(__file__).resolve().parent
NOTEBOOKS = CHAPTERS / "notebooks"
WORDS, LINES, STEP = 200, 10, 5
PARTS = (  # of the course, each with its chapters as the road map names them
    {
        "00_the_lecture": "the lecture",
        "01_messages": "messages",
        "02_tokens": "tokens",
        "03_attention": "attention",
        "04_network": "network",
        "05_weights": "weights",
        "06_head": "head",
        "07_last_token": "last token",
        "08_freezing": "freezing",
        "09_loss_and_accuracy": "loss",
        "10_finetuning": "finetuning",
        "11_use": "use",
    },
    {
        "12_evaluation": "evaluation",
        "13_where_to_read": "where to read",
        "14_speed": "speed",
    },
    {
        "15_pretraining": "pretraining",
        "16_heads": "heads",
        "17_words_and_spans": "words and spans",
        "18_probes": "probes",
        "19_several_heads": "several heads",
        "20_lora": "LoRA",
        "21_explanations": "explanations",
    },
)
UNREAD = ("## Checks", "## Exercises")  # sections that the reading time leaves out


def road_map(name: str) -> str:
    """The line that shows where a chapter is in its part, with the chapter in bold."""
    part = next(part for part in PARTS if name in part)
    steps = [f"**{title}**" if chapter == name else title for chapter, title in part.items()]
    start = f"{steps.pop(0)} · " if name in PARTS[0] else ""  # the lecture is a tour of its own
    return f"**You are here:** {start}{' → '.join(steps)}"


def with_facts(script: str, name: str, minutes: int) -> str:
    """The text of a chapter's script with the right road map and reading time."""
    script = re.sub(r"\*\*You are here:\*\* .*", road_map(name), script, count=1)
    return re.sub(r"(?<=\*\*Reading time:\*\* )\d+(?= minutes)", str(minutes), script, count=1)


def reading_time(cells: Iterable[Mapping[str, Any]]) -> int:
    """The minutes that the cells of a notebook take to read, with their outputs."""
    words = lines = 0
    for cell in cells:
        text = "".join(cell["source"])
        if text.startswith(UNREAD):
            break
        if cell["cell_type"] == "markdown":
            words += len(text.split())
            continue
        shown = [text, *map(_text, cell["outputs"])]
        lines += sum(bool(line.strip()) for part in shown for line in part.splitlines())
    return STEP * round((words / WORDS + lines / LINES) / STEP)


def _text(output: Mapping[str, Any]) -> str:
    data = output.get("data", {})
    found = output.get("text") or data.get("text/markdown") or data.get("text/plain") or ""
    return "".join(found)


def main() -> None:
    """Print the minutes of every chapter and their sum."""
    total = 0
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        minutes = reading_time(json.loads(path.read_text(encoding="utf-8"))["cells"])
        total += minutes
        print(f"{path.stem:<20} {minutes:>3}")
    print(f"{'all':<20} {total:>3}")


if __name__ == "__main__":
    main()
