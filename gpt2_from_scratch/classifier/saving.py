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

import torch
from torch import Tensor

from gpt2_from_scratch.classifier.heads import blocks_read, layer_read, replace_heads
from gpt2_from_scratch.classifier.settings import OF_PADS, HeadConfig, Pooling
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.lora import add_lora, lora_names
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.storage.files import check_listed
from gpt2_from_scratch.storage.settings import from_json
from gpt2_from_scratch.storage.tensors import read_tensors, write_tensors

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


# --- A base model and what was put on it: heads, LoRA, and numbers that were saved. ---


def assemble(
    description: Description, model: GPT2, tokenizer: Tokenizer, seed: int | None = None
) -> None:
    """Put heads and LoRA into a base model, drawn with `seed`; the global numbers stay as they are."""
    n_ctx, n_layer = model.config.n_ctx, model.config.n_layer
    if type(description.max_tokens) is not int or not 1 <= description.max_tokens <= n_ctx:
        raise UsageError(f"max_tokens = {description.max_tokens} must be from 1 to n_ctx = {n_ctx}")
    for head in description.heads:
        if not 0 <= layer_read(head, model) <= n_layer:
            raise UsageError(
                f"head {head.name!r} reads layer {head.layer}; this model has layers 0 to {n_layer}"
            )
    if tokenizer.n_vocab != model.config.n_vocab:
        raise CheckpointError(
            f"the tokenizer of {description.base} has {tokenizer.n_vocab} tokens, its model "
            f"{model.config.n_vocab}: they do not belong together"
        )
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        replace_heads(model, description.heads)
    if description.lora:
        add_lora(model, description.lora, seed or 0, blocks_read(description.heads, model))


def saved_file(path: str | Path) -> Path:
    """The file that is meant, of a folder `best.safetensors`, held against its run's manifest."""
    path = Path(path)
    path = path / "best.safetensors" if path.is_dir() else path
    check_listed(path)
    return path


def refuse_other_base(path: Path, description: Description, base: str, found: str) -> None:
    """Raise CheckpointError unless `found` is the identity of the base it was trained on."""
    if found != description.base_sha256:
        raise CheckpointError(
            f"{path} was trained on {description.base} with weights {description.base_sha256[:12]}...; "
            f"{base} has {found[:12]}...: it would answer nonsense on another base"
        )


def own_names(model: GPT2) -> set[str]:
    """Names of the parameters that are no part of GPT-2: heads, but for one tied to `wte`, and LoRA."""
    heads = {name for name, _ in model.named_parameters() if name.startswith("head.")}
    return heads | set(lora_names(model))


def put_tensors(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], needed: set[str], path: Path
) -> None:
    """Copy saved tensors over the parameters of the same names, which train from then on."""
    missing = sorted(needed - tensors.keys())
    wrong = [
        f"{name}: saved {tuple(value.shape)}, the model has "
        f"{tuple(parameters[name].shape) if name in parameters else 'nothing'}"
        for name, value in tensors.items()
        if name not in parameters or parameters[name].shape != value.shape
    ]
    if missing or wrong:
        raise CheckpointError(f"{path} does not fit: missing {missing}; {wrong[:5]}")
    with torch.no_grad():
        for name, value in tensors.items():
            if not value.isfinite().all():
                raise CheckpointError(f"{path}: {name} holds NaN or infinite numbers")
            parameters[name].copy_(value).requires_grad_(True)
