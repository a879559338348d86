"""Inputs that keep away from the corner of a leaky ReLU, where its derivative jumps.

One sum of two million that two right results have on different sides of the corner makes the gradients differ by more
than all rounding together: a check that allows for it would be blind.
"""

from __future__ import annotations

from torch import Tensor


def moved_off_the_corner(bias: Tensor, sums: Tensor) -> Tensor:
    """``bias`` (C,) moved a little, so that 0 is in the middle of the widest gap nearby between sums of its channel.

    ``sums`` (N, C, ...) is what the activation sees with ``bias``, in float64.
    """
    values = sums.transpose(0, 1).flatten(1).sort(1).values  # (C, pixels)
    middles = (values[:, 1:] + values[:, :-1]) / 2
    nearest = middles.abs().topk(min(32, middles.shape[1]), 1, largest=False).indices
    widest = nearest.gather(1, values.diff().gather(1, nearest).argmax(1, keepdim=True))
    return (bias.double() - middles.gather(1, widest)[:, 0]).to(bias.dtype)
