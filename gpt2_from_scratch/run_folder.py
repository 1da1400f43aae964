"""The folder of one run: a new one, kept for one process, and what it is a run of."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt2_from_scratch.checkpoints import refuse_changes
from gpt2_from_scratch.classifier import Classifier
from gpt2_from_scratch.devices import environment
from gpt2_from_scratch.errors import Interrupted, UsageError
from gpt2_from_scratch.files import read_json, sweep
from gpt2_from_scratch.locks import locked
from gpt2_from_scratch.split import Split
from gpt2_from_scratch.training_run import messages_sha256


def new_run_folder(run: Path | None, model: str | Path, data: str | Path, seed: int) -> Path:
    """Make `run`, or `runs/MODEL-DATA-SEED` with a number behind it where that is taken.

    Raises UsageError when the named folder holds something: no run is ever written over.
    """
    if run is not None:
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise UsageError(
                f"{run} is there already; choose another --out, nothing is overwritten"
            )
        run.mkdir(parents=True, exist_ok=True)
        return run
    stem = f"{Path(model).resolve().name}-{Path(data).stem}-{seed}"
    number = 1
    while True:
        run = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            number += 1


@contextmanager
def working_in(run: Path, *, resumable: bool) -> Iterator[None]:
    """Keep other processes out of a run's folder; say how to go on when the work is interrupted."""
    with locked(run / ".lock", wait=False, say=print):
        sweep(run)
        try:
            yield
        except KeyboardInterrupt as error:
            how = f"gpt2-classifier train --resume {shlex.quote(str(run))}" if resumable else ""
            how = how or "the same command again: what the frozen blocks gave is kept"
            number = getattr(error, "exit_code", 130) - 128
            raise Interrupted(f"{error or 'interrupted'}; go on with\n  {how}", number) from None


def describe(
    settings: dict[str, Any], split: Split, classifier: Classifier, recipe: str = "default"
) -> dict[str, Any]:
    """What `config.json` holds: all that decides how a run comes out."""
    where = environment(classifier.model.wte.weight.device)
    return {
        "recipe": recipe,
        "settings": settings,
        "classifier": asdict(classifier.description),
        "messages": {part: len(messages) for part, messages in vars(split).items()},
        "messages_sha256": messages_sha256(split),
        "environment": where | {"gpt2_from_scratch": version("gpt2-from-scratch")},
    }


def refuse_other_run(run: Path, described: dict[str, Any]) -> None:
    """Raise UsageError unless the run was begun with this base model and these messages."""
    saved = read_json(run / "config.json")
    was, now = (
        {name: d.get(name) for name in ("messages_sha256", "classifier")}
        for d in (saved, described)
    )
    refuse_changes(was, now, run)
