"""Near duplicates: texts that differ only in a number, a name or their spelling.

Two texts are near duplicates if their masked forms are equal, or if they have enough pairs of
neighbouring words in common: at least THRESHOLD of the pairs that occur in one of the two texts
must occur in both. This is the Jaccard similarity of their sets of word 2-shingles (Broder 1997).
Texts of fewer than three words, and texts without spaces between words, are compared by their
masked forms only.

What each threshold finds among the 5,171 distinct texts of the SMS Spam Collection:

| threshold | groups | spam texts in them (of 653) | ham texts in them (of 4,518) |
| --------- | ------ | --------------------------- | ---------------------------- |
| 0.8       | 110    | 211                         | 55                           |
| 0.6       | 153    | 282                         | 112                          |
| 0.5       | 170    | 302                         | 162                          |
| 0.4       | 180    | 317                         | 209                          |

Lowering the threshold from 0.8 to 0.6 adds mainly spam: templates with another number, prize or
spelling.
Below 0.6 it adds mainly ham: common phrases ("i m at home/work please call"), which are not
templates. No group contains both labels at any of these thresholds.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

THRESHOLD = 0.6
FEWEST_WORDS = 3  # shorter texts are compared by their masked forms only
LARGEST_PRODUCT = 2 * 10**6  # multiplications per chunk; about 100 MB


def masked(text: str) -> str:
    """Lower-case a text, and replace digits by 0 and runs of punctuation or space by a space.

    A text that contains only punctuation stays unchanged.
    """
    words = re.sub(r"[\W_]+", " ", re.sub(r"\d", "0", text.lower())).strip()
    return words or text


def has_near_duplicate(texts: Sequence[str], others: Iterable[str]) -> np.ndarray:
    """Whether each text has a near duplicate or a copy among `others`: (N,) bool."""
    forms = list(map(masked, texts))
    known = {form: number for number, form in enumerate(dict.fromkeys(map(masked, others)))}
    new = [form for form in dict.fromkeys(forms) if form not in known]
    pairs = _word_pairs([*known, *new])
    alike = set(known)
    for rows, _ in _similar(pairs[len(known) :], pairs[: len(known)]):
        alike.update(new[row] for row in rows)
    return np.array([form in alike for form in forms], dtype=bool)


def near_duplicate_groups(texts: Iterable[str]) -> list[int]:
    """The group number of each text; groups are numbered from 0 in order of first appearance.

    A chain of near duplicates forms one group, so two texts of a group may have little in common.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    forms = list(map(masked, texts))
    numbers = {form: number for number, form in enumerate(dict.fromkeys(forms))}
    groups = np.arange(len(numbers))
    pairs = _word_pairs(list(numbers))
    for rows, columns in _similar(pairs, pairs):  # join the groups of similar texts
        edges = (np.ones(len(rows), dtype=bool), (groups[rows], groups[columns]))
        graph = coo_array(edges, shape=2 * (len(numbers),))
        groups = connected_components(graph, directed=False)[1][groups]
    found = [int(groups[numbers[form]]) for form in forms]
    order = {group: number for number, group in enumerate(dict.fromkeys(found))}
    return [order[group] for group in found]


def _word_pairs(forms: Sequence[str]) -> Any:
    """Which pairs of neighbouring words each masked text contains: (N, pairs) sparse, 0 or 1."""
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import CountVectorizer

    long = [form if len(form.split()) >= FEWEST_WORDS else "" for form in forms]
    if not any(long):
        return csr_array((len(forms), 0), dtype=np.int32)
    counter = CountVectorizer(
        binary=True, ngram_range=(2, 2), token_pattern=r"\S+", lowercase=False, dtype=np.int32
    )
    return csr_array(counter.fit_transform(long))


def _similar(pairs: Any, others: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows of `pairs`, rows of `others`) that are near duplicates, chunk by chunk."""
    sizes, other_sizes = pairs.sum(axis=1), others.sum(axis=1)
    work = np.cumsum(pairs @ others.sum(axis=0), dtype=np.int64)  # multiplications up to each row
    starts = np.flatnonzero(np.diff(work // LARGEST_PRODUCT, prepend=-1))
    for start, stop in zip(starts, np.append(starts, len(work))[1:], strict=True):
        both = (pairs[start:stop] @ others.T).tocoo()
        rows, columns = start + both.coords[0], both.coords[1]
        near = both.data / (sizes[rows] + other_sizes[columns] - both.data) >= THRESHOLD
        yield rows[near], columns[near]
