"""Schema, shapes and calls of ``occupancy_pack`` and ``occupancy_unpack``; the public functions are in
fastvfx/functional."""

from __future__ import annotations

import torch

from ._common import define, executor, kernel, on, ptr


def words_of(resolution) -> int:
    """64-bit words of one level: one per brick of 4 x 4 x 4 cells."""
    x, y, z = resolution
    return ((x + 3) // 4) * ((y + 3) // 4) * ((z + 3) // 4)


def _pack_fake(cells, threshold):
    return cells.new_empty((cells.shape[0], words_of(cells.shape[1:])), dtype=torch.int64)


def _pack(cells, threshold):
    bits = _pack_fake(cells, threshold)
    with on(cells.device):
        kernel("occupancy_pack", cells.device)(
            *cells.shape, ptr(cells), ptr(threshold), ptr(bits), *executor(cells.device)
        )
    return bits


def _unpack_fake(bits, resolution):
    return bits.new_empty((bits.shape[0], *resolution), dtype=torch.bool)


def _unpack(bits, resolution):
    cells = _unpack_fake(bits, resolution)
    with on(bits.device):
        kernel("occupancy_unpack", bits.device)(
            bits.shape[0], *resolution, ptr(bits), ptr(cells), *executor(bits.device)
        )
    return cells


define("occupancy_pack(Tensor cells, Tensor? threshold) -> Tensor", _pack, _pack_fake)
define("occupancy_unpack(Tensor bits, int[] resolution) -> Tensor", _unpack, _unpack_fake)
