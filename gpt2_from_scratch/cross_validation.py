"""The same messages split many times, so that a score hangs less on which texts were tested.

No scikit-learn is needed for it: its StratifiedGroupKFold cuts test parts only, while here the part
to choose by is cut in groups too, and both are dealt as `split.split_messages` deals its parts.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gpt2_from_scratch.data import Message, check_on_error
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.split import (
    Split,
    check_together,
    copies_and_texts,
    deal,
    draw,
    groups_by_label,
    in_random_order,
    split_messages,
)

VAL_SHARE = 1 / 8  # of what is not tested


def folds(
    messages: Sequence[Message],
    n: int,
    *,
    seed: int = 123,
    together: str = "near-twins",
    balance: bool = False,
    on_error: str = "stop",
    say: Callable[[str], None] = print,
) -> list[Split]:
    """Cut the distinct texts into `n` test parts; what is not tested is trained on but for an
    eighth to choose by: n splits.

    Each distinct text is tested once (with `balance`, each that is drawn). Every part has the
    labels in the proportions of the whole, as nearly as groups allow. The same messages and seed
    give the same folds everywhere. For the other arguments and errors see `split_messages`; raises
    UsageError for fewer than 2 folds, DataError for more folds than a label has groups.
    """
    if n < 2:
        raise UsageError(f"n = {n} folds: at least 2 are needed")
    check_on_error(on_error)
    check_together(together)
    copies, by_label = copies_and_texts(messages, balance, on_error, say)
    random = np.random.RandomState(seed)
    parts: list[tuple[list[str], ...]] = [([], [], []) for _ in range(n)]  # as in Split
    for groups in groups_by_label(draw(by_label, balance, random), together).values():
        dealt = deal(groups, _equal(sum(map(len, groups)), n), random)
        for k, tested in enumerate(dealt):
            rest = [group for other in dealt if other is not tested for group in other]
            train, val = deal(rest, _less_val(sum(map(len, rest))), random)
            for part, found in zip(parts[k], (train, val, tested), strict=True):
                part.extend(text for group in found for text in group)
    return [Split(*(in_random_order(part, copies, random) for part in fold)) for fold in parts]


def repeated_splits(
    messages: Sequence[Message], seeds: Iterable[int], **options: Any
) -> list[Split]:
    """A split for each seed; `options` are those of `split_messages`. Test parts overlap."""
    return [split_messages(messages, seed=seed, **options) for seed in seeds]


def _equal(count: int, n: int) -> list[int]:
    """Sizes of n parts that differ by one at most."""
    return [count // n + (k < count % n) for k in range(n)]


def _less_val(count: int) -> list[int]:
    """How many of the texts that are not tested are trained on, and chosen by."""
    n_val = max(1, round(VAL_SHARE * count))
    return [count - n_val, n_val]
