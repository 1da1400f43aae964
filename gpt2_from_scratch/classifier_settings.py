"""What is put on GPT-2 when a classifier is trained from the shell: one head, and LoRA."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from gpt2_from_scratch.config import OF_PADS, POOLINGS, check_types, setting
from gpt2_from_scratch.data import Message
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.head_config import TASKS, HeadConfig

if TYPE_CHECKING:  # it would load torch, which --help need not wait for
    from gpt2_from_scratch.lora import LoRAConfig

FORMS = ("linear", "two-layer", "tanh", "sigmoid")
STATES = ("normed", "raw")
WEIGHTS = ("equal", "balanced")
OF_CLASSES = ("classification", "token-classification")  # tasks


@dataclass(frozen=True)
class ClassifierSettings:
    """One head and LoRA, as they are asked for before the data is known."""

    task: str = setting("classification", "what the head answers", TASKS[:5])
    head: str = setting(
        "linear",
        "one linear layer; two stacked ones; RoBERTa's dense, tanh, linear; or one output with a "
        "sigmoid, for two classes",
        FORMS,
    )
    labels: str = setting("", "labels in the order of the outputs: a,b,c; else those in the data")
    layer: int = setting(-1, "blocks in front of the point that is read; -1: all of them")
    state: str = setting("normed", "what is read there: through the final norm, or raw", STATES)
    pooling: str = setting("last_token", "where a text is read", POOLINGS)
    pad_to: int = setting(
        0,
        "tokens that every text is padded to, where pads are read; -1: those of the longest text to "
        "train on; 0: of the longest of its batch",
    )
    causal_mask: bool = setting(
        True, "off: in the frozen blocks every token sees all of its text, as in BERT"
    )
    dropout: float = setting(0.0, "in front of the head's layers; RoBERTa has 0.1")
    class_weights: str = setting(
        "equal", "balanced: rare classes weigh more in the loss, in proportion", WEIGHTS
    )
    label_smoothing: float = setting(0.0, "share of each target that goes to all classes alike")
    name: str = setting("label", "the head's name, by which others can stand beside it")
    lora: int = setting(
        0,
        "rank of LoRA beside every matrix; the blocks' own weights stay frozen then, unless "
        "--n-last-blocks says otherwise; 0: none",
    )
    lora_alpha: float = setting(
        0.0, "its product is scaled by this over the rank; 0: the rank itself"
    )
    lora_dropout: float = setting(0.0, "of what enters it")
    lora_blocks: int = setting(-1, "last blocks that have it; -1: all")

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            choices = field.metadata["choices"]
            if choices and getattr(self, field.name) not in choices:
                raise UsageError(
                    f"{field.name} {getattr(self, field.name)!r} is none of {', '.join(choices)}"
                )
        if self.class_weights == "balanced" and self.task not in OF_CLASSES:
            raise UsageError(f"class weights are for classes, not for {self.task}")
        if self.lora < 0:
            raise UsageError(f"lora = {self.lora}: a rank is from 1 up, and 0 is none")
        for name in ("layer", "lora_blocks", "pad_to"):
            if getattr(self, name) < -1:
                raise UsageError(f"{name} = {getattr(self, name)} must be -1 or from 0 up")
        if self.pad_to and self.pooling not in OF_PADS:
            raise UsageError(f"pad_to is for pooling {' or '.join(OF_PADS)}: no other reads pads")
        if self.task in ("token-classification", "span") and self.pooling != "last_token":
            raise UsageError(
                f"pooling says where an answer a text is read; {self.task} reads every token"
            )
        if self.labels and self.task == "span":
            raise UsageError("labels are names of outputs; span has a start and an end, no others")
        if self.labels and not all(part.strip() for part in self.labels.split(",")):
            raise UsageError(f"labels = {self.labels!r}: one of them is empty")
        if self.lora == 0 and (self.lora_alpha or self.lora_dropout or self.lora_blocks >= 0):
            raise UsageError("lora_alpha, lora_dropout and lora_blocks say how; lora says the rank")

    def head_config(
        self, labels: Sequence[str], train: Sequence[Message], n_embd: int
    ) -> HeadConfig:
        """The head, for the labels found in the data, unless they were named, and training texts.

        Raises UsageError for what does not go together, DataError for texts without any label.
        """
        names = (
            tuple(part.strip() for part in self.labels.split(",")) if self.labels else (*labels,)
        )
        if not names and self.task == "multi-label":
            raise DataError("no text has any label: nothing to learn")
        if self.task != "regression" and (unknown := sorted(set(labels) - set(names))):
            raise DataError(
                f"labels {unknown[:5]} of the data are not among those named: {self.labels}"
            )
        center, scale = _center_and_scale(train) if self.task == "regression" else ((), ())
        return HeadConfig(
            name=self.name,
            task=self.task,  # type: ignore[arg-type]
            labels=names if self.task != "span" else (),
            layer=None if self.layer < 0 else self.layer,
            final_norm=self.state == "normed",
            pooling=self.pooling,  # type: ignore[arg-type]
            hidden=(n_embd,) if self.head in ("two-layer", "tanh") else (),
            activation="tanh" if self.head == "tanh" else "none",
            dropout=self.dropout,
            one_output=self.head == "sigmoid",
            class_weights=_balanced(names, train) if self.class_weights == "balanced" else (),
            label_smoothing=self.label_smoothing,
            center=center,
            scale=scale,
        )

    def lora_config(self) -> "LoRAConfig | None":
        """LoRA, if it was asked for."""
        from gpt2_from_scratch.lora import LoRAConfig

        if not self.lora:
            return None
        return LoRAConfig(
            rank=self.lora,
            alpha=self.lora_alpha or self.lora,
            dropout=self.lora_dropout,
            n_last_blocks=None if self.lora_blocks < 0 else self.lora_blocks,
        )


def _balanced(names: Sequence[str], train: Sequence[Message]) -> tuple[float, ...]:
    """Weights that give every class the same share of the loss, 1 on average over the decisions."""
    labels = [
        m.label if isinstance(m.label, str) else [word.label for word in m.label] for m in train
    ]
    counts = Counter(
        name for label in labels for name in ([label] if isinstance(label, str) else label)
    )
    total = sum(counts.values())
    return tuple(total / (len(names) * counts[name]) if counts[name] else 1.0 for name in names)


def _center_and_scale(train: Sequence[Message]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each value in training; 1 where a value is always the same.

    Raises DataError for values whose squares are too large for a number.
    """
    values = np.array([np.atleast_1d(m.label) for m in train], dtype=float)  # (N, K)
    with np.errstate(over="ignore", invalid="ignore"):
        center, spread = values.mean(axis=0), values.std(axis=0)
    if not np.isfinite([center, spread]).all():
        raise DataError("the values are too large to be learned: divide them by a power of ten")
    # by comparison: the mean of equal numbers may be off by rounding, and their spread not 0
    same = (values.min(axis=0) == values.max(axis=0)) | (spread == 0)
    scale = np.where(same, 1.0, spread)
    return tuple(center.tolist()), tuple(scale.tolist())
