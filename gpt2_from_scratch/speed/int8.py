"""A linear layer that multiplies 8-bit integers, for answers without gradients.

Weights and inputs are rounded to the integers from -127 to 127. Each output of the layer has a scale
s_w, the largest absolute value of its weights divided by 127. Each row x of the input has a scale s_x,
computed in the same way when the row arrives. So

    y  =  W x + b  =  s_w s_x (W_int x_int) + b,  up to the rounding of W and x

The products of integers are added without rounding. And a row's scale depends on this row alone, so
the answer to a text does not depend on the other texts in its batch. (onnxruntime's dynamic
quantisation has one scale for the whole batch, so there it does.) Dettmers et al. 2022, "LLM.int8()",
describe these scales, and a separate treatment of outliers, which networks of GPT-2's sizes do not need.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 32  # rows of a GELU at a time, so that they stay in the processor's cache
LARGEST = 127  # -128 is not used, so that negative and positive values are rounded alike


class Int8Linear(nn.Module):
    """A linear layer with rounded copies of another layer's weights: (N, C) -> (N, K), float32."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        self.follow(linear)

    @torch.no_grad()
    def follow(self, linear: nn.Linear) -> None:
        """Round the weights of a layer again, which may have changed."""
        rounded, scales = rounded_rows(linear.weight)
        self.weight = rounded.t()  # (C, K), laid out as the product wants it
        self.scales = scales.t()  # (1, K)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, K)"""
        rounded, scales = rounded_rows(x)
        y = torch._int_mm(rounded, self.weight).float()  # (N, K), exact
        return torch.addcmul(self.bias, y.mul_(self.scales), scales)


def rounded_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to integers and a scale: (N, C) -> int8 (N, C), float32 (N, 1)."""
    scales = x.abs().amax(dim=1, keepdim=True) / LARGEST
    scales.clamp_(min=torch.finfo(x.dtype).tiny)  # a row of zeros
    return (x / scales).round_().to(torch.int8), scales


def gelu_(x: Tensor) -> None:
    """Apply GPT-2's GELU in place, with another rounding and in less than half the time: (N, K).

    Because (1 + tanh(u / 2)) / 2 = sigmoid(u), the tanh form of GELU is

        GELU(x)  =  x sigmoid(x p)  =  SiLU(x p) / p   with  p = 2 sqrt(2 / pi) (1 + 0.044715 x^2)

    and torch computes SiLU(u) = u sigmoid(u) faster than tanh. The float32 path keeps torch's GELU,
    because its cached features must not change. Values above 1e12 would overflow.
    """
    scale = torch.tensor(2 * math.sqrt(2 / math.pi))
    for rows in x.split(ROWS):
        p = torch.addcmul(scale, rows, rows, value=0.044715 * float(scale))
        F.silu(rows.mul_(p), inplace=True).div_(p)
