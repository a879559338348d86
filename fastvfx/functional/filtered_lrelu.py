"""Leaky ReLU that does not alias: between an upsampling and a downsampling filter, in one pass."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _check
from .._backend import use_native
from .._ops._common import accumulate_dtype
from ..reference.filtered_lrelu import filtered_lrelu as reference
from .upfirdn2d import PaddingLike, check_filter, check_images, checked_factor, checked_padding, filter_size, is_finite


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: PaddingLike = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    r"""Bias, upsample, leaky ReLU, clamp and downsample, the nonlinearity of StyleGAN3 (Karras et al., "Alias-Free
    Generative Adversarial Networks", 2021, section 3.2).

    .. math:: y = down_{fd}\bigl(clamp(lrelu_{slope}(gain \cdot up_{fu}(x + b)))\bigr)

    with :math:`up` and :math:`down` of :func:`upfirdn2d`; the gain of ``up`` squared that upsampling needs is
    included, and ``padding`` is applied between the two halves of it.

    Args:
        x: images, ``(N, C, H, W)``.
        fu, fd: filters of up- and downsampling, ``(taps,)`` or ``(height, width)``; ``None`` is 1.
        b: bias, ``(C,)``, added before the padding with zeros.
        up, down: factors of both axes.
        padding: of the upsampled image: one number, ``(x, y)``, or ``(left, right, top, bottom)``; negative crops.
        gain: in front of the activation.
        slope: of negative values.
        clamp: values between the filters are limited to [-clamp, clamp]; ``None`` leaves them.
        flip_filter: correlate with both filters instead of convolving.

    Returns:
        ``(N, C, H', W')`` in the dtype of ``x``; 16-bit types are computed in float32 throughout.

    Differentiable in ``x``, ``b``, ``fu`` and ``fd`` to any order.

    Raises:
        TypeError: a tensor is none or has no float dtype, or an option is of another type.
        ValueError: shapes or options do not fit, or the padded image is smaller than a filter.

    >>> f = fastvfx.functional.setup_filter([1, 3, 3, 1])
    >>> fastvfx.filtered_lrelu(torch.randn(1, 8, 32, 32), f, f, torch.zeros(8), up=2, down=2, padding=3)
    """
    op = "filtered_lrelu"
    up, _ = checked_factor(op, "up", up)
    down, _ = checked_factor(op, "down", down)
    pads = checked_padding(op, padding)
    check_images(op, x)
    check_filter(op, "fu", fu, x)
    check_filter(op, "fd", fd, x)
    _check.is_float(op, b=b)
    _check.same_device(op, x=x, b=b)
    if b is not None and b.shape != (x.shape[1],):
        raise ValueError(f"fastvfx.{op}: expected b of shape (C,) with C={x.shape[1]}, got {tuple(b.shape)}")
    _check.is_number_or_none(op, clamp=clamp)
    _check.is_bool(op, flip_filter=flip_filter)
    is_finite(op, "gain", gain)
    is_finite(op, "slope", slope)
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"fastvfx.{op}: expected clamp to be None or at least 0, got {clamp}")
    (fuh, fuw), (fdh, fdw) = filter_size(fu), filter_size(fd)
    height = x.shape[2] * up + pads[2] + pads[3] - (fuh - 1)
    width = x.shape[3] * up + pads[0] + pads[1] - (fuw - 1)
    if height < max(fdh, 1) or width < max(fdw, 1):
        raise ValueError(
            f"fastvfx.{op}: expected an image of at least {fuh + fdh - 1}x{fuw + fdw - 1} pixels, the sizes of fu and "
            f"fd, once upsampled and padded, got {height + fuh - 1}x{width + fuw - 1} from x of shape "
            f"{tuple(x.shape)}, up={up}, padding={padding}"
        )
    clamp = None if clamp is None else float(clamp)
    of_filters = torch.is_grad_enabled() and any(f is not None and f.requires_grad for f in (fu, fd))
    if of_filters or math.lcm(up, down) > MAX_PHASES or not use_native(op, x.device):
        return reference(x, fu, fd, b, up, down, pads, float(gain), float(slope), clamp, flip_filter)
    return _native(x, fu, fd, b, _Options(up, down, *pads, float(gain), float(slope), clamp, bool(flip_filter)))


#: Of the pixels between the filters; the kernels keep rows phase by phase.
MAX_PHASES = 64


class _Options(NamedTuple):
    up: int
    down: int
    left: int
    right: int
    top: int
    bottom: int
    gain: float
    slope: float
    clamp: float | None
    flip: bool

    def transposable(self, size: tuple[int, int]) -> tuple[Any, ...]:
        """The arguments of ``filtered_lrelu_jvp`` and ``filtered_lrelu_bwd`` for results of ``size``."""
        return self.up, self.down, self.left, self.top, *size, self.gain, self.slope, self.clamp, self.flip


def _native(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, options: _Options) -> Tensor:
    wide = accumulate_dtype(x.dtype)
    # Two of them, where both are None: torch.compile refuses one tensor as two arguments of an autograd.Function.
    fu, fd = (x.new_ones((1,), dtype=wide) if f is None else f.detach().to(wide).contiguous() for f in (fu, fd))
    b = None if b is None else b.contiguous()
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    x = x.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad)):
        y = _FilteredLrelu.apply(x, b, fu, fd, options)
    else:
        y, _ = torch.ops.fastvfx.filtered_lrelu_fwd(x, _wide(b, wide), fu, fd, *options, False)
    return y.contiguous(memory_format=torch.channels_last) if channels_last else y


def _wide(b: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if b is None else b.detach().to(dtype)


class _FilteredLrelu(torch.autograd.Function):
    """Keeps the slopes, one or two bits for each pixel between the filters, and not x."""

    @staticmethod
    def forward(ctx: Any, x, b, fu, fd, options):
        y, mask = torch.ops.fastvfx.filtered_lrelu_fwd(x, _wide(b, accumulate_dtype(x.dtype)), fu, fd, *options, True)
        ctx.save_for_backward(mask, fu, fd)
        ctx.options, ctx.size, ctx.b_dtype = options, x.shape[2:], None if b is None else b.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad_y):
        mask, fu, fd = ctx.saved_tensors
        b_dtype = ctx.b_dtype if ctx.needs_input_grad[1] else None
        grad_x, grad_b = _Transposed.apply(grad_y.contiguous(), mask, fu, fd, ctx.options, ctx.size, b_dtype)
        return grad_x, grad_b, None, None, None


class _Transposed(torch.autograd.Function):
    """The gradient in x and b for given slopes. It is linear, and its derivative is :class:`_Linear`, whose derivative
    this is again: so every order runs on the kernel."""

    @staticmethod
    def forward(ctx: Any, grad_y, mask, fu, fd, options, size, b_dtype):
        ctx.save_for_backward(mask, fu, fd)
        ctx.options, ctx.size, ctx.b_dtype = options, grad_y.shape[2:], b_dtype
        grad_x, sums = torch.ops.fastvfx.filtered_lrelu_bwd(
            grad_y, mask, fu, fd, *options.transposable(size), b_dtype is not None
        )
        return grad_x, None if b_dtype is None else sums.sum((0, 2)).to(b_dtype)

    @staticmethod
    def backward(ctx: Any, grad_grad_x, grad_grad_b):
        b = None if ctx.b_dtype is None else grad_grad_b
        grad_grad_y = _Linear.apply(grad_grad_x.contiguous(), b, *ctx.saved_tensors, ctx.options, ctx.size)
        return grad_grad_y, None, None, None, None, None, None


class _Linear(torch.autograd.Function):
    """The derivative of y along directions of x and b."""

    @staticmethod
    def forward(ctx: Any, x, b, mask, fu, fd, options, size):
        ctx.save_for_backward(mask, fu, fd)
        ctx.options, ctx.size, ctx.b_dtype = options, x.shape[2:], None if b is None else b.dtype
        return torch.ops.fastvfx.filtered_lrelu_jvp(
            x, _wide(b, accumulate_dtype(x.dtype)), mask, fu, fd, *options.transposable(size)
        )

    @staticmethod
    def backward(ctx: Any, grad_y):
        b_dtype = ctx.b_dtype if ctx.needs_input_grad[1] else None
        grad_x, grad_b = _Transposed.apply(grad_y.contiguous(), *ctx.saved_tensors, ctx.options, ctx.size, b_dtype)
        return grad_x, grad_b, None, None, None, None, None
