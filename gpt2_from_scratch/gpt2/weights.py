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
  weights.
"""

import hashlib
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.gpt2.config import GPT2Config, read_config, write_hparams
from gpt2_from_scratch.gpt2.model import GPT2, init_weights
from gpt2_from_scratch.gpt2.openai_checkpoint import masked_crc32c, open_arrays
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.storage.files import check_sums
from gpt2_from_scratch.storage.paths import expanded, model_folder
from gpt2_from_scratch.storage.tensors import (
    each_sha256,
    joined_sha256,
    mapped_tensors,
    open_tensors,
    write_tensors,
)

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
STORED_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
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
CAUSAL_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


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


def load_gpt2(model: str | Path = "mini") -> GPT2:
    """Load a pretrained GPT-2 by its name or from a folder.

    Names are "mini", "124M" or "gpt2", ..., "1558M" or "gpt2-xl". A folder contains OpenAI's
    checkpoint (`hparams.json`, `model.ckpt.*`) or Hugging Face's (`config.json` or `hparams.json`,
    `model.safetensors`). The weights are loaded as float32 on the CPU.

    Raises CheckpointError if an array is missing, is not used by GPT-2, has another shape or is not
    finite, or if a checksum in the index or the folder does not match.
    """
    folder = model_folder(model)
    check_sums(folder, ("hparams.json", "config.json", "model.safetensors", "model.ckpt.index"))
    gpt2 = meta_gpt2(read_config(folder))
    state = {}
    for parameter, value in stored_parameters(folder, gpt2):
        # the result of aminmax is NaN if any value is, so one pass finds NaN and infinity
        if not all(torch.isfinite(extreme) for extreme in value.aminmax()):
            raise CheckpointError(f"{folder}: {parameter} holds NaN or infinite numbers")
        state[parameter] = value
    gpt2.load_state_dict(state | {"head.weight": state["wte.weight"]}, strict=True, assign=True)
    gpt2.head.weight = gpt2.wte.weight  # tied again: one parameter, not two that share memory
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
    folder: Path, gpt2: GPT2, *, check_crcs: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter of a checkpoint: (name, float32 copy).

    The copies have the shapes that this package uses: (out, in) for the matrices of the blocks.

    Args:
        folder: contains a checkpoint in OpenAI's or Hugging Face's format.
        gpt2: a model of the checkpoint's size, for its names and shapes (see `meta_gpt2`).
        check_crcs: whether to compare OpenAI's arrays with the CRC-32C in the index.

    Raises:
        CheckpointError: a name, shape, type or checksum is wrong.
    """
    if (folder / "model.ckpt.index").exists():
        yield from _openai_parameters(folder, gpt2, check_crcs)
    elif (folder / "model.safetensors").exists():
        yield from _safetensors_parameters(folder / "model.safetensors", gpt2)
    else:
        raise CheckpointError(
            f"{folder} has neither model.ckpt.index (OpenAI) nor model.safetensors (Hugging Face)"
        )


def _openai_parameters(folder: Path, gpt2: GPT2, check_crcs: bool) -> Iterator[tuple[str, Tensor]]:
    arrays = open_arrays(folder)
    shapes = {  # without the first axis, of length 1, of a 1x1 convolution
        name: entry.shape[1:] if entry.shape[:-2] == (1,) else entry.shape
        for name, entry in arrays.entries.items()
    }
    for parameter, name in _match(shapes, gpt2, folder, openai=True).items():
        array = arrays[name]  # mapped only until it is copied, so only one array is in memory
        # the checks take 0.1 s for the whole 124M model
        if check_crcs and masked_crc32c(array) != arrays.entries[name].crc32c:
            raise CheckpointError(f"{folder}: {name} is damaged; download the data file again")
        if array.dtype.kind != "f":
            raise CheckpointError(f"{folder}: {name} is {array.dtype}, but weights must be floats")
        yield parameter, _copied(parameter, torch.from_numpy(array.reshape(shapes[name])))


def _safetensors_parameters(path: Path, gpt2: GPT2) -> Iterator[tuple[str, Tensor]]:
    with open_tensors(path) as file:
        names = {name.removeprefix("transformer."): name for name in file.keys()}
        if len(names) != len(file.keys()):
            raise CheckpointError(
                f"{path} contains a tensor both with and without the prefix 'transformer.'"
            )
        repeated_head = names.pop("lm_head.weight", None)
        shapes = {
            short: tuple(file.get_slice(name).get_shape())
            for short, name in names.items()
            if not CAUSAL_MASK.fullmatch(short)
        }
    places = _match(shapes, gpt2, path, openai=False)
    groups = defaultdict(list)  # by block; wte, wpe and ln_f are groups of their own
    for parameter in places:
        groups[tuple(parameter.split(".")[:2])].append(parameter)
    for group in groups.values():
        # mapped again for each group, because everything read stays in memory while it is mapped
        with mapped_tensors(path) as file:
            for parameter in group:
                name = names[places[parameter]]
                value = file.get_tensor(name)
                if not value.is_floating_point():
                    raise CheckpointError(
                        f"{path}: {name} is {value.dtype}, but weights must be floats"
                    )
                if parameter == "wte.weight" and repeated_head is not None:
                    if not torch.equal(value, file.get_tensor(repeated_head)):
                        raise CheckpointError(f"{path}: lm_head.weight differs from wte.weight")
                yield parameter, _copied(parameter, value)


def _copied(parameter: str, stored: Tensor) -> Tensor:
    return _transposed_if_matrix(parameter, stored).to(
        torch.float32, copy=True, memory_format=torch.contiguous_format
    )


def _match(
    shapes: Mapping[str, tuple[int, ...]], gpt2: GPT2, where: Path, *, openai: bool
) -> dict[str, str]:
    """Return {parameter: name on disk}.

    Raises CheckpointError if names or shapes differ. The message lists the first differences.
    """
    on_disk = names_on_disk(gpt2.config)
    places = {parameter: on_disk[parameter][0 if openai else 1] for parameter in on_disk}
    expected = {
        places[parameter]: tuple(_transposed_if_matrix(parameter, value).shape)
        for parameter, value in parameters_by_name(gpt2).items()
    }
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
    return places


# --- save ---


def save_gpt2(model: GPT2, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `hparams.json` and `model.safetensors`, with Hugging Face's names and shapes.

    With `dtype` torch.float16 the file is half as large, and each value is rounded to 11 bits.
    Raises UsageError if the head was replaced or if adapters were added, because this format cannot
    store them. Use `Classifier.save` instead.
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


TOKENIZER_FILES = ("vocab.bpe", "encoder.json", "merges.txt", "vocab.json")


def random_twin(model: str | Path, folder: str | Path, seed: int) -> Path:
    """Write a random model with the sizes and the tokenizer of `model`. Returns its folder."""
    folder = expanded(folder)
    source = model_folder(model)
    twin = GPT2(read_config(source))
    init_weights(twin, torch.Generator().manual_seed(seed))
    save_gpt2(twin, folder)
    copy_tokenizer(source, folder)
    return folder


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer files that a model folder has."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
