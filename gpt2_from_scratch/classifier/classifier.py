"""A text classifier on GPT-2: its parts, and how it answers.

With one head that chooses a class it is the lecture's classifier. With other heads it tags words,
extracts answers, predicts values, or does several of these in one pass. There are two ways from
texts to outputs. Training uses `texts` and `batch_outputs`, which keep gradients; answering uses
`outputs`, which does not.

B texts in a batch, N texts in all, T tokens in the longest, C = n_embd, K outputs of a head.
"""

import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gpt2_from_scratch.classifier.freezing import (
    changed_part,
    count_trainable,
    frozen_depth,
    plain_depth,
    refuse_other_forward,
)
from gpt2_from_scratch.classifier.heads import (
    Outputs,
    blocks_read,
    head_layers,
    layer_read,
    layers_by_name,
    outputs_by_token,
    outputs_from,
    put_heads,
    relabelled,
)
from gpt2_from_scratch.classifier.importing import kind_of_classifier, read_head
from gpt2_from_scratch.classifier.ngrams import NGrams
from gpt2_from_scratch.classifier.saving import (
    Description,
    added_names,
    assemble,
    described_model,
    misfit,
    put_tensors,
    read_classifier,
    refuse_misfit,
    refuse_other_base,
    saved_file,
    unsaved_change,
    write_classifier,
)
from gpt2_from_scratch.classifier.settings import (
    CLASS_TASKS,
    OF_PADS,
    READ_LAST,
    HeadConfig,
    Pooling,
    in_given_order,
)
from gpt2_from_scratch.classifier.streaming import answers_to_stream
from gpt2_from_scratch.classifier.tasks import TASKS, answer_columns
from gpt2_from_scratch.classifier.tasks.classification import logit_per_class
from gpt2_from_scratch.classifier.tasks.task import Batch
from gpt2_from_scratch.data.messages import check_on_error, has_halves, refuse_alike, short
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.gpt2.config import LoRAConfig, read_config
from gpt2_from_scratch.gpt2.lora import LoRALinear, lora_names, merge_lora, unmerge_lora
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.nf4 import packed_sha256
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import (
    identity_sha256,
    load_gpt2,
    meta_gpt2,
    parameters_sha256,
    stored_parameters,
)
from gpt2_from_scratch.speed.batching import (
    by_length,
    check_ids,
    encode_texts,
    end_tokens,
    pad_batch,
    refuse_no_list,
)
from gpt2_from_scratch.speed.devices import arithmetic
from gpt2_from_scratch.speed.feature_cache import Embedded, Features, Texts
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.frozen_trunk import Trunk, is_streamed
from gpt2_from_scratch.speed.memory import MemoryPlan, planned_memory
from gpt2_from_scratch.speed.partial_blocks import real_positions
from gpt2_from_scratch.storage.mapped import hold
from gpt2_from_scratch.storage.paths import MODELS, expanded, model_folder, model_name
from gpt2_from_scratch.storage.processes import part_of
from gpt2_from_scratch.storage.tensors import each_sha256

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)

READ_AS = ("n_tokens", "truncated", "empty", "replaced")  # facts in a Prediction
BATCH = 32  # texts in a padded batch without gradients
NOTHING_BEFORE = "the heads read no block, or only the first one"
LONGEST_SHOWN = 100  # most characters of a text next to its answer
_LOCK = threading.Lock()
# {(id of the model, mode): (number of current uses, modules that were in the other mode)}
_MODES: dict[tuple[int, bool], tuple[int, list[nn.Module]]] = {}  # see `in_mode`


@dataclass(frozen=True)
class Prediction:
    """The heads' answers for one text, and facts about how the text was read."""

    answers: dict[str, Any]  # {head's name: an Answer}
    n_tokens: int
    truncated: bool  # the text was longer than the classifier can read
    empty: bool  # the text had nothing to read, and was read as its end token or <|endoftext|>
    replaced: bool  # the text contained halves of characters (lone surrogates), read as U+FFFD

    @property
    def answer(self) -> Any:
        """The first head's answer; usually the only one."""
        return next(iter(self.answers.values()))

    @property
    def label(self) -> str:
        """The label, if the first head chooses one."""
        return self.answer.label

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each label, if the first head has labels."""
        return self.answer.probabilities

    def at_threshold(self, label: str, threshold: float) -> "Prediction":
        """Choose `label` in the first head if its probability is at least `threshold`."""
        name, choice = next(iter(self.answers.items()))
        return replace(self, answers=self.answers | {name: choice.at_threshold(label, threshold)})

    def as_json(self, number: int) -> str:
        """Format as one JSON object on one line; several heads each have their own key."""
        answers = {name: answer.as_dict() for name, answer in self.answers.items()}
        found = self.answer.as_dict() if len(answers) == 1 else answers
        reading = {key: value for key, value in vars(self).items() if key != "answers"}
        return json.dumps({"number": number} | found | reading)

    def in_words(self, text: str) -> str:
        """Format as one line: the answers, warnings about the text, and the start of the text."""
        answers = [f"{name}: {answer.in_words()}" for name, answer in self.answers.items()]
        found = "; ".join(answers) if len(answers) > 1 else self.answer.in_words()
        marks = {"cut": self.truncated, "empty": self.empty, "replaced": self.replaced}
        marked = "".join(f"({mark}) " for mark, is_set in marks.items() if is_set)
        return f"{found}  {marked}{short(text, LONGEST_SHOWN)}"


class Classifier:
    """GPT-2 with its heads, its tokenizer, and a description of everything that is not a weight.

    `dtype` is the precision of the frozen blocks and their features; trainable parameters stay
    float32. With int8, the features are float32 too. `store` caches the features of texts that
    `texts` prepared; without a store they are kept in memory. If `ngrams` is set, the first head's
    answers are combined with those of n-grams; None means GPT-2 alone. Several threads may use a
    classifier at once. It can be copied with `copy.deepcopy`. It can also be used after a fork,
    where torch then computes with one thread.

    With `stream`, the matrices of frozen blocks stay in the base model's file, and one block at a
    time is in memory. Only the processor can compute such a classifier. A copy of it is not streamed.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        description: Description,
        *,
        dtype: torch.dtype = torch.float32,
        store: FeatureStore | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.description = description
        self.dtype = dtype
        self.store = store
        self.ngrams: NGrams | None = None
        self._made: tuple[tuple, Trunk] | None = None
        self._merged: dict[str, LoRALinear] = {}  # adapters that are merged into the weights
        self._logged = ""  # the last logged reason for not using shortcuts
        self._unsaved = ""  # the last logged change that files cannot contain
        self._config = model.config  # the config at the beginning; files do not contain it
        self._base: str | Path = description.base  # name or folder of the base model
        self._base_hashes: dict[str, str] | None = None  # hashes of its parameters, once known

    @classmethod
    def on_base(
        cls,
        base: str | Path,
        labels: Sequence[str] = (),
        *,
        heads: Sequence[HeadConfig] = (),
        lora: LoRAConfig | None = None,
        pooling: Pooling = "end_token",
        max_tokens: int | None = None,
        pad_to: int | None = None,
        causal_mask: bool = True,
        seed: int = 123,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        store: FeatureStore | None = None,
        stream: bool = False,
    ) -> "Classifier":
        """Make a classifier on the pretrained model `base`; its heads start with random weights.

        Args:
            base: The name or folder of the base model.
            labels: The labels of one linear head that chooses a label. Give either these or
                `heads`.
            heads: The heads, if one linear head is not what you want.
            lora: LoRA adapters to add to the blocks.
            pooling: Where the head for `labels` reads a text.
            max_tokens: Longer texts are cut to this many tokens; by default to n_ctx.
            pad_to: Pad every text to this many tokens.
            causal_mask: With False, each token sees the whole text in the frozen blocks.
            seed: Random seed of the new weights.
            device: Where to compute.
            dtype: Precision of the frozen blocks.
            store: A cache for the features of the frozen blocks.
            stream: Leave the matrices of frozen blocks in the model's file.

        Raises:
            CheckpointError: The base cannot be loaded.
            UsageError: No block can be streamed, `device` cannot compute streamed blocks, there are
                fewer than two labels, equal labels, a set of labels, an unknown pooling, a layer that
                the model does not have, or `max_tokens` is outside 1 to n_ctx.
            DataError: Labels differ only in case, spaces or Unicode form.
        """
        heads = heads or [HeadConfig(labels=in_given_order(labels), pooling=pooling)]
        for head in heads:
            refuse_alike(head.labels if head.task in CLASS_TASKS else ())
        model, tokenizer = load_gpt2(base, stream=stream), Tokenizer(model_folder(base))
        classifier = cls._on_model(
            base,
            model,
            tokenizer,
            heads,
            seed,
            max_tokens=model.config.n_ctx if max_tokens is None else max_tokens,
            pad_to=pad_to,
            lora=lora,
            causal_mask=causal_mask,
        )
        classifier.dtype, classifier.store = dtype, store
        if stream:
            classifier._hold_unpacked()
        return classifier.to(device)

    @classmethod
    def _on_model(
        cls,
        base: str | Path,
        model: GPT2,
        tokenizer: Tokenizer,
        heads: Sequence[HeadConfig],
        seed: int = 123,
        **settings: Any,
    ) -> "Classifier":
        """Put new heads on a loaded base; `settings` are the other fields of its Description."""
        hashes = parameters_sha256(model)
        description = Description(
            model_name(base),
            identity_sha256(hashes, tokenizer),
            tuple(replace(head, layer=layer_read(head, model)) for head in heads),
            **settings,
        )
        assemble(description, model, tokenizer, seed)
        description = replace(description, packed_sha256=packed_sha256(model))
        classifier = cls(model, tokenizer, description)
        classifier._base_hashes = hashes
        return classifier

    @classmethod
    def load(
        cls,
        path: str | Path,
        base: str | Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        store: FeatureStore | None = None,
        stream: bool = False,
    ) -> "Classifier":
        """Load a saved classifier.

        Args:
            path: A file, or a run's folder, whose `best.safetensors` is loaded.
                It may also be a folder that transformers' GPT2ForSequenceClassification or
                GPT2ForTokenClassification saved, which is its own base.
            base: The name or folder of its base; only needed if that is not a known model.
            device: Where to compute.
            dtype: Precision of the frozen blocks.
            store: A cache for the features of the frozen blocks.
            stream: Leave the matrices of frozen blocks in the base model's file.

        Raises:
            CheckpointError: The file is damaged or differs from its run's manifest, or the weights
                of the base are not those it was trained on.
            UsageError: No block can be streamed, or `device` cannot compute streamed blocks.
        """
        if kind := kind_of_classifier(expanded(path)):
            model = load_gpt2(path, stream=stream, warn_of_head=False)
            tokenizer = Tokenizer(path)
            head, weight, bias = read_head(expanded(path), kind, tokenizer)
            refuse_alike(head.labels if head.task in CLASS_TASKS else ())
            n_ctx = model.config.n_ctx
            imported = cls._on_model(path, model, tokenizer, [head], max_tokens=n_ctx)
            imported.dtype, imported.store = dtype, store
            with torch.no_grad():
                model.head.weight.copy_(weight)
                model.head.bias.copy_(bias)
            model.requires_grad_(False)
            if stream:
                imported._hold_unpacked()
            return imported.to(device)
        path = saved_file(path)
        description, tensors, ngrams = read_classifier(path)
        if base is None and description.base not in MODELS:
            raise CheckpointError(
                f"{path} was trained on a model in {description.base}; give that folder with --model"
            )
        base = description.base if base is None else base
        model, tokenizer = load_gpt2(base, stream=stream), Tokenizer(model_folder(base))
        hashes = parameters_sha256(model)
        refuse_other_base(path, description, str(base), identity_sha256(hashes, tokenizer))
        refuse_misfit(path, description, tensors, model.config, tokenizer)
        assemble(description, model, tokenizer)
        if packed_sha256(model) != description.packed_sha256:
            raise CheckpointError(
                f"{path} was trained on other NF4 weights than those that its base gives here. Train "
                "it again with this version of the package."
            )
        model.requires_grad_(False)
        for n in {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}:
            hold(model.blocks[n])
        put_tensors(tensors, parameters_by_name(model), path)
        classifier = cls(model, tokenizer, description, dtype=dtype, store=store)
        classifier._base, classifier._base_hashes, classifier.ngrams = base, hashes, ngrams
        if stream:
            classifier._hold_unpacked()
        return classifier.to(device)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.wte.weight.device

    def to(self, device: torch.device | str) -> "Classifier":
        """Move the model to a device, in place.

        Raises UsageError for another device than the processor if blocks are streamed.
        """
        if self.is_streamed and torch.device(device).type != "cpu":
            raise UsageError(
                f"streamed blocks are computed on the processor, not on {device}. Use the device cpu, "
                "or do not stream."
            )
        self.model.to(device)
        return self

    # --- other labels, heads trained elsewhere, LoRA, saving ---

    def relabel(self, labels: Sequence[str], *, head: str = "", seed: int = 123) -> None:
        """Give a head (by default the first one) other labels: more, fewer, renamed or reordered.

        Labels that the head already has keep their outputs. If all labels are new and their number
        is unchanged, they are new names for the same outputs. All other outputs are random, drawn
        with `seed`, and need training. After `replace_head`, call this to describe the new head.
        Raises UsageError for a head without classes or with adapters. Also raises it for a head with
        n-grams, which can only be given new names for its outputs.
        """
        layers = layers_by_name(self.model, self.description.heads)
        old = next((h for h in self.description.heads if h.name == (head or h.name)), None)
        if old is None:
            raise UsageError(f"no head is named {head!r}; there are {', '.join(layers)}")
        before = layers[old.name]
        if self.ngrams and old is self.description.head:
            known = [label for label in labels if label in old.labels]
            if known or len(labels) != len(old.labels):  # not merely new names
                self.refuse_ngrams("other labels")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            new, made = relabelled(old, before, labels, self.model)
        if made is not before:
            made.train(before.training).to(next(before.parameters()).dtype)
            made.requires_grad_(any(p.requires_grad for p in before.parameters()))
        heads = tuple(new if each is old else each for each in self.description.heads)
        self.description = replace(self.description, heads=heads)
        put_heads(self.model, layers | {old.name: made})

    def attach(self, path: str | Path) -> None:
        """Add heads that were trained elsewhere on the same, unchanged base.

        Raises CheckpointError if the base is another model, if it was changed in either classifier,
        or if texts are cut or padded differently. The heads would then read states that they were
        not trained on. Raises UsageError if a head's name is already used, and for a classifier with
        n-grams, which belong to a single head.
        """
        path = saved_file(path)
        description, tensors, ngrams = read_classifier(path)
        self.refuse_ngrams("other heads")
        if ngrams:
            raise UsageError(f"{path} was trained with_ngrams, which belong to its only head")
        refuse_other_base(path, description, "this one", self.description.base_sha256)
        for name in ("max_tokens", "pad_to", "causal_mask"):
            there, here = getattr(description, name), getattr(self.description, name)
            if there != here:
                raise CheckpointError(
                    f"{path} has {name} = {there}, but this classifier has {here}"
                )
        adapters = ("lora_A", "lora_B")
        if others := [n for n in tensors if not n.startswith("head.") or n.endswith(adapters)]:
            raise CheckpointError(
                f"{path} also changes {others[0]}, but only heads can be attached"
            )
        # a head's adapters count too: loading would expect them in every head
        adapters_here = {*lora_names(self.model), *(f"{name}.lora_A" for name in self._merged)}
        if others := sorted(self.changed_names() | adapters_here):
            raise CheckpointError(
                f"{others[0]} was trained here, so the heads of {path} would read unknown states"
            )
        together = replace(self.description, heads=self.description.heads + description.heads)
        refuse_misfit(path, description, tensors, self.model.config, self.tokenizer)
        with torch.random.fork_rng():  # the random weights are overwritten
            layers = {head.name: head_layers(head, self.model) for head in description.heads}
        found = nn.Module()
        put_heads(found, layers)
        put_tensors(tensors, parameters_by_name(found), path)
        put_heads(self.model, layers_by_name(self.model, self.description.heads) | layers)
        self.description = together

    def merge(self) -> None:
        """Add the product of each adapter's two LoRA matrices to the weight that it adapts.

        Answers are then computed faster and stay equal to within 1e-5. Call `unmerge` before
        training or `save`, which need the adapters separate from the weights. Raises UsageError if
        the weights are in NF4, which cannot hold the sums.
        """
        self._merged |= merge_lora(self.model)

    def merge_for_answers(self) -> None:
        """Merge the adapters if that is possible: weights in NF4 stay as they are, and so do answers."""
        if not self.description.is_quantized:
            self.merge()

    def unmerge(self) -> None:
        """Subtract the products that `merge` added to the weights.

        Weights that were not trained are read from the base's folder if it still exists, so they
        are bit-identical. Other weights return to within about 1e-7 of the largest added number.
        """
        unmerge_lora(self.model, self._merged)
        merged, self._merged = self._merged, {}
        if not merged:
            return
        adapted = {f"{name}.weight": adapter for name, adapter in merged.items()}
        try:
            with torch.no_grad():
                for name, value in self._base_parameters():
                    if name in adapted and adapted[name].rounds_to(value):
                        adapted[name].weight.copy_(value)
        except CheckpointError as error:
            log.info(f"{error}; the weights keep a rounding error from merging")

    def save(self, path: str | Path) -> None:
        """Write everything that differs from the base model to one file, atomically.

        This includes all parameters that were trained or changed, those that are trainable now, and
        the description. If the base is not found, all parameters are written. Raises UsageError if
        LoRA is merged, if the model's parameters do not match its description, or if the base found
        is not the base in the description. Raises CheckpointError for NaN and infinite numbers.
        """
        path, description = expanded(path), self.description
        if self._merged:
            raise UsageError("LoRA is merged into the weights; call unmerge() before saving")
        if packed_sha256(self.model) != description.packed_sha256:
            raise UsageError(
                f"{path} could not be loaded again, because the weights in NF4 are not those that "
                "the base gives"
            )
        # a direct call of `merge_lora` merged LoRA permanently
        if description.lora and not lora_names(self.model):
            description = replace(description, lora=None)
        parameters, config = parameters_by_name(self.model), self._config
        described = described_model(description, config, self.tokenizer)
        expected = parameters_by_name(described)
        if differences := misfit(parameters, expected, expected.keys()):
            raise UsageError(
                f"{path} could not be loaded again, because the model does not match its description: "
                f"{differences}. Use relabel() for other labels, on_base() for other heads or adapters"
            )
        reason = unsaved_change(self.model, described)
        if reason and reason != self._unsaved:
            log.warning(
                f"{reason}, but {path} contains only weights: a classifier loaded from it will answer "
                "without this change"
            )
        self._unsaved = reason
        saved = self.changed_names() | added_names(parameters, config)
        saved |= {name for name, parameter in parameters.items() if parameter.requires_grad}
        tensors = {name: p for name, p in parameters.items() if name in saved}
        write_classifier(path, description, tensors, self.ngrams)

    def changed_names(self) -> set[str]:
        """The names of parameters that differ from the base; all of GPT-2's if it is not found."""
        # the model was passed in, so it may already have been trained
        if self._base_hashes is None:
            try:
                base = dict(self._base_parameters())
            except CheckpointError as error:
                log.warning(f"{error}; all weights therefore count as trained")
                return {*parameters_sha256(self.model)}
            hashes = each_sha256(base)
            if identity_sha256(hashes, self.tokenizer) != self.description.base_sha256:
                raise UsageError(
                    f"base_sha256 = {self.description.base_sha256[:12]}... does not match "
                    f"{self._base}; compute base_sha256() of the base before training"
                )
            self._base_hashes = hashes
        now = parameters_sha256(self.model)
        return {name for name, digest in now.items() if self._base_hashes.get(name) != digest}

    def _base_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, value) of each parameter of the base model, read from its folder."""
        folder = model_folder(self._base)
        return stored_parameters(folder, meta_gpt2(read_config(folder)))

    # --- from texts to outputs: training ---

    def encode(self, texts: Iterable[str]) -> tuple[list[list[int]], list[bool]]:
        """Return each text's token ids as this classifier reads them, and whether it was cut."""
        return encode_texts(texts, self.tokenizer, self.description.max_tokens, end=self._end())

    def _end(self) -> list[int]:
        """The tokens that are appended to every text."""
        return end_tokens(self.tokenizer) if self.description.reads_end_token else []

    def texts(self, encoded: Sequence[Sequence[int]]) -> Texts:
        """Prepare encoded texts for training: run the frozen blocks on them once.

        If a frozen block has to run again at each use, the reason is logged. Raises DataError for
        ids that the model does not have.
        """
        check_ids(encoded, self.model.config.n_vocab)
        refuse_other_forward(self.model)
        depth, reason = frozen_depth(self.model)
        if self._reads_batch_padding:
            depth, reason = 0, "the pooled position depends on the other texts in the batch"
        self._refuse_mask(depth)
        if reason:
            log.warning(f"frozen blocks from blocks.{depth} on run again at each use: {reason}")
        depth = min(depth, *self._layers_read)
        if self.is_streamed:
            self._hold_from(depth, reason or "blocks.0 is trained")
            log.debug(str(self._planned_memory(depth, encoded)))
        if depth == 0:
            return self._embedded(encoded)
        kept_as = torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
        return Features(self._trunk(depth), self._padded(encoded), dtype=kept_as, store=self.store)

    def batch_outputs(self, texts: Texts, numbers: Sequence[int]) -> tuple[Outputs, Tensor]:
        """Compute each head's outputs for some of the prepared texts, with gradients.

        Returns {name: (B, K) or (B, T, K)}, and lengths (B,). Raises UsageError if a part that
        computed the prepared states has changed since.
        """
        if texts.depth:
            plain, reason = plain_depth(self.model, texts.depth)
            if plain < texts.depth:
                raise UsageError(f"{reason} after these texts were prepared; call texts() again")
        x, lengths = texts.batch(numbers)
        heads = self.description.heads
        return outputs_from(self.model, heads, texts.depth, x, lengths), lengths

    def batch_logits(self, texts: Texts, numbers: Sequence[int]) -> Tensor:
        """Compute the first head's outputs for some of the prepared texts, with gradients."""
        return self.batch_outputs(texts, numbers)[0][self.description.head.name]

    # --- from texts to outputs: answering ---

    @torch.no_grad()
    def outputs(
        self, texts: Texts | Sequence[Sequence[int]], *, shared: bool = False
    ) -> Iterator[tuple[list[int], Outputs, Tensor]]:
        """Compute each head's outputs for all texts, without gradients.

        Texts that `texts` prepared are computed from their prepared states. With `shared`, each of
        several processes computes a part of their batches. If token ids are given, equal texts are
        computed once. The frozen blocks also compute a common beginning of several texts only once.

        The model is in evaluation mode while outputs are computed, and in its earlier mode whenever
        they are yielded.

        Yields, per batch: the indices of its B texts; {name: (B, K) or (B, T, K)}; lengths (B,).
        """
        top = blocks_read(self.description.heads, self.model)
        refuse_other_forward(self.model)
        with in_mode(self.model, training=False):
            plain = plain_depth(self.model)[0]
            changed = changed_part(self.model, plain, top)
        self._log_change(changed)
        if not isinstance(texts, (Features, Embedded)):
            check_ids(texts, self.model.config.n_vocab)
            depth = min(plain, *self._layers_read, top - 1)
            self._refuse_mask(depth)
            packs = depth > 0 and not changed and not self._reads_batch_padding
            if self.is_streamed:
                self._hold_from(depth if packs else 0, changed or NOTHING_BEFORE)
            if packs:
                yield from self._packed_outputs(texts, depth)
                return
            texts = self._embedded(texts)
        batches = by_length(texts.encoded, BATCH, equal=bool(changed))
        for numbers in part_of(batches) if shared else batches:
            with in_mode(self.model, training=False):
                outputs, lengths = self.batch_outputs(texts, numbers)
            yield from _in_small_parts(numbers, outputs, lengths)

    def _log_change(self, changed: str) -> None:
        """Log why the model is computed without shortcuts, unless it was logged last time."""
        if changed and changed != self._logged:
            log.warning(
                f"{changed}; shortcuts are off, and texts are computed in batches of equal length"
            )
        self._logged = changed

    def _packed_outputs(
        self, encoded: Sequence[Sequence[int]], depth: int
    ) -> Iterator[tuple[list[int], Outputs, Tensor]]:
        """Run the first `depth` blocks without padding, and the others on padded batches.

        Yields the same as `outputs`.
        """
        same: dict[tuple[int, ...], list[int]] = {}  # {ids: the indices of equal texts}
        for n, ids in enumerate(self._padded(encoded)):
            same.setdefault(tuple(ids), []).append(n)
        distinct, trunk = list(same), self._trunk(depth)
        for batch, packed, states in trunk.run(distinct):
            for r in packed.rectangles:
                heads, x = self.description.heads, states[r.rows]
                with in_mode(self.model, training=False):
                    outputs = outputs_from(self.model, heads, depth, x, r.lengths)
                copies = [same[distinct[batch[n]]] for n in r.texts]
                rows = [row for row, each in enumerate(copies) for _ in each]
                numbers = [n for each in copies for n in each]
                yield from _in_small_parts(numbers, outputs.of_texts(rows), r.lengths[rows])

    def logits(self, texts: Texts | Sequence[Sequence[int]]) -> Tensor:
        """Compute the first head's outputs for all texts, in their order, on the CPU: (N, K).

        Raises UsageError if the head answers for every token, and CheckpointError if its outputs
        are not finite.
        """
        head = self.description.head
        if not head.reads_one_state:
            raise UsageError(
                f"head {head.name!r} answers for every token; use outputs() or predict()"
            )
        rows: dict[int, Tensor] = {}
        for numbers, outputs, lengths in self.outputs(texts):
            refuse_infinite(head, outputs[head.name], lengths)
            rows |= zip(numbers, outputs[head.name].cpu(), strict=True)
        if not rows:
            return torch.empty(0, head.n_outputs or self.model.config.n_embd)
        return torch.stack([rows[n] for n in range(len(rows))])

    def predict(self, texts: Iterable[str], *, on_error: str = "stop") -> list[Prediction | None]:
        """Answer texts of any length, including empty ones, in their order.

        `texts` may be a list, a tuple, an array, a table's column, or a stream. Raises DataError if
        a text is not a string; with `on_error="skip"` its prediction is None instead. Raises
        CheckpointError if the weights are so large that an answer is not finite.
        """
        check_on_error(on_error)
        refuse_no_list(texts)
        strings = texts = list(texts)
        if on_error == "skip":
            strings = [text for text in texts if isinstance(text, str)]
        encoded, cut = self.encode(strings)
        end = self._end()
        predictions = (
            Prediction(
                found,
                len(ids),
                was_cut,
                empty=ids == end and not was_cut if end else not text.strip(),
                replaced=has_halves(text),
            )
            for found, ids, was_cut, text in zip(
                self._answers(strings, encoded), encoded, cut, strings, strict=True
            )
        )
        return [next(predictions) if isinstance(text, str) else None for text in texts]

    def predict_frame(self, texts: Iterable[str]) -> "pandas.DataFrame":
        """Answer texts as a table with one row per text, and the index of `texts` if it has one.

        The columns are `label` (several labels are separated by bars), one column per probability
        or value, and the facts about how each text was read: `n_tokens`, `truncated`, `empty` and
        `replaced`. Raises the errors of `predict` and of `answer_columns`.
        """
        import pandas

        columns = answer_columns(self.description.heads, [], READ_AS)
        n_numbers = len(self.description.labels)
        rows = []
        for one in self.predict(texts):
            assert one  # only "skip" leaves texts without an answer
            found = one.answer.as_dict()
            numbers = found["values"] if "values" in found else found["probabilities"]
            chosen = one.answer.as_row()[: len(columns) - len(READ_AS) - n_numbers]
            rows.append([*chosen, *numbers.values(), *(getattr(one, name) for name in READ_AS)])
        index = texts.index if isinstance(texts, pandas.Series) else None
        return pandas.DataFrame(rows, index=index, columns=columns)

    def predict_by_token(self, text: str) -> list[tuple[str, dict[str, Any]]]:
        """Answer the text so far after each of its tokens: [(token, {head's name: answer})].

        Each answer is the answer to the text up to and including the token. For heads that read an
        end token, the end token is appended to each of these beginnings. An incomplete character is
        shown as U+FFFD. Raises UsageError for a head that answers for every token, and for a
        classifier with n-grams, which are not read token by token.
        """
        self.refuse_ngrams("answers after each token")
        if others := [head.name for head in self.description.heads if not head.reads_one_state]:
            raise UsageError(f"head {others[0]!r} answers for every token; use predict")
        (ids,), _ = self.encode([text])
        end = self._end()
        tokens = ids[: len(ids) - len(end)]
        beginnings = [[*tokens[: t + 1], *end] for t in range(len(tokens))]
        answers: list[dict[str, Any]] = []
        if tokens and self._reads_ends_alone():
            heads = self.description.heads
            with in_mode(self.model, training=False):
                outputs = outputs_by_token(self.model, heads, tokens, end)
            lengths = torch.tensor([*map(len, beginnings)])
            batch = Batch([text] * len(tokens), beginnings, self.tokenizer)
            answers = self._answers_to(batch, outputs, lengths)
        elif tokens:
            answers = self._answers([text] * len(tokens), beginnings)
        return [(self.tokenizer.decode([n]), a) for n, a in zip(tokens, answers, strict=True)]

    def _reads_ends_alone(self) -> bool:
        """Whether `outputs_by_token` gives the answers that `outputs` gives."""
        poolings = {head.pooling for head in self.description.heads}
        with in_mode(self.model, training=False):
            refuse_other_forward(self.model)
            changed = changed_part(self.model, 0, blocks_read(self.description.heads, self.model))
        exact = self.dtype == torch.float32 and self.description.causal_mask and not changed
        exact = exact and not self.is_streamed  # its blocks may be in another type
        return exact and poolings <= {*READ_LAST}

    def _answers(
        self, texts: Sequence[str], encoded: Sequence[Sequence[int]]
    ) -> list[dict[str, Any]]:
        """Each head's answer to each text: {head's name: answer}."""
        answers: list[dict[str, Any]] = [{} for _ in texts]
        for numbers, outputs, lengths in self.outputs(encoded):
            some, ids = [texts[n] for n in numbers], [encoded[n] for n in numbers]
            found = self._answers_to(Batch(some, ids, self.tokenizer), outputs, lengths)
            for n, answer in zip(numbers, found, strict=True):
                answers[n] = answer
        return answers

    def refuse_ngrams(self, what: str) -> None:
        """Raise UsageError if the classifier has n-grams; `what` is what they rule out."""
        if self.ngrams:
            raise UsageError(
                f"this classifier was trained with_ngrams, which rules out {what}. Train without "
                "n-grams, or set classifier.ngrams = None in Python."
            )

    def class_logits(self, outputs: Tensor, texts: Sequence[str]) -> Tensor:
        """The first head's logit of each class (N, K), from its outputs for N texts.

        The n-grams of the texts are included if the classifier has them.
        """
        logits = logit_per_class(self.description.head, outputs.float()).double().cpu()
        if self.ngrams:
            return torch.from_numpy(self.ngrams.combined(logits.numpy(), texts))
        return logits

    def _answers_to(
        self, batch: Batch, outputs: Mapping[str, Tensor], lengths: Tensor
    ) -> list[dict[str, Any]]:
        """Each head's answer to each text of a batch: {head's name: answer}."""
        answers: list[dict[str, Any]] = [{} for _ in batch.texts]
        for head in self.description.heads:
            output = outputs[head.name]
            refuse_infinite(head, output, lengths)
            if self.ngrams and head is self.description.head:
                output = self.class_logits(output, batch.texts)
                head = replace(head, one_output=False)
            found = TASKS[head.task].answers(head, output, batch)
            for by_name, answer in zip(answers, found, strict=True):
                by_name[head.name] = answer
        return answers

    def predict_stream(
        self, texts: Iterable[str], *, on_error: str = "stop"
    ) -> Iterator[tuple[str, Prediction | None]]:
        """Answer a stream of any number of texts in constant memory: yield (text, prediction).

        The answers of the last 65,536 distinct texts are remembered. Raises DataError if a text is
        not a string; with `on_error="skip"` its prediction is None instead. Several processes, which
        must read the same stream, share its texts (see `streaming`).
        """
        check_on_error(on_error)
        refuse_no_list(texts)
        return answers_to_stream(self.predict, texts, on_error)

    # --- the frozen blocks ---

    @property
    def is_streamed(self) -> bool:
        """Whether blocks of the model stay in the base model's file."""
        return any(map(is_streamed, self.model.blocks))

    def hold_trained(self) -> None:
        """Read the blocks from the first trainable one on into memory, if they are streamed.

        Raises UsageError if no block could then be streamed.
        """
        if self.is_streamed:
            depth, reason = frozen_depth(self.model)
            self._hold_from(min(depth, *self._layers_read), reason or "blocks.0 is trained")

    def _hold_unpacked(self) -> None:
        """Read into memory the blocks that `_packed_outputs` runs on padded batches.

        Raises UsageError with the reason if no block could then be streamed. Blocks in NF4 are in
        memory anyway.
        """
        if self.description.is_quantized:
            return
        depth, reason = plain_depth(self.model)
        if self._reads_batch_padding:
            depth, reason = 0, "the pooled position depends on the other texts in the batch"
        last = blocks_read(self.description.heads, self.model) - 1
        self._hold_from(min(depth, *self._layers_read, last), reason or NOTHING_BEFORE)

    def _planned_memory(self, depth: int, encoded: Sequence[Sequence[int]]) -> MemoryPlan:
        """The planned memory of training on these texts."""
        distinct = {tuple(ids) for ids in encoded}
        return planned_memory(
            self.model.config,
            depth,
            count_trainable(self.model),
            sum(map(len, distinct)),
            streamed=True,
            dtype=self.dtype,
            stored=self.model.get_parameter("blocks.0.mlp.c_fc.weight").itemsize,
        )

    def _hold_from(self, depth: int, reason: str) -> None:
        """Read the blocks after the first `depth` into memory.

        Raises UsageError with the reason if no block could then be streamed.
        """
        if depth <= 0:
            raise UsageError(f"no block can be streamed: {reason}. Leave out --stream-blocks.")
        for block in self.model.blocks[depth : blocks_read(self.description.heads, self.model)]:
            hold(block)

    @property
    def _layers_read(self) -> list[int]:
        return [layer_read(head, self.model) for head in self.description.heads]

    @property
    def _reads_batch_padding(self) -> bool:
        """Whether an answer depends on the length of the other texts in the batch."""
        poolings = {h.pooling for h in self.description.heads if h.reads_one_state}
        return bool(poolings & {*OF_PADS}) and self.description.pad_to is None

    def _refuse_mask(self, depth: int) -> None:
        if not self.description.causal_mask and depth < max(self._layers_read) - 1:
            raise UsageError("without the causal mask all blocks but the last must be frozen")

    def _embedded(self, encoded: Sequence[Sequence[int]]) -> Embedded:
        pad_id, pad_to = self.tokenizer.end_of_text_id, self.description.pad_to
        return Embedded(self.model, encoded, pad_id, pad_to)

    def _padded(self, encoded: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """Pad the texts to `pad_to` tokens, if it is set."""
        if self.description.pad_to is None:
            return encoded
        return pad_batch(encoded, self.tokenizer.end_of_text_id, self.description.pad_to)[
            0
        ].tolist()

    def _trunk(self, depth: int) -> Trunk:
        """The first `depth` blocks with their current weights.

        The Trunk is made again only if the settings or the memory of a weight changed.
        """
        dtype, mask = arithmetic(self.dtype, self.device), self.description.causal_mask
        parts = (self.model.wte, self.model.wpe, *self.model.blocks[:depth])
        weights = (w for part in parts for w in (*part.parameters(), *part.buffers()))
        made_of = depth, dtype, mask, *(weight.data_ptr() for weight in weights)
        if self._made is None or self._made[0] != made_of:
            self._made = made_of, Trunk(self.model, depth, dtype, causal_mask=mask)
            return self._made[1]
        trunk = self._made[1]
        trunk.follow_weights()
        return trunk


def _in_small_parts(
    numbers: list[int], outputs: Outputs, lengths: Tensor
) -> Iterator[tuple[list[int], Outputs, Tensor]]:
    """Divide what `Classifier.outputs` yields for a batch, if it has too many logits."""
    for part in outputs.small_parts():
        longest = int(lengths[part].max())
        yield numbers[part], outputs.of_texts(part, longest), lengths[part]


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode, and restore each module's mode afterwards.

    If several threads do this at once, the last one to finish restores the modes. This runs for
    every batch, so it does nothing slow if the model is already in the mode.
    """
    key = id(model), training
    with _LOCK:
        others = [part for part in model.modules() if part.training != training]
        count, changed = _MODES.get(key, (0, others))
        _MODES[key] = count + 1, changed
        if others:
            model.train(training)
    try:
        yield
    finally:
        with _LOCK:
            count, changed = _MODES.pop(key, (1, []))  # missing if the process forked in between
            if count > 1:
                _MODES[key] = count - 1, changed
            else:
                for part in changed:
                    part.training = not training


def _forget_other_threads() -> None:
    """Reset the modes in a forked process, where no other thread could restore them."""
    global _LOCK
    _LOCK = threading.Lock()
    for (_, training), (_, changed) in _MODES.items():
        for part in changed:
            part.training = not training
    _MODES.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_other_threads)


def refuse_infinite(head: HeadConfig, outputs: Tensor, lengths: Tensor) -> None:
    """Raise CheckpointError if a head's outputs (B, K) or (B, T, K) for B texts are not finite."""
    if not head.reads_one_state:  # values at padding have no meaning
        outputs = outputs[real_positions(lengths, outputs.shape[1])]
    if not (outputs.float() / head.temperature).isfinite().all():
        raise CheckpointError(
            f"the outputs of head {head.name!r} are NaN or infinite, so its weights, "
            "the model's weights or its temperature are unusable. Train again with a lower learning rate."
        )
