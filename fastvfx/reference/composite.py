"""Emission-absorption compositing in PyTorch, differentiable to any order."""

from __future__ import annotations

import torch
from torch import Tensor


def _pad(offsets: Tensor, n_samples: int, max_per_ray: int | None) -> tuple[Tensor, Tensor]:
    """Indices (R, S) of each ray's samples and a mask (R, S) of those that exist."""
    counts = offsets[1:] - offsets[:-1]  # (R,)
    if max_per_ray is None:
        max_per_ray = int(counts.max()) if counts.numel() else 0
    steps = torch.arange(max_per_ray, device=offsets.device)  # (S,)
    index = offsets[:-1, None] + steps  # (R, S)
    return index.clamp(0, max(n_samples - 1, 0)), steps < counts[:, None]


def composite(
    values: Tensor,
    rgbs: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor | None = None,
    background: Tensor | None = None,
    alphas: bool = False,
    depth: str = "expected",
    depth_threshold: float = 0.5,
    early_stop_eps: float = 0.0,
    max_per_ray: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The maths of :func:`fastvfx.composite`; packed rays are padded to a rectangle first.

    Padding instead of one scan over all samples: a scan would carry one ray's infinities and rounding into the next.
    ``max_per_ray`` spares the padding its look at ``offsets``.

    Returns:
        rgb (R, C), opacity (R,), depth (R,), weights and transmittance in the layout of ``values``.
    """
    n_samples = values.numel()
    dtype = torch.promote_types(values.dtype, t_starts.dtype)
    index = mask = None
    if offsets is not None:
        index, mask = _pad(offsets, n_samples, max_per_ray)
        if n_samples == 0:
            index, mask = index[:, :0], mask[:, :0]
        values = torch.where(mask, values[index], 0)  # (R, S)
        rgbs = torch.where(mask[..., None], rgbs[index], 0)  # (R, S, C)
        t_starts = torch.where(mask, t_starts[index], 0)
        t_ends = torch.where(mask, t_ends[index], 0)
    values, rgbs = values.to(dtype), rgbs.to(dtype)
    t = 0.5 * (t_starts + t_ends)  # (R, S)
    first = torch.zeros_like(values[:, :1])

    if alphas:
        alpha = values
        T = torch.cumprod(torch.cat([first + 1, 1 - alpha], 1), 1)  # (R, S + 1), T_0 = 1
    else:
        tau = values * (t_ends - t_starts)
        alpha = -torch.expm1(-tau)
        T = torch.exp(-torch.cumsum(torch.cat([first, tau], 1), 1))
    if T.shape[1] == 0:
        T = values.new_ones((values.shape[0], 1))
    T, T_next = T[:, :-1], T[:, 1:]  # (R, S)
    last = torch.ones_like(T_next[:, 0]) if T_next.shape[1] == 0 else T_next[:, -1]  # (R,)
    if early_stop_eps > 0:
        stopped = torch.cumsum(early_stop_eps > T, 1)  # counts samples behind the stop
        at_stop = torch.where(stopped == 1, T, 0).sum(1)
        last = torch.where((stopped > 0).any(1), at_stop, last)
        alpha = torch.where(stopped > 0, 0, alpha)
        T = torch.where(stopped > 0, 0, T)
    weights = T * alpha
    opacity = weights.sum(1)
    rgb = (weights[..., None] * rgbs).sum(1)
    if background is not None:
        rgb = rgb + last[:, None] * background

    if depth == "first_hit":
        is_hit = (1 - depth_threshold < T) & (T_next <= 1 - depth_threshold)
        is_first = is_hit & (torch.cumsum(is_hit, 1) == 1)
        z = torch.where(is_first, t, 0).sum(1)
    else:
        z = (weights * t).sum(1)
        if depth == "expected":
            z = z / opacity.clamp(min=torch.finfo(dtype).eps)

    if index is not None and mask is not None:
        weights, T = _unpad(weights, index, mask, n_samples), _unpad(T, index, mask, n_samples)
    return rgb, opacity, z, weights, T


def _unpad(x: Tensor, index: Tensor, mask: Tensor, n_samples: int) -> Tensor:
    flat = x.new_zeros(n_samples + 1)  # the last place takes what is padding
    return flat.index_put((torch.where(mask, index, n_samples),), x)[:-1]
