"""The folder of one run: its settings, its lock, its test set, its checks.

`config.json` holds exactly a `RunConfig`; `provenance.json` what the run was made from. A finished
run has a `MANIFEST.json`; until then it has `state-*.safetensors` to resume from.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
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
    write_json,
)
from gpt2_from_scratch.storage.settings import check_settings, from_json, setting
from gpt2_from_scratch.storage.states import refuse_changes
from gpt2_from_scratch.storage.tensors import refuse_odd_name

VERSION = 2  # of config.json; version 1 had one flat dictionary of settings
LATER = {"rare_labels", "header", "delimiter"}  # settings that version 2 got later, by default
CONFIG, PROVENANCE = "config.json", "provenance.json"


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides how a run comes out, except the processor it runs on."""

    version: int = setting(VERSION, "of this format", at_least=VERSION, at_most=VERSION)
    recipe: str = setting("default", "how it is trained", choices=("default", "lecture"))
    model: str = setting("mini", "name or folder of the pretrained GPT-2")
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    head: HeadSettings = field(default_factory=HeadSettings)
    dtype: str = setting("float32", "precision of the frozen blocks", choices=tuple(DTYPES))
    cache: bool = setting(True, "keep the frozen blocks' output on disk")
    threads: int = setting(1, "threads; the last bits of a result depend on them", at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)

    def settings(self) -> dict[str, Any]:
        """Every setting by its name, in one flat dictionary, to compare and to show."""
        flat = asdict(self)
        parts = [flat.pop(name) for name in ("data", "training", "head")]
        return flat | {name: value for part in parts for name, value in part.items()}

    def write(self, run: Path) -> None:
        """Write `config.json`."""
        write_json(run / CONFIG, asdict(self))

    @classmethod
    def read(cls, run: Path) -> "RunConfig":
        """Read `config.json`.

        Settings that this format got later may be missing: they had their defaults. Raises
        CheckpointError unless all others are there and valid, UsageError for a run of another
        version of this format.
        """
        path = run / CONFIG
        values = read_json(path)
        if values.get("version") != VERSION:
            raise UsageError(
                f"{path} is of another version of this package. The run can still predict and be "
                "evaluated, but not be resumed or trained again from its folder."
            )
        try:
            for name, kind in (
                ("data", DataConfig),
                ("training", TrainConfig),
                ("head", HeadSettings),
            ):
                _refuse_missing(kind, values[name])
                values[name] = from_json(kind, values[name])
            _refuse_missing(cls, values)
            return from_json(cls, values)
        except (UsageError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None


def _refuse_missing(kind: type, values: dict[str, Any]) -> None:
    missing = {known.name for known in fields(kind)} - values.keys() - LATER
    if missing:
        raise UsageError(f"{kind.__name__} lacks {sorted(missing)}")


# --- a new folder, and one process in it ---


def new_run_folder(run: str | Path | None, config: RunConfig) -> Path:
    """Make `run`, or `runs/MODEL-DATA-SEED` with a number appended if that exists.

    Raises UsageError if the named folder holds something: no run is ever overwritten.
    """
    try:
        if run is not None:
            run = Path(run)
            refuse_odd_name(run)
            if run.exists() and (not run.is_dir() or any(run.iterdir())):
                raise UsageError(f"{run} exists already. Choose another --out.")
            run.mkdir(parents=True, exist_ok=True)
            return run
        stem = f"{Path(config.model).name}-{Path(config.data.source).stem}-{config.training.seed}"
        number = 1
        while True:
            run = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
            with suppress(FileExistsError):
                run.mkdir(parents=True)
                return run
            number += 1
    except OSError as error:
        raise ResourceError(
            f"{run} cannot be made: {error.strerror}. Choose another --out."
        ) from error


@contextmanager
def working_in(run: Path, *, resumable: bool) -> Iterator[None]:
    """Keep other processes out of a run's folder; say how to resume after an interruption."""
    with locked(run / ".lock", wait=False):
        sweep(run)
        try:
            yield
        except KeyboardInterrupt as error:
            how = "the same command again: the frozen blocks' output is kept"
            if resumable:
                how = f"gpt2-classifier train --resume {shlex.quote(str(run))}"
            number = getattr(error, "exit_code", 130) - 128
            raise Interrupted(f"{error or 'interrupted'}; resume with\n  {how}", number) from None


# --- what it was made from ---


def write_provenance(run: Path, split: Split, classifier: Classifier) -> None:
    """Write `provenance.json`: the messages' number and hash, the classifier, the environment."""
    write_json(run / PROVENANCE, _provenance(split, classifier))


def refuse_other_run(run: Path, split: Split, classifier: Classifier) -> None:
    """Raise UsageError unless the run was begun with this base model and these messages."""
    saved = read_json(run / PROVENANCE)
    now = json.loads(json.dumps(_provenance(split, classifier)))  # tuples are lists there
    names = ("messages_sha256", "classifier")
    refuse_changes({n: saved.get(n) for n in names}, {n: now[n] for n in names}, run)


def _provenance(split: Split, classifier: Classifier) -> dict[str, Any]:
    return {
        "messages": {part: len(messages) for part, messages in vars(split).items()},
        "messages_sha256": messages_sha256(split),
        "classifier": asdict(classifier.description),
        "environment": environment(classifier.device)
        | {"gpt2_from_scratch": version("gpt2-from-scratch")},
    }


# --- its test set ---


def write_test_part(run: Path, messages: Sequence[Message], task: str) -> None:
    """Write the test set: `test.csv`, or `test.jsonl` for other tasks than classification."""
    write = write_messages if task == "classification" else write_examples
    write(_test_part(run, task), messages)


def read_test_part(run: Path, task: str) -> list[Message]:
    """Read the test set, checked against the run's manifest; empty texts too."""
    path = _test_part(run, task)
    check_listed(path)
    return load_examples(DataConfig(source=str(path), keep_empty=True), task)


def _test_part(run: Path, task: str) -> Path:
    return run / ("test.csv" if task == "classification" else "test.jsonl")


# --- its checks ---


def verify_run(folder: Path) -> Iterator[Check]:
    """Check each file of a finished run against its manifest, and the classifiers themselves."""
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
