"""The two recipes: from a model and a data set to a finished run, in one call each."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from gpt2_from_scratch.classifier.adaptation import adapt, copy_gpt2
from gpt2_from_scratch.classifier.autotune import TRIES
from gpt2_from_scratch.classifier.autotune import autotune as autotuned
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import format_ledger, ledger
from gpt2_from_scratch.classifier.settings import OF_PADS, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import finetune, freeze, to_labelled
from gpt2_from_scratch.data.formats import context_of, label_names
from gpt2_from_scratch.data.messages import DataConfig, count_labels, short
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.evaluation.metrics import MOST_CLASSES
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.gpt2.nf4 import packed_weights
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.runs.continuing import (
    continued_classifier,
    inherited_head,
    inherited_training,
    known_base,
    resumed_classifier,
)
from gpt2_from_scratch.runs.folder import (
    ADAPTATION,
    ADAPTED,
    CONFIG,
    READING,
    SOURCES,
    START,
    TABLE,
    RunConfig,
    TrainedOn,
    labelled_frame,
    new_run_folder,
    number_of_processes,
    refuse_missing_data,
    refuse_other_classifier,
    refuse_other_messages,
    refuse_other_unlabelled,
    working_in,
    write_frame,
    write_parts,
    write_provenance,
)
from gpt2_from_scratch.runs.lecture import lecture, lecture_settings, read_lecture_split
from gpt2_from_scratch.runs.results import Run, remove_what_resumes, score_again, score_run
from gpt2_from_scratch.speed.batching import encode_texts
from gpt2_from_scratch.speed.devices import DTYPES, choose_device, choose_dtype, set_threads
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.curves import refuse_missing_tensorboard
from gpt2_from_scratch.storage.files import add_to_manifest, check_listed, is_complete, write_json
from gpt2_from_scratch.storage.paths import (
    data_name,
    expanded,
    model_folder,
    model_name,
    refuse_taken,
)
from gpt2_from_scratch.storage.processes import agreed, count, is_first, leave, wait_for_all

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)


def train_classifier(
    model: str | Path | None = None,
    data: "str | Path | DataConfig | pandas.DataFrame | Any" = "sms",
    training: TrainConfig | None = None,
    head: HeadSettings | None = None,
    *,
    start: str | Path | None = None,
    run: str | Path | None = None,
    device: torch.device | str = "auto",
    dtype: str = "float32",
    cache: bool = True,
    autotune: float = 0.0,
    tensorboard: bool = False,
    stream_blocks: bool = False,
) -> Run:
    """Finetune a classifier, keep its best epoch, and score it on the test set.

    Args:
        model: "mini", "124M", ... or a model's folder. Default: "mini", or the base of `start`.
        data: "sms", "hard", "topics", a file, a DataConfig with the settings for reading and
            splitting, or a DataFrame or a Hugging Face Dataset with the columns text and label.
            These are kept in the run's folder.
        training: The settings of training. By default the last block, the final norm and the head
            are trained. With LoRA, the adapters are trained instead of the last block.
        head: The settings of the head. By default it chooses one class per text.
        start: A trained classifier to continue from: a run's folder or a file. Its weights, its
            head and LoRA are kept, and new labels are added. Unless `training` is given, the same
            parameters are trained as before.
        run: The folder to write. By default a new one in `runs/`.
        device: "auto", "cpu", "cuda", "mps" or a torch device.
        dtype: Precision of the frozen blocks, "float32", "bfloat16" or "auto", which is the faster of
            the two on the device. The run keeps what "auto" chose.
        cache: Keep the frozen blocks' output on disk for the next run.
        autotune: Search for the best settings of training and head for this many seconds. Settings
            that differ from their defaults are kept. 0: no search.
        tensorboard: Write the curves of training to the folder `tensorboard` in the run's folder.
        stream_blocks: Read one frozen block at a time from the model's file, so that a model larger
            than the memory can be used. The results are the same.

    Returns:
        The finished run, with `run.classifier` and `run.scores`. `run.write_report()` writes the
        report page, the model card and the pictures. Of several processes (see
        `storage.processes`), only the first scores the run; in the others, `scores` is None.

    Raises:
        DataError: The data cannot be read or split.
        CheckpointError: The model cannot be loaded.
        UsageError: Settings contradict each other, tensorboard is asked for and missing, or several
            processes cannot share this training.
        Interrupted: The run was stopped by Ctrl-C or SIGTERM; its state is saved.
    """
    if tensorboard:
        refuse_missing_tensorboard()
    head = head or HeadSettings()
    if run is not None:
        run = expanded(run)
        refuse_taken(run)  # before anything is loaded
    if start is not None:
        defaults = asdict(HeadSettings())
        asked = {name: value for name, value in asdict(head).items() if value != defaults[name]}
        head = inherited_head(start, asked)
        training = training or TrainConfig(**inherited_training(start))
        model = known_base(start) if model is None else model
    training = training or TrainConfig(n_last_blocks=0 if head.lora else 1)
    where = choose_device(str(device))
    frame = labelled_frame(data)
    data = DataConfig.of(TABLE if frame is not None else data)
    files: dict[str, Any] = {n: data_name(path) for n in SOURCES if (path := getattr(data, n))}
    config = RunConfig(
        model=model_name("mini" if model is None else model),
        data=replace(data, **files),
        training=training,
        head=head,
        dtype=choose_dtype(dtype, where),
        cache=cache,
        start=str(expanded(start).resolve()) if start is not None else "",
        threads=torch.get_num_threads(),
        autotune=autotune,
        tensorboard=tensorboard,
        stream_blocks=stream_blocks,
    )
    _refuse_unshareable(config)
    if frame is None:
        split = config.load_split()
    else:
        with TemporaryDirectory() as temporary:
            table = write_frame(Path(temporary) / TABLE, frame)
            split = replace(config, data=replace(config.data, source=str(table))).load_split()
    unlabelled = config.load_unlabelled(split)
    if not autotune:  # the search chooses the epochs
        config = replace(config, training=training.for_texts(len(split.train)))
    before = TrainedOn.of(config.start) if config.start else None
    if before and (n := before.count(split.test)):
        log.warning(
            f"{n:,} of {len(split.test):,} test texts were used to train {start}, so the score will be "
            "too high. Test on new texts, or use the seed and data of that run."
        )
    if head.task == "regression" and not head.labels and start is None:
        columns = config.data.label_column
        # name the values after their columns, unless one column contains several values
        if len(columns.split(",")) == len(split.train[0].label):
            config = replace(config, head=replace(head, labels=columns))
    make = continued_classifier if config.start else new_classifier
    classifier = make(config, split).to(where)
    wait_for_all()  # until no process checks any longer whether the folder is free
    folder = agreed(new_run_folder(run, config) if is_first() else Path())
    with working_in(folder):
        if frame is not None:
            table = folder / TABLE
            config = replace(config, data=replace(config.data, source=data_name(table)))
        if is_first():
            if frame is not None:
                write_frame(table, frame)
            # an interrupted run can also be scored
            write_parts(folder, split, head.task, before, unlabelled)
            if config.start:
                classifier.save(folder / START)
            write_provenance(folder, split, classifier, config.start, unlabelled)
            config.write(folder)
        return _train(folder, config, split, unlabelled, classifier, resume=False)


def resume_training(
    run: str | Path,
    *,
    data: str | Path | DataConfig | None = None,
    device: torch.device | str = "auto",
) -> Run:
    """Resume a run that was interrupted or killed.

    The result is the same as that of an uninterrupted run. The settings, including the number of
    threads, are read from the run's folder. A complete run is only scored again.

    Args:
        run: The run's folder.
        data: The new place of its messages, if their file was moved: a file, or a DataConfig with
            the settings for reading it. The messages must be the same.
        device: "auto", "cpu", "cuda", "mps" or a torch device.

    Returns:
        The finished run.

    Raises:
        DataError: The data is missing or cannot be read.
        UsageError: The run uses the lecture's recipe, which saves no state, or its messages or base
            model have changed.
    """
    folder = expanded(run)
    if is_complete(folder):
        check_listed(folder / "config.json")
    config = RunConfig.read(folder)
    if config.recipe == "lecture":
        raise UsageError(
            f"{folder} is a run of the lecture's recipe, which saves no state. Start it again; the "
            "frozen blocks' output is kept."
        )
    if data is not None:
        config = replace(config, data=_moved(config.data, data))
    if config.tensorboard:
        refuse_missing_tensorboard()
    # the saved number of threads is that of one process, among as many as started the run
    set_threads(config.threads if count() == number_of_processes(folder) else None)
    where = choose_device(str(device))
    if agreed(is_complete(folder)):
        first = _alone_from_now_on()
        split = _texts_of(folder, config)[0] if data is not None else None
        log.info(f"{folder} is complete")
        classifier = config.load_classifier(folder, device=where)
        freeze(classifier, config.training)  # the file may contain more than what was trained
        if not first:
            return Run(folder, config, classifier, None)
        remove_what_resumes(folder)
        if split:
            with working_in(folder):
                config.write(folder)
                add_to_manifest(folder, [CONFIG])
        return score_again(folder, config, classifier, split)
    _refuse_unshareable(config)
    split, unlabelled = _texts_of(folder, config)
    classifier = _untrained(folder, config, split).to(where)
    with working_in(folder):
        refuse_other_classifier(folder, classifier, autotune=config.autotune > 0)
        wait_for_all()  # until all have read the folder
        if is_first():
            config.write(folder)
            before = TrainedOn.of(folder) if config.start else None
            write_parts(folder, split, config.head.task, before, unlabelled)
        return _train(folder, config, split, unlabelled, classifier, resume=True)


def _moved(before: DataConfig, now: str | Path | DataConfig) -> DataConfig:
    """The data settings of a run, with new file names and new settings for reading."""
    if not isinstance(now, DataConfig):
        return replace(before, source=data_name(now))
    found = {field.name: getattr(now, field.name) for field in fields(now) if field.name in READING}
    found |= {name: data_name(found[name]) for name in SOURCES if found[name]}
    return replace(before, **found)


def _texts_of(folder: Path, config: RunConfig) -> tuple[Split, list[str]]:
    """Read a run's messages and its texts without labels again.

    Raises UsageError if they have changed.
    """
    refuse_missing_data(folder, config.data)
    split = config.load_split()
    refuse_other_messages(folder, split, config.data.source)
    unlabelled = config.load_unlabelled(split)
    refuse_other_unlabelled(folder, unlabelled, config.data.unlabelled)
    return split, unlabelled


def _train(
    folder: Path,
    config: RunConfig,
    split: Split,
    unlabelled: Sequence[str],
    classifier: Classifier,
    *,
    resume: bool,
) -> Run:
    if config.head.pooling in OF_PADS and not config.head.pad_to:
        log.warning(
            "this pooling reads padding, so predictions depend on the longest text in the batch; "
            "set pad_to to avoid that"
        )
    every = [*split.train, *split.val, *split.test]
    labels = ""
    if config.head.task == "classification":
        counts = count_labels(every)
        shown = ", ".join(f"{short(label, 100)}: {n:,}" for label, n in counts.items())
        labels = f" ({shown})" if len(counts) <= MOST_CLASSES else f" of {len(counts):,} labels"
    elif config.head.task == "span":
        labels = f" on {len({context_of(message.text) for message in every}):,} contexts"
    log.info(
        f"{len(every):,} distinct texts{labels}: {len(split.train):,} training, "
        f"{len(split.val):,} validation, {len(split.test):,} test"
    )
    if config.training.adapt and agreed(not (folder / START).exists()):
        where = folder / ADAPTATION
        found = adapt(classifier, split, unlabelled, config.training, where, resume=resume)
        if is_first():
            write_json(folder / ADAPTED, asdict(found))
            classifier.save(folder / START)
            shutil.rmtree(where)
    classifier.store = FeatureStore() if config.cache else None
    if config.autotune:
        config, classifier = _tuned(folder, config, split, unlabelled, classifier)
    elif resume and (folder / TRIES).exists():  # the search has trained it
        classifier = _best_of_search(folder, config, classifier)
    else:
        _log_ledger(classifier, config.training)
        finetune(
            classifier,
            split,
            config.training,
            folder,
            resume=resume,
            tensorboard=config.tensorboard,
        )
    if count() > 1:
        to_labelled(classifier, split.test)  # so that its features are in the store
    if not _alone_from_now_on():
        return Run(folder, config, classifier, None)
    return score_run(folder, config, classifier, split)


def _refuse_unshareable(config: RunConfig) -> None:
    """Raise UsageError for settings with which several processes cannot share a training."""
    if count() == 1:
        return
    if config.autotune:
        raise UsageError(
            "--autotune chooses by the time that tries take in one process. Search without torchrun."
        )
    if not config.cache:
        raise UsageError(
            "with --no-cache, several processes could not exchange the output of the frozen blocks. Use "
            "the cache, or one process without torchrun."
        )


def _alone_from_now_on() -> bool:
    """Let the first process continue alone. Returns whether this is the first process."""
    first = is_first()
    if first:
        leave()
    return first


def _log_ledger(classifier: Classifier, training: TrainConfig) -> None:
    """Log the number of trainable parameters; the whole ledger only if debug lines are shown."""
    found = ledger(classifier.model, training, classifier.description.heads)
    *parts, total = format_ledger(found).splitlines()
    log.debug("\n".join(parts))
    log.info(total)
    if packed := packed_weights(classifier.model).values():
        now = sum(buffer.nbytes for weight in packed for buffer in weight.buffers())
        before = 4 * sum(weight.shape.numel() for weight in packed)
        log.info(
            f"matrices of the blocks in NF4: {now / 1e6:.1f} MB instead of {before / 1e6:.1f} MB"
        )


def _tuned(
    folder: Path,
    config: RunConfig,
    split: Split,
    unlabelled: Sequence[str],
    classifier: Classifier,
) -> tuple[RunConfig, Classifier]:
    """Search for settings; return the run's new settings, and its trained classifier.

    Afterwards `config.json` is that of a run that was started with the settings that were found.
    """
    device, store = classifier.device, classifier.store

    def make(training: TrainConfig, head: HeadSettings) -> Classifier:
        changed = replace(config, training=training, head=head)
        if config.start:
            made = resumed_classifier(folder, changed)
        else:
            made = new_classifier(changed, split)
        if training.adapt:
            copy_gpt2(classifier.model, made.model)
        made = made.to(device)
        made.store = store
        return made

    keep = ("pooling", "lora") if config.start else ()
    training, head = autotuned(
        make, split, config.training, config.head, config.autotune, folder, keep=keep
    )
    training = training.for_texts(len(split.train))
    config = replace(config, training=training, head=head, autotune=0.0)
    if training.adapt:
        make(training, head).save(folder / START)
    best = _best_of_search(folder, config, classifier)
    write_provenance(folder, split, best, config.start, unlabelled)
    config.write(folder)  # last, because a run without autotune checks its provenance
    return config, best


def _best_of_search(folder: Path, config: RunConfig, before: Classifier) -> Classifier:
    """The classifier that a search left in the run's folder, on the device of the one `before`."""
    found = config.load_classifier(folder, device=before.device, store=before.store)
    freeze(found, config.training)
    _log_ledger(found, config.training)
    return found


def _untrained(folder: Path, config: RunConfig, split: Split) -> Classifier:
    """The classifier with which the training of the run in this folder starts."""
    if (folder / START).exists():
        return resumed_classifier(folder, config)
    return new_classifier(config, split)


def new_classifier(config: RunConfig, split: Split) -> Classifier:
    """An untrained classifier with the configured base model, head, LoRA and frozen parameters."""
    every, folder, head = (
        [*split.train, *split.val, *split.test],
        model_folder(config.model),
        config.head,
    )
    sizes = read_config(folder)
    max_tokens, pad_to = head.max_tokens or sizes.n_ctx, head.pad_to or None
    if head.pad_to == -1:
        texts = [message.text for message in split.train]
        pad_to = max(map(len, encode_texts(texts, Tokenizer(folder), max_tokens)[0]))
    classifier = Classifier.on_base(
        config.model,
        heads=[head.head_config(label_names(every, head.task), split.train, sizes.n_embd)],
        lora=head.lora_config(),
        max_tokens=min(max_tokens, pad_to) if pad_to else max_tokens,
        pad_to=pad_to,
        causal_mask=head.causal_mask,
        seed=config.training.seed,
        dtype=DTYPES[config.dtype],
        stream=config.stream_blocks,
    )
    freeze(classifier, config.training)
    return classifier


def train_as_the_lecture(
    model: str | Path = "124M",
    data: str | Path = "sms",
    *,
    run: str | Path | None = None,
    seed: int = 123,
    device: torch.device | str = "auto",
    dtype: str = "float32",
    cache: bool = True,
) -> Run:
    """Train by the lecture's recipe.

    `lecture.py` explains the recipe, and why it is not the default.

    Args:
        model: "124M" for the lecture's numbers, or another model's name or folder.
        data: "sms", or a file in the same format.
        run: The folder to write. By default a new one in `runs/`.
        seed: Random seed; the lecture uses 123.
        device: "auto", "cpu", "cuda", "mps" or a torch device.
        dtype: Precision of the frozen blocks, "float32", "bfloat16" or "auto".
        cache: Keep the frozen blocks' output on disk for the next run.

    Returns:
        The finished run.
    """
    if count() > 1:
        raise UsageError("the lecture's recipe runs in one process. Leave out torchrun.")
    if run is not None:
        run = expanded(run)
        refuse_taken(run)
    split = read_lecture_split(data, seed)
    where = choose_device(str(device))
    dtype = choose_dtype(dtype, where)
    gpt2, folder = load_gpt2(model).to(where), model_folder(model)
    config = RunConfig(
        recipe="lecture",
        model=model_name(model),
        data=DataConfig(source=data_name(data)),
        training=lecture_settings(seed),
        dtype=dtype,
        cache=cache,
        threads=torch.get_num_threads(),
    )
    run = new_run_folder(run, config)
    with working_in(run, resumable=False):
        write_parts(run, split, "classification")
        store = FeatureStore() if cache else None
        classifier, trace = lecture(
            gpt2,
            Tokenizer(folder),
            split,
            base=config.model,
            seed=seed,
            dtype=DTYPES[dtype],
            store=store,
        )
        length = classifier.description.max_tokens
        head = HeadSettings(pooling="last_position", pad_to=length, max_tokens=length)
        config = replace(config, head=head)
        config.write(run)
        write_provenance(run, split, classifier)
        write_json(run / "trace.json", asdict(trace))
        classifier.save(run / "best.safetensors")
        return score_run(run, config, classifier, split)
