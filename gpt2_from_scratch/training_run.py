"""A finetuning run under way: its steps, and its state on disk, from which it goes on."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2_from_scratch.checkpoints import (
    newest_state,
    optimizer_tensors,
    refuse_changes,
    restore_optimizers,
    save_state,
)
from gpt2_from_scratch.classifier import Classifier
from gpt2_from_scratch.config import TrainConfig
from gpt2_from_scratch.devices import environment
from gpt2_from_scratch.epochs import Epoch, best_epoch, epoch_order, format_epoch, rate_factor
from gpt2_from_scratch.errors import CheckpointError, GPT2Error, ResourceError, is_out_of_memory
from gpt2_from_scratch.files import write_json, write_text
from gpt2_from_scratch.finetuning import blocks_training, parameter_groups, set_trainable
from gpt2_from_scratch.head_config import HeadConfig
from gpt2_from_scratch.labelled import Labelled, loss_and_scores
from gpt2_from_scratch.losses import loss_sum, right_sum
from gpt2_from_scratch.split import Split

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
        say: Callable[[str], None],
    ):
        self.classifier, self.train, self.config = classifier, train, config
        self.folder, self.say = folder, say
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
            self.say(f"not enough memory: {self.at.micro_batch} messages go through at once now")

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
        self.say(format_epoch(epoch, measures.pop() if len(measures) == 1 else "mean score"))
        if best_epoch(history) is epoch:
            self.best = {name: p.detach().clone() for name, p in self.trainable.items()}
            self.classifier.save(self.folder / "best.safetensors")
        self._write_metrics()
        self.save_now_and_then()

    def finish(self) -> None:
        """Keep the last weights as a file and go back to the best."""
        if len(self.at.history) < self.config.epochs:
            self.say(f"no better on validation for {self.config.patience} epochs: stopped")
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
        found = newest_state(self.folder, self.say)
        if found is None:
            self.say("no state was saved yet: beginning at the first step")
            return
        record, tensors = found
        refuse_changes(record["settings"], self.settings, self.folder)
        now = environment(self.classifier.model.wte.weight.device)
        if record["environment"] != now:
            self.say(f"not equal to the bit: it began with {record['environment']}, now {now}")
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


def messages_sha256(split: Split) -> str:
    """Which messages these are, and in which order."""
    raw = json.dumps([[[m.text, m.label] for m in part] for part in vars(split).values()])
    return hashlib.sha256(raw.encode()).hexdigest()
