"""A folder of weights to a model: bookkeeping, done so that nothing can be missed.

Oddities of GPT-2's files, all handled here:
- OpenAI's arrays are called `model/h0/attn/c_attn/w`; Hugging Face's `h.0.attn.c_attn.weight`, some with
  `transformer.` before it. Norms have `g` and `b`, everything else `w` and `b`.
- The matrices of a block are stored (in, out), the transpose of what `nn.Linear` keeps; OpenAI's carry
  another axis of length 1 in front, because they were 1x1 convolutions.
- There is no output head on disk: logits are taken with `wte` again. Some files repeat it as `lm_head`.
- Hugging Face's files hold causal masks (`h.0.attn.bias`, `attn.masked_bias`), which are no weights.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt2_from_scratch.config import GPT2Config, read_config, write_hparams
from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.files import atomic_path
from gpt2_from_scratch.model import GPT2
from gpt2_from_scratch.paths import model_folder
from gpt2_from_scratch.tensor_bundle import open_arrays

# parameter: (OpenAI's array, Hugging Face's tensor), `{}` is the block's number
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
CAUSAL_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def names_on_disk(config: GPT2Config) -> dict[str, tuple[str, str]]:
    """{parameter: (OpenAI's array, Hugging Face's tensor)} for every parameter of this size."""
    return {
        parameter.format(n): (openai.format(n), hugging_face.format(n))
        for parameter, (openai, hugging_face) in NAME_MAP.items()
        for n in (range(config.n_layer) if "{}" in parameter else [0])
    }


def load_gpt2(model: str | Path = "mini") -> GPT2:
    """Load a pretrained GPT-2: "mini", "124M", "355M", "774M", "1558M", or a folder.

    The folder holds OpenAI's checkpoint (`hparams.json`, `model.ckpt.*`) or Hugging Face's (`config.json` or
    `hparams.json`, `model.safetensors`). Weights come out as float32, on the CPU. Raises
    CheckpointError for anything that is missing, left over, of another shape, or not a number.
    """
    folder = model_folder(model)
    config = read_config(folder)
    state = {}
    for parameter, value in stored_parameters(folder, config):
        # aminmax passes a NaN on, so one pass finds NaN and infinity alike
        if not all(torch.isfinite(extreme) for extreme in value.aminmax()):
            raise CheckpointError(f"{folder}: {parameter} holds NaN or infinite numbers")
        state[parameter] = value
    with torch.device("meta"):  # no memory, no random numbers drawn
        gpt2 = GPT2(config)
    gpt2.load_state_dict(state | {"head.weight": state["wte.weight"]}, strict=True, assign=True)
    gpt2.head.weight = gpt2.wte.weight  # tied again: one parameter, not two that share memory
    return gpt2


def stored_parameters(folder: Path, config: GPT2Config) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of a folder's weights once, in this package's layout, as float32 copies."""
    if (folder / "model.ckpt.index").exists():
        yield from _openai_parameters(folder, config)
    elif (folder / "model.safetensors").exists():
        yield from _safetensors_parameters(folder / "model.safetensors", config)
    else:
        raise CheckpointError(
            f"{folder} has neither model.ckpt.index (OpenAI) nor model.safetensors (Hugging Face)"
        )


def save_gpt2(model: GPT2, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `hparams.json` and `model.safetensors` under Hugging Face's names and layout, atomically.

    `dtype` torch.float16 halves the file and rounds each number to 11 bits.
    """
    state = model.state_dict()
    tensors = {
        hugging_face: _transposed_if_matrix(parameter, state[parameter]).to(dtype).contiguous()
        for parameter, (_, hugging_face) in names_on_disk(model.config).items()
    }
    write_hparams(folder / "hparams.json", model.config)
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _openai_parameters(folder: Path, config: GPT2Config) -> Iterator[tuple[str, Tensor]]:
    arrays = open_arrays(folder)
    shapes = {name: array.shape[-2:] for name, array in arrays.items()}
    for parameter, name in _match(shapes, config, folder, openai=True).items():
        array = arrays[name]  # mapped here and let go after the copy, so memory holds one at most
        value = torch.from_numpy(array.reshape(array.shape[-2:])).float()
        yield (
            parameter,
            _transposed_if_matrix(parameter, value).clone(memory_format=torch.contiguous_format),
        )


def _safetensors_parameters(path: Path, config: GPT2Config) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = {name.removeprefix("transformer."): name for name in file.keys()}
            repeated_head = names.pop("lm_head.weight", None)
            shapes = {
                short: tuple(file.get_slice(name).get_shape())
                for short, name in names.items()
                if not CAUSAL_MASK.fullmatch(short)
            }
            places = _match(shapes, config, path, openai=False)
            for parameter, short in places.items():
                value = file.get_tensor(names[short])
                if parameter == "wte.weight" and repeated_head is not None:
                    if not torch.equal(value, file.get_tensor(repeated_head)):
                        raise CheckpointError(f"{path}: lm_head.weight differs from wte.weight")
                yield (
                    parameter,
                    _transposed_if_matrix(parameter, value).to(
                        torch.float32, copy=True, memory_format=torch.contiguous_format
                    ),
                )
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None


def _transposed_if_matrix(parameter: str, value: Tensor) -> Tensor:
    return value.t() if parameter.endswith(STORED_TRANSPOSED) else value


def _match(
    shapes: Mapping[str, tuple[int, ...]], config: GPT2Config, where: Path, *, openai: bool
) -> dict[str, str]:
    """{parameter: name on disk}; raises CheckpointError with the first differences otherwise."""
    places = {
        parameter: names[0 if openai else 1] for parameter, names in names_on_disk(config).items()
    }
    expected = {
        places[parameter]: tuple(reversed(shape))
        if parameter.endswith(STORED_TRANSPOSED)
        else tuple(shape)
        for parameter, shape in parameter_shapes(config).items()
    }
    differences = [
        f"{name}: found {shapes.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | shapes.keys())
        if shapes.get(name) != expected.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{where} does not fit {config}; {len(differences)} arrays differ, the first are\n  "
            + "\n  ".join(differences[:5])
        )
    return places


def parameter_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """{parameter: shape} of a GPT-2 of this size, the tied head left out; takes no memory."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in GPT2(config).named_parameters()}
