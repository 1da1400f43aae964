"""Predictions as a csv table that is safe to open in a spreadsheet."""

import csv
import re
from collections.abc import Sequence
from typing import TextIO

from gpt2_from_scratch.classifier.classifier import Prediction
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks import answer_columns
from gpt2_from_scratch.data.messages import for_spreadsheet, without_halves

# a cell that a spreadsheet reads as a number, never as a formula
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]\d+)?", re.ASCII)


class PredictionTable:
    """A csv table with one row per prediction.

    The columns are number, label, probabilities, truncated and, if wanted, the text. Several labels
    are separated by bars; each value has its own column. `truncated` is true for a text that was
    longer than what the model reads. No label or text becomes a formula in a spreadsheet. Raises the
    errors of `answer_columns`.
    """

    def __init__(self, file: TextIO, heads: Sequence[HeadConfig], with_text: bool = False):
        *columns, text = answer_columns(heads, ["number"], ["truncated", "text"], for_spreadsheet)
        # quote every cell if one may have a \r: csv does not, and readers take it for a line end
        odd = with_text or any("\r" in label for label in heads[0].labels)
        self._writer = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
        )
        self._with_text = with_text
        self._write(columns, text)

    def write(self, number: int, text: str, prediction: Prediction) -> None:
        """Write one prediction as a row."""
        truncated = str(prediction.truncated).lower()
        self._write([str(number), *prediction.answer.as_row(), truncated], without_halves(text))

    def _write(self, cells: list[str], text: str) -> None:
        row = [cell if NUMBER.fullmatch(cell) else for_spreadsheet(cell) for cell in cells]
        self._writer.writerow([*row, for_spreadsheet(text)] if self._with_text else row)
