"""Near twins: texts that are the same but for a number, a name, or how they are written.

Two texts are near twins if their masked forms are equal, or if at least THRESHOLD of the pairs of
neighbouring words that stand in either stand in both (the Jaccard similarity of their sets of word
2-shingles; Broder 1997). A text of fewer than three words is compared by its masked form alone, and
so is one that does not separate words by spaces.

What the threshold finds among the 5,171 distinct texts of the SMS Spam Collection:

| threshold | groups | spam texts in them (of 653) | ham texts in them (of 4,518) |
| --------- | ------ | --------------------------- | ---------------------------- |
| 0.8       | 110    | 211                         | 55                           |
| 0.6       | 153    | 282                         | 112                          |
| 0.5       | 170    | 302                         | 162                          |
| 0.4       | 180    | 317                         | 209                          |

Down to 0.6 spam is gained, templates with another number, prize or spelling. Ham there is "X has
been set as your callertune" and "ok/mm i am on the way to X". Below it is mostly ham that is
gained: phrases that people share ("i m at home/work please call"), which are no templates. At no
threshold of these does a group hold both labels.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

THRESHOLD = 0.6
FEWEST_WORDS = 3  # of a text whose shingles say what it is
Shingles = set[tuple[str, str]]


class _Ranked(NamedTuple):
    """A text as it is compared: how many shingles it has, and which of them others may have too."""

    size: int
    ranks: list[int]  # the rarest shingle first


def masked(text: str) -> str:
    """What near twins have in common: lower-cased, every digit and every run of punctuation and
    white space alike. A text of nothing else stays as it is.
    """
    words = re.sub(r"[\W_]+", " ", re.sub(r"\d", "0", text.lower())).strip()
    return words or text


def has_twin(texts: Sequence[str], others: Iterable[str]) -> np.ndarray:
    """Whether each text has a near twin, or a copy of itself, among `others`: (N,) bool."""
    known = dict.fromkeys(map(masked, others))
    shingles = list(map(_shingles, known))
    rank_of = _ranks(_counts(shingles))
    ranked = [_ranked(found, rank_of) for found in shingles]
    index: dict[int, list[int]] = {}
    for number, other in enumerate(ranked):
        for rank in _prefix(other):
            index.setdefault(rank, []).append(number)

    def is_known(form: str) -> bool:
        if form in known:
            return True
        own = _ranked(_shingles(form), rank_of)
        ranks = set(own.ranks)
        found = (ranked[n] for rank in _prefix(own) for n in index.get(rank, ()))
        return any(_are_alike(own.size, ranks, other) for other in found)

    forms = list(map(masked, texts))
    answers = {form: is_known(form) for form in dict.fromkeys(forms)}
    return np.array([answers[form] for form in forms], dtype=bool)


def twin_groups(texts: Iterable[str]) -> list[int]:
    """The number of each text's group, from 0 in the order of the groups' first texts.

    Near twins are in one group, and so are near twins of near twins: two texts of a group may have
    little in common.
    """
    forms = list(map(masked, texts))
    numbers = {form: number for number, form in enumerate(dict.fromkeys(forms))}
    shingles = list(map(_shingles, numbers))
    counts = _counts(shingles)
    rank_of = _ranks({shingle: count for shingle, count in counts.items() if count > 1})
    parents = _join([_ranked(found, rank_of) for found in shingles])
    roots = [_root(parents, numbers[form]) for form in forms]
    group_of = {root: group for group, root in enumerate(dict.fromkeys(roots))}
    return [group_of[root] for root in roots]


def _join(texts: list[_Ranked]) -> list[int]:
    """Parents (union-find) of the texts, those of near twins joined.

    A text is held against those before it that share one of its rarest shingles. They are kept by
    the group they were in, so that of a group it has joined the others are passed over at once: a
    template with thousands of texts does not cost the square of that.
    """
    parents = list(range(len(texts)))
    index: dict[int, dict[int, list[int]]] = {}
    for number, text in enumerate(texts):
        ranks, prefix = set(text.ranks), _prefix(text)
        for rank in prefix:
            for group, others in index.get(rank, {}).items():
                root, own = _root(parents, group), _root(parents, number)
                if root != own and any(_are_alike(text.size, ranks, texts[n]) for n in others):
                    parents[own] = root
        root = _root(parents, number)
        for rank in prefix:
            index.setdefault(rank, {}).setdefault(root, []).append(number)
    return parents


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


def _shingles(form: str) -> Shingles:
    """The pairs of neighbouring words of a masked text; none of a text too short for them."""
    words = form.split()
    return set(zip(words, words[1:], strict=False)) if len(words) >= FEWEST_WORDS else set()


def _counts(shingles: list[Shingles]) -> Counter[tuple[str, str]]:
    """In how many texts each shingle stands."""
    return Counter(shingle for found in shingles for shingle in found)


def _ranks(counts: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """Each shingle's number, the rarest first; between equally rare ones any order will do."""
    return {shingle: rank for rank, shingle in enumerate(sorted(counts, key=counts.__getitem__))}


def _ranked(shingles: Shingles, rank_of: dict[tuple[str, str], int]) -> _Ranked:
    ranks = sorted(rank_of[shingle] for shingle in shingles if shingle in rank_of)
    return _Ranked(len(shingles), ranks)


def _prefix(text: _Ranked) -> list[int]:
    """As many of the rarest shingles as near twins need to have one of them in common.

    Near twins share THRESHOLD of the shingles of either, and those behind the prefix are one too
    few for that. Source: Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma, Srikant 2007.
    """
    fewest = math.ceil(THRESHOLD * text.size - 1e-9)  # 0.6 times 5 may come out above 3
    return text.ranks[: max(0, len(text.ranks) - fewest + 1)]


def _are_alike(size: int, ranks: set[int], other: _Ranked) -> bool:
    """Whether the Jaccard similarity of a text, its size and ranks, to the other is enough."""
    if min(size, other.size) < THRESHOLD * max(size, other.size) - 1e-9:
        return False
    both = len(ranks.intersection(other.ranks))
    return both / (size + other.size - both) >= THRESHOLD
