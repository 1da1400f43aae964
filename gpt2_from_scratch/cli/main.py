"""The command `gpt2-classifier`: its parser, its exit codes and its error messages."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version

from gpt2_from_scratch.cli import classifying, explaining, inspecting, serving, studies, training
from gpt2_from_scratch.cli.parser import Commands, Parser
from gpt2_from_scratch.errors import (
    DataError,
    GPT2Error,
    ResourceError,
    UsageError,
    is_out_of_resources,
)
from gpt2_from_scratch.progress import PACKAGE_LOG, command, log_to, program, visible_output
from gpt2_from_scratch.storage.interruption import terminable

EXIT_CODES = (
    "exit codes: 0 done, 1 a bug, 2 usage, 3 data, 4 model or weights, 5 network,\n"
    "  6 memory or disk, 130 interrupted, 143 terminated"
)
COMPLETION = 'shell completion: eval "$(register-python-argcomplete gpt2-classifier)"'
LONGEST = 4000  # characters of an error message
STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"  # a variable that it sets
SHARED = ("train", "predict", "features", "pretrain", "experiments")  # commands for torchrun


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line."""
    parser = Parser(
        prog=program(),
        description="GPT-2, written by hand, as a text classifier you can trust.",
        epilog=f"{program()} COMMAND --help shows options and examples.\n{COMPLETION}\n{EXIT_CODES}",
    )
    parser.add_argument(
        "--version", action="version", version=f"gpt2-classifier {version('gpt2-from-scratch')}"
    )
    added = Commands(parser)
    training.add_demo(added)
    training.add_train(added)
    classifying.add_predict(added)
    explaining.add_explain(added)
    classifying.add_evaluate(added)
    serving.add_serve(added)
    classifying.add_export(added)
    studies.add_compare(added)
    studies.add_experiments(added)
    training.add_find_rate(added)
    inspecting.add_check(added)
    inspecting.add_download(added)
    inspecting.add_verify(added)
    inspecting.add_generate(added)
    classifying.add_features(added)
    inspecting.add_probe(added)
    training.add_pretrain(added)
    inspecting.add_cache(added)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    `arguments` are the words after the program's name; None for those of this process. A user's
    mistake gives a message without a traceback.
    """
    if sys.stdin is None:  # the shell closed it; keep its number from other files
        os.open(os.devnull, os.O_RDONLY)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # a terminal may not be able to show every character
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
            with _with_other_processes(args.command):
                args.run(args)
            sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the program that reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        again = getattr(error, "again", None)
        how = "" if again is None else f"; resume with\n  {command(*words, *again)}"
        return _failed(error, getattr(error, "exit_code", 130), verbose, "interrupted", how)
    except GPT2Error as error:
        short = is_out_of_resources(error)  # for example, too many files are open
        return _failed(error, ResourceError.exit_code if short else error.exit_code, verbose)
    except Exception as error:
        if is_out_of_resources(error):
            return _failed(error, ResourceError.exit_code, verbose, "not enough memory")
        if isinstance(error, OSError):  # one of the given files cannot be read
            return _failed(error, DataError.exit_code, verbose)
        return _failed(error, 1, verbose=True)  # a bug


@contextmanager
def _with_other_processes(name: str) -> Iterator[None]:
    """Connect this process with the others that torchrun started, and let only the first log.

    Raises UsageError if the command cannot be shared.
    """
    if STARTED_BY_TORCHRUN not in os.environ:
        yield
        return
    from gpt2_from_scratch.storage.processes import is_first, joined

    if name not in SHARED and int(os.environ["WORLD_SIZE"]) > 1:
        raise UsageError(
            f"{name} runs in one process. Start it without torchrun, which can share the work of "
            f"{', '.join(SHARED)}."
        )
    with joined():
        if not is_first():
            PACKAGE_LOG.setLevel(logging.ERROR)
        yield


def _parse(words: list[str]) -> argparse.Namespace:
    """Parse the command line.

    Texts to classify may be anywhere. After `--` they may begin with `-`.
    """
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks how to complete the line
        import argcomplete

        argcomplete.autocomplete(parser)
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(2)
    end = words.index("--") if "--" in words else len(words)
    args, texts = parser.parse_known_args(words[:end])
    if not hasattr(args, "run"):
        parser.error("a command is missing")
    texts += words[end + 1 :]  # argparse ignores texts after an option, and after `--`
    if texts and not hasattr(args, "texts"):
        parser.error(f"unexpected word {texts[0]!r:.80}")
    if texts:
        args.texts += texts
    return args


def _failed(
    error: BaseException, code: int, verbose: bool, otherwise: str = "", hint: str = ""
) -> int:
    if isinstance(error, KeyboardInterrupt) and _number() > 0:
        return code  # the first process says it
    what = str(error) or otherwise or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        # an error in a file has the file's name; only one in standard output has none
        name = error.filename or "standard output"
        what = f"{os.fsdecode(name)}: {error.strerror}"
    if "Too many open files" in what:
        what = "too many open files. Raise the limit with ulimit -n."
    if len(what) > LONGEST:
        what = f"{what[:LONGEST]} ... and {len(what) - LONGEST:,} more characters"
    with suppress(OSError):  # not by the log, which loads tqdm, and memory may be short
        if verbose:
            traceback.print_exc()
        print(f"{_who()}: {what}{hint}", file=sys.stderr)
    return code


def _number() -> int:
    """The number of this process among those that torchrun started."""
    return int(os.environ["RANK"]) if STARTED_BY_TORCHRUN in os.environ else 0


def _who() -> str:
    """The name of the command; of several processes that torchrun started, also which one."""
    if STARTED_BY_TORCHRUN in os.environ and os.environ["WORLD_SIZE"] != "1":
        return f"gpt2-classifier, process {_number()} of {os.environ['WORLD_SIZE']}"
    return "gpt2-classifier"
