"""Occupancy bitfields in PyTorch; the layout is that of csrc/include/fastvfx/occupancy.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def pack_bits(cells: Tensor, threshold: Tensor | None = None) -> Tensor:
    """The maths of :func:`fastvfx.pack_bits`: cells (L, X, Y, Z) to words (L, n)."""
    occupied = cells > threshold if threshold is not None else cells
    levels, x, y, z = occupied.shape
    occupied = pad(occupied, (0, -z % 4, 0, -y % 4, 0, -x % 4))
    bricks = occupied.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).unflatten(1, (-1, 4))  # (L, bx, 4, by, 4, bz, 4)
    bits = bricks.permute(0, 1, 3, 5, 2, 4, 6).reshape(levels, -1, 64).to(torch.int64)
    return (bits << torch.arange(64, device=cells.device)).sum(-1)  # disjoint bits: the sum is their union


def unpack_bits(bits: Tensor, resolution: Sequence[int]) -> Tensor:
    """The maths of :func:`fastvfx.unpack_bits`: words (L, n) to cells (L, X, Y, Z)."""
    x, y, z = resolution
    bricks = [(n + 3) // 4 for n in resolution]
    cells = (bits[..., None] >> torch.arange(64, device=bits.device)) & 1
    cells = cells.reshape(-1, *bricks, 4, 4, 4).permute(0, 1, 4, 2, 5, 3, 6)
    return cells.flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, :x, :y, :z].to(torch.bool).contiguous()
