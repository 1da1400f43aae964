"""The command `gpt2-classifier`: its parser, and what surrounds each command.

Results go to standard output, everything else to standard error. Nothing heavy is imported before
a command is chosen, so that --help answers at once.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version

from gpt2_from_scratch.cli import classifying, inspecting, studies, training
from gpt2_from_scratch.errors import DataError, GPT2Error, ResourceError, is_out_of_resources
from gpt2_from_scratch.progress import PACKAGE_LOG, log_to, visible_output
from gpt2_from_scratch.storage.interruption import terminable

EXIT_CODES = (
    "exit codes: 0 done, 1 a bug, 2 usage, 3 data, 4 model or weights, 5 network, 6 memory or disk, "
    "130 interrupted, 143 terminated"
)
LONGEST = 4000  # characters of an error message


class Commands:
    """The commands of a parser; each is added with its function, its help and its examples."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        self, name: str, run: Callable[[argparse.Namespace], None], what: str, *examples: str
    ) -> argparse.ArgumentParser:
        """Add a command; returns its parser, for its options."""
        parser = self.parsers.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            epilog="examples:\n  " + "\n  ".join(examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "-v", "--verbose", action="store_true", help="show details, and tracebacks of errors"
        )
        parser.set_defaults(command=name, run=run)
        return parser


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="gpt2-classifier",
        description="GPT-2, written by hand, as a text classifier you can trust.",
        epilog="gpt2-classifier COMMAND --help shows examples.  " + EXIT_CODES,
    )
    parser.add_argument(
        "--version", action="version", version=f"gpt2-classifier {version('gpt2-from-scratch')}"
    )
    added = Commands(parser)
    training.add_demo(added)
    training.add_train(added)
    training.add_find_rate(added)
    studies.add_compare(added)
    studies.add_experiments(added)
    classifying.add_evaluate(added)
    classifying.add_predict(added)
    classifying.add_features(added)
    inspecting.add_check(added)
    inspecting.add_verify(added)
    inspecting.add_generate(added)
    training.add_pretrain(added)
    inspecting.add_download(added)
    inspecting.add_cache(added)
    inspecting.add_probe(added)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's mistake gives a message, not a traceback."""
    if sys.stdin is None:  # the shell closed it: no file may get its number
        os.open(os.devnull, os.O_RDONLY)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # texts may hold what a terminal's encoding does not
        sys.stdout.reconfigure(errors="replace")
    with visible_output():
        return _run(sys.argv[1:] if arguments is None else list(arguments))


def _run(words: list[str]) -> int:
    log_to(sys.stderr)
    verbose = False
    try:
        with terminable():
            args = _parse(words)
            verbose = args.verbose
            if verbose:
                PACKAGE_LOG.setLevel(logging.DEBUG)
            args.run(args)
            sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader of the output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        return _failed(error, getattr(error, "exit_code", 130), verbose, "interrupted")
    except GPT2Error as error:
        short = is_out_of_resources(error)  # files that could not be opened for that reason
        return _failed(error, ResourceError.exit_code if short else error.exit_code, verbose)
    except Exception as error:
        if is_out_of_resources(error):
            return _failed(error, ResourceError.exit_code, verbose, "not enough memory")
        if isinstance(error, OSError):  # a file that was given cannot be read
            return _failed(error, DataError.exit_code, verbose)
        return _failed(error, 1, verbose=True)  # a bug


def _parse(words: list[str]) -> argparse.Namespace:
    """Parse the command line; texts may be anywhere, and after `--` begin with anything."""
    parser = build_parser()
    end = words.index("--") if "--" in words else len(words)
    args, rest = parser.parse_known_args(words[:end])
    texts = rest + words[end + 1 :]  # argparse ignores texts after an option, and after `--`
    if any(text.startswith("-") for text in rest) or (texts and not hasattr(args, "texts")):
        hint = "; put -- before texts that begin with -" if hasattr(args, "texts") else ""
        parser.error(f"unrecognized arguments: {' '.join(texts)}{hint}")
    if texts:
        args.texts += texts
    return args


def _failed(error: BaseException, code: int, verbose: bool, otherwise: str = "") -> int:
    what = str(error) or otherwise or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        # writing files raises ResourceError with their names, but not writing standard output
        name = error.filename or "standard output"
        what = f"{os.fsdecode(name)}: {error.strerror}"
    if "Too many open files" in what:
        what = "too many open files. Raise the limit with ulimit -n."
    if len(what) > LONGEST:
        what = f"{what[:LONGEST]} ... and {len(what) - LONGEST:,} more characters"
    with suppress(OSError):  # not through the log: if memory is short it may not load tqdm
        if verbose:
            traceback.print_exc()
        print(f"gpt2-classifier: {what}", file=sys.stderr)
    return code
