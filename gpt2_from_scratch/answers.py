"""Predictions as they are printed: for a person, as csv for a spreadsheet, as JSON for a program."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from gpt2_from_scratch.characters import for_spreadsheet, on_one_line, without_halves


class Csv:
    """Rows of number, label, probabilities and, if it is wanted, the text.

    No label and no text becomes a formula in the spreadsheet that opens it.
    """

    def __init__(self, file: TextIO, labels: Sequence[str], with_text: bool = False):
        # where lines end with \n, csv leaves a \r unquoted, which most readers take for a line's end
        odd = with_text or any("\r" in label for label in labels)
        self._writer = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
        )
        self._with_text = with_text
        self._write(["number", "label", *labels], "text")

    def write(self, number: int, text: str, answer: Any) -> None:
        """One row for one Prediction."""
        shares = (f"{share:.6f}" for share in answer.probabilities.values())
        self._write([str(number), answer.label, *shares], without_halves(text))

    def _write(self, fields: list[str], text: str) -> None:
        row = [*fields, text] if self._with_text else fields
        self._writer.writerow([for_spreadsheet(field) for field in row])


def as_json(number: int, answer: Any) -> str:
    """One JSON object in one line for one Prediction."""
    return json.dumps({"number": number} | asdict(answer))


def as_line(text: str, answer: Any) -> str:
    """A Prediction, what is to be known about its text, and the beginning of the text."""
    shares = ", ".join(f"{name} {share:.3f}" for name, share in answer.probabilities.items())
    marks = {"cut": answer.truncated, "empty": answer.empty, "replaced": answer.replaced}
    shown = "".join(f"({mark}) " for mark, is_so in marks.items() if is_so)
    return f"{answer.label}  ({shares})  {shown}{on_one_line(text):.80}"
