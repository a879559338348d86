"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import Loss


def color_loss(predicted: Tensor, target: Tensor, kind: Loss, huber_delta: float) -> Tensor:
    """Mean over (R, 3) colours."""
    if kind == "mse":
        return F.mse_loss(predicted, target)
    return F.huber_loss(predicted, target, delta=huber_delta)


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Mean of ``-o log o - (1 - o) log(1 - o)``: a ray should hit something or nothing."""
    o = opacity.clamp(1e-4, 1 - 1e-4)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def distortion_loss(weights: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor) -> Tensor:
    r"""How far the light of a ray is spread along it, mean over rays.

    .. math::
        \sum_{i,j} w_i w_j |m_i - m_j| + \frac13 \sum_i w_i^2 (t^{end}_i - t^{start}_i), \quad
        m = (t^{start} + t^{end}) / 2

    Barron et al., "Mip-NeRF 360" (2022), eq. 15. Samples are sorted along the ray, so that the double sum is
    :math:`2 \sum_i w_i (m_i W_i - M_i)` with :math:`W_i = \sum_{j<i} w_j`, :math:`M_i = \sum_{j<i} w_j m_j`.
    Distances enter in the unit they come in.

    Args:
        weights, t_starts, t_ends: (N,), packed.
        offsets: (R + 1,).
    """
    n_rays = offsets.shape[0] - 1
    if weights.numel() == 0:
        return weights.sum()
    middle = 0.5 * (t_starts + t_ends)
    before = _exclusive_sums(torch.stack([weights, weights * middle]), offsets)
    spread = 2 * weights * (middle * before[0] - before[1])
    return (spread + weights.square() * (t_ends - t_starts) / 3).sum() / max(n_rays, 1)


def _exclusive_sums(x: Tensor, offsets: Tensor) -> Tensor:
    """Sums of (K, N) along each ray, before each sample; in float64, because one scan runs over all rays."""
    total = F.pad(x.double().cumsum(1), (1, 0))  # (K, N + 1)
    at_start = total[:, offsets[:-1]]  # (K, R)
    at_start = at_start.repeat_interleave(offsets.diff(), dim=1, output_size=x.shape[1])
    return (total[:, :-1] - at_start).to(x.dtype)
