"""What a head is: which task it has, where it reads the model, what it is made of."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from gpt2_from_scratch.config import POOLINGS, Pooling, check_types
from gpt2_from_scratch.errors import UsageError

# one of K classes a text; any of K labels a text; K numbers a text; one of K tags a word; a start
# and an end inside the text; the next token (GPT-2's own head); the hidden state itself
Task = Literal[
    "classification",
    "multi-label",
    "regression",
    "token-classification",
    "span",
    "language",
    "features",
]
TASKS: tuple[str, ...] = get_args(Task)
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
