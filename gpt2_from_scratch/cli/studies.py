"""The commands that compare many trainings: `compare` and `experiments`."""

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2_from_scratch.classifier.settings import HeadSettings
from gpt2_from_scratch.cli.options import (
    add_computing,
    add_training,
    computing_on,
    existing_or_new_path,
    given,
    settings_of,
    train_config,
)
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.errors import UsageError

log = logging.getLogger(__name__)

# the only options that may be given when finished runs are compared
OF_RUNS = set("command run runs model out quick verbose device dtype threads".split())


def add_compare(commands: Any) -> None:
    """Add `compare`."""
    parser = commands.add(
        "compare",
        run_compare,
        "compare a finetuned GPT-2 with its baselines on the same splits",
        "gpt2-classifier compare",
        "gpt2-classifier compare --data sms --balance --seeds 1 2 3",
        "gpt2-classifier compare --data reviews.csv --folds 5 --n-last-blocks 2 --quick",
        "gpt2-classifier compare runs/demo runs/another-on-the-same-split",
    )
    parser.add_argument(
        "runs",
        type=existing_or_new_path,
        nargs="*",
        metavar="RUN",
        help="finished runs with the same test set, compared with the first",
    )
    add_training(parser)
    many = parser.add_mutually_exclusive_group()
    many.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="seeds, each with its own split and training",
    )
    many.add_argument("--folds", type=int, metavar="N", help="cross-validation with N folds")
    parser.add_argument(
        "--out",
        type=existing_or_new_path,
        help="folder; results that it already has are kept (default: runs/compare-...)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        default=None,
        help="leave out random weights and slower baselines",
    )
    add_computing(parser, cache=True)


def run_compare(args: argparse.Namespace) -> None:
    """Print the scoreboard of new trainings, or of finished runs."""
    from gpt2_from_scratch.studies.scoreboard import format_for_terminal, format_scoreboard
    from gpt2_from_scratch.studies.study import compare, compare_folder, compare_runs, runs_folder

    quick = bool(args.quick)
    if args.runs:
        typed = {name for name, value in vars(args).items() if value is not None}
        if others := sorted(typed - OF_RUNS):
            raise UsageError(
                f"finished runs have their own settings. Leave out {', '.join(others)}, or the runs."
            )
        out = args.out or runs_folder(args.runs)
        board = compare_runs(args.runs, out=out, quick=quick)
    else:
        if args.seeds and args.seed is not None:
            raise UsageError("--seeds already sets every seed. Leave out --seed.")
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
            **given(args, "seeds", "cache"),
        )
    print(format_scoreboard(board) if args.verbose else format_for_terminal(board))
    log.info(f"\nall scores, predictions, a plot and a report: {out}")


def add_experiments(commands: Any) -> None:
    """Add `experiments`."""
    parser = commands.add(
        "experiments",
        run_experiments,
        "run a table of experiments, each with one change from the default",
        "gpt2-classifier experiments --list",
        "gpt2-classifier experiments --data sms --balance --epochs 5",
        "gpt2-classifier experiments --rows 'token position' LoRA --seeds 1 2 3",
    )
    add_training(parser)
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[1, 2, 3, 4, 5],
        metavar="N",
        help="seeds, each with its own split, head and order (default: 1 2 3 4 5)",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="rows, or kinds of rows, to run next to the default",
    )
    parser.add_argument("--list", action="store_true", help="only list the rows")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="number of processes (default: one per core)"
    )
    parser.add_argument(
        "--out",
        type=existing_or_new_path,
        help="folder; results that it already has are kept (default: runs/experiments-...)",
    )
    add_computing(parser, device=False)


def run_experiments(args: argparse.Namespace) -> None:
    """Run the rows that are not finished yet, and print the table of all finished rows."""
    import joblib

    from gpt2_from_scratch.gpt2.config import read_config
    from gpt2_from_scratch.speed.devices import choose_device, choose_dtype
    from gpt2_from_scratch.storage.paths import data_name, model_folder, tidy
    from gpt2_from_scratch.storage.processes import count, is_first
    from gpt2_from_scratch.studies.book import book_rows, chosen
    from gpt2_from_scratch.studies.scoreboard import (
        EXPERIMENTS,
        format_for_terminal,
        format_scoreboard,
    )
    from gpt2_from_scratch.studies.study import experiments, refuse_other_folder, run_study

    if args.seed is not None:
        raise UsageError("--seeds already sets every seed. Leave out --seed.")
    model, data, training = args.model or "mini", _data_config(args), train_config(args)
    folder = model_folder(model)
    rows = book_rows(read_config(folder), training)
    if args.list:
        if is_first():
            print("\n".join(f"{row.about or 'default':<16} {row.name}" for row in rows))
        return
    only = [row.name for row in chosen(rows, args.rows or [])]
    head = settings_of(args, HeadSettings)
    dtype = choose_dtype(args.dtype or "float32", choose_device("cpu"))
    stem = tidy(Path(data_name(data.source)).stem)
    out = args.out or Path("runs") / f"experiments-{tidy(folder.name)}-{stem}"
    refuse_other_folder(out)
    study = experiments(model, data, training, head, seeds=args.seeds, dtype=dtype)
    threads = args.threads or 1
    own = 1 if count() > 1 else max(1, joblib.cpu_count() // threads)
    jobs = args.jobs or own
    began = time.monotonic()
    board = run_study(study, out, only=only, jobs=jobs, threads=threads)
    if not is_first():
        return
    log.info(f"{time.monotonic() - began:.0f} s with {jobs * count()} processes")
    print(format_scoreboard(board, EXPERIMENTS) if args.verbose else format_for_terminal(board))
    log.info(f"\nall scores, predictions, a plot and a report: {out}")


def _data_config(args: argparse.Namespace) -> DataConfig:
    """The settings of the data from the options; with folds, near duplicates stay together."""
    data = settings_of(args, DataConfig)
    if getattr(args, "folds", None) and not args.keep_together and not data.test_source:
        return replace(data, keep_together="near-duplicates")
    return data
