"""Multiresolution grid encodings: hashed, dense and tiled."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _check
from .._backend import use_native
from .._ops._common import accumulate_dtype
from .._ops.hashgrid import INTERPOLATION
from ..grid import HashGridSpec
from ..reference.hashgrid import hashgrid as reference


def hashgrid(x: Tensor, table: Tensor, spec: HashGridSpec) -> Tensor:
    r"""Encode points by interpolation in grids of many resolutions whose values are learned.

    With :math:`p = s_l x + 0.5`, :math:`g = \lfloor p \rfloor` and :math:`t = S(p - g)` at level :math:`l`,

    .. math::
        out_{lF+f} = \sum_{c \in \{0,1\}^D} \Big( \prod_d c_d t_d + (1 - c_d)(1 - t_d) \Big)\, table_{i_l(g + c),\, f}

    where :math:`S(w) = w` (linear) or :math:`w^2 (3 - 2w)` (smoothstep), and :math:`i_l` is a lattice point's entry:
    its number in a grid that fits, else a spatial hash (Müller et al., "Instant Neural Graphics Primitives with a
    Multiresolution Hash Encoding", 2022, eq. 4). ``spec.mode`` selects whose conventions hold, to the bit; see
    :class:`fastvfx.HashGridSpec`.

    Args:
        x: points, ``(..., n_input_dims)``, in the unit cube.
        table: all levels' values, ``(spec.n_entries, n_features_per_level)``, coarsest level first.
        spec: shape and conventions of the grid.

    Returns:
        ``(..., n_levels * n_features_per_level)`` in the dtype of ``table``, levels side by side, coarsest first.

    Differentiable in x and table, twice (a loss on a gradient with respect to x trains the table); ``"nearest"`` has a
    zero gradient in x. Positions, weights and all sums, the table's gradient included, are float32; a float64 table
    makes everything float64. On the CPU the result is the same for any number of threads, gradients too.

    Points outside the cube wrap around (modes ``tcnn`` and ``nerfstudio``) or give 0 (``torch_ngp``). A point with a
    NaN or an infinity gives NaN in its own row and no gradient. A point on a lattice plane has the derivative of the
    cell above it.

    Raises:
        TypeError: an argument is no tensor, no float, or ``spec`` no :class:`fastvfx.HashGridSpec`.
        ValueError: shapes or devices do not fit each other or ``spec``.

    >>> spec = fastvfx.HashGridSpec(n_levels=8, max_resolution=512)
    >>> table = torch.randn(spec.n_entries, 2, requires_grad=True)
    >>> fastvfx.hashgrid(torch.rand(1000, 3), table, spec).shape
    torch.Size([1000, 16])
    """
    _checked(x, table, spec)
    acc = accumulate_dtype(table.dtype)
    points = x.reshape(-1, spec.n_input_dims)
    if not use_native("hashgrid", table.device):
        out = reference(points, table, spec)
    else:
        points, table = points.to(acc).contiguous(), table.contiguous()
        grid = _Grid(
            spec.scales,
            spec.packed,
            spec.n_features_per_level,
            INTERPOLATION[spec.interpolation],
            spec.zero_outside,
            spec.shift,
        )
        if torch.is_grad_enabled() and (points.requires_grad or table.requires_grad):
            out = _HashGrid.apply(points, table, grid)
        else:
            out = torch.ops.fastvfx.hashgrid_fwd(points, table, None, *grid)
    return out.reshape(*x.shape[:-1], spec.n_output_dims)


class _Grid(NamedTuple):
    """What the kernels need of a spec."""

    scales: tuple[float, ...]
    levels: tuple[int, ...]
    features: int
    interpolation: int
    zero_outside: bool
    shift: float

    @property
    def is_flat(self) -> bool:
        """Whether the encoding is constant within a cell."""
        return self.interpolation == INTERPOLATION["nearest"]


def _checked(x: Tensor, table: Tensor, spec: HashGridSpec) -> None:
    if not isinstance(spec, HashGridSpec):
        raise TypeError(f"fastvfx.hashgrid: expected spec to be a fastvfx.HashGridSpec, got {type(spec).__name__}")
    _check.is_float("hashgrid", x=x, table=table)
    _check.same_device("hashgrid", x=x, table=table)
    if x.dim() < 1 or x.shape[-1] != spec.n_input_dims:
        raise ValueError(
            f"fastvfx.hashgrid: expected x of shape (..., n_input_dims) with n_input_dims={spec.n_input_dims}, "
            f"got {tuple(x.shape)}"
        )
    _check.has_shape(
        "hashgrid",
        "table",
        table,
        (spec.n_entries, spec.n_features_per_level),
        lambda: f"(n_entries, n_features_per_level) = ({spec.n_entries}, {spec.n_features_per_level})",
    )


class _HashGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, grid: _Grid) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.grid = grid
        return torch.ops.fastvfx.hashgrid_fwd(x, table, None, *grid)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor):
        x, table = ctx.saved_tensors
        x_gradient, table_gradient = ctx.needs_input_grad[:2]
        grad_x, grad_table = _HashGridBackward.apply(
            x, table, grad_out.contiguous(), ctx.grid, x_gradient, table_gradient
        )
        return grad_x if x_gradient else None, grad_table if table_gradient else None, None


class _HashGridBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that it has a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, grad_out: Tensor, grid: _Grid, x_gradient, table_gradient):
        ops = torch.ops.fastvfx
        ctx.save_for_backward(x, table, grad_out)
        ctx.grid = grid
        ctx.set_materialize_grads(False)
        grad_x = x.new_empty((0,))
        grad_table = table.new_empty((0,))
        if x_gradient:
            grad_x = torch.zeros_like(x) if grid.is_flat else ops.hashgrid_bwd_x(x, table, grad_out, None, *grid)
        if table_gradient:
            grad_table = ops.hashgrid_bwd_table(x, grad_out, None, table.shape[0], *grid)
        ctx.gradients = x_gradient and not grid.is_flat, table_gradient
        return grad_x, grad_table

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None):
        """``v`` and ``u`` are the gradients with respect to ``grad_x`` and ``grad_table``.

        <v, grad_x> is <grad_out, the encoding's derivative along v>, and <u, grad_table> is <grad_out, the encoding
        with u for a table>: the derivatives of both are the same three kernels again.
        """
        ops, grid = torch.ops.fastvfx, ctx.grid
        x, table, grad_out = ctx.saved_tensors
        wants_x, wants_table, wants_out = ctx.needs_input_grad[:3]
        wants_x = wants_x and not grid.is_flat
        grads: list[list[Tensor]] = [[], [], []]
        if v is not None and ctx.gradients[0]:
            v = v.contiguous()
            if wants_x:
                grads[0].append(ops.hashgrid_bwd_x(x, table, grad_out, v, *grid))
            if wants_table:
                grads[1].append(ops.hashgrid_bwd_table(x, grad_out, v, table.shape[0], *grid))
            if wants_out:
                grads[2].append(ops.hashgrid_fwd(x, table, v, *grid))
        if u is not None and ctx.gradients[1]:
            u = u.contiguous()
            if wants_x:
                grads[0].append(ops.hashgrid_bwd_x(x, u, grad_out, None, *grid))
            if wants_out:
                grads[2].append(ops.hashgrid_fwd(x, u, None, *grid))
        grad_x, grad_table, grad_grad_out = (sum(g[1:], g[0]) if g else None for g in grads)
        return grad_x, grad_table, grad_grad_out, None, None, None
