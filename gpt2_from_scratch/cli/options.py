"""What was typed, as arguments of the library; and how a command talks. Nothing heavy at import."""

import argparse
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.storage.paths import expanded

log = logging.getLogger(__name__)


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was said about how to read labelled messages; the rest is as the function has it."""
    return options_given(args, "text_column", "label_column", "encoding", "on_error", "keep_empty")


def data_config(args: argparse.Namespace) -> DataConfig:
    """The data set that was named and how to read it; the rest is as DataConfig has it."""
    given = options_given(args, "balance") | data_options(args)
    if args.data:
        given["source"] = args.data
    if together := getattr(args, "together", None):
        given["keep_together"] = together
    return DataConfig(**given)


def computing_on(args: argparse.Namespace) -> tuple[Any, Any]:
    """The device and the dtype to compute with; sets the number of threads."""
    from gpt2_from_scratch.speed.devices import DTYPES, arithmetic, choose_device, set_threads

    set_threads(args.threads)
    device, dtype = choose_device(args.device), DTYPES[args.dtype or "float32"]
    if arithmetic(dtype, device) != dtype:
        log.warning(
            "this processor has no bfloat16 instructions: float32 is computed, bfloat16 kept"
        )
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


# --- What several commands have in common: kinds of values, groups of options, their help. ---


MODEL_HELP = "mini (ships with the package), 124M, 355M, 774M, 1558M, or a model's folder"
DATA_HELP = (
    "demo or topics (both ship with the package), sms (the SMS Spam Collection), or a .csv, .tsv "
    "or .jsonl file; .conll for token-classification, SQuAD's .json for span"
)


def path(text: str) -> Path:
    """A path with `~` written out; the empty one would be the folder at hand."""
    return expanded(something(text))


def something(text: str) -> str:
    """Any text but the empty one."""
    if not text:
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def add_command(commands: Any, name: str, what: str, *examples: str) -> argparse.ArgumentParser:
    """A command with its help and its examples."""
    parser = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog="examples:\n  " + "\n  ".join(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    parser.set_defaults(command=name)
    return parser


def add_training(parser: argparse.ArgumentParser) -> None:
    """What is trained on what, and how."""
    parser.add_argument("--model", type=something, help=MODEL_HELP + " (default: mini)")
    parser.add_argument("--data", type=something, help=DATA_HELP + " (default: demo)")
    add_columns(parser)
    parser.add_argument(
        "--balance", action="store_true", default=None, help="as many texts of each label"
    )
    parser.add_argument(
        "--together",
        choices=["copies", "near-duplicates"],
        help="what stays in one part: copies of a text, or texts that are nearly the same too "
        "(default: copies)",
    )
    parser.add_argument(
        "--keep-empty", action="store_true", default=None, help="train on empty texts too"
    )
    add_settings(parser.add_argument_group("the head, and LoRA"), HeadSettings)
    add_settings(parser.add_argument_group("training"), TrainConfig)


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Which columns of a table are meant."""
    parser.add_argument("--text-column", help="of a file (default: text)")
    parser.add_argument("--label-column", help="of a file (default: label)")


def add_settings(parser: Any, kind: type, *names: str) -> None:
    """An option for every field of a settings dataclass, or these; None where it is not given."""
    for field in (field for field in fields(kind) if not names or field.name in names):
        option = "--" + field.name.replace("_", "-")
        default = "none" if field.default == "" else field.default
        meaning = f"{field.metadata['help']} (default: {default})"
        choices = field.metadata["choices"] or None
        if isinstance(field.default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=meaning)
        elif choices:
            parser.add_argument(option, choices=choices, help=meaning)
        else:
            parser.add_argument(
                option,
                type=type(field.default),
                metavar="N" if field.default != "" else "TEXT",
                help=meaning,
            )
