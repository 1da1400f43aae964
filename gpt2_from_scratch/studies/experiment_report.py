"""The page of a table of experiments: which changes make a difference, and which may be chance."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from gpt2_from_scratch.evaluation.significance import format_p
from gpt2_from_scratch.reports.findings import SURE, between, file_name, listed, percent, texts_told
from gpt2_from_scratch.reports.render import Page, Part, Picture, Section, Table, Text
from gpt2_from_scratch.studies.experiment_table import Agreement, Summary
from gpt2_from_scratch.studies.experiments import Result


def experiment_page(
    summaries: Sequence[Summary],
    agrees: Agreement | None,
    results: Sequence[Result],
    notes: str,
    picture: Figure,
    *,
    model: str,
    data: str,
) -> Page:
    """The page of a table, the default its first row; `page.write_page` writes it.

    `notes` are lines of Markdown, `picture` is the table's.
    """
    default, n_test = summaries[0], len(results[0].right)
    seeds = list(dict.fromkeys(result.seed for result in results))
    told = told_by_kind(summaries)
    best = max(summaries, key=lambda s: s.mean)  # of equals the first
    first = (
        f"{len(summaries) - 1} changes of the default were tried on {file_name(data)} with GPT-2 "
        f"{file_name(model)}: {len(seeds)} seed{'' if len(seeds) == 1 else 's'} "
        f"({', '.join(map(str, seeds))}), {texts_told(n_test)} to test{'' if len(seeds) == 1 else ' each'}."
    )
    second = f"The default is right for {percent(default.mean)} of them (95 % interval {between(default.interval)})"
    if best is not default:
        second += f"; most often right is {best.row}, {percent(best.mean)} ({_how(best)})"
    alt = "; ".join(f"{s.row} {percent(s.mean)}" for s in summaries)
    parts: list[Part] = [Text(line) for line in told]
    sections = [
        Section("What makes a difference", parts),
        Section("All rows", [_table(summaries), Picture(picture, f"Test accuracies: {alt}.")]),
        Section("Order against the book", _order(agrees)),
        Section("Notes", [Text(line.removeprefix("- ")) for line in notes.splitlines()]),
    ]
    return Page(
        f"Experiments with GPT-2 {file_name(model)} on {file_name(data)}",
        [first, f"{second}."],
        _warnings(summaries, len(seeds)),
        [section for section in sections if section.parts],
    )


def told_by_kind(summaries: Sequence[Summary]) -> list[str]:
    """A sentence for each kind of rows of which some differ from the default beyond chance."""
    lines = []
    for about in dict.fromkeys(s.about for s in summaries[1:]):
        rows = [s for s in summaries[1:] if s.about == about]
        sure = [s for s in rows if s.p_adjusted < SURE]
        if sure:
            each = [
                f"{s.row} is {'better' if s.difference > 0 else 'worse'} than the default ({_how(s)})"
                for s in sure
            ]
            rest = len(rows) - len(sure)
            left = (
                f"; of {rest} more row{'s' if rest > 1 else ''} that cannot be said" if rest else ""
            )
            lines.append(f"{about[:1].upper()}{about[1:]}: {listed(each)}{left}.")
    return lines


def _warnings(summaries: Sequence[Summary], n_seeds: int) -> list[str]:
    found = []
    if n_seeds == 1:
        found.append(
            "This is one seed and one split: others give other scores, by chance alone. --seeds 1 2 3 runs more."
        )
    if len(summaries) > 1 and all(s.p_adjusted >= SURE for s in summaries[1:]):
        found.append(
            "No row differs from the default beyond chance: nothing here shows that a change helps or harms."
        )
    if len(summaries) > 1:
        found.append(
            "Who takes the best row for its score here has chosen by the test part, so that the score is too good: try it on texts that no row has seen."
        )
    return found


def _table(summaries: Sequence[Summary]) -> Table:
    several = len(summaries[0].accuracies) > 1
    columns = [
        "change",
        "accuracy",
        *(["spread"] if several else []),
        "95 % interval",
        "from the default",
        "p",
        "p, of so many",
        "the book",
    ]
    rows = []
    for s in summaries:
        against = [f"{100 * s.difference:+.2f}", _p(s.p), _p(s.p_adjusted)]
        spread = [f"{100 * s.spread:.2f}"] if several else []
        book = f"{s.book.accuracy:.2f} % (row {s.book.row})" if s.book else ""
        rows.append(
            [
                s.row,
                percent(s.mean),
                *spread,
                between(s.interval),
                *(["", "", ""] if s is summaries[0] else against),
                book,
            ]
        )
    return Table(columns, rows)


def _order(agrees: Agreement | None) -> list[Part]:
    if agrees is None:
        return []
    told = f"{agrees.rows} rows stand in the book's table too. Kendall's tau of the two orders, 1 if they are the same and -1 if reversed, is {agrees.tau:.2f} ({format_p(agrees.p)})."
    if not agrees.contrary:
        return [Text(f"{told} No pair is reversed here beyond chance.")]
    caption = "Pairs that are reversed here beyond chance (p not adjusted)"
    return [Text(told), Table(["better in the book", "better here"], agrees.contrary, caption, 2)]


def _how(s: Summary) -> str:
    return f"{100 * s.difference:+.2f} points, {format_p(s.p_adjusted)}, adjusted by Holm"


def _p(p: float) -> str:
    return format_p(p).removeprefix("p ").removeprefix("= ")
