"""Leaky ReLU between an upsampling and a downsampling filter, in PyTorch, differentiable to any order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .bias_act import clamped
from .upfirdn2d import Padding, upfirdn2d


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None,
    fd: Tensor | None,
    b: Tensor | None,
    up: int,
    down: int,
    padding: Padding,
    gain: float,
    slope: float,
    clamp: float | None,
    flip_filter: bool,
) -> Tensor:
    """The maths of :func:`fastvfx.functional.filtered_lrelu`, in float32 for 16-bit ``x``."""
    wide = x if x.dtype is torch.float64 else x.float()
    if b is not None:
        wide = wide + b.to(wide.dtype)[None, :, None, None]
    wide = upfirdn2d(wide, fu, (up, up), (1, 1), padding, flip_filter, gain=up**2)
    wide = F.leaky_relu(wide * gain, slope)
    if clamp is not None:
        wide = clamped(wide, clamp)
    return upfirdn2d(wide, fd, (1, 1), (down, down), (0, 0, 0, 0), flip_filter).to(x.dtype)
