"""A text classifier on GPT-2: what it is made of, and how it answers.

With one head that chooses a class it is the lecture's. With other heads it tags words, extracts
spans, predicts values, or does several of these in one pass.

B texts, T tokens of the longest, C = n_embd, K outputs of a head, N texts in all.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2_from_scratch.classifier.freezing import frozen_depth, plain_depth, trainable_names
from gpt2_from_scratch.classifier.heads import (
    blocks_read,
    head_layers,
    layer_read,
    layers_by_name,
    outputs_from,
    put_heads,
)
from gpt2_from_scratch.classifier.saving import (
    Description,
    assemble,
    own_names,
    put_tensors,
    read_classifier,
    refuse_other_base,
    saved_file,
    write_classifier,
)
from gpt2_from_scratch.classifier.settings import OF_PADS, HeadConfig, Pooling
from gpt2_from_scratch.classifier.tasks.predictions import Prediction, answers
from gpt2_from_scratch.data.messages import check_on_error, has_halves
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.lora import LoRALinear, merge_lora, unmerge_lora
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import base_sha256, load_gpt2
from gpt2_from_scratch.speed.batching import (
    by_length,
    check_ids,
    encode_texts,
    no_string,
    pad_batch,
)
from gpt2_from_scratch.speed.devices import arithmetic
from gpt2_from_scratch.speed.feature_cache import Embedded, Features, Texts
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.frozen_trunk import Trunk, batches
from gpt2_from_scratch.storage.paths import MODELS, model_folder, model_name

log = logging.getLogger(__name__)


class Classifier:
    """GPT-2 with its heads, its tokenizer, and a description of all that is not weights."""

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
        self._merged: dict[str, LoRALinear] = {}  # adapters whose product is in the weights now
        self._changed = own_names(model)  # what the base does not have as it is here

    @classmethod
    def on_base(
        cls,
        base: str | Path,
        labels: Sequence[str] = (),
        *,
        heads: Sequence[HeadConfig] = (),
        lora: LoRAConfig | None = None,
        pooling: Pooling = "last_token",
        max_tokens: int | None = None,
        pad_to: int | None = None,
        causal_mask: bool = True,
        seed: int = 123,
        dtype: torch.dtype = torch.float32,
    ) -> "Classifier":
        """A classifier on the pretrained model `base`, its heads still random (drawn with `seed`).

        `labels` and `pooling` make one linear head that chooses a label; `heads` are for all else.
        Raises CheckpointError when the base cannot be loaded, UsageError for fewer than two labels,
        a label twice, an unknown pooling, a layer the model does not have, or `max_tokens` outside
        1 to n_ctx.
        """
        heads = heads or [HeadConfig(labels=tuple(labels), pooling=pooling)]
        folder = model_folder(base)
        model, tokenizer = load_gpt2(base), Tokenizer(folder)
        description = Description(
            model_name(base),
            base_sha256(model, tokenizer),
            tuple(replace(head, layer=layer_read(head, model)) for head in heads),
            model.config.n_ctx if max_tokens is None else max_tokens,
            pad_to,
            lora,
            causal_mask,
        )
        assemble(description, model, tokenizer, seed)
        return cls(model, tokenizer, description, dtype)

    @classmethod
    def load(
        cls, path: str | Path, base: str | Path | None = None, *, dtype: torch.dtype = torch.float32
    ) -> "Classifier":
        """Load a saved classifier: a file, or a run's folder, whose `best.safetensors` is taken.

        `base` says where its base model lies when that is not one of the known names. Raises
        CheckpointError for a damaged file, one that its run's manifest has otherwise, or a base
        with other weights than it was trained on.
        """
        path = saved_file(path)
        description, tensors = read_classifier(path)
        if base is None and description.base not in MODELS:
            raise CheckpointError(
                f"{path} was trained on a model in {description.base}; say where it lies with --model"
            )
        base = description.base if base is None else base
        model, tokenizer = load_gpt2(base), Tokenizer(model_folder(base))
        refuse_other_base(path, description, str(base), base_sha256(model, tokenizer))
        try:
            assemble(description, model, tokenizer)
        except UsageError as error:
            raise CheckpointError(f"{path} does not fit: {error}") from None
        classifier = cls(model, tokenizer, description, dtype)
        model.requires_grad_(False)
        put_tensors(tensors, dict(model.named_parameters()), classifier._changed, path)
        classifier._changed |= tensors.keys()
        return classifier

    def attach(self, path: str | Path) -> None:
        """Add heads that were trained elsewhere on the same base, which stayed as it was there.

        Raises CheckpointError for another base, and where more than heads was trained, there or
        here: they would read states they were not trained on; also where texts are cut or padded
        otherwise. UsageError for a name that is taken.
        """
        path = saved_file(path)
        description, tensors = read_classifier(path)
        self._refuse_to_attach(path, description, tensors)
        together = replace(self.description, heads=self.description.heads + description.heads)
        with torch.random.fork_rng():  # what is drawn is overwritten
            layers = {head.name: head_layers(head, self.model) for head in description.heads}
        found = nn.Module()
        put_heads(found, layers)
        own = {n: p for n, p in found.named_parameters() if p is not self.model.wte.weight}
        put_tensors(tensors, own, set(own), path)
        put_heads(self.model, layers_by_name(self.model, self.description.heads) | layers)
        self.description, self._changed = together, own_names(self.model)

    def _refuse_to_attach(
        self, path: Path, description: Description, tensors: Mapping[str, Tensor]
    ) -> None:
        refuse_other_base(path, description, "this one", self.description.base_sha256)
        for name in ("max_tokens", "pad_to", "causal_mask"):
            there, here = getattr(description, name), getattr(self.description, name)
            if there != here:
                raise CheckpointError(f"{path} has {name} = {there}, this one {here}")
        if others := sorted(name for name in tensors if not name.startswith("head.")):
            raise CheckpointError(f"{path} changes {others[0]} too: only heads can be attached")
        # adapters of a head too: once saved, they would be looked for in the others
        heads = {n for n in own_names(self.model) if not n.endswith(("lora_A", "lora_B"))}
        if others := sorted((self._changed | own_names(self.model)) - heads):
            raise CheckpointError(
                f"{others[0]} was trained here, so {path} would read other states"
            )

    def merge(self) -> None:
        """Put LoRA's products into the weights it adapts: quicker, and the same answers to 1e-5.

        `save` and training need them apart: `unmerge`.
        """
        self._merged |= merge_lora(self.model)

    def unmerge(self) -> None:
        """Take the products out again."""
        unmerge_lora(self.model, self._merged)
        self._merged = {}

    def save(self, path: Path) -> None:
        """Write all that ever trained and the description to one safetensors file, atomically."""
        if self._merged:
            raise UsageError("LoRA is merged into the weights: unmerge() before saving")
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
        self, encoded: Sequence[Sequence[int]], *, store: FeatureStore | None = None
    ) -> Texts:
        """Encoded texts where what trains takes them up: behind the frozen blocks, if there are any.

        Says why, where something other than training keeps frozen blocks from being computed once.
        Raises DataError for ids that the model does not have.
        """
        check_ids(encoded, self.model.config.n_vocab)
        depth, reason = frozen_depth(self.model)
        if self._batch_mates_count:
            depth, reason = 0, "what is read depends on the texts beside"
        self._refuse_mask(depth)
        if reason:
            log.warning(f"frozen blocks behind {depth} are computed again at each use: {reason}")
        depth = min(depth, *self._layers_read)
        if depth == 0:
            return Embedded(self.model, encoded, self._pad_id, self.description.pad_to)
        return Features(self._trunk(depth), self._padded(encoded), dtype=self.dtype, store=store)

    def batch_outputs(
        self, texts: Texts, numbers: Sequence[int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Outputs of each head for one batch of texts, by their numbers, with gradients.

        {name: (B, K) or (B, T, K)}, and lengths (B,).
        """
        x, lengths = texts.batch(numbers)
        heads = self.description.heads
        return outputs_from(self.model, heads, texts.depth, x, lengths), lengths

    def batch_logits(self, texts: Texts, numbers: Sequence[int]) -> Tensor:
        """The first head's outputs for one batch of texts, by their numbers, with gradients."""
        return self.batch_outputs(texts, numbers)[0][self.description.head.name]

    @torch.no_grad()
    def all_logits(self, texts: Texts) -> Tensor:
        """The first head's outputs for all texts, in their order, on the CPU: (N, K) float32.

        Raises UsageError for a head that answers for every token.
        """
        self._refuse_many_rows()
        self.model.eval()
        found = {
            n: out
            for batch in by_length(texts.encoded, 32)
            for n, out in zip(batch, self.batch_logits(texts, batch).cpu(), strict=True)
        }
        return self._stacked([found[n] for n in range(len(found))])

    def logits(self, encoded: Sequence[Sequence[int]]) -> Tensor:
        """The first head's outputs for texts that are read once: in order, on the CPU, (N, K).

        Raises DataError for ids that the model does not have, UsageError for a head that answers
        for every token.
        """
        self._refuse_many_rows()
        rows = [torch.empty(0)] * len(encoded)
        for numbers, outputs in self._passes(encoded):
            for n, row in zip(numbers, outputs[self.description.head.name].cpu(), strict=True):
                rows[n] = row
        return self._stacked(rows)

    def predict(self, texts: Sequence[str], *, on_error: str = "stop") -> list[Prediction | None]:
        """Answers for texts of any length, the empty one included, in the texts' order.

        Raises DataError when one of them is not a string; with `on_error="skip"` its answer is
        None.
        """
        check_on_error(on_error)
        if not isinstance(texts, (str, Sequence)):  # a generator, a pandas column
            texts = list(texts)
        if on_error == "stop" or isinstance(texts, str):
            return [*self._predict(texts)]
        found = iter(self._predict([text for text in texts if isinstance(text, str)]))
        return [next(found) if isinstance(text, str) else None for text in texts]

    def _predict(self, texts: Sequence[str]) -> list[Prediction]:
        encoded, truncated = self.encode(texts)
        found: list[dict] = [{} for _ in texts]
        for numbers, outputs in self._passes(encoded):
            some = [texts[n] for n in numbers], [encoded[n] for n in numbers]
            for head in self.description.heads:
                told = answers(head, outputs[head.name], *some, self.tokenizer)
                for n, answer in zip(numbers, told, strict=True):
                    found[n][head.name] = answer
        return [
            Prediction(answer, len(ids), cut, empty=not text.strip(), replaced=has_halves(text))
            for answer, ids, cut, text in zip(found, encoded, truncated, texts, strict=True)
        ]

    @torch.no_grad()
    def _passes(
        self, encoded: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """(numbers of texts, each head's outputs for them), batch by batch, equal texts together."""
        check_ids(encoded, self.model.config.n_vocab)
        self.model.eval()
        heads = self.description.heads
        top = blocks_read(heads, self.model)
        depth = min(plain_depth(self.model)[0], *self._layers_read, top - 1)
        self._refuse_mask(depth)
        if self._batch_mates_count or depth <= 0:
            texts = Embedded(self.model, encoded, self._pad_id, self.description.pad_to)
            for batch in by_length(encoded, 32):
                yield batch, self.batch_outputs(texts, batch)[0]
            return
        trunk = self._trunk(depth)
        same: dict[tuple[int, ...], list[int]] = {}  # equal texts are computed once
        for n, ids in enumerate(self._padded(encoded)):
            same.setdefault(tuple(ids), []).append(n)
        distinct = list(same)
        for numbers in batches(distinct, trunk.tokens):
            packed = trunk.pack([distinct[n] for n in numbers])
            states = trunk(packed)
            for r in packed.rectangles:
                outputs = outputs_from(self.model, heads, depth, states[r.rows], r.lengths)
                copies = [same[distinct[numbers[n]]] for n in r.texts]
                rows = [row for row, each in enumerate(copies) for _ in each]
                yield [n for each in copies for n in each], {k: v[rows] for k, v in outputs.items()}

    def _refuse_mask(self, depth: int) -> None:
        if not self.description.causal_mask and depth < max(self._layers_read) - 1:
            raise UsageError("without the causal mask all blocks but the last must be frozen")

    def _refuse_many_rows(self) -> None:
        head = self.description.head
        if not head.reads_one_state:
            raise UsageError(
                f"head {head.name!r} answers for every token: use batch_outputs or predict"
            )

    def _stacked(self, rows: list[Tensor]) -> Tensor:
        width = self.description.head.n_outputs or self.model.config.n_embd
        return torch.stack(rows) if rows else torch.empty(0, width)

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.end_of_text_id

    @property
    def _layers_read(self) -> list[int]:
        return [layer_read(head, self.model) for head in self.description.heads]

    @property
    def _batch_mates_count(self) -> bool:
        """Whether an answer depends on how far the texts beside reach."""
        read = {h.pooling for h in self.description.heads if h.reads_one_state}
        return bool(read & {*OF_PADS}) and self.description.pad_to is None

    def _padded(self, encoded: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """With their pads, where one of these is what is read."""
        if self.description.pad_to is None:
            return encoded
        return pad_batch(encoded, self._pad_id, self.description.pad_to)[0].tolist()

    def _trunk(self, depth: int) -> Trunk:
        """The first blocks; made anew only when something about them changed."""
        dtype = arithmetic(self.dtype, self.model.wte.weight.device)
        parts = (self.model.wte, self.model.wpe, *self.model.blocks[:depth])
        weights = (parameter for part in parts for parameter in part.parameters())
        made_of = depth, dtype, *((p.data_ptr(), p._version) for p in weights)
        if self._made is None or self._made[0] != made_of:
            mask = self.description.causal_mask
            self._made = made_of, Trunk(self.model, depth, dtype, causal_mask=mask)
        return self._made[1]


# --- Classifying any number of texts in flat memory, as they come. ---


FIRST, LARGEST = 64, 4096  # texts in a window: few at first, so that answers begin to come at once
CHARACTERS = 4_000_000  # in a window, whatever the number of texts
REMEMBERED = 65_536  # distinct texts whose answers are kept, about 50 MB


def predict_stream(
    classifier: Classifier, texts: Iterable[str], *, on_error: str = "stop"
) -> Iterator[tuple[str, Prediction | None]]:
    """(text, answer) of each text, in their order, each computed once.

    Texts are taken up in windows, inside of which they are sorted for speed; the answers of the
    65,536 distinct texts met last are remembered. Raises DataError for what is not a string; with
    `on_error="skip"` its answer is None.
    """
    check_on_error(on_error)
    if isinstance(texts, str):  # it would be taken for a list of letters
        raise DataError(f"give a list of texts, not one string: [{texts!r:.80}]")
    known: dict[bytes, Prediction | None] = {}
    for window in _windows(texts, on_error):
        keys = [_key(text) for text in window]
        new = {key: text for key, text in zip(keys, window, strict=True)}
        new = {key: text for key, text in new.items() if key and key not in known}
        answers = dict(zip(new, classifier.predict(list(new.values())), strict=True))
        answers |= {key: known.pop(key) for key in dict.fromkeys(keys) if key in known}
        known |= answers  # those met now stand last
        yield from ((text, answers.get(key)) for key, text in zip(keys, window, strict=True))
        for key in list(known)[: max(0, len(known) - REMEMBERED)]:
            del known[key]


def _windows(texts: Iterable[str], on_error: str) -> Iterator[list[str]]:
    window: list[str] = []
    size, characters = FIRST, 0
    for number, text in enumerate(texts):
        if on_error == "stop" and not isinstance(text, str):
            raise DataError(no_string(text, number))
        window.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(window) >= size or characters >= CHARACTERS:
            yield window
            window, characters = [], 0
            size = min(2 * size, LARGEST)
    if window:
        yield window


def _key(text: str) -> bytes:
    if not isinstance(text, str):
        return b""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
