"""A block at selected positions equals the plain block.

This holds for outputs and gradients.
"""

import pytest
import torch
from tiny import Halved

from gpt2_from_scratch.classifier.heads import (
    class_logits,
    outputs_from,
    pool,
    replace_head,
    replace_heads,
)
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.gpt2.config import MATRICES, GPT2Config, LoRAConfig
from gpt2_from_scratch.gpt2.lora import add_lora, lora_names
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.speed.partial_blocks import (
    block_at,
    block_on,
    is_plain,
    real_positions,
    serves_parts,
)

POSITIONS = {"last": [3, 0, 8, 5], "first": [0, 0, 0, 0], "end": [8, 8, 8, 8]}
LENGTHS = torch.tensor([9, 4, 1, 6])


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(7))


# --- one position ---


@pytest.mark.parametrize("where", POSITIONS)
def test_the_output_equals_that_of_the_plain_block(
    tiny_gpt2: GPT2, x: torch.Tensor, where: str
) -> None:
    block, positions = tiny_gpt2.blocks[1], torch.tensor(POSITIONS[where])
    expected = block(x)[torch.arange(4), positions]
    torch.testing.assert_close(block_at(block, x, positions), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("where", POSITIONS)
def test_the_gradients_equal_those_of_the_plain_block(
    tiny_gpt2: GPT2, x: torch.Tensor, where: str
) -> None:
    block, positions = tiny_gpt2.blocks[1], torch.tensor(POSITIONS[where])
    direction = torch.randn(4, 32, generator=torch.Generator().manual_seed(8))
    found = []
    for compute in (
        lambda x: block(x)[torch.arange(4), positions],
        lambda x: block_at(block, x, positions),
    ):
        entering = x.clone().requires_grad_(True)
        block.zero_grad()
        (compute(entering) * direction).sum().backward()
        found.append([entering.grad] + [p.grad.clone() for p in block.parameters()])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    names = [name for name, _ in block.named_parameters()]
    key_bias = found[1][1 + names.index("attn.c_attn.bias")][32:64]
    assert torch.equal(key_bias, torch.zeros(32))  # exactly 0; the plain block has rounding errors


def test_later_tokens_are_ignored(tiny_gpt2: GPT2, x: torch.Tensor) -> None:
    positions = torch.tensor([3, 0, 8, 5])
    before = block_at(tiny_gpt2.blocks[0], x, positions)
    for row, position in enumerate(positions.tolist()):
        x[row, position + 1 :] = 1e6
    assert torch.equal(block_at(tiny_gpt2.blocks[0], x, positions), before)


def test_it_works_with_any_number_of_attention_heads() -> None:
    for n_head in (1, 2, 8, 24):
        model = GPT2(GPT2Config(n_vocab=9, n_ctx=8, n_embd=48, n_head=n_head, n_layer=1))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
        x = torch.randn(3, 8, 48)
        found = block_at(model.blocks[0], x, torch.tensor([7, 2, 0]))
        expected = model.blocks[0](x)[torch.arange(3), torch.tensor([7, 2, 0])]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(
    "pooling", ["last_token", "last_position", "first_token", "mean", "mean_position"]
)
def test_logits_are_those_of_the_whole_model(tiny_gpt2: GPT2, pooling: str, depth: int) -> None:
    replace_head(tiny_gpt2, 3)
    ids = torch.randint(277, (4, 9), generator=torch.Generator().manual_seed(1))
    expected = tiny_gpt2.head(pool(tiny_gpt2.hidden(ids), LENGTHS, pooling))
    x = tiny_gpt2.embed(ids)
    for block in tiny_gpt2.blocks[:depth]:
        x = block(x)
    head = HeadConfig(labels=("a", "b", "c"), pooling=pooling)  # type: ignore[arg-type]
    found = outputs_from(tiny_gpt2, [head], depth, x, LENGTHS)["label"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    whole = class_logits(tiny_gpt2, ids, LENGTHS, pooling)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=0)


def test_additions_to_a_block_are_not_ignored(tiny_gpt2: GPT2) -> None:
    """A changed last block is computed at every position, without the shortcut."""
    replace_head(tiny_gpt2, 2)
    ids, lengths = torch.randint(277, (2, 7)), torch.tensor([7, 3])
    block = tiny_gpt2.blocks[1]
    assert is_plain(block)
    before = class_logits(tiny_gpt2, ids, lengths, "last_token")
    hook = block.attn.register_forward_hook(lambda module, args, output: output / 2)
    assert not is_plain(block)
    hooked = class_logits(tiny_gpt2, ids, lengths, "last_token")
    hook.remove()
    block.attn = Halved(block.attn)
    assert not is_plain(block)
    changed = class_logits(tiny_gpt2, ids, lengths, "last_token")
    assert (changed - before).abs().max() > 1e-3
    torch.testing.assert_close(changed, hooked)
    expected = tiny_gpt2(ids)[torch.arange(2), lengths - 1]
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("matrices", [MATRICES, ("query", "value"), ("key",), ("mlp.c_fc",)])
def test_adapters_work_at_one_position_too(tiny_gpt2: GPT2, matrices: tuple) -> None:
    """Outputs and gradients of every adapter equal those of the complete block."""
    add_lora(tiny_gpt2, LoRAConfig(rank=3, alpha=6.0, dropout=0.5, matrices=matrices))
    with torch.no_grad():
        for name in lora_names(tiny_gpt2):
            tiny_gpt2.get_parameter(name).normal_(0, 0.2)
    block = tiny_gpt2.double().blocks[1].eval()
    x, at = torch.randn(3, 8, 32, dtype=torch.float64), torch.tensor([7, 2, 0])
    found, expected = block_at(block, x, at), block(x)[torch.arange(3), at]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    adapters = [p for name, p in block.named_parameters() if "lora" in name]
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), adapters, materialize_grads=True),
        torch.autograd.grad(expected.square().sum(), adapters, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert serves_parts(block) and not is_plain(block)
    assert not serves_parts(block.train()), "its dropout draws for every position"


# --- real tokens only ---


def test_real_positions() -> None:
    assert real_positions(torch.tensor([2, 0, 3]), 3).tolist() == [
        [True, True, False],
        [False, False, False],
        [True, True, True],
    ]


def test_equal_to_the_block_where_there_is_a_token(tiny_gpt2: GPT2, x: torch.Tensor) -> None:
    block, real = tiny_gpt2.blocks[0], real_positions(LENGTHS, 9)
    x.requires_grad_(True)
    weight = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(8)) * real[:, :, None]
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
def test_heads_give_the_same_logits(tiny_gpt2, x, pooling, lora, monkeypatch) -> None:
    heads = [HeadConfig(labels=("a", "b"), pooling=pooling)]
    replace_heads(tiny_gpt2, heads)
    if lora:
        add_lora(tiny_gpt2, LoRAConfig(rank=2))
    ours = outputs_from(tiny_gpt2, heads, 0, x, LENGTHS)["label"]
    monkeypatch.setattr("gpt2_from_scratch.classifier.heads.serves_parts", lambda block: False)
    torch.testing.assert_close(outputs_from(tiny_gpt2, heads, 0, x, LENGTHS)["label"], ours)


def test_padding_is_computed_where_it_is_read(tiny_gpt2: GPT2, x: torch.Tensor) -> None:
    """The head reads the last position, which is padding. Its state must not be set to 0."""
    heads = [HeadConfig(labels=("a", "b"), pooling="last_position")]
    replace_heads(tiny_gpt2, heads)
    state = x
    for block in tiny_gpt2.blocks:
        state = block(state)
    expected = tiny_gpt2.head(tiny_gpt2.ln_f(state[:, -1]))
    found = outputs_from(tiny_gpt2, heads, 0, x, LENGTHS)["label"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
