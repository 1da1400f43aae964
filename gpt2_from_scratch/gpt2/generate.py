"""Continuing a text, greedily or by drawing: how people see that weights are right."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gpt2_from_scratch.errors import DataError, UsageError
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
    """Continue one text of token ids: (T,) -> (T + new,), new <= max_new_tokens.

    `temperature` 0 takes the likeliest token each time (greedy); 1 draws from the model's own
    distribution, less than 1 from a sharper one; `top_k` keeps only the k likeliest. Stops after
    `stop_id`. What no longer fits in n_ctx falls off at the front. Raises UsageError for a
    negative or infinite temperature, top_k < 1, or no ids to continue, DataError for ids that the
    model does not have.
    """
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
    """Continue a text by what `next_logits` says of the token behind it, (T,) -> (V,); see `generate`."""
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
        raise UsageError(
            f"temperature {temperature} must be a number from 0 up, and top_k {top_k} at least 1"
        )
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed = {seed} must be from 0 to 2^63 - 1")
    if max_new_tokens < 0:
        raise UsageError(f"{max_new_tokens} new tokens: it must be 0 or more")
    if len(ids) == 0:
        raise UsageError("there is nothing to continue: give at least one token")
    draw = torch.Generator(device=ids.device).manual_seed(seed)
    for _ in range(max_new_tokens):
        next_id = _choose(next_logits(ids).float(), temperature, top_k, draw)  # (1,)
        ids = torch.cat([ids, next_id])
        if stop_id is not None and next_id.item() == stop_id:
            break
    return ids


def _choose(logits: Tensor, temperature: float, top_k: int | None, draw: torch.Generator) -> Tensor:
    """(V,) -> (1,)"""
    if temperature < 1e-6:  # so small that only the likeliest is left, and that it divides by 0
        return logits.argmax(keepdim=True)
    values, ids = logits.topk(min(top_k or len(logits), len(logits)))  # likeliest first
    shares = ((values - values[0]) / temperature).softmax(dim=0)
    return ids[torch.multinomial(shares, 1, generator=draw)]
