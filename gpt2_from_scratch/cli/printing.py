"""Predictions as `predict` prints them: lines for a person, csv for a spreadsheet, JSON for a program."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.data.messages import for_spreadsheet, on_one_line, without_halves
from gpt2_from_scratch.errors import UsageError

if TYPE_CHECKING:
    from gpt2_from_scratch.classifier.classifier import Prediction

IN_COLUMNS = ("classification", "multi-label", "regression")  # tasks whose answers fit in a row


class Csv:
    """Rows of number, label, probabilities and, if wanted, the text.

    Several labels are separated by a bar; values have a column each. No label and no text becomes a
    formula in the spreadsheet that opens it. Raises UsageError for several heads, and for a head
    whose answers have no columns.
    """

    def __init__(self, file: TextIO, heads: Sequence[HeadConfig], with_text: bool = False):
        head = heads[0]
        if len(heads) > 1 or head.task not in IN_COLUMNS:
            what = f"answers of {head.task}" if len(heads) == 1 else "answers of several heads"
            raise UsageError(f"{what} have no columns for --csv. Use --json.")
        # with lines that end in \n, csv leaves a \r unquoted, which most readers take for a line end
        odd = with_text or any("\r" in label for label in head.labels)
        self._writer = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
        )
        self._with_text = with_text
        named = [] if head.task == "regression" else ["label"]
        self._write(["number", *named, *head.labels], "text")

    def write(self, number: int, text: str, prediction: "Prediction") -> None:
        """Write the row of one prediction."""
        self._write([str(number), *prediction.answer.as_cells()], without_halves(text))

    def _write(self, cells: list[str], text: str) -> None:
        row = [*cells, text] if self._with_text else cells
        self._writer.writerow([for_spreadsheet(cell) for cell in row])


def as_json(number: int, prediction: "Prediction") -> str:
    """One prediction as a JSON object on one line; the answers of several heads under their names."""
    found = {name: answer.as_dict() for name, answer in prediction.answers.items()}
    about = {k: v for k, v in asdict(prediction).items() if k != "answers"}
    only = next(iter(found.values())) if len(found) == 1 else found
    return json.dumps({"number": number} | only | about)


def as_line(text: str, prediction: "Prediction") -> str:
    """One prediction, what a reader should know about its text, and the beginning of the text."""
    lines = {name: answer.in_words() for name, answer in prediction.answers.items()}
    several = "; ".join(f"{name}: {line}" for name, line in lines.items())
    shown = several if len(lines) > 1 else next(iter(lines.values()))
    marks = {
        "cut": prediction.truncated,
        "empty": prediction.empty,
        "replaced": prediction.replaced,
    }
    marked = "".join(f"({mark}) " for mark, is_so in marks.items() if is_so)
    return f"{shown}  {marked}{on_one_line(text):.80}"
