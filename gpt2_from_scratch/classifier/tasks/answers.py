"""Predictions as they are printed: for a person, as csv for a spreadsheet, as JSON for a program."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.data.messages import for_spreadsheet, on_one_line, without_halves
from gpt2_from_scratch.errors import UsageError

IN_COLUMNS = ("classification", "multi-label", "regression")  # tasks whose answers fit in a row


class Csv:
    """Rows of number, label, probabilities and, if it is wanted, the text.

    Of several labels a bar stands between; of values there is a column each. No label and no text
    becomes a formula in the spreadsheet that opens it. Raises UsageError for several heads, and for
    one whose answers have no columns.
    """

    def __init__(self, file: TextIO, heads: Sequence[HeadConfig], with_text: bool = False):
        head = heads[0]
        if len(heads) > 1 or head.task not in IN_COLUMNS:
            what = f"answers of {head.task}" if len(heads) == 1 else "several heads' answers"
            raise UsageError(f"{what} have no columns for --csv; use --json")
        # where lines end with \n, csv leaves a \r unquoted, which most readers take for a line's end
        odd = with_text or any("\r" in label for label in head.labels)
        self._writer = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
        )
        self._with_text = with_text
        named = [] if head.task == "regression" else ["label"]
        self._write(["number", *named, *head.labels], "text")

    def write(self, number: int, text: str, prediction: Any) -> None:
        """One row for one Prediction."""
        answer = prediction.answer
        if hasattr(answer, "values"):
            cells = [f"{value:.12g}" for value in answer.values.values()]
        else:
            shares = (f"{share:.6f}" for share in answer.probabilities.values())
            labels = [answer.label] if hasattr(answer, "label") else answer.labels
            cells = ["|".join(labels), *shares]
        self._write([str(number), *cells], without_halves(text))

    def _write(self, fields: list[str], text: str) -> None:
        row = [*fields, text] if self._with_text else fields
        self._writer.writerow([for_spreadsheet(field) for field in row])


def as_json(number: int, prediction: Any) -> str:
    """One JSON object in one line for one Prediction; of several heads, each under its name."""
    found = {name: _as_dict(answer) for name, answer in prediction.answers.items()}
    about = {k: v for k, v in asdict(prediction).items() if k != "answers"}
    only = next(iter(found.values())) if len(found) == 1 else found
    return json.dumps({"number": number} | only | about)


def _as_dict(answer: Any) -> dict[str, Any]:
    """One answer as JSON takes it; tags with the entities that they mark."""
    marked = (
        {"entities": [span._asdict() for span in answer.entities]}
        if hasattr(answer, "entities")
        else {}
    )
    return asdict(answer) | marked


def as_line(text: str, prediction: Any) -> str:
    """A Prediction, what is to be known about its text, and the beginning of the text."""
    told = {name: _told(answer) for name, answer in prediction.answers.items()}
    what = "; ".join(f"{name}: {line}" for name, line in told.items())
    what = what if len(told) > 1 else next(iter(told.values()))
    marks = {
        "cut": prediction.truncated,
        "empty": prediction.empty,
        "replaced": prediction.replaced,
    }
    shown = "".join(f"({mark}) " for mark, is_so in marks.items() if is_so)
    return f"{what}  {shown}{on_one_line(text):.80}"


def _told(answer: Any) -> str:
    """One answer, of whichever task, in a line."""
    shares = ", ".join(f"{k} {v:.3f}" for k, v in getattr(answer, "probabilities", {}).items())
    if hasattr(answer, "label"):
        return f"{answer.label}  ({shares})"
    if hasattr(answer, "labels"):
        return f"{', '.join(answer.labels) or '-'}  ({shares})"
    if hasattr(answer, "words"):
        marked = [word for word in answer.words if word.label != "O"]
        return " ".join(f"{on_one_line(word.word)}/{word.label}" for word in marked) or "-"
    if hasattr(answer, "probability"):
        return f"{on_one_line(answer.text)!r}  ({answer.start} to {answer.end}, {answer.probability:.3f})"
    if hasattr(answer, "nats"):
        return f"{answer.nats / max(1, answer.tokens):.3f} nats a token"
    if isinstance(answer.values, dict):
        return ", ".join(f"{name} {value:.4g}" for name, value in answer.values.items())
    return f"{len(answer.values)} numbers: {', '.join(f'{x:.3f}' for x in answer.values[:4])}, ..."
