"""A trained classifier as a file: one safetensors file of what was trained and a description.

Only what was trained is saved, with the identity of the base model it belongs to: 3 MB for the
miniature's last block, 28 MB for that of 124M.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2_from_scratch.config import Pooling
from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.tensor_file import read_tensors, write_tensors

FORMAT = "gpt2-classifier 2"


@dataclass(frozen=True)
class Description:
    """What a classifier is, apart from its weights."""

    base: str  # the model's name, or the folder it came from
    base_sha256: str  # identity of the base model's weights
    labels: list[str]  # in the order of the head's outputs
    pooling: Pooling = "last_token"
    max_tokens: int = 1024  # longer texts are cut to their first tokens
    pad_to: int | None = None  # pad every text to this many tokens, as the lecture does


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
        description = Description(**values)
        labels, numbers = description.labels, (description.max_tokens, description.pad_to or 1)
        if type(labels) is not list or {type(x) for x in labels} != {str}:
            raise ValueError(f"labels = {labels!r}")
        if any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(f"max_tokens, pad_to = {numbers}")
        return description
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its description cannot be read: {error}") from None
