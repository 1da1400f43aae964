"""The folder of one run: a new one, kept for one process, and what it is a run of."""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.saving import read_classifier
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.data.formats import load_examples, write_examples
from gpt2_from_scratch.data.messages import DataConfig, Message, write_messages
from gpt2_from_scratch.data.split import Split, messages_sha256
from gpt2_from_scratch.errors import CheckpointError, Interrupted, ResourceError, UsageError
from gpt2_from_scratch.gpt2.verify import Check, attempt
from gpt2_from_scratch.speed.devices import DTYPES, environment
from gpt2_from_scratch.storage.files import (
    MANIFEST,
    check_listed,
    locked,
    read_json,
    read_manifest,
    sweep,
)
from gpt2_from_scratch.storage.states import refuse_changes
from gpt2_from_scratch.storage.tensors import refuse_odd_name

SETTINGS = {  # in `config.json`, beside those of TrainConfig and HeadSettings
    "model": str,
    "data": str,
    "val_data": str,
    "test_data": str,
    "balance": bool,
    "together": str,
    "max_tokens": int,
    "text_column": str,
    "label_column": str,
    "encoding": str,
    "on_error": str,
    "keep_empty": bool,
    "dtype": str,
    "cache": bool,
}
KINDS = (TrainConfig, HeadSettings)


def new_run_folder(run: str | Path | None, model: str | Path, data: str | Path, seed: int) -> Path:
    """Make `run`, or `runs/MODEL-DATA-SEED` with a number behind it where that is taken.

    Raises UsageError when the named folder holds something: no run is ever written over.
    """
    try:
        if run is not None:
            return _named_folder(Path(run))
        stem = f"{Path(model).resolve().name}-{Path(data).stem}-{seed}"
        number = 1
        while True:
            run = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
            with suppress(FileExistsError):
                run.mkdir(parents=True)
                return run
            number += 1
    except OSError as error:
        raise ResourceError(
            f"{run} cannot be made: {error.strerror}; choose another --out"
        ) from error


def _named_folder(run: Path) -> Path:
    refuse_odd_name(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UsageError(f"{run} is there already; choose another --out, nothing is overwritten")
    run.mkdir(parents=True, exist_ok=True)
    return run


@contextmanager
def working_in(run: Path, *, resumable: bool) -> Iterator[None]:
    """Keep other processes out of a run's folder; say how to go on when the work is interrupted."""
    with locked(
        run / ".lock",
        wait=False,
    ):
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


def read_settings(run: Path) -> tuple[dict[str, Any], int]:
    """The settings that `config.json` has, and the number of threads.

    Raises CheckpointError unless all are there and of their types, UsageError for a run of the
    lecture's recipe, which keeps no state.
    """
    path = run / "config.json"
    saved = read_json(path)
    if saved.get("recipe") == "lecture":
        raise UsageError(
            f"{run} is a run of the lecture's recipe, which keeps no state; start it anew: what the "
            "frozen blocks gave is kept"
        )
    settings, where = saved.get("settings"), saved.get("environment")
    if isinstance(settings, dict):  # of a run before there was such a setting
        settings = {"together": "copies", "pad_to": 0, "causal_mask": True} | settings
    if not isinstance(settings, dict) or not isinstance(where, dict):
        raise CheckpointError(f"{path} holds no settings of a run")
    types = SETTINGS | {f.name: type(f.default) for kind in KINDS for f in fields(kind)}
    for name in types.keys() | settings.keys():
        value, wanted = settings.get(name), types.get(name)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise CheckpointError(f"{path}: {name} is {value!r:.80}, not as it was written")
    if settings["dtype"] not in DTYPES or type(where.get("threads")) is not int:
        raise CheckpointError(f"{path}: dtype or threads are not as they were written")
    return settings, where["threads"]


def refuse_other_run(run: Path, described: dict[str, Any]) -> None:
    """Raise UsageError unless the run was begun with this base model and these messages."""
    saved = read_json(run / "config.json")
    described = json.loads(json.dumps(described))  # tuples are lists there
    was, now = (
        {name: d.get(name) for name in ("messages_sha256", "classifier")}
        for d in (saved, described)
    )
    refuse_changes(was, now, run)


def write_test_part(run: Path, messages: Sequence[Message], task: str) -> None:
    """Write the messages kept for the test: `test.csv`, or `test.jsonl` of other tasks."""
    if task == "classification":
        write_messages(_test_part(run, task), messages)
    else:
        write_examples(_test_part(run, task), messages)


def read_test_part(run: Path, task: str) -> list[Message]:
    """What `write_test_part` wrote, held against the run's manifest; empty texts too."""
    check_listed(_test_part(run, task))
    return load_examples(DataConfig(source=str(_test_part(run, task)), keep_empty=True), task)


def _test_part(run: Path, task: str) -> Path:
    return run / ("test.csv" if task == "classification" else "test.jsonl")


def verify_run(folder: Path) -> Iterator[Check]:
    """Check a finished run's folder: each file against its manifest, the classifiers by themselves."""
    check, listed = attempt(
        MANIFEST, lambda: read_manifest(folder), lambda files: f"{len(files)} files"
    )
    yield check
    here = {path.name for path in folder.iterdir() if path.name[0] != "."} - {MANIFEST}
    for name in sorted({*(listed or ()), *here}):
        path = folder / name
        yield attempt(name, partial(check_listed, path), lambda _: f"as in {MANIFEST}")[0]
        if path.suffix == ".safetensors" and path.is_file():
            reads = partial(read_classifier, path)
            yield attempt(f"{name}, by itself", reads, lambda found: f"{found[0].labels}")[0]
