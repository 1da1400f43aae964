"""A trained classifier as one safetensors file: its differences from the base, and a description.

The file contains only the tensors that differ from the base model, and the hash of the base model.
This holds for any combination of heads, LoRA and blocks. The last block takes 3 MB for the
miniature and 28 MB for 124M. A head of two classes alone takes 6 KB.
"""

import json
import os
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from gpt2_from_scratch.classifier.heads import blocks_read, layer_read, replace_heads
from gpt2_from_scratch.classifier.ngrams import PREFIX, NGrams
from gpt2_from_scratch.classifier.settings import OF_PADS, HeadConfig, Pooling
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.changes import alteration, parameters_by_name
from gpt2_from_scratch.gpt2.config import GPT2Config, LoRAConfig
from gpt2_from_scratch.gpt2.lora import add_lora
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import NoInit, meta_gpt2, names_on_disk
from gpt2_from_scratch.storage.files import check_listed, parse_json
from gpt2_from_scratch.storage.paths import expanded, is_model, is_run
from gpt2_from_scratch.storage.settings import from_json
from gpt2_from_scratch.storage.tensors import read_tensors, write_tensors

FORMAT = "gpt2-classifier 3"
WITH_NGRAMS = "gpt2-classifier 4"  # the same, with the tensors of n-grams


@dataclass(frozen=True)
class Description:
    """The description of a classifier: everything except its weights.

    Raises UsageError for settings that contradict each other or that no model can have.
    """

    base: str  # the base model's name, or its folder
    base_sha256: str  # identity of the base model's weights
    heads: tuple[HeadConfig, ...]
    max_tokens: int = 1024  # longer texts are cut to their first tokens
    pad_to: int | None = None  # pad every text to this many tokens, as the lecture does
    lora: LoRAConfig | None = None
    causal_mask: bool = True  # False: each token sees the whole text in the frozen blocks
    packed_sha256: str = ""  # hash of the blocks' matrices in NF4, if `lora.quantize` asks for it

    def __post_init__(self) -> None:
        for name in ("max_tokens", "pad_to"):
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and not (name == "pad_to" and value is None):
                raise UsageError(f"{name} = {value!r:.80} must be a whole number, at least 1")
        for name in ("base", "base_sha256", "packed_sha256"):
            if type(value := getattr(self, name)) is not str:
                raise UsageError(f"{name} = {value!r:.80} must be a string")
        if type(self.causal_mask) is not bool:
            raise UsageError(f"causal_mask = {self.causal_mask!r:.80} must be true or false")
        names = [head.name for head in self.heads]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"heads {names}: give at least one, with different names (--name)")
        if self.pad_to is not None and not {h.pooling for h in self.heads} <= {*OF_PADS}:
            raise UsageError(f"pad_to is for heads with pooling {' or '.join(OF_PADS)}")
        read = {h.pooling if h.reads_one_state else "every token" for h in self.heads}
        # the last block keeps the mask; only the last token's state does not depend on it
        if not self.causal_mask and read not in ({"last_token"}, {"end_token"}):
            raise UsageError(
                "without the causal mask heads must read the last token: use pooling end_token or "
                "last_token"
            )
        if "end_token" in read and len(read) > 1:
            raise UsageError(
                f"heads that read an end token share no text with others: {sorted(read)}; use "
                "pooling last_token"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return all fields by name, without those for quantised weights if there are none."""
        found = asdict(self)
        if not self.is_quantized:
            del found["packed_sha256"]
        if self.lora and self.lora.quantize == "none":
            del found["lora"]["quantize"]
        return found

    @property
    def is_quantized(self) -> bool:
        """Whether the blocks' matrices are in NF4, so that LoRA cannot be merged into them."""
        return bool(self.packed_sha256)

    @property
    def reads_end_token(self) -> bool:
        """Whether an end token is appended to every text; all heads then read it."""
        return self.head.reads_one_state and self.head.pooling == "end_token"

    @property
    def head(self) -> HeadConfig:
        """The first head; usually the only one."""
        return self.heads[0]

    @property
    def labels(self) -> list[str]:
        """The names of the first head's outputs, in their order."""
        return list(self.head.labels)

    @property
    def pooling(self) -> Pooling:
        """Where the first head reads a text."""
        return self.head.pooling


# --- the file ---


def write_classifier(
    path: str | Path,
    description: Description,
    tensors: Mapping[str, Tensor],
    ngrams: NGrams | None = None,
) -> None:
    """Write tensors, by their names in the model, the description and n-grams, atomically.

    Raises CheckpointError for NaN and infinite numbers, because such a file could not be loaded.
    """
    path = expanded(path)
    format = WITH_NGRAMS if ngrams else FORMAT
    tensors = {**tensors, **(ngrams.tensors() if ngrams else {})}
    for name, value in tensors.items():
        if not value.detach().isfinite().all():
            raise CheckpointError(f"{path}: {name} contains NaN or infinite values; not saved")
    write_tensors(
        path, tensors, {"format": format, "description": json.dumps(description.as_dict())}
    )


def read_classifier(
    path: str | Path,
) -> tuple[Description, dict[str, Tensor], NGrams | None]:
    """Read what `write_classifier` wrote. Raises CheckpointError for anything else."""
    path = expanded(path)
    metadata, tensors = read_tensors(path, FORMAT, newer=WITH_NGRAMS)
    of_ngrams = {name: tensors.pop(name) for name in [*tensors] if name.startswith(PREFIX)}
    if bool(of_ngrams) != (metadata["format"] == WITH_NGRAMS):
        raise CheckpointError(f"{path}: the format {metadata['format']!r} contradicts its tensors")
    try:
        values: dict[str, Any] = parse_json(metadata["description"])
        if unknown := values.keys() - {field.name for field in fields(Description)}:
            raise CheckpointError(f"{path}: its description has unknown keys {unknown!r:.80}")
        heads = tuple(from_json(HeadConfig, head) for head in values["heads"])
        lora = None if values.get("lora") is None else from_json(LoRAConfig, values["lora"])
        description = Description(**values | {"heads": heads, "lora": lora})
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise CheckpointError(f"{path}: its description is not valid: {error!s:.300}") from None
    if of_ngrams and description.head.task != "classification":
        raise CheckpointError(
            f"{path}: n-grams are for classification, not {description.head.task}"
        )
    return description, tensors, NGrams.from_tensors(of_ngrams, len(description.labels), path)


def saved_file(path: str | Path) -> Path:
    """Return the classifier's file; in a run's folder it is `best.safetensors`.

    Raises CheckpointError for a GPT-2 model, for a folder without that file, and if the run's
    manifest has another checksum for it.
    """
    path = expanded(path)
    if is_model(path):
        raise CheckpointError(
            f"{path} is a GPT-2 model, not a classifier. Train a classifier on it: "
            f"gpt2-classifier train --model {path}"
        )
    if os.path.isdir(path) and not os.path.exists(path / "best.safetensors"):
        what = "is a run that has not finished its first epoch" if is_run(path) else "is not a run"
        raise CheckpointError(f"{path} {what}: best.safetensors is missing")
    path = path / "best.safetensors" if os.path.isdir(path) else path
    check_listed(path)
    return path


# --- a base model and the parts added to it ---


def assemble(
    description: Description, model: GPT2, tokenizer: Tokenizer, seed: int | None = None
) -> None:
    """Add heads and LoRA to a base model, drawn with `seed`; torch's random state does not change.

    Raises UsageError if the model has fewer positions or layers than the description requires, and
    CheckpointError if the tokenizer does not belong to the model.

    Args:
        description: The heads and LoRA to add.
        model: The base model, changed in place.
        tokenizer: The base model's tokenizer.
        seed: Random seed of the new weights. None uses torch's random state for the heads and the
            seed 0 for LoRA.
    """
    n_ctx, n_layer = model.config.n_ctx, model.config.n_layer
    for name in ("max_tokens", "pad_to"):
        if (getattr(description, name) or 1) > n_ctx:
            raise UsageError(f"{name} = {getattr(description, name)} must be from 1 to {n_ctx = }")
    for head in description.heads:
        if not 0 <= layer_read(head, model) <= n_layer:
            raise UsageError(
                f"head {head.name!r} reads layer {head.layer}; this model has layers 0 to {n_layer}"
            )
    if not tokenizer.fits(model.config.n_vocab):
        raise CheckpointError(
            f"the tokenizer of {description.base} has {tokenizer.n_vocab} tokens, but its model has "
            f"{model.config.n_vocab}: they do not belong together"
        )
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        replace_heads(model, description.heads)
    if description.lora:
        add_lora(model, description.lora, seed or 0, blocks_read(description.heads, model))


def described_model(description: Description, config: GPT2Config, tokenizer: Tokenizer) -> GPT2:
    """Make the described model on torch's meta device, where it takes no memory.

    Raises the errors of `assemble`.
    """
    model = meta_gpt2(config)
    with NoInit():
        assemble(description, model, tokenizer)
    return model


def unsaved_change(model: nn.Module, described: nn.Module) -> str:
    """Describe how a model differs from the described one, apart from weights; "" if equal."""
    found, expected = _parts(model), _parts(described)
    if others := sorted(found.keys() ^ expected.keys()):
        return f"{others[0]} was added or is missing"
    for name, part in found.items():
        if type(part) is not type(expected[name]):
            return f"{name or 'the model'} is of type {type(part).__name__}"
        if reason := alteration(part):
            return f"{name or 'the model'} {reason}"
        if part._buffers.keys() != expected[name]._buffers.keys():
            return f"{name or 'the model'} has buffers"
        settings, usual = _settings(part), _settings(expected[name])
        for key in sorted(settings.keys() & usual.keys()):
            if settings[key] != usual[key]:
                return f"{name} has {key} = {settings[key]!r:.80} instead of {usual[key]!r:.80}"
    return ""


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """A model's modules by name, without the wrappers of torch.compile."""
    return {
        ".".join(step for step in name.split(".") if step != "_orig_mod"): part
        for name, part in model.named_modules()
    }


def _settings(part: nn.Module) -> dict[str, Any]:
    """The settings that a module's constructor stored: n_head, eps, p, scale and the like."""
    kinds = (int, float, str, tuple, NoneType)
    return {
        name: value
        for name, value in vars(part).items()
        if isinstance(value, kinds) and not name.startswith("_") and name != "training"
    }


def added_names(parameters: Mapping[str, Tensor], config: GPT2Config) -> set[str]:
    """The names of parameters that GPT-2 does not have: LoRA, and heads not tied to `wte`."""
    return parameters.keys() - names_on_disk(config)


def misfit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], needed: Set[str]) -> str:
    """Name needed tensors that are missing and tensors with the wrong shape; empty if all fit."""
    missing = sorted(needed - found.keys())
    wrong = [
        f"{name}: found {tuple(value.shape)}, expected "
        f"{tuple(expected[name].shape) if name in expected else 'nothing'}"
        for name, value in found.items()
        if name not in expected or expected[name].shape != value.shape
    ]
    return f"missing {missing[:5]}; {wrong[:5]}" if missing or wrong else ""


def refuse_other_base(path: Path, description: Description, base: str, found: str) -> None:
    """Raise CheckpointError if `found` is not the hash of the base in the description.

    `base` is the name of the other base, for the error.
    """
    if found != description.base_sha256:
        raise CheckpointError(
            f"{path} was trained on {description.base} with weights {description.base_sha256[:12]}...; "
            f"{base} has {found[:12]}... Its answers on another base would be nonsense"
        )


def refuse_misfit(
    path: Path,
    description: Description,
    tensors: Mapping[str, Tensor],
    config: GPT2Config,
    tokenizer: Tokenizer,
) -> None:
    """Raise CheckpointError if saved tensors do not match their description.

    The check is made before memory is allocated, so a false description cannot make the model
    larger than the tensors in the file.

    Args:
        path: The file, for errors.
        description: The description in the file.
        tensors: The tensors in the file.
        config: The size of the base model.
        tokenizer: The tokenizer of the base model.
    """
    widths = [width for head in description.heads for width in head.hidden]
    widths += [description.lora.rank] if description.lora else []
    sizes = {size for value in tensors.values() for size in value.shape}
    if len(widths) > len(tensors) or not sizes.issuperset(widths):
        raise CheckpointError(f"{path} does not fit: it has no tensors of widths {widths!r:.80}")
    try:
        expected = parameters_by_name(described_model(description, config, tokenizer))
    except UsageError as error:
        raise CheckpointError(f"{path} does not fit: {error!s:.300}") from None
    if numbers := [name for name, value in tensors.items() if not value.is_floating_point()]:
        raise CheckpointError(f"{path}: {numbers[0]} contains integers, which are not weights")
    if differences := misfit(tensors, expected, added_names(expected, config)):
        raise CheckpointError(f"{path} does not fit: {differences}")


@torch.no_grad()
def put_tensors(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], path: Path
) -> None:
    """Copy saved tensors into the parameters with the same names, and make these trainable.

    Raises CheckpointError for NaN and infinite numbers.
    """
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{path}: {name} contains NaN or infinite values")
        parameters[name].copy_(value).requires_grad_(True)
