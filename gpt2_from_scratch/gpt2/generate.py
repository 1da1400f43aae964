"""Generate text, greedily or by sampling. Readable text shows that the weights are correct."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.gpt2.model import GPT2


@torch.no_grad()
def generate(
    model: GPT2,
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    stop_id: int | None = None,
    seed: int = 123,
) -> Tensor:
    """Continue one text.

    Each new token is predicted from the last n_ctx tokens.

    Args:
        model: a GPT-2 with its own head.
        ids: token ids (T,) of the text to continue, at least one.
        max_new_tokens: maximum number of new tokens.
        temperature: 0 chooses the most probable token each time (greedy). 1 samples from the model's
            own distribution. Values below 1 sharpen the distribution.
        top_k: sample only from the k most probable tokens.
        stop_id: stop after this token.
        seed: random seed for sampling.

    Returns:
        The token ids of the text and its continuation, (T + new,) with new <= max_new_tokens.

    Raises:
        UsageError: the temperature is negative or infinite, top_k < 1, or `ids` is empty.
        DataError: an id is not in the model's vocabulary, or `ids` is not a tensor (T,) of integers.
        CheckpointError: the model's logits are NaN or infinite.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 1 or (len(ids) and ids.is_floating_point()):
        raise DataError(f"ids must be a tensor (T,) of integers, found {ids!r:.80}")
    n_vocab, n_ctx = model.config.n_vocab, model.config.n_ctx
    if len(ids) and not 0 <= ids.min() <= ids.max() < n_vocab:
        raise DataError(f"ids {ids.tolist()!r:.80} must be from 0 to {n_vocab - 1}")
    return choose_tokens(
        lambda ids: model(ids[None, -n_ctx:])[0, -1],
        ids,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        stop_id=stop_id,
        seed=seed,
    )


def choose_tokens(
    next_logits: Callable[[Tensor], Tensor],
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    stop_id: int | None,
    seed: int,
) -> Tensor:
    """Continue one text with any function that predicts the next token.

    Args:
        next_logits: computes the logits (V,) of the next token from token ids (T,).
        ids: token ids (T,) of the text to continue, at least one.
        max_new_tokens: maximum number of new tokens.
        temperature: see `generate`.
        top_k: see `generate`.
        stop_id: see `generate`.
        seed: see `generate`.

    Returns:
        The token ids of the text and its continuation, (T + new,) with new <= max_new_tokens.

    Raises:
        UsageError: an argument is out of its bounds, or `ids` is empty.
        CheckpointError: the logits are NaN or infinite.
    """
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
        raise UsageError(
            f"temperature = {temperature} must be finite and at least 0, and top_k = {top_k} must be "
            "at least 1"
        )
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed = {seed} must be from 0 to 2^63 - 1")
    if max_new_tokens < 0:
        raise UsageError(f"max_new_tokens = {max_new_tokens} must be at least 0")
    if len(ids) == 0:
        raise UsageError("there is nothing to continue; give at least one token")
    draw = torch.Generator(device=ids.device).manual_seed(seed)
    for _ in range(max_new_tokens):
        logits = next_logits(ids).float()  # (V,)
        if not logits.isfinite().all():
            raise CheckpointError(
                "the logits of the next token are NaN or infinite, so the model's weights are "
                "unusable. Load or train it again."
            )
        # sampling at such a low temperature would be greedy too, but might divide by 0
        if temperature < 1e-6:
            next_id = logits.argmax(keepdim=True)  # (1,)
        else:
            k = min(top_k or len(logits), len(logits))
            values, best = logits.topk(k)  # most probable first
            probabilities = ((values - values[0]) / temperature).softmax(dim=0)
            next_id = best[torch.multinomial(probabilities, 1, generator=draw)]  # (1,)
        ids = torch.cat([ids, next_id])
        if stop_id is not None and next_id.item() == stop_id:
            break
    return ids
