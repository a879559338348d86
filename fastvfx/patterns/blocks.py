"""Blocks of tokens: where each token of a grid belongs, and which blocks list each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .spans import Grid


def counts(grid: Grid, block: Grid) -> Grid:
    """How many blocks there are along each axis; the last may be cut off."""
    t, h, w = ((n + b - 1) // b for n, b in zip(grid, block, strict=True))
    return t, h, w


def block_of(grid: Grid, block: Grid, device: torch.device) -> Tensor:
    """(N,) int64: the block that each token of the grid lies in."""
    _, n_h, n_w = counts(grid, block)
    t, h, w = (torch.arange(n, device=device) // b for n, b in zip(grid, block, strict=True))
    return ((t[:, None, None] * n_h + h[:, None]) * n_w + w).flatten()


def listed(indices: Tensor, block: Grid, kv_grid: Grid) -> Tensor:
    """Which key blocks each query block lists: (1 | B, 1 | heads, query blocks, key blocks) bool."""
    n = math.prod(counts(kv_grid, block))
    table = torch.zeros((*indices.shape[:3], n + 1), dtype=torch.bool, device=indices.device)
    # -1 goes to a column of its own, which is cut off.
    return table.scatter(3, torch.where(indices < 0, n, indices).long(), True)[..., :n]


def token_mask(indices: Tensor, block: Grid, grid: Grid, kv_grid: Grid) -> Tensor:
    """(1 | B, 1 | heads, N_q, N_k) bool."""
    query, key = block_of(grid, block, indices.device), block_of(kv_grid, block, indices.device)
    return listed(indices, block, kv_grid)[:, :, query][..., key]
