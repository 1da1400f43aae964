"""What was typed, as arguments of the library; and how a command talks. Nothing heavy at import."""

import argparse
import sys
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from gpt2_from_scratch.config import TrainConfig
from gpt2_from_scratch.errors import UsageError


def say(text: str) -> None:
    """Print to standard error, above a progress bar if one is there; if it can be told."""
    from tqdm import tqdm

    with suppress(OSError):  # a log on a full disk is no reason to stop
        tqdm.write(text, file=sys.stderr)


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was said about how to read labelled messages; the rest is as the function has it."""
    return options_given(args, "text_column", "label_column", "encoding", "on_error", "keep_empty")


def computing_on(args: argparse.Namespace) -> tuple[Any, Any]:
    """The device and the dtype to compute with; sets the number of threads."""
    from gpt2_from_scratch.devices import DTYPES, arithmetic, choose_device, set_threads

    set_threads(args.threads)
    device, dtype = choose_device(args.device), DTYPES[args.dtype or "float32"]
    if arithmetic(dtype, device) != dtype:
        say("this processor has no bfloat16 instructions: float32 is computed, bfloat16 kept")
    return device, dtype


def options_given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names that were given; the others are for the library's defaults."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def train_config(args: argparse.Namespace) -> TrainConfig:
    """The settings of training; with LoRA no block trains itself, unless that was asked for."""
    if args.trainable and (args.n_last_blocks is not None or args.final_norm is not None):
        raise UsageError(
            "--trainable names all that trains: leave out --n-last-blocks and the norm"
        )
    config = settings_of(args, TrainConfig)
    return replace(config, n_last_blocks=0) if args.lora and args.n_last_blocks is None else config


def settings_of(args: argparse.Namespace, kind: Any) -> Any:
    """A settings dataclass of the options that were given; the rest is its defaults."""
    return kind(**options_given(args, *(field.name for field in fields(kind))))
