"""A classifier in the formats of Hugging Face's transformers and PEFT.

transformers' GPT-2 classifiers apply one linear layer to the final norm's output. For a text, they
read the last token that is not padding, and their linear layer has no bias. Everything that differs
from this here is either converted exactly or refused:
- A head of linear layers becomes one layer. The temperature, and the centre and scale of values, are
  multiplied into it.
- The bias b of a layer W is moved into the final norm: its bias grows by d with W d = b.
- Products of LoRA are added to their weights, or written as PEFT's adapters.
- The end token is appended by the tokenizer, which also tidies the texts. It is written as JSON, so
  the library tokenizers is not needed.

B texts, C = n_embd, K outputs of a head.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unicodedata import category

import torch
from torch import Tensor, nn

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.heads import layer_read, layers_by_name
from gpt2_from_scratch.classifier.saving import described_model, misfit, unsaved_change
from gpt2_from_scratch.classifier.settings import READ_LAST, HeadConfig
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.gpt2.config import GPT2_CHOICES, GPT2Config
from gpt2_from_scratch.gpt2.lora import LoRALinear, lora_names
from gpt2_from_scratch.gpt2.nf4 import packed_weights
from gpt2_from_scratch.gpt2.tokenizer import END_OF_TEXT, Tokenizer, bytes_to_characters
from gpt2_from_scratch.gpt2.weights import STORED_TRANSPOSED, names_on_disk
from gpt2_from_scratch.speed.batching import IGNORABLE, INVISIBLE, end_tokens
from gpt2_from_scratch.storage.paths import HUB

# {task: (transformers' class, its problem_type, PEFT's task_type, the name of its last layer)}
SEQUENCE, TOKENS = "GPT2ForSequenceClassification", "GPT2ForTokenClassification"
KINDS = {
    "classification": (SEQUENCE, "single_label_classification", "SEQ_CLS", "score"),
    "multi-label": (SEQUENCE, "multi_label_classification", "SEQ_CLS", "score"),
    "regression": (SEQUENCE, "regression", "SEQ_CLS", "score"),
    "token-classification": (TOKENS, None, "TOKEN_CLS", "classifier"),
}
LARGEST_ERROR = 1e-5  # of an output in float32, in units of its scale, from moving the bias


@dataclass(frozen=True)
class Converted:
    """The contents of the files: JSON objects and tensors."""

    config: dict[str, Any]  # config.json
    tensors: dict[str, Tensor]  # model.safetensors, or adapter_model.safetensors
    tokenizer: dict[str, Any]  # tokenizer.json
    tokenizer_config: dict[str, Any]  # tokenizer_config.json
    adapter_config: dict[str, Any] | None = None  # adapter_config.json of PEFT


def to_transformers(classifier: Classifier, head_name: str = "") -> Converted:
    """Convert a classifier with one of its heads; LoRA is merged into the converted weights.

    The classifier does not change. Raises UsageError if transformers cannot give the same answers,
    and CheckpointError for NaN and infinite numbers.
    """
    head = _head_to_export(classifier, head_name)
    model, layer = classifier.model, layer_read(head, classifier.model)
    # the positions end at max_tokens, so a longer text is an error unless it is cut
    n_ctx = classifier.description.max_tokens
    sizes = replace(model.config, n_ctx=n_ctx, **({"n_layer": layer} if layer else {}))
    state = merged_parameters(model)
    tensors = {}
    for name, (_, theirs) in names_on_disk(sizes).items():
        value = state[name][:n_ctx] if name == "wpe.weight" else state[name]
        tensors[f"transformer.{theirs}"] = _as_stored(name, value)
    tensors |= _output_layer(classifier, head)
    refuse_infinite_weights(tensors)
    return Converted(
        _config(classifier, head, sizes),
        tensors,
        tokenizer_json(classifier),
        _tokenizer_config(classifier),
    )


def to_peft(classifier: Classifier, head_name: str = "") -> Converted:
    """Convert the LoRA adapters of a classifier, with one of its heads and the final norm.

    PEFT adapts query, key and value together, so their adapters become one adapter of three times
    the rank. Raises UsageError if there are no adapters, if they are merged, if other parameters
    were trained too, or if transformers cannot give the same answers.
    """
    head = _head_to_export(classifier, head_name)
    adapters = dict(_adapters(classifier.model))
    if not adapters:
        merged = " unmerged" if classifier.description.lora else ""
        raise UsageError(f"the classifier has no{merged} LoRA adapters. Use --to hugging-face.")
    if packed := packed_weights(classifier.model):
        raise UsageError(
            f"{min(packed)} is stored in NF4, and PEFT would add the adapters to the weights of "
            f"{classifier.description.base}. Use --to hugging-face."
        )
    if own := [name for name in adapters if name.startswith("head")]:
        raise UsageError(f"{own[0]} has an adapter of the head itself. Use --to hugging-face.")
    others = {name for name in classifier.changed_names() if not name.startswith("ln_f.")}
    if others:
        raise UsageError(
            f"{min(others)} was trained without LoRA, so an adapter does not contain it. "
            "Use --to hugging-face."
        )
    _, _, task_type, layer = KINDS[head.task]
    kept = _output_layer(classifier, head)
    for name, value in parameters_by_name(classifier.model.ln_f).items():
        kept.setdefault(f"transformer.ln_f.{name}", value.detach())
    tensors = {f"base_model.model.{name}": value for name, value in kept.items()}
    ranks, alphas = {}, {}
    for name, adapter in adapters.items():
        theirs = f"transformer.{name.replace('blocks.', 'h.')}"
        tensors |= {f"base_model.model.{theirs}.{key}": v for key, v in _joined(adapter).items()}
        ranks[theirs] = len(tensors[f"base_model.model.{theirs}.lora_A.weight"])
        alphas[theirs] = adapter.scale * ranks[theirs]
    refuse_infinite_weights(tensors)
    base, lora = classifier.description.base, classifier.description.lora
    adapter_config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": HUB.get(base, base),
        "inference_mode": True,
        "r": min(ranks.values()),
        "lora_alpha": alphas[min(ranks, key=ranks.__getitem__)],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": lora.dropout if lora else 0.0,
        "fan_in_fan_out": True,  # transformers stores the matrices of a block as (in, out)
        "bias": "none",
        "target_modules": [*ranks],
        "modules_to_save": [layer, "ln_f"],
    }
    sizes = replace(classifier.model.config, n_layer=layer_read(head, classifier.model))
    return Converted(
        _config(classifier, head, sizes),
        tensors,
        tokenizer_json(classifier),
        _tokenizer_config(classifier),
        adapter_config,
    )


# --- what can be converted ---


def heads_of_export(classifier: Classifier, name: str, tool: str) -> list[HeadConfig]:
    """Return all heads of a classifier, or the one with a name.

    Raises UsageError if there is no such head, if the model is not the one that is described, or if
    a head's answers are combined with n-grams, which the other `tool` does not have.
    """
    heads = {head.name: head for head in classifier.description.heads}
    if name and name not in heads:
        what = f"no head is named {name!r:.80}"
        raise UsageError(f"{what}. Choose one with --head: {', '.join(heads)}.")
    chosen = [heads[name]] if name else [*heads.values()]
    refuse_other_model(classifier)
    if classifier.ngrams and classifier.description.head in chosen:
        classifier.refuse_ngrams(f"an export, because {tool} has no n-grams")
    return chosen


def _head_to_export(classifier: Classifier, name: str) -> HeadConfig:
    """Return the settings of the head. Raises UsageError if transformers has no such head."""
    head, *others = heads_of_export(classifier, name, "transformers")
    if others:
        names = ", ".join(each.name for each in (head, *others))
        raise UsageError(f"transformers has one head per model. Choose one with --head: {names}.")
    reason = ""
    if head.task not in KINDS:
        reason = f"head {head.name!r} is for {head.task}; it exports {', '.join(KINDS)}"
    elif head.reads_one_state and head.pooling not in READ_LAST:
        reason = f"it reads the last token of a text, and head {head.name!r} {head.pooling}"
    elif not head.final_norm:
        reason = f"it reads the state after the final norm, and head {head.name!r} the raw state"
    elif not classifier.description.causal_mask:
        reason = "its GPT-2 always has the causal mask, and this classifier was trained without it"
    elif layer_read(head, classifier.model) == 0:
        reason = f"head {head.name!r} reads the embeddings, and its GPT-2 has at least one block"
    if reason:
        raise UsageError(f"transformers cannot give the same answers: {reason}.")
    return head


def refuse_other_model(classifier: Classifier) -> None:
    """Raise UsageError if the model is not the one that the description describes."""
    model, description = classifier.model, classifier.description
    if description.lora and not lora_names(model):  # the adapters are merged
        description = replace(description, lora=None)
    described = described_model(description, model.config, classifier.tokenizer)
    expected = parameters_by_name(described)
    reason = misfit(parameters_by_name(model), expected, expected.keys())
    if reason := reason or unsaved_change(model, described):
        raise UsageError(f"the model is not the GPT-2 that other tools have: {reason}.")


def refuse_infinite_weights(tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if a tensor contains NaN or infinite values."""
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{name} contains NaN or infinite values; not exported")


# --- weights ---


def _adapters(model: nn.Module) -> Iterable[tuple[str, LoRALinear]]:
    return ((name, part) for name, part in model.named_modules() if isinstance(part, LoRALinear))


def merged_parameters(model: nn.Module) -> dict[str, Tensor]:
    """All parameters of a model by name, with LoRA merged; the model does not change.

    Weights in NF4 are dequantised to float32, before LoRA is merged.
    """
    state: dict[str, Tensor] = {name: packed() for name, packed in packed_weights(model).items()}
    state |= parameters_by_name(model)
    merged = {f"{name}.weight".lstrip("."): part.whole_weight() for name, part in _adapters(model)}
    return {
        name: merged.get(name, value).detach()
        for name, value in state.items()
        if not name.endswith(("lora_A", "lora_B"))
    }


def _as_stored(name: str, value: Tensor) -> Tensor:
    """A parameter as transformers stores it: matrices of a block are (in, out)."""
    value = value.t() if name.endswith(STORED_TRANSPOSED) else value
    return value.detach().float().cpu().contiguous()


def _joined(adapter: LoRALinear) -> dict[str, Tensor]:
    """The adapters of a layer as one: A (P r, in), and B (out, P r) with zeros between the parts."""
    A, B = adapter.lora_A.detach().float().cpu(), adapter.lora_B.detach().float().cpu()
    joined = torch.zeros(len(adapter.weight), A.shape[0] * A.shape[1])
    for n, outputs in enumerate(adapter.slices):
        joined[outputs, n * A.shape[1] : (n + 1) * A.shape[1]] = B[n]
    return {"lora_A.weight": A.flatten(0, 1), "lora_B.weight": joined}


@torch.no_grad()
def _output_layer(classifier: Classifier, head: HeadConfig) -> dict[str, Tensor]:
    """The tensors of transformers' last layer and, if its bias is moved, of the final norm.

    Raises UsageError if the head is not linear, or if its bias cannot be moved exactly.
    """
    layers = layers_by_name(classifier.model, classifier.description.heads)[head.name]
    weight = torch.eye(classifier.model.config.n_embd, dtype=torch.float64)
    bias = torch.zeros(len(weight), dtype=torch.float64)
    for part in layers if isinstance(layers, nn.Sequential) else [layers]:
        if isinstance(part, nn.Dropout):
            continue
        if not isinstance(part, nn.Linear | LoRALinear):
            raise UsageError(
                "transformers cannot give the same answers: its classifier is one linear layer, and "
                f"head {head.name!r} has {type(part).__name__} between two."
            )
        own = part.whole_weight() if isinstance(part, LoRALinear) else part.weight
        own = own.double().cpu()
        weight, bias = own @ weight, own @ bias + part.bias.double().cpu()
    if head.one_output:  # a sigmoid of z is a softmax of 0 and z
        weight, bias = (torch.cat([torch.zeros_like(x), x]) for x in (weight, bias))
    unit = torch.tensor(head.scale or [1.0] * len(weight), dtype=torch.float64)
    weight = weight * unit[:, None] / head.temperature
    bias = bias * unit / head.temperature
    if head.center:
        bias = bias + torch.tensor(head.center, dtype=torch.float64)
    if not head.reads_one_state:
        return {"classifier.weight": weight.float(), "classifier.bias": bias.float()}
    norm_bias = classifier.model.ln_f.bias.double().cpu()
    moved = _with_bias_moved(head, weight, bias, norm_bias, unit)
    return {"score.weight": weight.float(), "transformer.ln_f.bias": moved}


def _with_bias_moved(
    head: HeadConfig, weight: Tensor, bias: Tensor, norm_bias: Tensor, unit: Tensor
) -> Tensor:
    """The final norm's bias n + d (C,) in float32, so that W (n + d) = W n + b.

    d is the smallest solution. Raises UsageError if there is none, or if d is so large that float32
    would round the outputs by more than LARGEST_ERROR.
    """
    shift = torch.linalg.lstsq(weight, bias[:, None], driver="gelsd").solution[:, 0]
    moved = (norm_bias + shift).float()
    expected = weight @ norm_bias + bias
    error = (weight.float().double() @ moved.double() - expected).abs()
    error += torch.finfo(torch.float32).eps * (weight.abs() @ moved.double().abs())  # when it runs
    if not (error <= LARGEST_ERROR * unit).all():  # also for NaN
        raise UsageError(
            f"transformers cannot give the same answers: its classifier has no bias, and that of "
            f"head {head.name!r} cannot be moved into the final norm (largest error "
            f"{float((error / unit).max()):.1e}). The rows of its weight depend on each other, or "
            "its values are too far from 0."
        )
    return moved


# --- config.json ---


def _config(classifier: Classifier, head: HeadConfig, sizes: GPT2Config) -> dict[str, Any]:
    architecture, problem, *_ = KINDS[head.task]
    end_of_text = classifier.tokenizer.end_of_text_id
    labels = dict(enumerate(head.labels))
    return {
        "architectures": [architecture],
        **{name: own for name, (own, *_) in GPT2_CHOICES.items() if own is not None},
        "vocab_size": sizes.n_vocab,
        "n_positions": sizes.n_ctx,
        "n_embd": sizes.n_embd,
        "n_head": sizes.n_head,
        "n_layer": sizes.n_layer,
        "id2label": {str(n): label for n, label in labels.items()},
        "label2id": {label: n for n, label in labels.items()},
        **({"problem_type": problem} if problem else {}),
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,  # no text is encoded to it
        "torch_dtype": "float32",
    }


# --- tokenizer.json ---

SPECIAL = {  # the settings of the token <|endoftext|>
    "content": END_OF_TEXT,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


def tokenizer_json(classifier: Classifier) -> dict[str, Any]:
    """The contents of tokenizer.json, which tidies and appends the end token if it is read."""
    tokenizer = classifier.tokenizer
    end = end_tokens(tokenizer) if classifier.description.reads_end_token else []
    characters = bytes_to_characters()
    names = [
        "".join(characters[byte] for byte in tokenizer.token_bytes(token))
        for token in range(tokenizer.n_vocab - 1)
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokenizer.end_of_text_id} | SPECIAL],
        "normalizer": _tidying() if end else None,
        "pre_tokenizer": byte_level,
        "post_processor": _appending(names[end[0]], end[0]) if end else byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {name: n for n, name in enumerate([*names, END_OF_TEXT])},
            "merges": [f"{names[left]} {names[right]}" for left, right in merges_of(tokenizer)],
        },
    }


def _tokenizer_config(classifier: Classifier) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": classifier.description.max_tokens,
        "pad_token": END_OF_TEXT,
        "padding_side": "right",
        "truncation_side": "right",
        "split_special_tokens": True,  # the string <|endoftext|> in a text is ordinary text
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {str(classifier.tokenizer.end_of_text_id): SPECIAL},
    }


def merges_of(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """The merges of a vocabulary, in order: the ids of the two tokens that make each longer token.

    They follow from the ids: merging a token's bytes with the earlier merges leaves its two parts.
    Raises CheckpointError if it does not.
    """
    ranks = {tokenizer.token_bytes(token): token for token in range(tokenizer.n_vocab - 1)}
    merges = []
    for whole, rank in ranks.items():
        if len(whole) == 1:
            continue
        parts = [whole[n : n + 1] for n in range(len(whole))]
        while len(parts) > 2:
            found = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
            first = min(range(len(found)), key=found.__getitem__)
            if found[first] >= rank:
                raise CheckpointError(f"token {rank} of the vocabulary is not made of two others")
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        merges.append((ranks[parts[0]], ranks[parts[1]]))
    return merges


def _tidying() -> dict[str, Any]:
    """The normalizer that does what `batching.tidied` does."""
    some = _characters(_is_invisible)
    # without the part before it, the time would be quadratic in the length of a run of spaces
    steps = [("\\r\\n?", "\n"), (f"(?<!{some}){some}+\\z", "")]
    return {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFC"},
            *(
                {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
                for pattern, content in steps
            ),
        ],
    }


def whitespace_only() -> dict[str, Any]:
    """The normalizer that empties texts of white space alone, and changes no others."""
    pattern = f"\\A{_characters(str.isspace)}+\\z"
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}


def _is_invisible(character: str) -> bool:
    """Whether `batching.tidied` removes a character at the end of a text."""
    return ord(character) in IGNORABLE or category(character) in INVISIBLE


@cache
def _characters(wanted: Callable[[str], bool]) -> str:
    """The characters for which a function is true, as a regular expression."""
    found = [code for code in range(sys.maxunicode + 1) if wanted(chr(code))]
    return f"[{''.join(_ranges(found))}]"


def _ranges(codes: Sequence[int]) -> Iterable[str]:
    """Sorted code points as ranges of a regular expression."""
    start = 0
    for n in range(1, len(codes) + 1):
        if n == len(codes) or codes[n] != codes[n - 1] + 1:
            yield f"\\x{{{codes[start]:x}}}-\\x{{{codes[n - 1]:x}}}"
            start = n


def _appending(name: str, token: int) -> dict[str, Any]:
    """The post-processor that appends a token, also to a text that was cut."""
    first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    end = {"SpecialToken": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, end],
        "pair": [first, second, end],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }
