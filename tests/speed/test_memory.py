"""The planned memory follows from the sizes of the parameters and of the texts."""

from dataclasses import replace

import pytest
import torch

from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.gpt2.weights import meta_gpt2
from gpt2_from_scratch.speed.frozen_trunk import WINDOW
from gpt2_from_scratch.speed.memory import planned_memory


def bytes_of(config: GPT2Config) -> tuple[int, int]:
    """The bytes of all parameters and of one block, in float32."""
    model = meta_gpt2(config)
    every, block = (sum(p.numel() for p in part.parameters()) for part in (model, model.blocks[0]))
    return 4 * every, 4 * block


@pytest.mark.parametrize("size", ["124M", "1558M"])
def test_in_memory_all_weights_are_held_in_every_phase(size: str) -> None:
    config = SIZES[size]
    every, block = bytes_of(config)
    plan = planned_memory(config, config.n_layer - 1, block // 4, 10_000, streamed=False)
    for planned in vars(plan).values():
        assert planned > 0.999 * every
    more = planned_memory(config, config.n_layer - 1, block // 4 + 100, 10_000, streamed=False)
    # each trained number has a gradient, two means, a best value, and all but the gradient saved
    assert more.training - plan.training == 100 * 4 * 8
    rounded = planned_memory(
        config, config.n_layer - 1, 7, 10_000, streamed=False, dtype=torch.bfloat16
    )
    assert rounded.features - plan.features == pytest.approx(
        (config.n_layer - 1) * block / 2 - 10_000 * config.n_embd * 4, rel=0.01
    )


@pytest.mark.parametrize("size", ["124M", "1558M"])
def test_streamed_memory_does_not_depend_on_the_number_of_blocks(size: str) -> None:
    config = SIZES[size]
    deeper = replace(config, n_layer=2 * config.n_layer)
    plans = [planned_memory(c, c.n_layer - 1, 1000, 10**6, streamed=True) for c in (config, deeper)]
    assert plans[0] == plans[1]
    assert "planned memory: loading" in str(plans[0])


def test_memory_stops_growing_with_the_number_of_texts() -> None:
    config = SIZES["1558M"]
    some, many, more = (
        planned_memory(config, 47, 1000, n, streamed=True) for n in (10_000, 10**6, 10**9)
    )
    assert some.features < many.features
    assert many == more
    assert many.features - some.features > 0.5 * WINDOW
