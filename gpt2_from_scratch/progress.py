"""What a person sees: printed results, log lines, error messages, commands and progress bars.

Modules log to `logging.getLogger(__name__)`. Importing the package configures nothing; the command
and the chapters call `log_to`, other programs configure logging as they like.

Labels, names of files and texts come from others and may hold characters that a terminal obeys.
The command prints through `VisibleStream`: results, log lines, errors, warnings and tracebacks.
Pages and cards write their texts with `visible`.
"""

import logging
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

NAME = "gpt2-classifier"  # of the command
PACKAGE_LOG = logging.getLogger("gpt2_from_scratch")

# --- characters that control a terminal ---

CONTROLLING = re.compile(
    "["
    "\0-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, DEL, C1
    "\u2028\u2029"  # separators of lines and paragraphs
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # they reorder the text around them
    "\ud800-\udfff"  # lone surrogates: bytes of a name that are not UTF-8
    "]"
)


def visible(text: str) -> str:
    """Show characters that control a terminal as escapes, such as `\\x1b`; the others stay."""
    return CONTROLLING.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    # json.dumps leaves DEL as it is; written as \u007f, printed JSON is still JSON
    code = ord(found[0])
    return f"\\u{code:04x}" if code > 0xFF or code == 0x7F else f"\\x{code:02x}"


class VisibleStream:
    """A text stream on which characters that control a terminal are written as escapes."""

    def __init__(self, stream: Any):
        # tqdm, which writes log lines above a bar, compares what streams wrap by this name
        self._wrapped = getattr(stream, "_wrapped", stream)

    def write(self, text: str) -> int:
        """Write the text in its visible form; returns the number of characters that were meant."""
        self._wrapped.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write every line as `write` does."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


@contextmanager
def visible_output() -> Iterator[None]:
    """During the block, standard output and standard error are VisibleStreams."""
    with redirect_stdout(VisibleStream(sys.stdout)), redirect_stderr(VisibleStream(sys.stderr)):
        yield


def for_programs(stream: TextIO) -> TextIO:
    """The stream for data that a program reads: as they are, unless a person sees them."""
    return stream if stream.isatty() else getattr(stream, "_wrapped", stream)


# --- commands that a person can type ---


def program() -> str:
    """How a person calls the command here: its name, its path if needed, or `python -m`."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == __package__:
        return f"{shlex.quote(sys.orig_argv[0])} -m {__package__}"
    if started.stem == NAME and started.parent != Path(shutil.which(NAME) or "").parent:
        return shlex.quote(sys.argv[0])
    return NAME


def command(*words: object) -> str:
    """A command of the package as a person can type it here."""
    return f"{program()} {shlex.join(map(str, words))}"


# --- the log and the bars ---


class _AboveTheBar(logging.StreamHandler):
    """Writes each line above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with suppress(OSError):  # a log on a full disk is no reason to stop
            tqdm.write(self.format(record), file=self.stream)


def log_to(stream: TextIO) -> None:
    """Write the package's log lines to a stream, and to no other that was chosen here before."""
    for handler in [*PACKAGE_LOG.handlers]:
        if isinstance(handler, _AboveTheBar):
            PACKAGE_LOG.removeHandler(handler)
    PACKAGE_LOG.addHandler(_AboveTheBar(VisibleStream(stream)))
    PACKAGE_LOG.setLevel(logging.INFO)


@contextmanager
def silenced() -> Iterator[None]:
    """No log lines and no progress bars, for a step of a larger task that reports it as a whole."""
    level = PACKAGE_LOG.level
    PACKAGE_LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        PACKAGE_LOG.setLevel(level)


def progress_bar(*args: Any, desc: str = "", **options: Any) -> "tqdm":
    """A tqdm bar on standard error; none if that is not a terminal, or inside `silenced`.

    It moves the cursor, so it writes to the stream itself; `desc` may hold the name of a file.
    """
    from tqdm import tqdm

    hidden = not PACKAGE_LOG.isEnabledFor(logging.WARNING) or options.pop("hidden", False)
    stream = getattr(sys.stderr, "_wrapped", sys.stderr)
    return tqdm(
        *args, desc=visible(desc) or None, disable=True if hidden else None, file=stream, **options
    )
