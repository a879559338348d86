"""Upsampling, filtering and downsampling of images in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _check
from .._backend import use_native
from .._ops._common import accumulate_dtype
from ..reference.upfirdn2d import Padding
from ..reference.upfirdn2d import upfirdn2d as reference

#: A factor for both axes, or (x, y).
Factor = int | Sequence[int]
#: Pixels for all sides, (x, y), or (left, right, top, bottom); negative ones crop.
PaddingLike = int | Sequence[int]


def setup_filter(
    f: Tensor | Sequence[float] | Sequence[Sequence[float]] | float | None,
    device: torch.device | str | None = None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """A filter for :func:`upfirdn2d` from its taps.

    Args:
        f: taps, 1-D (the filter is their outer product with themselves) or 2-D; one number, or ``None`` for 1.
        device: where the filter shall be; ``None`` for where ``f`` is, or torch's default device.
        normalize: make the taps add up to 1.
        flip_filter: mirror it.
        gain: of the whole 2-D filter.
        separable: keep a 1-D filter 1-D, to be applied along rows and then columns. ``None``: where it has 8 taps or
            more, as shorter ones are no faster in two passes.

    Returns:
        float32, ``(taps,)`` if separable, else ``(height, width)``.

    Raises:
        ValueError: no taps, more than 2 dimensions, or ``separable=True`` for a 2-D filter.
    """
    op = "setup_filter"
    taps = torch.as_tensor(1 if f is None else f, dtype=torch.float32, device=device)
    if taps.dim() > 2 or taps.numel() == 0:
        raise ValueError(f"fastvfx.{op}: expected f with 1 or 2 dimensions and taps in it, got {tuple(taps.shape)}")
    if taps.dim() == 0:
        taps = taps[None]
    if separable is None:
        separable = taps.dim() == 1 and taps.numel() >= 8
    if separable and taps.dim() == 2:
        raise ValueError(f"fastvfx.{op}: expected a 1-D f with separable=True, got {tuple(taps.shape)}")
    if taps.dim() == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.dim())))
    return taps * gain ** (taps.dim() / 2)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 1,
    down: Factor = 1,
    padding: PaddingLike = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    r"""Upsample by inserting zeros, pad, filter, and downsample by dropping pixels.

    With :math:`z` the image with ``up - 1`` zeros behind each pixel, padded by ``padding``:

    .. math:: y[i, j] = gain \sum_{k, l} f[k, l]\; z[i \cdot down + fh - 1 - k,\; j \cdot down + fw - 1 - l]

    a true convolution; ``flip_filter=True`` correlates instead. The operator of StyleGAN2 and StyleGAN3 (Karras et al.
    2020, 2021). The output has :math:`\lfloor (size \cdot up + pads - taps) / down \rfloor + 1` pixels along an axis.

    Args:
        x: images, ``(N, C, H, W)``.
        f: filter of :func:`setup_filter`, ``(fh, fw)``, or ``(taps,)`` for rows and columns alike; ``None`` is 1.
        up, down: factors, one for both axes or ``(x, y)``.
        padding: of the upsampled image, in pixels: one number, ``(x, y)``, or ``(left, right, top, bottom)``.
            Negative numbers crop.
        flip_filter: correlate.
        gain: factor of the result.

    Returns:
        ``(N, C, H', W')`` in the dtype and memory format of ``x``; 16-bit types are summed in float32.

    Differentiable in ``x`` and ``f`` to any order.

    Raises:
        TypeError: ``x`` or ``f`` is no tensor of floats, a factor or a pad no integer, or an option has
            another type.
        ValueError: shapes or options do not fit, or the padded image is smaller than the filter.

    >>> f = fastvfx.functional.setup_filter([1, 3, 3, 1])
    >>> fastvfx.upfirdn2d(torch.randn(4, 3, 64, 64), f, up=2, padding=(2, 1, 2, 1), gain=4)  # (4, 3, 128, 128)
    """
    op = "upfirdn2d"
    up_xy, down_xy = checked_factor(op, "up", up), checked_factor(op, "down", down)
    pads = checked_padding(op, padding)
    check_images(op, x)
    check_filter(op, "f", f, x)
    _check.is_bool(op, flip_filter=flip_filter)
    is_finite(op, "gain", gain)
    fh, fw = filter_size(f)
    height = x.shape[2] * up_xy[1] + pads[2] + pads[3]
    width = x.shape[3] * up_xy[0] + pads[0] + pads[1]
    if height < fh or width < fw:
        raise ValueError(
            f"fastvfx.{op}: expected an image of at least {fh}x{fw} pixels, the size of f, once upsampled and padded, "
            f"got {height}x{width} from x of shape {tuple(x.shape)}, up={up}, padding={padding}"
        )
    if not use_native(op, x.device):
        return reference(x, f, up_xy, down_xy, pads, flip_filter, float(gain))
    accumulate = accumulate_dtype(x.dtype)
    f = torch.ones((1, 1), dtype=accumulate, device=x.device) if f is None else f.to(accumulate)
    (up_x, up_y), (down_x, down_y) = up_xy, down_xy
    pad, out_size = (pads[2], pads[0]), ((height - fh) // down_y + 1, (width - fw) // down_x + 1)
    if f.dim() == 1 and f.requires_grad and torch.is_grad_enabled():
        f = torch.outer(f, f)  # the kernels see that it is one
    return _filtered(x, f, (out_size, (up_y, up_x), (down_y, down_x), pad, flip_filter, float(gain)))


def filter2d(
    x: Tensor, f: Tensor | None, padding: PaddingLike = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """:func:`upfirdn2d` that keeps the size of the image, but for ``padding`` in addition."""
    left, right, top, bottom = checked_padding("filter2d", padding)
    fh, fw = filter_size(f)
    pads = (left + fw // 2, right + (fw - 1) // 2, top + fh // 2, bottom + (fh - 1) // 2)
    return upfirdn2d(x, f, padding=pads, flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: Tensor, f: Tensor | None, up: Factor = 2, padding: PaddingLike = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """:func:`upfirdn2d` to an image that is ``up`` times as large, as bright as before, and centred."""
    up_x, up_y = checked_factor("upsample2d", "up", up)
    left, right, top, bottom = checked_padding("upsample2d", padding)
    fh, fw = filter_size(f)
    pads = (
        left + (fw + up_x - 1) // 2,
        right + (fw - up_x) // 2,
        top + (fh + up_y - 1) // 2,
        bottom + (fh - up_y) // 2,
    )
    return upfirdn2d(x, f, up=(up_x, up_y), padding=pads, flip_filter=flip_filter, gain=gain * up_x * up_y)


def downsample2d(
    x: Tensor, f: Tensor | None, down: Factor = 2, padding: PaddingLike = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """:func:`upfirdn2d` to an image that is ``down`` times smaller, centred."""
    down_x, down_y = checked_factor("downsample2d", "down", down)
    left, right, top, bottom = checked_padding("downsample2d", padding)
    fh, fw = filter_size(f)
    pads = (
        left + (fw - down_x + 1) // 2,
        right + (fw - down_x) // 2,
        top + (fh - down_y + 1) // 2,
        bottom + (fh - down_y) // 2,
    )
    return upfirdn2d(x, f, down=(down_x, down_y), padding=pads, flip_filter=flip_filter, gain=gain)


# --- gradients: bilinear in x and f, so that two native kernels are closed under differentiation ----------------------

#: Size of the output, up, down, padding in front; each (y, x); whether to correlate; gain.
Options = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], bool, float]


def _filtered(x: Tensor, f: Tensor, options: Options) -> Tensor:
    if torch.is_grad_enabled() and (x.requires_grad or f.requires_grad):
        return _Upfirdn2d.apply(x, f, options)
    return torch.ops.fastvfx.upfirdn2d_fwd(x, f, *options)


def _adjoint(options: Options, in_size: tuple[int, int], f: Tensor) -> Options:
    """What takes a gradient with respect to the output to one with respect to the input."""
    _, up, down, pad, flip, gain = options
    return in_size, down, up, (f.shape[0] - 1 - pad[0], f.shape[-1] - 1 - pad[1]), not flip, gain


class _Upfirdn2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, f, options):
        ctx.save_for_backward(x if f.requires_grad else None, f)
        ctx.in_size, ctx.options = (x.shape[2], x.shape[3]), options
        return torch.ops.fastvfx.upfirdn2d_fwd(x, f, *options)

    @staticmethod
    def backward(ctx: Any, grad_out):
        x, f = ctx.saved_tensors
        grad_x = grad_f = None
        if ctx.needs_input_grad[0]:
            grad_x = _filtered(grad_out, f, _adjoint(ctx.options, ctx.in_size, f))
        if ctx.needs_input_grad[1]:
            grad_f = _GradientToFilter.apply(x, grad_out, (f.shape[0], f.shape[1]), ctx.options)
        return grad_x, grad_f, None


class _GradientToFilter(torch.autograd.Function):
    """The (fh, fw) inner products of ``grad_out`` with what each tap meets in ``x``."""

    @staticmethod
    def forward(ctx: Any, x, grad_out, f_size, options):
        ctx.save_for_backward(x, grad_out)
        ctx.options = options
        _, *others = options
        return torch.ops.fastvfx.upfirdn2d_bwd_f(x, grad_out, f_size, *others)

    @staticmethod
    def backward(ctx: Any, grad_f):
        x, grad_out = ctx.saved_tensors
        grad_x = grad_grad_out = None
        if ctx.needs_input_grad[0]:
            grad_x = _filtered(grad_out, grad_f, _adjoint(ctx.options, (x.shape[2], x.shape[3]), grad_f))
        if ctx.needs_input_grad[1]:
            grad_grad_out = _filtered(x, grad_f, ctx.options)
        return grad_x, grad_grad_out, None, None


# --- checks that the operators around upfirdn2d share -----------------------------------------------------------------


def filter_size(f: Tensor | None) -> tuple[int, int]:
    """Height and width."""
    return (1, 1) if f is None else (int(f.shape[0]), int(f.shape[-1]))


def checked_factor(op: str, name: str, factor: Factor) -> tuple[int, int]:
    """(x, y)."""
    pair = tuple(factor) if isinstance(factor, Sequence) else (factor, factor)
    if len(pair) != 2 or not all(isinstance(k, int) and not isinstance(k, bool) for k in pair):
        raise TypeError(f"fastvfx.{op}: expected {name} to be an int or two of them (x, y), got {factor!r}")
    if min(pair) < 1:
        raise ValueError(f"fastvfx.{op}: expected {name} of at least 1, got {factor!r}")
    return pair


def checked_padding(op: str, padding: PaddingLike) -> Padding:
    """(left, right, top, bottom)."""
    pads = tuple(padding) if isinstance(padding, Sequence) else (padding,)
    if len(pads) not in (1, 2, 4) or not all(isinstance(k, int) and not isinstance(k, bool) for k in pads):
        raise TypeError(
            f"fastvfx.{op}: expected padding to be an int, two of them (x, y) or four (left, right, top, bottom), "
            f"got {padding!r}"
        )
    if len(pads) < 4:
        pads = (pads[0], pads[0], pads[-1], pads[-1])
    left, right, top, bottom = pads
    return left, right, top, bottom


def check_images(op: str, x: Tensor) -> None:
    _check.is_float(op, x=x)
    if x.dim() != 4:
        raise ValueError(f"fastvfx.{op}: expected x of shape (N, C, H, W), got {tuple(x.shape)}")


def check_filter(op: str, name: str, f: Tensor | None, x: Tensor) -> None:
    if f is None:
        return
    _check.is_float(op, **{name: f})
    _check.same_device(op, x=x, **{name: f})
    if f.dim() not in (1, 2) or f.numel() == 0:
        raise ValueError(f"fastvfx.{op}: expected {name} of shape (taps,) or (height, width), got {tuple(f.shape)}")


def is_finite(op: str, name: str, value: float) -> None:
    _check.is_number(op, **{name: value})
    if value - value != 0:  # torch.compile traces this with symbolic numbers, unlike math.isfinite
        raise ValueError(f"fastvfx.{op}: expected {name} to be a finite number, got {value}")
