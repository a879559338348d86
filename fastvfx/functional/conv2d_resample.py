"""Convolution with an up- or downsampling of the image around it."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from .. import _check
from .._backend import get_backend, use_native
from .._ops._torch_conv2d import Geometry
from ..reference.conv2d_resample import conv2d_resample as reference
from ..reference.conv2d_resample import resampling_pads
from .scaled_conv2d import scaled_conv2d
from .upfirdn2d import (
    Padding,
    PaddingLike,
    check_filter,
    check_images,
    checked_factor,
    checked_padding,
    filter_size,
    upfirdn2d,
)


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: PaddingLike = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Upsample with a filter, convolve, and downsample with the same filter, as StyleGAN2's layers do.

    Equal to ``upfirdn2d(conv2d(upfirdn2d(x, f, up)), f, down)`` with what the filters take at the borders padded
    first; up and down by strided convolutions where that is less work.

    Args:
        x: images, ``(N, I, H, W)``.
        w: weights, ``(O, I / groups, kh, kw)``.
        f: filter of :func:`setup_filter` for both factors; ``None`` is 1.
        up, down: factors of both axes.
        padding: of the upsampled image: one number, ``(x, y)``, or ``(left, right, top, bottom)``.
        groups: as in ``torch.nn.functional.conv2d``.
        flip_weight: ``True`` correlates with ``w``, as ``conv2d`` does; ``False`` convolves.
        flip_filter: correlate with ``f`` instead of convolving.

    Returns:
        ``(N, O, H', W')`` in the dtype of ``x``.

    Differentiable in ``x``, ``w`` and ``f`` to any order.

    Raises:
        TypeError: a tensor is none or has no float dtype, or an option is of another type.
        ValueError: shapes or options do not fit, or the padded image is smaller than the kernel or the filter.
    """
    op = "conv2d_resample"
    up, _ = checked_factor(op, "up", up)
    down, _ = checked_factor(op, "down", down)
    pads = checked_padding(op, padding)
    check_images(op, x)
    check_filter(op, "f", f, x)
    _check.is_float(op, w=w)
    _check.same_device(op, x=x, w=w)
    if w.dim() != 4:
        raise ValueError(f"fastvfx.{op}: expected w of shape (O, I / groups, kh, kw), got {tuple(w.shape)}")
    _check.is_int(op, groups=groups)
    _check.is_bool(op, flip_weight=flip_weight, flip_filter=flip_filter)
    if groups < 1 or w.shape[1] * groups != x.shape[1] or w.shape[0] % groups:
        raise ValueError(
            f"fastvfx.{op}: expected w of shape (O, I / groups, kh, kw) with I={x.shape[1]} and O a multiple of "
            f"groups={groups}, got {tuple(w.shape)}"
        )
    output_size(op, x, w, f, up, down, pads)
    by_torch = x.device.type == "cuda" and get_backend() != "reference"  # cuDNN has what these convolutions need
    if x.shape[0] == 0 or not (by_torch or use_native(op, x.device)):
        return reference(x, w, f, up, down, pads, groups, flip_weight, flip_filter)
    return resampled(x, None, w, f, up, down, pads, groups, flip_weight, flip_filter).to(x.dtype)


def resampled(
    x: Tensor,
    s: Tensor | None,
    w: Tensor,
    f: Tensor | None,
    up: int,
    down: int,
    padding: Padding,
    groups: int,
    flip_weight: bool,
    flip_filter: bool,
) -> Tensor:
    """:func:`conv2d_resample` of ``x`` times ``s`` (N, I), with the order of the steps that is the least work.

    The result has the dtype that it was computed in. Factors of channels pass through filters, and so do kernels of one
    pixel; a filter and a convolution change places, so that only the pixels are convolved that are new or are kept.
    """
    pads = left, right, top, bottom = resampling_pads(f, up, down, padding)
    kh, kw = w.shape[2:]
    fir = partial(upfirdn2d, f=f, flip_filter=flip_filter)
    correlating = Geometry(flip=not flip_weight, groups=groups)
    if up == 1 and down == 1:
        if left != right or top != bottom or min(pads) < 0:
            x, left, top = F.pad(x, pads), 0, 0  # negative pads crop
        return scaled_conv2d(x, s, w, correlating._replace(padding=(top, left)))
    if up == 1:
        stride = down if max(kh, kw) > 1 else 1
        x = fir(x, down=down // stride, padding=pads)
        return scaled_conv2d(x, s, w, correlating._replace(stride=stride))
    if max(kh, kw) == 1:
        y = fir(scaled_conv2d(x, s, w, correlating), up=up, padding=pads, gain=up**2)
    else:
        y = scaled_conv2d(x, s, w, Geometry(up, transposed=True, flip=flip_weight, groups=groups))
        # The transposed convolution has kernel - 1 pixels more at each end, but no zeros behind the last pixel.
        pads = left - (kw - 1), right - (kw - up), top - (kh - 1), bottom - (kh - up)
        y = fir(y, padding=pads, gain=up**2)
    return fir(y, down=down) if down > 1 else y


def output_size(
    op: str, x: Tensor, w: Tensor, f: Tensor | None, up: int, down: int, padding: Padding
) -> tuple[int, int]:
    """Height and width of the result, or an error if there is none."""
    left, right, top, bottom = resampling_pads(f, up, down, padding)
    size = []
    for axis, pads in ((2, top + bottom), (3, left + right)):
        taps = filter_size(f)[axis - 2]
        convolved = x.shape[axis] * up + pads - (taps - 1 if up > 1 else 0) - (w.shape[axis] - 1)
        filtered = convolved - (taps - 1 if down > 1 else 0)
        if filtered < 1:
            raise ValueError(
                f"fastvfx.{op}: expected an image not smaller than kernel and filter once it is padded, got x of shape "
                f"{tuple(x.shape)}, weights of shape {tuple(w.shape)}, up={up}, down={down}, padding={padding} and a "
                f"filter of {' x '.join(map(str, filter_size(f)))} taps"
            )
        size.append((filtered - 1) // down + 1)
    return size[0], size[1]
