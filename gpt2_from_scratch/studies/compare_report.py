"""What a comparison found, as the facts of a study's page."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from gpt2_from_scratch.evaluation.baselines import baseline_fits
from gpt2_from_scratch.evaluation.metrics import Answered
from gpt2_from_scratch.reports.findings import file_name
from gpt2_from_scratch.reports.study_findings import StudyFacts, StudyRow
from gpt2_from_scratch.speed.devices import environment
from gpt2_from_scratch.studies.contest import ENSEMBLE
from gpt2_from_scratch.studies.scoreboard import Result, Score, Scoreboard


def comparison_facts(
    board: Scoreboard,
    results: Sequence[Result],
    settings: Mapping[str, Any],
    versions: Mapping[str, str | int],
) -> StudyFacts:
    """Collect the facts of a comparison; `results` are those that the board was made of.

    Of the settings, "model" and "data" are named at the top; "runs" are {folder: SHA-256}.
    """
    rows = [_row(score, score.name in baseline_fits()) for score in board.rows]
    shown = dict(settings)
    for run, found in shown.pop("runs", {}).items():
        shown[f"SHA-256 of run {file_name(run)}"] = found
    facts = StudyFacts(
        title=f"{board.ours} and what it must beat",
        model=settings.get("model", ""),
        data=settings.get("data", ""),
        rows=rows,
        reference=board.ours,
        splits=board.splits,
        n_train=board.n_train,
        n_test=board.n_test,
        labels=board.labels,
        positive=board.watched,
        predictions={row.name: _predictions(board, results, row.name) for row in rows},
        warnings=board.notes,
        settings=shown,
        versions=versions,
    )
    return facts


def versions_on(device: torch.device | str) -> dict[str, str | int]:
    """Name the versions that decide the last bits of a comparison."""
    where = environment(torch.device(device))
    return where | {"gpt2_from_scratch": version("gpt2-from-scratch")}


def _row(score: Score, is_text_baseline: bool) -> StudyRow:
    against = score.against_ours
    return StudyRow(
        name=score.name,
        accuracy=score.accuracy,
        interval=score.interval,
        accuracies=score.accuracies,
        difference=against.difference if against else None,
        difference_interval=against.interval if against else None,
        p=against.p if against else None,
        is_text_baseline=is_text_baseline,
        is_combination=score.name == ENSEMBLE,
        f1=score.f1,
        roc_auc=score.roc_auc,
        brier=score.brier,
        without_near_duplicates=score.without_twins,
        learned=score.learned,
        seconds=score.seconds,
    )


def _predictions(board: Scoreboard, results: Sequence[Result], kind: str) -> list[Answered]:
    """A row's predictions on each split, in the board's order; none if a split is missing."""
    found = {result.split: result.answered for result in results if result.kind == kind}
    return [found[split] for split in board.splits]
