"""The state of a run on disk, from which it resumes as if it had never stopped.

A run's folder holds its two newest states. Each is one file with everything in it and a checksum
over it, written completely or not at all. If one is damaged later, the state before is used.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.storage.files import parse_json
from gpt2_from_scratch.storage.paths import expanded
from gpt2_from_scratch.storage.tensors import read_tensors, write_tensors

log = logging.getLogger(__name__)

FORMAT = "gpt2-training-state 1"
KEPT = 2


def save_state(
    folder: str | Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> Path:
    """Write the state after `step` steps, and remove all older ones but one.

    `record` is stored as JSON. Raises CheckpointError if a tensor holds NaN or infinity; the state
    before is then the last good one.
    """
    folder = expanded(folder)
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{len(broken)} tensors hold NaN or infinity, the first {broken[0]}")
    path = folder / f"state-{step:08}.safetensors"
    write_tensors(path, tensors, {"format": FORMAT, "record": json.dumps(record)})
    for old in _states(folder)[:-KEPT]:
        old.unlink()
    return path


def newest_state(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Read the newest state that is whole: its record and tensors; None if there is none.

    A damaged state is reported and renamed to `.bad`.
    """
    folder = expanded(folder)
    for path in reversed(_states(folder)):
        try:
            metadata, tensors = read_tensors(path, FORMAT)
            record = _record_of(metadata, path)
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):  # it may be whole, but cannot be read now
                raise
            log.warning(f"{error}; renamed to {path.name}.bad, the state before it is used")
            os.replace(path, path.with_name(f"{path.name}.bad"))
        else:
            log.info(f"resuming from {path}")
            return record, tensors
    return None


def _record_of(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        record = parse_json(metadata.get("record", ""))
    except ValueError as error:
        raise CheckpointError(f"{path} has no record of the run: {error}") from None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} has no record of the run, but {record!r:.80}")
    return record


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Raise CheckpointError for whatever goes wrong because a state is not what this run saved."""
    try:
        yield
    except (
        LookupError,
        ArithmeticError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise CheckpointError(
            f"the newest state in {folder} is not one of this run: {error!r:.200}. "
            "Remove it to resume from the one before."
        ) from error


def remove_states(folder: Path) -> None:
    """Remove all states of a run, because it is complete."""
    for path in _states(folder):
        path.unlink(missing_ok=True)


def refuse_changes(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raise UsageError with the settings that differ from the saved ones, if any do."""
    changed = [
        f"{name}: {saved.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(
            f"{where} was started with other settings:\n  "
            + "\n  ".join(changed)
            + "\nKeep the old settings, or start a new run"
        )


def optimizer_tensors(optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The state of optimizers as named tensors, for `restore_optimizers`."""
    return {
        f"optimizer/{n}/{index}/{name}": value
        for n, optimizer in enumerate(optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizers(optimizers: Iterable[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Load the state that `optimizer_tensors` returned."""
    for n, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, *rest = key.split("/")
            if kind == "optimizer" and rest[0] == str(n):
                state.setdefault(int(rest[1]), {})[rest[2]] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _states(folder: Path) -> list[Path]:
    """The states of a run, the oldest first; a copy with another name is the user's."""
    name = re.compile(r"state-\d{8,}\.safetensors")
    found = [path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_file()]
    return sorted(found, key=lambda path: (len(path.name), path.name))
