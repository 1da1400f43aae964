"""Load a model's weights from a folder and save them.

Every weight on disk is used exactly once, and every parameter is set exactly once. GPT-2's files have
these peculiarities:
- OpenAI calls an array `model/h0/attn/c_attn/w`. Hugging Face calls it `h.0.attn.c_attn.weight`, in
  some files with the prefix `transformer.`. In OpenAI's files, LayerNorms have arrays `g` and `b`;
  all other layers have `w` and `b`.
- The matrices of a block are stored as (in, out), the transpose of the weight of an `nn.Linear`.
  OpenAI's matrices have an additional first axis of length 1, because they were 1x1 convolutions.
- The output head is not stored, because its weight is `wte`. Some files contain a copy, `lm_head`.
- Hugging Face's files contain causal masks (`h.0.attn.bias`, `attn.masked_bias`), which are not
  weights. TensorFlow's can contain the state of the optimizer.
- nanoGPT uses Hugging Face's names, but stores its matrices as (out, in). Its biases may be missing,
  which means that they are zero.
"""

import hashlib
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.gpt2.config import SIZE_FILES, GPT2Config, read_config, write_hparams
from gpt2_from_scratch.gpt2.folders import files_of_weights, tensor_files, weight_files
from gpt2_from_scratch.gpt2.model import GPT2, init_weights
from gpt2_from_scratch.gpt2.openai_checkpoint import masked_crc32c, open_arrays
from gpt2_from_scratch.gpt2.tokenizer import TOKENIZER_JSON, Tokenizer
from gpt2_from_scratch.storage.files import check_sums
from gpt2_from_scratch.storage.mapped import MappedParameter, is_mapped, release
from gpt2_from_scratch.storage.paths import expanded, model_folder
from gpt2_from_scratch.storage.tensors import (
    each_sha256,
    joined_sha256,
    mapped_tensors,
    tensor_offsets,
    write_tensors,
)

log = logging.getLogger(__name__)

# {parameter: (name of OpenAI's array, name of Hugging Face's tensor)}; `{}` is the block's number
NAME_MAP = {
    "wte.weight": ("model/wte", "wte.weight"),
    "wpe.weight": ("model/wpe", "wpe.weight"),
    "blocks.{}.ln_1.weight": ("model/h{}/ln_1/g", "h.{}.ln_1.weight"),
    "blocks.{}.ln_1.bias": ("model/h{}/ln_1/b", "h.{}.ln_1.bias"),
    "blocks.{}.attn.c_attn.weight": ("model/h{}/attn/c_attn/w", "h.{}.attn.c_attn.weight"),
    "blocks.{}.attn.c_attn.bias": ("model/h{}/attn/c_attn/b", "h.{}.attn.c_attn.bias"),
    "blocks.{}.attn.c_proj.weight": ("model/h{}/attn/c_proj/w", "h.{}.attn.c_proj.weight"),
    "blocks.{}.attn.c_proj.bias": ("model/h{}/attn/c_proj/b", "h.{}.attn.c_proj.bias"),
    "blocks.{}.ln_2.weight": ("model/h{}/ln_2/g", "h.{}.ln_2.weight"),
    "blocks.{}.ln_2.bias": ("model/h{}/ln_2/b", "h.{}.ln_2.bias"),
    "blocks.{}.mlp.c_fc.weight": ("model/h{}/mlp/c_fc/w", "h.{}.mlp.c_fc.weight"),
    "blocks.{}.mlp.c_fc.bias": ("model/h{}/mlp/c_fc/b", "h.{}.mlp.c_fc.bias"),
    "blocks.{}.mlp.c_proj.weight": ("model/h{}/mlp/c_proj/w", "h.{}.mlp.c_proj.weight"),
    "blocks.{}.mlp.c_proj.bias": ("model/h{}/mlp/c_proj/b", "h.{}.mlp.c_proj.bias"),
    "ln_f.weight": ("model/ln_f/g", "ln_f.weight"),
    "ln_f.bias": ("model/ln_f/b", "ln_f.bias"),
}
STORED_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # the matrices of the blocks
# {type of an array in OpenAI's files: torch's type}; the fourth type is bfloat16, unknown to numpy
TORCH_TYPES = {"<f4": torch.float32, "<f8": torch.float64, "<f2": torch.float16}
# {prefix of tensor names: network that uses it}, for a helpful error message
FOREIGN = {
    "model.layers.": "Llama or a similar model",
    "gpt_neox.": "GPT-NeoX",
    "bert.": "BERT",
    "roberta.": "RoBERTa",
    "distilbert.": "DistilBERT",
    "encoder.block.": "T5",
    "model.decoder.layers.": "OPT",
    "transformer.layer.": "DistilBERT",
    "blocks.": "a saved classifier or another program's network",
}


@dataclass(frozen=True)
class Dialect:
    """How a program stores the parameters of a GPT-2."""

    program: str
    column: int  # of NAME_MAP
    prefixes: tuple[str, ...]  # removed from the beginning of names, in this order
    transposes: bool  # stores the matrices of the blocks as (in, out)
    ignored: re.Pattern[str]  # names of tensors that are not weights
    other_heads: dict[str, str]  # {beginning of names: a head that is left out}


CAUSAL_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
OPTIMIZER = re.compile(
    r"(.*/)?(Adam(_\d+)?|Adafactor|Momentum|RMSProp(_\d+)?|Adagrad|Adadelta(_\d+)?|v[rc]?|m)"
    r"|(.*/)?(beta[12]_power|global_step)(_\d+)?"
)
HEADS = {  # of transformers' other GPT-2 classes
    "score.": "GPT2ForSequenceClassification",
    "classifier.": "GPT2ForTokenClassification",
    "multiple_choice_head.": "GPT2DoubleHeadsModel",
    "qa_outputs.": "GPT2ForQuestionAnswering",
}
OPENAI = Dialect("OpenAI", 0, (), True, OPTIMIZER, {})
HUGGING_FACE = Dialect("Hugging Face", 1, ("transformer.",), True, CAUSAL_MASKS, HEADS)
NANOGPT = Dialect("nanoGPT", 1, ("_orig_mod.", "transformer."), False, CAUSAL_MASKS, {})


def names_on_disk(config: GPT2Config) -> dict[str, tuple[str, str]]:
    """Return {parameter: (OpenAI's array, Hugging Face's tensor)} for a model of this size."""
    return {
        parameter.format(n): (openai.format(n), hugging_face.format(n))
        for parameter, (openai, hugging_face) in NAME_MAP.items()
        for n in (range(config.n_layer) if "{}" in parameter else [0])
    }


def _transposed_if_matrix(parameter: str, value: Tensor) -> Tensor:
    return value.t() if parameter.endswith(STORED_TRANSPOSED) else value


# --- load ---


def load_gpt2(
    model: str | Path = "mini", *, stream: bool = False, warn_of_head: bool = True
) -> GPT2:
    """Load a pretrained GPT-2 by its name or from a folder.

    Names are "mini", "124M" or "gpt2", ..., "1558M" or "gpt2-xl". A folder contains OpenAI's
    checkpoint (`hparams.json`, `model.ckpt.*`) or Hugging Face's (`config.json` or `hparams.json`,
    `model.safetensors`, which may be sharded). nanoGPT's state dict is read as well, if it was saved
    as `model.safetensors`. The weights are loaded as float32 on the CPU. A classifier's head in the
    folder is left out, with a warning unless `warn_of_head` is false.

    With `stream`, the matrices of the blocks stay in their file, in its precision, and are frozen
    (see `storage/mapped.py`). A `Trunk` then reads one block at a time. The file must not be changed
    while the model is in use.

    Raises CheckpointError if an array is missing, is not used by GPT-2, has another shape or is not
    finite, if a checksum in the index or the folder does not match, or if the folder contains two
    different models.
    """
    folder = model_folder(model)
    check_sums(folder, SIZE_FILES)
    gpt2 = meta_gpt2(read_config(folder))
    check_sums(folder, [file.name for file in files_of_weights(folder)])
    state = {}
    for parameter, value in stored_parameters(
        folder, gpt2, stream=stream, warn_of_head=warn_of_head
    ):
        # the result of aminmax is NaN if any value is, so one pass finds NaN and infinity; it would
        # copy a matrix that is not contiguous
        stored = value if value.is_contiguous() else value.t()
        if not all(torch.isfinite(extreme) for extreme in stored.aminmax()):
            raise CheckpointError(f"{folder}: {parameter} holds NaN or infinite numbers")
        release(value)
        state[parameter] = value
    gpt2.load_state_dict(state | {"head.weight": state["wte.weight"]}, strict=True, assign=True)
    gpt2.head.weight = gpt2.wte.weight  # tied again: one parameter, not two that share memory
    for weight in filter(is_mapped, gpt2.parameters()):
        weight.requires_grad_(False)
    return gpt2


class NoInit(TorchFunctionMode):
    """A context in which torch.nn.init does nothing.

    On the meta device, torch.nn.init would spend a second on importing a compiler.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


def meta_gpt2(config: GPT2Config) -> GPT2:
    """Make a GPT-2 on torch's meta device.

    Its parameters have shapes but no values. This needs no memory and draws no random numbers.
    """
    with torch.device("meta"), NoInit():
        return GPT2(config)


def stored_parameters(
    folder: Path,
    gpt2: GPT2,
    *,
    stream: bool = False,
    check_crcs: bool = True,
    warn_of_head: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter of a checkpoint: (name, float32 copy).

    The copies have the shapes that this package uses: (out, in) for the matrices of the blocks. If a
    folder contains the weights in several formats, all of them are read and compared.

    Args:
        folder: contains a checkpoint in OpenAI's, Hugging Face's or nanoGPT's format.
        gpt2: a model of the checkpoint's size, for its names and shapes (see `meta_gpt2`).
        stream: whether to map the matrices of the blocks instead of copying them.
        check_crcs: whether to compare OpenAI's arrays with the CRC-32C in the index.
        warn_of_head: whether to log a warning if a classifier's head is left out.

    Raises:
        CheckpointError: a name, shape, type or checksum is wrong, or two formats have different
            weights.
    """
    first, *others = weight_files(folder)
    copies = [_parameters(other, gpt2, False, check_crcs, warn_of_head) for other in others]
    for parameter, value in _parameters(first, gpt2, stream, check_crcs, warn_of_head):
        for path, copy in zip(others, copies, strict=True):
            if not torch.equal(value.float(), next(copy)[1]):
                raise CheckpointError(
                    f"{first} and {path.name} in the same folder contain different weights (first "
                    f"difference: {parameter}). Move the wrong one to another folder."
                )
        yield parameter, value


def _parameters(
    source: Path, gpt2: GPT2, stream: bool, check_crcs: bool, warn_of_head: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of one of `weight_files`. Their order does not depend on the format."""
    if source.suffix == ".index":
        return _openai_parameters(source, gpt2, stream, check_crcs)
    return _safetensors_parameters(source, gpt2, stream, warn_of_head)


def _openai_parameters(
    index: Path, gpt2: GPT2, stream: bool, check_crcs: bool
) -> Iterator[tuple[str, Tensor]]:
    arrays = open_arrays(index.with_suffix(""))
    shapes = {  # without the first axis, of length 1, of a 1x1 convolution
        name: entry.shape[1:] if entry.shape[:-2] == (1,) else entry.shape
        for name, entry in arrays.entries.items()
        if not OPENAI.ignored.fullmatch(name)
    }
    places = _match(shapes, gpt2, index.parent, OPENAI)
    for parameter in (parameter for group in _groups(places) for parameter in group):
        name = places[parameter]
        # mapped only until it is copied, so only one array is in memory
        raw, entry = arrays.raw(name), arrays.entries[name]
        # the checks take 0.1 s for the whole 124M model
        if check_crcs and masked_crc32c(raw) != entry.crc32c:
            raise CheckpointError(
                f"{index.parent}: {name} is damaged; download the data file again"
            )
        array = arrays.values_of(raw)
        if array.dtype.kind != "f":
            raise CheckpointError(
                f"{index.parent}: {name} is {array.dtype}, but weights must be floats"
            )
        if stream and parameter.endswith(STORED_TRANSPOSED):
            kind = TORCH_TYPES.get(entry.dtype.str, torch.bfloat16)
            path = arrays.paths[entry.shard]
            yield parameter, MappedParameter.of(path, entry.offset, shapes[name], kind).transposed()
            continue
        yield parameter, _copied(parameter, torch.from_numpy(array.reshape(shapes[name])), OPENAI)


def _safetensors_parameters(
    source: Path, gpt2: GPT2, stream: bool, warn_of_head: bool
) -> Iterator[tuple[str, Tensor]]:
    files = tensor_files(source)
    offsets = {path: tensor_offsets(path) for path in {*files.values()}} if stream else {}
    dialect, names, shapes = _dialect(source, files)
    repeated_head = names.pop("lm_head.weight", None)
    shapes.pop("lm_head.weight", None)
    heads = {
        name: head
        for name in names
        for start, head in dialect.other_heads.items()
        if name.startswith(start)
    }
    if heads and warn_of_head:
        log.warning(
            f"{source} contains the head of a {min(heads.values())}, which is not part of GPT-2: "
            f"{', '.join(sorted(heads))}"
        )
    shapes = {
        short: shape
        for short, shape in shapes.items()
        if short not in heads and not dialect.ignored.fullmatch(short)
    }
    places = _match(shapes, gpt2, source, dialect)
    for group in _groups(places):
        # mapped again for each group, because everything read stays in memory while it is mapped
        with ExitStack() as stack:
            wanted = {files[names[places[parameter]]] for parameter in group if places[parameter]}
            if "wte.weight" in group and repeated_head is not None:
                wanted.add(files[repeated_head])
            opened = {path: stack.enter_context(mapped_tensors(path)) for path in sorted(wanted)}
            for parameter in group:
                if not places[parameter]:  # a bias that nanoGPT does not have
                    yield parameter, torch.zeros(gpt2.get_parameter(parameter).shape)
                    continue
                name = names[places[parameter]]
                value = opened[files[name]].get_tensor(name)
                if not value.is_floating_point():
                    raise CheckpointError(
                        f"{files[name]}: {name} is {value.dtype}, but weights must be floats"
                    )
                if parameter == "wte.weight" and repeated_head is not None:
                    if not torch.equal(
                        value, opened[files[repeated_head]].get_tensor(repeated_head)
                    ):
                        raise CheckpointError(
                            f"{files[repeated_head]}: lm_head.weight differs from wte.weight"
                        )
                if stream and parameter.endswith(STORED_TRANSPOSED):
                    path = files[name]
                    mapped = MappedParameter.of(
                        path, offsets[path][name], tuple(value.shape), value.dtype
                    )
                    yield parameter, mapped.transposed() if dialect.transposes else mapped
                    continue
                yield parameter, _copied(parameter, value, dialect)


def _dialect(
    source: Path, files: Mapping[str, Path]
) -> tuple[Dialect, dict[str, str], dict[str, tuple[int, ...]]]:
    """Find out which program wrote safetensors.

    Returns its dialect, {name without prefixes: name on disk} and {name without prefixes: shape}.
    """
    names: dict[str, str] = {}
    for name in files:
        short = name
        for prefix in NANOGPT.prefixes:  # Hugging Face's are among them
            short = short.removeprefix(prefix)
        if short in names:
            raise CheckpointError(
                f"{source} contains {short} twice, as {names[short]} and as {name}"
            )
        names[short] = name
    shapes = {}
    with ExitStack() as stack:
        opened = {path: stack.enter_context(mapped_tensors(path)) for path in {*files.values()}}
        for short, name in names.items():
            shapes[short] = tuple(opened[files[name]].get_slice(name).get_shape())
    # (3 C, C) for nanoGPT's, (C, 3 C) for Hugging Face's
    queries = [shape for short, shape in shapes.items() if short.endswith("attn.c_attn.weight")]
    linear = queries and all(len(s) == 2 and s[0] == 3 * s[1] for s in queries)
    return NANOGPT if linear else HUGGING_FACE, names, shapes


def _groups(parameters: Iterable[str]) -> Iterable[list[str]]:
    """Group parameters by block; wte, wpe and ln_f are groups of their own."""
    groups = defaultdict(list)
    for parameter in parameters:
        first, second, *_ = parameter.split(".")
        groups[f"blocks.{second}" if first == "blocks" else first].append(parameter)
    return groups.values()


def _copied(parameter: str, stored: Tensor, dialect: Dialect) -> Tensor:
    value = _transposed_if_matrix(parameter, stored) if dialect.transposes else stored
    return value.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _match(
    shapes: Mapping[str, tuple[int, ...]], gpt2: GPT2, where: Path, dialect: Dialect
) -> dict[str, str]:
    """Return {parameter: name on disk}, with an empty name for a bias that nanoGPT does not have.

    Raises CheckpointError if names or shapes differ. The message lists the first differences.
    """
    on_disk = names_on_disk(gpt2.config)
    places = {parameter: on_disk[parameter][dialect.column] for parameter in on_disk}
    expected = {
        places[parameter]: tuple(
            (_transposed_if_matrix(parameter, value) if dialect.transposes else value).shape
        )
        for parameter, value in parameters_by_name(gpt2).items()
    }
    if dialect is NANOGPT and not any(name.endswith(".bias") for name in shapes):
        places = {p: "" if name.endswith(".bias") else name for p, name in places.items()}
        expected = {name: shape for name, shape in expected.items() if not name.endswith(".bias")}
    differences = [
        f"{name}: found {shapes.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | shapes.keys())
        if shapes.get(name) != expected.get(name)
    ]
    if differences:
        foreign = [
            kind for start, kind in FOREIGN.items() if any(n.startswith(start) for n in shapes)
        ]
        raise CheckpointError(
            f"{where} does not fit {gpt2.config}"
            f"{f' and looks like {foreign[0]}' if foreign else ''}. "
            f"{len(differences)} arrays differ; the first are\n  " + "\n  ".join(differences[:5])
        )
    if dialect is NANOGPT:
        log.warning(
            f"{where} is nanoGPT's. Its current code computes the exact GELU, and this package the "
            "approximation that GPT-2 was trained with, so logits differ slightly."
        )
    return places


# --- save ---


def save_gpt2(model: GPT2, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `hparams.json` and `model.safetensors`, with Hugging Face's names and shapes.

    With `dtype` torch.float16 or torch.bfloat16 the file is half as large, and each value is rounded
    to 11 or 8 bits. Raises UsageError if the head was replaced or if adapters were added, because
    this format cannot store them. Use `Classifier.save` instead.
    """
    folder = expanded(folder)
    state = parameters_by_name(model)
    if getattr(model.head, "weight", None) is not model.wte.weight:
        raise UsageError("this model's head was replaced; save it as a classifier instead")
    if others := sorted(state.keys() ^ names_on_disk(model.config).keys()):
        raise UsageError(
            f"this model's parameters are not those of a GPT-2 (first difference: {others[0]}). "
            "Merge its LoRA adapters, or save it as a classifier."
        )
    tensors = {
        hugging_face: _transposed_if_matrix(parameter, state[parameter].detach())
        .to(dtype)
        .contiguous()
        for parameter, (_, hugging_face) in names_on_disk(model.config).items()
    }
    write_hparams(folder / "hparams.json", model.config)
    # without a checksum, because Hugging Face's readers accept only {"format": "pt"} as metadata
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"}, checksum=False)


# --- identity: hashes that identify the base model of a saved classifier or cached features ---


def base_sha256(model: GPT2, tokenizer: Tokenizer) -> str:
    """Hash a base model: its weights and its vocabulary."""
    return identity_sha256(parameters_sha256(model), tokenizer)


def identity_sha256(hashes: Mapping[str, str], tokenizer: Tokenizer) -> str:
    """Compute the hash of a base model from the result of `parameters_sha256`."""
    return hashlib.sha256(f"{joined_sha256(hashes)} {tokenizer.sha256}".encode()).hexdigest()


def parameters_sha256(model: GPT2) -> dict[str, str]:
    """Hash each parameter that a checkpoint stores: {name: "(2, 3) 9f86..."}.

    New heads and LoRA adapters are not included. OpenAI's and Hugging Face's files of a model give
    the same hashes.
    """
    found = parameters_by_name(model)
    return each_sha256({name: found[name] for name in names_on_disk(model.config) if name in found})


# --- random twin: a model of the same size without pretraining, to measure what pretraining adds ---


TOKENIZER_FILES = ("vocab.bpe", "encoder.json", "merges.txt", "vocab.json", TOKENIZER_JSON)


def random_twin(model: str | Path, folder: str | Path, seed: int) -> Path:
    """Write a random model with the sizes and the tokenizer of `model`. Returns its folder."""
    folder = expanded(folder)
    source = model_folder(model)
    twin = GPT2(read_config(source))
    init_weights(twin, torch.Generator().manual_seed(seed))
    save_gpt2(twin, folder)
    copy_tokenizer(source, folder)
    return folder


def copy_tokenizer(source: str | Path, folder: str | Path) -> None:
    """Copy the tokenizer files that a model folder has."""
    source, folder = expanded(source), expanded(folder)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
