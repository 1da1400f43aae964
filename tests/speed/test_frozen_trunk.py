"""Frozen blocks on packed texts equal plain blocks on single texts."""

from pathlib import Path

import pytest
import torch

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.speed import frozen_trunk
from gpt2_from_scratch.speed.frozen_trunk import Trunk, batches, pack, width

TEXTS = [[5, 6, 7, 8], [5, 6, 9], [5], [1, 5, 6, 7], [5, 6, 7, 8, 9, 10, 11], [200] * 12, [5, 6, 9]]


def random_texts(seed: int) -> list[list[int]]:
    """Make texts of few different tokens.

    Many of them have a common prefix.
    """
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (30,), generator=draw)
    return [torch.randint(3, (n,), generator=draw).tolist() for n in lengths.tolist()]


@torch.no_grad()
def one_by_one(model: GPT2, text: list[int], depth: int) -> torch.Tensor:
    x = model.embed(torch.tensor([text]))
    for block in model.blocks[:depth]:
        x = block(x)
    return x[0]


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("texts", [TEXTS, [[7]], *map(random_texts, range(2))])
def test_states_are_those_of_each_text_alone(
    tiny_gpt2: GPT2, texts: list[list[int]], depth: int
) -> None:
    packed = pack(texts)
    states = Trunk(tiny_gpt2, depth)(packed)
    seen = []
    for rectangle in packed.rectangles:
        for row, n in enumerate(rectangle.texts):
            length = int(rectangle.lengths[row])
            assert length == len(texts[n])
            found = states[rectangle.rows[row, :length]]
            torch.testing.assert_close(
                found, one_by_one(tiny_gpt2, texts[n], depth), atol=1e-4, rtol=1e-5
            )
            seen.append(n)
    assert sorted(seen) == list(range(len(texts)))


@pytest.mark.parametrize("texts", [TEXTS, random_texts(0)])
def test_each_prefix_has_one_row_per_width(texts: list[list[int]]) -> None:
    beginnings = {
        (width(len(text)), tuple(text[:n])) for text in texts for n in range(1, len(text) + 1)
    }
    packed = pack(texts)
    assert len(packed.ids) == len(packed.positions) == len(packed.home) == len(beginnings)
    paths = {
        tuple(packed.ids[rectangle.rows[row, : len(texts[n])]].tolist()): texts[n]
        for rectangle in packed.rectangles
        for row, n in enumerate(rectangle.texts)
    }
    assert all(list(path) == text for path, text in paths.items())


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tokens", [1, 7, 40, 10**6])
def test_batches_contain_every_text_once_and_at_most_the_given_number_of_rows(
    tokens: int, share: bool
) -> None:
    texts = random_texts(11)
    found = list(batches(texts, tokens, share=share))
    assert sorted(n for batch in found for n in batch) == list(range(len(texts)))
    for batch in found:
        some = [texts[n] for n in batch]
        assert len(batch) == 1 or len(pack(some, share=share).ids) <= tokens
        assert len(batch) == 1 or sum(map(width, map(len, some))) <= 2 * tokens
    assert list(batches([], 5)) == []


def test_a_batch_of_texts_with_a_common_prefix_is_bounded_for_attention_too() -> None:
    texts = [[1] * 99 + [n] for n in range(50)]
    # 6 texts of width 112 would exceed 2 * 300 tokens
    assert [len(batch) for batch in batches(texts, 300)] == [5] * 10


@pytest.mark.parametrize("causal_mask", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_no_bit_depends_on_the_other_texts(
    tiny_gpt2: GPT2, dtype: torch.dtype, causal_mask: bool
) -> None:
    """This holds for any other texts in the batch, in any order, and for one or more tiles."""
    trunk = Trunk(tiny_gpt2, 2, dtype, causal_mask=causal_mask)
    texts = [*random_texts(3), *TEXTS, *([n, *[7] * 30] for n in range(20))]

    def outputs(numbers: list[int]) -> dict[int, torch.Tensor]:
        packed = trunk.pack([texts[n] for n in numbers], whole_tiles=True)
        states = trunk(packed)
        return {
            numbers[n]: states[rows[: len(texts[numbers[n]])]]
            for r in packed.rectangles
            for n, rows in zip(r.texts, r.rows, strict=True)
        }

    everyone = outputs(list(range(len(texts))))
    draw = torch.Generator().manual_seed(8)
    some = [torch.randperm(len(texts), generator=draw)[:n].tolist() for n in (2, 3, 9, 20)]
    for numbers in [*([n] for n in range(len(texts))), *some]:
        for n, states in outputs(numbers).items():
            assert torch.equal(states, everyone[n]), numbers


def test_a_text_too_long_for_the_model_is_refused(tiny_gpt2: GPT2) -> None:
    assert Trunk(tiny_gpt2, 1)(pack([[1] * 32])).shape == (32, 32)
    with pytest.raises(DataError, match="33 tokens are more than n_ctx = 32"):
        Trunk(tiny_gpt2, 1)(pack([[2], [1] * 33]))


def test_widths_waste_little_and_texts_of_one_width_make_a_rectangle() -> None:
    for n in range(1, 1025):
        assert n <= width(n) < n + max(16, n / 4)
    texts = [[3] * n for n in range(1, 200)]
    rectangles = pack(texts).rectangles
    found = [{width(n) for n in r.lengths.tolist()} for r in rectangles]
    assert found == [{w} for w in (224, 192, 160, *range(128, 0, -16))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_it_rounds_and_leaves_the_model_alone(tiny_gpt2: GPT2, dtype: torch.dtype) -> None:
    before = {name: value.clone() for name, value in tiny_gpt2.state_dict().items()}
    packed = pack(TEXTS)
    exact, rounded = (Trunk(tiny_gpt2, 2, d)(packed) for d in (torch.float32, dtype))
    assert rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 3e-2
    assert all(torch.equal(value, before[name]) for name, value in tiny_gpt2.state_dict().items())


def test_a_callers_autocast_rounds_nothing(tiny_gpt2: GPT2) -> None:
    """The states are cached, and other callers may use them without autocast."""
    trunk, packed = Trunk(tiny_gpt2, 2), pack(TEXTS)
    expected = trunk(packed)
    with torch.autocast("cpu", torch.bfloat16):
        found = trunk(packed)
    assert torch.equal(found, expected)


def test_the_hash_changes_with_everything_that_the_output_depends_on(tiny_gpt2: GPT2) -> None:
    first = Trunk(tiny_gpt2, 1).sha256()
    assert Trunk(tiny_gpt2, 1).sha256() == first
    others = {Trunk(tiny_gpt2, 2).sha256()}
    others |= {Trunk(tiny_gpt2, 1, dtype).sha256() for dtype in (torch.bfloat16, torch.int8)}
    with torch.no_grad():
        tiny_gpt2.blocks[1].mlp.c_fc.bias[0] += 1e-6  # does not belong to the first block
        assert Trunk(tiny_gpt2, 1).sha256() == first
        for parameter in (tiny_gpt2.wpe.weight, tiny_gpt2.blocks[0].ln_2.bias):
            parameter.view(-1)[0] += 1e-6
            others.add(Trunk(tiny_gpt2, 1).sha256())
    assert len(others) == 5 and first not in others


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_layers_are_the_outputs_of_shallower_trunks(tiny_gpt2: GPT2, depth: int) -> None:
    packed = pack(TEXTS)
    # as a list, to notice if a layer overwrites the output of the one before
    layers = list(Trunk(tiny_gpt2, depth).layers(packed))
    assert len(layers) == depth + 1 and not any(x.requires_grad for x in layers)
    for n, x in enumerate(layers):
        assert torch.equal(x, Trunk(tiny_gpt2, n)(packed))
    with pytest.raises(DataError, match="33 tokens are more than n_ctx = 32"):
        next(Trunk(tiny_gpt2, depth).layers(pack([[1] * 33])))


# --- blocks that stay in their file ---


@pytest.mark.parametrize("whole_tiles", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_streamed_blocks_give_the_same_bits(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, whole_tiles: bool
) -> None:
    """Each block is read once per window, no matter how many batches are in the window."""
    monkeypatch.setitem(frozen_trunk.TOKENS, "cpu", 40)
    texts = random_texts(5)
    plain = Trunk(load_gpt2(tiny_checkpoint), 2, dtype)
    expected = []
    for numbers in plain.batches(texts):
        packed = plain.pack([texts[n] for n in numbers], whole_tiles=whole_tiles)
        expected.append((numbers, plain(packed)))
    assert len(expected) > 4
    trunk = Trunk(load_gpt2(tiny_checkpoint, stream=True), 2, dtype)
    assert trunk.sha256() == plain.sha256()
    reads = []
    rounded = frozen_trunk._rounded
    monkeypatch.setattr(frozen_trunk, "_rounded", lambda *block: reads.append(1) or rounded(*block))
    for window, n_reads in ((1e9, 2), (0, 2 * len(expected))):
        monkeypatch.setattr(frozen_trunk, "WINDOW", window)
        reads.clear()
        progress: list[float] = []
        found = list(trunk.run(texts, whole_tiles=whole_tiles, advance=progress.append))
        assert len(reads) == n_reads
        assert sum(progress) == pytest.approx(sum(map(len, texts)))
        for (numbers, states), (found_numbers, _, found_states) in zip(
            expected, found, strict=True
        ):
            assert found_numbers == numbers
            assert torch.equal(found_states, states)


def test_the_window_is_measured_in_bytes_of_states(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = Trunk(load_gpt2(tiny_checkpoint, stream=True), 2)
    texts = [[n, n] for n in range(100)]
    monkeypatch.setitem(frozen_trunk.TOKENS, "cpu", 20)  # 2 texts of width 16 per batch
    monkeypatch.setattr(frozen_trunk, "WINDOW", 2 * 4 * 128)
    assert [len(window) for window in trunk._windows(texts, trunk.batches(texts), False)] == [
        2
    ] * 25


def test_a_streamed_block_that_was_changed_is_used_as_it_is(tiny_checkpoint: Path) -> None:
    streamed, plain = load_gpt2(tiny_checkpoint, stream=True), load_gpt2(tiny_checkpoint)
    trunks = [Trunk(model, 2) for model in (streamed, plain)]
    with torch.no_grad():
        for model in (streamed, plain):
            model.blocks[1].mlp.c_fc.weight.mul_(0.5)
    for _ in range(2):
        found, expected = (trunk(pack(TEXTS)) for trunk in trunks)
        assert torch.equal(found, expected)
