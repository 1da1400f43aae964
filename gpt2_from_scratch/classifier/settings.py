"""What is put on GPT-2 when a classifier is trained from the shell: one head, and LoRA."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from gpt2_from_scratch.data.formats import TASKS, Task
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.config import (
    at_least_one,
    at_least_zero,
    check_rates,
    check_types,
    setting,
)

# where a text is read: its last real token; the last position of the batch, pad or not, as the
# lecture does; its first token (which has seen nothing but itself); the mean over its real tokens;
# the mean over all positions of the batch, pads too, as the lecture's table of experiments has it
Pooling = Literal["last_token", "last_position", "first_token", "mean", "mean_position"]


POOLINGS: tuple[str, ...] = get_args(Pooling)


OF_PADS = ("last_position", "mean_position")  # depend on how far a text was padded


@dataclass(frozen=True)
class TrainConfig:
    """How a classifier is trained. The defaults were chosen on the miniature."""

    n_last_blocks: int = setting(1, "blocks that train, counted from the end")
    final_norm: bool = setting(True, "the final LayerNorm trains")
    trainable: str = setting(
        "", "parameters that train instead, as patterns: 'head.*,blocks.5.mlp.*'"
    )
    unfreeze_every: int = setting(
        0, "epochs until the next block joins, from the last one down; 0: all train at once"
    )
    epochs: int = setting(10, "passes over the training messages, at most")
    patience: int = setting(4, "stop after so many epochs below the best validation score")
    batch_size: int = setting(16, "messages in a step")
    micro_batch: int = setting(
        0, "messages that go through at once, their gradients added up; 0: all of a step's"
    )
    lr: float = setting(5e-4, "learning rate at its highest; wider models want less")
    rate_decay: float = setting(
        1.0, "each block learns at the rate of the part above it, divided by this"
    )
    warmup: float = setting(0.1, "part of the steps in which the rate rises; then it falls to 0")
    weight_decay: float = setting(0.1, "AdamW's, of matrices; biases and norms have none")
    clip: float = setting(0.0, "a longer gradient is cut to this length; 0: none is")
    balance_losses: bool = setting(
        False, "divide the loss of each of several heads by its running mean"
    )
    seed: int = setting(123, "of the head's first weights, the order of messages and the split")

    def __post_init__(self) -> None:
        check_types(self)
        at_least_one(self, "epochs", "patience", "batch_size", "rate_decay")
        at_least_zero(self, "n_last_blocks", "unfreeze_every", "micro_batch")
        check_rates(self)
        if self.warmup > 1:
            raise UsageError(f"warmup = {self.warmup} must be from 0 to 1")
        if not self.rate_decay <= 1000:  # its power of as many as there are blocks is a number
            raise UsageError(f"rate_decay = {self.rate_decay} must be from 1 to 1000")
        if self.micro_batch > self.batch_size:
            raise UsageError(
                f"micro_batch = {self.micro_batch} is a part of batch_size = {self.batch_size}: "
                "it cannot be more"
            )
        joins = self.n_last_blocks * self.unfreeze_every + 1  # the last block to train
        if self.unfreeze_every and not self.n_last_blocks:
            raise UsageError("unfreeze_every is for blocks that train, and n_last_blocks is 0")
        if self.unfreeze_every and joins > self.epochs and not self.trainable:
            raise UsageError(
                f"unfreeze_every = {self.unfreeze_every}: the last of {self.n_last_blocks} blocks "
                f"would join in epoch {joins} of {self.epochs}"
            )
        if self.trainable and self.unfreeze_every:
            raise UsageError("unfreeze_every is for n_last_blocks, not for patterns in trainable")


# --- What a head is: which task it has, where it reads the model, what it is made of. ---


TEXT_TASKS = ("classification", "multi-label", "regression", "features")  # one answer a text
SMOOTHED = ("classification", "multi-label", "token-classification")  # targets are classes
# what an answer says of its text, beside each head's name
TAKEN = ("number", "n_tokens", "truncated", "empty", "replaced")
Activation = Literal["none", "tanh", "relu", "gelu"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


@dataclass(frozen=True)
class HeadConfig:
    """One head. The defaults are the lecture's: one linear layer behind the final norm, read at the
    last real token.

    Raises UsageError for values that do not go together.
    """

    name: str = "label"
    task: Task = "classification"
    labels: tuple[str, ...] = ()  # names of classes, labels, values or tags, in the outputs' order
    layer: int | None = None  # blocks in front of the point that is read; None: all of them
    final_norm: bool = True  # read through ln_f; False: the residual stream as it is
    pooling: Pooling = "last_token"  # where a text is read, if the answer is one a text
    hidden: tuple[int, ...] = ()  # widths of the layers between; none: one linear layer
    activation: Activation = "none"  # behind each of those
    dropout: float = 0.0  # in front of every linear layer, in training
    one_output: bool = False  # two classes from one output with a sigmoid
    class_weights: tuple[float, ...] = ()  # of the loss, one a label; none: all 1
    label_smoothing: float = 0.0  # this share of each target goes to all classes alike
    center: tuple[float, ...] = ()  # of each value that is predicted; none: 0
    scale: tuple[float, ...] = ()  # its unit: the output 1.0 means center + scale; none: 1
    temperature: float = 1.0  # class scores are divided by it before they become probabilities
    loss_weight: float = 1.0  # of this head's loss in the sum of all heads'
    trainable: bool = True
    gradient: bool = True  # flows on into the model; False: the head learns, the model does not

    def __post_init__(self) -> None:
        check_types(self, f"head {self.name!r}: ", optional="layer")
        _check_items(self)
        _check_choices(self)
        _check_outputs(self)

    @property
    def n_outputs(self) -> int:
        """Width of the last layer; 0 where there is none (features) or it is the model's own."""
        if self.task in ("language", "features"):
            return 0
        if self.task == "span":
            return 2
        return 1 if self.one_output else len(self.labels)

    @property
    def reads_one_state(self) -> bool:
        """Whether its answer for a text comes from one state, not from one at every token."""
        return self.task in TEXT_TASKS


def _check_items(head: HeadConfig) -> None:
    kinds: dict[str, tuple[type, ...]] = {"labels": (str,), "hidden": (int,)}
    kinds |= {name: (int, float) for name in ("class_weights", "center", "scale")}
    for name, kind in kinds.items():
        if any(type(item) not in kind for item in getattr(head, name)):
            raise UsageError(f"head {head.name!r}: {name} = {getattr(head, name)!r}")


def _check_choices(head: HeadConfig) -> None:
    for name, choices in (("task", TASKS), ("pooling", POOLINGS), ("activation", ACTIVATIONS)):
        if getattr(head, name) not in choices:
            raise UsageError(f"{name} {getattr(head, name)!r} is none of {', '.join(choices)}")
    if not head.name.isidentifier():  # it becomes part of the names of parameters
        raise UsageError(f"{head.name!r} is no name for a head: letters, digits and _ only")
    if head.name in TAKEN:
        raise UsageError(f"a head cannot be called {head.name!r}: answers have that key already")
    if not (head.dropout < 1 and head.label_smoothing < 1):
        raise UsageError(f"head {head.name!r}: dropout and label smoothing must be below 1")
    if any(width < 1 for width in head.hidden) or any(not 0 < s < math.inf for s in head.scale):
        raise UsageError(f"head {head.name!r}: hidden widths and scales must be above 0")
    if any(not 0 <= weight < math.inf for weight in head.class_weights):
        raise UsageError(f"head {head.name!r}: class weights must be numbers from 0 up")
    if not all(map(math.isfinite, head.center)):
        raise UsageError(f"head {head.name!r}: center = {head.center} must be numbers")


def _check_outputs(head: HeadConfig) -> None:
    labels, task = head.labels, head.task
    if len(set(labels)) != len(labels):
        raise UsageError(f"labels must be different names, not {list(labels)}")
    fewest = {"classification": 2, "token-classification": 2, "multi-label": 1, "regression": 1}
    if len(labels) < fewest.get(task, 0):
        raise UsageError(
            f"labels must be at least {fewest[task]} names for {task}, not {list(labels)}"
        )
    if labels and task not in fewest:
        raise UsageError(f"a head for {task} has no labels, but got {list(labels)}")
    if head.one_output and (task != "classification" or len(labels) != 2):
        raise UsageError("one output with a sigmoid tells two classes apart, no more and no fewer")
    for name in ("class_weights", "center", "scale"):
        if getattr(head, name) and len(getattr(head, name)) != len(labels):
            raise UsageError(f"head {head.name!r}: {name} must be one number a label")
    if (head.center or head.scale) and task != "regression":
        raise UsageError("center and scale are for regression")
    if head.class_weights and task == "regression":
        raise UsageError("class weights are not for regression")
    if (head.dropout or head.hidden) and task in ("language", "features"):
        raise UsageError(f"a head for {task} has no layers of its own")
    if head.temperature == 0 or (head.temperature != 1 and task != "classification"):
        raise UsageError(f"temperature = {head.temperature}: above 0, and for classification only")
    if head.label_smoothing and task not in SMOOTHED:
        raise UsageError(f"label smoothing is not for {task}")


if TYPE_CHECKING:  # it would load torch, which --help need not wait for
    from gpt2_from_scratch.gpt2.config import LoRAConfig

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
        from gpt2_from_scratch.gpt2.config import LoRAConfig

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
