"""What each subcommand does: one function of the package, and how its result is printed."""

import argparse
import json
import logging
import shlex
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, fields
from itertools import tee
from pathlib import Path
from typing import Any

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.cli.compare_command import run_compare
from gpt2_from_scratch.cli.experiments_command import run_table
from gpt2_from_scratch.cli.options import (
    computing_on,
    data_options,
    options_given,
    settings_of,
    train_config,
)
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.storage.paths import MODELS

log = logging.getLogger(__name__)

# options of `train` that are arguments of `train_classifier` under the same name
RUN_SETTINGS = (
    "model",
    "data",
    "val_data",
    "test_data",
    "balance",
    "together",
    "max_tokens",
    "text_column",
    "label_column",
    "encoding",
    "on_error",
    "keep_empty",
    "cache",
)


def run_train(args: argparse.Namespace) -> None:
    """Finetune a classifier and print its scores on the test part."""
    from gpt2_from_scratch.classifier.tasks.score_tables import format_scores
    from gpt2_from_scratch.runs.recipes import train_as_the_lecture, train_classifier

    if args.resume:
        run, _, scores = _resume(args)
    elif args.recipe == "lecture":
        _refuse_other_settings(args)
        device, dtype = computing_on(args)
        given = options_given(args, "model", "data", "seed", "cache")
        run, _, scores = train_as_the_lecture(run=args.out, device=device, dtype=dtype, **given)
    else:
        device, dtype = computing_on(args)
        run, _, scores = train_classifier(
            run=args.out,
            config=train_config(args),
            settings=settings_of(args, HeadSettings),
            device=device,
            dtype=dtype,
            **options_given(args, *RUN_SETTINGS),
        )
    print("test part, texts never trained on or chosen by:")
    print(format_scores(scores))
    where = "" if args.model in (None, *MODELS) else f" --model {shlex.quote(args.model)}"
    log.info(
        f"\nsaved in {run}; use it with\n"
        f"  gpt2-classifier predict {shlex.quote(str(run))}{where} 'a message of yours'"
    )


def run_find_rate(args: argparse.Namespace) -> None:
    """Print the learning rate that a short run in which it rises suggests, and draw the losses."""
    from gpt2_from_scratch.reports.plots import plot_rates, save_picture
    from gpt2_from_scratch.runs.recipes import new_classifier, three_parts
    from gpt2_from_scratch.studies.learning_rate import find_learning_rate

    device, dtype = computing_on(args)
    settings, config = settings_of(args, HeadSettings), train_config(args)
    sources = {"data": args.data or "demo", "val_data": "", "test_data": ""}
    split = three_parts(
        sources,
        settings.task,
        data_options(args),
        bool(args.balance),
        config.seed,
        **options_given(args, "together"),
    )
    model = args.model or "mini"
    classifier = new_classifier(model, split, config, settings, args.max_tokens, dtype)
    classifier.model.to(device)
    found = find_learning_rate(classifier, split, config, steps=args.steps)
    save_picture(plot_rates(found.rates, found.losses, found.suggested), args.out)
    log.info(f"the loss at each rate: {args.out}; train with the rate below")
    print(f"{found.suggested:.1e}")


def _resume(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Go on with a run; options that contradict its settings are refused there."""
    from gpt2_from_scratch.runs.recipes import resume_training
    from gpt2_from_scratch.speed.devices import choose_device

    if args.out or args.recipe == "lecture":
        raise UsageError(
            "--resume RUN goes on in RUN with its recipe: leave out --out and --recipe"
        )
    given = options_given(
        args,
        *RUN_SETTINGS,
        "dtype",
        "threads",
        *(field.name for kind in (TrainConfig, HeadSettings) for field in fields(kind)),
    )
    return resume_training(args.resume, device=choose_device(args.device), **given)


def run_evaluate(args: argparse.Namespace) -> None:
    """Print a saved classifier's scores on labelled messages."""
    from gpt2_from_scratch.classifier.tasks.score_tables import format_scores
    from gpt2_from_scratch.classifier.tasks.scores import scores_as_json
    from gpt2_from_scratch.data.formats import load_examples
    from gpt2_from_scratch.evaluation.assessment import assessment_as_json, format_assessment
    from gpt2_from_scratch.runs.folder import read_test_part
    from gpt2_from_scratch.runs.recipes import evaluate_classifier
    from gpt2_from_scratch.runs.results import assess_again
    from gpt2_from_scratch.speed.feature_store import FeatureStore

    classifier = _load_classifier(args)
    head = classifier.description.head
    folder, task = args.run if args.run.is_dir() else args.run.parent, head.task
    if args.data:
        named = task == "regression" and head.labels[0] != "value_0"  # by their columns
        columns = {"label_column": ",".join(head.labels)} if named else {}
        messages = load_examples(args.data, task, **columns | data_options(args))
    else:
        messages = read_test_part(folder, task)
    store = None if args.cache is False else FeatureStore()
    if task == "classification":
        is_best = args.run.is_dir() or args.run.name == "best.safetensors"
        found = assess_again(
            classifier,
            messages,
            folder if is_best else None,
            store=store,
            **options_given(args, "positive", "allowed_per_1000", "cost", "n_shown"),
        )
        print(json.dumps(assessment_as_json(found)) if args.json else format_assessment(found))
        return
    if options_given(args, "positive", "allowed_per_1000", "cost", "n_shown"):
        options = "--watch, --lose-at-most, --cost-of-losing and --show"
        raise UsageError(f"{options} are for classifiers that choose a class, not for {task}")
    scores = evaluate_classifier(classifier, messages, store=store)
    print(json.dumps(scores_as_json(scores)) if args.json else format_scores(scores))


def run_predict(args: argparse.Namespace) -> None:
    """Print the label and the probabilities of each text."""
    from gpt2_from_scratch.classifier.classifier import predict_stream
    from gpt2_from_scratch.classifier.tasks.answers import Csv, as_json, as_line
    from gpt2_from_scratch.classifier.tasks.predictions import at_least
    from gpt2_from_scratch.data.messages import lines_of, read_texts

    if args.file and args.texts:
        raise DataError("give texts or --file, not both")
    if args.with_text and not args.csv:
        raise UsageError("--with-text adds a column to --csv")
    classifier = _load_classifier(args)
    options = options_given(args, "encoding", "on_error")
    if args.file:
        texts = read_texts(args.file, args.text_column, **options)
    elif args.texts:
        texts = enumerate(args.texts, start=1)
    else:
        texts = lines_of(sys.stdin.buffer, "standard input", **options)
    table = Csv(sys.stdout, classifier.description.heads, args.with_text) if args.csv else None
    numbered, texts = tee(texts)  # answers come in windows, each text's number with them
    answers = _shown(predict_stream(classifier, (text for _, text in texts)))
    if args.threshold:
        label, threshold = _threshold(args.threshold, classifier.description.head)
        answers = ((text, at_least(answer, label, threshold)) for text, answer in answers)
    for (text, answer), (number, _) in zip(answers, numbered, strict=False):
        if table:
            table.write(number, text, answer)
        else:
            print(as_json(number, answer) if args.json else as_line(text, answer))
        sys.stdout.flush()  # whoever reads a pipe waits for it


def run_features(args: argparse.Namespace) -> None:
    """Write the hidden states of texts as an array, a row a text; print where."""
    import numpy as np

    from gpt2_from_scratch.classifier.classifier import Classifier
    from gpt2_from_scratch.classifier.settings import HeadConfig
    from gpt2_from_scratch.data.messages import read_texts
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
    classifier = Classifier.on_base(args.model, heads=[head], dtype=dtype)
    classifier.model.to(device)
    options = options_given(args, "encoding", "on_error")
    texts = [text for _, text in read_texts(args.file, args.text_column, **options)]
    states = classifier.logits(classifier.encode(texts)[0]).numpy()
    with atomic_path(args.out) as temporary, temporary.open("wb") as file:
        np.save(file, states)
    log.info(f"{len(states):,} texts, {states.shape[1]} numbers each, float32; np.load reads it")
    print(args.out)


def run_probe(args: argparse.Namespace) -> None:
    """Print the test accuracy of a linear probe at every layer; write its picture."""
    from gpt2_from_scratch.data.messages import load_messages
    from gpt2_from_scratch.data.split import split_messages
    from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
    from gpt2_from_scratch.gpt2.weights import load_gpt2
    from gpt2_from_scratch.reports.plots import save_picture
    from gpt2_from_scratch.storage.paths import model_folder
    from gpt2_from_scratch.studies.probes import format_probes, plot_probes, probe_layers

    device, dtype = computing_on(args)
    messages = load_messages(args.data or "demo", **data_options(args))
    split = split_messages(messages, **options_given(args, "balance", "seed", "on_error"))
    model, tokenizer = load_gpt2(args.model).to(device), Tokenizer(model_folder(args.model))
    began = time.perf_counter()
    options = options_given(args, "poolings")
    probes = probe_layers(model, tokenizer, split, **options, dtype=dtype)
    log.info(f"{len(probes)} probes in {time.perf_counter() - began:.1f} s")
    if args.json:
        print(json.dumps([{"accuracy": probe.accuracy} | asdict(probe) for probe in probes]))
    else:
        print(format_probes(probes))
    if args.out:
        save_picture(plot_probes(probes), args.out)
        log.info(f"picture: {args.out}")


def run_check(args: argparse.Namespace) -> None:
    """Print what was found in a data set; raises DataError when it cannot be trained on."""
    from gpt2_from_scratch.data.check import check_data, format_report

    options = options_given(args, "text_column", "label_column", "encoding", "max_tokens")
    report = check_data(args.data, model=args.model, **options)
    print(json.dumps(asdict(report)) if args.json else format_report(report))
    if report.obstacles:
        raise DataError(f"{report.source} cannot be trained on: {report.obstacles[0]:.200}")


def run_verify(args: argparse.Namespace) -> None:
    """Print what was checked of a model; raises CheckpointError when something failed."""
    from gpt2_from_scratch.errors import CheckpointError
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


def run_pretrain(args: argparse.Namespace) -> None:
    """Pretrain a model into a folder."""
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
        log.warning("interrupted; go on with the same command and --resume")
        raise
    records = [json.loads(line) for line in (args.out / "pretraining.jsonl").open()]
    curve = plot_pretraining(
        [record["tokens"] for record in records],
        [record["held_out_bits_per_byte"] for record in records],
        {"gzip -9": read_json(args.out / "pretraining.json")["gzip_bits_per_byte"]},
    )
    save_picture(curve, args.out / "pretraining.png")
    log.info(
        f"saved in {args.out}; try it with\n  gpt2-classifier generate --model {args.out} --prompt Hi"
    )


def run_download(args: argparse.Namespace) -> None:
    """Fetch files and print where they lie."""
    from gpt2_from_scratch.gpt2.download import download_model, download_sms_spam

    print(download_sms_spam() if args.what == "sms" else download_model(args.what))


def run_cache(args: argparse.Namespace) -> None:
    """Print what is kept of frozen blocks' output, or remove it."""
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


def _refuse_other_settings(args: argparse.Namespace) -> None:
    """The lecture's recipe is fixed: an option that it would pass over is an error."""
    free = set("command recipe model data out seed verbose device dtype threads cache".split())
    given = {name for name, value in vars(args).items() if value is not None}
    if passed_over := sorted(given - free):
        raise UsageError(f"the lecture's recipe is fixed; leave out {', '.join(passed_over)}")


def _shown(predictions: Iterable[Any]) -> Iterable[Any]:
    """With a progress bar, where the results themselves do not scroll by on the same screen."""
    from gpt2_from_scratch.progress import progress_bar

    hidden = sys.stdout.isatty() or not sys.stderr.isatty()
    return progress_bar(predictions, desc="classified", unit=" texts", hidden=hidden)


def _threshold(typed: str, head: Any) -> tuple[str, float]:
    """The label and the least probability that LABEL=P names."""
    label, _, number = typed.rpartition("=")
    if head.task != "classification" or label not in head.labels:
        raise UsageError(f"--threshold {typed}: LABEL=P, the label one of {', '.join(head.labels)}")
    with suppress(ValueError):
        if 0 <= float(number) <= 1:
            return label, float(number)
    raise UsageError(f"--threshold {typed}: LABEL=P, with P from 0 to 1")


def _load_classifier(args: argparse.Namespace) -> Any:
    from gpt2_from_scratch.classifier.classifier import Classifier

    device, dtype = computing_on(args)
    classifier = Classifier.load(args.run, args.model, dtype=dtype)
    classifier.merge()
    classifier.model.to(device)
    return classifier


COMMANDS = {
    "train": run_train,
    "find-rate": run_find_rate,
    "compare": run_compare,
    "experiments": run_table,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "features": run_features,
    "probe": run_probe,
    "check": run_check,
    "verify": run_verify,
    "generate": run_generate,
    "pretrain": run_pretrain,
    "download": run_download,
    "cache": run_cache,
}
