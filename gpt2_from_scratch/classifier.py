"""A text classifier on GPT-2: what it is made of, how it answers, how it is kept.

Only what was trained is saved, with the identity of the base model it belongs to: 3 MB for the
miniature's last block, 28 MB for that of 124M. B texts, T tokens of the longest, K classes, N
texts.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt2_from_scratch.batches import by_length, encode_texts, pad_batch
from gpt2_from_scratch.config import POOLINGS, Pooling
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.files import atomic_path
from gpt2_from_scratch.finetuning import trainable_names
from gpt2_from_scratch.heads import class_logits, replace_head
from gpt2_from_scratch.model import GPT2
from gpt2_from_scratch.paths import MODELS, model_folder, model_name
from gpt2_from_scratch.tokenizer import Tokenizer
from gpt2_from_scratch.weights import load_gpt2

FORMAT = "gpt2-classifier 1"


@dataclass(frozen=True)
class Description:
    """What a classifier is, apart from its weights."""

    base: str  # the model's name, or the folder it came from
    base_sha256: str  # identity of the base model's weights
    labels: list[str]  # in the order of the head's outputs
    pooling: Pooling = "last_token"
    max_tokens: int = 1024  # longer texts are cut to their first tokens
    pad_to: int | None = None  # pad every text to this many tokens, as the lecture does


@dataclass(frozen=True)
class Prediction:
    """The answer for one text."""

    label: str
    probabilities: dict[str, float]  # of every label; they sum to 1
    n_tokens: int
    truncated: bool  # the text was longer than the classifier reads


class Classifier:
    """GPT-2 with a classification head, its tokenizer, and the names of its classes."""

    def __init__(self, model: GPT2, tokenizer: Tokenizer, description: Description):
        self.model = model
        self.tokenizer = tokenizer
        self.description = description
        self._changed = {"head.weight", "head.bias"}  # what the base does not have as it is here

    @classmethod
    def on_base(
        cls,
        base: str | Path,
        labels: Sequence[str],
        *,
        pooling: Pooling = "last_token",
        max_tokens: int | None = None,
        seed: int = 123,
    ) -> "Classifier":
        """A classifier on the pretrained model `base`, its head still random (drawn with `seed`).

        Raises CheckpointError when the base cannot be loaded, UsageError for fewer than two
        labels, a label twice, an unknown pooling, or `max_tokens` outside 1 to n_ctx.
        """
        folder = model_folder(base)
        model, tokenizer = load_gpt2(base), Tokenizer(folder)
        description = Description(
            model_name(base),
            base_sha256(model, tokenizer),
            list(labels),
            pooling,
            model.config.n_ctx if max_tokens is None else max_tokens,
        )
        _check(description, model, tokenizer)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            replace_head(model, len(labels))
        return cls(model, tokenizer, description)

    @classmethod
    def load(cls, path: str | Path, base: str | Path | None = None) -> "Classifier":
        """Load a saved classifier: a file, or a run's folder, whose `best.safetensors` is taken.

        `base` says where its base model lies when that is not one of the known names. Raises
        CheckpointError for a damaged file or a base with other weights than it was trained on.
        """
        path = Path(path)
        path = path / "best.safetensors" if path.is_dir() else path
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: it should hold a saved classifier")
        try:
            with safe_open(path, framework="pt") as file:
                description = _read_description(file.metadata() or {}, path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                if file.metadata().get("tensors_sha256") != _sha256(tensors):
                    raise CheckpointError(f"{path} is damaged: its numbers are not those saved")
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
        if base is None and description.base not in MODELS:
            raise CheckpointError(
                f"{path} was trained on a model in {description.base}; say where it lies with --model"
            )
        base = description.base if base is None else base
        model, tokenizer = load_gpt2(base), Tokenizer(model_folder(base))
        found = base_sha256(model, tokenizer)
        if found != description.base_sha256:
            raise CheckpointError(
                f"{path} was trained on {description.base} with weights {description.base_sha256[:12]}...; "
                f"{base} has {found[:12]}...: it would answer nonsense on another base"
            )
        _check(description, model, tokenizer)
        with torch.random.fork_rng():
            replace_head(model, len(description.labels))
        _put(tensors, model, path)
        classifier = cls(model, tokenizer, description)
        classifier._changed |= tensors.keys()
        return classifier

    def save(self, path: Path) -> None:
        """Write all that ever trained and the description to one safetensors file, atomically."""
        # once trained, always kept: a block frozen again later still differs from the base
        self._changed |= set(trainable_names(self.model))
        tensors = {
            name: parameter.detach().contiguous()
            for name, parameter in self.model.named_parameters()
            if name in self._changed
        }
        metadata = {
            "format": FORMAT,
            "description": json.dumps(asdict(self.description)),
            "tensors_sha256": _sha256(tensors),
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each text as this classifier reads it, and whether the text was cut."""
        return encode_texts(texts, self.tokenizer, self.description.max_tokens)

    def batch(self, encoded: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """ids (B, T) and lengths (B,) on the model's device."""
        device = self.model.wte.weight.device
        ids, lengths = pad_batch(encoded, self.tokenizer.end_of_text_id, self.description.pad_to)
        return ids.to(device), lengths.to(device)

    def batch_logits(self, encoded: Sequence[Sequence[int]]) -> Tensor:
        """Logits of one batch, with gradients: (B, K)."""
        return class_logits(self.model, *self.batch(encoded), self.description.pooling)

    @torch.no_grad()
    def logits(self, encoded: Sequence[Sequence[int]], batch_size: int = 32) -> Tensor:
        """Logits of any number of texts, in their order, on the CPU: (N, K) float32."""
        logits = torch.empty(len(encoded), len(self.description.labels))
        for batch in by_length(encoded, batch_size):
            logits[batch] = self.batch_logits([encoded[n] for n in batch]).float().cpu()
        return logits

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts of any length, the empty one included; answers come in the texts' order.

        Raises DataError when one of them is not a string.
        """
        encoded, truncated = self.encode(texts)
        probabilities = self.logits(encoded).softmax(dim=1).numpy().astype(np.float64)
        labels = self.description.labels
        return [
            Prediction(
                labels[int(row.argmax())],
                dict(zip(labels, (row / row.sum()).tolist(), strict=True)),
                len(ids),
                cut,
            )
            for ids, cut, row in zip(encoded, truncated, probabilities, strict=True)
        ]


def base_sha256(model: GPT2, tokenizer: Tokenizer) -> str:
    """Identity of a base model: its weights and what its token ids mean."""
    return hashlib.sha256(f"{weights_sha256(model)} {tokenizer.sha256}".encode()).hexdigest()


def weights_sha256(model: GPT2) -> str:
    """Identity of a language model's weights: the same from OpenAI's files and from Hugging Face's.

    SHA-256 over each parameter's name, shape and float32 numbers, in order of names, head left out.
    """
    return _sha256({n: p for n, p in model.named_parameters() if not n.startswith("head.")})


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _check(description: Description, model: GPT2, tokenizer: Tokenizer) -> None:
    labels, n_ctx = description.labels, model.config.n_ctx
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise UsageError(f"labels must be at least two different names, not {labels}")
    if description.pooling not in POOLINGS:
        raise UsageError(f"pooling {description.pooling!r} is none of {', '.join(POOLINGS)}")
    if not 1 <= description.max_tokens <= n_ctx:
        raise UsageError(f"max_tokens = {description.max_tokens} must be from 1 to n_ctx = {n_ctx}")
    if tokenizer.n_vocab != model.config.n_vocab:
        raise CheckpointError(
            f"the tokenizer of {description.base} has {tokenizer.n_vocab} tokens, its model "
            f"{model.config.n_vocab}: they do not belong together"
        )


def _read_description(metadata: dict[str, str], path: Path) -> Description:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no saved classifier: its format is {metadata.get('format')!r}, not {FORMAT!r}"
        )
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


def _put(tensors: dict[str, Tensor], model: GPT2, path: Path) -> None:
    """Copy saved tensors over the parameters of the same names; only those stay trainable."""
    parameters = dict(model.named_parameters())
    missing = {"head.weight", "head.bias"} - tensors.keys()
    wrong = [
        f"{name}: saved {tuple(value.shape)}, the model has "
        f"{tuple(parameters[name].shape) if name in parameters else 'nothing'}"
        for name, value in tensors.items()
        if name not in parameters or parameters[name].shape != value.shape
    ]
    if missing or wrong:
        raise CheckpointError(f"{path} does not fit: missing {sorted(missing)}; {wrong[:5]}")
    model.requires_grad_(False)
    with torch.no_grad():
        for name, value in tensors.items():
            if not value.isfinite().all():
                raise CheckpointError(f"{path}: {name} holds NaN or infinite numbers")
            parameters[name].copy_(value).requires_grad_(True)
