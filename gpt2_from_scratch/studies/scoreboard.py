"""One table for all rows of a study: means over splits, intervals, paired tests.

N texts, K classes, S splits.
"""

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from gpt2_from_scratch.data.messages import on_one_line, short
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.calibration import calibration
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions, evaluate_predictions, rankings
from gpt2_from_scratch.evaluation.significance import (
    accuracy_interval,
    compare_accuracies,
    format_p,
    holm,
)
from gpt2_from_scratch.reports.render import escape_markdown as escape
from gpt2_from_scratch.storage.files import write_json, write_text
from gpt2_from_scratch.studies.book import NOT_RUN
from gpt2_from_scratch.studies.rows import TEXT, Book, Result, Row

ENSEMBLE = Row("mean of ours and the best text baseline", "ensemble")
CALIBRATED = (
    "the probabilities of a finetuned GPT-2, and of one from random weights, use a temperature that was "
    "fitted on the validation set, unless this was switched off; the probabilities of text baselines "
    "and of frozen features are not changed after fitting"
)
ABOUT_THE_BOOK = (
    "the book's numbers are for 124M, with one seed per row, on one split of 300 test messages, 36 of "
    "which are also in the training set; the interval of 95.00% is 91.9 to 96.9. Its rows read the "
    "last position, which is padding, unless noted otherwise"
)


@dataclass(frozen=True)
class Difference:
    """A row's accuracy minus that of the reference; above 0, the row is better."""

    difference: float
    interval: tuple[float, float]  # 95% interval
    p: float  # p-value: probability of a difference at least this large if both are equally good
    p_adjusted: float  # adjusted for the number of rows compared (Holm)


@dataclass(frozen=True)
class Score:
    """One row's scores: means over splits. A score is None if it is undefined or unknown."""

    name: str
    about: str  # the kind of row
    accuracy: float
    interval: tuple[float, float]  # 95% interval of the mean
    accuracies: tuple[float, ...]  # one per split
    spread: float  # standard deviation of the accuracies
    f1: float | None  # F1 of the positive label, or the mean over labels
    # ROC-AUC of the positive label, or the mean of each label against the rest
    roc_auc: float | None
    brier: float
    without_near_duplicates: float | None  # accuracy on texts without a near duplicate in training
    difference: Difference | None  # None for the reference
    seconds: float
    learned: tuple[str, ...] = ()  # what was fitted on each split, in a few words; may be empty
    book: Book | None = None


@dataclass(frozen=True)
class Scoreboard:
    """All rows of a study, compared with its reference."""

    reference: str
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    positive: str  # the label whose F1 and ROC-AUC are shown; "": the mean over labels
    n_train: int  # training texts of the reference per split, on average
    n_test: int
    # test texts of all splits without a near duplicate in training; None if unknown
    n_without_near_duplicates: int | None
    rows: tuple[Score, ...]
    notes: tuple[str, ...] = ()

    @property
    def compared(self) -> list[Score]:
        """All rows except the reference."""
        return [row for row in self.rows if row.difference]


def make_scoreboard(
    results: Sequence[Result], reference: str, *, positive: str = "", ranked: bool = True
) -> Scoreboard:
    """Score every row and compare it with the row `reference`.

    With one split, an accuracy has Wilson's interval. A difference has the paired interval and the
    exact McNemar test. With several splits, intervals and tests take into account that splits have
    texts in common. Rows without predictions for some split are left out, and a note says so.

    Args:
        results: The predictions of all rows on all splits.
        reference: The name of the row with which the others are compared.
        positive: The label whose F1 and ROC-AUC are shown; empty for the mean over labels.
        ranked: Sort the rows by accuracy, with the ensemble last; otherwise they keep their order.

    Returns:
        The scores of all rows, and their differences from the reference.

    Raises:
        DataError: The reference has no predictions for some split, or rows predicted other texts.
    """
    splits = tuple(dict.fromkeys(result.split for result in results))
    found: dict[str, dict[str, Result]] = {}
    for result in results:
        found.setdefault(result.row.name, {})[result.split] = result
    partly = [name for name, some in found.items() if len(some) < len(splits)]
    if reference not in found or reference in partly:
        raise DataError(
            f"{reference} has no predictions for some split, so there is nothing to compare with"
        )
    whole = {name: [found[name][s] for s in splits] for name in found if name not in partly}
    for split in zip(*whole.values(), strict=True):
        _refuse_other_texts(split)
    first = whole[reference]
    n_train = round(np.mean([result.n_train for result in first]))
    correct = {name: [r.predictions.correct for r in some] for name, some in whole.items()}
    others = [name for name in whole if name != reference]
    tests = [compare_accuracies(correct[name], correct[reference], n_train) for name in others]
    adjusted = holm([test.p for test in tests])
    differences = {
        name: Difference(test.difference, test.interval, test.p, p)
        for name, test, p in zip(others, tests, adjusted, strict=True)
    }
    rows = [_score(some, positive, differences.get(name), n_train) for name, some in whole.items()]
    if ranked:  # rows with equal accuracy keep their order
        rows.sort(key=lambda row: (row.about == ENSEMBLE.about, -row.accuracy))
    masks = [result.predictions.near_duplicates for result in first]
    known = [mask for mask in masks if mask is not None]
    return Scoreboard(
        reference,
        splits,
        first[0].predictions.labels,
        positive,
        n_train,
        round(np.mean([len(result.predictions.texts) for result in first])),
        sum(int((~mask).sum()) for mask in known) if len(known) == len(masks) else None,
        tuple(rows),
        tuple(
            f"{name}: left out, because it has predictions for some splits only" for name in partly
        ),
    )


def mean_result(row: Row, results: Sequence[Result], learned: str = "") -> Result:
    """The result of a row whose probabilities are the mean of several rows' probabilities.

    Raises DataError if the rows predicted different texts.
    """
    _refuse_other_texts(results)
    first = results[0].predictions
    mean = np.mean([result.predictions.probabilities for result in results], axis=0)  # (N, K)
    predictions = LabelledPredictions(
        first.labels, first.texts, first.true, mean, first.near_duplicates
    )
    seconds = sum(result.seconds for result in results)
    n_train = max(result.n_train for result in results)
    return Result(row, results[0].split, predictions, n_train, learned=learned, seconds=seconds)


def ensembles(results: Sequence[Result], reference: str) -> Iterator[Result]:
    """Yield, for each split, the mean of the reference and the best text baseline.

    The baseline is selected by its accuracy on the validation set; on a tie, the first one is used.
    A split without the reference or without a baseline yields nothing.
    """
    for split in dict.fromkeys(result.split for result in results):
        here = [result for result in results if result.split == split]
        mine = [result for result in here if result.row.name == reference]
        texts = [r for r in here if r.row.about == TEXT and r.val_accuracy is not None]
        if mine and texts:
            best = max(texts, key=lambda result: result.val_accuracy or 0.0)
            yield mean_result(ENSEMBLE, [*mine, best], best.row.name)


def _score(
    results: Sequence[Result], positive: str, difference: Difference | None, n_train: int
) -> Score:
    row = results[0].row
    accuracies = tuple(result.accuracy for result in results)
    every = [result.predictions for result in results]
    learned = tuple(result.learned for result in results)
    return Score(
        name=row.name,
        about=row.about,
        accuracy=float(np.mean(accuracies)),
        interval=accuracy_interval([p.correct for p in every], n_train),
        accuracies=accuracies,
        spread=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        f1=_mean([_f1(p, positive) for p in every]),
        roc_auc=_mean([_roc_auc(p, positive) for p in every]),
        brier=float(np.mean([calibration(p.probabilities, p.true).brier for p in every])),
        without_near_duplicates=_mean([_without_near_duplicates(p) for p in every]),
        difference=difference,
        seconds=float(np.mean([result.seconds for result in results])),
        learned=learned if any(learned) else (),
        book=row.book,
    )


def _f1(p: LabelledPredictions, positive: str) -> float:
    """F1 of the positive label, or the mean over labels; F1 is 0 if a label never occurs."""
    scores = evaluate_predictions(p.true, p.predicted, list(p.labels)).classes
    return float(np.mean([s.f1 or 0.0 for s in scores if s.label == positive or not positive]))


def _roc_auc(p: LabelledPredictions, positive: str) -> float | None:
    found = rankings(p.probabilities, p.true, p.labels)
    return _mean([r.roc_auc for r in found if r.label == positive or not positive])


def _without_near_duplicates(p: LabelledPredictions) -> float | None:
    if p.near_duplicates is None or p.near_duplicates.all():
        return None
    return float(p.correct[~p.near_duplicates].mean())


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None if any value is None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _refuse_other_texts(results: Sequence[Result]) -> None:
    for one, other in pairwise(results):
        a, b = one.predictions, other.predictions
        if a.labels != b.labels or a.texts != b.texts or not np.array_equal(a.true, b.true):
            raise DataError(
                f"{one.row.name} and {other.row.name} predicted different texts or labels ({one.split})"
            )


# --- output as Markdown and JSON ---


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, and a function that makes a row's cell."""

    title: Callable[[Scoreboard], str]
    cell: Callable[[Score, Scoreboard], str]


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int) -> str:
    return _fixed(None if value is None else 100 * value, digits)


def short_p(p: float) -> str:
    """Format a p-value for a table: `0.031`, `< 0.001`."""
    return format_p(p).removeprefix("p ").removeprefix("= ")


def _of_difference(text: Callable[[Difference], str]) -> Callable[[Score, Scoreboard], str]:
    """Make a function for cells that show a difference, and are empty for the reference."""
    return lambda row, board: text(row.difference) if row.difference else ""


COLUMNS = {
    "change": Column(lambda board: "change", lambda row, board: escape(row.name)),
    "classifier": Column(lambda board: "classifier", lambda row, board: escape(row.name)),
    "accuracy": Column(
        lambda board: "test accuracy, %", lambda row, board: _percent(row.accuracy, 2)
    ),
    "spread": Column(
        lambda board: "spread",
        lambda row, board: _percent(row.spread, 2) if len(board.splits) > 1 else "-",
    ),
    "interval": Column(
        lambda board: "95% interval",
        lambda row, board: " to ".join(_percent(bound, 1) for bound in row.interval),
    ),
    "each split": Column(
        lambda board: "each split",
        lambda row, board: ", ".join(_percent(accuracy, 1) for accuracy in row.accuracies),
    ),
    "F1": Column(
        lambda board: f"F1 of {escape(board.positive)}, %" if board.positive else "mean F1, %",
        lambda row, board: _percent(row.f1, 1),
    ),
    "ROC-AUC": Column(lambda board: "ROC-AUC", lambda row, board: _fixed(row.roc_auc, 4)),
    "Brier": Column(lambda board: "Brier", lambda row, board: f"{row.brier:.4f}"),
    "without near duplicates": Column(
        lambda board: "without near duplicates, %",
        lambda row, board: _percent(row.without_near_duplicates, 2),
    ),
    "difference": Column(
        lambda board: f"difference from {escape(board.reference)}",
        _of_difference(lambda d: f"{100 * d.difference:+.2f}"),
    ),
    "p": Column(lambda board: "p", _of_difference(lambda d: short_p(d.p))),
    "adjusted p": Column(
        lambda board: "adjusted p", _of_difference(lambda d: short_p(d.p_adjusted))
    ),
    "book": Column(
        lambda board: "the book, %",
        lambda row, board: f"{row.book.accuracy:.2f} (row {row.book.row})" if row.book else "",
    ),
    "seconds": Column(lambda board: "s", lambda row, board: f"{row.seconds:.1f}"),
}
COMPARED = (
    "classifier",
    "accuracy",
    "interval",
    "each split",
    "F1",
    "ROC-AUC",
    "Brier",
    "without near duplicates",
    "difference",
    "adjusted p",
    "seconds",
)
EXPERIMENTS = (
    "change",
    "accuracy",
    "spread",
    "interval",
    "difference",
    "p",
    "adjusted p",
    "book",
    "seconds",
)


def format_scoreboard(board: Scoreboard, columns: Sequence[str] = COMPARED) -> str:
    """Format the table in Markdown, with notes on its numbers."""
    shown = [COLUMNS[name] for name in columns if name != "each split" or len(board.splits) > 1]
    table = [
        [column.title(board) for column in shown],
        ["---"] * len(shown),
        *([column.cell(row, board) for column in shown] for row in board.rows),
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(board, columns))])


def format_for_terminal(board: Scoreboard) -> str:
    """Format the main columns as a table of at most 100 characters per line."""
    from tabulate import tabulate

    headers = ["", "accuracy", "95% interval", "difference", "adjusted p"]
    rows = [
        [
            short(row.name, 44),
            *(
                COLUMNS[name].cell(row, board)
                for name in ("accuracy", "interval", "difference", "adjusted p")
            ),
        ]
        for row in board.rows
    ]
    table = tabulate(
        rows, headers, "plain", colalign=("left", *["right"] * 4), disable_numparse=True
    )
    about = f"Test accuracy in percent; difference from {short(board.reference, 44)} in points."
    return f"{about}\n\n{table}"


def notes(board: Scoreboard, columns: Sequence[str] = COMPARED) -> list[str]:
    """Notes in Markdown that explain the numbers in these columns."""
    significant = [
        f"{escape(row.name)} ({100 * row.difference.difference:+.2f} points, "
        f"{format_p(row.difference.p_adjusted)})"
        for row in board.rows
        if row.difference and row.difference.p_adjusted < 0.05
    ]
    lines = [
        _method(board),
        f"{len(significant)} of {len(board.compared)} rows differ significantly from "
        f"{escape(board.reference)} in test accuracy{': ' if significant else ''}"
        f"{', '.join(significant)}",
    ]
    if "Brier" in columns:
        lines += [
            "the Brier score is the sum of squared errors over classes; lower is better",
            CALIBRATED,
        ]
    if "without near duplicates" in columns and board.n_without_near_duplicates is not None:
        lines.append(
            f"without near duplicates: only the {board.n_without_near_duplicates:,} of "
            f"{board.n_test * len(board.splits):,} test texts that have no near duplicate in the "
            "training set"
        )
    for row in board.rows:
        if row.learned:
            pairs = zip(board.splits, row.learned, strict=True)
            several = len(board.splits) > 1
            each = [_code(text) + (f" ({split})" if several else "") for split, text in pairs]
            lines.append(f"{escape(row.name)}: {'; '.join(each)}")
    if "book" in columns and any(row.book for row in board.rows):
        lines.append(ABOUT_THE_BOOK)
        for row in board.rows:
            if row.book and row.book.note:
                lines.append(f"{escape(row.name)}: the book's row {row.book.row}, {row.book.note}")
        lines += [f"the book's row {n} is not repeated here: {why}" for n, why in NOT_RUN.items()]
    return [*lines, *map(escape, board.notes)]


def _method(board: Scoreboard) -> str:
    several, others = len(board.splits) > 1, len(board.compared)
    train = f"{board.n_train:,} training and " if board.n_train else ""
    return (
        f"{len(board.splits)} split{'s' if several else ''}, {train}{board.n_test:,} test texts"
        f"{' each' if several else ''}; "
        + (
            "intervals and p-values are from the corrected resampled t-test (Nadeau and Bengio 2003), "
            "because splits have texts in common"
            if several
            else "intervals are Wilson's; p-values are from the exact McNemar test on the same texts"
        )
        + "; a p-value is the probability of a difference at least this large "
        "if there were no real difference, adjusted by Holm for "
        f"{others} comparison{'' if others == 1 else 's'}"
    )


def _code(text: str) -> str:
    """The text on one line, as code in Markdown.

    It is between more backticks than the text has next to each other.
    """
    shown = on_one_line(text)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def write_scoreboard(
    board: Scoreboard, folder: Path, stem: str = "scoreboard", columns: Sequence[str] = COMPARED
) -> None:
    """Write the scoreboard to STEM.json, and its table of these columns to STEM.md."""
    write_json(folder / f"{stem}.json", asdict(board))
    write_text(folder / f"{stem}.md", format_scoreboard(board, columns) + "\n")
