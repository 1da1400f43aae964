"""Plan the memory of a training from sizes alone.

The plan counts what is in memory at the same time. Python and its libraries need about another 0.4 GB.

C = n_embd. A block has 12 C^2 + 13 C parameters; its largest matrices have 4 C^2.
"""

from dataclasses import dataclass

import torch

from gpt2_from_scratch.gpt2.config import GPT2Config
from gpt2_from_scratch.speed.feature_cache import MEMORY, SHARD
from gpt2_from_scratch.speed.frozen_trunk import TOKENS, WINDOW

FLOAT32 = 4  # bytes
HASHED = 4  # matrices that are hashed at the same time
# rows of C numbers per token of a batch: queries, keys and values, of the tokens and of the padded
# texts (at most twice as many), the output of attention, twice, and the stream
PER_TOKEN = 3 + 2 * 3 + 2 * 2 + 2


@dataclass(frozen=True)
class MemoryPlan:
    """The most memory that each phase of a training needs, in bytes."""

    loading: float
    features: float
    training: float

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in vars(self).items())
        return f"planned memory: {phases}, and about 0.4 GB for Python and its libraries"


def planned_memory(
    config: GPT2Config,
    depth: int,
    n_trainable: int,
    n_tokens: int,
    *,
    streamed: bool,
    dtype: torch.dtype = torch.float32,
    stored: int = FLOAT32,
) -> MemoryPlan:
    """Plan the memory of loading a model, computing features, and training on the processor.

    Args:
        config: the sizes of the model.
        depth: number of frozen blocks.
        n_trainable: number of trainable parameters.
        n_tokens: number of tokens of all distinct texts.
        streamed: whether the frozen blocks stay in their file.
        dtype: precision of the frozen blocks and of the features.
        stored: bytes per weight in the file.
    """
    C = config.n_embd
    embeddings = FLOAT32 * (config.n_vocab + config.n_ctx) * C
    block, matrix = FLOAT32 * (12 * C * C + 13 * C), 4 * C * C
    held = config.n_layer - (depth if streamed else 0)  # blocks in memory as float32
    weights = embeddings + held * block
    if streamed:
        loading = embeddings + max(stored * config.n_vocab * C, HASHED * stored * matrix)
        used = block + stored * matrix
        window = min(WINDOW, FLOAT32 * n_tokens * C)
    else:
        loading = weights + stored * matrix
        used = 0 if dtype == torch.float32 else depth * 12 * C * C * dtype.itemsize
        window = 0
    batch = FLOAT32 * PER_TOKEN * C * min(TOKENS["cpu"], n_tokens)
    kept = (2 if dtype == torch.bfloat16 else FLOAT32) * n_tokens * C
    features = weights + used + window + batch + min(kept, MEMORY) + min(kept, 2 * SHARD)
    # the gradient, AdamW's two means, the best epoch; all but the gradient are copied when saved
    training = weights + FLOAT32 * n_trainable * (1 + 2 + 1 + 4) + min(kept, MEMORY)
    return MemoryPlan(max(loading, weights), features, training)
