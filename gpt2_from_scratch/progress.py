"""Terminal output: results, log lines, error messages, commands and progress bars.

Modules log to `logging.getLogger(__name__)`. Importing the package does not configure logging. The
command and the chapters call `log_to`; other programs configure logging as they like.

Labels, file names and texts come from outside and may contain characters that control a terminal.
The command therefore prints everything through `VisibleStream`: results, log lines, errors, warnings
and tracebacks. Pages and cards pass such strings through `visible`.
"""

import logging
import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

NAME = "gpt2-classifier"  # the name of the command
PACKAGE_LOG = logging.getLogger("gpt2_from_scratch")
_LOCK = threading.Lock()
_LEVELS: list[int] = []  # the log's level before each block of `silenced` that has not ended

# --- characters that control a terminal ---

CONTROLLING = re.compile(
    "["
    "\0-\x08\x0b-\x1f\x7f-\x9f"  # C0 except tab and line feed, DEL, C1
    "\u2028\u2029"  # line and paragraph separators
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # these reorder the text around them
    "\ud800-\udfff"  # lone surrogates, which Python uses for bytes of a file name that are not UTF-8
    "]"
)


def visible(text: str) -> str:
    """Replace characters that control a terminal with escapes such as `\\x1b`."""
    return CONTROLLING.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    # json.dumps does not escape DEL. \u007f keeps the output valid JSON, and \x7f would not.
    code = ord(found[0])
    return f"\\u{code:04x}" if code > 0xFF or code == 0x7F else f"\\x{code:02x}"


class VisibleStream:
    """A text stream that writes characters that control a terminal as escapes."""

    def __init__(self, stream: Any):
        # tqdm reads this attribute to find out whether two streams wrap the same one
        self._wrapped = getattr(stream, "_wrapped", stream)

    def write(self, text: str) -> int:
        """Write the text with escapes. Returns the length of the original text."""
        self._wrapped.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line with escapes."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


@contextmanager
def visible_output() -> Iterator[None]:
    """Replace standard output and standard error with VisibleStreams during the block."""
    with redirect_stdout(VisibleStream(sys.stdout)), redirect_stderr(VisibleStream(sys.stderr)):
        yield


def for_programs(stream: TextIO) -> TextIO:
    """Return the stream for machine-readable output.

    It writes without escapes, unless it is a terminal.
    """
    return stream if stream.isatty() else getattr(stream, "_wrapped", stream)


def shows_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that may get colours.

    It may not if the variable NO_COLOR is set (https://no-color.org).
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_coloured(pieces: Iterable[tuple[str, int | None]], stream: TextIO) -> None:
    """Print one line of pieces of text in black on a background, with characters as escapes.

    `pieces` are texts with their background, one of a terminal's 256 colours, or None.
    """
    line = "".join(
        visible(text) if colour is None else f"\x1b[38;5;16;48;5;{colour}m{visible(text)}\x1b[0m"
        for text, colour in pieces
    )
    getattr(stream, "_wrapped", stream).write(f"{line}\n")


# --- commands that the user can type ---


def program() -> str:
    """Return how the user started the command: its name, its path or `python -m`."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == __package__:
        return f"{shlex.quote(sys.orig_argv[0])} -m {__package__}"
    if started.stem == NAME and started.parent != Path(shutil.which(NAME) or "").parent:
        return shlex.quote(sys.argv[0])
    return NAME


def command(*words: object) -> str:
    """Return a command of this package in the form in which the user can type it."""
    return f"{program()} {shlex.join(map(str, words))}"


# --- the log and the bars ---


class _AboveTheBar(logging.StreamHandler):
    """A log handler that writes each line above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with suppress(OSError):  # a log file on a full disk must not stop the run
            tqdm.write(self.format(record), file=self.stream)


def log_to(stream: TextIO) -> None:
    """Write the package's log lines to a stream.

    The stream of an earlier call is no longer used.
    """
    for handler in [*PACKAGE_LOG.handlers]:
        if isinstance(handler, _AboveTheBar):
            PACKAGE_LOG.removeHandler(handler)
    PACKAGE_LOG.addHandler(_AboveTheBar(VisibleStream(stream)))
    PACKAGE_LOG.setLevel(logging.INFO)


@contextmanager
def shown(stream: TextIO) -> Iterator[None]:
    """Write the package's log lines to a stream during the block only."""
    handlers, level = [*PACKAGE_LOG.handlers], PACKAGE_LOG.level
    log_to(stream)
    try:
        yield
    finally:
        PACKAGE_LOG.handlers[:] = handlers
        PACKAGE_LOG.setLevel(level)


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress log lines and progress bars during the block.

    Use it for a step of a larger task that logs its own summary. If several threads do this at
    once, the last one to finish restores the log.
    """
    with _LOCK:
        _LEVELS.append(PACKAGE_LOG.level)
        PACKAGE_LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        with _LOCK:
            before = _LEVELS.pop()
            PACKAGE_LOG.setLevel(logging.ERROR if _LEVELS else before)


def progress_bar(*args: Any, desc: str = "", **options: Any) -> "tqdm":
    """Return a tqdm bar on standard error.

    It is hidden inside `silenced`, and if standard error is not a terminal. The bar needs control
    characters to move the cursor, so it bypasses VisibleStream. Only `desc`, which may contain a
    file name, is escaped.
    """
    from tqdm import tqdm

    hidden = not PACKAGE_LOG.isEnabledFor(logging.WARNING) or options.pop("hidden", False)
    stream = getattr(sys.stderr, "_wrapped", sys.stderr)
    return tqdm(
        *args, desc=visible(desc) or None, disable=True if hidden else None, file=stream, **options
    )
