"""A text classifier on GPT-2: what it is made of, and how it answers.

B texts, T tokens of the longest, C = n_embd, K classes, N texts in all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2_from_scratch.batches import by_length, check_ids, encode_texts, pad_batch
from gpt2_from_scratch.characters import has_halves
from gpt2_from_scratch.config import POOLINGS, Pooling
from gpt2_from_scratch.data import check_on_error
from gpt2_from_scratch.devices import arithmetic
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.feature_store import FeatureStore
from gpt2_from_scratch.features import Embedded, Features, Texts
from gpt2_from_scratch.finetuning import frozen_depth, plain_depth, trainable_names
from gpt2_from_scratch.heads import logits_from, replace_head
from gpt2_from_scratch.identity import base_sha256
from gpt2_from_scratch.manifest import check_listed
from gpt2_from_scratch.model import GPT2
from gpt2_from_scratch.paths import MODELS, model_folder, model_name
from gpt2_from_scratch.saved_classifier import Description, read_classifier, write_classifier
from gpt2_from_scratch.tokenizer import Tokenizer
from gpt2_from_scratch.trunk import Trunk, batches, pack
from gpt2_from_scratch.weights import load_gpt2


@dataclass(frozen=True)
class Prediction:
    """The answer for one text."""

    label: str
    probabilities: dict[str, float]  # of every label; they sum to 1
    n_tokens: int
    truncated: bool  # the text was longer than the classifier reads
    empty: bool  # the text held nothing but white space, and was read as one <|endoftext|>
    replaced: bool  # the text held halves of characters (lone surrogates), read as U+FFFD


class Classifier:
    """GPT-2 with a classification head, its tokenizer, and the names of its classes."""

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        description: Description,
        dtype: torch.dtype = torch.float32,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.description = description
        self.dtype = dtype  # of frozen blocks' arithmetic and features; what trains stays float32
        self._made: tuple[tuple, Trunk] | None = None
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
        dtype: torch.dtype = torch.float32,
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
        return cls(model, tokenizer, description, dtype)

    @classmethod
    def load(
        cls,
        path: str | Path,
        base: str | Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> "Classifier":
        """Load a saved classifier: a file, or a run's folder, whose `best.safetensors` is taken.

        `base` says where its base model lies when that is not one of the known names. Raises
        CheckpointError for a damaged file, one that its run's manifest has otherwise, or a base
        with other weights than it was trained on.
        """
        path = Path(path)
        path = path / "best.safetensors" if path.is_dir() else path
        check_listed(path)
        description, tensors = read_classifier(path)
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
        classifier = cls(model, tokenizer, description, dtype)
        classifier._changed |= tensors.keys()
        return classifier

    def save(self, path: Path) -> None:
        """Write all that ever trained and the description to one safetensors file, atomically."""
        # once trained, always kept: a block frozen again later still differs from the base
        self._changed |= set(trainable_names(self.model))
        tensors = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if name in self._changed
        }
        write_classifier(path, self.description, tensors)

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each text as this classifier reads it, and whether the text was cut."""
        return encode_texts(texts, self.tokenizer, self.description.max_tokens)

    def texts(
        self,
        encoded: Sequence[Sequence[int]],
        *,
        store: FeatureStore | None = None,
        quiet: bool = True,
        say: Callable[[str], None] = print,
    ) -> Texts:
        """Encoded texts where what trains takes them up: behind the frozen blocks, if there are any.

        Says why, where something other than training keeps frozen blocks from being computed once.
        Raises DataError for ids that the model does not have.
        """
        check_ids(encoded, self.model.config.n_vocab)
        depth, reason = frozen_depth(self.model)
        if self._batch_mates_count:
            depth, reason = 0, "the last position depends on the texts beside"
        if reason:
            say(f"frozen blocks behind {depth} are computed again at each use: {reason}")
        if depth == 0:
            return Embedded(self.model, encoded, self._pad_id, self.description.pad_to)
        return Features(
            self._trunk(depth),
            self._padded(encoded),
            dtype=self.dtype,
            store=store,
            quiet=quiet,
            say=say,
        )

    def batch_logits(self, texts: Texts, numbers: Sequence[int]) -> Tensor:
        """Logits of one batch of texts, by their numbers, with gradients: (B, K)."""
        x, lengths = texts.batch(numbers)
        return logits_from(self.model, texts.depth, x, lengths, self.description.pooling)

    @torch.no_grad()
    def all_logits(self, texts: Texts) -> Tensor:
        """Logits of all texts, in their order, on the CPU: (N, K) float32."""
        logits = torch.empty(len(texts.encoded), len(self.description.labels))
        for batch in by_length(texts.encoded, 32):
            logits[batch] = self.batch_logits(texts, batch).cpu()
        return logits

    @torch.no_grad()
    def logits(self, encoded: Sequence[Sequence[int]]) -> Tensor:
        """Logits of texts that are read once: in their order, on the CPU, (N, K) float32.

        Raises DataError for ids that the model does not have.
        """
        check_ids(encoded, self.model.config.n_vocab)
        if self._batch_mates_count or (depth := plain_depth(self.model)[0]) == 0:
            return self.all_logits(Embedded(self.model, encoded, self._pad_id))
        trunk = self._trunk(min(depth, len(self.model.blocks) - 1))
        number_of: dict[tuple[int, ...], int] = {}  # equal texts are computed once
        which = [number_of.setdefault(tuple(ids), len(number_of)) for ids in self._padded(encoded)]
        texts = list(number_of)
        logits = torch.empty(len(texts), len(self.description.labels))
        for numbers in batches(texts, trunk.tokens):
            packed = pack([texts[n] for n in numbers]).to(trunk.device)
            states = trunk(packed)
            for r in packed.rectangles:
                found = logits_from(
                    self.model, trunk.depth, states[r.rows], r.lengths, self.description.pooling
                )
                logits[[numbers[n] for n in r.texts]] = found.cpu()
        return logits[which]

    def predict(self, texts: Sequence[str], *, on_error: str = "stop") -> list[Prediction | None]:
        """Classify texts of any length, the empty one included; answers come in the texts' order.

        Raises DataError when one of them is not a string; with `on_error="skip"` its answer is
        None.
        """
        check_on_error(on_error)
        if not isinstance(texts, (str, Sequence)):  # a generator, a pandas column
            texts = list(texts)
        if on_error == "stop" or isinstance(texts, str):
            return [*self._answers(texts)]
        answers = iter(self._answers([text for text in texts if isinstance(text, str)]))
        return [next(answers) if isinstance(text, str) else None for text in texts]

    def _answers(self, texts: Sequence[str]) -> list[Prediction]:
        encoded, truncated = self.encode(texts)
        probabilities = self.logits(encoded).softmax(dim=1).numpy().astype(np.float64)
        labels = self.description.labels
        return [
            Prediction(
                labels[int(row.argmax())],
                dict(zip(labels, (row / row.sum()).tolist(), strict=True)),
                len(ids),
                cut,
                empty=not text.strip(),
                replaced=has_halves(text),
            )
            for text, ids, cut, row in zip(texts, encoded, truncated, probabilities, strict=True)
        ]

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.end_of_text_id

    @property
    def _batch_mates_count(self) -> bool:
        """Whether an answer depends on how far the texts beside reach."""
        return self.description.pooling == "last_position" and self.description.pad_to is None

    def _padded(self, encoded: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """With their pads, where one of these is what is read."""
        if self.description.pooling != "last_position" or self.description.pad_to is None:
            return encoded
        return pad_batch(encoded, self._pad_id, self.description.pad_to)[0].tolist()

    def _trunk(self, depth: int) -> Trunk:
        """The first blocks; made anew only when something about them changed."""
        dtype = arithmetic(self.dtype, self.model.wte.weight.device)
        parts = (self.model.wte, self.model.wpe, *self.model.blocks[:depth])
        weights = (parameter for part in parts for parameter in part.parameters())
        made_of = depth, dtype, *((p.data_ptr(), p._version) for p in weights)
        if self._made is None or self._made[0] != made_of:
            self._made = made_of, Trunk(self.model, depth, dtype)
        return self._made[1]


def _check(description: Description, model: GPT2, tokenizer: Tokenizer) -> None:
    labels, n_ctx = description.labels, model.config.n_ctx
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise UsageError(f"labels must be at least two different names, not {labels}")
    if description.pooling not in POOLINGS:
        raise UsageError(f"pooling {description.pooling!r} is none of {', '.join(POOLINGS)}")
    if type(description.max_tokens) is not int or not 1 <= description.max_tokens <= n_ctx:
        raise UsageError(f"max_tokens = {description.max_tokens} must be from 1 to n_ctx = {n_ctx}")
    if tokenizer.n_vocab != model.config.n_vocab:
        raise CheckpointError(
            f"the tokenizer of {description.base} has {tokenizer.n_vocab} tokens, its model "
            f"{model.config.n_vocab}: they do not belong together"
        )


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
