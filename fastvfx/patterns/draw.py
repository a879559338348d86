"""Masks, densities and pictures of patterns."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._extras import require
from .base import Pattern
from .blocks import listed, token_mask
from .spans import Grid, Spans


def of_heads(parts: tuple[Spans, ...], per_part: list[Tensor]) -> Tensor:
    """Rows of (P, ...) tensors, one tensor a part, put in the order of the heads: (heads, ...)."""
    rows = torch.cat([x[part.of_head.long()] for x, part in zip(per_part, parts, strict=True)])
    if len(parts) == 1:
        return rows
    order = torch.tensor([head for part in parts for head in part.heads or ()], device=rows.device)
    return rows[order.argsort()]


def mask(pattern: Pattern, grid: Grid, kv_grid: Grid | None, device: torch.device) -> Tensor:
    kv_grid = grid if kv_grid is None else kv_grid
    static, blocks = pattern.split()
    parts = pattern.spans(grid, kv_grid, None, device)
    allowed = of_heads(parts, [part.mask() for part in parts])
    if blocks is not None:
        allowed = allowed & token_mask(blocks.indices.to(device), blocks.block, grid, kv_grid)
        return allowed[0, 0] if allowed.shape[:2] == (1, 1) else allowed
    return allowed[0] if len(static.heads(None)[0]) == 1 else allowed


def density(pattern: Pattern, grid: Grid, kv_grid: Grid | None) -> float:
    kv_grid = grid if kv_grid is None else kv_grid
    n_pairs = math.prod(grid) * math.prod(kv_grid)
    if n_pairs == 0:
        return 0.0
    _, blocks = pattern.split()
    parts = pattern.spans(grid, kv_grid)
    if blocks is None:
        counts = [reduce(torch.mul, [m.double().sum((1, 2)) for m in part.masks()]) for part in parts]
        return float(of_heads(parts, counts).mean()) / n_pairs
    pairs = []  # of every part, (P, query blocks, key blocks)
    for part in parts:
        by_axis = []
        for allowed, b in zip(part.masks(), blocks.block, strict=True):
            rows, columns = allowed.shape[1:]
            whole = pad(allowed.double(), (0, -columns % b, 0, -rows % b))
            by_axis.append(whole.unflatten(2, (-1, b)).unflatten(1, (-1, b)).sum((2, 4)))
        t, h, w = by_axis
        pairs.append(torch.einsum("pax,pby,pcz->pabcxyz", t, h, w).flatten(4).flatten(1, 3))
    chosen = listed(blocks.indices.cpu(), blocks.block, kv_grid) * of_heads(parts, pairs)
    return float(chosen.sum((2, 3)).mean()) / n_pairs  # of (batch, heads, query blocks, key blocks)


def plot(pattern: Pattern, grid: Grid, query: Grid | None, head: int, axes: Any) -> Any:
    pyplot = require("matplotlib.pyplot", extra="cli", purpose="drawing patterns")
    allowed = pattern.mask(grid).cpu()
    while allowed.dim() > 3:
        allowed = allowed[0]
    if allowed.dim() == 3:
        if not 0 <= head < allowed.shape[0]:
            raise ValueError(f"fastvfx.patterns: expected head from 0 to {allowed.shape[0] - 1}, got {head}")
        allowed = allowed[head]
    if query is None:
        if axes is None:
            axes = pyplot.figure(figsize=(4, 4), layout="constrained").subplots()
        axes.imshow(allowed.numpy(), cmap="Greys", vmin=0, vmax=1.4, interpolation="nearest")
        axes.set(xlabel="key", ylabel="query", xticks=[], yticks=[])
        return axes.figure
    t, h, w = query
    if not all(0 <= i < n for i, n in zip(query, grid, strict=True)):
        raise ValueError(f"fastvfx.patterns: expected query inside the grid {grid}, got {query}")
    frames = allowed[(t * grid[1] + h) * grid[2] + w].view(grid)
    if axes is None:
        axes = pyplot.figure(figsize=(1.3 * grid[0], 1.5), layout="constrained").subplots(1, grid[0], squeeze=False)[0]
    for frame, (panel, keys) in enumerate(zip(axes, frames, strict=True)):
        panel.imshow(keys.numpy(), cmap="Blues", vmin=0, vmax=1.6, interpolation="nearest")
        panel.set(title=f"frame {frame}", xticks=[], yticks=[])
        if frame == t:
            panel.plot(w, h, "o", color="crimson", markersize=4)
    return axes[0].figure
