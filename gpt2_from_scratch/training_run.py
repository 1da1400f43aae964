"""A finetuning run under way: its steps, and its state on disk, from which it goes on.

B texts, K classes.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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
from gpt2_from_scratch.labelled import Labelled, loss_and_accuracy
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
    right: int = 0  # those answered right
    history: list[Epoch] = field(default_factory=list)  # of the epochs before


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
        self.at = Progress(config.batch_size)
        self.steps = config.epochs * math.ceil(len(train.labels) / config.batch_size)
        self.trainable = {n: p for n, p in classifier.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trainable.values(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.best: dict[str, Tensor] = {}  # the weights of the best epoch
        self.saved = time.monotonic()
        self.settings = asdict(config) | asdict(classifier.description)
        self.settings |= {"dtype": str(classifier.dtype), "messages_sha256": messages_sha256(split)}

    def over(self) -> bool:
        """Whether all epochs are done, or validation stopped rising."""
        history = self.at.history
        if not history:
            return False
        waited = len(history) - best_epoch(history).epoch
        return len(history) == self.config.epochs or waited >= self.config.patience

    def batches_left(self) -> Iterator[list[int]]:
        """The numbers of the messages of each batch of this epoch that was not shown yet."""
        order = epoch_order(len(self.train.labels), self.config.seed, self.at.epoch)
        while self.at.seen < len(order):
            yield order[self.at.seen :][: self.config.batch_size].tolist()

    def step(self, batch: list[int]) -> None:
        """Show a batch and adjust what trains."""
        loss, right = self._gradients(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * rate_factor(self.at.step, self.steps, self.config.warmup)
        self.optimizer.step()
        self.at.step += 1
        self.at.seen += len(batch)
        self.at.total_loss += loss
        self.at.right += right

    def _gradients(self, batch: list[int]) -> tuple[float, int]:
        """Leave the gradient of a batch's mean loss in what trains; (sum of losses, how many right).

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

    def _accumulate(self, batch: list[int]) -> tuple[float, int]:
        total, right = 0.0, 0
        for first in range(0, len(batch), self.at.micro_batch):
            part = batch[first : first + self.at.micro_batch]
            logits = self.classifier.batch_logits(self.train.texts, part)  # (B, K)
            labels = self.train.labels[part].to(logits.device)
            loss = F.cross_entropy(logits, labels)
            if not math.isfinite(loss.item()):
                raise self._diverged("loss", loss.item(), part)
            (loss * (len(part) / len(batch))).backward()
            total += loss.item() * len(part)
            right += int((logits.argmax(dim=1) == labels).sum())
        return total, right

    def show(self, bar: Any) -> None:
        """Move the progress bar by one step."""
        rate = (bar.format_dict["rate"] or 0) * self.config.batch_size
        bar.set_postfix_str(
            f"loss {self.at.total_loss / self.at.seen:.3f}, accuracy "
            f"{100 * self.at.right / self.at.seen:.1f} %, {rate:.0f} messages/s",
            refresh=False,
        )
        bar.update()

    def end_epoch(self, val: Labelled) -> None:
        """Look at the validation messages; keep the weights if they are the best so far."""
        n = len(self.train.labels)
        shown = self.at.total_loss / n, self.at.right / n
        epoch = Epoch(self.at.epoch, *shown, *loss_and_accuracy(self.classifier, val))
        if not math.isfinite(epoch.val_loss):
            raise self._diverged("validation loss", epoch.val_loss, [])
        history = [*self.at.history, epoch]
        self.at = replace(
            self.at, epoch=epoch.epoch + 1, seen=0, total_loss=0.0, right=0, history=history
        )
        self.say(format_epoch(epoch))
        if best_epoch(history) is epoch:
            self.best = {name: p.detach().clone() for name, p in self.trainable.items()}
            self.classifier.save(self.folder / "best.safetensors")
        self._write_metrics()
        self.save_now_and_then()

    def finish(self) -> None:
        """Keep the last weights as a file and go back to the best."""
        if len(self.at.history) < self.config.epochs:
            self.say(f"lower validation accuracy for {self.config.patience} epochs: stopped")
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
            self._put(self.best)
            self.classifier.save(self.folder / "best.safetensors")
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
