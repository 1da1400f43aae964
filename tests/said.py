"""The package's log lines, as a list for tests."""

import logging

LOG = logging.getLogger("gpt2_from_scratch")


class _Listener(logging.Handler):
    def __init__(self, lines: list[str]):
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def listen(level: int = logging.INFO) -> list[str]:
    """A list that collects all later log lines of `level` and above, until the end of the test."""
    lines: list[str] = []
    LOG.addHandler(_Listener(lines))
    LOG.setLevel(level)
    return lines


def stop_listening() -> None:
    """Undo `listen`; a fixture calls this after each test."""
    for handler in [*LOG.handlers]:
        LOG.removeHandler(handler)
    LOG.setLevel(logging.NOTSET)
