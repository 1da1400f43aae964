"""The command `gpt2-classifier`: what it does around a command.

Results go to standard output, everything else to standard error. Nothing heavy is imported before
a command is chosen, so that --help answers at once.
"""

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from gpt2_from_scratch.cli.commands import COMMANDS
from gpt2_from_scratch.cli.parser import build_parser
from gpt2_from_scratch.errors import DataError, GPT2Error, ResourceError, is_out_of_memory
from gpt2_from_scratch.progress import log_to
from gpt2_from_scratch.storage.interruption import terminable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's mistake gives a message, not a traceback."""
    _open_streams()
    log_to(sys.stderr)
    verbose = False
    try:
        with terminable():
            args = _parse(sys.argv[1:] if arguments is None else list(arguments))
            verbose = args.verbose
            COMMANDS[args.command](args)
            sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        return _failed(error, getattr(error, "exit_code", 130), verbose, "interrupted")
    except GPT2Error as error:
        return _failed(error, error.exit_code, verbose)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        return _failed(error, ResourceError.exit_code, verbose, "not enough memory")
    except OSError as error:  # files that are written raise ResourceError, but not standard output
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        return _failed(error, (ResourceError if full else DataError).exit_code, verbose)


def _open_streams() -> None:
    """Where the shell closed a stream there is none; and an argument may hold what is no UTF-8."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def _parse(words: list[str]) -> argparse.Namespace:
    """Parse the command line; texts may stand anywhere, and behind `--` begin with anything."""
    parser = build_parser()
    end = words.index("--") if "--" in words else len(words)
    args, rest = parser.parse_known_args(words[:end])
    texts = rest + words[end + 1 :]  # argparse passes over texts behind an option, and over `--`
    if any(text.startswith("-") for text in rest) or (texts and not hasattr(args, "texts")):
        hint = "; put -- before texts that begin with -" if hasattr(args, "texts") else ""
        parser.error(f"unrecognized arguments: {' '.join(texts)}{hint}")
    if texts:
        args.texts += texts
    return args


def _failed(error: BaseException, code: int, verbose: bool, otherwise: str = "") -> int:
    if verbose:
        traceback.print_exc()
    with suppress(OSError):  # not through the log: where memory is short it may not load tqdm
        print(
            f"gpt2-classifier: {str(error) or otherwise or type(error).__name__}", file=sys.stderr
        )
    return code
