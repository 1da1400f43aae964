"""What the package logs, as a list of lines that a test can look at."""

import logging

LOG = logging.getLogger("gpt2_from_scratch")


class _Listener(logging.Handler):
    def __init__(self, lines: list[str]):
        super().__init__(logging.INFO)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def listen() -> list[str]:
    """A list to which every line that is logged from now on is added, until the test is over."""
    lines: list[str] = []
    LOG.addHandler(_Listener(lines))
    LOG.setLevel(logging.INFO)
    return lines


def stop_listening() -> None:
    """Undo `listen`; a fixture calls it after each test."""
    for handler in [*LOG.handlers]:
        LOG.removeHandler(handler)
    LOG.setLevel(logging.NOTSET)
