"""What is right without a model: scores below these mean that nothing was learned."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

from gpt2_from_scratch.errors import DataError


def most_frequent_tag(
    words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]
) -> Callable[[str], str]:
    """A function word -> tag: the tag that the word has most often in the texts of training.

    A word that was not seen is O where there is such a tag, else of the most frequent tag of all.
    Of tags that are equally frequent the one seen first counts. Raises DataError for texts without
    a word. Source: Jurafsky & Martin, Speech and Language Processing, the most frequent class
    baseline.
    """
    counts: dict[str, Counter[str]] = {}
    for text, its_tags in zip(words, tags, strict=True):
        for word, tag in zip(text, its_tags, strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    overall = Counter(chain.from_iterable(tags))
    if not overall:
        raise DataError("there is nothing to count: no tagged words")
    unseen = "O" if "O" in overall else _most_frequent(overall)
    known = {word: _most_frequent(its_counts) for word, its_counts in counts.items()}
    return lambda word: known.get(word, unseen)


def _most_frequent(counts: Counter[str]) -> str:
    return max(counts, key=counts.__getitem__)  # of equals the first, as a Counter keeps order
