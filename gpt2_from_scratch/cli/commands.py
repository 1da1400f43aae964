"""The commands on one model or one run: for each its options, and next to them what it does.

Each command imports what it needs when it runs, so that --help answers at once.
"""

import argparse
import csv
import json
import logging
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gpt2_from_scratch.classifier.settings import POOLINGS, HeadConfig, HeadSettings
from gpt2_from_scratch.cli.options import (
    MODEL_HELP,
    RUN_SETTINGS,
    add_base,
    add_computing,
    add_device,
    add_model,
    add_settings,
    add_training,
    computing_on,
    existing_or_new_path,
    given,
    non_empty,
    settings_of,
    train_config,
)
from gpt2_from_scratch.data.messages import DataConfig, for_spreadsheet, without_halves
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.storage.paths import MODELS, data_name, model_name

if TYPE_CHECKING:
    from gpt2_from_scratch.classifier.classifier import Classifier, Prediction
    from gpt2_from_scratch.runs.results import Run

log = logging.getLogger(__name__)

READING = ("text_column", "encoding", "on_error")  # of texts without labels


# --- train ---


def add_train(commands: Any) -> None:
    """Add `train`."""
    parser = commands.add(
        "train",
        run_train,
        "finetune a pretrained GPT-2 into a classifier",
        "gpt2-classifier train",
        "gpt2-classifier train --data sms --balance --seed 1",
        "gpt2-classifier train --model 124M --data reviews.csv --label-column stars --out runs/reviews",
        "gpt2-classifier train --data tickets.jsonl --task multi-label --head tanh --dropout 0.1",
        "gpt2-classifier train --data train.conll --task token-classification --n-last-blocks 2",
        "gpt2-classifier train --data squad.json --task span --model 124M --lora 16",
        "gpt2-classifier train --model 124M --data sms --recipe lecture",
        "gpt2-classifier train --resume runs/reviews",
    )
    add_training(parser)
    parser.add_argument(
        "--out", type=existing_or_new_path, help="the run's folder (default: a new one in runs/)"
    )
    parser.add_argument(
        "--resume",
        type=existing_or_new_path,
        metavar="RUN",
        help="resume a run that was interrupted, with its own settings",
    )
    parser.add_argument(
        "--recipe",
        choices=["default", "lecture"],
        help="lecture: step by step as in the lecture; only --seed applies (default: default)",
    )
    add_computing(parser, cache=True)


def run_train(args: argparse.Namespace) -> None:
    """Train a classifier, write its report, and print its scores on the test set."""
    from gpt2_from_scratch.runs.recipes import train_as_the_lecture, train_classifier

    if args.resume:
        run = _resume(args)
    elif args.recipe == "lecture":
        _refuse_settings_of_the_default_recipe(args)
        device, dtype = computing_on(args)
        options = given(args, "model", "seed", "cache")
        if args.source:
            options["data"] = args.source
        run = train_as_the_lecture(run=args.out, device=device, dtype=dtype, **options)
    else:
        device, dtype = computing_on(args)
        run = train_classifier(
            data=settings_of(args, DataConfig),
            training=train_config(args),
            head=settings_of(args, HeadSettings),
            run=args.out,
            device=device,
            dtype=dtype,
            **given(args, "model", "cache"),
        )
    if not (run.folder / "report.html").exists():
        run.write_report()
    print("Test set:")
    print(run.scores.as_table())
    base = "" if args.model in (None, *MODELS) else f" --model {shlex.quote(args.model)}"
    log.info(
        f"\nsaved in {run.folder}; use it with\n"
        f"  gpt2-classifier predict {shlex.quote(str(run.folder))}{base} 'a message of yours'"
    )


def _resume(args: argparse.Namespace) -> "Run":
    """Resume a run; options that contradict its settings are refused."""
    from gpt2_from_scratch.runs.folder import RunConfig
    from gpt2_from_scratch.runs.recipes import resume_training
    from gpt2_from_scratch.speed.devices import choose_device
    from gpt2_from_scratch.storage.states import refuse_changes

    if args.out or args.recipe == "lecture":
        raise UsageError(
            "--resume RUN resumes in RUN with its recipe. Leave out --out and --recipe."
        )
    saved = RunConfig.read(args.resume).settings()
    names = [field.name for kind in RUN_SETTINGS for field in fields(kind)]
    typed = given(args, "model", "dtype", "cache", "threads", *names)
    called = {"model": model_name} | dict.fromkeys(
        ("source", "val_source", "test_source"), data_name
    )
    typed = {name: called.get(name, lambda x: x)(value) for name, value in typed.items()}
    refuse_changes(saved, saved | typed, args.resume)
    return resume_training(args.resume, device=choose_device(args.device))


def _refuse_settings_of_the_default_recipe(args: argparse.Namespace) -> None:
    free = "run command recipe model source out seed verbose device dtype threads cache".split()
    typed = {name for name, value in vars(args).items() if value is not None}
    if ignored := sorted(typed - set(free)):
        raise UsageError(f"the lecture's recipe is fixed. Leave out {', '.join(ignored)}.")


# --- find-rate ---


def add_find_rate(commands: Any) -> None:
    """Add `find-rate`."""
    parser = commands.add(
        "find-rate",
        run_find_rate,
        "let the learning rate rise, draw the loss, suggest a learning rate",
        "gpt2-classifier find-rate --data sms --balance",
        "gpt2-classifier find-rate --model 124M --data reviews.csv --lora 8 --out rates.png",
    )
    add_training(parser)
    parser.add_argument(
        "--steps", type=int, default=100, help="number of steps, at most (default: 100)"
    )
    parser.add_argument(
        "--out",
        type=existing_or_new_path,
        default=Path("rates.png"),
        help="the picture (default: rates.png)",
    )
    add_computing(parser)


def run_find_rate(args: argparse.Namespace) -> None:
    """Print the learning rate that a short run in which it rises suggests; draw the losses."""
    from gpt2_from_scratch.data.split import load_split
    from gpt2_from_scratch.reports.plots import plot_rates, save_picture
    from gpt2_from_scratch.runs.folder import RunConfig
    from gpt2_from_scratch.runs.recipes import new_classifier
    from gpt2_from_scratch.studies.learning_rate import find_learning_rate

    device, dtype = computing_on(args)
    config = RunConfig(
        data=settings_of(args, DataConfig),
        training=train_config(args),
        head=settings_of(args, HeadSettings),
        dtype=dtype,
        **given(args, "model"),
    )
    split = load_split(config.data, config.head.task, config.training.seed)
    classifier = new_classifier(config, split).to(device)
    found = find_learning_rate(classifier, split, config.training, steps=args.steps)
    save_picture(plot_rates(found.rates, found.losses, found.suggested), args.out)
    log.info(f"loss at each learning rate: {args.out}; suggested learning rate:")
    print(f"{found.suggested:.1e}")


# --- evaluate ---


def add_evaluate(commands: Any) -> None:
    """Add `evaluate`."""
    parser = commands.add(
        "evaluate",
        run_evaluate,
        "score a saved classifier on labelled messages",
        "gpt2-classifier evaluate runs/mini-demo-123",
        "gpt2-classifier evaluate runs/mini-demo-123 --data more.csv --json",
        "gpt2-classifier evaluate runs/mini-demo-123 --watch spam --lose-at-most 1 --show 30",
    )
    parser.add_argument(
        "classifier",
        type=existing_or_new_path,
        metavar="RUN",
        help="a run's folder, or its best.safetensors",
    )
    add_base(parser)
    parser.add_argument(
        "--data",
        dest="source",
        type=non_empty,
        help="demo, topics, sms, or a file (default: the run's own test set)",
    )
    add_settings(parser, DataConfig, "text_column", "label_column", "encoding", "on_error")
    parser.add_argument(
        "--watch",
        type=non_empty,
        dest="positive",
        metavar="LABEL",
        help="the positive label, for thresholds: spam (default: the rarer of two)",
    )
    parser.add_argument(
        "--lose-at-most",
        type=float,
        nargs="+",
        dest="allowed_per_1000",
        metavar="N",
        help="false positives per 1,000 texts of other labels (default: 0 5 10 20)",
    )
    parser.add_argument(
        "--cost-of-losing",
        type=float,
        dest="cost",
        metavar="N",
        help="cost of a false positive, relative to a false negative (which costs 1)",
    )
    parser.add_argument(
        "--show",
        type=int,
        dest="n_shown",
        metavar="N",
        help="mistakes and least certain predictions to show (default: 10)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_computing(parser, cache=True)


def run_evaluate(args: argparse.Namespace) -> None:
    """Print a saved classifier's scores on labelled messages."""
    from gpt2_from_scratch.data.formats import load_examples
    from gpt2_from_scratch.evaluation.assessment import assessment_as_json, format_assessment
    from gpt2_from_scratch.runs.folder import read_test_part
    from gpt2_from_scratch.runs.results import assess_again, evaluate_classifier
    from gpt2_from_scratch.speed.feature_store import FeatureStore

    classifier = _load_classifier(args)
    classifier.store = None if args.cache is False else FeatureStore()
    head = classifier.description.head
    folder = args.classifier if args.classifier.is_dir() else args.classifier.parent
    if args.source:
        data = settings_of(args, DataConfig)
        if head.task == "regression" and head.labels[0] != "value_0" and not args.label_column:
            data = DataConfig(**asdict(data) | {"label_column": ",".join(head.labels)})
        messages = load_examples(data, head.task)
    else:
        messages = read_test_part(folder, head.task)
    options = given(args, "positive", "allowed_per_1000", "cost", "n_shown")
    if head.task == "classification":
        is_best = args.classifier.is_dir() or args.classifier.name == "best.safetensors"
        found = assess_again(classifier, messages, folder if is_best else None, **options)
        print(json.dumps(assessment_as_json(found)) if args.json else format_assessment(found))
        return
    if options:
        raise UsageError(
            f"--watch, --lose-at-most, --cost-of-losing and --show are for classification, not for "
            f"{head.task}"
        )
    scores = evaluate_classifier(classifier, messages)
    print(json.dumps(scores.as_json()) if args.json else scores.as_table())


def _load_classifier(args: argparse.Namespace) -> "Classifier":
    from gpt2_from_scratch.classifier.classifier import Classifier
    from gpt2_from_scratch.speed.devices import DTYPES

    device, dtype = computing_on(args)
    classifier = Classifier.load(args.classifier, args.model, dtype=DTYPES[dtype], device=device)
    classifier.merge()
    return classifier


# --- predict ---


def add_predict(commands: Any) -> None:
    """Add `predict`."""
    parser = commands.add(
        "predict",
        run_predict,
        "classify texts",
        "gpt2-classifier predict runs/mini-demo-123 'You won! Call now' 'see you at six'",
        "gpt2-classifier predict runs/mini-demo-123 --file inbox.txt --csv > labels.csv",
        "gpt2-classifier predict runs/mini-demo-123 --threshold spam=0.95 --file inbox.txt",
        "cat inbox.txt | gpt2-classifier predict runs/mini-demo-123 --json",
    )
    parser.add_argument(
        "classifier",
        type=existing_or_new_path,
        metavar="RUN",
        help="a run's folder, or its best.safetensors",
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts (default: lines of stdin)")
    add_base(parser)
    parser.add_argument(
        "--threshold",
        type=non_empty,
        metavar="LABEL=P",
        help="predict LABEL only if its probability is at least P; evaluate shows the consequences",
    )
    parser.add_argument(
        "--file",
        type=existing_or_new_path,
        help="lines of a text file, or a column of a .csv, .tsv or .jsonl file",
    )
    add_settings(parser, DataConfig, *READING)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object per line")
    form.add_argument("--csv", action="store_true", help="number, label, probabilities")
    parser.add_argument(
        "--with-text",
        action="store_true",
        help="with --csv: the text too, with ' before what a spreadsheet would execute",
    )
    add_computing(parser)


def run_predict(args: argparse.Namespace) -> None:
    """Print the label and the probabilities of each text."""
    from gpt2_from_scratch.data.messages import lines_of, read_texts

    if args.file and args.texts:
        raise DataError("give texts or --file, not both")
    if args.with_text and not args.csv:
        raise UsageError("--with-text adds a column to --csv")
    classifier = _load_classifier(args)
    texts: Iterable[tuple[int, str]]
    if args.file:
        texts = read_texts(args.file, **given(args, *READING))
    elif args.texts:
        texts = enumerate(args.texts, start=1)
    else:
        options = given(args, "encoding", "on_error")
        texts = lines_of(sys.stdin.buffer, "standard input", **options)
    table = (
        PredictionTable(sys.stdout, classifier.description.heads, args.with_text)
        if args.csv
        else None
    )
    numbered, texts = tee(texts)  # predictions come in windows, each text's number with them
    predictions = _with_progress(classifier.predict_stream(text for _, text in texts))
    if args.threshold:
        label, threshold = _threshold(args.threshold, classifier.description.head)
        predictions = ((text, p.at_threshold(label, threshold)) for text, p in predictions)
    for (text, prediction), (number, _) in zip(predictions, numbered, strict=False):
        if table:
            table.write(number, text, prediction)
        else:
            print(prediction.as_json(number) if args.json else prediction.in_words(text))
        sys.stdout.flush()  # the reader of a pipe waits for it


def _with_progress(predictions: Iterable[Any]) -> Iterable[Any]:
    """Show a progress bar, unless the results themselves scroll by on the same screen."""
    from gpt2_from_scratch.progress import progress_bar

    hidden = sys.stdout.isatty() or not sys.stderr.isatty()
    return progress_bar(predictions, desc="classified", unit=" texts", hidden=hidden)


def _threshold(typed: str, head: HeadConfig) -> tuple[str, float]:
    """The label and the least probability in LABEL=P."""
    label, _, number = typed.rpartition("=")
    if head.task != "classification" or label not in head.labels:
        raise UsageError(
            f"--threshold {typed}: expected LABEL=P, the label one of {', '.join(head.labels)}"
        )
    with suppress(ValueError):
        if 0 <= float(number) <= 1:
            return label, float(number)
    raise UsageError(f"--threshold {typed}: expected LABEL=P, with P from 0 to 1")


class PredictionTable:
    """Predictions as csv rows: number, label, probabilities and, if wanted, the text.

    Several labels are separated by bars; values have a column each. No label and no text becomes a
    formula in a spreadsheet. Raises UsageError for several heads, and for a head whose answers are
    not rows.
    """

    def __init__(self, file: TextIO, heads: Sequence[HeadConfig], with_text: bool = False):
        from gpt2_from_scratch.classifier.tasks import TASKS

        head, columns = heads[0], TASKS[heads[0].task].columns(heads[0])
        if len(heads) > 1 or columns is None:
            what = f"answers of {head.task}" if len(heads) == 1 else "several heads' answers"
            raise UsageError(f"{what} have no columns for --csv. Use --json.")
        # with line ends of \n, csv leaves a \r unquoted, which most readers take for a line end
        odd = with_text or any("\r" in label for label in head.labels)
        self._writer = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
        )
        self._with_text = with_text
        self._write(["number", *columns], "text")

    def write(self, number: int, text: str, prediction: "Prediction") -> None:
        """Write one prediction as a row."""
        self._write([str(number), *prediction.answer.as_row()], without_halves(text))

    def _write(self, cells: list[str], text: str) -> None:
        row = [*cells, text] if self._with_text else cells
        self._writer.writerow([for_spreadsheet(cell) for cell in row])


# --- features ---


def add_features(commands: Any) -> None:
    """Add `features`."""
    parser = commands.add(
        "features",
        run_features,
        "write hidden states of texts as an array, for other tools",
        "gpt2-classifier features --file inbox.txt --out states.npy",
        "gpt2-classifier features --file mail.csv --layer 4 --state raw --pooling mean --out x.npy",
    )
    parser.add_argument(
        "--file",
        type=existing_or_new_path,
        required=True,
        help="lines of a text file, or a column of a table",
    )
    add_settings(parser, DataConfig, *READING)
    add_model(parser)
    parser.add_argument(
        "--out", type=existing_or_new_path, required=True, help="the .npy file, (texts, n_embd)"
    )
    add_settings(parser, HeadSettings, "layer", "state", "pooling")
    add_computing(parser)


def run_features(args: argparse.Namespace) -> None:
    """Write the hidden states of texts as an array, one row per text; print its path."""
    import numpy as np

    from gpt2_from_scratch.classifier.classifier import Classifier
    from gpt2_from_scratch.data.messages import read_texts
    from gpt2_from_scratch.speed.devices import DTYPES
    from gpt2_from_scratch.storage.files import atomic_path

    device, dtype = computing_on(args)
    asked = settings_of(args, HeadSettings)
    head = HeadConfig(
        "state",
        "features",
        layer=None if asked.layer < 0 else asked.layer,
        final_norm=asked.state == "normed",
        pooling=asked.pooling,
    )
    classifier = Classifier.on_base(args.model, heads=[head], dtype=DTYPES[dtype], device=device)
    texts = [text for _, text in read_texts(args.file, **given(args, *READING))]
    states = classifier.logits(classifier.encode(texts)[0]).numpy()
    with atomic_path(args.out) as temporary, temporary.open("wb") as file:
        np.save(file, states)
    log.info(f"{len(states):,} texts, {states.shape[1]} float32 values per text; read with np.load")
    print(args.out)


# --- probe ---


def add_probe(commands: Any) -> None:
    """Add `probe`."""
    parser = commands.add(
        "probe",
        run_probe,
        "see at which layers a linear classifier can separate the labels",
        "gpt2-classifier probe",
        "gpt2-classifier probe --data sms --balance --out probes.png",
        "gpt2-classifier probe --data topics --pooling mean last_position --json",
    )
    add_model(parser)
    add_settings(
        parser,
        DataConfig,
        "source",
        "text_column",
        "label_column",
        "encoding",
        "on_error",
        "balance",
    )
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        nargs="+",
        dest="poolings",
        help="where texts are read (default: all that read no padding)",
    )
    parser.add_argument("--seed", type=int, default=123, help="seed of the split (default: 123)")
    parser.add_argument("--out", type=existing_or_new_path, help="the picture to write, a .png")
    parser.add_argument("--json", action="store_true", help="a JSON list, one object per probe")
    add_computing(parser)


def run_probe(args: argparse.Namespace) -> None:
    """Print the test accuracy of a linear probe at every layer; write its picture."""
    from gpt2_from_scratch.data.split import load_split
    from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
    from gpt2_from_scratch.gpt2.weights import load_gpt2
    from gpt2_from_scratch.reports.plots import save_picture
    from gpt2_from_scratch.speed.devices import DTYPES
    from gpt2_from_scratch.storage.paths import model_folder
    from gpt2_from_scratch.studies.probes import format_probes, plot_probes, probe_layers

    device, dtype = computing_on(args)
    split = load_split(settings_of(args, DataConfig), "classification", args.seed)
    model, tokenizer = load_gpt2(args.model).to(device), Tokenizer(model_folder(args.model))
    began = time.perf_counter()
    probes = probe_layers(model, tokenizer, split, **given(args, "poolings"), dtype=DTYPES[dtype])
    log.info(f"{len(probes)} probes in {time.perf_counter() - began:.1f} s")
    if args.json:
        print(json.dumps([{"accuracy": probe.accuracy} | asdict(probe) for probe in probes]))
    else:
        print(format_probes(probes))
    if args.out:
        save_picture(plot_probes(probes), args.out)
        log.info(f"picture: {args.out}")


# --- check ---


def add_check(commands: Any) -> None:
    """Add `check`."""
    parser = commands.add(
        "check",
        run_check,
        "read messages with one class each and report what is wrong with them",
        "gpt2-classifier check reviews.csv --label-column stars",
        "gpt2-classifier check reviews.csv --encoding cp1252 --json",
    )
    parser.add_argument("data", help="demo, topics, sms, or a .csv, .tsv or .jsonl file")
    add_settings(parser, DataConfig, "text_column", "label_column", "encoding")
    parser.add_argument(
        "--model", type=non_empty, default="mini", help=f"{MODEL_HELP}; to count its tokens"
    )
    parser.add_argument("--max-tokens", type=int, help="report what this would cut, too")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run_check(args: argparse.Namespace) -> None:
    """Print what was found in a data set; raises DataError if it cannot be trained on."""
    from gpt2_from_scratch.data.check import check_data, format_report

    options = given(args, "text_column", "label_column", "encoding", "max_tokens")
    report = check_data(args.data, model=args.model, **options)
    print(json.dumps(asdict(report)) if args.json else format_report(report))
    if report.obstacles:
        raise DataError(f"{report.source} cannot be trained on: {report.obstacles[0]:.200}")


# --- verify ---


def add_verify(commands: Any) -> None:
    """Add `verify`."""
    parser = commands.add(
        "verify",
        run_verify,
        "check the files of a model or a finished run, one by one",
        "gpt2-classifier verify mini",
        "gpt2-classifier verify weights/124M",
        "gpt2-classifier verify runs/mini-demo-123",
    )
    parser.add_argument("model", help=f"{MODEL_HELP}; or a run's folder")


def run_verify(args: argparse.Namespace) -> None:
    """Print what was checked of a model or a run; raises CheckpointError if something failed."""
    from gpt2_from_scratch.gpt2.verify import format_checks, verify_model
    from gpt2_from_scratch.runs.folder import verify_run
    from gpt2_from_scratch.storage.files import is_complete

    run = Path(args.model)
    checks = list(verify_run(run) if is_complete(run) else verify_model(args.model))
    print(format_checks(checks))
    failed = [check.what for check in checks if not check.ok]
    if failed:
        raise CheckpointError(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed[:5])}"
        )


# --- generate ---


def add_generate(commands: Any) -> None:
    """Add `generate`."""
    parser = commands.add(
        "generate",
        run_generate,
        "continue a text: see that the weights are right",
        "gpt2-classifier generate --prompt 'Every effort moves you'",
        "gpt2-classifier generate --prompt 'Hi, are you' --temperature 0.8 --top-k 40 --seed 7",
    )
    add_model(parser)
    parser.add_argument("--prompt", required=True, help="the text to continue")
    parser.add_argument("--tokens", type=int, default=40, help="new tokens (default: 40)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0: the most probable token; 1: sampled (default: 0)",
    )
    parser.add_argument("--top-k", type=int, help="sample from the k most probable tokens only")
    parser.add_argument("--seed", type=int, default=123, help="seed of the sampling (default: 123)")
    add_device(parser)


def run_generate(args: argparse.Namespace) -> None:
    """Print a continued text."""
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


# --- pretrain ---


def add_pretrain(commands: Any) -> None:
    """Add `pretrain`."""
    parser = commands.add(
        "pretrain",
        run_pretrain,
        "train a small GPT-2 from scratch on plain text",
        "gpt2-classifier pretrain --corpus texts/ --out runs/my-gpt2 --steps 500",
        "gpt2-classifier pretrain --corpus texts/ --out runs/my-gpt2 --steps 1000 --resume",
    )
    parser.add_argument(
        "--corpus", type=existing_or_new_path, required=True, help="a folder of .txt files"
    )
    parser.add_argument(
        "--out", type=existing_or_new_path, required=True, help="the model's folder"
    )
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="precision of the weights on disk (default: float32)",
    )
    add_settings(parser, PretrainConfig)
    add_device(parser)


def run_pretrain(args: argparse.Namespace) -> None:
    """Pretrain a model into a folder, and draw its learning curve."""
    import torch

    from gpt2_from_scratch.gpt2.pretrain import pretrain
    from gpt2_from_scratch.reports.plots import plot_pretraining, save_picture
    from gpt2_from_scratch.speed.devices import choose_device
    from gpt2_from_scratch.storage.files import read_json

    try:
        pretrain(
            args.corpus,
            args.out,
            settings_of(args, PretrainConfig),
            device=choose_device(args.device),
            dtype=getattr(torch, args.dtype),
            resume=args.resume,
        )
    except KeyboardInterrupt:
        log.warning("interrupted; resume with the same command and --resume")
        raise
    lines = (args.out / "pretraining.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    curve = plot_pretraining(
        [record["tokens"] for record in records],
        [record["held_out_bits_per_byte"] for record in records],
        {"gzip -9": read_json(args.out / "pretraining.json")["gzip_bits_per_byte"]},
    )
    save_picture(curve, args.out / "pretraining.png")
    out = shlex.quote(str(args.out))
    log.info(
        f"saved in {args.out}; try it with\n  gpt2-classifier generate --model {out} --prompt Hi"
    )


# --- download, cache ---


def add_download(commands: Any) -> None:
    """Add `download`."""
    parser = commands.add(
        "download",
        run_download,
        "download OpenAI's weights or the SMS Spam Collection",
        "gpt2-classifier download 124M",
        "gpt2-classifier download sms",
    )
    parser.add_argument("what", choices=[*MODELS[1:], "sms"])


def run_download(args: argparse.Namespace) -> None:
    """Download files and print where they are."""
    from gpt2_from_scratch.gpt2.download import download_model, download_sms_spam

    print(download_sms_spam() if args.what == "sms" else download_model(args.what))


def add_cache(commands: Any) -> None:
    """Add `cache`."""
    parser = commands.add(
        "cache",
        run_cache,
        "show or clear the cached output of frozen blocks",
        "gpt2-classifier cache",
        "gpt2-classifier cache --clear",
    )
    parser.add_argument("--clear", action="store_true", help="remove all of it")


def run_cache(args: argparse.Namespace) -> None:
    """Print what is cached of frozen blocks' output, or remove it."""
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
