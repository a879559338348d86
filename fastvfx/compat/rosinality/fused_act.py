"""``op.fused_act``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import functional


def fused_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    """``scale * leaky_relu(input + bias, negative_slope)``, ``bias`` along dimension 1."""
    return functional.bias_act(input, bias, 1, "lrelu", negative_slope, scale)


class FusedLeakyReLU(nn.Module):
    """:func:`fused_leaky_relu` with a bias of ``channel`` numbers."""

    def __init__(self, channel: int, bias: bool = True, negative_slope: float = 0.2, scale: float = 2**0.5) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel)) if bias else None
        self.negative_slope = negative_slope
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)
