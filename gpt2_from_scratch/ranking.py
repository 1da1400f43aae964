"""How well probabilities rank texts, whatever threshold one would cut them at.

N texts, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.extras import need_sklearn


@dataclass(frozen=True)
class Ranking:
    """One class against all others; None where no text is of it, or every one."""

    label: str
    roc_auc: float | None  # chance that a text of it ranks above one of another; 0.5 is guessing
    average_precision: (
        float | None
    )  # area under precision and recall; the class's share is guessing


def rankings(probabilities: np.ndarray, true: np.ndarray, labels: Sequence[str]) -> list[Ranking]:
    """Rank all texts by each class's probability: (N, K), true (N,) int -> one of each class.

    Of two classes both have the same ROC-AUC, and each its own average precision. Raises UsageError
    without scikit-learn, DataError for shapes that do not fit.
    """
    if probabilities.shape != (len(true), len(labels)):
        raise DataError(
            f"{len(true)} texts and {len(labels)} labels, but probabilities {probabilities.shape}"
        )
    need_sklearn("the area under a curve")
    from sklearn.metrics import average_precision_score, roc_auc_score

    found = []
    for k, label in enumerate(labels):
        is_it, shares = true == k, probabilities[:, k]  # (N,)
        if is_it.all() or not is_it.any():
            found.append(Ranking(label, None, None))
            continue
        area, precision = roc_auc_score(is_it, shares), average_precision_score(is_it, shares)
        found.append(Ranking(label, float(area), float(precision)))
    return found
