"""A block over real tokens alone: the same states and gradients as over the padded batch."""

import pytest
import torch

from gpt2_from_scratch.classifier.heads import outputs_from, replace_heads
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.lora import add_lora
from gpt2_from_scratch.speed.partial_blocks import block_on, real_positions

LENGTHS = torch.tensor([3, 9, 1])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def test_real_positions():
    assert real_positions(torch.tensor([2, 0, 3]), 3).tolist() == [
        [True, True, False],
        [False, False, False],
        [True, True, True],
    ]


def test_equal_to_the_block_where_there_is_a_token(tiny_gpt2):
    block, real = tiny_gpt2.blocks[0], real_positions(LENGTHS, 9)
    x = torch.randn(3, 9, tiny_gpt2.config.n_embd, requires_grad=True)
    weight = torch.randn(3, 9, tiny_gpt2.config.n_embd) * real[:, :, None]
    grads = []
    for out in (block(x), block_on(block, x, real)):
        block.zero_grad()
        grads.append(torch.autograd.grad((out * weight).sum(), [x, *block.parameters()]))
    torch.testing.assert_close(block_on(block, x, real)[real], block(x)[real])
    assert not block_on(block, x, real)[~real].any()
    for ours, theirs in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["last_token", "mean", "first_token"])
@pytest.mark.parametrize("lora", [False, True])
def test_heads_say_the_same(tiny_gpt2, pooling, lora, monkeypatch):
    heads = [HeadConfig(labels=("a", "b"), pooling=pooling)]
    replace_heads(tiny_gpt2, heads)
    if lora:
        add_lora(tiny_gpt2, LoRAConfig(rank=2))
    x = torch.randn(3, 9, tiny_gpt2.config.n_embd)
    ours = outputs_from(tiny_gpt2, heads, 0, x, LENGTHS)["label"]
    monkeypatch.setattr("gpt2_from_scratch.classifier.heads.serves_parts", lambda block: False)
    torch.testing.assert_close(outputs_from(tiny_gpt2, heads, 0, x, LENGTHS)["label"], ours)


def test_pads_are_computed_where_one_is_read(tiny_gpt2):
    """At the last position the pad's own state is the answer, and it must not become 0."""
    heads = [HeadConfig(labels=("a", "b"), pooling="last_position")]
    replace_heads(tiny_gpt2, heads)
    x = torch.randn(3, 9, tiny_gpt2.config.n_embd)
    state = x
    for block in tiny_gpt2.blocks:
        state = block(state)
    expected = tiny_gpt2.head(tiny_gpt2.ln_f(state[:, -1]))
    torch.testing.assert_close(
        outputs_from(tiny_gpt2, heads, 0, x, LENGTHS)["label"], expected, atol=1e-4, rtol=1e-4
    )
