"""Schema, shapes and calls of the three grid kernels; the public function is in fastvfx/functional.

``direction`` turns each into its derivative along a direction per point: see csrc/include/fastvfx/hashgrid.h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import DTYPE_CODE, accumulate_dtype, define, executor, kernel, large_empty, on, ptr

#: Same table as ``Interpolation`` in csrc/include/fastvfx/hashgrid.h.
INTERPOLATION = {"nearest": 0, "linear": 1, "smoothstep": 2}

_GRID = "float[] scales, int[] levels, int features, int interpolation, bool zero_outside, float shift"


def _grid(
    x: Tensor,
    direction: Tensor | None,
    dtype: torch.dtype,
    scales: list[float],
    levels: list[int],
    features: int,
    interpolation: int,
    zero_outside: bool,
    shift: float,
) -> tuple[Any, ...]:
    """The arguments that all kernels share, in the order of the bindings."""
    return (
        DTYPE_CODE[dtype], interpolation, x.shape[1], features, zero_outside, shift, scales, levels, x.shape[0],
        ptr(x), ptr(direction), *executor(x.device),
    )  # fmt: skip


def _fwd_fake(x, table, direction, scales, levels, features, interpolation, zero_outside, shift):
    return table.new_empty((x.shape[0], len(scales) * features))


def _fwd(x, table, direction, scales, levels, features, interpolation, zero_outside, shift):
    out = large_empty((x.shape[0], len(scales) * features), table.dtype, table.device)
    grid = (scales, levels, features, interpolation, zero_outside, shift)
    with on(x.device):
        kernel("hashgrid_fwd", x.device)(*_grid(x, direction, table.dtype, *grid), ptr(table), ptr(out))
    return out


def _bwd_table_fake(
    x, grad_out, direction, n_entries, scales, levels, features, interpolation, zero_outside, shift
):  # fmt: skip
    return grad_out.new_empty((n_entries, features))


def _bwd_table(x, grad_out, direction, n_entries, scales, levels, features, interpolation, zero_outside, shift):
    shape, dtype = (n_entries, features), grad_out.dtype
    if x.device.type == "cpu":
        grad_table = large_empty(shape, dtype, x.device)
    else:  # summed by atomics, and in 16 bits they would lose what they add
        grad_table = grad_out.new_zeros(shape, dtype=accumulate_dtype(dtype))
    grid = (scales, levels, features, interpolation, zero_outside, shift)
    with on(x.device):
        kernel("hashgrid_bwd_table", x.device)(*_grid(x, direction, dtype, *grid), ptr(grad_out), ptr(grad_table))
    return grad_table.to(dtype)


def _bwd_x_fake(x, table, grad_out, direction, scales, levels, features, interpolation, zero_outside, shift):
    return torch.empty_like(x)


def _bwd_x(x, table, grad_out, direction, scales, levels, features, interpolation, zero_outside, shift):
    grad_x = torch.empty_like(x)
    grid = (scales, levels, features, interpolation, zero_outside, shift)
    with on(x.device):
        kernel("hashgrid_bwd_x", x.device)(
            *_grid(x, direction, table.dtype, *grid), ptr(table), ptr(grad_out), ptr(grad_x)
        )
    return grad_x


define(f"hashgrid_fwd(Tensor x, Tensor table, Tensor? direction, {_GRID}) -> Tensor", _fwd, _fwd_fake)
define(
    f"hashgrid_bwd_table(Tensor x, Tensor grad_out, Tensor? direction, int n_entries, {_GRID}) -> Tensor",
    _bwd_table,
    _bwd_table_fake,
)
define(
    f"hashgrid_bwd_x(Tensor x, Tensor table, Tensor grad_out, Tensor? direction, {_GRID}) -> Tensor",
    _bwd_x,
    _bwd_x_fake,
)
