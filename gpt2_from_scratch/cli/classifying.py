"""The commands that use a classifier: evaluate, predict, export, features.

Each command imports what it needs only when it runs, so --help answers at once.
"""

import argparse
import json
import logging
import os
import shlex
import sys
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from itertools import chain, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_from_scratch.classifier.settings import CLASS_TASKS, HeadConfig, HeadSettings
from gpt2_from_scratch.cli.options import (
    TABLE,
    add_base,
    add_computing,
    add_model,
    add_settings,
    computing_on,
    existing_or_new_path,
    given,
    new_path,
    non_empty,
    settings_of,
)
from gpt2_from_scratch.data.messages import DataConfig, label_parts
from gpt2_from_scratch.data.tables import is_table
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError, nearest
from gpt2_from_scratch.progress import command
from gpt2_from_scratch.storage.paths import is_model

if TYPE_CHECKING:
    from gpt2_from_scratch.classifier.classifier import Classifier

log = logging.getLogger(__name__)

END_OF_INPUT = "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"
NEWEST = 3  # most runs that an error message names, the newest first
FORMATS = ("hugging-face", "peft", "onnx")  # of `export`
# settings for reading texts without labels
READING = ("text_column", "header", "delimiter", "encoding", "on_error")


# --- evaluate ---


def add_evaluate(commands: Any) -> None:
    """Add `evaluate`."""
    parser = commands.add(
        "evaluate",
        run_evaluate,
        "score a saved classifier on labelled messages",
        "gpt2-classifier evaluate runs/demo",
        "gpt2-classifier evaluate runs/demo --data more.csv --json",
        "gpt2-classifier evaluate runs/demo --positive spam --allowed-false-positives 1 --show 30",
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
        help="sms, hard, topics, or a file (default: the run's own test set)",
    )
    add_settings(parser, DataConfig, *TABLE, "on_error", "rare_labels")
    parser.add_argument(
        "--positive",
        type=non_empty,
        dest="positive",
        metavar="LABEL",
        help="positive label for the thresholds (default: the rarer of two labels)",
    )
    parser.add_argument(
        "--allowed-false-positives",
        type=float,
        nargs="+",
        dest="allowed_per_1000",
        metavar="N",
        help="allowed false positives per 1,000 texts of other labels (default: 0 5 10 20)",
    )
    parser.add_argument(
        "--cost-of-false-positive",
        type=float,
        dest="cost",
        metavar="N",
        help="cost of a false positive if a false negative costs 1",
    )
    parser.add_argument(
        "--show",
        type=int,
        dest="n_shown",
        metavar="N",
        help="number of mistakes and of least certain predictions to show (default: 10)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_computing(parser, cache=True, answers=True, stream=True)


def run_evaluate(args: argparse.Namespace) -> None:
    """Print the scores of a saved classifier on labelled messages."""
    from gpt2_from_scratch.data.formats import load_examples
    from gpt2_from_scratch.data.split import with_known_labels
    from gpt2_from_scratch.evaluation.assessment import assessment_as_json, format_assessment
    from gpt2_from_scratch.evaluation.metrics import several
    from gpt2_from_scratch.runs.folder import TrainedOn, read_test_part
    from gpt2_from_scratch.runs.results import assess_again, evaluate_classifier
    from gpt2_from_scratch.speed.feature_store import FeatureStore

    classifier = load_classifier(args)
    classifier.store = None if args.cache is False else FeatureStore()
    head = classifier.description.head
    folder = args.classifier if args.classifier.is_dir() else args.classifier.parent
    if args.source:
        data = settings_of(args, DataConfig)
        if head.task == "regression" and head.labels[0] != "value_0" and not args.label_column:
            data = DataConfig(**asdict(data) | {"label_column": ",".join(head.labels)})
        messages = load_examples(data, head.task)
        if head.task == "classification":
            known = head.labels
            messages = with_known_labels(messages, known, data.rare_labels, data.source)
        elif head.task in CLASS_TASKS:
            for message in messages:
                if unknown := [*set(label_parts(message.label)).difference(head.labels)]:
                    raise DataError(
                        f"{data.source}, line {message.line}: unknown label {unknown[0]!r:.80}; the "
                        f"head has {several(head.labels)}"
                    )
    else:
        messages = read_test_part(folder, head.task)
    options = given(args, "positive", "allowed_per_1000", "cost", "n_shown")
    if head.task == "classification":
        is_best = args.classifier.is_dir() or args.classifier.name == "best.safetensors"
        found = assess_again(classifier, messages, folder if is_best else None, **options)
        values, table = assessment_as_json(found), format_assessment(found)
    elif options:
        raise UsageError(
            "--positive, --allowed-false-positives, --cost-of-false-positive and --show are for "
            f"classification, not for {head.task}"
        )
    else:
        scores = evaluate_classifier(classifier, messages)
        values, table = scores.as_json(), scores.as_table()
    seen = TrainedOn.of(args.classifier)
    n_seen = seen.count(messages)
    if args.source or n_seen:  # a run's own test set normally shares no text with its training set
        values |= {"trained_on": n_seen if n_seen or seen.complete else None}
        table = f"{seen.in_words(messages)}\n\n{table}"
    print(json.dumps(values) if args.json else table)


def load_classifier(args: argparse.Namespace) -> "Classifier":
    """Load the classifier, and merge its LoRA adapters, so that it answers faster."""
    from gpt2_from_scratch.classifier.classifier import Classifier
    from gpt2_from_scratch.speed.devices import DTYPES

    refuse_missing(args.classifier)
    device, dtype = computing_on(args)
    classifier = Classifier.load(
        args.classifier,
        args.model,
        dtype=DTYPES[dtype],
        device=device,
        stream=bool(getattr(args, "stream_blocks", None)),
    )
    classifier.merge_for_answers()
    if classifier.description.is_quantized and args.dtype in ("bfloat16", "int8"):
        log.warning(f"--dtype {dtype} has no effect: blocks in NF4 are computed in float32")
    return classifier


def refuse_missing(path: Path) -> None:
    """Raise CheckpointError if the path does not exist; the message names runs that do."""
    if os.path.lexists(path) or is_model(path):  # `load` says what is wrong with a model
        return
    runs = [found.parent for found in Path("runs").glob("*/best.safetensors")]
    runs.sort(key=lambda run: -run.stat().st_mtime)
    names = {run.name: run for run in runs}
    if near := names.get(nearest(path.name, names)):
        hint = f" Did you mean {near}?"
    elif runs:
        hint = f" Name a run, for example {', '.join(map(str, runs[:NEWEST]))}."
    else:
        hint = f" There are no runs here yet. Train a classifier with {command('train')}."
    raise CheckpointError(f"{path} does not exist.{hint}")


# --- texts ---


def add_texts(parser: Any) -> None:
    """Add the classifier, and the options for the texts that it reads."""
    parser.add_argument(
        "classifier",
        type=existing_or_new_path,
        metavar="RUN",
        help="a run's folder, or its best.safetensors",
    )
    parser.add_argument(
        "texts",
        nargs="*",
        default=[],
        metavar="TEXT",
        help="texts (default: lines of standard input)",
    )
    add_base(parser)
    parser.add_argument(
        "--file",
        type=existing_or_new_path,
        help="text file with one text per line, or a .csv, .tsv or .jsonl file; -: standard input",
    )
    add_settings(parser, DataConfig, *READING)


def check_texts(args: argparse.Namespace) -> None:
    """Raise an error if texts were given together with a file, or if one of them is a file."""
    if args.file and args.texts:
        raise DataError("give texts or --file, not both")
    if files := [text for text in args.texts if os.path.isfile(text)]:
        raise UsageError(
            f"{files[0]} is a file. Use --file {shlex.quote(files[0])} to read the texts in it."
        )
    for text in args.texts:
        named = is_table(Path(text)) and os.path.basename(text) != text and text.split() == [text]
        if named or os.path.isdir(text):
            what = (
                "there is a folder of this name" if os.path.isdir(text) else "no such file exists"
            )
            log.warning(f"{text} is classified as a text: {what}. Use --file for texts in a file.")


def numbered_texts(args: argparse.Namespace) -> Iterable[tuple[int, str]]:
    """The texts with their numbers: those given, of --file, or of standard input."""
    if _is_typed(args):
        log.info(f"Type one text per line; {END_OF_INPUT} ends.")
    return enumerate(args.texts, start=1) if args.texts else _read(args)


def _is_typed(args: argparse.Namespace) -> bool:
    """Whether the texts are typed on a terminal while the command runs."""
    from_file = args.file and str(args.file) != "-"
    return not args.texts and not from_file and sys.stdin is not None and sys.stdin.isatty()


def _read(args: argparse.Namespace) -> Iterable[tuple[int, str]]:
    """The texts of --file with their numbers; without --file, or for `-`, of standard input."""
    from gpt2_from_scratch.data.messages import lines_of, read_texts
    from gpt2_from_scratch.storage.processes import count

    if args.file and str(args.file) != "-":
        return read_texts(args.file, **given(args, *READING))
    if count() > 1:
        raise UsageError("several processes cannot share standard input. Use --file.")
    if sys.stdin is None:
        raise DataError("standard input is closed. Give texts, --file, or lines in a pipe.")
    return lines_of(sys.stdin.buffer, "standard input", **given(args, "encoding", "on_error"))


# --- predict ---


def add_predict(commands: Any) -> None:
    """Add `predict`."""
    parser = commands.add(
        "predict",
        run_predict,
        "classify texts",
        "gpt2-classifier predict runs/demo 'Claim your free prize, call 0800 123 now' 'See you at six'",
        "gpt2-classifier predict runs/demo --file inbox.txt --csv > labels.csv",
        "gpt2-classifier predict runs/demo --threshold spam=0.95 --file inbox.txt",
        "cat inbox.txt | gpt2-classifier predict runs/demo --json",
    )
    add_texts(parser)
    parser.add_argument(
        "--threshold",
        type=non_empty,
        metavar="LABEL=P",
        help="predict LABEL only if its probability is at least P; evaluate shows the effect",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object per text")
    form.add_argument(
        "--csv",
        action="store_true",
        help="print a table: number, label, probability of each label, truncated",
    )
    parser.add_argument(
        "--with-text",
        action="store_true",
        help="with --csv: add the text; formulas get a ' that stops spreadsheets",
    )
    add_computing(parser, answers=True, stream=True)


def run_predict(args: argparse.Namespace) -> None:
    """Print the label and the probabilities of each text."""
    from gpt2_from_scratch.classifier.prediction_table import PredictionTable
    from gpt2_from_scratch.progress import for_programs, progress_bar
    from gpt2_from_scratch.storage.processes import count, is_first

    check_texts(args)
    if args.with_text and not args.csv:
        raise UsageError("--with-text adds a column to --csv")
    classifier = load_classifier(args)
    texts = numbered_texts(args)
    if not is_first():  # it shares the work, and the first process prints
        deque(classifier.predict_stream(text for _, text in texts), maxlen=0)
        return
    table = (
        PredictionTable(for_programs(sys.stdout), classifier.description.heads, args.with_text)
        if args.csv
        else None
    )
    numbered, texts = tee(texts)  # the numbers are needed again, next to the predictions
    windows: Iterable[Iterable[str]] = [(text for _, text in texts)]
    if _is_typed(args):
        windows = ([text] for _, text in texts)  # so that each line is answered at once
    predictions: Iterable[Any] = progress_bar(
        chain.from_iterable(map(classifier.predict_stream, windows)),
        desc="classified",
        unit=" texts",
        # on a terminal a bar would mix with the results
        hidden=sys.stdout.isatty() or not sys.stderr.isatty(),
    )
    if args.threshold:
        label, threshold = _threshold(args.threshold, classifier.description.head)
        predictions = ((text, p.at_threshold(label, threshold)) for text, p in predictions)
    try:
        for (text, prediction), (number, _) in zip(predictions, numbered, strict=False):
            if table:
                table.write(number, text, prediction)
            else:
                print(prediction.as_json(number) if args.json else prediction.in_words(text))
            sys.stdout.flush()  # another program may be waiting for each answer
    except BrokenPipeError:  # nobody reads the answers any longer
        if count() > 1:  # the other processes need this one until the end
            deque(predictions, maxlen=0)
        raise


def _threshold(typed: str, head: HeadConfig) -> tuple[str, float]:
    """The label and the smallest probability in LABEL=P. Raises UsageError if it is invalid."""
    from gpt2_from_scratch.evaluation.metrics import several

    label, _, number = typed.rpartition("=")
    if head.task != "classification" or label not in head.labels:
        raise UsageError(
            f"--threshold {typed}: expected LABEL=P, with one of the labels {several(head.labels)}"
        )
    with suppress(ValueError):
        if 0 <= float(number) <= 1:
            return label, float(number)
    raise UsageError(f"--threshold {typed}: expected LABEL=P, with P from 0 to 1")


# --- export ---


def add_export(commands: Any) -> None:
    """Add `export`."""
    parser = commands.add(
        "export",
        run_export,
        "write a classifier for other tools",
        "gpt2-classifier export runs/demo --to hugging-face exported",
        "gpt2-classifier export runs/lora --to peft adapter",
        "gpt2-classifier export runs/demo --to onnx --int8 served",
    )
    parser.add_argument(
        "classifier",
        type=existing_or_new_path,
        metavar="RUN",
        help="a run's folder, or its best.safetensors",
    )
    parser.add_argument("folder", type=new_path, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--to",
        choices=FORMATS,
        default=FORMATS[0],
        help="hugging-face: a complete model of transformers; peft: the LoRA adapters alone; onnx: "
        "a graph for onnxruntime, compared with PyTorch on the run's test set (default: hugging-face)",
    )
    parser.add_argument(
        "--head", type=non_empty, metavar="NAME", help="the head to export, if there are several"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        default=None,
        help="with --to onnx: also write a version with int8 weights, and report its size, its speed "
        "and how it changes the answers",
    )
    parser.add_argument(
        "--data",
        type=non_empty,
        help="with --int8: labelled texts on which it is measured (default: the run's validation set)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        default=None,
        help="with --int8: write it even if it loses more than a point of the score",
    )
    add_base(parser)


def run_export(args: argparse.Namespace) -> None:
    """Write a classifier to a folder that other tools can read; print its path."""
    from gpt2_from_scratch.classifier.classifier import Classifier
    from gpt2_from_scratch.runs.exporting import export

    refuse_missing(args.classifier)
    classifier = Classifier.load(args.classifier, args.model)
    run = args.classifier if args.classifier.is_dir() else args.classifier.parent
    export(classifier, args.folder, run=run, **given(args, "to", "head", "int8", "data", "force"))
    log.info("README.md in the folder shows how to use it")
    print(args.folder)


# --- features ---


def add_features(commands: Any) -> None:
    """Add `features`."""
    parser = commands.add(
        "features",
        run_features,
        "write the hidden states of texts to a file, as an array for other tools",
        "gpt2-classifier features --file inbox.txt --out states.npy",
        "gpt2-classifier features --file mail.csv --layer 4 --state raw --pooling mean --out x.npy",
    )
    parser.add_argument(
        "--file",
        type=existing_or_new_path,
        required=True,
        help="text file with one text per line, or a table; -: standard input",
    )
    add_settings(parser, DataConfig, *READING)
    add_model(parser)
    parser.add_argument(
        "--out", type=new_path, required=True, help="a new .npy file: texts x n_embd"
    )
    add_settings(parser, HeadSettings, "layer", "state", "pooling")
    add_computing(parser, answers=True, stream=True)


def run_features(args: argparse.Namespace) -> None:
    """Write the hidden states of texts as an array with one row per text; print its path."""
    from gpt2_from_scratch.classifier.classifier import Classifier
    from gpt2_from_scratch.classifier.streaming import write_rows
    from gpt2_from_scratch.speed.devices import DTYPES
    from gpt2_from_scratch.storage.processes import is_first

    device, dtype = computing_on(args)
    asked = settings_of(args, HeadSettings)
    head = HeadConfig(
        "state",
        "features",
        layer=None if asked.layer < 0 else asked.layer,
        final_norm=asked.state == "normed",
        pooling=asked.pooling,
    )
    classifier = Classifier.on_base(
        args.model,
        heads=[head],
        dtype=DTYPES[dtype],
        device=device,
        stream=bool(args.stream_blocks),
    )
    texts = [text for _, text in _read(args)]
    width = classifier.model.config.n_embd
    write_rows(
        lambda some: classifier.logits(classifier.encode(some)[0]).numpy(), width, texts, args.out
    )
    log.info(f"{len(texts):,} texts, {width} float32 values per text; read with np.load")
    if is_first():
        print(args.out)
