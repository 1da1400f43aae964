"""The folder of one run: settings, lock, test set, hashes of its training texts, and checks.

`config.json` contains a `RunConfig`, and `provenance.json` describes what the run was made from. A
finished run has a `MANIFEST.json`. An unfinished run has `state-*.safetensors`, from which it is
resumed.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.saving import read_classifier, saved_file
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.data.formats import load_examples, write_examples
from gpt2_from_scratch.data.messages import DataConfig, Message, write_messages
from gpt2_from_scratch.data.split import (
    Split,
    comparable,
    load_split,
    load_unlabelled,
    messages_sha256,
)
from gpt2_from_scratch.data.tables import LABEL, TEXT
from gpt2_from_scratch.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    ResourceError,
    UsageError,
)
from gpt2_from_scratch.evaluation.metrics import several
from gpt2_from_scratch.gpt2.verify import Check, attempt
from gpt2_from_scratch.progress import command
from gpt2_from_scratch.reports.findings import FEW_KNOWN
from gpt2_from_scratch.speed.devices import DTYPES, environment
from gpt2_from_scratch.storage.files import (
    MANIFEST,
    check_listed,
    locked,
    read_json,
    read_manifest,
    sha256_of,
    sweep,
    write_json,
    write_text,
)
from gpt2_from_scratch.storage.paths import (
    DATA_SETS,
    expanded,
    is_model,
    known_name,
    refuse_taken,
    tidy,
)
from gpt2_from_scratch.storage.processes import is_first
from gpt2_from_scratch.storage.settings import check_settings, from_json, setting
from gpt2_from_scratch.storage.states import refuse_changes
from gpt2_from_scratch.storage.tensors import refuse_odd_name

if TYPE_CHECKING:
    import pandas

VERSION = 2  # of config.json; version 1 had one flat dictionary of settings
LATER = {
    "rare_labels",
    "header",
    "delimiter",
    "start",
    "autotune",
    "with_ngrams",
    "unlabelled",
    "adapt",
    "adapt_lr",
    "tensorboard",
    "quantize",
    "stream_blocks",
}  # settings that were added to version 2 later; a file without them means their defaults
CONFIG, PROVENANCE = "config.json", "provenance.json"
TRAINING_TEXTS = "training-texts.txt"
TABLE = "data.csv"  # the texts and labels, if they were given as a DataFrame
START = "start.safetensors"  # the classifier with which the training of an unfinished run starts
ADAPTED = "adaptation.json"  # how GPT-2 was adapted to the texts
ADAPTATION = "adaptation"  # folder with the state of an adaptation that has not finished
FILES = (  # files that a run writes; any other file in its folder is the user's
    CONFIG,
    PROVENANCE,
    TRAINING_TEXTS,
    TABLE,
    "test.csv",
    "test.jsonl",
    ADAPTED,
    "metrics.jsonl",
    "autotune.jsonl",
    "trace.json",
    "nan_report.json",
    "best.safetensors",
    "last.safetensors",
    "evaluation.json",
    "test-answers.jsonl",
    "val-answers.jsonl",
)
# settings that name a file of data, and the options for them
SOURCES = {
    "source": "data",
    "val_source": "val-data",
    "test_source": "test-data",
    "unlabelled": "unlabelled",
}
# these settings may change when a run is resumed, but the messages may not
READING = (*SOURCES, "text_column", "label_column", "header", "delimiter", "encoding")
AND_OTHERS = "and others"  # last line of the file if not all texts are known


@dataclass(frozen=True)
class RunConfig:
    """All settings that decide the result of a run, except the processor it runs on."""

    version: int = setting(VERSION, "version of this format", at_least=VERSION, at_most=VERSION)
    recipe: str = setting("default", "recipe of the training", choices=("default", "lecture"))
    model: str = setting("mini", "name or folder of the pretrained GPT-2")
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    head: HeadSettings = field(default_factory=HeadSettings)
    dtype: str = setting("float32", "precision of the frozen blocks", choices=tuple(DTYPES))
    cache: bool = setting(True, "keep the frozen blocks' output on disk")
    start: str = setting("", "trained classifier that training continues from")
    autotune: float = setting(0.0, "seconds of the search for settings that follows", at_least=0)
    tensorboard: bool = setting(False, "write the curves of training for TensorBoard")
    stream_blocks: bool = setting(
        False, "read one frozen block at a time from the model's file, which needs less memory"
    )
    threads: int = setting(1, "threads; the last bits of a result depend on them", at_least=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", known_name(self.model))
        check_settings(self)
        if self.data.unlabelled and not self.training.adapt:
            raise UsageError(
                f"only --adapt uses the texts in {self.data.unlabelled} (unlabelled). Add --adapt 3, "
                "or leave out --unlabelled."
            )
        if self.tensorboard and self.autotune:
            raise UsageError(
                "--tensorboard shows the curves of one training, but --autotune tries many. Leave out "
                "one of them."
            )
        if self.training.adapt and self.head.quantize != "none":
            raise UsageError(
                f"--adapt trains all of GPT-2, and --quantize {self.head.quantize} stores its matrices "
                "in a form that cannot be trained. Leave out one of them."
            )
        if self.training.adapt and self.stream_blocks:
            raise UsageError(
                "--adapt trains all of GPT-2, so no block stays in its file. Leave out --stream-blocks or "
                "--adapt."
            )
        if self.start and self.training.adapt:
            raise UsageError(
                f"--adapt starts from a pretrained GPT-2, but {self.start} was trained to classify and "
                "would forget it. Leave out --from or --adapt."
            )

    def settings(self) -> dict[str, Any]:
        """All settings by name, in one flat dictionary, for comparing and for display."""
        flat = asdict(self)
        parts = [flat.pop(name) for name in ("data", "training", "head")]
        return flat | {name: value for part in parts for name, value in part.items()}

    def write(self, run: str | Path) -> None:
        """Write `config.json`."""
        run = expanded(run)
        write_json(run / CONFIG, asdict(self))

    def load_classifier(self, path: str | Path, **options: Any) -> Classifier:
        """Load a classifier of this run, with its base model, in its precision.

        `options` are other arguments of `Classifier.load`, whose errors this raises.
        """
        path = expanded(path)
        dtype, stream = DTYPES[self.dtype], self.stream_blocks
        return Classifier.load(path, self.model, dtype=dtype, stream=stream, **options)

    def load_split(self) -> Split:
        """Read and split the data.

        The data must have at least two classes. One is enough for a continuing run.
        """
        fewest = 1 if self.start else 2
        return load_split(self.data, self.head.task, self.training.seed, fewest_labels=fewest)

    def load_unlabelled(self, split: Split) -> list[str]:
        """Read the texts without labels, if there are any, without those that `split` scores."""
        return load_unlabelled(self.data, split)

    @classmethod
    def read(cls, run: str | Path) -> "RunConfig":
        """Read a run's settings from its `config.json`.

        Settings that were added to this format later may be missing; they get their defaults.
        Raises CheckpointError unless all other settings are present and valid. Raises UsageError
        for a run in another version of this format, and for the folder of a GPT-2 model.
        """
        run = expanded(run)
        path = run / CONFIG
        if is_model(run):
            raise UsageError(
                f"{run} is a GPT-2 model, not a run. Train a classifier on it with --model."
            )
        values = read_json(path)
        if values.get("version") != VERSION:
            raise UsageError(
                f"{path} is from another version of this package. The run can still predict and be "
                "evaluated, but it cannot be resumed or repeated from its folder."
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


def labelled_frame(data: Any) -> "pandas.DataFrame | None":
    """The columns text and label of a DataFrame or of a Hugging Face Dataset.

    A Dataset's class numbers are replaced by the names of their classes. Returns None for anything
    else, such as the name of a file. Raises DataError unless each column occurs exactly once, for a
    missing label, for a text that is missing, empty or not a string, and for a Dataset of several
    parts.
    """
    is_frame = hasattr(data, "to_csv") and hasattr(data, "columns")
    names = data.columns if is_frame else getattr(data, "column_names", None)
    if names is None:
        return None
    kind = type(data).__name__
    if isinstance(names, Mapping):
        raise DataError(
            f"the {kind} has several parts, {', '.join(map(repr, names))}. Give one of them, such as "
            f"data[{next(iter(names), '')!r}]."
        )
    if sorted(name for name in names if name in (TEXT, LABEL)) != sorted([TEXT, LABEL]):
        how = "rename(columns=...)" if is_frame else "rename_columns(...)"
        raise DataError(
            f"the {kind} has the columns {', '.join(map(repr, names))}; it needs one called "
            f"{TEXT!r} and one called {LABEL!r}. Use data.{how}."
        )
    import pandas

    if is_frame:
        frame = data[[TEXT, LABEL]]
    else:
        known = getattr((getattr(data, "features", None) or {}).get(LABEL), "names", None)
        labels = [*data[LABEL]]
        if known:  # -1 means that the text has no label
            labels = [known[n] if n is not None and n >= 0 else None for n in labels]
        frame = pandas.DataFrame({TEXT: pandas.Series([*data[TEXT]], dtype=object), LABEL: labels})
    _refuse_faulty_cells(frame, kind)
    return frame


def _refuse_faulty_cells(frame: "pandas.DataFrame", kind: str) -> None:
    for column in (TEXT, LABEL):
        is_missing = frame[column].isna()
        for n, (cell, missing) in enumerate(zip(frame[column], is_missing, strict=True)):
            what = ""
            if missing:
                what = f"has no {column}: it is {cell!r}"
            elif column == TEXT and not isinstance(cell, str):
                what = f"has a {type(cell).__name__} as its text"
            elif column == TEXT and not cell.strip():
                what = "has an empty text"
            if what:
                raise DataError(
                    f"row {n} of the {kind}, counted from 0, {what}. Correct it or leave it out."
                )


def write_frame(path: Path, frame: "pandas.DataFrame") -> Path:
    """Write a `labelled_frame` to a csv file, and return its path.

    The file reads back unchanged. Raises DataError for a text that no file can contain, with a lone
    surrogate.
    """
    # quote every cell: otherwise csv would not quote a \r, and readers take it for a line end
    table = frame[[TEXT, LABEL]].to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
    try:
        write_text(path, table)
    except UnicodeEncodeError as error:
        raise DataError(f"a text of the DataFrame cannot be written: {error}") from None
    return path


def new_run_folder(run: str | Path | None, config: RunConfig) -> Path:
    """Make the folder of a new run, and return its path.

    The default is `runs/MODEL-DATA-SEED`, with a number appended if that exists. Raises UsageError
    if `run` exists and is not empty, because nothing is ever overwritten. Raises ResourceError if
    the folder cannot be created.
    """
    try:
        if run is not None:
            run = Path(run)
            refuse_odd_name(run)
            refuse_taken(run)
            run.mkdir(parents=True, exist_ok=True)
            return run
        model, data = tidy(Path(config.model).name), tidy(Path(config.data.source).stem)
        stem = f"{model}-{data}-{config.training.seed}"
        number = 1
        while True:
            run = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
            with suppress(FileExistsError):
                run.mkdir(parents=True)
                return run
            number += 1
    except OSError as error:
        raise ResourceError(
            f"the folder {run} cannot be created: {error.strerror}. Choose another --out."
        ) from error


@contextmanager
def working_in(run: Path, *, resumable: bool = True) -> Iterator[None]:
    """Keep other processes out of a run's folder; say how to resume after an interruption.

    If an interrupted run cannot be resumed, its files are removed. The same command can then start
    it again. Of several processes that work on the run, the first looks after the folder.
    """
    if not is_first():
        yield
        return
    with locked(run / ".lock", wait=False):
        sweep(run)
        try:
            with saying_how_to_resume(run):
                yield
        except Interrupted as error:
            if resumable and (run / CONFIG).exists():
                raise
            for name in FILES:
                (run / name).unlink(missing_ok=True)
            raise Interrupted("interrupted", error.exit_code - 128, again=()) from None


@contextmanager
def saying_how_to_resume(run: Path) -> Iterator[None]:
    """Raise Interrupted with the command that resumes the run, if the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt as error:
        how = f"{str(error) or 'interrupted'}; resume with\n  {command('train', '--resume', run)}"
        raise Interrupted(how, getattr(error, "exit_code", 130) - 128) from None


# --- what a run was made from ---


def write_provenance(
    run: Path,
    split: Split,
    classifier: Classifier,
    start: str = "",
    unlabelled: Sequence[str] = (),
) -> None:
    """Write `provenance.json`: the data, the classifier, the environment, and `start`.

    The data are described by the number of messages and their hash, and so are texts without
    labels. `start` is the classifier that was continued, described by its path and hash.
    """
    found = {
        "messages": {part: len(messages) for part, messages in vars(split).items()},
        "messages_sha256": messages_sha256(split),
        "classifier": classifier.description.as_dict(),
        "environment": environment(classifier.device)
        | {"gpt2_from_scratch": version("gpt2-from-scratch")},
    }
    if unlabelled:
        found["unlabelled"] = _described(unlabelled)
    if start:  # if it was described before, it may since have been moved
        known = read_json(run / PROVENANCE).get("start") if (run / PROVENANCE).exists() else None
        found["start"] = known or {"path": start, "sha256": sha256_of(saved_file(start))}
    write_json(run / PROVENANCE, found)


def number_of_processes(run: Path) -> int:
    """The number of processes that started a run."""
    path = run / PROVENANCE
    return (read_json(path) if path.exists() else {}).get("environment", {}).get("processes", 1)


def _described(texts: Sequence[str]) -> dict[str, Any]:
    messages = [Message(text, None) for text in texts]
    return {"texts": len(texts), "sha256": messages_sha256(Split(messages, [], []))}


def refuse_missing_data(run: Path, data: DataConfig) -> None:
    """Raise DataError if a file of the run's data is missing."""
    for option in SOURCES:
        path = getattr(data, option)
        if path and path not in DATA_SETS and not os.path.exists(path):
            saved = getattr(RunConfig.read(run).data, option)
            before = "it" if saved == path else saved
            raise DataError(
                f"{path} is missing, and {run} was started with {before}. If it was moved, say where "
                f"it is: {command('train', '--resume', run)} --{SOURCES[option]} NEW"
            )


def refuse_other_messages(run: Path, split: Split, source: str) -> None:
    """Raise UsageError unless the run was started with these messages.

    They may be in another file than before. `source` is that file, for the error message.
    """
    saved = read_json(run / PROVENANCE)
    then, now = saved.get("messages_sha256"), messages_sha256(split)
    if then != now:
        counts = {part: len(messages) for part, messages in vars(split).items()}
        hashes = {_text_hash(message.text) for part in vars(split).values() for message in part}
        what = "Give the data it was started with, or start a new run."
        known, n = TrainedOn.of(run).hashes, sum((saved.get("messages") or {}).values())
        if known and known <= hashes and n == sum(counts.values()):
            what = (
                "All its training texts are there. Give the rows in their original order, unless a "
                "text or a label was changed."
            )
        raise UsageError(
            f"{run} was started with other messages than those in {source}: "
            f"{saved.get('messages')} with hash {then!s:.12}, now {counts} with hash {now:.12}. "
            f"{what}"
        )


def refuse_other_unlabelled(run: Path, texts: Sequence[str], source: str) -> None:
    """Raise UsageError unless the run was started with these texts without labels.

    `source` is their file, for the error message.
    """
    then = read_json(run / PROVENANCE).get("unlabelled")
    now = _described(texts) if texts else None
    if then != now:
        raise UsageError(
            f"{run} was started with other texts without labels than those in {source}: {then}, now "
            f"{now}. Give the file it was started with, or start a new run."
        )


def refuse_other_classifier(run: Path, classifier: Classifier, *, autotune: bool = False) -> None:
    """Raise UsageError unless the run was started with this base model, head and LoRA.

    With `autotune` only the base model must be the same, because the search chooses the others.
    """
    now = json.loads(json.dumps(classifier.description.as_dict()))  # tuples are lists in JSON
    then = read_json(run / PROVENANCE).get("classifier")
    if autotune and isinstance(then, dict):
        then, now = ({"base_sha256": each.get("base_sha256")} for each in (then, now))
    refuse_changes({"classifier": then}, {"classifier": now}, run)


# --- the test set, and the texts a run was trained on ---


def write_parts(
    run: Path,
    split: Split,
    task: str,
    before: "TrainedOn | None" = None,
    unlabelled: Sequence[str] = (),
) -> None:
    """Write the test set, and the hashes of all texts that the classifier was trained on.

    The hashes are those of the training set, of `unlabelled` and those in `before`. The test set is
    written to `test.csv`, or to `test.jsonl` for tasks other than classification.

    Args:
        run: The run's folder.
        split: The messages.
        task: The task of the run.
        before: The texts on which the classifier was trained before this run; None without any.
        unlabelled: The texts without labels to which GPT-2 is adapted.
    """
    write = write_messages if task == "classification" else write_examples
    write(test_part(run, task), split.test)
    texts = (*(message.text for message in split.train), *unlabelled)
    now = frozenset(map(_text_hash, texts))
    TrainedOn(now | before.hashes if before else now, not before or before.complete).write(run)


def read_test_part(run: Path, task: str) -> list[Message]:
    """Read the test set, including empty texts, and check it against the run's manifest."""
    path = test_part(run, task)
    check_listed(path)
    return load_examples(DataConfig(source=str(path), keep_empty=True), task)


def test_part(run: Path, task: str) -> Path:
    """Return the file of the test set."""
    return run / ("test.csv" if task == "classification" else "test.jsonl")


@dataclass(frozen=True)
class TrainedOn:
    """The texts that a classifier was trained on, as hashes.

    Texts that differ only in white space or Unicode composition count as equal.
    """

    hashes: frozenset[str]
    complete: bool = True  # False if it was also trained on unknown texts

    def count(self, messages: Sequence[Message]) -> int:
        """The number of messages whose text was used for training."""
        return sum(_text_hash(message.text) in self.hashes for message in messages)

    def in_words(self, messages: Sequence[Message]) -> str:
        """Say how many of these messages were used for training, and what that means for scores."""
        n, total = self.count(messages), f"{len(messages):,}"
        if not n and not self.complete:
            return "it is not known whether it was trained on these texts"
        if not n:
            return f"none of the {total} texts was trained on"
        known = f"{n:,} of the {total} texts were trained on"
        if n == len(messages):
            known = f"all {total} texts were trained on"
        elif not self.complete:
            known = f"at least {known}"
        if n < FEW_KNOWN * len(messages):
            return f"{known}, so the scores may be slightly too high"
        return f"{known}: the scores do not show how good it is on new texts"

    def write(self, run: str | Path) -> None:
        """Write `training-texts.txt`: one hash per line."""
        path = expanded(run) / TRAINING_TEXTS
        lines = sorted(self.hashes) + ([] if self.complete else [AND_OTHERS])
        write_text(path, "".join(f"{line}\n" for line in lines))

    @classmethod
    def of(cls, classifier: str | Path) -> "TrainedOn":
        """Read which texts a classifier was trained on.

        This is known for a run's folder and for the classifiers in it. For any other file the
        result is empty and not `complete`.
        """
        path = expanded(classifier)
        is_folder = os.path.isdir(path)  # Path.is_dir raises OSError for a name that is too long
        own = is_folder or path.name in ("best.safetensors", "last.safetensors")
        path = (path if is_folder else path.parent) / TRAINING_TEXTS
        if not own or not os.path.isfile(path):
            return cls(frozenset(), complete=False)
        check_listed(path)
        lines = path.read_text("utf-8", "replace").splitlines()
        return cls(frozenset(lines) - {AND_OTHERS}, AND_OTHERS not in lines)


def _text_hash(text: str) -> str:
    return hashlib.blake2b(comparable(text).encode("utf-8", "replace"), digest_size=8).hexdigest()


# --- the checks of a run ---


def verify_run(folder: str | Path) -> Iterator[Check]:
    """Yield the result of each check of a finished run.

    Each file must match the manifest, and each classifier must load. Files that are not in the
    manifest belong to the user; they are listed but not checked.
    """
    folder = expanded(folder)
    check, listed = attempt(
        MANIFEST, lambda: read_manifest(folder), lambda files: f"{len(files)} files"
    )
    yield check
    for name in listed or ():
        path = folder / name
        yield attempt(name, partial(check_listed, path), lambda _: f"matches {MANIFEST}")[0]
        if path.suffix == ".safetensors" and path.is_file():
            reads = partial(read_classifier, path)
            yield attempt(f"{name} loads", reads, lambda found: several(found[0].labels))[0]
    here = {path.name for path in folder.iterdir() if path.name[0] != "."}
    if others := sorted(here - {MANIFEST, *(listed or ())}):
        yield Check(
            "other files", True, f"not part of the run, not checked: {', '.join(others):.200}"
        )
