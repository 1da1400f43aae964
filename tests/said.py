"""What the package logs, as a list of lines that a test can look at."""

import logging

LOG = logging.getLogger("gpt2_from_scratch")


class _Listener(logging.Handler):
    def __init__(self, lines: list[str]):
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def listen(level: int = logging.INFO) -> list[str]:
    """A list to which every line logged from now on is added, from `level` on, until the test ends."""
    lines: list[str] = []
    LOG.addHandler(_Listener(lines))
    LOG.setLevel(level)
    return lines


def stop_listening() -> None:
    """Undo `listen`; a fixture calls it after each test."""
    for handler in [*LOG.handlers]:
        LOG.removeHandler(handler)
    LOG.setLevel(logging.NOTSET)
