"""A study: all rows on all splits, with predictions kept on disk and one scoreboard.

A study's folder contains `settings.json`. For each finished pair of row and split,
`answers-ROW-SPLIT.jsonl` has the predictions for the split's test set, and `finished.json` has the
other facts. At the end the folder also contains the scoreboard as .json, .md, .png and .html.
"""

import logging
import os
import re
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gpt2_from_scratch.classifier.saving import read_classifier
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.data.messages import (
    DataConfig,
    Message,
    count_labels,
    on_one_line,
    source_path,
)
from gpt2_from_scratch.data.near_duplicates import has_near_duplicate
from gpt2_from_scratch.data.split import (
    Split,
    folds,
    load_parts,
    messages_sha256,
    split_parts,
)
from gpt2_from_scratch.errors import (
    CheckpointError,
    GPT2Error,
    Interrupted,
    ResourceError,
    UsageError,
)
from gpt2_from_scratch.evaluation.baselines import class_numbers
from gpt2_from_scratch.evaluation.metrics import (
    LabelledPredictions,
    rarer_label,
    read_predictions,
    write_predictions,
)
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.reports.render import write_study_report
from gpt2_from_scratch.reports.study_findings import StudyFacts, StudyRow
from gpt2_from_scratch.runs.folder import RunConfig, TrainedOn
from gpt2_from_scratch.runs.results import TEST_PREDICTIONS
from gpt2_from_scratch.speed.devices import environment, set_threads
from gpt2_from_scratch.storage.files import locked, read_json, sha256_of, sweep, write_json
from gpt2_from_scratch.storage.interruption import end_with_parent
from gpt2_from_scratch.storage.paths import data_name, expanded, model_folder, model_name, tidy
from gpt2_from_scratch.storage.processes import (
    apart,
    count,
    gathered,
    is_first,
    part_of,
    wait_for_all,
)
from gpt2_from_scratch.storage.states import refuse_changes
from gpt2_from_scratch.studies.book import book_rows
from gpt2_from_scratch.studies.rows import (
    TEXT,
    Finetuned,
    FinishedRun,
    FrozenFeatures,
    Result,
    Row,
    Setup,
    StudySplit,
    finetuned,
    refuse_unfit,
    text_baselines,
    with_random_weights,
)
from gpt2_from_scratch.studies.scoreboard import (
    COMPARED,
    ENSEMBLE,
    EXPERIMENTS,
    Scoreboard,
    ensembles,
    make_scoreboard,
    write_scoreboard,
)

log = logging.getLogger(__name__)

VERSION = 2  # version of a study's folder


@dataclass(frozen=True)
class Study:
    """The common settings, rows and splits of a study, and how its scoreboard is shown."""

    setup: Setup
    rows: Sequence[Row]
    splits: Sequence[StudySplit]
    reference: str  # name of the row with which all others are compared
    # everything that affects predictions; all results in a folder are for the same settings
    settings: dict[str, Any]
    positive: str = ""  # the label whose F1 and ROC-AUC are shown; "": the mean over labels
    stem: str = "scoreboard"  # stem of the scoreboard's file names
    columns: Sequence[str] = COMPARED  # columns of the table
    ranked: bool = True  # best row first; otherwise rows keep their order


def run_study(
    study: Study,
    out: str | Path,
    *,
    only: Sequence[str] | None = None,
    jobs: int = 1,
    threads: int | None = None,
) -> Scoreboard:
    """Run the pairs of row and split that are not finished, and score all finished ones.

    Ctrl-C loses only the pairs in progress. If a row fails, this is logged and the row is left out;
    the next call tries it again. If the reference fails, its error is raised. Several processes of
    torchrun share the pairs.

    Args:
        study: The rows and splits.
        out: The folder, which is created if necessary.
        only: Names of rows to run now, in addition to the reference; None for all rows. Other rows
            are scored too if they are finished on every split.
        jobs: Number of processes.
        threads: Threads per process. None: the current number with one job, otherwise 1.

    Returns:
        The scoreboard, which is also written to `out`.

    Raises:
        UsageError: `out` was started with other settings or is in use by another process, two rows
            have the same name, or `jobs` is more than 1 in several processes of torchrun.
        Interrupted: The study was stopped by Ctrl-C or SIGTERM.
    """
    if jobs < 1:
        raise UsageError(f"jobs = {jobs} must be at least 1")
    if jobs > 1 and count() > 1:
        raise UsageError("torchrun already started several processes. Leave out --jobs.")
    if len({slug(row.name) for row in study.rows}) < len(study.rows):
        raise UsageError(f"two rows have the same name: {[row.name for row in study.rows]}")
    wanted = [row for row in study.rows if only is None or row.name in {*only, study.reference}]
    out = Path(out)
    with _working_in(out, study.settings):
        answers = _Answers(out)
        pairs = [(row, split) for split in study.splits for row in wanted]
        todo = [(row, split) for row, split in pairs if not answers.have(row, split)]
        wait_for_all()  # until all know what is to do
        if len(todo) < len(pairs):
            log.info(f"{len(pairs) - len(todo)} of {len(pairs)} results are already in {out}")
        if jobs > 1 or count() > 1:  # longest first, so that no process works alone at the end
            todo.sort(key=lambda pair: -pair[0].work)
        found = _side_by_side(study.setup, todo, jobs, threads)
        with closing(found), progress_bar(total=len(todo), desc="rows") as bar:
            for row, split, result in found:
                pair = on_one_line(f"{split.name}, {row.name}")
                if isinstance(result, GPT2Error):
                    if row.name == study.reference:
                        raise result
                    log.warning(f"{pair}: failed, left out: {result}")
                else:
                    if is_first():
                        answers.keep(row, split, result)
                    log.info(f"{pair}: {_outcome(result)}")
                bar.update()
        wait_for_all()  # until all answers are on disk
        results = finished_results(study, out, wanted)
        results += ensembles(results, study.reference)
        board = make_scoreboard(
            results, study.reference, positive=study.positive, ranked=study.ranked
        )
        if is_first():
            write_scoreboard(board, out, study.stem, study.columns)
            write_study_report(_facts(study, board, results), out, study.stem)
    return board


def _outcome(result: Result | None) -> str:
    if result is None:
        return "left out"
    learned = f"{on_one_line(result.learned)}: " if result.learned else ""
    n, correct = len(result.predictions.texts), int(result.predictions.correct.sum())
    return f"{learned}{100 * result.accuracy:.2f}% ({correct} of {n}; {result.seconds:.1f} s)"


def finished_results(
    study: Study, folder: str | Path, wanted: Sequence[Row] | None = None
) -> list[Result]:
    """Read a folder's results for a study's rows, split by split.

    A row in `wanted` is included even if only some of its splits are finished. Any other row is
    included only if all its splits are. None wants all rows.
    """
    answers = _Answers(Path(folder))
    results = []
    for row in study.rows:
        some = [answers.result(row, split) for split in study.splits]
        found = [result for result in some if result]
        if wanted is None or row in wanted or len(found) == len(study.splits):
            results += found
    order = [split.name for split in study.splits]
    return sorted(results, key=lambda result: order.index(result.split))


class _Answers:
    """The finished pairs of row and split in a study's folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "finished.json"
        # {split: {row: the fields of Result except predictions; None if there was nothing to fit}}
        self.finished: dict[str, Any] = read_json(self.path) if self.path.exists() else {}

    def file(self, row: Row, split: StudySplit) -> Path:
        """The file of a row's predictions for a split."""
        return self.folder / f"answers-{slug(row.name)}-{slug(split.name)}.jsonl"

    def have(self, row: Row, split: StudySplit) -> bool:
        """Whether a pair is finished."""
        done = self.finished.get(split.name, {})
        return row.name in done and (done[row.name] is None or self.file(row, split).exists())

    def keep(self, row: Row, split: StudySplit, result: Result | None) -> None:
        """Write the predictions, then record that the pair is finished."""
        known = None
        if result:
            write_predictions(self.file(row, split), result.predictions)
            names = [
                f.name for f in fields(Result) if f.name not in ("row", "split", "predictions")
            ]
            known = {name: getattr(result, name) for name in names}
        self.finished.setdefault(split.name, {})[row.name] = known
        write_json(self.path, self.finished)

    def result(self, row: Row, split: StudySplit) -> Result | None:
        """Read the result of a pair; None if it is not finished or there was nothing to fit."""
        if not self.have(row, split) or not (known := self.finished[split.name][row.name]):
            return None
        try:
            return Result(row, split.name, read_predictions(self.file(row, split)), **known)
        except TypeError as error:
            raise CheckpointError(f"{self.path}: {split.name}, {row.name}: {error}") from None


def _facts(study: Study, board: Scoreboard, results: Sequence[Result]) -> StudyFacts:
    """Collect everything that the page of a study shows."""
    predictions: dict[str, list[LabelledPredictions]] = {}
    for result in results:
        predictions.setdefault(result.row.name, []).append(result.predictions)
    changes = not study.ranked  # only in `experiments`, where each row changes the reference
    rows = [
        StudyRow(
            name=row.name,
            accuracy=row.accuracy,
            interval=row.interval,
            accuracies=row.accuracies,
            difference=row.difference.difference if row.difference else None,
            difference_interval=row.difference.interval if row.difference else None,
            p=row.difference.p_adjusted if row.difference else None,
            change=row.about if changes else "",
            is_text_baseline=row.about == TEXT,
            is_combination=row.about == ENSEMBLE.about,
            f1=row.f1,
            roc_auc=row.roc_auc,
            brier=row.brier,
            without_near_duplicates=row.without_near_duplicates,
            published=row.book.accuracy / 100 if row.book else None,
            published_as=f"row {row.book.row}" if row.book else "",
            learned=row.learned,
            seconds=row.seconds,
        )
        for row in board.rows
    ]
    data = str(study.settings.get("source", ""))
    what = "One change at a time" if changes else f"{board.reference} and its baselines"
    return StudyFacts(
        title=f"{what} on {Path(data).name}" if data else what,
        model=str(study.settings["model"]),
        data=data,
        rows=rows,
        reference=board.reference,
        splits=board.splits,
        n_test=board.n_test,
        n_train=board.n_train,
        labels=board.labels,
        positive=board.positive,
        published_in="the book, 124M, one seed" if any(row.book for row in board.rows) else "",
        predictions=predictions,
        notes=board.notes,
        settings=study.settings,
        versions=environment(torch.device(study.setup.device))
        | {"gpt2_from_scratch": version("gpt2-from-scratch")},
    )


def slug(name: str) -> str:
    """Convert the name of a row or split to a part of a file name."""
    return re.sub(r"\W+", "-", name.lower().removeprefix("seed ")).strip("-")


def refuse_other_folder(folder: str | Path) -> None:
    """Raise UsageError for a file, and for a folder that contains something other than a study."""
    folder = expanded(folder)
    if not os.path.lexists(folder) or (folder / "settings.json").exists():
        return
    if not folder.is_dir() or any(found.name[0] != "." for found in folder.iterdir()):
        raise UsageError(f"{folder} contains something other than a study. Choose another --out.")


@contextmanager
def _working_in(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Keep other processes out of a study's folder while the block runs.

    Of several processes that work on the study, the first looks after the folder. Raises UsageError
    if the folder belongs to a study with other settings.
    """
    if not is_first():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"the folder {folder} cannot be created: {error.strerror}. Choose another --out."
        ) from None
    refuse_other_folder(folder)
    path = folder / "settings.json"
    with locked(folder / ".lock", wait=False):
        if path.exists():
            saved = read_json(path)
            if saved.get("version") != VERSION:
                raise UsageError(
                    f"{folder} is from another version of this package; choose another --out"
                )
            # an older study does not have the newer settings, so it used their defaults
            newest = asdict(DataConfig()) | asdict(TrainConfig()) | asdict(HeadSettings())
            defaults = {name: value for name, value in newest.items() if name in settings}
            refuse_changes(defaults | saved, {"version": VERSION} | settings, folder)
        sweep(folder)
        write_json(path, {"version": VERSION} | settings)
        try:
            yield
        except KeyboardInterrupt as error:
            number = getattr(error, "exit_code", 130) - 128
            raise Interrupted("interrupted; finished results are kept", number, again=()) from None


Outcome = tuple[Row, StudySplit, Result | None | GPT2Error]


def _side_by_side(
    setup: Setup, todo: Sequence[tuple[Row, StudySplit]], jobs: int, threads: int | None
) -> Generator[Outcome]:
    """Yield each pair's result as soon as it is available, from one or several processes."""
    if count() > 1:
        for first in range(0, len(todo), count()):
            own = None
            for row, split in part_of(todo[first:][: count()]):  # one of these pairs, or none
                with apart():
                    own = _attempt(setup, row, split, threads)
            yield from filter(None, gathered(own))
        return
    if jobs == 1:
        yield from (_attempt(setup, row, split, threads) for row, split in todo)
        return
    from joblib import Parallel, delayed

    # one pair per task; arrays are sent to the processes directly, not as files
    parallel = Parallel(
        jobs,
        return_as="generator_unordered",
        batch_size=1,
        max_nbytes=None,
        initializer=end_with_parent,
        initargs=(os.getpid(),),
    )
    found = parallel(delayed(_attempt)(setup, r, s, threads or 1) for r, s in todo)
    try:
        for outcome in found:  # noqa: UP028 (that would close it before the warning is off)
            yield outcome
    finally:
        # joblib would warn that pairs in progress are lost
        with warnings.catch_warnings(action="ignore"):
            found.close()  # closing ends the processes


def _attempt(setup: Setup, row: Row, split: StudySplit, threads: int | None) -> Outcome:
    """Fit one row on one split. An error that the user can fix is returned, not raised."""
    if threads:
        set_threads(threads)
    began, cpu_began = time.perf_counter(), time.process_time()
    try:
        result = row.answer(setup, split)
    except GPT2Error as error:
        return row, split, error
    if result:
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        result = replace(result, seconds=seconds, cpu_seconds=cpu_seconds)
    return row, split, result


# --- the three studies of the command line ---


def new_study(
    setup: Setup,
    data: DataConfig,
    rows: Sequence[Row],
    *,
    seeds: Sequence[int] = (),
    n_folds: int = 0,
    reference: str,
    **look: Any,
) -> Study:
    """Make a study of rows on splits of one data set: one split per seed, or folds.

    If the data set has a separate test file, that is the test set of every split.

    Args:
        setup: The common settings.
        data: The data set.
        rows: The rows.
        seeds: One split per seed.
        n_folds: The number of folds, instead of seeds.
        reference: The name of the row with which the others are compared.
        look: Other fields of Study.

    Returns:
        The study, for `run_study`.

    Raises:
        UsageError: The task is not classification, folds are combined with seeds or with a separate
            test set, a seed occurs twice, or settings do not fit the rows.
    """
    if setup.head.task != "classification":
        raise UsageError(f"studies are for classification, not for {setup.head.task}")
    if seeds and n_folds:
        raise UsageError("give seeds, one per split, or a number of folds, not both")
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds {list(seeds)}: one of them occurs twice")
    if n_folds and data.test_source:
        raise UsageError("folds are cut from one file; leave out val_source and test_source")
    if n_folds and data.rare_labels == "keep":
        raise UsageError("a rare label cannot be in every fold; drop it or merge it with others")
    RunConfig(data=data, training=setup.training)  # raises UsageError for contradictions
    setup = replace(setup, data=data)
    refuse_unfit(setup, rows)
    read_config(model_folder(setup.model))  # fails early if there is no such model
    files = load_parts(data)
    messages = [message for part in files for message in part]
    counts = count_labels(messages)
    given = [part.strip() for part in setup.head.labels.split(",") if part.strip()]
    labels = tuple(given or counts)
    class_numbers(messages, labels)  # raises DataError for an unknown label
    settings = asdict(data) | asdict(setup.head) | asdict(setup.training)
    settings |= {
        "source": data_name(data.source),
        "val_source": data_name(data.val_source) if data.val_source else "",
        "test_source": data_name(data.test_source) if data.test_source else "",
        "unlabelled": data_name(data.unlabelled) if data.unlabelled else "",
        "model": model_name(setup.model),
        "dtype": setup.dtype,
        "n_folds": n_folds,
        "messages_sha256": messages_sha256(Split(messages, [], [])),
    }
    if data.unlabelled:
        settings["unlabelled_sha256"] = sha256_of(source_path(data.unlabelled))
    if not n_folds:
        settings.pop("seed")  # each split has its own seed
    return Study(
        replace(setup, labels=labels),
        rows,
        _splits(files, data, seeds or (setup.training.seed,), n_folds, rows),
        reference,
        settings,
        rarer_label(labels, [counts.get(label, 0) for label in labels]),
        **look,
    )


def _splits(
    files: Sequence[list[Message]],
    data: DataConfig,
    seeds: Sequence[int],
    n_folds: int,
    rows: Sequence[Row],
) -> list[StudySplit]:
    if n_folds:
        together, balance = data.keep_together, data.balance
        (messages,) = files
        found = folds(messages, n_folds, seed=seeds[0], keep_together=together, balance=balance)
        splits = [
            StudySplit(f"fold {n}", seeds[0], parts) for n, parts in enumerate(found, start=1)
        ]
    else:
        splits = []
        for seed in seeds:
            parts = split_parts(files, data, seed)
            split = StudySplit(f"seed {seed}", seed, parts)
            if any(isinstance(row, Finetuned) and row.all_messages for row in rows):
                whole = split_parts(files, replace(data, balance=False), seed)
                kept = {message.text for message in (*parts.val, *parts.test)}
                every = [*whole.train, *whole.val, *whole.test]
                split = replace(split, unbalanced=[m for m in every if m.text not in kept])
            splits.append(split)
    return [
        replace(
            split,
            near_duplicates=has_near_duplicate(
                [message.text for message in split.parts.test],
                [message.text for message in split.parts.train],
            ),
        )
        for split in splits
    ]


def compare(
    model: str | Path = "mini",
    data: str | Path | DataConfig = "sms",
    training: TrainConfig | None = None,
    head: HeadSettings | None = None,
    *,
    seeds: Sequence[int] = (),
    n_folds: int = 0,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    cache: bool = True,
    out: str | Path | None = None,
    quick: bool = False,
) -> Scoreboard:
    """Compare a finetuned GPT-2 with simpler classifiers, on the same splits.

    The others are text baselines, logistic regression on frozen features, and the same GPT-2
    trained from random weights.

    Args:
        model: Name or folder of a GPT-2.
        data: Labelled texts: a name, a path or a DataConfig. With folds of a name or path, near
            duplicates stay together.
        training: The settings of finetuning, as in `train_classifier`.
        head: The settings of the head, as in `train_classifier`.
        seeds: One split per seed; by default one split with the seed of `training`.
        n_folds: The number of folds, instead of seeds; each text is tested in one fold.
        device: Where the models compute.
        dtype: Precision of the frozen blocks.
        cache: Whether the frozen blocks' output is kept on disk.
        out: The study's folder; None for `runs/compare-MODEL-DATA`.
        quick: Leave out the model from random weights and the slower baselines.

    Returns:
        The scoreboard, which is also written to `out`.

    Raises:
        UsageError: The task is not classification, seeds are combined with folds, or the folder
            belongs to a study with other settings.
    """
    out = out or compare_folder(model, DataConfig.of(data).source)
    refuse_other_folder(out)
    if not isinstance(data, DataConfig):
        together = "near-duplicates" if n_folds else "copies"
        data = replace(DataConfig.of(data), keep_together=together)
    head = head or HeadSettings()
    training = training or TrainConfig(n_last_blocks=0 if head.lora else 1)
    setup = Setup(model, training, head, device=device, dtype=dtype, cache=cache)
    ours = finetuned(setup)
    rows = [*text_baselines(quick=quick), FrozenFeatures()]
    rows += [ours] if quick else [with_random_weights(setup), ours]
    study = new_study(setup, data, rows, seeds=seeds, n_folds=n_folds, reference=ours.name)
    return run_study(study, out)


def compare_folder(model: str | Path, data: str | Path) -> Path:
    """The default folder of a comparison."""
    return Path("runs") / f"compare-{tidy(Path(model).resolve().name)}-{tidy(Path(data).stem)}"


def experiments(
    model: str | Path = "mini",
    data: str | Path | DataConfig = "sms",
    training: TrainConfig | None = None,
    head: HeadSettings | None = None,
    *,
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    dtype: str = "float32",
) -> Study:
    """The book's table of experiments, in which each row is one change from the default row.

    Each seed decides a split, the initial weights and the order of messages. These are the same for
    all rows. Raises the errors of `new_study`, and UsageError if there are no seeds.

    Args:
        model: Name or folder of a GPT-2.
        data: Labelled texts.
        training: The settings of the default row.
        head: The head of the default row.
        seeds: One split per seed.
        dtype: Precision of the frozen blocks.

    Returns:
        The study, for `run_study`.
    """
    data = DataConfig.of(data)
    if not seeds:
        raise UsageError("experiments need at least one seed")
    setup = Setup(model, training or TrainConfig(), head or HeadSettings(), dtype=dtype)
    rows = book_rows(read_config(model_folder(model)), setup.training)
    look: dict[str, Any] = {"stem": "experiments", "columns": EXPERIMENTS, "ranked": False}
    return new_study(setup, data, rows, seeds=seeds, reference=rows[0].name, **look)


def compare_runs(
    runs: Sequence[str | Path], *, out: str | Path | None = None, quick: bool = False
) -> Scoreboard:
    """Compare finished runs with the first one, by their predictions for the same test set.

    Text baselines are fitted too if the first run's split can be repeated from its data. Otherwise
    a warning says why not. The scoreboard is returned, and also written to the study's folder.

    Args:
        runs: The folders of the runs. The others are compared with the first.
        out: The study's folder; None for `runs/compare-RUN`.
        quick: Leave out the slower text baselines.

    Raises:
        UsageError: The task is not classification, or two runs have the same name.
        DataError: The runs' test texts or labels differ; the message names the first difference.
    """
    refuse_other_folder(out or runs_folder(runs))
    rows = [FinishedRun(_run_name(run), "runs", folder=Path(run)) for run in runs]
    baselines = text_baselines(quick=quick)
    slugs = [slug(row.name) for row in (*rows, *text_baselines(quick=False))]
    if len(set(slugs)) < len(slugs):
        raise UsageError(
            f"runs are named after their folders, but in {[row.name for row in rows]} two names are equal, "
            "or one is the name of a baseline"
        )
    described = {row.name: read_classifier(row.folder / "best.safetensors")[0] for row in rows}
    for name, description in described.items():
        if description.head.task != "classification":
            raise UsageError(
                f"studies are for classification, but {name} is for {description.head.task}"
            )
    first = rows[0].kept(TEST_PREDICTIONS)
    test = [Message(t, first.labels[k]) for t, k in zip(first.texts, first.true, strict=True)]
    parts = rows[0].split()
    split = StudySplit(
        "test set",
        0,
        replace(parts, test=test) if parts else Split([], [], test),
        first.near_duplicates,
    )
    for row in rows:
        row.test_answers(first.labels, split)  # fails early if texts or labels differ
        if n_seen := TrainedOn.of(row.folder).count(test):  # by a classifier it continued from
            log.warning(f"{row.name} was trained on {n_seen:,} of {len(test):,} test texts")
    counts = count_labels([*split.parts.train, *split.parts.val, *test])
    study = Study(
        Setup(labels=first.labels),
        [*(baselines if parts else []), *rows],
        [split],
        rows[0].name,
        {
            "model": ", ".join(dict.fromkeys(d.base for d in described.values())),
            "runs": {
                str(row.folder.resolve()): sha256_of(row.folder / "best.safetensors")
                for row in rows
            },
        },
        rarer_label(first.labels, [counts.get(label, 0) for label in first.labels]),
    )
    return run_study(study, out or runs_folder(runs))


def runs_folder(runs: Sequence[str | Path]) -> Path:
    """The default folder of a comparison of runs."""
    return Path("runs") / f"compare-{_run_name(runs[0])}"


def _run_name(run: str | Path) -> str:
    return Path(run).resolve().name
