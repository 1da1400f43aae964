"""How long texts are, what a limit cuts from them, and whether length alone tells labels apart.

N texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lengths:
    """How long texts are."""

    shortest: int
    median: float
    longest: int


@dataclass(frozen=True)
class Cut:
    """What a limit takes away: how many texts are longer, how many of all their tokens are lost."""

    limit: int
    texts: int
    tokens: int
    all_tokens: int


@dataclass(frozen=True)
class LabelLengths:
    """The median length of one label's texts, and how often one of them is longer than one of
    another label: of all such pairs, equal ones counted half. None where there is no other label.
    """

    median: float
    longer: float | None


def spread(lengths: Sequence[int]) -> Lengths | None:
    """The shortest, the median and the longest; None of no texts."""
    if not lengths:
        return None
    return Lengths(min(lengths), float(np.median(lengths)), max(lengths))


def cut(lengths: Sequence[int], limit: int) -> Cut:
    """What is lost of texts of these lengths, in tokens, if they are cut behind `limit`."""
    over = [length - limit for length in lengths if length > limit]
    return Cut(limit, len(over), sum(over), sum(lengths))


def lengths_by_label(lengths: Sequence[int], labels: Sequence[str]) -> dict[str, LabelLengths]:
    """{label: its texts' lengths} of N texts, in the labels' alphabetical order.

    `longer` is the area under the ROC curve of the length, by ranks: Mann and Whitney 1947.
    """
    values, place, counts = np.unique(
        np.array(lengths, dtype=int), return_inverse=True, return_counts=True
    )
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # (N,), from 1; of equals the mean
    found = {}
    for label in sorted(set(labels)):
        own = np.array([other == label for other in labels])
        n, others = int(own.sum()), int((~own).sum())
        wins = float(ranks[own].sum()) - n * (n + 1) / 2
        median = float(np.median(values[place[own]]))
        found[label] = LabelLengths(median, wins / (n * others) if others else None)
    return found
