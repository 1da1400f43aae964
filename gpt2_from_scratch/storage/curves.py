"""Curves of a training for TensorBoard, written with torch's own writer."""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpt2_from_scratch.errors import UsageError

TENSORBOARD = "tensorboard"  # the folder of the event files, in a run's folder


def refuse_missing_tensorboard() -> None:
    """Raise UsageError if the package tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        raise UsageError(
            "curves for TensorBoard need tensorboard. Install with: "
            "pip install 'gpt2-from-scratch[tensorboard]'"
        )


class Curves:
    """The points of a training's curves, in an event file; without a folder nothing is written.

    A resumed training adds another file to the folder. TensorBoard then hides the earlier points
    from step `first` on, because these steps are done again.
    """

    def __init__(self, folder: Path | None = None, first: int = 1):
        self._writer: Any = None
        if folder is not None:
            refuse_missing_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            _wait_for_a_new_second(folder)
            self._writer = SummaryWriter(str(folder), purge_step=first)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point at `step` to each of these curves."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write all points to the file."""
        if self._writer:
            self._writer.flush()

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer:
            self._writer.close()


def _wait_for_a_new_second(folder: Path) -> None:
    """Wait until no event file has the current second in its name.

    TensorBoard reads the files in the order of their names, and of the time they contain only
    seconds.
    """
    while [*folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")]:
        time.sleep(0.05)
