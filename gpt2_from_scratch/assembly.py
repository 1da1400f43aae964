"""A base model and what was put on it: heads, LoRA, and numbers that were saved."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.heads import blocks_read, layer_read, replace_heads
from gpt2_from_scratch.lora import add_lora, lora_names
from gpt2_from_scratch.manifest import check_listed
from gpt2_from_scratch.model import GPT2
from gpt2_from_scratch.saved_classifier import Description
from gpt2_from_scratch.tokenizer import Tokenizer


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
