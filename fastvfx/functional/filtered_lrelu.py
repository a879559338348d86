"""Leaky ReLU that does not alias: between an upsampling and a downsampling filter, in one pass."""

from __future__ import annotations

import math

from torch import Tensor

from .. import _check
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
        TypeError: a tensor is none, or has no float dtype.
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
    return reference(x, fu, fd, b, up, down, pads, float(gain), float(slope), clamp, flip_filter)
