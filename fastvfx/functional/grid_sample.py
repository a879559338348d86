"""Sampling of images at given places, with derivatives of every order."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _check
from .._autograd import reference_double_backward
from .._backend import get_backend
from ..reference.grid_sample import grid_sample as reference

Mode = Literal["bilinear", "nearest"]
PaddingMode = Literal["zeros", "border", "reflection"]

# The numbers of torch's own operators.
_MODES = {"bilinear": 0, "nearest": 1}
_PADDING_MODES = {"zeros": 0, "border": 1, "reflection": 2}


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """``torch.nn.functional.grid_sample`` of images, whose derivative has a derivative.

    PyTorch's own stops at the first order, which R1 regularisation of augmented images does not. Values and first
    derivatives are those of PyTorch's kernels; the second, too, where only images have gradients, as in augmentation.
    With a grid that has one, second derivatives run on the formula.

    Args:
        input: images, ``(N, C, H, W)``.
        grid: places to sample at, ``(N, H', W', 2)`` as (x, y) from -1 to 1; where it is NaN, so is the result.
        mode: ``"bilinear"`` or ``"nearest"``.
        padding_mode: what lies outside: ``"zeros"``, ``"border"`` or ``"reflection"``.
        align_corners: whether -1 and 1 are the middles of the outermost pixels, or their edges.

    Returns:
        ``(N, C, H', W')`` in the dtype of ``input``.

    Differentiable in ``input`` and ``grid`` to any order.

    Raises:
        TypeError: a tensor is none or has no float dtype, or an option is of another type.
        ValueError: shapes, devices or options do not fit, or there are no pixels to sample.
    """
    op = "grid_sample"
    _check.is_float(op, input=input, grid=grid)
    _check.same_device(op, input=input, grid=grid)
    _check.is_one_of(op, "mode", mode, _MODES)
    _check.is_one_of(op, "padding_mode", padding_mode, _PADDING_MODES)
    _check.is_bool(op, align_corners=align_corners)
    if input.dim() != 4 or 0 in input.shape[2:]:
        raise ValueError(f"fastvfx.{op}: expected input of shape (N, C, H, W) with pixels, got {tuple(input.shape)}")
    if grid.dim() != 4 or grid.shape[0] != input.shape[0] or grid.shape[3] != 2:
        raise ValueError(
            f"fastvfx.{op}: expected grid of shape (N, H', W', 2) with N={input.shape[0]}, got {tuple(grid.shape)}"
        )
    if get_backend() == "reference":
        return reference(input, grid, mode, padding_mode, align_corners)
    dtype = input.dtype
    if dtype is not torch.float64:  # weights in 16 bits would move the places by pixels
        input, grid = input.float(), grid.float()
    options = (mode, padding_mode, align_corners)
    out = _GridSample.apply(input, grid.to(input.dtype), options)
    # PyTorch's kernels make of a NaN in the grid what suits each of them: 0, a pixel or NaN.
    return out.masked_fill(grid.isnan().any(-1)[:, None], float("nan")).to(dtype)


class _GridSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input, grid, options):
        ctx.save_for_backward(input, grid)
        ctx.options = options
        return F.grid_sample(input, grid, *options)

    @staticmethod
    def backward(ctx: Any, grad_out):
        input, grid = ctx.saved_tensors
        grad_input, grad_grid = _GridSampleBackward.apply(grad_out, input, grid, ctx.options, ctx.needs_input_grad[:2])
        return (
            grad_input if ctx.needs_input_grad[0] else None,
            grad_grid if ctx.needs_input_grad[1] else None,
            None,
        )


class _GridSampleBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that it has a derivative."""

    @staticmethod
    def forward(ctx: Any, grad_out, input, grid, options, wanted):
        ctx.save_for_backward(grad_out, input, grid)
        ctx.options = options
        ctx.set_materialize_grads(False)
        mode, padding_mode, align_corners = options
        return torch.ops.aten.grid_sampler_2d_backward(
            grad_out, input, grid, _MODES[mode], _PADDING_MODES[padding_mode], align_corners, list(wanted)
        )

    @staticmethod
    def backward(ctx: Any, grad_grad_input, grad_grad_grid):
        grad_out, input, grid = ctx.saved_tensors
        needs_out, needs_input, needs_grid = ctx.needs_input_grad[:3]
        if grad_grad_grid is None and not needs_grid:
            # grad_input is linear in grad_out and does not depend on the image: the transpose is sampling again.
            if grad_grad_input is None or not needs_out:
                return None, None, None, None, None
            return _GridSample.apply(grad_grad_input, grid, ctx.options), None, None, None, None
        (grad_input, grad_grid), (grad_grad_out,) = reference_double_backward(
            lambda input, grid: (reference(input, grid, *ctx.options),),
            [input, grid],
            [grad_out],
            [grad_grad_input, grad_grad_grid],
        )
        return grad_grad_out, grad_input if needs_input else None, grad_grid if needs_grid else None, None, None
