"""What is shown while something runs: log lines and progress bars.

Modules log to `logging.getLogger(__name__)`. Importing the package configures nothing; the command
and the chapters call `log_to`, other programs configure logging as they like.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

PACKAGE_LOG = logging.getLogger("gpt2_from_scratch")


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
    PACKAGE_LOG.addHandler(_AboveTheBar(stream))
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


def progress_bar(*args: Any, **options: Any) -> "tqdm":
    """A tqdm bar on standard error; none if that is not a terminal, or inside `silenced`."""
    from tqdm import tqdm

    hidden = not PACKAGE_LOG.isEnabledFor(logging.WARNING) or options.pop("hidden", False)
    return tqdm(*args, disable=True if hidden else None, **options)
