"""From a model and messages to a finished run: the two recipes, each one call.

A run's folder holds `config.json`, `metrics.jsonl`, `best.safetensors`, `last.safetensors`,
`curves.png`, the test messages as `test.csv`, and `evaluation.json`.
"""

from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from gpt2_from_scratch.classifier import Classifier
from gpt2_from_scratch.config import Pooling, TrainConfig
from gpt2_from_scratch.data import Message, count_labels, load_messages, write_messages
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.feature_store import FeatureStore
from gpt2_from_scratch.files import write_json
from gpt2_from_scratch.finetuning import format_ledger, ledger, set_trainable
from gpt2_from_scratch.lecture import lecture, lecture_split
from gpt2_from_scratch.metrics import Evaluation, evaluate_predictions
from gpt2_from_scratch.paths import model_folder, model_name, sms_collection
from gpt2_from_scratch.plots import plot_training
from gpt2_from_scratch.split import Split, split_messages
from gpt2_from_scratch.tokenizer import Tokenizer
from gpt2_from_scratch.train import Epoch, finetune, to_labelled
from gpt2_from_scratch.weights import load_gpt2


def train_classifier(
    model: str | Path = "mini",
    data: str | Path = "demo",
    run: Path | None = None,
    config: TrainConfig | None = None,
    *,
    text_column: str = "text",
    label_column: str = "label",
    balance: bool = False,
    pooling: Pooling = "last_token",
    max_tokens: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache: bool = True,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[Path, Classifier, Evaluation]:
    """The default recipe: split without duplicates, finetune, keep the best, score the test part.

    `data` is "demo", "sms" or a file; `run` the folder to write (none: a new one in `runs`), which
    is returned with the classifier and its scores on the test part. `dtype` is that of the frozen
    blocks' arithmetic and output, which `cache` keeps on disk for the next run.
    """
    config = config or TrainConfig()
    messages = load_messages(data, text_column=text_column, label_column=label_column)
    split = split_messages(messages, balance=balance, seed=config.seed)
    classifier = Classifier.on_base(
        model,
        list(count_labels(messages)),
        pooling=pooling,
        max_tokens=max_tokens,
        seed=config.seed,
        dtype=dtype,
    )
    classifier.model.to(device)
    set_trainable(classifier.model, config.n_last_blocks, config.final_norm)
    say(
        f"{len(messages):,} messages {count_labels(messages)}; of the distinct ones {len(split.train)} "
        f"to train on, {len(split.val)} to choose by, {len(split.test)} to test"
    )
    say(format_ledger(ledger(classifier.model)))
    run = new_run_folder(run, model, data, config.seed)
    write_messages(run / "test.csv", split.test)  # first: an interrupted run can be scored too
    settings = {"model": str(model), "data": str(data), "balance": balance, "device": str(device)}
    settings |= {"dtype": str(dtype).removeprefix("torch.")}
    settings |= {"text_column": text_column, "label_column": label_column}
    _write_config(run, settings | {"train": asdict(config)}, split, classifier)
    store = FeatureStore(say=say) if cache else None
    history = finetune(classifier, split, config, run, store=store, quiet=quiet, say=say)
    _plot(history, run)
    return run, classifier, _finish(classifier, split, run, store, say)


def train_as_the_lecture(
    model: str | Path = "124M",
    data: str | Path = "sms",
    run: Path | None = None,
    *,
    seed: int = 123,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache: bool = True,
    say: Callable[[str], None] = print,
) -> tuple[Path, Classifier, Evaluation]:
    """The lecture's recipe; see `lecture.py` for what it does and why it is not the default."""
    path = sms_collection() if data == "sms" else Path(data)
    messages = load_messages(data)  # checks the file, whichever way it is then read
    split = lecture_split(path if path.name == "SMSSpamCollection" else messages, seed)
    gpt2, folder = load_gpt2(model).to(device), model_folder(model)
    run = new_run_folder(run, model, data, seed)
    write_messages(run / "test.csv", split.test)
    store = FeatureStore(say=say) if cache else None
    classifier, trace = lecture(
        gpt2,
        Tokenizer(folder),
        split,
        base=model_name(model),
        seed=seed,
        dtype=dtype,
        store=store,
        say=say,
    )
    settings = {"recipe": "lecture", "model": str(model), "data": str(data), "seed": seed}
    _write_config(run, settings, split, classifier)
    write_json(run / "trace.json", asdict(trace))
    classifier.save(run / "best.safetensors")
    steps, *losses = zip(*trace.losses, strict=True)
    train, val = zip(*trace.accuracies, strict=True)
    plot_training(steps, (losses[0], losses[1]), (train, val), run / "curves.png", step_name="step")
    return run, classifier, _finish(classifier, split, run, store, say)


def evaluate_classifier(
    classifier: Classifier,
    messages: list[Message],
    *,
    store: FeatureStore | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Score a classifier on labelled messages."""
    labelled = to_labelled(classifier, messages, store=store, say=say)
    predicted = classifier.all_logits(labelled.texts).argmax(dim=1)
    return evaluate_predictions(
        labelled.labels.numpy(), predicted.numpy(), classifier.description.labels
    )


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


def _write_config(run: Path, settings: dict, split: Split, classifier: Classifier) -> None:
    messages = {part: len(messages) for part, messages in vars(split).items()}
    write_json(
        run / "config.json",
        settings
        | {"classifier": asdict(classifier.description), "messages": messages}
        | {"torch": torch.__version__, "gpt2_from_scratch": version("gpt2-from-scratch")},
    )


def _finish(
    classifier: Classifier,
    split: Split,
    run: Path,
    store: FeatureStore | None,
    say: Callable[[str], None],
) -> Evaluation:
    evaluation = evaluate_classifier(classifier, split.test, store=store, say=say)
    write_json(run / "evaluation.json", {"accuracy": evaluation.accuracy} | asdict(evaluation))
    return evaluation


def _plot(history: list[Epoch], run: Path) -> None:
    plot_training(
        [e.epoch for e in history],
        ([e.train_loss for e in history], [e.val_loss for e in history]),
        ([e.train_accuracy for e in history], [e.val_accuracy for e in history]),
        run / "curves.png",
    )
