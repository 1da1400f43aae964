"""Stop loops cleanly after a signal, and end worker processes when their parent ends."""

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
WATCH = 0.5  # seconds between two checks that the parent process is still running


class Stop:
    """A flag that becomes true after Ctrl-C or SIGTERM."""

    def __init__(self) -> None:
        self.signal = 0  # number of the signal received; 0 before that

    def __bool__(self) -> bool:
        return self.signal != 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise Interrupted("stopped immediately", number)
        self.signal = number
        log.info("finishing this step, then saving; press Ctrl-C again to stop immediately")


@contextmanager
def stop_after_step() -> Iterator[Stop]:
    """Yield a Stop that becomes true on the first Ctrl-C or SIGTERM.

    The second signal raises Interrupted. Python delivers signals to the main thread only, so the
    flag stays false in other threads.
    """
    stop = Stop()
    with _handled_by(stop, SIGNALS):
        yield stop


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Interrupted on SIGTERM during the block, just as Ctrl-C raises KeyboardInterrupt."""

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
    """End this process as soon as its parent process has ended.

    `parent` is the id of the parent process. This does not work on Windows, where the parent's id
    does not change after the parent has ended.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)  # nobody needs the result any longer

    threading.Thread(target=watch, daemon=True).start()
