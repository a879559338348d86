"""Convolution between an upsampling and a downsampling of the image, in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .upfirdn2d import Padding, upfirdn2d


def resampling_pads(f: Tensor | None, up: int, down: int, padding: Padding) -> Padding:
    """``padding`` and what the filters take at the borders of the upsampled image."""
    fh, fw = (1, 1) if f is None else (int(f.shape[0]), int(f.shape[-1]))
    left, right, top, bottom = padding
    if up > 1:
        left, right = left + (fw + up - 1) // 2, right + (fw - up) // 2
        top, bottom = top + (fh + up - 1) // 2, bottom + (fh - up) // 2
    if down > 1:
        left, right = left + (fw - down + 1) // 2, right + (fw - down) // 2
        top, bottom = top + (fh - down + 1) // 2, bottom + (fh - down) // 2
    return left, right, top, bottom


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None,
    up: int,
    down: int,
    padding: Padding,
    groups: int,
    flip_weight: bool,
    flip_filter: bool,
) -> Tensor:
    """The maths of :func:`fastvfx.functional.conv2d_resample` as it is defined, one step after the other.

    Padding counts pixels of the upsampled image; what the filters take at the borders is added to it.
    """
    pads = resampling_pads(f, up, down, padding)
    dtype = x.dtype
    if dtype is not torch.float64:
        x = x.float()
    w = w.to(x.dtype)
    x = upfirdn2d(x, f if up > 1 else None, (up, up), (1, 1), pads, flip_filter, gain=up**2)
    x = F.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    if down > 1:
        x = upfirdn2d(x, f, (1, 1), (down, down), (0, 0, 0, 0), flip_filter)
    return x.to(dtype)
