"""Standard deviation over groups of a batch in PyTorch, differentiable to any order."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-8  # below the square root, as in progressive GAN


def minibatch_stddev(x: Tensor, group_size: int, num_channels: int) -> Tensor:
    """The maths of :func:`fastvfx.functional.minibatch_stddev`, in float32 for 16-bit ``x``."""
    n, channels, height, width = x.shape
    wide = x if x.dtype is torch.float64 else x.float()
    shape = (group_size, n // group_size, num_channels, channels // num_channels, height, width)
    groups = wide.reshape(shape)
    variance = (groups - groups.mean(0)).square().mean(0)  # (N/G, F, C/F, H, W)
    stddev = (variance + EPS).sqrt().mean([2, 3, 4])  # (N/G, F)
    stddev = stddev.repeat(group_size, 1)[:, :, None, None].expand(-1, -1, height, width)
    return torch.cat([x, stddev.to(x.dtype)], 1)
