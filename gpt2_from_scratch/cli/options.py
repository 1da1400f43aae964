"""Options that several commands share, the types of their values, and settings made from them."""

import argparse
import itertools
import logging
import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.storage.paths import expanded, refuse_taken

log = logging.getLogger(__name__)

MODEL_HELP = "mini, 124M, 355M, 774M, 1558M, or a folder"
# settings whose option has another name
OPTIONS = {
    "source": "data",
    "val_source": "val-data",
    "test_source": "test-data",
    "keep_together": "together",
}
TABLE = ("text_column", "label_column", "header", "delimiter", "encoding")  # how a table is read
UNITS = {"s": 1, "m": 60, "h": 3600}
RUN_SETTINGS = (DataConfig, TrainConfig, HeadSettings)


def option_of(name: str) -> str:
    """The option of a setting: `--text-column` of `text_column`."""
    return "--" + OPTIONS.get(name, name).replace("_", "-")


def existing_or_new_path(text: str) -> Path:
    """Convert a word to a path, with `~` expanded.

    An empty word is an error, because its path would be the current folder.
    """
    return expanded(non_empty(text))


def new_path(text: str) -> Path:
    """Convert a word to a path at which nothing exists, not even a broken link."""
    path = existing_or_new_path(text)
    if os.path.lexists(path):
        raise argparse.ArgumentTypeError(f"{path} exists already; choose another")
    return path


def new_folder(text: str) -> Path:
    """Convert a word to the path of a folder, which must be empty if it exists."""
    path = existing_or_new_path(text)
    refuse_taken(path)
    return path


def free_path(path: Path) -> Path:
    """The path itself or, if it exists, the first free path with a number after its name."""
    names = itertools.chain(
        [path], (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
    )
    return next(name for name in names if not os.path.lexists(name))


def non_empty(text: str) -> str:
    """Return the text. It is an error if it is empty."""
    if not text:
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def duration(text: str) -> float:
    """Convert a time such as 90s, 5m or 1h to seconds; a number alone means seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a time such as 90s, 5m or 1h")
    return seconds


def add_settings(parser: Any, kind: type, *names: str) -> None:
    """Add an option for each field of a settings dataclass, or only for those in `names`.

    The value of an option that is not given is None.
    """
    for field in (field for field in fields(kind) if not names or field.name in names):
        option = option_of(field.name)
        shown = "none" if field.default == "" else field.default
        if isinstance(field.default, bool):
            shown = "yes" if field.default else "no"
        help = f"{field.metadata['help']} (default: {shown})"
        if isinstance(field.default, bool):
            parser.add_argument(
                option, dest=field.name, action=argparse.BooleanOptionalAction, help=help
            )
        elif field.metadata["choices"]:
            parser.add_argument(
                option, dest=field.name, choices=field.metadata["choices"], help=help
            )
        else:
            text = isinstance(field.default, str)
            kind_of_value = non_empty if text else type(field.default)
            metavar = "TEXT" if text else "N"
            parser.add_argument(
                option, dest=field.name, type=kind_of_value, metavar=metavar, help=help
            )


def add_model(parser: Any, default: str = "mini") -> None:
    """Add the option for the pretrained model."""
    parser.add_argument(
        "--model", type=non_empty, default=default, help=f"{MODEL_HELP} (default: {default})"
    )


def add_base(parser: Any) -> None:
    """Add the option for the base model of a saved classifier."""
    parser.add_argument(
        "--model", type=non_empty, help="folder of the base model, if it has no known name"
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options for the model, the data, the head and the training."""
    parser.add_argument("--model", type=non_empty, help=f"{MODEL_HELP} (default: mini)")
    add_settings(parser.add_argument_group("data"), DataConfig)
    add_settings(parser.add_argument_group("head and LoRA"), HeadSettings)
    add_settings(parser.add_argument_group("training"), TrainConfig)


def add_device(parser: Any) -> None:
    """Add the option for the device."""
    parser.add_argument(
        "--device",
        default="auto",
        choices=["auto", "cpu", "cuda", "mps"],
        help="where to compute (default: auto)",
    )


def add_tensorboard(parser: Any) -> None:
    """Add the option for curves."""
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        default=None,
        help="write the curves of the training for TensorBoard, to the folder tensorboard in OUT",
    )


def add_computing(
    parser: Any,
    *,
    device: bool = True,
    cache: bool = False,
    answers: bool = False,
    stream: bool = False,
) -> None:
    """Add the options for precision, threads, device, cache and streamed blocks.

    With `answers`, int8 is offered too, which is for commands that only answer. "auto" never chooses
    it.
    """
    if cache:
        parser.add_argument(
            "--cache",
            action=argparse.BooleanOptionalAction,
            help="keep the output of the frozen blocks on disk for the next run (default: yes)",
        )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", *(["int8"] if answers else [])],
        help="precision of the frozen blocks; bfloat16 halves their memory, and trainable "
        "parameters stay float32; auto is bfloat16 where that is faster, otherwise float32"
        + ("; int8 is the fastest on a CPU, but changes more answers" if answers else "")
        + " (default: float32)",
    )
    if stream:
        parser.add_argument(
            "--stream-blocks",
            action="store_true",
            default=None,
            help="read one frozen block at a time from the model's file: for models larger than the "
            "memory, on the processor",
        )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="number of threads (default: one per core)"
    )
    if device:
        add_device(parser)


# --- the settings that the options give ---


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The values of those of these options that were given, by name.

    The others are left out, so that the library's defaults are used.
    """
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def settings_of(args: argparse.Namespace, kind: Any) -> Any:
    """The settings of class `kind`: the options that were given, and defaults for the others."""
    return kind(**given(args, *(field.name for field in fields(kind))))


def train_config(args: argparse.Namespace) -> TrainConfig:
    """The training settings from the options.

    With LoRA no block is trained unless --n-last-blocks is given. Raises UsageError if --trainable
    is combined with --n-last-blocks or --final-norm.
    """
    if args.trainable and (args.n_last_blocks is not None or args.final_norm is not None):
        raise UsageError(
            "--trainable already names all trainable parameters. Leave out --n-last-blocks and "
            "--final-norm."
        )
    config = settings_of(args, TrainConfig)
    return replace(config, n_last_blocks=0) if args.lora and args.n_last_blocks is None else config


def computing_on(args: argparse.Namespace) -> tuple[Any, str]:
    """Set the number of threads; return the device and the precision to compute with."""
    from gpt2_from_scratch.speed.devices import (
        DTYPES,
        arithmetic,
        choose_device,
        choose_dtype,
        set_threads,
    )

    set_threads(args.threads)
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype or "float32", device)
    computes_in = arithmetic(DTYPES[dtype], device)
    if computes_in != DTYPES[dtype]:
        what = "stores bfloat16 but computes" if dtype == "bfloat16" else "computes"
        log.warning(
            f"this device has no instructions for {dtype}: it {what} in "
            f"{str(computes_in).removeprefix('torch.')}"
        )
    return device, dtype
