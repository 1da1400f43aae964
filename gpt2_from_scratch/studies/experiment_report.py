"""What experiments found, as the facts of a study's page."""

from collections.abc import Sequence

from gpt2_from_scratch.evaluation.significance import format_p
from gpt2_from_scratch.reports.findings import file_name
from gpt2_from_scratch.reports.study_findings import StudyFacts, StudyRow
from gpt2_from_scratch.studies.experiment_table import Agreement, Summary
from gpt2_from_scratch.studies.experiments import Result


def experiment_facts(
    summaries: Sequence[Summary],
    agrees: Agreement | None,
    results: Sequence[Result],
    notes: str,
    *,
    model: str,
    data: str,
) -> StudyFacts:
    """Collect the facts of a table of experiments; `notes` are lines of Markdown."""
    seeds = dict.fromkeys(result.seed for result in results)
    return StudyFacts(
        title=f"Experiments with GPT-2 {file_name(model)} on {file_name(data)}",
        model=model,
        data=data,
        rows=[_row(summary, summary is summaries[0]) for summary in summaries],
        reference=summaries[0].row,
        splits=[f"seed {seed}" for seed in seeds],
        n_train=results[0].n_train,
        n_test=len(results[0].right),
        published_in="the book",
        notes=[line.removeprefix("- ") for line in notes.splitlines()] + _order(agrees),
    )


def _row(summary: Summary, is_reference: bool) -> StudyRow:
    return StudyRow(
        name=summary.row,
        accuracy=summary.mean,
        interval=summary.interval,
        accuracies=summary.accuracies,
        difference=None if is_reference else summary.difference,
        p=None if is_reference else summary.p_adjusted,
        change=summary.about,
        published=summary.book.accuracy / 100 if summary.book else None,
        published_as=f"row {summary.book.row}" if summary.book else "",
        seconds=summary.seconds,
    )


def _order(agrees: Agreement | None) -> list[str]:
    """How the order of rows agrees with the book's."""
    if agrees is None:
        return []
    order = (
        f"Kendall's tau of the order of the {agrees.rows} rows that the book has too is "
        f"{agrees.tau:.2f} ({format_p(agrees.p)}): 1 means the same order, -1 the reverse."
    )
    pairs = [f"{b} is better than {a}" for a, b in agrees.contrary]
    if not pairs:
        return [f"{order} No pair is reversed here beyond chance."]
    return [f"{order} Reversed here beyond chance (p not adjusted): {'; '.join(pairs)}."]
