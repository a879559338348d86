"""Spherical harmonics of directions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .. import _check
from .._autograd import reference_double_backward
from .._backend import use_native
from ..reference.spherical_harmonics import spherical_harmonics as reference

Mode = Literal["tcnn", "torch_ngp", "nerfstudio"]
InputRange = Literal["signed", "unit"]

#: Whether a mode has the sign (-1)^m of Condon and Shortley.
CONDON_SHORTLEY = {"tcnn": True, "torch_ngp": True, "nerfstudio": False}


def spherical_harmonics(
    dirs: Tensor, degree: int = 4, *, mode: Mode = "tcnn", input_range: InputRange = "signed"
) -> Tensor:
    r"""Real spherical harmonics of directions up to, not including, order ``degree``: ``degree ** 2`` values each.

    .. math::
        Y_{l,m} = K_{lm} \frac{d^m P_l}{dz^m}(z) \, \mathrm{Re}(x + i y)^m, \quad
        Y_{l,-m} = K_{lm} \frac{d^m P_l}{dz^m}(z) \, \mathrm{Im}(x + i y)^m, \quad 0 \le m \le l

    with Legendre's :math:`P_l` and :math:`K_{lm}` such that they are orthonormal on the unit sphere (Sloan,
    "Efficient Spherical Harmonic Evaluation", 2013). They are evaluated as these polynomials: directions are expected
    to have unit length and are not normalised, as in tiny-cuda-nn, torch-ngp and nerfstudio.

    Args:
        dirs: directions, ``(..., 3)``.
        degree: 1 to 8, counted as in tiny-cuda-nn: one more than the highest order l, which is what nerfstudio calls
            degree.
        mode: whose signs. ``"tcnn"`` and ``"torch_ngp"`` have the factor :math:`(-1)^m` (order 1 reads -y, z, -x),
            ``"nerfstudio"`` has none (y, z, x).
        input_range: ``"signed"``: components in [-1, 1], as torch-ngp and nerfstudio take them. ``"unit"``: components
            in [0, 1] that stand for ``2 * dirs - 1``, as tiny-cuda-nn takes them.

    Returns:
        ``(..., degree ** 2)`` in the dtype of ``dirs``; the value of order l, m is column ``l * l + l + m``.

    Differentiable in ``dirs``, twice and more (orders beyond the second run on the PyTorch formula). float16 and
    bfloat16 are storage formats: the maths is float32.

    Raises:
        TypeError: ``dirs`` is no tensor of floats, or ``degree`` no integer.
        ValueError: ``dirs`` does not end in 3, ``degree`` is outside 1 to 8, or a mode or range is unknown.

    >>> fastvfx.spherical_harmonics(torch.tensor([[0.0, 0.0, 1.0]]), 2)  # 0.2821, -0, 0.4886, -0
    """
    op = "spherical_harmonics"
    _check.is_float(op, dirs=dirs)
    condon_shortley, unit_range = checked_options(op, degree, mode, input_range)
    if dirs.dim() < 1 or dirs.shape[-1] != 3:
        raise ValueError(f"fastvfx.{op}: expected dirs of shape (..., 3), got {tuple(dirs.shape)}")
    options = (degree, condon_shortley, unit_range)
    if not use_native(op, dirs.device):
        return reference(dirs, *options)
    rows = dirs.reshape(-1, 3).contiguous()
    if torch.is_grad_enabled() and rows.requires_grad:
        out = _SphericalHarmonics.apply(rows, options)
    else:
        out = torch.ops.fastvfx.spherical_harmonics_fwd(rows, *options)
    return out.view(*dirs.shape[:-1], degree * degree)


def checked_options(op: str, degree: int, mode: str, input_range: str) -> tuple[bool, bool]:
    """``(condon_shortley, unit_range)``, or an error that names what is wrong."""
    _check.is_int(op, degree=degree)
    if not 1 <= degree <= 8:
        raise ValueError(f"fastvfx.{op}: expected degree from 1 to 8, got {degree}")
    _check.is_one_of(op, "mode", mode, CONDON_SHORTLEY)
    _check.is_one_of(op, "input_range", input_range, ("signed", "unit"))
    return CONDON_SHORTLEY[mode], input_range == "unit"


class _SphericalHarmonics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dirs, options):
        ctx.save_for_backward(dirs)
        ctx.options = options
        return torch.ops.fastvfx.spherical_harmonics_fwd(dirs, *options)

    @staticmethod
    def backward(ctx: Any, grad_out):
        (dirs,) = ctx.saved_tensors
        return _SphericalHarmonicsBackward.apply(dirs, grad_out.contiguous(), ctx.options), None


class _SphericalHarmonicsBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that it has a derivative."""

    @staticmethod
    def forward(ctx: Any, dirs, grad_out, options):
        ctx.save_for_backward(dirs, grad_out)
        ctx.options = options
        return torch.ops.fastvfx.spherical_harmonics_bwd(dirs, grad_out, *options)

    @staticmethod
    def backward(ctx: Any, grad_grad_dirs):
        dirs, grad_out = ctx.saved_tensors
        if not torch.is_grad_enabled():
            grad_dirs, grad_grad_out = torch.ops.fastvfx.spherical_harmonics_bwd_bwd(
                dirs, grad_out, grad_grad_dirs.contiguous(), *ctx.options
            )
            return grad_dirs, grad_grad_out, None

        (grad_dirs,), (grad_grad_out,) = reference_double_backward(
            lambda dirs: (reference(dirs, *ctx.options),), [dirs], [grad_out], [grad_grad_dirs]
        )
        return grad_dirs, grad_grad_out, None
