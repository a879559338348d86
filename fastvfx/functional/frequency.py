"""Frequency (positional) encoding of coordinates."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .. import _check
from .._autograd import reference_double_backward
from .._backend import use_native
from .._ops.frequency import LAYOUT
from ..reference.frequency import frequency as reference

Mode = Literal["tcnn", "torch_ngp", "nerfstudio", "nerf"]

#: Whether a mode has the coordinates themselves among its outputs unless told otherwise.
INCLUDES_INPUT = {"tcnn": False, "torch_ngp": True, "nerfstudio": False, "nerf": True}

MAX_FREQUENCIES = 32
MAX_COLUMNS = 1 << 20


def frequency(x: Tensor, n_frequencies: int = 12, *, mode: Mode = "tcnn", include_input: bool | None = None) -> Tensor:
    r"""Sines and cosines of coordinates at doubling frequencies, :math:`\sin(c\,2^f x)` and :math:`\cos(c\,2^f x)` for
    f from 0 to ``n_frequencies - 1`` (Mildenhall et al., "NeRF", 2020, equation 4).

    ``mode`` chooses the factor c and the order of the columns, those of the project it names; with D coordinates and F
    frequencies:

    ============== ==== ==================================================================== ==============
    mode           c    columns                                                              include_input
    ============== ==== ==================================================================== ==============
    ``tcnn``       pi   for each coordinate, for each f: sin, cos                            in front, off
    ``torch_ngp``  1    for each f: sin of every coordinate, then cos of every coordinate    in front, on
    ``nerf``       1    the same: the released code of NeRF, whose paper has c = pi          in front, on
    ``nerfstudio`` 2 pi for each coordinate, for each f: sin; then likewise cos              behind, off
    ============== ==== ==================================================================== ==============

    Args:
        x: coordinates, ``(..., D)``.
        n_frequencies: F, 1 to 32.
        mode: see above.
        include_input: whether the coordinates themselves are columns too; ``None`` takes the mode's own habit.

    Returns:
        ``(..., D * (2 * n_frequencies + include_input))`` in the dtype of ``x``.

    Differentiable in ``x``, twice and more (orders beyond the second run on the PyTorch formula). The argument is
    reduced in units of pi, where its product with :math:`2^f` is exact, so that high frequencies are as precise as low
    ones: with c = 1 as long as :math:`|2^f x| < 2^{20}`, else for all. float16 and bfloat16 are storage formats: the
    maths is float32.

    Raises:
        TypeError: ``x`` is no tensor of floats, or ``n_frequencies`` no integer.
        ValueError: ``x`` has no last dimension, ``n_frequencies`` is outside 1 to 32, or the mode is unknown.

    >>> fastvfx.frequency(torch.tensor([[0.5, 0.25]]), 1)  # sin(pi/2), cos(pi/2), sin(pi/4), cos(pi/4)
    """
    op = "frequency"
    _check.is_float(op, x=x)
    include_input = checked_options(op, n_frequencies, mode, include_input)
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"fastvfx.{op}: expected x of shape (..., n_dims) with n_dims >= 1, got {tuple(x.shape)}")
    columns = x.shape[-1] * (2 * n_frequencies + include_input)
    if columns > MAX_COLUMNS:
        raise ValueError(f"fastvfx.{op}: expected at most {MAX_COLUMNS} output columns, got {columns}")
    if not use_native(op, x.device):
        return reference(x, n_frequencies, mode, include_input)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    options = (n_frequencies, LAYOUT[mode], include_input)
    if torch.is_grad_enabled() and rows.requires_grad:
        out = _Frequency.apply(rows, options, mode)
    else:
        out = torch.ops.fastvfx.frequency_fwd(rows, *options)
    return out.view(*x.shape[:-1], columns)


def checked_options(op: str, n_frequencies: int, mode: str, include_input: bool | None) -> bool:
    """Whether the input is included, or an error that names what is wrong."""
    _check.is_int(op, n_frequencies=n_frequencies)
    if not 1 <= n_frequencies <= MAX_FREQUENCIES:
        raise ValueError(f"fastvfx.{op}: expected n_frequencies from 1 to {MAX_FREQUENCIES}, got {n_frequencies}")
    _check.is_one_of(op, "mode", mode, LAYOUT)
    return INCLUDES_INPUT[mode] if include_input is None else bool(include_input)


class _Frequency(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, options, mode):
        ctx.save_for_backward(x)
        ctx.options, ctx.mode = options, mode
        return torch.ops.fastvfx.frequency_fwd(x, *options)

    @staticmethod
    def backward(ctx: Any, grad_out):
        (x,) = ctx.saved_tensors
        return _FrequencyBackward.apply(x, grad_out.contiguous(), ctx.options, ctx.mode), None, None


class _FrequencyBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that it has a derivative."""

    @staticmethod
    def forward(ctx: Any, x, grad_out, options, mode):
        ctx.save_for_backward(x, grad_out)
        ctx.options, ctx.mode = options, mode
        return torch.ops.fastvfx.frequency_bwd(x, grad_out, *options)

    @staticmethod
    def backward(ctx: Any, grad_grad_x):
        x, grad_out = ctx.saved_tensors
        if not torch.is_grad_enabled():
            grad_x, grad_grad_out = torch.ops.fastvfx.frequency_bwd_bwd(
                x, grad_out, grad_grad_x.contiguous(), *ctx.options
            )
            return grad_x, grad_grad_out, None, None

        n_frequencies, _, include_input = ctx.options
        (grad_x,), (grad_grad_out,) = reference_double_backward(
            lambda x: (reference(x, n_frequencies, ctx.mode, include_input),), [x], [grad_out], [grad_grad_x]
        )
        return grad_x, grad_grad_out, None, None
