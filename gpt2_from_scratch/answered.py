"""What a classifier said of labelled texts: all that scores and comparisons of it are made from.

N texts, K classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.files import write_text

LARGEST_SUM_ERROR = 1e-6  # of a row of probabilities, from 1


@dataclass(frozen=True)
class Answered:
    """Labelled texts and the probability a classifier gives each class.

    Raises DataError for shapes that do not fit, class numbers outside 0 to K - 1, and rows of
    `probabilities` that do not sum to 1.
    """

    labels: tuple[str, ...]  # the names of the K classes
    texts: list[str]
    true: np.ndarray  # (N,) int: the number of each text's class
    probabilities: np.ndarray  # (N, K) float64
    # (N,) bool: training had a text that is nearly the same; None where that is not known
    near_twins: np.ndarray | None = None

    def __post_init__(self) -> None:
        N, K = len(self.texts), len(self.labels)
        twins = self.near_twins
        if self.true.shape != (N,) or self.probabilities.shape != (N, K):
            raise DataError(
                f"{N} texts and {K} classes, but true is {self.true.shape} and probabilities "
                f"{self.probabilities.shape}"
            )
        if twins is not None and twins.shape != (N,):
            raise DataError(f"{N} texts, but near_twins is {twins.shape}")
        if N and not (0 <= self.true.min() <= self.true.max() < K):
            raise DataError(f"class numbers must be from 0 to {K - 1}")
        off = np.abs(self.probabilities.sum(axis=1) - 1)
        if not (off <= LARGEST_SUM_ERROR).all() or (self.probabilities < 0).any():
            raise DataError("probabilities of a text must be from 0 up and sum to 1")

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each text, of equals the first: (N,) int."""
        return self.probabilities.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        """Whether the likeliest class is the true one: (N,) bool."""
        return self.predicted == self.true

    def only(self, wanted: np.ndarray) -> "Answered":
        """The texts for which `wanted` (N,), bool, holds."""
        twins = self.near_twins
        return replace(
            self,
            texts=[text for text, is_wanted in zip(self.texts, wanted, strict=True) if is_wanted],
            true=self.true[wanted],
            probabilities=self.probabilities[wanted],
            near_twins=None if twins is None else twins[wanted],
        )


def write_answered(path: Path, answered: Answered) -> None:
    """Write a line of JSON a text, atomically: its label, what each class got, near_twin."""
    lines = []
    for n, text in enumerate(answered.texts):
        shares = dict(zip(answered.labels, answered.probabilities[n].tolist(), strict=True))
        line = {
            "text": text,
            "label": answered.labels[answered.true[n]],
            "predicted": answered.labels[answered.predicted[n]],
            "probabilities": shares,
        }
        if answered.near_twins is not None:
            line["near_twin"] = bool(answered.near_twins[n])
        lines.append(json.dumps(line))
    write_text(path, "".join(line + "\n" for line in lines))


def read_answered(path: Path) -> Answered:
    """Read what `write_answered` wrote. Raises DataError for anything else, and for no text."""
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        labels = tuple(lines[0]["probabilities"])
        return Answered(
            labels,
            [line["text"] for line in lines],
            np.array([labels.index(line["label"]) for line in lines]),
            np.array([[line["probabilities"][k] for k in labels] for line in lines], dtype=float),
            _near_twins(lines),
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} is no file of answers: {error!r:.200}") from None


def _near_twins(lines: Sequence[dict]) -> np.ndarray | None:
    if "near_twin" not in lines[0]:
        return None
    return np.array([line["near_twin"] for line in lines], dtype=bool)
