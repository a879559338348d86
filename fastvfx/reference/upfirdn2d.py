"""Upsample, filter and downsample images in PyTorch, differentiable to any order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: left, right, top, bottom
Padding = tuple[int, int, int, int]


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    padding: Padding = (0, 0, 0, 0),
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """The maths of :func:`fastvfx.functional.upfirdn2d`; ``up`` and ``down`` are (x, y). Float32 for 16-bit ``x``."""
    n, channels, height, width = x.shape
    (up_x, up_y), (down_x, down_y) = up, down
    left, right, top, bottom = padding
    wide = x if x.dtype is torch.float64 else x.float()
    if f is None:
        f = wide.new_ones((1, 1))
    f = f.to(wide.dtype)

    # Zeros between the samples, and behind the last of each row and column.
    wide = wide.reshape(n, channels, height, 1, width, 1)
    wide = F.pad(wide, (0, up_x - 1, 0, 0, 0, up_y - 1))
    wide = wide.reshape(n, channels, height * up_y, width * up_x)
    wide = F.pad(wide, (max(left, 0), max(right, 0), max(top, 0), max(bottom, 0)))
    wide = wide[
        :,
        :,
        max(-top, 0) : wide.shape[2] - max(-bottom, 0),
        max(-left, 0) : wide.shape[3] - max(-right, 0),
    ]

    if channels == 0:  # which conv2d refuses
        return wide[:, :, : wide.shape[2] - f.shape[0] + 1 : down_y, : wide.shape[3] - f.shape[-1] + 1 : down_x].to(x)
    if not flip_filter:  # conv2d correlates
        f = f.flip(list(range(f.dim())))
    wide = wide * gain
    kernel = f[None, None].expand(channels, 1, *f.shape)  # (C, 1, [fh,] fw)
    if f.dim() == 2:
        wide = F.conv2d(wide, kernel, groups=channels)
    else:
        wide = F.conv2d(wide, kernel.unsqueeze(2), groups=channels)
        wide = F.conv2d(wide, kernel.unsqueeze(3), groups=channels)
    return wide[:, :, ::down_y, ::down_x].to(x.dtype)
