"""The training loop: train on batches, validate after each epoch, keep the best weights.

This file contains, from top to bottom: an epoch and the learning rate schedule; messages prepared
for training, and a classifier's loss and scores on them; `finetune`, the loop; a run in progress,
its steps and its state on disk. B texts in a batch, N texts in all.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2_from_scratch.classifier.classifier import Classifier, in_mode
from gpt2_from_scratch.classifier.freezing import (
    blocks_training,
    parameter_groups,
    set_trainable,
    trainable_names,
)
from gpt2_from_scratch.classifier.settings import HeadConfig, Schedule, TrainConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.task import IGNORED, Batch, Targets, label_for
from gpt2_from_scratch.data.messages import Message, checked_messages, with_other_endings
from gpt2_from_scratch.data.split import Split, messages_sha256
from gpt2_from_scratch.errors import (
    CheckpointError,
    DataError,
    GPT2Error,
    Interrupted,
    ResourceError,
    UsageError,
    is_out_of_memory,
)
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.speed.devices import environment
from gpt2_from_scratch.speed.feature_cache import Texts
from gpt2_from_scratch.storage.curves import TENSORBOARD, Curves, refuse_missing_tensorboard
from gpt2_from_scratch.storage.files import make_folder, write_json, write_text
from gpt2_from_scratch.storage.interruption import Stop, stop_after_step
from gpt2_from_scratch.storage.paths import expanded
from gpt2_from_scratch.storage.processes import (
    first_before_others,
    gathered,
    in_any,
    is_first,
    part_of,
    rank,
    sum_gradients,
    summed,
)
from gpt2_from_scratch.storage.settings import record_from_json
from gpt2_from_scratch.storage.states import (
    newest_state,
    optimizer_tensors,
    refuse_changes,
    restore_optimizers,
    restoring,
    save_state,
)
from gpt2_from_scratch.storage.tensors import tensors_sha256

log = logging.getLogger(__name__)

SAVE_EVERY = 60.0  # seconds between saved states, so a killed run loses no more than this
# seconds between files of the best epoch: to hash and write one takes longer than a short epoch
BEST_EVERY = 10.0
RENAMED = {"right": "correct", "asked": "decisions"}  # names in states of earlier versions


# --- an epoch, and the schedule ---


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch.

    The training loss is the mean over batches, in nats. The validation loss is the mean over
    decisions. With several heads, both are weighted sums. The training score is the proportion of
    correct decisions (`Task.correct_sum`).
    """

    epoch: int
    train_loss: float
    train_score: float
    val_loss: float
    val_score: float  # mean main score of the heads, used to compare epochs
    heads: dict[str, float] = field(default_factory=dict)  # main validation score of each head


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """Return the epoch with the highest validation score; on a tie the latest.

    The latest epoch has the lowest learning rate. The lowest validation loss would be a worse
    criterion, because overconfidence raises the loss while answers still improve. On six splits of
    the SMS collection, the epoch with the lowest loss has a test accuracy of 96.3%, the one with
    the highest score 96.8%, and the last epoch 96.9%. The last two do not differ significantly.
    """
    return max(history, key=lambda epoch: (epoch.val_score, epoch.epoch))


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch uses `n` messages: (n,), the same on every machine."""
    return np.random.RandomState([seed, epoch]).permutation(n)


def rate_factor(step: int, total: int, warmup: float, schedule: Schedule = "cosine") -> float:
    """Return the factor of the peak learning rate: a linear rise, then half a cosine down to 0.

    `step` is counted from 0, and `total` is the number of steps. The rate rises during the first
    `warmup` * `total` steps. With the schedule "constant" it then stays at its peak.
    """
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def format_epoch(epoch: Epoch, epochs: int, measure: str = "accuracy") -> str:
    """Format one epoch of `epochs` as a line; `measure` is the name of the validation score."""
    trained = {"accuracy": "accuracy", "mean R2": "R2"}.get(measure, "correct")
    heads = ", ".join(f"{name} {100 * score:.2f}%" for name, score in epoch.heads.items())
    return (
        f"epoch {epoch.epoch}/{epochs}: train loss {epoch.train_loss:.3f}, "
        f"{trained} {100 * epoch.train_score:.2f}%; "
        f"val loss {epoch.val_loss:.3f}, {measure} {100 * epoch.val_score:.2f}%"
        + (f" ({heads})" if len(epoch.heads) > 1 else "")
    )


# --- messages prepared for training ---


@dataclass(frozen=True)
class Labelled:
    """Messages as inputs of the trainable part, with the targets of each head."""

    texts: Texts
    messages: list[Message]
    targets: dict[str, Targets]  # by the heads' names

    @property
    def labels(self) -> Tensor:
        """The class number of each message, if the first head chooses a class: (N,) int64."""
        values = next(iter(self.targets.values())).values
        assert isinstance(values, Tensor)
        return values


def to_labelled(classifier: Classifier, messages: Sequence[Message]) -> Labelled:
    """Encode messages, run the frozen blocks on them, and make the targets of each head.

    Raises DataError for a label that the classifier does not know, and for items that are not
    Messages.
    """
    messages = checked_messages(messages)
    encoded, cut = classifier.encode([message.text for message in messages])
    targets = {
        head.name: TASKS[head.task].targets(head, messages, encoded, classifier.tokenizer)
        for head in classifier.description.heads
    }
    if any(cut):
        limit = classifier.description.max_tokens
        log.warning(
            f"{sum(cut)} of {len(cut)} messages are longer than {limit} tokens and were cut"
        )
    return Labelled(classifier.texts(encoded), messages, targets)


def loss_and_scores(classifier: Classifier, labelled: Labelled) -> tuple[float, dict[str, Any]]:
    """Compute the loss over all texts and each head's scores.

    Returns the loss and {head's name: scores}. The loss is the weighted sum of the heads' mean
    losses, in nats. Several processes share the texts, and all get the same result.
    """
    heads = heads_with_loss(classifier)
    messages, encoded = labelled.messages, labelled.texts.encoded
    labels = {head.name: [label_for(head, message) for message in messages] for head in heads}
    losses = {head.name: 0.0 for head in heads}
    answers: dict[str, dict[int, Any]] = {head.name: {} for head in heads}
    for batch, outputs, lengths in classifier.outputs(labelled.texts, shared=True):
        texts, ids = [messages[n].text for n in batch], [encoded[n] for n in batch]
        for head in heads:
            task, found = TASKS[head.task], outputs[head.name]
            targets = labelled.targets[head.name].batch(batch).to(lengths.device)
            losses[head.name] += float(task.loss_sum(head, found, targets, lengths))
            words = task.words([labels[head.name][n] for n in batch])
            read = Batch(texts, ids, classifier.tokenizer, words)
            answers[head.name] |= zip(batch, task.answers(head, found, read), strict=True)
    parts = gathered((losses, answers))
    losses = {name: sum(part[name] for part, _ in parts) for name in losses}
    answers = {name: {n: a for _, part in parts for n, a in part[name].items()} for name in answers}
    loss, scores, texts = 0.0, dict[str, Any](), [message.text for message in messages]
    for head in heads:
        weight = max(float(labelled.targets[head.name].weights.sum()), 1e-9)
        loss += head.loss_weight * losses[head.name] / weight
        in_order = [answers[head.name][n] for n in range(len(messages))]
        scores[head.name] = TASKS[head.task].scores(head, labels[head.name], in_order, texts)
    return loss, scores


def heads_with_loss(classifier: Classifier) -> list[HeadConfig]:
    """Return the heads that can learn: all but those for features."""
    return [head for head in classifier.description.heads if TASKS[head.task].has_loss]


# --- the loop ---


class OutOfTime(GPT2Error):
    """A training was not finished by its deadline."""


def finetune(
    classifier: Classifier,
    split: Split,
    config: TrainConfig,
    run: str | Path,
    *,
    resume: bool = False,
    deadline: float = math.inf,
    tensorboard: bool = False,
) -> list[Epoch]:
    """Train a classifier in place, and leave it with the weights of the best epoch.

    The frozen blocks are computed once per text. The first Ctrl-C or SIGTERM lets the current step
    finish, saves the state and raises Interrupted. Several processes (see `storage.processes`) share
    the frozen blocks and each batch; all end with the same weights, and the first writes the files.

    Args:
        classifier: The classifier to train.
        split: The training and validation messages; the test messages are not used.
        config: The settings of training. `adapt` has no effect here; call the function `adapt`
            before.
        run: The folder for `metrics.jsonl` (one line per epoch), `best.safetensors`, the state of
            the run (saved every minute) and, at the end, `last.safetensors`.
        resume: Continue from the newest state. On the same processor, torch version and number of
            threads the result is bit-identical to that of an uninterrupted run.
        deadline: The value of `time.monotonic` after which the training is given up.
        tensorboard: Write the curves to the folder `tensorboard` in `run`.

    Returns:
        The results of all epochs.

    Raises:
        GPT2Error: The loss becomes NaN or infinite; `nan_report.json` has the details.
        DataError: A part has no message with a target for one of the heads.
        UsageError: Nothing is trainable, the run was started with other settings, or the package
            tensorboard is needed and missing.
        ResourceError: The folder `run` cannot be written to, or there is not enough memory for even
            one message at a time.
        OutOfTime: The deadline has passed.
    """
    run = expanded(run)
    if tensorboard:
        refuse_missing_tensorboard()
    make_folder(run)
    classifier.unmerge()
    freeze(classifier, config)
    messages = checked_messages(split.train)
    if config.vary_endings:
        _refuse_labels_of_words(classifier)
        messages = with_other_endings(messages)
    classifier.refuse_ngrams("further training")
    train, val = to_labelled(classifier, messages), to_labelled(classifier, split.val)
    _refuse_nothing_to_learn(classifier, {"training": train, "validation": val})
    training = TrainingRun(classifier, split, train, config, run)
    epochs = training.config.epochs
    log.info(f"up to {epochs} epochs of {training.steps // epochs} steps")
    if resume:
        with first_before_others():
            training.restore()
    curves_folder = run / TENSORBOARD if tensorboard and is_first() else None
    with (
        stop_after_step() as stop,
        Curves(curves_folder, training.first_new_point) as curves,
        progress_bar(total=training.steps, initial=training.at.step, unit="batch") as bar,
    ):
        training.curves = curves
        while not training.over():
            bar.set_description(f"epoch {training.at.epoch}/{epochs}")
            training.freeze_as_in(training.at.epoch)
            for batch in training.batches_left():
                training.step(batch)
                training.show(bar)
                training.save_now_and_then()
                training.stop_if_asked(stop)
                if time.monotonic() > deadline:
                    raise OutOfTime(f"not finished after {training.at.step} steps")
            training.end_epoch(val)
            training.stop_if_asked(stop)
    training.finish()
    return training.at.history


def freeze(classifier: Classifier, config: TrainConfig) -> None:
    """Make trainable what `config` and the heads specify, and freeze everything else.

    Raises UsageError if the classifier is streamed and no block stays frozen.
    """
    set_trainable(
        classifier.model,
        config.n_last_blocks,
        config.final_norm,
        pattern=config.trainable,
        heads=classifier.description.heads,
    )
    classifier.hold_trained()


def _refuse_labels_of_words(classifier: Classifier) -> None:
    for head in classifier.description.heads:
        if not head.reads_one_state:
            raise UsageError(
                f"vary_endings changes texts, so the labels of words that the head {head.name!r} "
                "learns would not fit them"
            )


def _refuse_nothing_to_learn(classifier: Classifier, parts: dict[str, Labelled]) -> None:
    heads = heads_with_loss(classifier)
    if not heads or not trainable_names(classifier.model):
        what = "every parameter is frozen" if heads else "heads for features have nothing to learn"
        raise UsageError(f"there is nothing to train: {what}")
    for part, labelled in parts.items():
        for head in heads:
            if not labelled.targets[head.name].counts.any():
                raise DataError(
                    f"no message of the {part} set has a target for the head {head.name!r}"
                )


# --- a run in progress ---


@dataclass
class Progress:
    """The progress of a run.

    It does not contain the order of messages, because that follows from the seed and the epoch.
    """

    micro_batch: int  # messages per forward pass
    step: int = 0  # optimizer steps done
    epoch: int = 1  # the current epoch
    seen: int = 0  # messages used in this epoch
    total_loss: float = 0.0  # sum of the losses of these messages, in nats
    correct: dict[str, float] = field(default_factory=dict)  # correct decisions of each head
    decisions: dict[str, float] = field(default_factory=dict)  # all decisions of each head
    scales: dict[str, float] = field(default_factory=dict)  # running means of the heads' losses
    history: list[Epoch] = field(default_factory=list)  # results of earlier epochs

    @property
    def score(self) -> float:
        """The proportion of correct decisions in this epoch so far, averaged over heads."""
        proportions = [self.correct[name] / max(n, 1e-9) for name, n in self.decisions.items()]
        return sum(proportions) / max(1, len(proportions))


class TrainingRun:
    """A training run: its trainable parameters, its progress, and its state on disk."""

    def __init__(
        self,
        classifier: Classifier,
        split: Split,
        train: Labelled,
        config: TrainConfig,
        folder: str | Path,
    ):
        folder = expanded(folder)
        config = config.for_texts(len(split.train))
        self.classifier, self.train, self.config = classifier, train, config
        self.folder = folder
        self.at = Progress(config.micro_batch or config.batch_size)
        self.steps = config.epochs * math.ceil(len(train.messages) / config.batch_size)
        self.heads = heads_with_loss(classifier)
        self.trainable = {
            n: p for n, p in parameters_by_name(classifier.model).items() if p.requires_grad
        }
        self.optimizer = torch.optim.AdamW(
            parameter_groups(classifier.model, config, classifier.description.heads), fused=True
        )
        for group in self.optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        description = classifier.description
        dropout = description.lora.dropout if description.lora else 0.0
        self.has_dropout = any(rate > 0 for rate in (dropout, *(h.dropout for h in self.heads)))
        self.best: dict[str, Tensor] = {}  # the weights of the best epoch
        self.best_saved = -math.inf  # when best.safetensors was last written
        self.saved = time.monotonic()
        self.curves = Curves()
        settings = asdict(config) | description.as_dict()
        settings |= {"dtype": str(classifier.dtype), "messages_sha256": messages_sha256(split)}
        self.settings = json.loads(json.dumps(settings))  # with lists instead of tuples, as on disk

    # --- a step ---

    def step(self, batch: list[int], factor: float | None = None) -> float:
        """Take one optimizer step on a batch of messages; return its loss in nats.

        The learning rate is `factor` times its peak; by default the schedule gives the factor. If
        memory runs out, this and later batches are processed in smaller parts, and the gradient
        stays the same except for rounding.
        """
        while True:
            try:
                with in_mode(self.classifier.model, training=True):
                    found = self._gradients(batch)
                break
            except (RuntimeError, MemoryError) as error:
                self._halve_micro_batch(error)
        sum_gradients(self.trainable.values())
        losses = self._count(batch, found)
        if factor is None:
            config = self.config
            factor = rate_factor(self.at.step, self.steps, config.warmup, config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.trainable.values(), self.config.clip)
        self.optimizer.step()
        loss = sum(
            head.loss_weight * losses[head.name] for head in self.heads if head.name in losses
        )
        self.at.step += 1
        self.at.seen += len(batch)
        self.at.total_loss += loss * len(batch)
        now = {"loss/step": loss, "learning_rate": factor * self.config.lr}
        self.curves.add(self.at.step, now)
        return loss

    def _gradients(self, batch: list[int]) -> dict[str, tuple[float, float]]:
        """Put the gradient of a batch's loss into the parameters.

        Of several processes, each computes the gradient of its part of the batch's messages.

        Returns {head's name: (mean loss, correct decisions)}, or the process's share of them. A head
        without targets in the batch is left out.
        """
        self.optimizer.zero_grad()
        scales = self._scales(batch)
        found = {
            head.name: (0.0, 0.0)
            for head in self.heads
            if float(self.train.targets[head.name].weights[batch].sum()) != 0
        }
        with self._seeded_dropout(rank()):
            for part in self._parts([*part_of(batch)]):
                total: Tensor | float = 0.0
                for head, loss, correct, is_separate in self._losses(batch, part):
                    weighted = loss * (head.loss_weight / max(scales[head.name], 1e-8))
                    if not is_separate:
                        total = total + weighted
                    elif weighted.requires_grad:  # at once, so that its logits can be freed
                        weighted.backward()
                    loss_before, correct_before = found[head.name]
                    found[head.name] = loss_before + loss.item(), correct_before + correct
                if isinstance(total, Tensor) and total.requires_grad:
                    total.backward()
        return found

    def _count(self, batch: list[int], found: dict[str, tuple[float, float]]) -> dict[str, float]:
        """Add a batch's decisions to the progress; return each head's mean loss.

        `found` is what `_gradients` returned in this process.
        """
        losses = dict[str, float]()
        together = summed(torch.tensor([*found.values()], dtype=torch.float64)).tolist()
        for name, (loss, correct) in zip(found, together, strict=True):
            losses[name] = loss
            decisions = float(self.train.targets[name].counts[batch].sum())
            self.at.decisions[name] = self.at.decisions.get(name, 0.0) + decisions
            self.at.correct[name] = self.at.correct.get(name, 0.0) + correct
            if self.config.balance_losses:
                self.at.scales[name] = 0.95 * self.at.scales[name] + 0.05 * loss
        return losses

    def _losses(
        self, batch: list[int], part: list[int]
    ) -> Iterator[tuple[HeadConfig, Tensor, float, bool]]:
        """Yield parts of the batch's mean loss: (head, loss, correct decisions, is separate).

        The parts are those of the messages in `part`, per head or smaller (see `Outputs.pieces`).
        A head without targets in the batch is left out.
        """
        outputs, lengths = self.classifier.batch_outputs(self.train.texts, part)
        for head in self.heads:
            task, targets = TASKS[head.task], self.train.targets[head.name]
            weight = float(targets.weights[batch].sum())
            if weight == 0:
                continue
            wanted = targets.batch(part).to(lengths.device)
            is_separate = outputs.is_separate(head.name)
            for where, found in outputs.pieces(head.name, wanted != IGNORED):
                some = wanted[where]
                loss = task.loss_sum(head, found, some, lengths) / weight
                if not math.isfinite(loss.item()):
                    raise self._diverged("loss", loss.item(), part)
                correct = task.correct_sum(head, found.detach(), some, lengths)
                yield head, loss, correct, is_separate

    def _parts(self, messages: list[int]) -> Iterator[list[int]]:
        for first in range(0, len(messages), self.at.micro_batch):
            yield messages[first:][: self.at.micro_batch]

    def _halve_micro_batch(self, error: Exception) -> None:
        """Process fewer messages at once if memory ran out; re-raise any other error."""
        if not is_out_of_memory(error):
            raise error
        if self.at.micro_batch == 1:
            raise ResourceError(
                "not enough memory to train on one message at a time; try a lower "
                "--max-tokens, fewer --n-last-blocks or a smaller model"
            ) from error
        self.at.micro_batch = math.ceil(self.at.micro_batch / 2)
        log.warning(
            f"not enough memory: continuing with {self.at.micro_batch} messages per forward pass"
        )

    @torch.no_grad()
    def _scales(self, batch: list[int]) -> dict[str, float]:
        """Return the divisor of each head's loss: its running mean with `balance_losses`, else 1.

        The mean starts with the first loss, so that the first gradient is scaled too. AdamW would
        remember an unscaled gradient for a thousand steps.
        """
        if not self.config.balance_losses:
            return {head.name: 1.0 for head in self.heads}
        weights = {head.name: self.train.targets[head.name].weights[batch] for head in self.heads}
        if any(n not in self.at.scales and float(w.sum()) != 0 for n, w in weights.items()):
            losses = dict[str, float]()
            with self._seeded_dropout():
                for part in self._parts(batch):
                    for head, loss, *_ in self._losses(batch, part):
                        losses[head.name] = losses.get(head.name, 0.0) + loss.item()
            self.at.scales = losses | self.at.scales
        return self.at.scales

    @contextmanager
    def _seeded_dropout(self, process: int = 0) -> Iterator[None]:
        """Draw dropout from the seed, the step and the process, so a resumed run draws the same."""
        with torch.random.fork_rng(enabled=self.has_dropout):
            if self.has_dropout:
                seed = self.config.seed * 1_000_003 + self.at.step
                torch.manual_seed(seed + process * 1_000_000_007)
            yield

    def _diverged(self, what: str, value: float, batch: list[int]) -> GPT2Error:
        """Write `nan_report.json`; return the error to raise."""
        at, report = self.at, self.folder / "nan_report.json"
        found = {"what": what, "value": str(value), "epoch": at.epoch, "step": at.step + 1}
        texts = [self.classifier.tokenizer.decode(self.train.texts.encoded[n]) for n in batch]
        write_json(report, found | {"settings": self.settings, "texts": texts})
        if self.best:
            self._restore_best()
        is_saved = at.history and is_first()
        kept = "; best.safetensors contains the best epoch so far" if is_saved else ""
        return GPT2Error(
            f"the {what} became {value} in epoch {at.epoch}, step {at.step + 1} ({report}){kept}; "
            f"try a lower learning rate than {self.config.lr}"
        )

    # --- an epoch ---

    def over(self) -> bool:
        """Whether all epochs are done or the validation score has stopped rising."""
        history = self.at.history
        if not history:
            return False
        # the epoch after which all blocks are unfrozen
        joined = self.config.all_unfrozen_in - 1
        waited = len(history) - max(best_epoch(history).epoch, joined)
        return len(history) == self.config.epochs or waited >= self.config.patience

    def freeze_as_in(self, epoch: int) -> None:
        """Freeze the blocks that will be unfrozen in a later epoch."""
        if self.config.unfreeze_every:
            set_trainable(
                self.classifier.model,
                blocks_training(self.config, epoch),
                self.config.final_norm,
                heads=self.classifier.description.heads,
            )

    def batches_left(self) -> Iterator[list[int]]:
        """Yield the message numbers of each batch that remains in this epoch."""
        order = epoch_order(len(self.train.messages), self.config.seed, self.at.epoch)
        while self.at.seen < len(order):
            yield order[self.at.seen :][: self.config.batch_size].tolist()

    def show(self, bar: Any) -> None:
        """Move the progress bar by one step."""
        rate = (bar.format_dict["rate"] or 0) * self.config.batch_size
        bar.set_postfix_str(
            f"loss {self.at.total_loss / self.at.seen:.3f}, correct {100 * self.at.score:.1f}%, "
            f"{rate:.0f} messages/s",
            refresh=False,
        )
        bar.update()

    def end_epoch(self, val: Labelled) -> None:
        """Validate, and save the weights if they are the best so far."""
        loss, scores = loss_and_scores(self.classifier, val)
        mains = {name: score.main for name, score in scores.items()}
        train_loss = self.at.total_loss / len(self.train.messages)
        mean = sum(mains.values()) / len(mains)
        epoch = Epoch(self.at.epoch, train_loss, self.at.score, loss, mean, mains)
        if not math.isfinite(loss):
            raise self._diverged("validation loss", loss, [])
        at = self.at
        points = {"loss/train": epoch.train_loss, "loss/val": loss}
        self.curves.add(at.step, points | {"score/train": epoch.train_score, "score/val": mean})
        history = [*at.history, epoch]
        self.at = Progress(at.micro_batch, at.step, at.epoch + 1, scales=at.scales, history=history)
        measures = {score.measure for score in scores.values()}
        measure = measures.pop() if len(measures) == 1 else "mean score"
        log.info(format_epoch(epoch, self.config.epochs, measure))
        if best_epoch(history) is epoch:
            self.best = {name: p.detach().clone() for name, p in self.trainable.items()}
            if time.monotonic() - self.best_saved >= BEST_EVERY:
                self._save_weights("best.safetensors")
                self.best_saved = time.monotonic()
        self._write_metrics()
        self.save_now_and_then()

    def finish(self) -> None:
        """Save the last weights and restore the best ones."""
        *earlier, last = self.at.history
        if last.epoch < self.config.epochs:
            log.info(f"stopped early: no better validation score for {self.config.patience} epochs")
        elif all(epoch.val_score < last.val_score for epoch in earlier) and earlier:
            log.info(
                f"the last epoch was the best: train longer, for example {2 * last.epoch} epochs"
            )
        self._refuse_different_weights()
        self._save_weights("last.safetensors")
        self._restore_best()

    def _refuse_different_weights(self) -> None:
        """Raise GPT2Error if another process ended with other weights.

        This cannot happen unless the machines compute sums differently or memory is faulty.
        """
        if len({*gathered(tensors_sha256(self.trainable))}) > 1:
            raise GPT2Error(
                "the processes ended with different weights. Use machines of the same kind and the "
                "same version of torch."
            )

    def _save_weights(self, name: str) -> None:
        if is_first():
            self.classifier.save(self.folder / name)

    def _write_metrics(self) -> None:
        if not is_first():
            return
        lines = [json.dumps(asdict(epoch)) + "\n" for epoch in self.at.history]
        write_text(self.folder / "metrics.jsonl", "".join(lines))

    def _restore_best(self) -> None:
        """Put the weights of the best epoch into the model, and write them to their file."""
        now = len(self.at.history)
        self.freeze_as_in(best_epoch(self.at.history).epoch)
        self._put(self.best)
        self._save_weights("best.safetensors")
        self.freeze_as_in(now)  # the blocks that were frozen in the last epoch

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.trainable[name].copy_(value)

    # --- the state on disk ---

    def save_now_and_then(self) -> None:
        """Save the state of the run if the last saved state is old enough."""
        if time.monotonic() - self.saved >= SAVE_EVERY:
            self.save()

    def stop_if_asked(self, stop: Stop) -> None:
        """Save the state and raise Interrupted if a signal asked the run to stop."""
        if in_any(bool(stop)):
            self.save()
            if self.best:
                self._restore_best()
            done = f"stopped after step {self.at.step} of {self.steps}; the state is saved"
            raise Interrupted(done, stop.signal or SIGTERM)

    @property
    def first_new_point(self) -> int:
        """The step from which this process adds points to the curves.

        If the state was saved after the last step of an epoch, its validation is done again.
        """
        is_unfinished = self.at.seen == len(self.train.messages)
        return self.at.step + (0 if is_unfinished else 1)

    def save(self) -> None:
        """Save the state of the run. Raises GPT2Error if the weights are NaN or infinite."""
        if not is_first():
            return
        self.curves.flush()  # a run that is resumed from this state does not write them again
        tensors: dict[str, Tensor] = {f"model/{name}": p for name, p in self.trainable.items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        tensors |= optimizer_tensors([self.optimizer])
        record = {
            "settings": self.settings,
            "progress": asdict(self.at),
            "environment": environment(self.classifier.device),
        }
        try:
            save_state(self.folder, self.at.step, tensors, record)
        except CheckpointError as error:
            raise self._diverged("weights", math.nan, []) from error
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Restore the newest undamaged state, if there is one.

        Raises UsageError if the state was saved with other settings, and CheckpointError if it does
        not fit this run.
        """
        found = newest_state(self.folder)
        if found is None:
            log.info("no saved state found; starting at the first step")
            return
        with restoring(self.folder):
            self._restore(*found)

    def _restore(self, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        # settings that are younger than the state had no effect on it
        saved = asdict(TrainConfig()) | record["settings"]
        saved["heads"] = [{"form": HeadConfig.form} | head for head in saved["heads"]]
        refuse_changes(saved, self.settings, self.folder)
        now = environment(self.classifier.device)
        if record["environment"] != now:
            log.warning(f"not bit-identical: started with {record['environment']}, now {now}")
        progress = {RENAMED.get(key, key): value for key, value in record["progress"].items()}
        history = [record_from_json(Epoch, epoch) for epoch in progress.pop("history")]
        self.at = at = record_from_json(Progress, progress | {"history": history})
        if min(at.micro_batch, at.epoch, at.step + 1, at.seen + 1) < 1:
            raise ValueError(f"its progress {record['progress']} has numbers that are too small")
        if at.correct.keys() != at.decisions.keys():
            raise ValueError(f"its heads are {[*at.correct]} and {[*at.decisions]}")
        self.best = {n: tensors[f"best/{n}"] for n in self.trainable if f"best/{n}" in tensors}
        if self.best:  # best.safetensors may be newer than this state, or older
            self._restore_best()
        self._write_metrics()
        self._put({name: tensors[f"model/{name}"] for name in self.trainable})
        restore_optimizers([self.optimizer], tensors)
