"""Run a function in several processes that work together, as torchrun would start them."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2_from_scratch.storage.processes import joined

# forked, because a new process would first import torch, which takes seconds
FORKED = multiprocessing.get_context("fork")
PATIENCE = 100  # seconds


def in_processes(count: int, work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Call `work(rank)` in each process; return what they return, or their exceptions.

    The processes meet through a file in `folder`.
    """
    meeting, number = folder / "meeting", 1
    while meeting.exists():
        meeting, number = folder / f"meeting-{number}", number + 1
    meeting.touch()
    pipes = [FORKED.Pipe(duplex=False) for _ in range(count)]

    def run(rank: int) -> None:
        try:
            with joined(rank, count, f"file://{meeting}"):
                result = work(rank)
        except BaseException as error:
            result = error
        pipes[rank][1].send(result)

    processes = [FORKED.Process(target=run, args=(rank,), daemon=True) for rank in range(count)]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()  # so that a process that dies ends its pipe
    found: list[Any] = []
    for receiver, _ in pipes:
        try:
            found.append(receiver.recv() if receiver.poll(PATIENCE) else TimeoutError())
        except EOFError:
            found.append(None)  # it was killed
    for process in processes:
        process.join(PATIENCE)
    return found
