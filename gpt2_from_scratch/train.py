"""Finetuning: show messages, compare, adjust what trains, keep the best."""

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from gpt2_from_scratch.classifier import Classifier
from gpt2_from_scratch.config import TrainConfig
from gpt2_from_scratch.epochs import Epoch
from gpt2_from_scratch.errors import DataError, Interrupted, UsageError
from gpt2_from_scratch.feature_store import FeatureStore
from gpt2_from_scratch.finetuning import set_trainable, trainable_names
from gpt2_from_scratch.interruption import Stop, stop_after_step
from gpt2_from_scratch.labelled import Labelled, to_labelled
from gpt2_from_scratch.split import Split
from gpt2_from_scratch.training_run import TrainingRun


def finetune(
    classifier: Classifier,
    split: Split,
    config: TrainConfig,
    run: Path,
    *,
    resume: bool = False,
    store: FeatureStore | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> list[Epoch]:
    """Train `classifier` in place and leave in it the weights of the best epoch.

    Writes to the folder `run`: `metrics.jsonl` (a line an epoch), `best.safetensors`,
    `last.safetensors` at the end, and every minute the state of the run. With `resume` it goes on
    from the newest state, and ends with the same bits as if it had not stopped: on the same
    processor, torch and number of threads. Frozen blocks are computed once a text, and kept in
    `store` for the next run if one is given.

    The first Ctrl-C or SIGTERM ends the step, saves the state and raises Interrupted. Raises
    GPT2Error when the loss is no longer a number (`nan_report.json` says where), DataError when no
    message of a part has a target for one of the heads, UsageError when nothing trains and when
    resumed with other settings, ResourceError when not even one message at a time finds room.
    """
    classifier.unmerge()
    freeze(classifier, config)
    train, val = (
        to_labelled(classifier, part, store=store, quiet=quiet, say=say)
        for part in (split.train, split.val)
    )
    _refuse_nothing_to_learn(classifier, {"training": train, "validation": val})
    training = TrainingRun(classifier, split, train, config, run, say)
    if resume:
        training.restore()
    with (
        stop_after_step(say) as stop,
        tqdm(
            total=training.steps,
            initial=training.at.step,
            disable=True if quiet else None,
            unit="batch",
        ) as bar,
    ):
        while not training.over():
            bar.set_description(f"epoch {training.at.epoch}/{config.epochs}")
            training.begin_epoch()
            for batch in training.batches_left():
                training.step(batch)
                training.show(bar)
                training.save_now_and_then()
                _end_if_asked(training, stop)
            training.end_epoch(val)
            _end_if_asked(training, stop)
    training.finish()
    return training.at.history


def freeze(classifier: Classifier, config: TrainConfig) -> None:
    """Leave trainable in a classifier what `config` and its heads say, and nothing else."""
    set_trainable(
        classifier.model,
        config.n_last_blocks,
        config.final_norm,
        pattern=config.trainable,
        heads=classifier.description.heads,
    )


def _refuse_nothing_to_learn(classifier: Classifier, parts: dict[str, Labelled]) -> None:
    heads = [head for head in classifier.description.heads if head.task != "features"]
    if not heads or not trainable_names(classifier.model):
        what = "every parameter is frozen" if heads else "heads for features have nothing to learn"
        raise UsageError(f"there is nothing to train: {what}")
    for part, labelled in parts.items():
        for head in heads:
            if not labelled.targets[head.name].counts.any():
                raise DataError(
                    f"no message of the {part} part has a target for the head {head.name!r}"
                )


def _end_if_asked(training: TrainingRun, stop: Stop) -> None:
    if stop:
        training.save()
        done = f"stopped after step {training.at.step} of {training.steps}; all is saved"
        raise Interrupted(done, stop.signal)
