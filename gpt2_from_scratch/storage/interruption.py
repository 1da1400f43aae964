"""How a loop ends after Ctrl-C or SIGTERM, and a process after its parent."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gpt2_from_scratch.errors import Interrupted

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WATCH = 0.5  # seconds after which a process looks for its parent again


class Stop:
    """True after Ctrl-C or SIGTERM."""

    def __init__(self) -> None:
        self.signal = 0  # the number of the signal that came

    def __bool__(self) -> bool:
        return self.signal != 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise Interrupted("stopped at once", number)
        self.signal = number
        log.info("finishing this step, then saving; press Ctrl-C again to stop at once")


@contextmanager
def stop_after_step() -> Iterator[Stop]:
    """During the block, a first Ctrl-C or SIGTERM only makes the yielded Stop true.

    Outside the main thread, where Python delivers no signals, it never becomes true.
    """
    stop = Stop()
    with _handled_by(stop, SIGNALS):
        yield stop


@contextmanager
def terminable() -> Iterator[None]:
    """During the block, SIGTERM raises Interrupted, as Ctrl-C raises KeyboardInterrupt."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted("terminated", number)

    with _handled_by(end, (signal.SIGTERM,)):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], Any], numbers: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def end_with_parent(parent: int) -> None:
    """End this process at once when `parent`, the one that started it, has ended in whatever way.

    On Windows, where the number of a parent that has ended stays, the process goes on.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)  # nothing waits for what it computes

    threading.Thread(target=watch, daemon=True).start()
