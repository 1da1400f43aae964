"""What `gpt2-classifier compare` and `gpt2-classifier experiments` do."""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from gpt2_from_scratch.classifier.settings import HeadSettings
from gpt2_from_scratch.cli.options import (
    computing_on,
    data_options,
    options_given,
    settings_of,
    train_config,
)
from gpt2_from_scratch.errors import UsageError

log = logging.getLogger(__name__)

OF_RUNS = set("command runs model out quick verbose device dtype threads".split())


def run_compare(args: argparse.Namespace) -> None:
    """Print the scoreboard of new trainings, or of finished runs."""
    from gpt2_from_scratch.studies.scoreboard import format_scoreboard
    from gpt2_from_scratch.studies.study import compare, compare_folder, compare_runs, runs_folder

    quick = bool(args.quick)
    if args.runs:
        given = {name for name, value in vars(args).items() if value is not None}
        if others := sorted(given - OF_RUNS):
            raise UsageError(
                f"finished runs have their settings: leave out {', '.join(others)}, or RUN"
            )
        out = args.out or runs_folder(args.runs)
        board = compare_runs(args.runs, out=out, quick=quick)
    else:
        if args.seeds and args.seed is not None:
            raise UsageError("--seeds are the seeds of all splits: leave out --seed")
        device, dtype = computing_on(args)
        model, data = args.model or "mini", _data_config(args)
        out = args.out or compare_folder(model, data.source)
        board = compare(
            model,
            data,
            train_config(args),
            settings_of(args, HeadSettings),
            device=device,
            dtype=dtype,
            out=out,
            quick=quick,
            n_folds=args.folds or 0,
            **options_given(args, "seeds", "cache"),
        )
    print(format_scoreboard(board))
    log.info(f"\nscores, answers, a picture and a page: {out}")


def run_experiments(args: argparse.Namespace) -> None:
    """Run the rows that are not finished yet; print the table of all that are."""
    import joblib

    from gpt2_from_scratch.gpt2.config import read_config
    from gpt2_from_scratch.speed.devices import DTYPES
    from gpt2_from_scratch.storage.paths import data_name, model_folder
    from gpt2_from_scratch.studies.book import book_rows, chosen
    from gpt2_from_scratch.studies.scoreboard import EXPERIMENTS, format_scoreboard
    from gpt2_from_scratch.studies.study import experiments, run_study

    if args.seed is not None:
        raise UsageError("--seeds are the seeds of all splits: leave out --seed")
    model, data, training = args.model or "mini", _data_config(args), train_config(args)
    folder = model_folder(model)
    rows = book_rows(read_config(folder), training)
    if args.list:
        print("\n".join(f"{row.about or 'default':<16} {row.name}" for row in rows))
        return
    only = [row.name for row in chosen(rows, args.rows or [])]
    head, dtype = settings_of(args, HeadSettings), DTYPES[args.dtype or "float32"]
    study = experiments(model, data, training, head, seeds=args.seeds, dtype=dtype)
    stem = Path(data_name(data.source)).stem
    out = args.out or Path("runs") / f"experiments-{folder.name}-{stem}"
    threads = args.threads or 1
    jobs = args.jobs or max(1, joblib.cpu_count() // threads)
    began = time.monotonic()
    board = run_study(study, out, only=only, jobs=jobs, threads=threads)
    log.info(f"{time.monotonic() - began:.0f} s with {jobs} processes")
    print(format_scoreboard(board, EXPERIMENTS))
    log.info(f"scores, answers, a picture and a page: {out}")


def _data_config(args: argparse.Namespace) -> Any:
    """Where the texts come from and how they are split; folds keep near duplicates together."""
    from gpt2_from_scratch.data.messages import DataConfig

    together = args.together or ("near-twins" if getattr(args, "folds", None) else "copies")
    return DataConfig(
        args.data or "demo",
        balance=bool(args.balance),
        keep_together=together.replace("near-twins", "near-duplicates"),
        **data_options(args),
    )
