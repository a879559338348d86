"""Occupancy bitfields: which cells of a grid hold something, one bit each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _check
from .._backend import use_native
from .._ops.occupancy import words_of
from ..reference.occupancy import pack_bits as pack_reference
from ..reference.occupancy import unpack_bits as unpack_reference


def pack_bits(cells: Tensor, threshold: float | Tensor | None = None) -> Tensor:
    """Pack a grid of cells into bricks of 4 x 4 x 4 bits, the form that :func:`fastvfx.march_rays` reads.

    A brick is one 64-bit word, so that marching skips an empty one with a single load. Words lie with z fastest, like
    the cells; cell (x, y, z) is bit ``16 (x % 4) + 4 (y % 4) + z % 4`` of the word of brick (x // 4, y // 4, z // 4).
    Bits beyond the resolution are 0.

    Args:
        cells: ``(levels, X, Y, Z)``: bool, or any float type with a ``threshold``.
        threshold: a cell is occupied if its value is above it (NaN is not); a number, or a tensor of one element,
            which is not read back from a GPU.

    Returns:
        int64 ``(levels, ceil(X / 4) ceil(Y / 4) ceil(Z / 4))``.

    Raises:
        TypeError: ``cells`` is no tensor, or its dtype does not go with ``threshold``.
        ValueError: ``cells`` is not of four dimensions, or ``threshold`` has more than one element.
    """
    op = "pack_bits"
    _check.is_tensor(op, "cells", cells)
    if threshold is None and cells.dtype != torch.bool:
        raise TypeError(f"fastvfx.{op}: expected cells of dtype bool without a threshold, got {cells.dtype}")
    if threshold is not None and not cells.is_floating_point():
        raise TypeError(f"fastvfx.{op}: expected cells of a floating-point dtype with a threshold, got {cells.dtype}")
    if cells.dim() != 4:
        raise ValueError(f"fastvfx.{op}: expected cells of shape (levels, X, Y, Z), got {tuple(cells.shape)}")
    cells = cells.detach().contiguous()
    limit = None
    if threshold is not None:
        cells = cells.float()
        limit = torch.as_tensor(threshold, device=cells.device).detach().float().contiguous()
        if limit.numel() != 1:
            raise ValueError(f"fastvfx.{op}: expected a threshold of one element, got shape {tuple(limit.shape)}")
    if not use_native(op, cells.device):
        return pack_reference(cells, limit)
    return torch.ops.fastvfx.occupancy_pack(cells, limit)


def unpack_bits(bits: Tensor, resolution: int | Sequence[int]) -> Tensor:
    """The cells of a bitfield made by :func:`fastvfx.pack_bits`.

    Args:
        bits: int64 ``(levels, words)``.
        resolution: (X, Y, Z), or one number for all three.

    Returns:
        bool ``(levels, X, Y, Z)``.

    Raises:
        TypeError: ``bits`` is no tensor of int64.
        ValueError: its shape does not go with ``resolution``.
    """
    shape = checked_bits("unpack_bits", bits, resolution)
    if not use_native("unpack_bits", bits.device):
        return unpack_reference(bits, shape)
    return torch.ops.fastvfx.occupancy_unpack(bits.contiguous(), shape)


def checked_bits(op: str, bits: Tensor, resolution: int | Sequence[int]) -> list[int]:
    """The resolution as three numbers, after checking that ``bits`` is a bitfield of it."""
    shape = checked_resolution(op, resolution)
    _check.is_tensor(op, "bits", bits)
    if bits.dtype != torch.int64:
        raise TypeError(f"fastvfx.{op}: expected bits of dtype int64, got {bits.dtype}")
    words = words_of(shape)
    if bits.dim() != 2 or bits.shape[1] != words:
        raise ValueError(
            f"fastvfx.{op}: expected bits of shape (levels, {words}) for resolution {tuple(shape)}, "
            f"got {tuple(bits.shape)}"
        )
    return shape


def checked_resolution(op: str, resolution: int | Sequence[int]) -> list[int]:
    shape = [resolution] * 3 if isinstance(resolution, int) else [int(n) for n in resolution]
    if len(shape) != 3 or not all(1 <= n <= 65536 for n in shape):
        raise ValueError(f"fastvfx.{op}: expected a resolution of 1 to 65536 cells along 3 axes, got {resolution}")
    return shape
