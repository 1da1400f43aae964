"""How many test texts training has seen, or nearly seen, under three ways to split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2_from_scratch.data import Message
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.near_twins import has_twin
from gpt2_from_scratch.split import FRACTIONS, Split, split_messages


@dataclass(frozen=True)
class Leak:
    """Test texts that stand in training too (seen), or have a near twin or a copy there (near).

    `plain`: the rows split 70 / 10 / 20 % just as they are; `our`: as `split_messages` does;
    `together`: with near twins in one part, None where that cannot be done.
    """

    plain_test: int
    plain_seen: int
    plain_near: int
    our_test: int
    our_seen: int
    our_near: int
    together_test: int | None
    together_near: int | None


def count_leaks(messages: Sequence[Message], split: Split, seed: int) -> Leak:
    """Count them; `split` is ours of these messages, and `seed` draws the other two."""
    texts = [message.text for message in messages]
    order = np.random.RandomState(seed).permutation(len(texts))
    first, second = (int(fraction * len(texts)) for fraction in FRACTIONS)
    plain_seen, plain_near = _seen_and_near(
        [texts[n] for n in order[:first]], [texts[n] for n in order[first + second :]]
    )
    our_seen, our_near = _of_split(split)
    try:
        kept = split_messages(
            messages, seed=seed, together="near-twins", on_error="skip", say=lambda text: None
        )
    except DataError:
        kept = None
    return Leak(
        plain_test=len(texts) - first - second,
        plain_seen=plain_seen,
        plain_near=plain_near,
        our_test=len(split.test),
        our_seen=our_seen,
        our_near=our_near,
        together_test=len(kept.test) if kept else None,
        together_near=_of_split(kept)[1] if kept else None,
    )


def _of_split(split: Split) -> tuple[int, int]:
    train, test = ([message.text for message in part] for part in (split.train, split.test))
    return _seen_and_near(train, test)


def _seen_and_near(train: list[str], test: list[str]) -> tuple[int, int]:
    seen = set(train)
    return sum(text in seen for text in test), int(has_twin(test, train).sum())
