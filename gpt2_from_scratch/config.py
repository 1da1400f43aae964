"""Settings: the sizes of a GPT-2, how it is pretrained, how a classifier is trained on it."""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.files import read_json, write_json

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


# where a text is read: its last real token; the last position of the batch, pad or not, as the
# lecture does; its first token (which has seen nothing but itself); the mean over its real tokens;
# the mean over all positions of the batch, pads too, as the lecture's table of experiments has it
Pooling = Literal["last_token", "last_position", "first_token", "mean", "mean_position"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
OF_PADS = ("last_position", "mean_position")  # depend on how far a text was padded


def setting(default: Any, meaning: str, choices: tuple[str, ...] = ()) -> Any:
    """A field whose meaning the command line's --help shows too."""
    return field(default=default, metadata={"help": meaning, "choices": choices or None})


@dataclass(frozen=True)
class TrainConfig:
    """How a classifier is trained. The defaults were chosen on the miniature."""

    n_last_blocks: int = setting(1, "blocks that train, counted from the end")
    final_norm: bool = setting(True, "the final LayerNorm trains")
    trainable: str = setting(
        "", "parameters that train instead, as patterns: 'head.*,blocks.5.mlp.*'"
    )
    unfreeze_every: int = setting(
        0, "epochs until the next block joins, from the last one down; 0: all train at once"
    )
    epochs: int = setting(10, "passes over the training messages, at most")
    patience: int = setting(4, "stop after so many epochs below the best validation score")
    batch_size: int = setting(16, "messages in a step")
    micro_batch: int = setting(
        0, "messages that go through at once, their gradients added up; 0: all of a step's"
    )
    lr: float = setting(5e-4, "learning rate at its highest; wider models want less")
    rate_decay: float = setting(
        1.0, "each block learns at the rate of the part above it, divided by this"
    )
    warmup: float = setting(0.1, "part of the steps in which the rate rises; then it falls to 0")
    weight_decay: float = setting(0.1, "AdamW's, of matrices; biases and norms have none")
    clip: float = setting(0.0, "a longer gradient is cut to this length; 0: none is")
    balance_losses: bool = setting(
        False, "divide the loss of each of several heads by its running mean"
    )
    seed: int = setting(123, "of the head's first weights, the order of messages and the split")

    def __post_init__(self) -> None:
        check_types(self)
        _at_least_one(self, "epochs", "patience", "batch_size", "rate_decay")
        _at_least_zero(self, "n_last_blocks", "unfreeze_every", "micro_batch")
        _check_rates(self)
        if self.warmup > 1:
            raise UsageError(f"warmup = {self.warmup} must be from 0 to 1")
        if not self.rate_decay <= 1000:  # its power of as many as there are blocks is a number
            raise UsageError(f"rate_decay = {self.rate_decay} must be from 1 to 1000")
        if self.micro_batch > self.batch_size:
            raise UsageError(
                f"micro_batch = {self.micro_batch} is a part of batch_size = {self.batch_size}: "
                "it cannot be more"
            )
        joins = self.n_last_blocks * self.unfreeze_every + 1  # the last block to train
        if self.unfreeze_every and not self.n_last_blocks:
            raise UsageError("unfreeze_every is for blocks that train, and n_last_blocks is 0")
        if self.unfreeze_every and joins > self.epochs and not self.trainable:
            raise UsageError(
                f"unfreeze_every = {self.unfreeze_every}: the last of {self.n_last_blocks} blocks "
                f"would join in epoch {joins} of {self.epochs}"
            )
        if self.trainable and self.unfreeze_every:
            raise UsageError("unfreeze_every is for n_last_blocks, not for patterns in trainable")


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
        _at_least_one(self, "steps", "tokens", "row", "long_every", "save_every")
        _at_least_zero(self, "warmup")
        _check_rates(self)
        if self.decay > 1:
            raise UsageError(f"decay = {self.decay} must be from 0 to 1")
        if not self.row <= self.n_ctx <= self.tokens:
            raise UsageError(
                f"row {self.row}, n_ctx {self.n_ctx} and tokens {self.tokens} must not fall"
            )
        if not 257 <= self.n_vocab <= 65536:  # the bytes and <|endoftext|>; ids are kept as uint16
            raise UsageError(f"n_vocab = {self.n_vocab} must be from 257 to 65,536")
        GPT2Config(self.n_vocab, self.n_ctx, self.n_embd, self.n_head, self.n_layer)


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


def _at_least_one(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise UsageError(f"{name} = {getattr(config, name)} must be at least 1")


def _at_least_zero(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 0:
            raise UsageError(f"{name} = {getattr(config, name)} must be a number from 0 up")


def _check_rates(config: Any) -> None:
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
