"""The state of a run on disk, from which it goes on as if it had never stopped.

A run's folder holds its two latest states, each one file with everything in it and a checksum over
it. They are written whole or not at all; should one be damaged later all the same, the one before
is taken.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.storage.tensors import read_tensors, write_tensors

log = logging.getLogger(__name__)

FORMAT = "gpt2-training-state 1"
KEPT = 2


def save_state(
    folder: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> Path:
    """Write the state after so many steps; `record` is what JSON can hold. Older ones go.

    Raises CheckpointError for NaN among the numbers: then the state before is the last good one.
    """
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{len(broken)} tensors hold NaN or infinity, the first {broken[0]}")
    path = folder / f"state-{step:08}.safetensors"
    write_tensors(path, tensors, {"format": FORMAT, "record": json.dumps(record)})
    for old in _states(folder)[:-KEPT]:
        old.unlink()
    return path


def newest_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Record and tensors of the newest state that is whole; None where there is none.

    A damaged one is told and put aside as `.bad`.
    """
    for path in reversed(_states(folder)):
        try:
            metadata, tensors = read_tensors(path, FORMAT)
            record = json.loads(metadata["record"])
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):  # it may be whole
                raise
            log.warning(f"{error}; put aside as {path.name}.bad, the state before it is taken")
            os.replace(path, path.with_name(f"{path.name}.bad"))
        else:
            log.info(f"going on from {path}")
            return record, tensors
    return None


def remove_states(folder: Path) -> None:
    """Remove all of them: the run is complete."""
    for path in _states(folder):
        path.unlink()


def refuse_changes(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raise UsageError that lists what differs, if anything does."""
    changed = [
        f"{name}: {saved.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(
            f"{where} was started with other settings:\n  "
            + "\n  ".join(changed)
            + "\nLeave them as they were, or start a new run"
        )


def optimizer_tensors(optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """All that optimizers remember, by names for `restore_optimizers`."""
    return {
        f"optimizer/{n}/{index}/{name}": value
        for n, optimizer in enumerate(optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizers(optimizers: Iterable[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    for n, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, *rest = key.split("/")
            if kind == "optimizer" and rest[0] == str(n):
                state.setdefault(int(rest[1]), {})[rest[2]] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("state-*.safetensors") if path.is_file())
