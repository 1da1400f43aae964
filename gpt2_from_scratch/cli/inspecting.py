"""The commands that inspect data, models and layers, download files, and clear the cache.

Each command imports what it needs only when it runs, so --help answers at once.
"""

import argparse
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_from_scratch.classifier.settings import LANGUAGE_FORMS, POOLINGS, HeadSettings
from gpt2_from_scratch.cli.options import (
    MODEL_HELP,
    TABLE,
    add_computing,
    add_device,
    add_model,
    add_settings,
    computing_on,
    existing_or_new_path,
    given,
    new_path,
    non_empty,
    option_of,
    settings_of,
)
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.progress import command
from gpt2_from_scratch.storage.paths import HUB_NAMES, MODELS, is_run, known_name

if TYPE_CHECKING:
    from gpt2_from_scratch.data.split import Split
    from gpt2_from_scratch.gpt2.model import GPT2
    from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# options of the data that probes read
OF_PROBED_DATA = ("source", *TABLE, "on_error", "rare_labels", "balance")


# --- check ---


def add_check(commands: Any) -> None:
    """Add `check`."""
    parser = commands.add(
        "check",
        run_check,
        "read the labelled texts of any task and report what is wrong with them",
        "gpt2-classifier check reviews.csv --label-column stars",
        "gpt2-classifier check messages.tsv --no-header --text-column 2 --label-column 1",
        "gpt2-classifier check train.conll --task token-classification",
        "gpt2-classifier check reviews.csv --encoding cp1252 --json",
    )
    parser.add_argument(
        "data", help="sms, hard, topics, or a table, .jsonl, .conll or SQuAD's .json"
    )
    add_settings(parser, DataConfig, *TABLE, "rare_labels", "keep_empty")
    add_settings(parser, HeadSettings, "task")
    parser.add_argument(
        "--model", type=non_empty, default="mini", help=f"counts the tokens: {MODEL_HELP}"
    )
    parser.add_argument("--max-tokens", type=int, help="report how many texts this would cut")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run_check(args: argparse.Namespace) -> None:
    """Print what was found in a data set. Raises DataError if training on it is not possible."""
    from gpt2_from_scratch.data.check import check_data, format_report

    data = DataConfig(source=args.data, **given(args, *TABLE, "rare_labels", "keep_empty"))
    report = check_data(
        data, args.task or "classification", model=args.model, max_tokens=args.max_tokens
    )
    print(json.dumps(asdict(report)) if args.json else format_report(report))
    if report.obstacles:
        reason = f": {report.obstacles[0]:.200}" if args.json else ""  # else printed above
        raise DataError(f"{report.source} cannot be trained on{reason}")


# --- verify ---


def add_verify(commands: Any) -> None:
    """Add `verify`."""
    parser = commands.add(
        "verify",
        run_verify,
        "check the files of a model or a finished run, one by one",
        "gpt2-classifier verify mini",
        "gpt2-classifier verify weights/124M",
        "gpt2-classifier verify runs/demo",
    )
    parser.add_argument("model", help=f"{MODEL_HELP}; or a run's folder")


def run_verify(args: argparse.Namespace) -> None:
    """Print the result of each check of a model or a run. Raises CheckpointError if one failed."""
    from gpt2_from_scratch.gpt2.verify import format_checks, verify_model
    from gpt2_from_scratch.runs.folder import verify_run
    from gpt2_from_scratch.storage.files import is_complete

    run = Path(args.model)
    if is_run(run) and not is_complete(run):
        raise CheckpointError(
            f"{run} is not finished, so it has no manifest to check. Finish it with "
            f"{command('train', '--resume', args.model)}"
        )
    checks = list(verify_run(run) if is_complete(run) else verify_model(args.model))
    print(format_checks(checks))
    failed = [check.what for check in checks if not check.ok]
    if failed:
        raise CheckpointError(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed[:5])}"
        )


# --- probe ---


def add_probe(commands: Any) -> None:
    """Add `probe`."""
    parser = commands.add(
        "probe",
        run_probe,
        "show what each layer knows: the labels, or the next token",
        "gpt2-classifier probe",
        "gpt2-classifier probe --data sms --balance --out probes.png",
        "gpt2-classifier probe --task language --balance --out next-token.png",
        "gpt2-classifier probe runs/demo --task language",
        "gpt2-classifier probe --data topics --pooling mean last_position --json",
    )
    parser.add_argument(
        "trained",
        type=existing_or_new_path,
        nargs="?",
        metavar="RUN",
        help="a finished run, with its own texts (default: the pretrained model)",
    )
    parser.add_argument("--model", type=non_empty, help=f"{MODEL_HELP} (default: mini)")
    parser.add_argument(
        "--task",
        choices=("classification", "language"),
        default="classification",
        help="what the probes predict: the label of a text, from one state per text, or the next "
        "token, from every state (default: classification)",
    )
    add_settings(parser, DataConfig, *OF_PROBED_DATA)
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        nargs="+",
        dest="poolings",
        help="positions to read (default: every pooling that reads no padding)",
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="epochs of --task language (default: 2)"
    )
    parser.add_argument(
        "--forms",
        choices=LANGUAGE_FORMS,
        nargs="+",
        help="heads of --task language; tied: the logit lens (default: all)",
    )
    parser.add_argument("--seed", type=int, help="random seed of the split (default: 123)")
    parser.add_argument("--out", type=new_path, help="a new .png file for the plot")
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list with one object per probe"
    )
    add_computing(parser)


def run_probe(args: argparse.Namespace) -> None:
    """Print what a probe at every layer predicts on the test set, and plot it."""
    from gpt2_from_scratch.reports.plots import save_picture
    from gpt2_from_scratch.speed.devices import DTYPES
    from gpt2_from_scratch.studies.next_token import (
        format_next_tokens,
        plot_next_tokens,
        probe_next_tokens,
    )
    from gpt2_from_scratch.studies.probes import format_probes, plot_probes, probe_layers

    language = args.task == "language"
    if args.poolings and language:
        raise UsageError("--pooling is for labels; next tokens are predicted from every state.")
    if not language and (others := [*given(args, "epochs", "forms")]):
        raise UsageError(f"--{others[0]} is for --task language.")
    device, dtype = computing_on(args)
    model, tokenizer, split = _to_probe(args, device)
    began = time.perf_counter()
    if language:
        options = given(args, "epochs", "forms")
        heads = probe_next_tokens(model, tokenizer, split, **options, dtype=DTYPES[dtype])
        objects, table = [asdict(head) for head in heads], format_next_tokens(heads)
        picture = plot_next_tokens(heads) if args.out else None
    else:
        options = given(args, "poolings")
        probes = probe_layers(model, tokenizer, split, **options, dtype=DTYPES[dtype])
        objects = [{"accuracy": probe.accuracy} | asdict(probe) for probe in probes]
        table, picture = format_probes(probes), plot_probes(probes) if args.out else None
    log.info(f"{len(objects)} probes in {time.perf_counter() - began:.1f} s")
    print(json.dumps(objects) if args.json else table)
    if picture:
        save_picture(picture, args.out)
        log.info(f"plot: {args.out}")


def _to_probe(args: argparse.Namespace, device: Any) -> "tuple[GPT2, Tokenizer, Split]":
    """The model to probe, its tokenizer and the texts: of a run, or of the options."""
    from gpt2_from_scratch.classifier.classifier import Classifier
    from gpt2_from_scratch.data.split import load_split
    from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
    from gpt2_from_scratch.gpt2.weights import load_gpt2
    from gpt2_from_scratch.runs.folder import RunConfig, refuse_missing_data, refuse_other_messages
    from gpt2_from_scratch.storage.paths import model_folder

    if args.trained is None:
        split = load_split(settings_of(args, DataConfig), "classification", **given(args, "seed"))
        base = args.model or "mini"
        return load_gpt2(base).to(device), Tokenizer(model_folder(base)), split
    if others := [name for name in (*OF_PROBED_DATA, "seed") if getattr(args, name) is not None]:
        raise UsageError(
            f"a run is probed with its own texts. Leave out {', '.join(map(option_of, others))}, or "
            "the run."
        )
    config = RunConfig.read(args.trained)
    if args.task == "classification" and (trained_for := config.head.task) != "classification":
        raise UsageError(
            f"{args.trained} was trained for {trained_for}, but probes are for classification. Use "
            "--task language, which needs no labels."
        )
    refuse_missing_data(args.trained, config.data)
    split = config.load_split()
    refuse_other_messages(args.trained, split, config.data.source)
    classifier = Classifier.load(args.trained, args.model, device=device)
    if not classifier.description.causal_mask:
        raise UsageError(f"{args.trained} was trained without the causal mask, which probes need.")
    if classifier.description.is_quantized:
        raise UsageError(
            f"{args.trained} has adapters next to weights in NF4, which probes cannot read. Export it "
            "with --to hugging-face, and probe the exported folder with --model."
        )
    classifier.merge()
    return classifier.model, classifier.tokenizer, split


# --- generate ---


def add_generate(commands: Any) -> None:
    """Add `generate`."""
    parser = commands.add(
        "generate",
        run_generate,
        "continue a text, to see that the weights are right",
        "gpt2-classifier generate --prompt 'Every effort moves you'",
        "gpt2-classifier generate --prompt 'Hi, are you' --temperature 0.8 --top-k 40 --seed 7",
    )
    add_model(parser)
    parser.add_argument("--prompt", help="the text to continue")
    parser.add_argument("texts", nargs="*", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=40, help="number of new tokens (default: 40)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0: always the most probable token; 1: sample (default: 0)",
    )
    parser.add_argument("--top-k", type=int, help="sample only from the k most probable tokens")
    parser.add_argument(
        "--seed", type=int, default=123, help="random seed of the sampling (default: 123)"
    )
    add_device(parser)


def run_generate(args: argparse.Namespace) -> None:
    """Print a prompt, continued by the model."""
    if args.prompt is None or args.texts:
        first, *others = args.texts or ["..."]
        if args.prompt is None and others and first in (*MODELS, *HUB_NAMES):
            args.model, args.texts = first, others
        words = [] if args.model == "mini" else ["--model", args.model]
        prompt = " ".join(filter(None, [args.prompt, *args.texts])) or "..."
        raise UsageError(
            f"--prompt gives the text. Use {command('generate', *words, '--prompt', prompt)}"
        )
    import torch

    from gpt2_from_scratch.gpt2.generate import generate
    from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
    from gpt2_from_scratch.gpt2.weights import load_gpt2
    from gpt2_from_scratch.speed.devices import choose_device
    from gpt2_from_scratch.storage.paths import model_folder

    tokenizer = Tokenizer(model_folder(args.model))
    device = choose_device(args.device)
    ids = generate(
        load_gpt2(args.model).to(device),
        torch.tensor(tokenizer.encode(args.prompt), dtype=torch.int64, device=device),
        args.tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        stop_id=tokenizer.end_of_text_id,
        seed=args.seed,
    )
    print(tokenizer.decode([token for token in ids.tolist() if token != tokenizer.end_of_text_id]))


# --- download, cache ---


def add_download(commands: Any) -> None:
    """Add `download`."""
    parser = commands.add(
        "download",
        run_download,
        "download one of OpenAI's models",
        "gpt2-classifier download 124M",
    )
    parser.add_argument(
        "what",
        type=_downloadable,
        metavar="MODEL",
        choices=MODELS[1:],
        help=", ".join(MODELS[1:]),
    )


def _downloadable(name: str) -> str:
    if name == "sms":
        raise argparse.ArgumentTypeError("the SMS Spam Collection ships with the package.")
    return known_name(name)


def run_download(args: argparse.Namespace) -> None:
    """Download files and print where they are."""
    from gpt2_from_scratch.gpt2.download import download_model

    print(download_model(args.what))


def add_cache(commands: Any) -> None:
    """Add `cache`."""
    parser = commands.add(
        "cache",
        run_cache,
        "show or clear the cached output of frozen blocks",
        "gpt2-classifier cache",
        "gpt2-classifier cache --clear",
    )
    parser.add_argument("--clear", action="store_true", help="remove everything")


def run_cache(args: argparse.Namespace) -> None:
    """Print how much output of the frozen blocks is cached, or remove all of it."""
    from datetime import datetime

    from gpt2_from_scratch.speed.feature_store import GB, FeatureStore

    store = FeatureStore()
    if args.clear:
        print(f"{store.clear() / 1e6:.1f} MB removed from {store.folder}")
        return
    spaces = store.spaces()
    for name, shards, size, used in spaces:
        when = datetime.fromtimestamp(used).strftime("%Y-%m-%d %H:%M")
        print(f"{size / 1e6:10.1f} MB  {shards:4d} files  last used {when}  {name}")
    total = sum(size for _, _, size, _ in spaces)
    print(f"{total / 1e6:10.1f} MB of at most {store.limit / GB:.1f} GB in {store.folder}")
