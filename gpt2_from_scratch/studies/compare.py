"""A finetuned GPT-2 beside what it must beat, on the very same splits: one call."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.data.messages import Message, count_labels, load_messages
from gpt2_from_scratch.data.split import Split, folds, messages_sha256, split_messages
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.evaluation.baselines import class_numbers
from gpt2_from_scratch.evaluation.metrics import rarer_label
from gpt2_from_scratch.reports.render import write_study_report
from gpt2_from_scratch.speed.devices import check_dtype
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.paths import data_name, model_name
from gpt2_from_scratch.studies.compare_report import comparison_facts, versions_on
from gpt2_from_scratch.studies.contenders import (
    FROZEN,
    Finetuning,
    fit_finetuned,
    fit_frozen,
    fit_random,
)
from gpt2_from_scratch.studies.contest import (
    ENSEMBLE,
    Fits,
    contest,
    ensembles,
    play,
    text_fits,
    working_in,
    write_scoreboard,
)
from gpt2_from_scratch.studies.scoreboard import Scoreboard, make_scoreboard


def compare(
    model: str | Path = "mini",
    data: str | Path = "demo",
    *,
    config: TrainConfig | None = None,
    settings: HeadSettings | None = None,
    seeds: Sequence[int] = (),
    n_folds: int = 0,
    together: str = "",
    balance: bool = False,
    text_column: str = "text",
    label_column: str = "label",
    encoding: str = "utf-8",
    on_error: str = "stop",
    keep_empty: bool = False,
    max_tokens: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache: bool = True,
    out: str | Path | None = None,
    quick: bool = False,
) -> Scoreboard:
    """Train and score on the same splits: text baselines, frozen features, random weights, ours.

    Ours is the `model` finetuned by `config` and `settings`, as `train_classifier` does it. Each of
    `seeds` (none: the config's) gives a split of its own and all that is drawn on it; `n_folds`
    instead cuts the texts into so many folds, each of which is tested on once. `together` says what
    never stands in two parts (split.py; none: copies, and near twins for folds). `quick` leaves out
    random weights and the slower baselines. What is finished in the folder `out` (none:
    `runs/compare-MODEL-DATA`) is not computed again; other seeds may be added to it. Raises
    UsageError for another task than classification, for seeds and folds together, and for a folder
    begun with other settings.
    """
    settings = settings or HeadSettings()
    config = config or TrainConfig(n_last_blocks=0 if settings.lora else 1)
    seeds = tuple(seeds)
    check_dtype(dtype)
    _refuse(settings, seeds, n_folds)
    together = together or ("near-twins" if n_folds else "copies")
    reading: dict[str, Any] = {
        "text_column": text_column,
        "label_column": label_column,
        "encoding": encoding,
        "on_error": on_error,
        "keep_empty": keep_empty,
    }
    messages = load_messages(data, **reading)
    counts = count_labels(messages)
    labels = [part.strip() for part in settings.labels.split(",")] if settings.labels else [*counts]
    class_numbers(messages, labels)  # each label is known
    out = Path(out) if out else compare_folder(model, data)
    ours = Finetuning(model, config, settings, max_tokens, device, dtype)
    saved = (
        reading
        | asdict(settings)
        | asdict(config)
        | {
            "model": model_name(model),
            "data": data_name(data),
            "balance": balance,
            "together": together,
            "folds": n_folds,
            "max_tokens": max_tokens,
            "dtype": str(dtype),
            "messages_sha256": messages_sha256(Split(messages, [], [])),
        }
    )
    if not n_folds:
        saved.pop("seed")  # each split has its own
    with working_in(out, saved):
        splits = _splits(
            messages, seeds or (config.seed,), n_folds, together, balance, on_error, config.seed
        )
        store = FeatureStore() if cache else None
        contests = [
            contest(
                name,
                split,
                _fits(
                    replace(ours, config=replace(config, seed=seed)), split, labels, store, quick
                ),
            )
            for name, (seed, split) in splits.items()
        ]
        results = play(contests, labels, out)
        results += ensembles(results, ours.name)
        sizes = [len(split.train) for _, split in splits.values()]
        watched = rarer_label(labels, [counts.get(label, 0) for label in labels])
        board = make_scoreboard(
            results, ours.name, round(np.mean(sizes)), watched=watched, combined=[ENSEMBLE]
        )
        write_scoreboard(out, board)
        told = saved | {"dtype": str(dtype).removeprefix("torch.")}
        write_study_report(comparison_facts(board, results, told, versions_on(device)), out)
    return board


def compare_folder(model: str | Path, data: str | Path) -> Path:
    """Where a comparison is kept unless another folder is named."""
    return Path("runs") / f"compare-{Path(model).resolve().name}-{Path(data).stem}"


# --- its parts ---


def _refuse(settings: HeadSettings, seeds: Sequence[int], n_folds: int) -> None:
    if settings.task != "classification":
        raise UsageError(f"compare is for classification, not for {settings.task}")
    if seeds and n_folds:
        raise UsageError("give seeds, each of which is a split, or a number of folds, not both")
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds {list(seeds)}: one of them stands there twice")


def _splits(
    messages: list[Message],
    seeds: Sequence[int],
    n_folds: int,
    together: str,
    balance: bool,
    on_error: str,
    seed: int,
) -> dict[str, tuple[int, Split]]:
    """{name: (the seed of what is drawn on it, the split)}."""
    options: dict[str, Any] = {"together": together, "balance": balance, "on_error": on_error}
    if n_folds:
        cut = folds(messages, n_folds, seed=seed, **options)
        return {f"fold {n}": (seed, split) for n, split in enumerate(cut, start=1)}
    return {f"seed {s}": (s, split_messages(messages, seed=s, **options)) for s in seeds}


def _fits(
    ours: Finetuning, split: Split, labels: Sequence[str], store: FeatureStore | None, quick: bool
) -> Fits:
    """All that is fitted on a split, ours last."""
    fits = text_fits(split, labels, quick)
    fits[FROZEN] = partial(fit_frozen, ours, split, labels)
    if not quick:
        fits[ours.random_name] = partial(fit_random, ours, split, labels)
    fits[ours.name] = partial(fit_finetuned, ours, split, labels, store=store)
    return fits
