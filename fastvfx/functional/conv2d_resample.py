"""Convolution with an up- or downsampling of the image around it."""

from __future__ import annotations

from torch import Tensor

from .. import _check
from ..reference.conv2d_resample import conv2d_resample as reference
from .upfirdn2d import PaddingLike, check_filter, check_images, checked_factor, checked_padding


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
        TypeError: a tensor is none, or has no float dtype.
        ValueError: shapes or options do not fit.
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
    if groups < 1 or w.shape[1] * groups != x.shape[1] or w.shape[0] % groups:
        raise ValueError(
            f"fastvfx.{op}: expected w of shape (O, I / groups, kh, kw) with I={x.shape[1]} and O a multiple of "
            f"groups={groups}, got {tuple(w.shape)}"
        )
    return reference(x, w, f, up, down, pads, groups, flip_weight, flip_filter)
