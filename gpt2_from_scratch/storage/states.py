"""Save and load the state of a training run.

A run that resumes from its state gives the same result as if it had never stopped. A run folder
holds the two newest states. Each state is a single file with a checksum, written atomically. If
the newest state is damaged, the previous one is used.
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
    """Save a state, and keep only the two newest states.

    Args:
        folder: the run folder.
        step: number of training steps done; it is part of the file name.
        tensors: the tensors of the model and the optimizers, by name.
        record: everything else that is needed to resume. It is stored as JSON.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: a tensor contains NaN or infinity. Nothing is written.
        ResourceError: there is no space or no permission.
    """
    folder = expanded(folder)
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors contain NaN or infinity: {broken[0]} is first"
        )
    path = folder / f"state-{step:08}.safetensors"
    write_tensors(path, tensors, {"format": FORMAT, "record": json.dumps(record)})
    for old in _states(folder)[:-KEPT]:
        old.unlink()
    return path


def newest_state(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Read the newest intact state: its record and its tensors.

    Returns None if there is none. A damaged state is logged and renamed to `.bad`.
    """
    folder = expanded(folder)
    for path in reversed(_states(folder)):
        try:
            metadata, tensors = read_tensors(path, FORMAT)
            record = _record_of(metadata, path)
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):  # unreadable now, but perhaps not damaged
                raise
            log.warning(f"{error}; renamed to {path.name}.bad, using the previous state")
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
        raise CheckpointError(f"{path} has no record of the run; found {record!r:.80}")
    return record


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Turn errors inside the block into CheckpointError.

    The message says that the newest state does not fit this run.
    """
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
            f"the newest state in {folder} does not belong to this run: {error!r:.200}. "
            "Remove it to resume from the previous one."
        ) from error


def remove_states(folder: Path) -> None:
    """Remove all states of a run. They are not needed after it has finished."""
    for path in _states(folder):
        path.unlink(missing_ok=True)


def refuse_changes(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raise UsageError if settings differ from the saved ones. The message lists them."""
    changed = [
        f"{name}: {saved.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(
            f"{where} was started with other settings:\n  "
            + "\n  ".join(changed)
            + "\nKeep the old settings, or start a new run."
        )


def optimizer_tensors(optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """Return the state of optimizers as named tensors, for `restore_optimizers`."""
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
    """Return the states of a run, oldest first. Files with other names belong to the user."""
    name = re.compile(r"state-\d{8,}\.safetensors")
    found = [path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_file()]
    return sorted(found, key=lambda path: (len(path.name), path.name))
