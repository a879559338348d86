"""The operators of NATTEN before 0.20 that show the attention weights: transformers' DiNAT still imports them.

Heads come before the tokens, and the keys of a query are the last axis of the weights: ``kernel_size`` to the power of
the axes, in the order of the grid. Every key is gathered once for each of its queries; the fused ones do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import neighborhood

Sizes = int | Sequence[int]


def _neighbours(grid: torch.Size, kernel: Sizes, dilation: Sizes, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Each token's keys (N, K), and on each axis how many dilations these are behind it, (L, k)."""
    n = len(grid)
    pattern = neighborhood(n, kernel, 1, dilation, False)
    padded = (1,) * (3 - n) + tuple(grid)
    (spans,) = pattern.spans((padded[0], padded[1], padded[2]), device=device)
    keys, offsets = torch.zeros((1, 1), dtype=torch.int64, device=device), []
    for rows, length, k, step in zip(spans.axes, padded, pattern.kernel, pattern.dilation, strict=True):
        at = rows[0, :, :1] + step * torch.arange(k or length, device=device)  # (L, k)
        offsets.append((at - torch.arange(length, device=device)[:, None]) // step)
        keys = (keys[:, None, :, None] * length + at[None, :, None, :]).flatten(2).flatten(0, 1)
    return keys, offsets[3 - n :]


def _scores(n: int) -> Callable[..., Tensor]:
    def qkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: Sizes, dilation: Sizes | None = 1) -> Tensor:
        grid = query.shape[2:-1]
        if query.dim() != n + 3 or key.shape != query.shape:
            raise ValueError(
                f"fastvfx.compat.natten.natten{n}dqkrpb: expected query and key of shape (batch, heads, {n} axes, "
                f"dim), got {tuple(query.shape)} and {tuple(key.shape)}"
            )
        keys, offsets = _neighbours(grid, kernel_size, dilation or 1, query.device)
        scores = torch.einsum("bhnd,bhnkd->bhnk", query.flatten(2, -2), key.flatten(2, -2)[:, :, keys])
        if rpb is not None:
            index: list[Any] = [slice(None)]  # of rpb on each axis, to broadcast to (X, Y, Z, k_x, k_y, k_z)
            for axis, offset in enumerate(offsets):
                shape = [1] * (2 * n)
                shape[axis], shape[n + axis] = offset.shape
                index.append((offset + rpb.shape[axis + 1] // 2).reshape(shape))
            scores = scores + rpb[tuple(index)].flatten(n + 1).flatten(1, n)
        return scores.unflatten(2, grid)

    return _named(
        qkrpb, f"natten{n}dqkrpb", "Scores of each query and its keys, ``rpb`` (heads, 2 kernel - 1, ...) added."
    )


def _values(n: int) -> Callable[..., Tensor]:
    def av(attn: Tensor, value: Tensor, kernel_size: Sizes, dilation: Sizes | None = 1) -> Tensor:
        grid = value.shape[2:-1]
        if value.dim() != n + 3 or attn.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"fastvfx.compat.natten.natten{n}dav: expected attn and value of shape (batch, heads, {n} axes, "
                f"keys or dim), got {tuple(attn.shape)} and {tuple(value.shape)}"
            )
        keys, _ = _neighbours(grid, kernel_size, dilation or 1, value.device)
        out = torch.einsum("bhnk,bhnkd->bhnd", attn.flatten(2, -2), value.flatten(2, -2)[:, :, keys])
        return out.unflatten(2, grid)

    return _named(av, f"natten{n}dav", "Values of each query's keys, weighted by ``attn`` and summed.")


def _named(function: Callable[..., Tensor], name: str, says: str) -> Callable[..., Tensor]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = says
    return function


natten1dqkrpb, natten2dqkrpb, natten3dqkrpb = _scores(1), _scores(2), _scores(3)
natten1dav, natten2dav, natten3dav = _values(1), _values(2), _values(3)
