"""A convolution of scaled channels whose derivatives are convolutions of scaled channels, to any order.

With C the convolution, D and W its adjoints in the image and in the weight, and s a factor of each image's channels:

    y = C(s x, w)    dx = s D(dy, w)    ds = sum over pixels of x D(dy, w)    dw = W(s x, dy)

Each derivative of D and W is again one of the three, so that R1 and path length penalties need nothing else. What is
kept for the backward pass is x, s and w; s x is computed again. A gradient that nobody asked for is not computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autograd import gradients_wanted
from .._ops._torch_conv2d import Geometry
from .._ops.conv2d import options
from .bias_act import scale_gradients, scaled_bias_act


def scaled_conv2d(x: Tensor, s: Tensor | None, w: Tensor, geometry: Geometry) -> Tensor:
    """``x`` (N, I, H, W) times ``s`` (N, I), convolved with ``w`` (O, I / groups, kh, kw).

    The result has the layout of ``x`` and the dtype that it was computed in: see ``compute_dtype``.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, s, w)):
        return _Conv.apply(x, s, w, geometry)
    return convolution(x, s, w, geometry)


def convolution(
    x: Tensor, s: Tensor | None, w: Tensor, geometry: Geometry, epilogue: tuple[Any, ...] | None = None
) -> Tensor:
    """Without a gradient. ``epilogue``: scale, noise, bias, act (a number), alpha, gain and clamp of
    :func:`fastvfx.functional.bias_act.scaled_bias_act`; the result then has the dtype of ``x``."""
    what = epilogue or (None, None, None, 0, 0.0, 1.0, None)
    return torch.ops.fastvfx.conv2d_fwd(x, s, w, *what, epilogue is not None, *options(geometry))


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor | None, w: Tensor, geometry: Geometry):
        ctx.save_for_backward(x, s, w)
        ctx.geometry = geometry
        return convolution(x, s, w, geometry)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor):
        x, s, w = ctx.saved_tensors
        want_x, want_s, want_w, _ = gradients_wanted(ctx)
        grad_w = _WeightGradient.apply(x, s, grad_y, w.shape, w.dtype, ctx.geometry) if want_w else None
        return *_image_gradients(x, s, grad_y, w, ctx.geometry, want_x, want_s), grad_w, None


class _ImageGradient(torch.autograd.Function):
    """D."""

    @staticmethod
    def forward(ctx: Any, grad_y: Tensor, w: Tensor, size: tuple[int, int], geometry: Geometry):
        ctx.save_for_backward(grad_y, w)
        ctx.geometry = geometry
        return torch.ops.fastvfx.conv2d_dgrad(grad_y, w, *size, *options(geometry))

    @staticmethod
    def backward(ctx: Any, x: Tensor):
        grad_y, w = ctx.saved_tensors
        want_y, want_w, _, _ = gradients_wanted(ctx)
        grad_w = _WeightGradient.apply(x, None, grad_y, w.shape, w.dtype, ctx.geometry) if want_w else None
        return _Conv.apply(x, None, w, ctx.geometry) if want_y else None, grad_w, None, None


class _WeightGradient(torch.autograd.Function):
    """W of s x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        s: Tensor | None,
        grad_y: Tensor,
        shape: torch.Size,
        dtype: torch.dtype,
        geometry: Geometry,
    ):
        ctx.save_for_backward(x, s, grad_y)
        ctx.geometry = geometry
        return torch.ops.fastvfx.conv2d_wgrad(x, s, grad_y, shape, *options(geometry)).to(dtype)

    @staticmethod
    def backward(ctx: Any, w: Tensor):
        x, s, grad_y = ctx.saved_tensors
        want_x, want_s, want_y, *_ = gradients_wanted(ctx)
        grad_x, grad_s = _image_gradients(x, s, grad_y, w, ctx.geometry, want_x, want_s)
        return grad_x, grad_s, _Conv.apply(x, s, w, ctx.geometry) if want_y else None, None, None, None


def _image_gradients(
    x: Tensor, s: Tensor | None, grad_y: Tensor, w: Tensor, geometry: Geometry, want_x: bool, want_s: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``x`` and ``s``."""
    if not (want_x or want_s):
        return None, None
    grad = _ImageGradient.apply(grad_y, w, tuple(x.shape[2:]), geometry)  # of s x
    if s is None:
        return grad.to(x.dtype), None
    if not want_s:
        return scaled_bias_act(grad, s, None, None).to(x.dtype), None
    grad_x, grad_s = scale_gradients(grad, x.to(grad.dtype), s)
    return grad_x.to(x.dtype) if want_x else None, grad_s
