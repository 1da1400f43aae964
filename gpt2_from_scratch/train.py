"""Finetuning: show the messages, compare, adjust what is trainable, keep the best. B texts, K classes."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gpt2_from_scratch.classifier import Classifier
from gpt2_from_scratch.config import TrainConfig
from gpt2_from_scratch.data import Message, Split
from gpt2_from_scratch.errors import DataError, GPT2Error
from gpt2_from_scratch.finetuning import set_trainable


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. Losses are mean cross-entropies in nats."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Labelled:
    """Messages as numbers: token ids of each text and the number of its class."""

    encoded: list[list[int]]
    labels: Tensor  # (N,) int64


def to_labelled(
    classifier: Classifier, messages: Sequence[Message], say: Callable[[str], None] = print
) -> Labelled:
    """Encode messages for a classifier, and say how many had to be cut.

    Raises DataError for a label the classifier does not know.
    """
    names = classifier.description.labels
    unknown = sorted({message.label for message in messages} - set(names))
    if unknown:
        raise DataError(f"labels {unknown} are none of the classifier's {names}")
    encoded, cut = classifier.encode([message.text for message in messages])
    if any(cut):
        limit = classifier.description.max_tokens
        say(f"{sum(cut)} of {len(cut)} messages are longer than {limit} tokens and were cut")
    return Labelled(encoded, torch.tensor([names.index(message.label) for message in messages]))


def finetune(
    classifier: Classifier,
    split: Split,
    config: TrainConfig,
    run: Path,
    *,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> list[Epoch]:
    """Train `classifier` in place and leave in it the weights of the lowest validation loss.

    Writes to the folder `run`: `metrics.jsonl` (a line an epoch), `best.safetensors` and `last.safetensors`. The order of messages is a function of seed and epoch alone. Raises GPT2Error
    when the loss is no longer a number; the best state so far stays on disk.
    """
    set_trainable(classifier.model, config.n_last_blocks, config.final_norm)
    train, val = (to_labelled(classifier, part, say) for part in (split.train, split.val))
    parameters = [p for p in classifier.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    steps = math.ceil(len(train.encoded) / config.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, steps * config.epochs, config.warmup)
    )
    history: list[Epoch] = []
    best: dict[str, Tensor] = {}
    with tqdm(total=steps * config.epochs, disable=True if quiet else None, unit="batch") as bar:
        for epoch in range(1, config.epochs + 1):
            bar.set_description(f"epoch {epoch}/{config.epochs}")
            loss, accuracy = _train_epoch(
                classifier, train, config, epoch, optimizer, scheduler, bar
            )
            val_loss, val_accuracy = loss_and_accuracy(classifier, val)
            if not math.isfinite(val_loss):
                raise GPT2Error(
                    f"the validation loss became {val_loss} in epoch {epoch}; try a lower --lr than {config.lr}"
                )
            history.append(Epoch(epoch, loss, accuracy, val_loss, val_accuracy))
            _append_json_line(run / "metrics.jsonl", asdict(history[-1]))
            say(format_epoch(history[-1]))
            classifier.save(run / "last.safetensors")
            best_epoch = min(history, key=lambda e: e.val_loss).epoch
            if best_epoch == epoch:
                classifier.save(run / "best.safetensors")
                best = {n: p.detach().clone() for n, p in _trainable(classifier)}
            if epoch - best_epoch >= config.patience:
                say(f"no lower validation loss for {config.patience} epochs: stopped")
                break
    with torch.no_grad():
        for name, parameter in _trainable(classifier):
            parameter.copy_(best[name])
    return history


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """In which order epoch `epoch` shows `n` messages: (n,), the same on every machine."""
    return np.random.RandomState([seed, epoch]).permutation(n)


def rate_factor(step: int, total: int, warmup: float) -> float:
    """The learning rate's share of its highest: a straight rise, then half a cosine down to 0."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def loss_and_accuracy(classifier: Classifier, labelled: Labelled) -> tuple[float, float]:
    """Mean cross-entropy in nats and the share of right answers, over all texts."""
    logits = classifier.logits(labelled.encoded)
    right = logits.argmax(dim=1) == labelled.labels
    return F.cross_entropy(logits, labelled.labels).item(), right.float().mean().item()


def format_epoch(epoch: Epoch) -> str:
    """One line for one epoch."""
    return (
        f"epoch {epoch.epoch:>2}  train loss {epoch.train_loss:.3f}  accuracy {100 * epoch.train_accuracy:.2f} %"
        f"  |  val loss {epoch.val_loss:.3f}  accuracy {100 * epoch.val_accuracy:.2f} %"
    )


def _train_epoch(
    classifier: Classifier,
    train: Labelled,
    config: TrainConfig,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    bar: Any,
) -> tuple[float, float]:
    """One pass; (mean loss, accuracy) as the messages were shown, before each step."""
    order = epoch_order(len(train.encoded), config.seed, epoch)
    total_loss, right = 0.0, 0
    for first in range(0, len(order), config.batch_size):
        batch = order[first : first + config.batch_size]
        logits = classifier.batch_logits([train.encoded[n] for n in batch])  # (B, K)
        labels = train.labels[batch].to(logits.device)
        loss = F.cross_entropy(logits, labels)
        if not math.isfinite(loss.item()):
            raise GPT2Error(
                f"the loss became {loss.item()} in epoch {epoch}, messages {first} to "
                f"{first + len(batch) - 1}; try a lower --lr than {config.lr}"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        total_loss += loss.item() * len(batch)
        right += int((logits.argmax(dim=1) == labels).sum())
        seen = first + len(batch)
        rate = (bar.format_dict["rate"] or 0) * config.batch_size
        bar.set_postfix_str(
            f"loss {total_loss / seen:.3f}, accuracy {100 * right / seen:.1f} %, {rate:.0f} messages/s",
            refresh=False,
        )
        bar.update()
    return total_loss / len(order), right / len(order)


def _trainable(classifier: Classifier) -> list[tuple[str, torch.nn.Parameter]]:
    return [(n, p) for n, p in classifier.model.named_parameters() if p.requires_grad]


def _append_json_line(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
