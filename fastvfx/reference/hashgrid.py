"""Multiresolution grid encoding in PyTorch, differentiable to any order."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..grid import GridLevel, HashGridSpec


def hashgrid(x: Tensor, table: Tensor, spec: HashGridSpec) -> Tensor:
    """The maths of :func:`fastvfx.hashgrid`, over all hashed levels at once and all others at once.

    Args:
        x: points, (n_points, n_input_dims).
        table: (n_entries, n_features_per_level).

    Returns:
        (n_points, n_output_dims) of the table's dtype; positions, weights and sums are at least float32.
    """
    acc = torch.float64 if table.dtype == torch.float64 else torch.float32
    finite = torch.isfinite(x).all(dim=-1, keepdim=True)  # (n, 1)
    x = torch.where(finite, x, 0).to(acc)
    groups = [list(levels) for _, levels in itertools.groupby(spec.levels, lambda level: level.hashed)]
    out = torch.cat([_encode(x, table, spec, levels) for levels in groups], dim=1).flatten(1)  # (n, levels * features)
    if spec.zero_outside:
        inside = ((x >= 0) & (x <= 1)).all(dim=-1, keepdim=True)
        out = torch.where(inside, out, 0)
    return torch.where(finite, out, torch.nan).to(table.dtype)


def _encode(x: Tensor, table: Tensor, spec: HashGridSpec, levels: list[GridLevel]) -> Tensor:
    """(n, len(levels), features) of levels that are all hashed or all not."""
    acc = x.dtype
    scales = x.new_tensor([level.scale for level in levels])  # (levels,)
    multipliers = torch.tensor([level.multipliers for level in levels], device=x.device)  # (levels, dims)
    entries = torch.tensor([level.entries for level in levels], device=x.device)  # (levels,)
    offsets = torch.tensor([level.offset for level in levels], device=x.device)
    position = x[:, None, :] * scales[:, None] + spec.shift  # (n, levels, dims)
    cell = torch.floor(position.detach())
    # Saturated like a GPU's conversion, so that far points have a defined entry too.
    lattice = cell.clamp(-(2.0**31), 2.0**31 - 1).long()
    w = position - cell
    if spec.interpolation == "smoothstep":
        w = w * w * (3 - 2 * w)
    per_axis = [((1 - w_d, w_d), (g, g + m)) for w_d, g, m in _axes(w, lattice * multipliers, multipliers)]

    weights, indices = [], []  # of each corner (n, levels)
    for corner in itertools.product((0, 1), repeat=spec.n_input_dims):
        weight, index = torch.ones_like(per_axis[0][0][0]), torch.zeros_like(per_axis[0][1][0])
        for bit, (axis_weights, terms) in zip(corner, per_axis, strict=True):
            weight = weight * axis_weights[bit]
            index = index ^ terms[bit] if levels[0].hashed else index + terms[bit]
        # Unsigned 32-bit arithmetic in int64; entries of hashed levels are powers of two.
        index = index & (entries - 1) if levels[0].hashed else (index & 0xFFFFFFFF) % entries
        weights.append(weight)
        indices.append(index + offsets)
        if spec.interpolation == "nearest":
            return _gather(table, indices[0], acc)
    if torch.is_grad_enabled() and table.requires_grad:
        # One gather for all corners: its gradient is one sum into a table instead of one a corner.
        values = _gather(table, torch.stack(indices), acc)  # (corners, n, levels, features)
        return (torch.stack(weights)[..., None] * values).sum(0)
    out = weights[0][..., None] * _gather(table, indices[0], acc)
    for weight, index in zip(weights[1:], indices[1:], strict=True):
        out = out + weight[..., None] * _gather(table, index, acc)
    return out


def _gather(table: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., features) of ``dtype``."""
    return table.index_select(0, index.flatten()).unflatten(0, index.shape).to(dtype)


def _axes(w: Tensor, g: Tensor, m: Tensor) -> zip[tuple[Tensor, Tensor, Tensor]]:
    return zip(w.unbind(-1), g.unbind(-1), m.unbind(-1), strict=True)
