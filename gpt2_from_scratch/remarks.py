"""What to think of before training on labelled texts: it hinders nothing, but scores hang on it."""

from collections.abc import Mapping

from gpt2_from_scratch.lengths import LabelLengths
from gpt2_from_scratch.metrics import wilson_interval

MOST_UNEVEN = 3  # times as many texts of the commonest label as of the rarest
TELLING = 0.8  # of pairs of texts, those whose labels length tells
ACCURACY = 0.95  # of a classifier whose test is imagined
WIDEST = 0.03  # half of the interval of that accuracy


def remarks(
    counts: Mapping[str, int], lengths: Mapping[str, LabelLengths], n_test: int | None
) -> list[str]:
    """Sentences on uneven labels, on lengths that give labels away, on a small test part.

    `counts` are of the labels, not empty; `n_test` texts are in the test part, None where there
    is none.
    """
    return [*_uneven(counts), *_told_by_length(lengths), *_small_test(n_test)]


def _uneven(counts: Mapping[str, int]) -> list[str]:
    common, rare = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[common] <= MOST_UNEVEN * counts[rare]:
        return []
    return [
        f"labels are uneven: {counts[common] / counts[rare]:.1f} {common} for one {rare}; see "
        "--balance and --class-weights balanced"
    ]


def _told_by_length(lengths: Mapping[str, LabelLengths]) -> list[str]:
    told = {label: of.longer for label, of in lengths.items() if of.longer is not None}
    if not told:
        return []
    # of two labels, about which the same can be said, the longer
    label = max(told, key=lambda label: (round(abs(told[label] - 0.5), 9), told[label]))
    share = max(told[label], 1 - told[label])
    if share < TELLING:
        return []
    which = "longer" if told[label] > 0.5 else "shorter"
    return [
        f"length alone tells much: of a text of {label} and another, that of {label} is the "
        f"{which} in {100 * share:.0f} % of pairs; a classifier may learn no more than that"
    ]


def _small_test(n_test: int | None) -> list[str]:
    if not n_test:
        return []
    low, high = wilson_interval(round(ACCURACY * n_test), n_test)
    half = (high - low) / 2
    if half <= WIDEST:
        return []
    return [
        f"{n_test:,} test texts: an accuracy of {100 * ACCURACY:.0f} % would be known to plus or "
        f"minus {100 * half:.0f} points"
    ]
