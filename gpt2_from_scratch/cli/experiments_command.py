"""`gpt2-classifier experiments`: the whole table, its picture, and what to make of it."""

import argparse
import logging
import time
from pathlib import Path

from gpt2_from_scratch.classifier.settings import HeadSettings
from gpt2_from_scratch.cli.options import data_options, settings_of, train_config
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.storage.paths import data_name, model_folder

log = logging.getLogger(__name__)


def run_table(args: argparse.Namespace) -> None:
    """Run the rows that are not done yet; print the table in Markdown and write it to a folder."""
    from gpt2_from_scratch.reports.render import write_study_report
    from gpt2_from_scratch.speed.devices import usable_processors
    from gpt2_from_scratch.storage.files import write_json, write_text
    from gpt2_from_scratch.studies.ablations import ablations, chosen
    from gpt2_from_scratch.studies.experiment_report import experiment_facts
    from gpt2_from_scratch.studies.experiment_table import (
        agreement,
        as_json,
        format_notes,
        format_table,
        summarize,
    )
    from gpt2_from_scratch.studies.experiments import Plan, read_results, run_experiments

    if args.seed is not None:
        raise UsageError("--seeds are the seeds of all splits: leave out --seed")
    model, data = args.model or "mini", args.data or "demo"
    config = train_config(args)
    sizes = read_config(model_folder(model))
    every = ablations(sizes, config)
    if args.list:
        print("\n".join(f"{row.about or 'default':<16} {row.name}" for row in every))
        return
    wanted = chosen(every, args.rows or [])
    plan = Plan(
        str(model),
        str(data),
        tuple(args.seeds),
        config,
        settings_of(args, HeadSettings),
        bool(args.balance),
        args.together or "copies",
        args.max_tokens,
        args.dtype or "float32",
        tuple(sorted(data_options(args).items())),
    )
    out = (
        args.out
        or Path("runs") / f"experiments-{model_folder(model).name}-{Path(data_name(data)).stem}"
    )
    jobs = args.jobs or max(1, usable_processors() // (args.threads or 1))
    began = time.monotonic()
    run_experiments(plan, wanted, out, jobs=jobs, threads=args.threads or 1)
    log.info(f"{time.monotonic() - began:.0f} s, {jobs} side by side")
    # all rows that the folder has: p is adjusted for their number, whichever were asked for now
    done = read_results(out)
    rows = [row for row in every if all((row.name, seed) in done for seed in args.seeds)]
    results = [done[row.name, seed] for row in rows for seed in args.seeds]
    summaries = summarize(rows, results)
    agrees = agreement(summaries, results)
    notes = format_notes(summaries, agrees, len(results[0].right))
    table = format_table(summaries)
    write_text(out / "experiments.md", f"{table}\n\n{notes}\n")
    write_json(out / "table.json", as_json(summaries, agrees))
    told = format_notes(summaries, None, len(results[0].right))  # the page has the order itself
    facts = experiment_facts(
        summaries, agrees, results, told, model=str(model), data=data_name(data)
    )
    write_study_report(facts, out, "experiments")
    print(f"{table}\n\n{notes}")
    log.info(
        f"in {out}: experiments.html, experiments.md, table.json, experiments.png, results.jsonl"
    )
