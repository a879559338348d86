"""Normalisation of features and statistics of batches, as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .functional.minibatch_stddev import minibatch_stddev


class PixelNorm(nn.Module):
    r"""Divide each pixel's (or each vector's) features by their root mean square.

    .. math:: y_c = x_c / \sqrt{\tfrac{1}{C} \sum_j x_j^2 + \epsilon}

    (Karras et al. 2018, section 4.2), over dimension 1.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same; 16-bit types are squared and summed in float32."""
        wide = x if x.dtype is torch.float64 else x.float()
        return (wide * (wide.square().mean(1, keepdim=True) + self.eps).rsqrt()).to(x.dtype)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class MinibatchStddev(nn.Module):
    """:func:`fastvfx.functional.minibatch_stddev` as a module, with the arguments of that."""

    def __init__(self, group_size: int | None = 4, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + num_channels, H, W)."""
        return minibatch_stddev(x, self.group_size, self.num_channels)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"
