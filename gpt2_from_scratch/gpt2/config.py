"""Settings of GPT-2: its sizes, its pretraining and its LoRA adapters."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.folders import refuse_without_sizes
from gpt2_from_scratch.storage.files import read_json, write_json
from gpt2_from_scratch.storage.paths import expanded
from gpt2_from_scratch.storage.settings import check_settings, setting

# fixed in GPT-2, but Hugging Face's config.json can contain other values; the first is GPT-2's own
GPT2_CHOICES: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # the same function
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "quantization_config": (None,),
}
# {our size: its names in config.json}, as in the attribute_map of transformers' GPT2Config
HUGGING_FACE_SIZES = {
    "n_vocab": ("vocab_size",),
    "n_ctx": ("n_positions", "max_position_embeddings"),
    "n_embd": ("n_embd", "hidden_size"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_layer": ("n_layer", "num_hidden_layers"),
}
LARGEST = {"n_vocab": 10**7, "n_ctx": 10**6, "n_embd": 10**5, "n_head": 10**4, "n_layer": 500}


@dataclass(frozen=True)
class GPT2Config:
    """The five sizes of a GPT-2, named as in OpenAI's `hparams.json`."""

    n_vocab: int = 50257  # 256 bytes + 50,000 merges + <|endoftext|>
    n_ctx: int = 1024  # maximum number of tokens per text
    n_embd: int = 768  # width of the residual stream
    n_head: int = 12  # attention heads per block, each n_embd / n_head wide
    n_layer: int = 12  # transformer blocks

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or not 1 <= value <= LARGEST[name]:
                raise CheckpointError(
                    f"{name} = {value!r:.80} must be a whole number from 1 to {LARGEST[name]:,}"
                )
        if self.n_embd % self.n_head:
            raise CheckpointError(
                f"n_embd = {self.n_embd} cannot be divided by n_head = {self.n_head}"
            )


SIZES = {
    "124M": GPT2Config(n_embd=768, n_head=12, n_layer=12),
    "355M": GPT2Config(n_embd=1024, n_head=16, n_layer=24),
    "774M": GPT2Config(n_embd=1280, n_head=20, n_layer=36),
    "1558M": GPT2Config(n_embd=1600, n_head=25, n_layer=48),
}


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run. The defaults are those of `weights/mini`."""

    n_vocab: int = setting(
        4096,
        "size of the vocabulary, including <|endoftext|>",
        at_least=257,  # the 256 bytes and <|endoftext|>
        at_most=65536,  # ids are stored as uint16
    )
    n_ctx: int = setting(384, "maximum number of tokens per text", at_least=1)
    n_embd: int = setting(256, "width of the residual stream", at_least=1)
    n_head: int = setting(4, "attention heads per block", at_least=1)
    n_layer: int = setting(6, "transformer blocks", at_least=1)
    register_weights: str = setting(
        "conversation=2",
        "weights of the registers in MANIFEST.tsv, NAME=WEIGHT,NAME=WEIGHT; others have weight 1",
    )
    phone: float = setting(
        0.5,
        "relative weight of a copy of the conversations, as if typed on a phone; 0 for no copy",
        at_least=0,
    )
    steps: int = setting(4000, "total number of steps", at_least=1)
    tokens: int = setting(12288, "tokens per step", at_least=1)
    row: int = setting(
        128, "tokens per row; short rows are faster and suit short messages", at_least=1
    )
    long_every: int = setting(8, "every N-th step has rows of n_ctx tokens", at_least=1)
    warmup: int = setting(
        100, "number of steps at the start in which the learning rate rises", at_least=0
    )
    decay: float = setting(
        0.375,
        "proportion of steps at the end in which the learning rate falls to 0",
        at_least=0,
        at_most=1,
    )
    lr: float = setting(0.006, "learning rate at its peak", above=0)
    weight_decay: float = setting(0.1, "weight decay of the matrices inside the blocks", at_least=0)
    seed: int = setting(
        123, "random seed for the weights and the rows", at_least=0, at_most=2**32 - 1
    )
    save_every: int = setting(
        250, "steps between checkpoints, at which the held-out loss is computed", at_least=1
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.row <= self.n_ctx <= self.tokens:
            raise UsageError(
                f"row = {self.row}, n_ctx = {self.n_ctx} and tokens = {self.tokens} must be in ascending order"
            )
        self.weights_by_register()
        self.sizes()

    def sizes(self) -> GPT2Config:
        """Return the sizes of the model. Raises CheckpointError if they are invalid."""
        return GPT2Config(self.n_vocab, self.n_ctx, self.n_embd, self.n_head, self.n_layer)

    def weights_by_register(self) -> dict[str, float]:
        """Parse `register_weights` to {register: weight}. Raises UsageError if it is invalid."""
        weights: dict[str, float] = {}
        for pair in filter(None, self.register_weights.split(",")):
            name, _, value = pair.partition("=")
            try:
                weight = float(value)
            except ValueError:
                weight = math.nan
            if not name.strip() or name.strip() in weights or not 0 <= weight < math.inf:
                raise UsageError(
                    f"register_weights: {pair!r} must be NAME=WEIGHT. Each name may occur once, and "
                    "a weight is a number of at least 0."
                )
            weights[name.strip()] = weight
        return weights


FUSED = ("query", "key", "value")  # the parts of c_attn, in the order of their rows
WHOLE = ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")
MATRICES = FUSED + WHOLE  # all matrices of a block
QUANTIZE = ("none", "nf4")  # how the frozen matrices are stored


@dataclass(frozen=True)
class LoRAConfig:
    """Settings of LoRA adapters. Raises UsageError for invalid values."""

    rank: int = setting(8, "rank of the product B A", at_least=1)
    alpha: float = setting(8.0, "numerator of the scale alpha / rank of the product", above=0)
    dropout: float = setting(
        0.0, "dropout probability of the adapters' input, during training", at_least=0, below=1
    )
    matrices: tuple[str, ...] = MATRICES
    n_last_blocks: int | None = setting(
        None, "number of last blocks with adapters; None for all", at_least=0
    )
    # whether to adapt the head's linear layers too, as in appendix E of the lecture's book; their
    # own weights then keep their random initial values, and only the adapters are trained
    head: bool = False
    quantize: str = setting(
        "none",
        "nf4: store the matrices of the blocks with four bits per weight (QLoRA)",
        choices=QUANTIZE,
    )

    def __post_init__(self) -> None:
        check_settings(self, "LoRA: ")
        for name in self.matrices:
            if name not in MATRICES:
                raise UsageError(
                    f"LoRA: unknown matrix {name!r:.80}; choose from: {', '.join(MATRICES)}"
                )
        if len(set(self.matrices)) != len(self.matrices):
            raise UsageError(f"LoRA: a matrix is listed twice in {', '.join(self.matrices)}")
        if (not self.matrices or self.n_last_blocks == 0) and not self.head:
            raise UsageError(
                "LoRA: choose at least one matrix and one block, or the head, to adapt"
            )


SIZE_FILES = ("hparams.json", "config.json")


def read_config(folder: str | Path) -> GPT2Config:
    """Read a model's sizes from OpenAI's `hparams.json` or Hugging Face's `config.json`.

    Raises CheckpointError if a value is missing, unknown or invalid, if the architecture is not
    GPT-2, or if the two files contradict each other.
    """
    folder = expanded(folder)
    paths = [path for name in SIZE_FILES if (path := folder / name).exists()]
    if not paths:
        refuse_without_sizes(folder)
    read = [_read_sizes(path) for path in paths or [folder / SIZE_FILES[0]]]
    for name, value in asdict(read[0]).items():
        if (other := getattr(read[-1], name)) != value:
            raise CheckpointError(
                f"{paths[0]}: {name} is {value}, but {paths[-1].name} in the same folder says {other}. "
                "Correct or remove the wrong file."
            )
    return read[0]


def _read_sizes(path: Path) -> GPT2Config:
    sizes = read_json(path)
    if path.name == "config.json":
        sizes = _from_hugging_face(sizes, path)
    expected = [field.name for field in fields(GPT2Config)]
    if sorted(sizes) != sorted(expected):
        raise CheckpointError(f"{path}: expected exactly the keys {expected}, found {sizes!r:.200}")
    try:
        return GPT2Config(**sizes)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def write_hparams(path: str | Path, config: GPT2Config) -> None:
    """Write `hparams.json` in OpenAI's format."""
    path = expanded(path)
    write_json(path, asdict(config))


def _from_hugging_face(config: dict[str, Any], path: Path) -> dict[str, Any]:
    for name, allowed in GPT2_CHOICES.items():
        if config.get(name, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{path}: {name} is {config[name]!r:.80}; GPT-2 uses {allowed[0]!r}"
            )
    sizes = {}
    for ours, names in HUGGING_FACE_SIZES.items():
        present = [name for name in names if name in config]
        if not present:
            continue
        sizes[ours] = config[present[0]]
        if sizes[ours] != config[present[-1]]:
            raise CheckpointError(
                f"{path}: {present[0]} is {sizes[ours]!r:.80}, but {present[-1]}, which means the same, "
                f"is {config[present[-1]]!r:.80}. Correct or remove the wrong one."
            )
    inner, width = config.get("n_inner"), sizes.get("n_embd")
    if inner is not None and not (type(width) is int and inner == 4 * width):
        raise CheckpointError(f"{path}: n_inner is {inner!r:.80}; GPT-2 uses 4 n_embd")
    return sizes
