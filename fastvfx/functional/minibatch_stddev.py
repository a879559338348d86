"""Standard deviation over groups of a batch, for discriminators."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _check
from ..reference.minibatch_stddev import minibatch_stddev as reference


def minibatch_stddev(x: Tensor, group_size: int | None = 4, num_channels: int = 1) -> Tensor:
    r"""Append the standard deviation over groups of the batch as channels, so that a discriminator sees variety.

    .. math::
        s_{mf} = \frac{F}{C H W} \sum_{c, h, w} \sqrt{\tfrac{1}{G} \sum_g (x_{gmfchw} - \bar x_{mfchw})^2 + 10^{-8}}

    (Karras et al., "Progressive Growing of GANs", 2018, section 3). Images that are N / G apart in the batch, a group
    m, are compared; each of the F appended channels is the mean over its share of the input's.

    Args:
        x: ``(N, C, H, W)``.
        group_size: G, images that are compared; ``None`` for the whole batch. A smaller batch is one group.
        num_channels: F, channels to append.

    Returns:
        ``(N, C + num_channels, H, W)`` in the dtype of ``x``.

    Differentiable to any order; equal images have a finite gradient. Plain PyTorch on every device: discriminators use
    it once, on images of 4x4.

    Raises:
        TypeError: ``x`` is no tensor of floats, or an option no int.
        ValueError: ``x`` is not 4-D, N is no multiple of the group size, or C none of ``num_channels``.

    >>> fastvfx.functional.minibatch_stddev(torch.randn(8, 512, 4, 4)).shape  # (8, 513, 4, 4)
    """
    op = "minibatch_stddev"
    _check.is_float(op, x=x)
    if x.dim() != 4:
        raise ValueError(f"fastvfx.{op}: expected x of shape (N, C, H, W), got {tuple(x.shape)}")
    value: Any
    for name, value in {"group_size": group_size, "num_channels": num_channels}.items():
        if value is None and name == "group_size":
            continue
        _check.is_int(op, **{name: value})
        if value < 1:
            raise ValueError(f"fastvfx.{op}: expected {name} of at least 1, got {value}")
    n, channels = x.shape[:2]
    group = max(n if group_size is None else min(group_size, n), 1)
    if n % group:
        raise ValueError(f"fastvfx.{op}: expected a batch that is a multiple of group_size={group}, got N={n}")
    if channels % num_channels:
        raise ValueError(
            f"fastvfx.{op}: expected channels that are a multiple of num_channels={num_channels}, got C={channels}"
        )
    return reference(x, group, num_channels)
