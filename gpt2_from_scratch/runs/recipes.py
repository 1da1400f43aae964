"""From a model and messages to a finished run: the two recipes, each one call.

A run's folder holds `config.json`, `metrics.jsonl`, `best.safetensors`, `last.safetensors`,
the test messages as `test.csv` (`test.jsonl` of other tasks than classification), what
`run_results.py` writes, and `MANIFEST.json` when all of it is there; until then
`state-*.safetensors`.
"""

import logging
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import format_ledger, ledger
from gpt2_from_scratch.classifier.settings import OF_PADS, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import finetune, freeze, loss_and_scores, to_labelled
from gpt2_from_scratch.data.formats import label_names
from gpt2_from_scratch.data.messages import (
    DataConfig,
    Message,
    count_labels,
    load_messages,
    write_messages,
)
from gpt2_from_scratch.data.split import Split, load_split
from gpt2_from_scratch.data.tables import checked_encoding
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.reports.plots import plot_training
from gpt2_from_scratch.runs.folder import (
    describe,
    new_run_folder,
    read_settings,
    read_test_part,
    refuse_other_run,
    working_in,
    write_test_part,
)
from gpt2_from_scratch.runs.lecture import SPLIT_RULE, lecture, lecture_split
from gpt2_from_scratch.runs.results import Finished, finish_run
from gpt2_from_scratch.speed.batching import encode_texts
from gpt2_from_scratch.speed.devices import DTYPES, check_dtype, set_threads
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.files import check_listed, is_complete, write_json
from gpt2_from_scratch.storage.paths import data_name, model_folder, model_name, sms_collection
from gpt2_from_scratch.storage.states import refuse_changes

log = logging.getLogger(__name__)


def train_classifier(
    model: str | Path = "mini",
    data: str | Path = "demo",
    run: str | Path | None = None,
    config: TrainConfig | None = None,
    settings: HeadSettings | None = None,
    *,
    val_data: str | Path = "",
    test_data: str | Path = "",
    text_column: str = "text",
    label_column: str = "label",
    encoding: str = "utf-8",
    on_error: str = "stop",
    keep_empty: bool = False,
    balance: bool = False,
    together: str = "copies",
    max_tokens: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache: bool = True,
    resume: bool = False,
) -> tuple[Path, Classifier, Any]:
    """The default recipe: split without duplicates, finetune, keep the best, score the test part.

    `data` is "demo", "topics", "sms" or a file, in a format of the settings' task (examples.py);
    where parts to choose by and to test come in files of their own, all of `data` is trained on;
    else `together` says what stays in one part (see `split_messages`).
    `run` is the folder to write (none: a new one in `runs`), which is returned with the classifier
    and its scores on the test part (an Evaluation, or its like in scores.py). With LoRA the blocks
    stay frozen unless `config` says how many train. With `on_error` "skip" rows that cannot be used
    are left out, and texts that have two labels. `dtype` is that of the frozen blocks' arithmetic
    and output, which `cache` keeps on disk for the next run. `resume` goes on in a `run` that was
    interrupted, with the same settings (`resume_training` reads them there). Raises Interrupted,
    after saving, when Ctrl-C or SIGTERM comes.
    """
    settings = settings or HeadSettings()
    config = config or TrainConfig(n_last_blocks=0 if settings.lora else 1)
    check_dtype(dtype)
    sources = {
        "data": data_name(data),
        "val_data": data_name(val_data) if val_data else "",
        "test_data": data_name(test_data) if test_data else "",
    }
    reading: dict[str, Any] = {
        "text_column": text_column,
        "label_column": label_column,
        "encoding": checked_encoding(encoding),
        "on_error": on_error,
        "keep_empty": keep_empty,
    }
    where = DataConfig(
        source=sources["data"],
        val_source=sources["val_data"],
        test_source=sources["test_data"],
        balance=balance,
        keep_together=together,
        **reading,
    )
    split = load_split(where, settings.task, config.seed)
    if settings.task == "regression" and not settings.labels:
        settings = replace(settings, labels=_value_names(label_column, split))
    if settings.pooling in OF_PADS and not settings.pad_to:
        log.warning(
            "pads are read, as many as the longest text beside needs: answers depend on those"
        )
    classifier = new_classifier(model, split, config, settings, max_tokens, dtype)
    classifier.to(device)
    log.info(_counted(split, settings.task))
    lines = ledger(classifier.model, config, classifier.description.heads)
    log.info(format_ledger(lines))
    saved = (
        sources
        | reading
        | asdict(settings)
        | {
            "model": model_name(model),
            "balance": balance,
            "together": together,
            "max_tokens": classifier.description.max_tokens,
            "dtype": str(dtype).removeprefix("torch."),
            "cache": cache,
        }
    )
    run = Path(run) if run and resume else new_run_folder(run, model, data, config.seed)
    with working_in(run, resumable=True):
        described = describe(saved | asdict(config), split, classifier)
        if resume:
            refuse_other_run(run, described)
        # first of all, so that an interrupted run can be scored and gone on with
        write_test_part(run, split.test, settings.task)
        write_json(run / "config.json", described)
        classifier.store = FeatureStore() if cache else None
        history = finetune(classifier, split, config, run, resume=resume)
        done = Finished(run, classifier, split, history, saved | asdict(config), lines)
        scores = finish_run(done)
    return run, classifier, scores


def new_classifier(
    model: str | Path,
    split: Split,
    config: TrainConfig,
    settings: HeadSettings,
    max_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Classifier:
    """A base model with the head and the LoRA that settings and texts ask for, frozen as `config`
    has it, untrained.
    """
    every, folder = [*split.train, *split.val, *split.test], model_folder(model)
    sizes = read_config(folder)
    head = settings.head_config(label_names(every, settings.task), split.train, sizes.n_embd)
    pad_to = settings.pad_to or None
    if settings.pad_to == -1:
        texts = [message.text for message in split.train]
        pad_to = max(map(len, encode_texts(texts, Tokenizer(folder), max_tokens or sizes.n_ctx)[0]))
    classifier = Classifier.on_base(
        model,
        heads=[head],
        lora=settings.lora_config(),
        max_tokens=min(max_tokens or sizes.n_ctx, pad_to) if pad_to else max_tokens,
        pad_to=pad_to,
        causal_mask=settings.causal_mask,
        seed=config.seed,
        dtype=dtype,
    )
    freeze(classifier, config)
    return classifier


def _value_names(label_column: str, split: Split) -> str:
    """The columns' names as the values', unless one column holds several."""
    names = label_column.split(",")
    return label_column if len(names) == len(split.train[0].label) else ""


def _counted(split: Split, task: str) -> str:
    every = [*split.train, *split.val, *split.test]
    labels = f" {count_labels(every)}" if task == "classification" else ""
    return (
        f"{len(every):,} distinct texts{labels}: {len(split.train):,} to train on, "
        f"{len(split.val):,} to choose by, {len(split.test):,} to test"
    )


def resume_training(
    run: str | Path,
    *,
    device: torch.device | str = "cpu",
    **given: Any,
) -> tuple[Path, Classifier, Any]:
    """Go on with a run of `train_classifier` that was interrupted or killed, to the same end.

    The settings are read from the run's folder, the number of threads too; `given` are those the
    caller believes it has. Of a complete run only the scores are taken again. Raises UsageError for
    a setting that differs, and for a run of the lecture's recipe, which cannot go on.
    """
    run = Path(run)
    if is_complete(run):
        check_listed(run / "config.json")
    settings, threads = read_settings(run)
    saved = settings | {"threads": threads}
    refuse_changes(saved, saved | _as_saved(given), run)
    config = _taken_out(TrainConfig, settings)
    put_on = _taken_out(HeadSettings, settings)
    dtype = DTYPES[settings.pop("dtype")]
    set_threads(threads)
    if is_complete(run):
        log.info(f"{run} is complete")
        classifier = Classifier.load(run, settings["model"], dtype=dtype)
        classifier.to(device)
        return run, classifier, evaluate_classifier(classifier, read_test_part(run, put_on.task))
    return train_classifier(
        run=run,
        config=config,
        settings=put_on,
        dtype=dtype,
        device=device,
        resume=True,
        **settings,
    )


def _taken_out(kind: Any, settings: dict[str, Any]) -> Any:
    """The dataclass whose fields stand among the settings; they are removed there."""
    return kind(**{field.name: settings.pop(field.name) for field in fields(kind)})


def _as_saved(given: dict[str, Any]) -> dict[str, Any]:
    """Settings as `config.json` has them, to compare with it."""
    called = {"model": model_name, "encoding": checked_encoding}
    called |= dict.fromkeys(("data", "val_data", "test_data"), data_name)
    return {name: called.get(name, lambda x: x)(value) for name, value in given.items()}


def train_as_the_lecture(
    model: str | Path = "124M",
    data: str | Path = "sms",
    run: str | Path | None = None,
    *,
    seed: int = 123,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache: bool = True,
) -> tuple[Path, Classifier, Any]:
    """The lecture's recipe; see `lecture.py` for what it does and why it is not the default."""
    path = sms_collection() if data == "sms" else Path(data)
    messages = load_messages(data)  # checks the file, whichever way it is then read
    split = lecture_split(path if path.name == "SMSSpamCollection" else messages, seed)
    gpt2, folder = load_gpt2(model).to(device), model_folder(model)
    run = new_run_folder(run, model, data, seed)
    with working_in(run, resumable=False):
        write_messages(run / "test.csv", split.test)
        store = FeatureStore() if cache else None
        classifier, trace = lecture(
            gpt2,
            Tokenizer(folder),
            split,
            base=model_name(model),
            seed=seed,
            dtype=dtype,
            store=store,
        )
        settings = {"model": model_name(model), "data": data_name(data), "seed": seed}
        write_json(run / "config.json", describe(settings, split, classifier, "lecture"))
        write_json(run / "trace.json", asdict(trace))
        classifier.save(run / "best.safetensors")
        steps, *losses = zip(*trace.losses, strict=True)
        train, val = zip(*trace.accuracies, strict=True)
        curves = plot_training(steps, (losses[0], losses[1]), (train, val), step_name="step")
        done = Finished(
            run, classifier, split, [], settings, ledger(classifier.model), SPLIT_RULE, curves
        )
        scores = finish_run(done, calibrated=False)
    return run, classifier, scores


def evaluate_classifier(classifier: Classifier, messages: list[Message]) -> Any:
    """Score a classifier's first head on labelled messages: an Evaluation, or its like in scores.py."""
    labelled = to_labelled(classifier, messages)
    return loss_and_scores(classifier, labelled)[1][classifier.description.head.name]
