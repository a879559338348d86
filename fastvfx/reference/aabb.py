"""Intersecting rays with boxes in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def is_ray(rays_o: Tensor, rays_d: Tensor) -> Tensor:
    """(R,): finite, and with a direction."""
    finite = torch.isfinite(rays_o).all(-1) & torch.isfinite(rays_d).all(-1)
    return finite & (rays_d != 0).any(-1)


def box_interval(rays_o: Tensor, rays_d: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays (..., 3) are inside ``box`` (..., 6): ``(t_min, t_max)``, empty where t_min > t_max."""
    lower, upper = box[..., :3], box[..., 3:]
    a, b = (lower - rays_o) / rays_d, (upper - rays_o) / rays_d
    inf = torch.full_like(a, torch.inf)
    between = (lower <= rays_o) & (rays_o <= upper)
    lo = torch.where(rays_d == 0, torch.where(between, -inf, inf), torch.minimum(a, b))
    hi = torch.where(rays_d == 0, torch.where(between, inf, -inf), torch.maximum(a, b))
    return lo.amax(-1), hi.amin(-1)


def ray_aabb_intersect(
    rays_o: Tensor, rays_d: Tensor, aabbs: Tensor, near: float | Tensor, far: float | Tensor, miss_value: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The maths of :func:`fastvfx.ray_aabb_intersect`; ``near`` and ``far`` are floats or (R,)."""
    t_min, t_max = box_interval(rays_o[:, None], rays_d[:, None], aabbs)  # (R, M)
    hits = (t_max > t_min) & (t_max > 0) & is_ray(rays_o, rays_d)[:, None]
    near, far = (torch.as_tensor(x, dtype=rays_o.dtype, device=rays_o.device).reshape(-1, 1) for x in (near, far))
    t_min, t_max = (torch.minimum(torch.maximum(t, near), far) for t in (t_min, t_max))
    return torch.where(hits, t_min, miss_value), torch.where(hits, t_max, miss_value), hits
