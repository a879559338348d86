"""Intersecting rays with axis-aligned boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check
from .._backend import use_native
from ..reference.aabb import ray_aabb_intersect as reference


def ray_aabb_intersect(
    rays_o: Tensor,
    rays_d: Tensor,
    aabbs: Tensor,
    near: float | Tensor = -math.inf,
    far: float | Tensor = math.inf,
    miss_value: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays ``o + t d`` enter and leave axis-aligned boxes: the slab test of Kay and Kajiya (1986).

    Args:
        rays_o: origins, float32 or float64 ``(n_rays, 3)``.
        rays_d: directions of any length, ``(n_rays, 3)``; t is in units of that length.
        aabbs: boxes ``(n_boxes, 6)``: lower corner, then upper corner.
        near: t is not below this: a number, or one for each ray, ``(n_rays,)``.
        far: t is not above this, likewise.
        miss_value: what ``t_mins`` and ``t_maxs`` hold where the ray misses the box.

    Returns:
        ``t_mins``, ``t_maxs`` and ``hits`` (bool), each ``(n_rays, n_boxes)``. A box is hit if some of the ray lies in
        it at t > 0; as in nerfacc, ``near`` and ``far`` only clamp the two t. A ray parallel to a side counts as inside
        when it runs within it. A ray with a NaN or an infinity, or whose direction is zero, hits nothing.

    Not differentiable.

    Raises:
        TypeError: an argument is no tensor, not of the dtype of ``rays_o``, or an option no number.
        ValueError: shapes or devices do not fit.

    >>> t_mins, t_maxs, hits = fastvfx.ray_aabb_intersect(rays_o, rays_d, torch.tensor([[-1.0, -1, -1, 1, 1, 1]]))
    """
    op = "ray_aabb_intersect"
    _check.is_number(op, miss_value=miss_value)
    rays_o, rays_d, aabbs = checked_rays(op, rays_o, rays_d, aabbs)
    near, nears = per_ray(op, "near", near, rays_o)
    far, fars = per_ray(op, "far", far, rays_o)
    if not use_native(op, rays_o.device):
        return reference(
            rays_o, rays_d, aabbs, near if nears is None else nears, far if fars is None else fars, miss_value
        )
    return torch.ops.fastvfx.aabb_fwd(rays_o, rays_d, aabbs, nears, fars, near, far, float(miss_value))


def checked_rays(op: str, rays_o: Tensor, rays_d: Tensor, aabbs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rays and boxes, contiguous and without gradient, after checking dtypes, devices and shapes."""
    for name, tensor in {"rays_o": rays_o, "rays_d": rays_d, "aabbs": aabbs}.items():
        _check.is_tensor(op, name, tensor)
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != rays_o.dtype:
            wanted = "float32 or float64" if name == "rays_o" else f"{rays_o.dtype} like rays_o"
            raise TypeError(f"fastvfx.{op}: expected {name} of dtype {wanted}, got {tensor.dtype}")
    _check.same_device(op, rays_o=rays_o, rays_d=rays_d, aabbs=aabbs)
    if rays_o.dim() != 2 or rays_o.shape[1] != 3:
        raise ValueError(f"fastvfx.{op}: expected rays_o of shape (n_rays, 3), got {tuple(rays_o.shape)}")
    _check.has_shape(op, "rays_d", rays_d, rays_o.shape, lambda: f"(n_rays, 3) with n_rays={rays_o.shape[0]}")
    if aabbs.dim() != 2 or aabbs.shape[1] != 6:
        raise ValueError(f"fastvfx.{op}: expected aabbs of shape (n_boxes, 6), got {tuple(aabbs.shape)}")
    return rays_o.detach().contiguous(), rays_d.detach().contiguous(), aabbs.detach().contiguous()


def per_ray(op: str, name: str, value: float | Tensor, rays_o: Tensor) -> tuple[float, Tensor | None]:
    """A distance that is a number or one for each ray, as (number, tensor or None)."""
    if not isinstance(value, Tensor):
        _check.is_number(op, **{name: value})
        if math.isnan(value):
            raise ValueError(f"fastvfx.{op}: expected {name} to be a number, got nan")
        return float(value), None
    _check.same_device(op, rays_o=rays_o, **{name: value})
    n_rays = rays_o.shape[0]
    _check.has_shape(op, name, value, (n_rays,), lambda: f"(n_rays,) with n_rays={n_rays}, or a number")
    return 0.0, value.detach().to(rays_o.dtype).contiguous()
