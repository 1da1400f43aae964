"""What experiments came to: means over seeds, how sure they are, and the book's numbers beside."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpt2_from_scratch.evaluation.significance import (
    accuracy_interval,
    compare_accuracies,
    format_p,
    holm,
)
from gpt2_from_scratch.studies.ablations import NOT_RUN, Book, Row
from gpt2_from_scratch.studies.experiments import Result

TOLD = 2.0  # points: two rows of 300 messages and one seed that are nearer have no order


@dataclass(frozen=True)
class Summary:
    """One row over all its seeds. Accuracies are shares of the test messages."""

    row: str
    about: str
    accuracies: list[float]  # one a seed
    mean: float
    spread: float  # standard deviation over seeds
    interval: tuple[float, float]  # 95 %, of the mean
    difference: float  # from the default
    p: float  # the chance of such a difference if there were none
    p_adjusted: float  # for as many comparisons as there are rows (Holm)
    book: Book | None
    seconds: float  # of all seeds together


def summarize(rows: Sequence[Row], results: Sequence[Result]) -> list[Summary]:
    """Each row against the first, the default, over the same seeds.

    With several seeds by their splits (the corrected resampled t-test), with one by its messages
    (McNemar)..
    """
    of = {row.name: [r for r in results if r.row == row.name] for row in rows}
    default = of[rows[0].name]
    against = [_against(of[row.name], default) for row in rows]
    adjusted = [1.0, *holm([p for _, _, p in against[1:]])]
    return [
        Summary(
            row.name,
            row.about,
            accuracies := [r.accuracy for r in of[row.name]],
            statistics.fmean(accuracies),
            statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
            interval,
            difference,
            p,
            p_adjusted,
            row.book,
            sum(r.seconds for r in of[row.name]),
        )
        for row, (interval, difference, p), p_adjusted in zip(rows, against, adjusted, strict=True)
    ]


def _against(
    results: Sequence[Result], default: Sequence[Result]
) -> tuple[tuple[float, float], float, float]:
    """(the interval of a row's mean, its difference from the default, p)."""
    a, b = ([np.array([c == "1" for c in r.right]) for r in some] for some in (results, default))
    n_train = default[0].n_train
    found = compare_accuracies(a, b, n_train)
    return accuracy_interval(a, n_train), found.difference, found.p


@dataclass(frozen=True)
class Agreement:
    """How the order of rows agrees with the book's."""

    rows: int  # that both have
    tau: float  # Kendall's tau-b: 1 the same order, 0 none, -1 reversed
    p: float  # the chance of a tau at least as far from 0 if the orders had nothing to do with each other
    # (better there by two points or more, better here beyond chance: p < 0.05, adjusted for all such
    # pairs)
    contrary: list[tuple[str, str]]


def agreement(summaries: Sequence[Summary], results: Sequence[Result]) -> Agreement | None:
    """Compare the order of the rows that the book has too; None for fewer than three."""
    from scipy.stats import kendalltau

    both = [s for s in summaries if s.book]
    if len(both) < 3:
        return None
    theirs = {s.row: s.book.accuracy for s in both if s.book}
    if len({s.mean for s in both}) == 1 or len({*theirs.values()}) == 1:
        return None  # no order
    found = kendalltau([s.mean for s in both], list(theirs.values()))
    told = [(a, b) for a in both for b in both if theirs[a.row] - theirs[b.row] >= TOLD]
    pairs = [(a.row, b.row, _p_of(b.row, a.row, results)) for a, b in told]
    adjusted = holm([p for _, _, p in pairs])
    mean = {s.row: s.mean for s in both}
    contrary = [
        (a, b)
        for (a, b, _), p in zip(pairs, adjusted, strict=True)
        if mean[a] < mean[b] and p < 0.05
    ]
    return Agreement(len(both), float(found.statistic), float(found.pvalue), contrary)


def _p_of(one: str, other: str, results: Sequence[Result]) -> float:
    a, b = ([r for r in results if r.row == name] for name in (one, other))
    return _against(a, b)[2]


def format_table(summaries: Sequence[Summary]) -> str:
    """The table in Markdown, as README has it."""
    several = len(summaries[0].accuracies) > 1
    lines = [
        "| change | test accuracy, % | spread | 95 % interval | from the default | p | p, of so many | the book, % | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in summaries:
        low, high = (100 * bound for bound in s.interval)
        first = s is summaries[0]
        lines.append(
            f"| {s.row} | {100 * s.mean:.2f} | {f'{100 * s.spread:.2f}' if several else '-'} "
            f"| {low:.1f} to {high:.1f} | {'' if first else f'{100 * s.difference:+.2f}'} "
            f"| {'' if first else _p(s.p)} | {'' if first else _p(s.p_adjusted)} "
            f"| {_book(s.book)} | {s.seconds:.0f} |"
        )
    return "\n".join(lines)


def format_notes(summaries: Sequence[Summary], agrees: Agreement | None, n_test: int) -> str:
    """What is to be known about the table's numbers, ours and the book's."""
    seeds = len(summaries[0].accuracies)
    how = (
        f"{seeds} seeds, each a split of its own with {n_test} test messages; intervals and p by the "
        "corrected resampled t-test (Nadeau & Bengio 2003)"
        if seeds > 1
        else f"one seed, {n_test} test messages: Wilson's interval, McNemar's test"
    )
    real = [s for s in summaries[1:] if s.p_adjusted < 0.05]
    lines = [
        f"- {how}. p is the chance of such a difference from the default if there were none; the "
        f"next column adjusts it for {len(summaries) - 1} comparisons (Holm).",
        "- "
        + (
            f"{len(real)} of {len(summaries) - 1} rows differ from the default beyond chance: "
            + ", ".join(
                f"{s.row} ({100 * s.difference:+.1f}, {format_p(s.p_adjusted)})" for s in real
            )
            if real
            else "no row differs from the default beyond chance"
        )
        + ".",
    ]
    if any(s.book for s in summaries):
        lines += [
            "- The book's numbers are of 124M, one seed a row, on one split of 300 test messages of "
            "which 36 stand in training too: an interval of 95.00 % reaches from 91.9 to 96.9. Its "
            "rows read the last position, a pad, unless they say otherwise.",
            *(
                f"- {s.row}: the book's row {s.book.row}, {s.book.note}."
                for s in summaries
                if s.book and s.book.note
            ),
            *(f"- The book's row {row} is not run here: {why}." for row, why in NOT_RUN.items()),
        ]
    if agrees:
        lines.append(
            f"- Order of the {agrees.rows} rows that both have: Kendall's tau {agrees.tau:.2f}, "
            f"{format_p(agrees.p)}. "
            + (
                "Reversed here, and not by chance: "
                + "; ".join(f"{b} is better than {a}" for a, b in agrees.contrary)
                if agrees.contrary
                else "No pair is reversed beyond chance"
            )
            + "."
        )
    return "\n".join(lines)


def as_json(summaries: Sequence[Summary], agrees: Agreement | None) -> dict[str, Any]:
    """The same for other programs."""
    return {
        "rows": [asdict(s) for s in summaries],
        "agreement": None if agrees is None else asdict(agrees),
    }


def _p(p: float) -> str:
    return format_p(p).removeprefix("p ").removeprefix("= ")


def _book(book: Book | None) -> str:
    return "" if book is None else f"{book.accuracy:.2f} (row {book.row})"
