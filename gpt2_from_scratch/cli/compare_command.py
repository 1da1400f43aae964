"""What `gpt2-classifier compare` does: a scoreboard of new trainings, or of finished runs."""

import argparse
import logging

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
    """Print the scoreboard; say where its files lie."""
    from gpt2_from_scratch.studies.compare import compare, compare_folder
    from gpt2_from_scratch.studies.compare_runs import compare_runs, runs_folder
    from gpt2_from_scratch.studies.scoreboard import format_scoreboard

    if args.runs:
        _refuse_settings_of_training(args)
        device, dtype = computing_on(args)
        out = args.out or runs_folder(args.runs)
        options = options_given(args, "model", "quick")
        board = compare_runs(args.runs, out=out, device=device, dtype=dtype, **options)
    else:
        if args.seeds and args.seed is not None:
            raise UsageError("--seeds are the seeds of all splits: leave out --seed")
        device, dtype = computing_on(args)
        out = args.out or compare_folder(args.model or "mini", args.data or "demo")
        names = ("model", "data", "balance", "together", "max_tokens", "seeds", "cache", "quick")
        board = compare(
            config=train_config(args),
            settings=settings_of(args, HeadSettings),
            n_folds=args.folds or 0,
            device=device,
            dtype=dtype,
            out=out,
            **options_given(args, *names),
            **data_options(args),
        )
    print(format_scoreboard(board))
    log.info(f"\nscores, answers, a picture and a page: {out}")


def _refuse_settings_of_training(args: argparse.Namespace) -> None:
    given = {name for name, value in vars(args).items() if value is not None}
    if others := sorted(given - OF_RUNS):
        raise UsageError(
            f"finished runs have their settings: leave out {', '.join(others)}, or RUN"
        )
