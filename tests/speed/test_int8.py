"""int8 products: numpy computes the same integers, and rounding changes little."""

import numpy as np
import pytest
import torch
from torch import nn

from gpt2_from_scratch.speed.int8 import Int8Linear, gelu_


def in_numpy(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The same in numpy, with 64-bit integers and double precision."""

    def rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
        safe = np.where(scales == 0, np.float32(1), scales)
        return np.rint(rows / safe).astype(np.int64), scales.astype(np.float64)

    (a, s_x), (b, s_w) = rounded(x), rounded(weight)
    return (a @ b.T) * s_x * s_w.T + bias


@pytest.mark.parametrize("N, C, K", [(1, 8, 24), (3, 768, 2304), (256, 64, 16), (17, 31, 7)])
def test_numpy_computes_the_same(N: int, C: int, K: int) -> None:
    torch.manual_seed(N)
    layer, x = nn.Linear(C, K), torch.randn(N, C) * torch.logspace(-3, 3, N)[:, None]
    x[N // 2] = 0
    expected = in_numpy(x.numpy(), layer.weight.detach().numpy(), layer.bias.detach().numpy())
    found = Int8Linear(layer)(x).detach().double().numpy()
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.array_equal(found[N // 2], layer.bias.detach().double().numpy())


def test_the_largest_values_do_not_overflow() -> None:
    """All factors have the largest integer, so the sum is the largest possible."""
    layer = nn.Linear(4096, 16)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.zeros_(layer.bias)
    x = torch.full((64, 4096), -3.0)
    assert torch.allclose(Int8Linear(layer)(x), torch.full((64, 16), -0.5 * 3 * 4096))


def test_rounding_changes_normal_values_by_one_percent() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(768, 768), torch.randn(64, 768)
    exact = layer(x)
    error = (Int8Linear(layer)(x) - exact).norm() / exact.norm()
    assert 1e-3 < error < 2e-2


def test_it_follows_the_weights() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8), torch.randn(5, 16)
    rounded = Int8Linear(layer)
    before = rounded(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(rounded(x), before)
    rounded.follow(layer)
    assert torch.allclose(rounded(x) - layer.bias, 2 * (before - layer.bias), atol=1e-6)


@pytest.mark.parametrize("N", [1, 31, 32, 100])
def test_the_gelu_in_numpy(N: int) -> None:
    """OpenAI's formula in double precision; SiLU only rounds differently."""
    x = torch.linspace(-40, 40, N * 64).view(N, 64)
    x[0, :4] = torch.tensor([0.0, -0.0, 1e6, -1e6])
    exact = x.double().numpy()
    exact = 0.5 * exact * (1 + np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)))
    gelu_(x)
    assert np.allclose(x.double().numpy(), exact, rtol=1e-6, atol=1e-6)
