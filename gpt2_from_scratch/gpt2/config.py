"""Settings: the sizes of a GPT-2, how it is pretrained, how a classifier is trained on it."""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.storage.files import read_json, write_json

# what Hugging Face's config.json may leave open and GPT-2 fixes
GPT2_CHOICES = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
LARGEST = {"n_vocab": 10**7, "n_ctx": 10**6, "n_embd": 10**5, "n_head": 10**4, "n_layer": 500}


@dataclass(frozen=True)
class GPT2Config:
    """Five numbers make a GPT-2; `GPT2Config(**hparams)` takes them as OpenAI's file has them."""

    n_vocab: int = 50257  # 256 bytes + 50,000 merges + <|endoftext|>
    n_ctx: int = 1024  # the most tokens in one text
    n_embd: int = 768  # width of the residual stream
    n_head: int = 12  # attention heads in a block, each n_embd / n_head wide
    n_layer: int = 12  # transformer blocks

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or not 1 <= value <= LARGEST[name]:
                raise CheckpointError(
                    f"{name} = {value!r}: it must be a whole number from 1 to {LARGEST[name]:,}"
                )
        if self.n_embd % self.n_head:
            raise CheckpointError(
                f"n_embd = {self.n_embd} cannot be divided among n_head = {self.n_head} heads"
            )


SIZES = {
    "124M": GPT2Config(n_embd=768, n_head=12, n_layer=12),
    "355M": GPT2Config(n_embd=1024, n_head=16, n_layer=24),
    "774M": GPT2Config(n_embd=1280, n_head=20, n_layer=36),
    "1558M": GPT2Config(n_embd=1600, n_head=25, n_layer=48),
}


def setting(default: Any, meaning: str, choices: tuple[str, ...] = ()) -> Any:
    """A field whose meaning the command line's --help shows too."""
    return field(default=default, metadata={"help": meaning, "choices": choices or None})


@dataclass(frozen=True)
class PretrainConfig:
    """What a GPT-2 is pretrained on, how much, and how fast. The defaults made `weights/mini`."""

    n_vocab: int = setting(4096, "tokens to learn, <|endoftext|> included")
    n_ctx: int = setting(384, "the most tokens in a text")
    n_embd: int = setting(256, "width of the residual stream")
    n_head: int = setting(4, "attention heads in a block")
    n_layer: int = setting(6, "transformer blocks")
    conversation: float = setting(2.0, "weight of MANIFEST.tsv's register `conversation`")
    phone: float = setting(0.5, "weight of its lines as typed on a phone; 0 leaves them out")
    steps: int = setting(4000, "steps in all")
    tokens: int = setting(12288, "tokens in a step")
    row: int = setting(128, "tokens in a row: messages are short, and short rows are quicker")
    long_every: int = setting(8, "every so many steps, rows of n_ctx tokens instead")
    warmup: int = setting(100, "steps in which the learning rate rises")
    decay: float = setting(0.375, "last part of the steps, in which it falls to 0")
    lr: float = setting(0.006, "learning rate at its highest")
    weight_decay: float = setting(0.1, "of the matrices inside the blocks")
    seed: int = setting(123, "of the first weights and the rows drawn")
    save_every: int = setting(250, "steps between checkpoints and looks at the held-out text")

    def __post_init__(self) -> None:
        check_types(self)
        at_least_one(self, "steps", "tokens", "row", "long_every", "save_every")
        at_least_zero(self, "warmup")
        check_rates(self)
        if self.decay > 1:
            raise UsageError(f"decay = {self.decay} must be from 0 to 1")
        if not self.row <= self.n_ctx <= self.tokens:
            raise UsageError(
                f"row {self.row}, n_ctx {self.n_ctx} and tokens {self.tokens} must not fall"
            )
        if not 257 <= self.n_vocab <= 65536:  # the bytes and <|endoftext|>; ids are kept as uint16
            raise UsageError(f"n_vocab = {self.n_vocab} must be from 257 to 65,536")
        GPT2Config(self.n_vocab, self.n_ctx, self.n_embd, self.n_head, self.n_layer)


FUSED = ("query", "key", "value")  # in the order of their rows in c_attn
WHOLE = ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")
MATRICES = FUSED + WHOLE  # of a block


@dataclass(frozen=True)
class LoRAConfig:
    """What is adapted, and how. Raises UsageError for impossible values."""

    rank: int = 8
    alpha: float = 8.0  # the product is scaled by alpha / rank
    dropout: float = 0.0  # of what enters A, in training
    matrices: tuple[str, ...] = MATRICES
    n_last_blocks: int | None = None  # blocks that are adapted, from the end; None: all
    # the head's linear layers too, as the lecture's appendix E has it: their own weights are then
    # frozen as they were drawn, and a head of K outputs learns through its adapter alone
    head: bool = False

    def __post_init__(self) -> None:
        check_types(self, "LoRA: ", optional="n_last_blocks")
        if self.rank < 1 or self.alpha == 0 or self.dropout >= 1:
            raise UsageError(
                f"rank = {self.rank}, alpha = {self.alpha}, dropout = {self.dropout}: "
                "rank must be at least 1, alpha above 0, dropout below 1"
            )
        for name in self.matrices:
            if name not in MATRICES:
                raise UsageError(f"LoRA: {name!r} is none of {', '.join(MATRICES)}")
        if len(set(self.matrices)) != len(self.matrices):
            raise UsageError(f"LoRA: a matrix stands twice in {', '.join(self.matrices)}")
        if (not self.matrices or self.n_last_blocks == 0) and not self.head:
            raise UsageError("LoRA: no matrix, no block and no head leave nothing to adapt")


def check_types(config: Any, what: str = "", optional: str = "") -> None:
    """Raise UsageError, which names `what` this is, unless every field has its default's type.

    A whole number is a number too; numbers are finite and from 0 up. The `optional` field is a
    whole number from 0 up, or None.
    """
    for known in fields(config):
        value, wanted = getattr(config, known.name), type(known.default)
        if known.name == optional:
            good = value is None or (type(value) is int and value >= 0)
        else:
            good = type(value) is wanted or (wanted is float and type(value) is int)
        if not good:
            kind = f"{wanted.__name__}" if known.name != optional else "int, from 0 up, or None"
            raise UsageError(f"{what}{known.name} = {value!r} must be of type {kind}")
        if wanted is float and not 0 <= value < math.inf:
            raise UsageError(f"{what}{known.name} = {value} must be a number from 0 up")


def from_json(kind: Any, values: dict[str, Any]) -> Any:
    """A settings dataclass from what JSON made of one. Raises UsageError for unknown keys."""
    unknown = values.keys() - {known.name for known in fields(kind)}
    if unknown:
        raise UsageError(f"{kind.__name__} has unknown keys {sorted(unknown)}")
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return kind(**values | lists)


def at_least_one(config: Any, *names: str) -> None:
    """Raise UsageError unless these fields are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise UsageError(f"{name} = {getattr(config, name)} must be at least 1")


def at_least_zero(config: Any, *names: str) -> None:
    """Raise UsageError unless these fields are 0 or more."""
    for name in names:
        if getattr(config, name) < 0:
            raise UsageError(f"{name} = {getattr(config, name)} must be a number from 0 up")


def check_rates(config: Any) -> None:
    """Raise UsageError for a learning rate of 0 and a seed that numpy does not take."""
    if config.lr == 0:
        raise UsageError(f"lr = {config.lr} must be a number above 0")
    if not 0 <= config.seed < 2**32:  # what numpy's RandomState takes
        raise UsageError(f"seed = {config.seed} must be from 0 to 4,294,967,295")


def read_config(folder: Path) -> GPT2Config:
    """Read a model folder's sizes from OpenAI's `hparams.json` or Hugging Face's `config.json`.

    Raises CheckpointError for a missing, unknown or impossible value, and for another architecture.
    """
    path = folder / "hparams.json"
    if path.exists() or not (folder / "config.json").exists():
        sizes = read_json(path)
    else:
        path = folder / "config.json"
        sizes = _from_hugging_face(read_json(path), path)
    expected = [field.name for field in fields(GPT2Config)]
    if sorted(sizes) != sorted(expected):
        raise CheckpointError(f"{path}: expected exactly the keys {expected}, found {sizes!r:.200}")
    try:
        return GPT2Config(**sizes)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def write_hparams(path: Path, config: GPT2Config) -> None:
    """Write `hparams.json` as OpenAI's has it."""
    write_json(path, asdict(config))


def _from_hugging_face(config: dict[str, Any], path: Path) -> dict[str, Any]:
    for name, ours in GPT2_CHOICES.items():
        if config.get(name, ours) != ours:
            raise CheckpointError(f"{path}: {name} is {config[name]!r}; GPT-2 has {ours!r}")
    width = config.get("n_embd")
    if config.get("n_inner") is not None and config["n_inner"] != 4 * (
        width if type(width) is int else 0
    ):
        raise CheckpointError(f"{path}: n_inner is {config['n_inner']}; GPT-2 has 4 n_embd")
    theirs = ("vocab_size", "n_positions", "n_embd", "n_head", "n_layer")
    ours = (field.name for field in fields(GPT2Config))
    return {name: config[key] for name, key in zip(ours, theirs, strict=True) if key in config}
