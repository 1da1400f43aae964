"""The commands that train: demo, train, find-rate, pretrain.

Each command imports what it needs only when it runs, so --help answers at once.
"""

import argparse
import json
import logging
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.cli.options import (
    RUN_SETTINGS,
    add_computing,
    add_device,
    add_settings,
    add_tensorboard,
    add_training,
    computing_on,
    duration,
    existing_or_new_path,
    free_path,
    given,
    new_folder,
    new_path,
    non_empty,
    settings_of,
    train_config,
)
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.data.tables import checked_delimiter, checked_encoding
from gpt2_from_scratch.errors import Interrupted, UsageError
from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.progress import command
from gpt2_from_scratch.storage.paths import MODELS, data_name, model_folder, model_name

if TYPE_CHECKING:
    from gpt2_from_scratch.runs.results import Run

log = logging.getLogger(__name__)

WIDTH = 100  # characters of a line of prose on a terminal


# the two messages with which the book tries its classifier
EXAMPLES = (
    "You are a winner you have been specially selected to receive $1000 cash or a $2000 award.",
    "Hey, just wanted to check if we're still on for dinner tonight? Let me know!",
)


# --- train and demo ---


def add_train(commands: Any) -> None:
    """Add `train`."""
    parser = commands.add(
        "train",
        run_train,
        "finetune a pretrained GPT-2 into a classifier",
        "gpt2-classifier train",
        "gpt2-classifier train --data sms --balance --seed 1",
        "gpt2-classifier train --model 124M --data reviews.csv --label-column stars --out runs/reviews",
        "gpt2-classifier train --data sms.tsv --no-header --text-column 2 --label-column 1",
        "gpt2-classifier train --data mail.csv --text-column subject,body --rare-labels join:other",
        "gpt2-classifier train --data tickets.jsonl --task multi-label --head tanh --dropout 0.1",
        "gpt2-classifier train --data train.conll --task token-classification --n-last-blocks 2",
        "gpt2-classifier train --data squad.json --task span --model 124M --lora 16",
        "gpt2-classifier train --model 124M --data sms --recipe lecture",
        "gpt2-classifier train --data few.csv --adapt 3 --unlabelled many.csv",
        "gpt2-classifier train --from runs/reviews --data newer.csv --lr 1e-4",
        "gpt2-classifier train --data reviews.csv --autotune 5m",
        "gpt2-classifier train --resume runs/reviews",
        "gpt2-classifier train --resume runs/reviews --data moved/reviews.csv",
    )
    add_training(parser)
    parser.add_argument(
        "--from",
        type=existing_or_new_path,
        dest="start",
        metavar="RUN",
        help="start from the classifier of another run, with other data",
    )
    parser.add_argument(
        "--out", type=new_folder, help="the run's folder (default: a new one in runs/)"
    )
    parser.add_argument(
        "--resume",
        type=existing_or_new_path,
        metavar="RUN",
        help="resume an interrupted run with its own settings",
    )
    parser.add_argument(
        "--autotune",
        type=duration,
        metavar="TIME",
        help="search for the best settings for this long: 90s, 5m or 1h; settings that differ "
        "from their defaults are kept (default: no search)",
    )
    parser.add_argument(
        "--recipe",
        choices=["default", "lecture"],
        help="lecture: train step by step as in the lecture (default: default)",
    )
    add_tensorboard(parser)
    add_computing(parser, cache=True, stream=True)


def add_demo(commands: Any) -> None:
    """Add `demo`."""
    parser = commands.add(
        "demo",
        run_demo,
        "train the miniature GPT-2 on real text messages and try it, in half a minute",
        "gpt2-classifier demo",
        "gpt2-classifier demo --out runs/first --verbose",
    )
    parser.add_argument(
        "--out", type=new_folder, help="the run's folder (default: a new one in runs/)"
    )


def run_demo(args: argparse.Namespace) -> None:
    """Train on the balanced SMS collection with all defaults, and classify two example messages."""
    from gpt2_from_scratch.runs.recipes import train_classifier
    from gpt2_from_scratch.speed.devices import set_threads

    # one thread is enough for a small model; on a busy machine, several wait for each other
    set_threads(1)
    log.info("training the miniature GPT-2 on real text messages: about half a minute")
    out = args.out or free_path(Path("runs") / "demo")
    run = train_classifier(data=DataConfig(balance=True), run=out)
    _print_results(run, EXAMPLES, verbose=args.verbose)


def run_train(args: argparse.Namespace) -> None:
    """Train a classifier, write its report, and print its scores on the test set."""
    from gpt2_from_scratch.runs.recipes import train_as_the_lecture, train_classifier
    from gpt2_from_scratch.storage.processes import is_first

    if args.resume:
        run = _resume(args)
    elif args.recipe == "lecture":
        free = "run command recipe model source out seed verbose device dtype threads cache".split()
        typed = {name for name, value in vars(args).items() if value is not None}
        if ignored := sorted(typed - set(free)):
            raise UsageError(
                f"the lecture's recipe has fixed settings. Leave out {', '.join(ignored)}."
            )
        device, dtype = computing_on(args)
        options = given(args, "model", "seed", "cache")
        if args.source:
            options["data"] = args.source
        run = train_as_the_lecture(run=args.out, device=device, dtype=dtype, **options)
    else:
        training, head = _training_and_head(args)
        device, dtype = computing_on(args)
        run = train_classifier(
            data=settings_of(args, DataConfig),
            training=training,
            head=head,
            run=args.out,
            device=device,
            dtype=dtype,
            **given(args, "model", "cache", "start", "autotune", "tensorboard", "stream_blocks"),
        )
    if is_first():
        _print_results(run, verbose=args.verbose)


def _print_results(run: "Run", texts: Sequence[str] = (), *, verbose: bool = False) -> None:
    """Print a run's scores on the test set, and its predictions for `texts`.

    If the run has no report, this writes it, and prints a comparison with the text baselines.
    `verbose` prints all scores.
    """
    from gpt2_from_scratch.reports.findings import against_baselines, found_and_marked, small_test
    from gpt2_from_scratch.runs.folder import saying_how_to_resume

    table = run.scores.as_table()
    print(f"Test set: {table if verbose else table.splitlines()[0]}")
    if run.assessment and (counts := found_and_marked(run.assessment.evaluation)):
        print(f"{counts[0].upper()}{counts[1:]}.")
    if texts:
        print()
    predictions: Iterator[Any] = run.classifier.predict_stream(texts)
    for text, prediction in predictions:
        print(prediction.in_words(text))
    report, judgement = run.folder / "report.html", ""
    if not report.exists():
        is_resumable = run.config.recipe != "lecture"
        with saying_how_to_resume(run.folder) if is_resumable else nullcontext():
            run.write_report()
        judgement = against_baselines(run.facts)
        if interval := getattr(run.scores, "interval", None):
            judgement += " " + small_test(run.facts.n_texts("test"), interval)
    print(f"\nReport: {report}")
    print("\n".join(textwrap.wrap(judgement, WIDTH)))
    sys.stdout.flush()
    base = [] if run.config.model in MODELS else ["--model", run.config.model]
    log.info(f"\nTry it:\n  {command('predict', run.folder, *base, 'a message of yours')}")


def _training_and_head(args: argparse.Namespace) -> tuple[TrainConfig, HeadSettings]:
    """The settings of training and head from the options.

    With --from, settings that were not given are those of the saved classifier.
    """
    if args.start is None:
        return train_config(args), settings_of(args, HeadSettings)
    from gpt2_from_scratch.runs.continuing import inherited_head, inherited_training

    if args.source is None:  # the default data, the SMS collection, would add its labels
        raise UsageError("--from continues training on other texts. Name them with --data.")
    head = inherited_head(args.start, given(args, *(field.name for field in fields(HeadSettings))))
    typed = given(args, *(field.name for field in fields(TrainConfig)))
    inherited = {} if args.trainable else inherited_training(args.start)
    return TrainConfig(**inherited | typed), head


def _resume(args: argparse.Namespace) -> "Run":
    """Resume a run, and return it when it is finished.

    If its data has moved, --data says where it is now. It must be the same data. Raises UsageError
    for options that contradict the run's settings.
    """
    from gpt2_from_scratch.classifier.autotune import TRIES
    from gpt2_from_scratch.runs.folder import READING, SOURCES, RunConfig
    from gpt2_from_scratch.runs.recipes import resume_training
    from gpt2_from_scratch.speed.devices import choose_device
    from gpt2_from_scratch.storage.states import refuse_changes

    if args.out or args.start or args.recipe == "lecture":
        raise UsageError(
            "--resume RUN resumes RUN in its own folder. Leave out --out, --from and --recipe."
        )
    config = RunConfig.read(args.resume)
    saved = config.settings()
    names = [field.name for kind in RUN_SETTINGS for field in fields(kind)]
    options = "model dtype cache threads autotune tensorboard stream_blocks".split()
    typed = given(args, *options, *names)
    called = {"model": model_name, "encoding": checked_encoding, "delimiter": checked_delimiter}
    called |= dict.fromkeys(SOURCES, data_name)
    typed = {name: called.get(name, lambda x: x)(value) for name, value in typed.items()}
    if typed.get("dtype") == "auto":
        del typed["dtype"]  # the run keeps the precision that was chosen when it started
    moved = {name: typed.pop(name) for name in READING if name in typed}
    if not config.autotune and (args.resume / TRIES).exists():
        typed.pop("autotune", None)  # the search is over
    refuse_changes(saved, saved | typed, args.resume)
    data = replace(config.data, **moved) if moved else None
    return resume_training(args.resume, data=data, device=choose_device(args.device))


# --- find-rate ---


def add_find_rate(commands: Any) -> None:
    """Add `find-rate`."""
    parser = commands.add(
        "find-rate",
        run_find_rate,
        "raise the learning rate step by step, plot the loss, and suggest a learning rate",
        "gpt2-classifier find-rate --data sms --balance",
        "gpt2-classifier find-rate --model 124M --data reviews.csv --lora 8 --out rates.png",
    )
    add_training(parser)
    parser.add_argument(
        "--steps", type=int, default=100, help="maximum number of steps (default: 100)"
    )
    parser.add_argument(
        "--out",
        type=new_path,
        help="file for the plot (default: rates.png, numbered if that exists)",
    )
    add_computing(parser)


def run_find_rate(args: argparse.Namespace) -> None:
    """Print the learning rate that a short run with a rising rate suggests; plot the losses."""
    from gpt2_from_scratch.classifier.adaptation import adapt
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
    if config.training.adapt:
        with TemporaryDirectory() as folder:
            adapt(classifier, split, config.load_unlabelled(split), config.training, folder)
    found = find_learning_rate(classifier, split, config.training, steps=args.steps)
    out = args.out or free_path(Path("rates.png"))
    save_picture(plot_rates(found.rates, found.losses, found.suggested), out)
    log.info(f"plot of the loss at each learning rate: {out}; suggested learning rate:")
    print(f"{found.suggested:.1e}")


# --- pretrain ---


def add_pretrain(commands: Any) -> None:
    """Add `pretrain`."""
    parser = commands.add(
        "pretrain",
        run_pretrain,
        "train a small GPT-2 from scratch on plain text",
        "gpt2-classifier pretrain --corpus texts/ --out runs/my-gpt2 --steps 500",
        "gpt2-classifier pretrain --corpus texts/ --out runs/my-gpt2 --steps 1000 --resume",
        "gpt2-classifier pretrain --corpus texts/ --out runs/mini-2 --from mini --lr 0.002",
        "gpt2-classifier pretrain --corpus texts/ --out runs/deeper --from mini --n-layer 9",
        "gpt2-classifier pretrain --corpus texts/ --out runs/clean --exclude test.csv test.conll",
    )
    parser.add_argument(
        "--corpus", type=existing_or_new_path, required=True, help="a folder of .txt files"
    )
    parser.add_argument(
        "--out", type=existing_or_new_path, required=True, help="the model's folder"
    )
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint")
    parser.add_argument(
        "--from",
        dest="start",
        type=non_empty,
        metavar="MODEL",
        help="model to start from, with its sizes and vocabulary; a larger --n-layer adds blocks "
        "(default: random weights)",
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        type=existing_or_new_path,
        default=[],
        metavar="FILE",
        help="tables, .conll or .txt files, for example test sets, whose texts are left out",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="precision of the weights on disk (default: float32)",
    )
    add_settings(parser, PretrainConfig)
    add_tensorboard(parser)
    add_device(parser)


def run_pretrain(args: argparse.Namespace) -> None:
    """Pretrain a model, save it in a folder, and plot its learning curve."""
    import torch

    from gpt2_from_scratch.data.formats import load_examples
    from gpt2_from_scratch.gpt2.config import read_config
    from gpt2_from_scratch.gpt2.pretrain import pretrain
    from gpt2_from_scratch.reports.plots import plot_pretraining, save_picture
    from gpt2_from_scratch.speed.devices import choose_device
    from gpt2_from_scratch.storage.files import read_json
    from gpt2_from_scratch.storage.processes import is_first

    excluded = []
    for path in args.exclude:
        task = "token-classification" if path.suffix.lower() == ".conll" else "features"
        excluded += [example.text for example in load_examples(path, task)]
    if args.start is not None:
        sizes = asdict(read_config(model_folder(args.start)))
        vars(args).update({name: sizes[name] for name in sizes if getattr(args, name) is None})
    try:
        pretrain(
            args.corpus,
            args.out,
            settings_of(args, PretrainConfig),
            device=choose_device(args.device),
            dtype=getattr(torch, args.dtype),
            start=args.start,
            exclude=excluded,
            resume=args.resume,
            **given(args, "tensorboard"),
        )
    except KeyboardInterrupt as error:
        saved = any(args.out.glob("state-*.safetensors")) and not args.resume
        again = ["--resume"] if saved else []
        number = getattr(error, "exit_code", 130) - 128
        raise Interrupted(str(error) or "interrupted", number, again) from None
    if not is_first():
        return
    lines = (args.out / "pretraining.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    curve = plot_pretraining(
        [record["tokens"] for record in records],
        [record["held_out_bits_per_byte"] for record in records],
        {"gzip -9": read_json(args.out / "pretraining.json")["gzip_bits_per_byte"]},
    )
    save_picture(curve, args.out / "pretraining.png")
    how = command("generate", "--model", args.out, "--prompt", "Hi")
    log.info(f"saved in {args.out}; try it with\n  {how}")
