"""NF4 is compared with the paper, with a plain loop in numpy and with bitsandbytes."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import Tensor, nn

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.gpt2.config import SIZES, LoRAConfig
from gpt2_from_scratch.gpt2.lora import add_lora, lora_names, merge_lora
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.nf4 import (
    NF4_LEVELS,
    NF4Linear,
    NF4Weight,
    packed_sha256,
    packed_weights,
    quantize_blocks,
    unpacked,
)
from gpt2_from_scratch.gpt2.weights import meta_gpt2

# the paper, appendix E
PUBLISHED = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def matrix(*shape: int, std: float = 0.02, seed: int = 0) -> Tensor:
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(matrix(len(weight), seed=3))
    return layer


def float8(byte: int) -> float:
    """The value of an 8-bit float: a sign, four bits of exponent, three of mantissa."""
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


EVERY_FLOAT8 = [float8(byte) for byte in range(256) if byte & 127 != 127]  # two bytes are NaN


def plain_loop(weight: np.ndarray) -> tuple[list[int], list[float], np.ndarray]:
    """Quantise block by block: the codes, the dequantised absmax, and the dequantised matrix."""
    values = weight.astype(np.float64).flatten()
    blocks = [values[n : n + 64] for n in range(0, len(values), 64)]
    absmax = np.array([abs(block).max() for block in blocks])
    codes = []
    for block, largest in zip(blocks, absmax, strict=True):
        for value in block:
            distances = [abs(value / (largest or 1.0) - level) for level in PUBLISHED]
            codes.append(distances.index(min(distances)))
    mean, found = absmax.mean(), list[float]()
    for first in range(0, len(absmax), 256):
        group = absmax[first : first + 256] - mean
        scale = abs(group).max() / 448
        for deviation in group:
            wanted = deviation / (scale or 1.0)
            found.append(max(0.0, min(EVERY_FLOAT8, key=lambda x: abs(x - wanted)) * scale + mean))
    levels = np.array([PUBLISHED[code] for code in codes])
    return codes, found, (levels * np.repeat(found, 64)[: len(levels)]).reshape(weight.shape)


def codes_of(packed: NF4Weight) -> Tensor:
    return torch.stack([packed.codes >> 4, packed.codes & 15], dim=1).flatten()


def absmax_of(weight: Tensor) -> Tensor:
    n = weight.numel()
    return F.pad(weight.flatten(), (0, -n % 64)).view(-1, 64).abs().amax(1)


LEVELS = torch.tensor(NF4_LEVELS)


# --- the levels ---


def test_the_levels_are_those_of_the_paper() -> None:
    assert list(NF4_LEVELS) == PUBLISHED


def test_the_levels_are_quantiles_of_the_normal_distribution() -> None:
    """Eight positive levels, seven negative ones and 0, divided by the largest."""
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    positive = norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    levels = sorted([*positive, 0.0, *negative])
    np.testing.assert_allclose(NF4_LEVELS, levels / max(levels), atol=1e-6, rtol=0)


# --- a matrix, there and back ---


@pytest.mark.parametrize("shape", [(96, 64), (7, 9), (3, 100), (1, 1), (130, 65)])
def test_a_matrix_is_that_of_the_plain_loop(shape: tuple[int, int]) -> None:
    weight = matrix(*shape)
    packed = NF4Weight(weight)
    codes, _, expected = plain_loop(weight.numpy())
    assert codes_of(packed)[: len(codes)].tolist() == codes
    assert (codes_of(packed)[len(codes) :] == 7).all()  # the filling is 0
    found = packed()
    assert found.shape == shape and found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=1e-8, rtol=1e-5)


def test_each_level_and_each_pair_of_codes_is_kept() -> None:
    """All 256 pairs of levels in one matrix: with equal absmax there is no error at all."""
    pairs = torch.cartesian_prod(LEVELS, LEVELS)
    rows = torch.cat([pairs.flatten(), torch.ones(16)]).view(-1, 16)
    weight = torch.cat([F.pad(row, (0, 48), value=1.0)[None] for row in rows])
    packed = NF4Weight(weight)
    assert torch.equal(packed(), weight)
    assert codes_of(packed).view(-1, 64)[:-1, :16].flatten().tolist() == [
        code for first in range(16) for second in range(16) for code in (first, second)
    ]


def test_the_error_of_normal_weights_is_the_known_one() -> None:
    """bitsandbytes states a mean absolute error of 0.0728 for blocks of 64 and std 1.

    The double quantisation adds little.
    """
    weight = matrix(1024, 1024, std=1.0)
    error = NF4Weight(weight)() - weight
    assert error.abs().mean().item() == pytest.approx(0.0728, rel=0.01)
    # the same without double quantisation, computed from the levels alone
    unit = weight.view(-1, 64) / absmax_of(weight)[:, None]
    nearest = LEVELS[(unit[..., None] - LEVELS).abs().argmin(-1)]
    alone = (nearest - unit) * absmax_of(weight)[:, None]
    assert error.square().mean().sqrt().item() == pytest.approx(
        alone.square().mean().sqrt().item(), rel=0.01
    )


@pytest.mark.parametrize("std", [1e-30, 0.02, 1e30])
def test_the_error_of_the_absmax_is_bounded(std: float) -> None:
    """An 8-bit float has four significant bits, so it is wrong by at most 1/16."""
    weight = matrix(300, 100, std=std)
    absmax = absmax_of(weight)
    found = NF4Weight(weight)().abs().flatten()
    found = F.pad(found, (0, -len(found) % 64)).view(-1, 64).amax(1)  # one level is 1 or -1
    deviations = F.pad(absmax - absmax.double().mean().float(), (0, -len(absmax) % 256))
    largest = deviations.view(-1, 256).abs().amax(1).repeat_interleave(256)[: len(absmax)]
    bound = deviations[: len(absmax)].abs() / 16 + largest / 448 / 512
    assert ((found - absmax).abs() <= bound * 1.001 + 1e-6 * absmax).all()


def test_a_block_of_zeros_stays_zero() -> None:
    weight = matrix(4, 64)
    weight[2] = 0
    assert not NF4Weight(weight)()[2].any() and NF4Weight(weight)()[1].any()
    assert not NF4Weight(torch.zeros(3, 70))().any()


def test_double_quantisation_never_reverses_a_sign() -> None:
    """A tiny absmax would become negative if the mean were added to a rounded deviation."""
    weight = matrix(8, 64)
    weight[0] *= 1e-4
    assert (NF4Weight(weight)() * weight >= 0).all()


def test_a_matrix_takes_4_127_bits_per_weight() -> None:
    packed = NF4Weight(matrix(1024, 1024))
    bits = 8 * sum(buffer.nbytes for buffer in packed.buffers()) - 32  # without the mean
    assert bits / 2**20 == 4 + 8 / 64 + 32 / (64 * 256)
    assert round(bits / 2**20, 3) == 4.127


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(tiny_gpt2: GPT2, value: float) -> None:
    with torch.no_grad():
        tiny_gpt2.blocks[1].mlp.c_fc.weight[3, 5] = value
    with pytest.raises(UsageError, match="blocks.1.mlp.c_fc.weight"):
        quantize_blocks(tiny_gpt2)
    with pytest.raises(UsageError, match="blocks.1.mlp.c_fc.weight"):
        add_lora(tiny_gpt2, LoRAConfig(quantize="nf4"))
    assert not packed_weights(tiny_gpt2) and not lora_names(tiny_gpt2)


def test_the_codes_are_those_of_bitsandbytes() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for shape in ((96, 64), (30, 128)):
        weight = matrix(*shape)
        codes, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        packed = NF4Weight(weight)
        assert torch.equal(codes.flatten(), packed.codes)
        assert torch.equal(state.absmax, absmax_of(weight))
        theirs = bitsandbytes.functional.dequantize_4bit(codes, state)
        assert (theirs - packed()).abs().max() <= 0.02 * weight.abs().max()


# --- layers ---


@pytest.mark.parametrize("shape", [(5, 7), (64, 32)])
@pytest.mark.parametrize("batch", [(3,), (2, 4)])
def test_a_layer_and_its_gradients_are_those_of_the_dequantised_weight(
    shape: tuple[int, int], batch: tuple[int, ...]
) -> None:
    layer = NF4Linear(linear_of(matrix(*shape)))
    plain = linear_of(layer.packed())
    found = []
    for each in (layer, plain):
        x = matrix(*batch, shape[1], std=1.0, seed=4).requires_grad_()
        y = each(x)
        (y * matrix(*batch, shape[0], std=1.0, seed=5)).sum().backward()
        found.append((y.detach(), x.grad, each.bias.grad))
    assert torch.equal(found[0][0], F.linear(x, layer.weight, layer.bias))
    for ours, expected in zip(*found, strict=True):
        assert torch.equal(ours, expected)


def test_a_layer_keeps_only_codes_for_the_gradient() -> None:
    """The dequantised matrices of all layers together would take the memory that NF4 saves."""
    layer, kept = NF4Linear(linear_of(matrix(64, 64))), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(matrix(2, 64).requires_grad_())
    assert kept == []


def test_a_layer_that_is_dequantised_once_gives_the_same() -> None:
    layer, x = NF4Linear(linear_of(matrix(64, 32))), matrix(3, 32, std=1.0)
    assert torch.equal(unpacked(layer, torch.float32)(x), layer(x))
    rounded = unpacked(layer, torch.bfloat16)(x.bfloat16())
    expected = F.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16())
    assert torch.equal(rounded, expected)
    plain = linear_of(matrix(4, 4))
    assert unpacked(plain, torch.float32) is plain


def test_a_change_of_precision_does_not_change_the_weight() -> None:
    packed = NF4Weight(matrix(64, 64))
    expected = packed()
    assert torch.equal(copy.deepcopy(packed).to(torch.bfloat16)(), expected)
    assert torch.equal(copy.deepcopy(packed).half()(), expected)


# --- models ---


def dequantised(model: GPT2) -> GPT2:
    """A plain copy of a model, with the dequantised matrices."""
    plain = meta_gpt2(model.config).to_empty(device="cpu")
    state = parameters_by_name(model) | {n: p() for n, p in packed_weights(model).items()}
    plain.load_state_dict(state | {"head.weight": state["wte.weight"]})
    return plain


@pytest.mark.slow
def test_a_quantised_model_is_the_model_with_dequantised_matrices(tiny_gpt2: GPT2) -> None:
    ids = torch.randint(277, (3, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        before = tiny_gpt2(ids)
    others = {n: p for n, p in tiny_gpt2.named_parameters() if n.endswith("bias") or "ln_" in n}
    quantize_blocks(tiny_gpt2)
    with torch.no_grad():
        found = tiny_gpt2(ids)
        assert torch.equal(found, dequantised(tiny_gpt2)(ids))
    assert not torch.equal(found, before)
    assert len(packed_weights(tiny_gpt2)) == 8  # four matrices in each of two blocks
    assert {n: p.data_ptr() for n, p in others.items()} == {
        n: tiny_gpt2.get_parameter(n).data_ptr() for n in others
    }
    with pytest.raises(UsageError, match=r"blocks\.0\.attn\.c_attn"):
        quantize_blocks(tiny_gpt2)


def test_outputs_and_gradients_of_adapters_are_those_on_the_dequantised_model(
    tiny_gpt2: GPT2,
) -> None:
    ids = torch.randint(277, (3, 9), generator=torch.Generator().manual_seed(4))
    plain = copy.deepcopy(tiny_gpt2)
    quantize_blocks(plain)
    plain = dequantised(plain)
    for model, quantize in ((tiny_gpt2, "nf4"), (plain, "none")):
        model.requires_grad_(False)
        add_lora(model, LoRAConfig(rank=3, quantize=quantize), seed=6)
        for number, name in enumerate(lora_names(model)):
            with torch.no_grad():
                parameter = model.get_parameter(name)
                parameter.add_(matrix(*parameter.shape, std=0.2, seed=number))
        model(ids).square().mean().backward()
    assert lora_names(tiny_gpt2) == lora_names(plain)
    for name in lora_names(plain):
        expected, found = (model.get_parameter(name) for model in (plain, tiny_gpt2))
        assert torch.equal(found, expected) and found.grad.any()
        assert torch.equal(found.grad, expected.grad), name


def test_merging_into_nf4_is_refused(tiny_gpt2: GPT2) -> None:
    add_lora(tiny_gpt2, LoRAConfig(quantize="nf4"))
    with pytest.raises(UsageError, match="NF4"):
        merge_lora(tiny_gpt2)
    assert lora_names(tiny_gpt2)


def test_the_hash_depends_on_every_buffer(tiny_gpt2: GPT2) -> None:
    assert packed_sha256(tiny_gpt2) == ""
    quantize_blocks(tiny_gpt2)
    packed = tiny_gpt2.blocks[1].mlp.c_proj.packed
    seen = {packed_sha256(tiny_gpt2)}
    for buffer in packed.buffers():
        before = buffer.flatten()[0].item()
        buffer.view(-1)[0] += 1
        seen.add(packed_sha256(tiny_gpt2))
        buffer.view(-1)[0] = before
    assert len(seen) == 5
    assert packed_sha256(tiny_gpt2) in seen


@pytest.mark.parametrize("size", ["124M", "1558M"])
def test_shapes_without_memory_give_the_size_of_the_blocks(size: str) -> None:
    model = meta_gpt2(SIZES[size])
    matrices = {n: p.shape for n, p in model.named_parameters() if n.endswith("weight")}
    quantize_blocks(model)
    found = packed_weights(model)
    C = SIZES[size].n_embd
    assert sum(p.shape.numel() for p in found.values()) == 12 * C * C * SIZES[size].n_layer
    assert {n: p.shape for n, p in found.items()} == {n: matrices[n] for n in found}
    n_bytes = sum(b.nbytes for p in found.values() for b in p.buffers())
    assert n_bytes * 8 / (12 * C * C * SIZES[size].n_layer) == pytest.approx(4.127, abs=1e-3)
