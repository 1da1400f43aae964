"""Passes over the messages: in which order they are shown, at which rate, what came of each."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import (
    blocks_training,
    parameter_groups,
    set_trainable,
    trainable_names,
)
from gpt2_from_scratch.classifier.settings import HeadConfig, TrainConfig
from gpt2_from_scratch.classifier.tasks.losses import loss_sum, right_sum
from gpt2_from_scratch.classifier.tasks.predictions import answers
from gpt2_from_scratch.classifier.tasks.scores import (
    language_scores,
    multi_label_scores,
    regression_scores,
    span_scores,
    tag_scores,
)
from gpt2_from_scratch.classifier.tasks.targets import Targets, label_for, make_targets
from gpt2_from_scratch.data.messages import Message
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
from gpt2_from_scratch.evaluation.metrics import evaluate_predictions
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.speed.batching import by_length
from gpt2_from_scratch.speed.devices import environment
from gpt2_from_scratch.speed.feature_cache import Texts
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.files import write_json, write_text
from gpt2_from_scratch.storage.interruption import Stop, stop_after_step
from gpt2_from_scratch.storage.states import (
    newest_state,
    optimizer_tensors,
    refuse_changes,
    restore_optimizers,
    save_state,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. Losses are in nats: of training the mean of the batches', of validation
    the mean over decisions; of several heads the weighted sum. Scores are shares: of right answers, where a class is chosen (losses.right_sum for
    the other tasks); of several heads, the mean.
    """

    epoch: int
    train_loss: float
    train_score: float
    val_loss: float
    val_score: float  # what epochs are chosen by: the main measure of `scores.py`
    heads: dict[str, float] = field(default_factory=dict)  # the main measure of each on validation


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The epoch of the highest validation score; of equals the latest, when the rate was lowest.

    Not that of the lowest validation loss: the loss rises with overconfidence while answers still
    get better (on six splits of the SMS collection 96.3 % of the test messages are right by it, 96.8 %
    by this, 96.9 % after the last epoch).
    """
    return max(history, key=lambda epoch: (epoch.val_score, epoch.epoch))


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """In which order epoch `epoch` shows `n` messages: (n,), the same on every machine."""
    return np.random.RandomState([seed, epoch]).permutation(n)


def rate_factor(step: int, total: int, warmup: float) -> float:
    """The learning rate's share of its highest: a straight rise, then half a cosine down to 0."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def format_epoch(epoch: Epoch, measure: str = "accuracy") -> str:
    """One line for one epoch; `measure` is the name of the validation score."""
    share = {"accuracy": "accuracy", "mean R2": "R2"}.get(measure, "right")
    heads = ", ".join(f"{name} {100 * score:.2f}" for name, score in epoch.heads.items())
    return (
        f"epoch {epoch.epoch:>2}  train loss {epoch.train_loss:.3f}  {share} {100 * epoch.train_score:.2f} %"
        f"  |  val loss {epoch.val_loss:.3f}  {measure} {100 * epoch.val_score:.2f} %"
        + (f"  ({heads})" if len(epoch.heads) > 1 else "")
    )


# --- Messages as what trains takes them up, and how well a classifier answers them. N texts. ---


@dataclass(frozen=True)
class Labelled:
    """Messages as what trains takes them up, and what each head ought to answer."""

    texts: Texts
    messages: list[Message]
    targets: dict[str, Targets]  # by the heads' names

    @property
    def labels(self) -> Tensor:
        """The number of each message's class, where the first head chooses one: (N,) int64."""
        values = next(iter(self.targets.values())).values
        assert isinstance(values, Tensor)
        return values


def to_labelled(
    classifier: Classifier, messages: Sequence[Message], *, store: FeatureStore | None = None
) -> Labelled:
    """Encode messages for a classifier, run what is frozen of it, say how many had to be cut.

    Raises DataError for a label the classifier does not know.
    """
    encoded, cut = classifier.encode([message.text for message in messages])
    targets = {
        head.name: make_targets(head, messages, encoded, classifier.tokenizer)
        for head in classifier.description.heads
    }
    if any(cut):
        limit = classifier.description.max_tokens
        log.warning(
            f"{sum(cut)} of {len(cut)} messages are longer than {limit} tokens and were cut"
        )
    texts = classifier.texts(encoded, store=store)
    return Labelled(texts, [*messages], targets)


@torch.no_grad()
def loss_and_scores(classifier: Classifier, labelled: Labelled) -> tuple[float, dict[str, Any]]:
    """The weighted sum of the heads' mean losses, in nats, and the scores of each, over all texts."""
    classifier.model.eval()
    heads, messages = classifier.description.heads, labelled.messages
    encoded = labelled.texts.encoded
    losses = dict.fromkeys((head.name for head in heads), 0.0)
    found: dict[str, dict[int, Any]] = {head.name: {} for head in heads}
    for batch in by_length(encoded, 32):
        outputs, lengths = classifier.batch_outputs(labelled.texts, batch)
        some = [messages[n].text for n in batch], [encoded[n] for n in batch]
        for head in heads:
            targets = labelled.targets[head.name].batch(batch).to(lengths.device)
            if head.task != "features":
                losses[head.name] += float(loss_sum(head, outputs[head.name], targets, lengths))
            words = [label_for(head, messages[n]) or () for n in batch]
            tagged = words if head.task == "token-classification" else None
            told = answers(head, outputs[head.name], *some, classifier.tokenizer, tagged)
            found[head.name] |= zip(batch, told, strict=True)
    loss = sum(
        head.loss_weight
        * losses[head.name]
        / max(float(labelled.targets[head.name].weights.sum()), 1e-9)
        for head in heads
    )
    return loss, {
        head.name: _scores(head, messages, found[head.name])
        for head in heads
        if head.task != "features"
    }


def _scores(head: HeadConfig, messages: Sequence[Message], found: dict[int, Any]) -> Any:
    """The scores of one head over the messages that have a label for it."""
    if head.task == "language":
        every = found.values()
        sums = [
            sum(getattr(a, name) for a in every) for name in ("nats", "right", "tokens", "n_bytes")
        ]
        return language_scores(*sums)
    pairs = [(label_for(head, m), found[n], m) for n, m in enumerate(messages)]
    pairs = [pair for pair in pairs if pair[0] is not None]
    names = list(head.labels)
    if head.task == "classification":
        true, predicted = (
            np.array([names.index(label) for label in some], dtype=int)
            for some in ((label for label, _, _ in pairs), (a.label for _, a, _ in pairs))
        )
        return evaluate_predictions(true, predicted, names)
    if head.task == "multi-label":
        true, predicted = (
            np.array([[name in labels for name in names] for labels in some], dtype=bool)
            for some in ([label for label, _, _ in pairs], [a.labels for _, a, _ in pairs])
        )
        return multi_label_scores(true, predicted, names)
    if head.task == "regression":
        wanted = np.array([np.atleast_1d(label) for label, _, _ in pairs], dtype=float)
        values = np.array([[a.values[name] for name in names] for _, a, _ in pairs])
        return regression_scores(wanted, values, names)
    if head.task == "span":
        return span_scores(
            [m.text[s.start : s.end] for s, _, m in pairs], [a.text for _, a, _ in pairs]
        )
    return tag_scores(
        [[word.label for word in words] for words, _, _ in pairs],
        [[tag.label for tag in a.words] for _, a, _ in pairs],
        names,
    )


# --- A finetuning run under way: its steps, and its state on disk, from which it goes on. ---


SAVE_EVERY = 60.0  # seconds between states of a run on disk; a kill costs no more than that


@dataclass
class Progress:
    """How far a run is. The order of messages follows from seed and epoch, so nothing is missing."""

    micro_batch: int  # messages that go through the model at once
    step: int = 0  # optimizer steps done
    epoch: int = 1  # the one under way
    seen: int = 0  # messages of it that were shown
    total_loss: float = 0.0  # theirs, in nats
    right: dict[str, float] = field(default_factory=dict)  # decisions of each head that were right
    asked: dict[str, float] = field(default_factory=dict)  # and how many there were
    scales: dict[str, float] = field(default_factory=dict)  # running means of the heads' losses
    history: list[Epoch] = field(default_factory=list)  # of the epochs before

    @property
    def score(self) -> float:
        """The share of decisions that were right so far in this epoch, the mean over heads."""
        shares = [self.right[name] / max(asked, 1e-9) for name, asked in self.asked.items()]
        return sum(shares) / max(1, len(shares))


class TrainingRun:
    """A run under way: what trains, how far it is, and where it is kept."""

    def __init__(
        self,
        classifier: Classifier,
        split: Split,
        train: Labelled,
        config: TrainConfig,
        folder: Path,
    ):
        self.classifier, self.train, self.config = classifier, train, config
        self.folder = folder
        self.at = Progress(config.micro_batch or config.batch_size)
        self.steps = config.epochs * math.ceil(len(train.messages) / config.batch_size)
        self.heads = [h for h in classifier.description.heads if h.task != "features"]
        self.trainable = {n: p for n, p in classifier.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            parameter_groups(classifier.model, config, classifier.description.heads), fused=True
        )
        for group in self.optimizer.param_groups:
            group["highest_lr"] = group["lr"]
        description = classifier.description
        dropout = description.lora.dropout if description.lora else 0.0
        self.draws = any(rate > 0 for rate in (dropout, *(h.dropout for h in self.heads)))
        self.best: dict[str, Tensor] = {}  # the weights of the best epoch
        self.saved = time.monotonic()
        self.settings = asdict(config) | asdict(classifier.description)
        self.settings |= {"dtype": str(classifier.dtype), "messages_sha256": messages_sha256(split)}
        self.settings = json.loads(json.dumps(self.settings))  # tuples are lists on disk

    def over(self) -> bool:
        """Whether all epochs are done, or validation stopped rising."""
        history = self.at.history
        if not history:
            return False
        joined = self.config.n_last_blocks * self.config.unfreeze_every  # the last block to train
        waited = len(history) - max(best_epoch(history).epoch, joined)
        return len(history) == self.config.epochs or waited >= self.config.patience

    def batches_left(self) -> Iterator[list[int]]:
        """The numbers of the messages of each batch of this epoch that was not shown yet."""
        order = epoch_order(len(self.train.messages), self.config.seed, self.at.epoch)
        while self.at.seen < len(order):
            yield order[self.at.seen :][: self.config.batch_size].tolist()

    def begin_epoch(self) -> None:
        """Freeze again what joins in a later epoch."""
        self._freeze_as_in(self.at.epoch)

    def _freeze_as_in(self, epoch: int) -> None:
        config = self.config
        if config.unfreeze_every:
            set_trainable(
                self.classifier.model,
                blocks_training(config, epoch),
                config.final_norm,
                heads=self.classifier.description.heads,
            )

    def step(self, batch: list[int], factor: float | None = None) -> float:
        """Show a batch and adjust what trains, at `factor` of the highest rate (none: the
        schedule's); the batch's loss.
        """
        loss, right = self._gradients(batch)
        if factor is None:
            factor = rate_factor(self.at.step, self.steps, self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest_lr"] * factor
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.trainable.values(), self.config.clip)
        self.optimizer.step()
        self.at.step += 1
        self.at.seen += len(batch)
        self.at.total_loss += loss * len(batch)
        for name, targets in self.train.targets.items():
            if name in right:
                asked = float(targets.counts[batch].sum())
                self.at.asked[name] = self.at.asked.get(name, 0.0) + asked
                self.at.right[name] = self.at.right.get(name, 0.0) + right[name]
        return loss

    def _gradients(self, batch: list[int]) -> tuple[float, dict[str, float]]:
        """Leave the gradient of a batch's loss in what trains; (the loss, how much was right).

        When memory runs out, fewer go through at once: the gradient is the same but for rounding.
        """
        while True:
            self.optimizer.zero_grad()
            try:
                return self._accumulate(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if self.at.micro_batch == 1:
                raise ResourceError(
                    "not enough memory to train on one message at a time; try a lower "
                    "--max-tokens, fewer --n-last-blocks or a smaller model"
                )
            self.at.micro_batch = math.ceil(self.at.micro_batch / 2)
            log.warning(f"not enough memory: {self.at.micro_batch} messages go through at once now")

    def _accumulate(self, batch: list[int]) -> tuple[float, dict[str, float]]:
        losses, right = dict[str, float](), dict[str, float]()
        self.classifier.model.train()
        if self.config.balance_losses:
            self._begin_scales(batch)
        with self._drawing():
            for part in self._parts(batch):
                self._add_gradients(batch, part, losses, right)
        if self.config.balance_losses:
            for name, loss in losses.items():
                self.at.scales[name] = 0.95 * self.at.scales[name] + 0.05 * loss
        weight = {head.name: head.loss_weight for head in self.heads}
        return sum(weight[name] * loss for name, loss in losses.items()), right

    def _parts(self, batch: list[int]) -> Iterator[list[int]]:
        for first in range(0, len(batch), self.at.micro_batch):
            yield batch[first:][: self.at.micro_batch]

    @torch.no_grad()
    def _begin_scales(self, batch: list[int]) -> None:
        """Of a head's first loss the running mean is that loss itself: AdamW would remember a
        gradient that was not scaled for a thousand steps.
        """
        weights = {head.name: self.train.targets[head.name].weights for head in self.heads}
        if all(n in self.at.scales or float(w[batch].sum()) == 0 for n, w in weights.items()):
            return
        losses = dict[str, float]()
        with self._drawing():
            for part in self._parts(batch):
                for head, loss, _ in self._losses(batch, part):
                    losses[head.name] = losses.get(head.name, 0.0) + loss.item()
        self.at.scales = losses | self.at.scales

    def _losses(
        self, batch: list[int], part: list[int]
    ) -> Iterator[tuple[HeadConfig, Tensor, float]]:
        """(head, what some of a batch's messages add to its mean loss, how much was right)."""
        outputs, lengths = self.classifier.batch_outputs(self.train.texts, part)
        for head in self.heads:
            targets, weights = self.train.targets[head.name], self.train.targets[head.name].weights
            if (whole := float(weights[batch].sum())) == 0:  # nothing to learn from these
                continue
            wanted, found = targets.batch(part).to(lengths.device), outputs[head.name]
            loss = loss_sum(head, found, wanted, lengths) / whole
            if not math.isfinite(loss.item()):
                raise self._diverged("loss", loss.item(), part)
            yield head, loss, right_sum(head, found.detach(), wanted, lengths)

    def _add_gradients(
        self, batch: list[int], part: list[int], losses: dict[str, float], right: dict[str, float]
    ) -> None:
        """Add what some of a batch's messages give to its gradient, its losses, what was right."""
        total: Tensor | float = 0.0
        for head, loss, done in self._losses(batch, part):
            scale = self.at.scales[head.name] if self.config.balance_losses else 1.0
            total = total + loss * (head.loss_weight / max(scale, 1e-8))
            losses[head.name] = losses.get(head.name, 0.0) + loss.item()
            right[head.name] = right.get(head.name, 0.0) + done
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Dropout draws from the seed and the step, so that a resumed run draws the same."""
        with torch.random.fork_rng(enabled=self.draws):
            if self.draws:
                torch.manual_seed(self.config.seed * 1_000_003 + self.at.step)
            yield

    def show(self, bar: Any) -> None:
        """Move the progress bar by one step."""
        rate = (bar.format_dict["rate"] or 0) * self.config.batch_size
        bar.set_postfix_str(
            f"loss {self.at.total_loss / self.at.seen:.3f}, right {100 * self.at.score:.1f} %, "
            f"{rate:.0f} messages/s",
            refresh=False,
        )
        bar.update()

    def end_epoch(self, val: Labelled) -> None:
        """Look at the validation messages; keep the weights if they are the best so far."""
        loss, scores = loss_and_scores(self.classifier, val)
        mains = {name: score.main for name, score in scores.items()}
        shown = self.at.total_loss / len(self.train.messages), self.at.score
        mean = sum(mains.values()) / len(mains)
        epoch = Epoch(self.at.epoch, *shown, loss, mean, mains)
        if not math.isfinite(epoch.val_loss):
            raise self._diverged("validation loss", epoch.val_loss, [])
        history = [*self.at.history, epoch]
        self.at = replace(
            self.at,
            epoch=epoch.epoch + 1,
            seen=0,
            total_loss=0.0,
            right={},
            asked={},
            history=history,
        )
        measures = {score.measure for score in scores.values()}
        log.info(format_epoch(epoch, measures.pop() if len(measures) == 1 else "mean score"))
        if best_epoch(history) is epoch:
            self.best = {name: p.detach().clone() for name, p in self.trainable.items()}
            self.classifier.save(self.folder / "best.safetensors")
        self._write_metrics()
        self.save_now_and_then()

    def finish(self) -> None:
        """Keep the last weights as a file and go back to the best."""
        if len(self.at.history) < self.config.epochs:
            log.info(f"no better on validation for {self.config.patience} epochs: stopped")
        self.classifier.save(self.folder / "last.safetensors")
        self._put(self.best)

    def save_now_and_then(self) -> None:
        """Write the state of the run if the last one is old."""
        if time.monotonic() - self.saved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the state of the run. Raises GPT2Error where the weights are no numbers any more."""
        tensors: dict[str, Tensor] = {f"model/{name}": p for name, p in self.trainable.items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        tensors |= optimizer_tensors([self.optimizer])
        record = {
            "settings": self.settings,
            "progress": asdict(self.at),
            "environment": environment(self.classifier.model.wte.weight.device),
        }
        try:
            save_state(self.folder, self.at.step, tensors, record)
        except CheckpointError as error:
            raise self._diverged("weights", math.nan, []) from error
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Go back to the newest state that is whole, if there is one."""
        found = newest_state(self.folder)
        if found is None:
            log.info("no state was saved yet: beginning at the first step")
            return
        record, tensors = found
        refuse_changes(record["settings"], self.settings, self.folder)
        now = environment(self.classifier.model.wte.weight.device)
        if record["environment"] != now:
            log.warning(f"not equal to the bit: it began with {record['environment']}, now {now}")
        history = [Epoch(**epoch) for epoch in record["progress"].pop("history")]
        self.at = Progress(**record["progress"], history=history)
        self.best = {n: tensors[f"best/{n}"] for n in self.trainable if f"best/{n}" in tensors}
        if self.best:  # as it was then
            self._freeze_as_in(best_epoch(history).epoch)
            self._put(self.best)
            self.classifier.save(self.folder / "best.safetensors")
            self._freeze_as_in(len(history))  # what the last of them left
        self._write_metrics()
        self._put({name: tensors[f"model/{name}"] for name in self.trainable})
        restore_optimizers([self.optimizer], tensors)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.trainable[name].copy_(value)

    def _write_metrics(self) -> None:
        lines = [json.dumps(asdict(epoch)) + "\n" for epoch in self.at.history]
        write_text(self.folder / "metrics.jsonl", "".join(lines))

    def _diverged(self, what: str, value: float, batch: list[int]) -> GPT2Error:
        at, report = self.at, self.folder / "nan_report.json"
        found = {"what": what, "value": str(value), "epoch": at.epoch, "step": at.step + 1}
        texts = [self.classifier.tokenizer.decode(self.train.texts.encoded[n]) for n in batch]
        write_json(report, found | {"settings": self.settings, "texts": texts})
        kept = "; the best epoch so far is in best.safetensors" if at.history else ""
        return GPT2Error(
            f"the {what} became {value} in epoch {at.epoch}, step {at.step + 1} ({report}){kept}; "
            f"try a lower --lr than {self.config.lr}"
        )


# --- Finetuning: show messages, compare, adjust what trains, keep the best. ---


def finetune(
    classifier: Classifier,
    split: Split,
    config: TrainConfig,
    run: Path,
    *,
    resume: bool = False,
    store: FeatureStore | None = None,
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
    train, val = (to_labelled(classifier, part, store=store) for part in (split.train, split.val))
    _refuse_nothing_to_learn(classifier, {"training": train, "validation": val})
    training = TrainingRun(classifier, split, train, config, run)
    if resume:
        training.restore()
    with (
        stop_after_step() as stop,
        progress_bar(total=training.steps, initial=training.at.step, unit="batch") as bar,
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
