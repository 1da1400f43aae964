"""All settings of a classifier: its training, its heads, and the options of a run.

This module does not import torch, because `--help` is generated from these fields.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from gpt2_from_scratch.data.formats import LABELLED, TASKS, Task, values_in
from gpt2_from_scratch.data.messages import Message, labels_alike
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.metrics import several
from gpt2_from_scratch.gpt2.config import QUANTIZE, LoRAConfig
from gpt2_from_scratch.storage.settings import check_settings, is_finite, plain, setting

# Where a head reads a text:
# end_token: the end token, which is appended to every tidied text (see `batching.tidied`)
# last_token: its last real token
# last_position: the last position of the batch, padding or not, as in the lecture
# first_token: its first token, which attends only to itself
# mean: the mean over its real tokens
# mean_position: the mean over all positions, padding included, as in the book's experiments
Pooling = Literal[
    "end_token", "last_token", "last_position", "first_token", "mean", "mean_position"
]
POOLINGS: tuple[str, ...] = get_args(Pooling)
OF_PADS = ("last_position", "mean_position")  # these depend on the amount of padding
READ_ALL = ("mean", "mean_position")  # these read more than one position of a text
READ_LAST = ("end_token", "last_token")  # these read the last token; an end token is the last one

Schedule = Literal["cosine", "constant"]  # of the learning rate after the warm-up
SCHEDULES: tuple[str, ...] = get_args(Schedule)
Activation = Literal["none", "tanh", "relu", "gelu"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
# The layers of a head for `language`, which predicts the next token from the state that it reads:
# tied: GPT-2's own head, whose weight is wte. Read before the last block it is the logit lens
# full: a linear layer of its own, (C) -> (V). It starts as a copy of wte, at layer 0 with zeros
# tuned lens: an affine map of its own, (C) -> (C), then GPT-2's own final norm and head
LanguageForm = Literal["tied", "full", "tuned lens"]
LANGUAGE_FORMS: tuple[LanguageForm, ...] = get_args(LanguageForm)
HEAD_FORMS = ("linear", "two-layer", "tanh", "sigmoid")
TEXT_TASKS = ("classification", "multi-label", "regression", "features")  # one answer per text
VALUE_TASKS = ("regression", "token-regression")  # targets are numbers
CLASS_TASKS = ("classification", "multi-label", "token-classification")  # targets are classes
LARGEST_VALUE = 1e250  # limit for center and scale; scale times any float32 is then finite
ADAPT_LR = 3e-4  # selected on the miniature among 1e-4, 3e-4, 5e-4 and 1e-3
EPOCHS, ENOUGH_STEPS, PATIENCE = 10, 500, 4  # the least that a training gets by default
RESERVED_NAMES = ("number", "n_tokens", "truncated", "empty", "replaced")  # keys of a prediction


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training. The defaults were selected on the miniature."""

    n_last_blocks: int = setting(
        1, "number of last blocks to train; with LoRA 0 unless given", at_least=0
    )
    final_norm: bool = setting(True, "train the final LayerNorm")
    trainable: str = setting("", "patterns of parameters to train instead: 'head.*,blocks.5.mlp.*'")
    unfreeze_every: int = setting(
        0,
        "epochs between unfreezing one block and the next, from the last; 0: all at once",
        at_least=0,
    )
    epochs: int = setting(
        0,
        f"most epochs; 0: enough for {ENOUGH_STEPS} steps, at least {EPOCHS}",
        at_least=0,
    )
    patience: int = setting(
        0,
        "stop after this many epochs without a better validation score; 0: two fifths of all",
        at_least=0,
    )
    batch_size: int = setting(16, "messages per step", at_least=1)
    micro_batch: int = setting(
        0, "messages per forward pass, gradients accumulated; 0: the whole batch", at_least=0
    )
    lr: float = setting(5e-4, "peak learning rate; wider models need less", above=0)
    rate_decay: float = setting(
        1.0,
        "factor by which each block's learning rate is lower than that of the part above",
        at_least=1,
        at_most=1000,  # raised to the number of blocks, it must be finite
    )
    warmup: float = setting(
        0.1, "proportion of steps during which the learning rate rises", at_least=0, at_most=1
    )
    schedule: Schedule = setting(
        "cosine",
        "after the warm-up, the learning rate falls to 0 along half a cosine, or stays constant",
        choices=SCHEDULES,
    )
    weight_decay: float = setting(
        0.1, "AdamW's weight decay for matrices; biases and norms have none", at_least=0
    )
    clip: float = setting(0.0, "maximum norm of the gradient; 0: no clipping", at_least=0)
    vary_endings: bool = setting(
        False, "train on each text also with one punctuation mark more or less at its end"
    )
    adapt: int = setting(
        0,
        "epochs in which GPT-2 itself first learns to predict the texts' next tokens; the saved "
        "classifier then contains all of GPT-2",
        at_least=0,
    )
    adapt_lr: float = setting(0.0, f"peak learning rate of --adapt; 0: {ADAPT_LR:g}", at_least=0)
    balance_losses: bool = setting(
        False, "divide the loss of each of several heads by its running mean"
    )
    seed: int = setting(
        123,
        "random seed of the head, the order and the split",
        at_least=0,
        at_most=2**32 - 1,  # the largest seed of numpy's RandomState
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.micro_batch > self.batch_size:
            raise UsageError(
                f"micro_batch = {self.micro_batch} must be at most batch_size = {self.batch_size}"
            )
        if self.adapt_lr and not self.adapt:
            raise UsageError(f"adapt_lr = {self.adapt_lr:g} needs epochs: set adapt")
        if self.unfreeze_every and self.trainable:
            raise UsageError(
                "unfreeze_every works with n_last_blocks, not with patterns in trainable"
            )
        if self.unfreeze_every and not self.n_last_blocks:
            raise UsageError("unfreeze_every needs blocks to train, and n_last_blocks is 0")
        if self.epochs and self.all_unfrozen_in > self.epochs:
            raise UsageError(
                f"unfreeze_every = {self.unfreeze_every}: the last of {self.n_last_blocks} blocks "
                f"would be unfrozen in epoch {self.all_unfrozen_in} of {self.epochs}"
            )

    @property
    def all_unfrozen_in(self) -> int:
        """The epoch in which the last of the blocks to train is unfrozen."""
        return self.n_last_blocks * self.unfreeze_every + 1

    def for_texts(self, n: int) -> "TrainConfig":
        """Return these settings with the epochs and the patience that are chosen for `n` texts.

        Ten epochs over a few texts are too few steps to learn from. With 80 texts they are 50 steps,
        which reach 38% on question types, where 500 steps reach 58% (docs/results/reading.md).
        """
        steps = max(1, math.ceil(n * (1 + self.vary_endings) / self.batch_size))  # per epoch
        enough = max(EPOCHS, math.ceil(ENOUGH_STEPS / steps), self.all_unfrozen_in)
        epochs = self.epochs or enough
        return replace(
            self, epochs=epochs, patience=self.patience or max(PATIENCE, round(0.4 * epochs))
        )


@dataclass(frozen=True)
class HeadConfig:
    """Settings of one head.

    By default it is the lecture's head, a linear layer after the final norm. It reads an end token
    instead of the lecture's padding. Raises UsageError for values that contradict each other.
    """

    name: str = "label"
    task: Task = setting("classification", "what the head answers", choices=TASKS)
    labels: tuple[str, ...] = ()  # names of classes, labels, values or tags, in the outputs' order
    layer: int | None = setting(None, "number of blocks before the point that is read", at_least=0)
    final_norm: bool = True  # read after ln_f; False: read the residual stream directly
    pooling: Pooling = setting("end_token", "where a text is read", choices=POOLINGS)
    hidden: tuple[int, ...] = ()  # widths of hidden layers; none: one linear layer
    activation: Activation = setting("none", "function of hidden layers", choices=ACTIVATIONS)
    dropout: float = setting(0.0, "dropout before linear layers", at_least=0, below=1)
    one_output: bool = False  # two classes from one output with a sigmoid
    class_weights: tuple[float, ...] = ()  # weights in the loss, one per label; none: all 1
    label_smoothing: float = setting(0.0, "proportion spread evenly", at_least=0, below=1)
    center: tuple[float, ...] = ()  # mean of each predicted value; none: 0
    # unit of each value: the output 1.0 means center + scale; none: 1
    scale: tuple[float, ...] = ()
    temperature: float = setting(1.0, "divides class scores before the softmax", above=0)
    thresholds: tuple[float, ...] = ()  # probability above which each label is chosen; none: 0.5
    loss_weight: float = setting(
        1.0, "weight of this head's loss in the sum over heads", at_least=0
    )
    trainable: bool = True
    gradient: bool = True  # False: the head learns, but no gradient reaches the model
    form: LanguageForm = setting("tied", "layers of a head for language", choices=LANGUAGE_FORMS)

    def __post_init__(self) -> None:
        check_settings(self, f"head {self.name!r}: ")
        if not self.name.isidentifier():  # it becomes part of parameter names
            raise UsageError(f"head name {self.name!r} must be letters, digits and _ only")
        if self.name in RESERVED_NAMES:
            raise UsageError(f"head name {self.name!r} is reserved: predictions have that key")
        if any(type(label) is not str for label in self.labels):
            raise UsageError(f"head {self.name!r}: labels = {self.labels!r} must be strings")
        if len(set(self.labels)) != len(self.labels):
            raise UsageError(f"labels must differ from each other: {several(self.labels)}")
        if any(type(width) is not int or width < 1 for width in self.hidden):
            raise UsageError(f"head {self.name!r}: hidden = {self.hidden!r} must be widths above 0")
        for name in ("class_weights", "center", "scale", "thresholds"):
            values = getattr(self, name)
            if any(type(v) not in (int, float) or not is_finite(v) for v in values):
                raise UsageError(
                    f"head {self.name!r}: {name} = {values!r:.80} must be finite numbers"
                )
            if values and len(values) != len(self.labels):
                raise UsageError(f"head {self.name!r}: {name} must have one number per label")
        if any(weight < 0 for weight in self.class_weights):
            raise UsageError(f"head {self.name!r}: class weights must be at least 0")
        if any(not 0 < threshold < 1 for threshold in self.thresholds):
            raise UsageError(f"head {self.name!r}: thresholds must be between 0 and 1")
        if any(scale <= 0 for scale in self.scale):
            raise UsageError(f"head {self.name!r}: scales must be above 0")
        if any(abs(value) > LARGEST_VALUE for value in (*self.center, *self.scale)):
            raise UsageError(
                f"head {self.name!r}: center and scale must be below {LARGEST_VALUE:g}"
            )
        self._check_task()

    @property
    def n_outputs(self) -> int:
        """Width of the last layer; 0 if there is none (features) or it is the vocabulary's."""
        if self.task in ("language", "features"):
            return 0
        if self.task == "span":
            return 2
        return 1 if self.one_output else len(self.labels)

    @property
    def reads_one_state(self) -> bool:
        """Whether the head reads one state per text, not one per token."""
        return self.task in TEXT_TASKS

    def _check_task(self) -> None:
        labels, task = self.labels, self.task
        fewest = {"classification": 2, "token-classification": 2}
        fewest |= dict.fromkeys(("multi-label", *VALUE_TASKS), 1)
        if len(labels) < fewest.get(task, 0):
            raise UsageError(f"{task} needs at least {fewest[task]} labels, found {list(labels)}")
        if len(labels) > 1 and task == "token-regression":
            raise UsageError(f"{task} predicts one value, but got {several(labels)}")
        if labels and task not in fewest:
            raise UsageError(f"a head for {task} has no labels, but got {several(labels)}")
        if self.one_output and (task != "classification" or len(labels) != 2):
            raise UsageError("one output with a sigmoid is for classification into two classes")
        if (self.center or self.scale) and task not in VALUE_TASKS:
            raise UsageError("center and scale are for regression")
        if self.class_weights and task in VALUE_TASKS:
            raise UsageError("class weights are not for regression")
        if (self.dropout or self.hidden) and task in ("language", "features"):
            raise UsageError(f"a head for {task} has no hidden layers and no dropout")
        if self.form != "tied" and task != "language":
            raise UsageError(f"form = {self.form!r} is for language, not for {task}")
        if self.form == "tuned lens" and not self.final_norm:
            raise UsageError("a tuned lens contains the final norm: leave final_norm = True")
        if self.temperature != 1 and task != "classification":
            raise UsageError(f"temperature = {self.temperature} is for classification only")
        if self.thresholds and task != "multi-label":
            raise UsageError(f"thresholds per label are for multi-label, not for {task}")
        if self.label_smoothing and task not in CLASS_TASKS:
            raise UsageError(f"label smoothing is not for {task}")


@dataclass(frozen=True)
class HeadSettings:
    """Options of a run for its head and LoRA, before the data is known."""

    task: str = setting("classification", "what the head answers", choices=LABELLED)
    head: str = setting(
        "linear",
        "one linear layer; two linear layers; RoBERTa's dense, tanh, linear; or one output with a "
        "sigmoid, for two classes",
        choices=HEAD_FORMS,
    )
    labels: str = setting(
        "", "labels in the order of the outputs: a,b,c; default: the labels in the data"
    )
    layer: int = setting(-1, "number of blocks before the point that is read; -1: all", at_least=-1)
    state: str = setting(
        "normed", "read the state after the final norm, or the raw state", choices=("normed", "raw")
    )
    pooling: str = setting("end_token", "where a text is read", choices=POOLINGS)
    max_tokens: int = setting(0, "longer texts are cut to this many tokens; 0: n_ctx", at_least=0)
    pad_to: int = setting(
        0,
        "pad every text to this many tokens, for poolings that read padding; -1: the longest "
        "training text; 0: the longest text in the batch",
        at_least=-1,
    )
    causal_mask: bool = setting(
        True, "off: every token attends to the whole text in the frozen blocks, as in BERT"
    )
    dropout: float = setting(
        0.0, "dropout before the head's layers; RoBERTa uses 0.1", at_least=0, below=1
    )
    class_weights: str = setting(
        "equal", "balanced: rare classes weigh more in the loss", choices=("equal", "balanced")
    )
    label_smoothing: float = setting(
        0.0, "proportion of each target that is spread evenly over the classes", at_least=0, below=1
    )
    name: str = setting("label", "the head's name, if it shares the model with others")
    with_ngrams: bool = setting(
        False, "combine GPT-2's answers with those of n-grams of words and characters"
    )
    lora: int = setting(
        0,
        "rank of LoRA adapters on every matrix; 0: no LoRA",
        at_least=0,
    )
    lora_alpha: float = setting(
        0.0, "LoRA's alpha; its product is scaled by alpha / rank; 0: the rank itself", at_least=0
    )
    lora_dropout: float = setting(0.0, "dropout before LoRA's matrices", at_least=0, below=1)
    lora_blocks: int = setting(-1, "last blocks with LoRA; -1: all", at_least=-1)
    quantize: str = setting(
        "none",
        "nf4: store the matrices of the blocks with four bits per weight, next to LoRA (QLoRA)",
        choices=QUANTIZE,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.class_weights == "balanced" and self.task not in (
            "classification",
            "token-classification",
        ):
            raise UsageError(f"class weights are for classes, not for {self.task}")
        if self.with_ngrams and self.task != "classification":
            raise UsageError(f"with_ngrams is for classification, not for {self.task}")
        if self.pad_to and self.pooling not in OF_PADS:
            raise UsageError(
                f"pad_to needs the pooling {' or '.join(OF_PADS)}; the others do not read padding"
            )
        if self.task not in TEXT_TASKS and self.pooling not in READ_LAST:
            raise UsageError(f"{self.task} reads every token, so it has no pooling")
        if self.labels and self.task == "span":
            raise UsageError("span has no labels")
        if self.labels and not all(part.strip() for part in self.labels.split(",")):
            raise UsageError(f"labels = {self.labels!r}: one of them is empty")
        if self.lora == 0 and (self.lora_alpha or self.lora_dropout or self.lora_blocks >= 0):
            raise UsageError("lora_alpha, lora_dropout and lora_blocks need a rank: set lora")
        if self.lora == 0 and self.quantize != "none":
            raise UsageError(
                f"quantize = {self.quantize!r} needs LoRA, because quantised weights cannot be "
                "trained. Set lora, for example --lora 8."
            )

    def head_config(
        self, labels: Sequence[str], train: Sequence[Message], n_embd: int
    ) -> HeadConfig:
        """Return the settings of the head for these training texts.

        Its labels are the labels that the user named, otherwise `labels`.

        Raises UsageError for settings that contradict each other, and DataError if no text has a
        label.
        """
        names = (
            tuple(part.strip() for part in self.labels.split(",")) if self.labels else (*labels,)
        )
        if not names and self.task == "multi-label":
            raise DataError("no text has a label, so there is nothing to learn")
        if self.task not in VALUE_TASKS and (unknown := sorted(set(labels) - set(names))):
            alike = labels_alike([*names, *unknown])
            how = f"; {alike[0]} differ only in case, spaces or Unicode form" if alike else ""
            raise DataError(f"labels {unknown[:5]} of the data are not among {self.labels}{how}")
        center, scale = _center_and_scale(train) if self.task in VALUE_TASKS else ((), ())
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

    def lora_config(self) -> LoRAConfig | None:
        """The LoRA settings, or None without LoRA."""
        if not self.lora:
            return None
        return LoRAConfig(
            rank=self.lora,
            alpha=self.lora_alpha or self.lora,
            dropout=self.lora_dropout,
            n_last_blocks=None if self.lora_blocks < 0 else self.lora_blocks,
            quantize=self.quantize,
        )


def in_given_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels as a tuple. Raises UsageError for a set, which has no order, and for a string."""
    if isinstance(labels, set | frozenset | str):
        raise UsageError(f"labels = {labels!r:.200} must be a tuple or a list")
    return tuple(plain([*labels]))


def _balanced(names: Sequence[str], train: Sequence[Message]) -> tuple[float, ...]:
    """Class weights that give each class the same part of the loss; 1.0 if a class has no text."""
    labels = [
        m.label if isinstance(m.label, str) else [word.label for word in m.label] for m in train
    ]
    counts = Counter(
        name for label in labels for name in ([label] if isinstance(label, str) else label)
    )
    total = sum(counts.values())
    return tuple(total / (len(names) * counts[name]) if counts[name] else 1.0 for name in names)


def _center_and_scale(train: Sequence[Message]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The means and the standard deviations of the K values over the texts or positions.

    The deviation of a constant value is replaced by 1.

    Raises DataError for values whose squares overflow, and if there are no values.
    """
    values = np.array([row for m in train for row in values_in(m.label)], dtype=float)  # (N, K)
    if not len(values):
        raise DataError("no training text has a value, so there is nothing to learn")
    with np.errstate(over="ignore", invalid="ignore"):
        center, spread = values.mean(axis=0), values.std(axis=0)
    if not np.isfinite([center, spread]).all():
        raise DataError("the values are too large to learn: divide them by a power of ten")
    # detect constants by comparison: rounding may make their standard deviation nonzero
    same = (values.min(axis=0) == values.max(axis=0)) | (spread == 0)
    scale = np.where(same, 1.0, spread)
    return tuple(center.tolist()), tuple(scale.tolist())
