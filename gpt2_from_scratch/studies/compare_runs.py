"""Finished runs side by side, on the test texts that all of them kept."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.saving import read_classifier
from gpt2_from_scratch.data.messages import Message, count_labels
from gpt2_from_scratch.data.split import Split, messages_sha256
from gpt2_from_scratch.errors import DataError, GPT2Error, UsageError
from gpt2_from_scratch.evaluation.baselines import Baseline, baseline_fits
from gpt2_from_scratch.evaluation.metrics import rarer_label
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.reports.findings import file_name
from gpt2_from_scratch.reports.render import write_study_report
from gpt2_from_scratch.runs.folder import read_settings, read_test_part
from gpt2_from_scratch.runs.recipes import three_parts
from gpt2_from_scratch.storage.files import read_json, sha256_of
from gpt2_from_scratch.studies.compare_report import comparison_facts, versions_on
from gpt2_from_scratch.studies.contenders import saved_as_baseline
from gpt2_from_scratch.studies.contest import (
    ENSEMBLE,
    Contest,
    Fits,
    contest,
    ensembles,
    play,
    slug,
    text_fits,
    working_in,
    write_scoreboard,
)
from gpt2_from_scratch.studies.scoreboard import Scoreboard, make_scoreboard

log = logging.getLogger(__name__)

READING = ("text_column", "label_column", "encoding", "on_error", "keep_empty")


def compare_runs(
    runs: Sequence[str | Path],
    *,
    model: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    out: str | Path | None = None,
    quick: bool = False,
) -> Scoreboard:
    """Score finished runs on their common test texts; others are held against the first.

    With text baselines, where the first run's split can be cut again from its data; else `say` is
    told why not. `model` says where the base lies, if it has no known name. What is finished in the
    folder `out` (none: `runs/compare-RUN`) is not computed again. Raises UsageError for another
    task than classification and for two runs of one name, DataError where the runs' test texts or
    labels differ, naming the first difference.
    """
    folders = [Path(run) for run in runs]
    names = _names(folders)
    described = [read_classifier(folder / "best.safetensors")[0] for folder in folders]
    heads = [description.head for description in described]
    for name, head in zip(names, heads, strict=True):
        if head.task != "classification":
            raise UsageError(f"compare is for classification, and {name} is for {head.task}")
        if sorted(head.labels) != sorted(heads[0].labels):
            raise DataError(f"{name} has labels {head.labels}, {names[0]} {heads[0].labels}")
    test = _common_test_part(folders, names)
    labels = heads[0].labels
    out = Path(out) if out else runs_folder(runs)
    found = {str(f.resolve()): sha256_of(f / "best.safetensors") for f in folders}
    settings = {"runs": found, "dtype": str(dtype).removeprefix("torch.")}
    with working_in(out, settings):
        fits: Fits = {
            name: partial(_load, name, folder, model, labels, device, dtype)
            for name, folder in zip(names, folders, strict=True)
        }
        split = split_of(folders[0])
        if split:
            match = contest("test part", split, text_fits(split, labels, quick) | fits)
        else:
            match = Contest("test part", test, [], None, fits)
        results = play([match], labels, out)
        results += ensembles(results, names[0])
        first = read_json(folders[0] / "config.json")
        n_train = first.get("messages", {}).get("train", 0)
        counts = count_labels([*split.train, *split.val, *split.test] if split else test)
        watched = rarer_label(labels, [counts.get(label, 0) for label in labels])
        board = make_scoreboard(results, names[0], n_train, watched=watched, combined=[ENSEMBLE])
        write_scoreboard(out, board)
        bases = dict.fromkeys(file_name(description.base) for description in described)
        data = first.get("settings", {}).get("data", "")
        told = {"model": ", ".join(bases), "data": data} | settings
        write_study_report(comparison_facts(board, results, told, versions_on(device)), out)
    return board


def runs_folder(runs: Sequence[str | Path]) -> Path:
    """Where a comparison of runs is kept unless another folder is named."""
    return Path("runs") / f"compare-{Path(runs[0]).resolve().name}"


def split_of(run: Path) -> Split | None:
    """The split that a run was trained on, cut again from its data; None, and `say` is told why,
    where that cannot be had or is another by now.
    """
    why = "the data are others by now"
    try:
        settings, _ = read_settings(run)
        sources = {name: settings[name] for name in ("data", "val_data", "test_data")}
        reading = {name: settings[name] for name in READING}
        with silenced():  # what it logs was logged when the run was made
            split = three_parts(
                sources,
                settings["task"],
                reading,
                settings["balance"],
                settings["seed"],
                together=settings["together"],
            )
        if messages_sha256(split) == read_json(run / "config.json").get("messages_sha256"):
            return split
    except GPT2Error as error:
        why = f"{error}"
    log.warning(f"no text baselines: the split of {run} cannot be cut again: {why:.300}")
    return None


def _names(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name.replace(": ", ":") for folder in folders]
    taken = [slug(name) for name in (*names, *baseline_fits())]
    if len(set(taken)) < len(taken):
        raise UsageError(
            f"runs are told apart by their folders' names, and of {names} two are alike or one is a "
            "baseline's"
        )
    return names


def _common_test_part(folders: Sequence[Path], names: Sequence[str]) -> list[Message]:
    """The first run's test messages. Raises DataError where another run has not the same."""
    parts = [read_test_part(folder, "classification") for folder in folders]
    first = sorted(parts[0], key=_key)
    for name, part in zip(names[1:], parts[1:], strict=True):
        for a, b in zip(first, sorted(part, key=_key), strict=False):
            if a != b:
                raise DataError(
                    f"{name} has other test texts than {names[0]}, the first difference in order "
                    f"of the alphabet: {b.text!r:.80} ({b.label}), {a.text!r:.80} ({a.label}) there"
                )
        if len(part) != len(first):
            raise DataError(f"{name} has {len(part)} test texts, {names[0]} {len(first)}")
    return parts[0]


def _key(message: Message) -> tuple[str, str]:
    return message.text, message.label


def _load(
    name: str,
    folder: Path,
    model: str | Path | None,
    labels: Sequence[str],
    device: torch.device | str,
    dtype: torch.dtype,
) -> Baseline:
    classifier = Classifier.load(folder, model, dtype=dtype)
    classifier.merge()
    classifier.model.to(device)
    return saved_as_baseline(name, classifier, labels)
