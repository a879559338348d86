"""Sampling of images at given places in PyTorch, differentiable to any order."""

from __future__ import annotations

import torch
from torch import Tensor


def _pixels(grid: Tensor, size: int, padding_mode: str, align_corners: bool) -> Tensor:
    """Coordinates in [-1, 1] as pixels, brought inside the image unless what is outside counts as 0."""
    x = (grid + 1) / 2 * (size - 1) if align_corners else ((grid + 1) * size - 1) / 2
    if padding_mode == "reflection":
        low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
        if span == 0:
            x = x * 0
        else:
            away = (x - low).abs()
            turns = torch.floor(away / span)
            rest = away - turns * span
            x = torch.where(turns % 2 == 0, rest, span - rest) + low
    return x if padding_mode == "zeros" else x.clamp(0, size - 1)


def grid_sample(
    input: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool = False
) -> Tensor:
    """The maths of :func:`fastvfx.functional.grid_sample`, in float32 for 16-bit images."""
    n, channels, height, width = input.shape
    wide = input if input.dtype is torch.float64 else input.float()
    grid = grid.to(wide.dtype)
    x = _pixels(grid[..., 0], width, padding_mode, align_corners)  # (N, H', W')
    y = _pixels(grid[..., 1], height, padding_mode, align_corners)
    flat = wide.reshape(n, channels, height * width)

    def pixel(column: Tensor, row: Tensor) -> Tensor:
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)  # (N, H', W')
        index = torch.where(inside, row * width + column, 0).long().flatten(1)[:, None]  # (N, 1, H' W')
        values = flat.gather(2, index.expand(-1, channels, -1)).reshape(n, channels, *column.shape[1:])
        return torch.where(inside[:, None], values, 0)

    if mode == "nearest":
        nowhere = (x + y).isnan()[:, None]
        return pixel(x.detach().round(), y.detach().round()).masked_fill(nowhere, float("nan")).to(input.dtype)
    x0, y0 = x.detach().floor(), y.detach().floor()
    wx, wy = (x - x0)[:, None], (y - y0)[:, None]  # (N, 1, H', W')
    top = pixel(x0, y0) * (1 - wx) + pixel(x0 + 1, y0) * wx
    bottom = pixel(x0, y0 + 1) * (1 - wx) + pixel(x0 + 1, y0 + 1) * wx
    return (top * (1 - wy) + bottom * wy).to(input.dtype)
