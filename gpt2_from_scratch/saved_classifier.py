"""A trained classifier as a file: one safetensors file of what was trained and a description.

Only what was trained is saved, any combination of heads, LoRA and blocks, with the identity of the
base model it belongs to: 3 MB for the miniature's last block, 28 MB for that of 124M, 6 KB for a
head of two classes alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2_from_scratch.config import OF_PADS, Pooling, from_json
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.head_config import HeadConfig
from gpt2_from_scratch.lora import LoRAConfig
from gpt2_from_scratch.tensor_file import read_tensors, write_tensors

FORMAT = "gpt2-classifier 3"


@dataclass(frozen=True)
class Description:
    """What a classifier is, apart from its weights.

    Raises UsageError for no head, two heads of one name, or pads that not all heads read.
    """

    base: str  # the model's name, or the folder it came from
    base_sha256: str  # identity of the base model's weights
    heads: tuple[HeadConfig, ...]
    max_tokens: int = 1024  # longer texts are cut to their first tokens
    pad_to: int | None = None  # pad every text to this many tokens, as the lecture does
    lora: LoRAConfig | None = None
    causal_mask: bool = True  # False: in the frozen blocks each token sees all of its text

    def __post_init__(self) -> None:
        names = [head.name for head in self.heads]
        if not names or len(set(names)) != len(names):
            raise UsageError(
                f"a classifier has at least one head, each of another name, not {names}; train "
                "gives heads their --name"
            )
        if self.pad_to is not None and not {h.pooling for h in self.heads} <= {*OF_PADS}:
            raise UsageError(f"pads are for heads that read them: pooling {' or '.join(OF_PADS)}")
        read = {h.pooling if h.reads_one_state else "every token" for h in self.heads}
        if not self.causal_mask and read != {"last_token"}:
            raise UsageError(
                "without the causal mask in frozen blocks heads must read the last token: to it "
                "alone the last block, which has the mask, makes no difference"
            )

    @property
    def head(self) -> HeadConfig:
        """The first head: the only one, mostly."""
        return self.heads[0]

    @property
    def labels(self) -> list[str]:
        """The names of the first head's outputs, in their order."""
        return list(self.head.labels)

    @property
    def pooling(self) -> Pooling:
        """Where the first head reads a text."""
        return self.head.pooling


def write_classifier(path: Path, description: Description, tensors: Mapping[str, Tensor]) -> None:
    """Write the trained tensors, by their names in the model, and the description, atomically."""
    write_tensors(path, tensors, {"format": FORMAT, "description": json.dumps(asdict(description))})


def read_classifier(path: Path) -> tuple[Description, dict[str, Tensor]]:
    """Read what `write_classifier` wrote. Raises CheckpointError for anything else."""
    metadata, tensors = read_tensors(path, FORMAT)
    return _read_description(metadata, path), tensors


def _read_description(metadata: dict[str, str], path: Path) -> Description:
    try:
        values: dict[str, Any] = json.loads(metadata["description"])
        unknown = values.keys() - {field.name for field in fields(Description)}
        if unknown:
            raise CheckpointError(f"{path}: its description has unknown keys {sorted(unknown)}")
        values["heads"] = tuple(from_json(HeadConfig, head) for head in values["heads"])
        values["lora"] = (
            None if values.get("lora") is None else from_json(LoRAConfig, values["lora"])
        )
        description = Description(**values)
        numbers = (description.max_tokens, description.pad_to or 1)
        if any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(f"max_tokens, pad_to = {numbers}")
        if type(description.causal_mask) is not bool:
            raise ValueError(f"causal_mask = {description.causal_mask}")
        return description
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise CheckpointError(f"{path}: its description cannot be read: {error}") from None
