"""Marching rays through an occupancy grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _check
from .._backend import use_native
from .._ops.march import MAX_LEVELS
from ..reference.march import march as reference
from ..reference.occupancy import unpack_bits
from .aabb import checked_rays, per_ray
from .occupancy import checked_bits

_NO_LIMIT = 2**62


class RaySamples(NamedTuple):
    """Samples along rays, ray after ray and front to back."""

    t_starts: Tensor  #: (n_samples,) in the dtype of the rays
    t_ends: Tensor  #: (n_samples,)
    ray_indices: Tensor  #: (n_samples,) int32; -1 in the padding that a capacity leaves
    offsets: Tensor  #: (n_rays + 1,) int64: ray r owns samples offsets[r] to offsets[r + 1] - 1
    overflow: Tensor | None = None  #: with a capacity: int64 (), how many rays (the last ones) were left out


def march_rays(
    rays_o: Tensor,
    rays_d: Tensor,
    bits: Tensor,
    aabbs: Tensor,
    resolution: int | Sequence[int],
    *,
    step_size: float,
    cone_angle: float = 0.0,
    max_step_size: float = math.inf,
    near: float | Tensor = 0.0,
    far: float | Tensor = math.inf,
    jitter_seed: int | Tensor | None = None,
    max_samples_per_ray: int | None = None,
    capacity: int | None = None,
) -> RaySamples:
    r"""Place samples along rays ``o + t d`` where an occupancy grid says that there is something.

    The steps of a ray lie on a lattice,

    .. math::
        t_0 = near + jitter \cdot \Delta(near), \qquad t_{k+1} = t_k + \Delta(t_k), \qquad
        \Delta(t) = \mathrm{clamp}(t \cdot cone\_angle,\; step\_size,\; max\_step\_size)

    that is known in closed form: evenly spaced, then geometric, then evenly spaced again. Sample k is the interval
    :math:`[t_k, t_{k+1}]`, and the ray has it if and only if its middle lies between near and far and in an occupied
    cell. Empty space is skipped by whole bricks, which changes the work and not the samples; a ray that comes from far
    away costs no more than another, and its steps do not drift. These are the semantics of nerfacc's ``traverse_grids``
    (Li et al. 2023), without its loop of additions.

    Levels: the cell around a point is looked up in the first of the boxes that holds it, so the finest comes first.
    Of a ray only what is in some box has samples.

    Args:
        rays_o: origins, float32 or float64 ``(n_rays, 3)``.
        rays_d: directions of any length, ``(n_rays, 3)``; t is in units of that length.
        bits: which cells are occupied, int64 ``(levels, words)`` from :func:`fastvfx.pack_bits`; up to 8 levels.
        aabbs: the box of each level, ``(levels, 6)``: lower corner, then upper corner.
        resolution: cells along x, y and z, in every level; or one number for all three.
        step_size: the smallest step. Zero or less: one sample for each occupied cell, from where the ray enters it to
            where it leaves it.
        cone_angle: how much a step grows with t; 0 for even steps.
        max_step_size: the largest step; without effect if ``cone_angle`` is 0.
        near: where the lattice begins: a number, or one for each ray, ``(n_rays,)``.
        far: where it ends, likewise. A ray with near >= far has no samples.
        jitter_seed: move each ray's lattice by a random part of its first step: a hash of this seed and the index of
            the ray, the same on every processor. A number, or an int64 tensor of one element on the device of the
            rays, so that a captured CUDA graph can be given a new one. ``None``: no jitter.
        max_samples_per_ray: keep only this many of the first samples of each ray.
        capacity: allocate exactly this many samples and do not wait for a GPU to say how many there are. Rays are
            written in order as long as they fit as a whole; the first that does not and all behind it get no samples,
            and ``overflow`` says how many they are. Behind the last sample t is 0 and the ray index -1.

    Returns:
        :class:`RaySamples`. The order is the same on every device and for any number of threads. Even steps are
        computed with the same roundings everywhere, so the samples are the same to the bit too; with a cone angle
        they are to the accuracy of ``exp2`` in double precision.

    Not differentiable. With float32 rays t is rounded to float32 only when it is written: 40,000 units away
    neighbouring floats are 0.004 apart, and steps finer than that need float64 rays, or a ``near`` that is subtracted
    from the origin. A ray with a NaN or an infinity, or whose direction is zero, has no samples. Steps behind the
    2^40th are not looked at.

    Raises:
        TypeError: an argument is no tensor, not of the dtype that is listed, or an option no number.
        ValueError: shapes, devices or options do not fit; on the CPU also if a box is empty or not finite. On a GPU
            that would cost a synchronisation: there no ray has samples in such a box.

    >>> bits = fastvfx.pack_bits(torch.rand(1, 128, 128, 128) < 0.1)
    >>> box = torch.tensor([[-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]])
    >>> samples = fastvfx.march_rays(rays_o, rays_d, bits, box, 128, step_size=5e-3)
    >>> x = rays_o[samples.ray_indices] + rays_d[samples.ray_indices] * samples.t_starts[:, None]
    """
    op = "march_rays"
    rays_o, rays_d, aabbs = checked_rays(op, rays_o, rays_d, aabbs)
    shape = checked_bits(op, bits, resolution)
    levels, n_rays = bits.shape[0], rays_o.shape[0]
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"fastvfx.{op}: expected bits of 1 to {MAX_LEVELS} levels, got {levels}")
    _check.has_shape(op, "aabbs", aabbs, (levels, 6), lambda: f"(levels, 6) with levels={levels}")
    seed_tensor = jitter_seed if isinstance(jitter_seed, Tensor) else None
    _check.same_device(op, rays_o=rays_o, bits=bits, jitter_seed=seed_tensor)
    if n_rays >= 2**31:
        raise ValueError(f"fastvfx.{op}: expected fewer than 2**31 rays, got {n_rays}")
    near, nears = per_ray(op, "near", near, rays_o)
    far, fars = per_ray(op, "far", far, rays_o)
    _check.is_number(op, step_size=step_size, cone_angle=cone_angle, max_step_size=max_step_size)
    for name, value in {"max_samples_per_ray": max_samples_per_ray, "capacity": capacity}.items():
        if value is not None:
            _check.is_int(op, **{name: value})
    if jitter_seed is not None and seed_tensor is None:
        _check.is_int(op, jitter_seed=jitter_seed)
    _check_steps(op, float(step_size), float(cone_angle), float(max_step_size))
    if nears is None and not math.isfinite(near):
        raise ValueError(f"fastvfx.{op}: expected a finite near, got {near}")
    if seed_tensor is not None and (seed_tensor.dtype != torch.int64 or seed_tensor.numel() != 1):
        raise ValueError(
            f"fastvfx.{op}: expected jitter_seed to be an int or an int64 tensor of one element, got "
            f"{seed_tensor.dtype} of shape {tuple(seed_tensor.shape)}"
        )
    if max_samples_per_ray is not None and max_samples_per_ray < 1:
        raise ValueError(f"fastvfx.{op}: expected max_samples_per_ray of 1 or more, got {max_samples_per_ray}")
    if capacity is not None and capacity < 0:
        raise ValueError(f"fastvfx.{op}: expected a capacity of 0 or more, got {capacity}")
    limit = _NO_LIMIT if max_samples_per_ray is None else max_samples_per_ray
    if not use_native(op, rays_o.device):
        samples = RaySamples(
            *reference(
                rays_o, rays_d, unpack_bits(bits, shape), aabbs, near if nears is None else nears,
                far if fars is None else fars, float(step_size), float(cone_angle), float(max_step_size), limit,
                jitter_seed,
            )
        )  # fmt: skip
        return samples if capacity is None else _fit(samples, capacity)
    inputs = (
        rays_o, rays_d, bits.contiguous(), aabbs, nears, fars, seed_tensor, near, far, shape, float(step_size),
        float(cone_angle), float(max_step_size), limit, jitter_seed is not None,
        0 if jitter_seed is None or seed_tensor is not None else jitter_seed,
    )  # fmt: skip
    if capacity is None:
        return RaySamples(*torch.ops.fastvfx.march(*inputs))
    return RaySamples(*torch.ops.fastvfx.march_capacity(*inputs, capacity))


def _check_steps(op: str, step_size: float, cone_angle: float, max_step_size: float) -> None:
    if not math.isfinite(step_size):
        raise ValueError(f"fastvfx.{op}: expected a finite step_size, got {step_size}")
    if not (math.isfinite(cone_angle) and cone_angle >= 0):
        raise ValueError(f"fastvfx.{op}: expected a finite cone_angle of 0 or more, got {cone_angle}")
    if cone_angle > 0 and step_size <= 0:
        raise ValueError(f"fastvfx.{op}: expected a step_size above 0 with a cone_angle, got {step_size}")
    if not max_step_size >= step_size:
        raise ValueError(f"fastvfx.{op}: expected max_step_size of at least step_size={step_size}, got {max_step_size}")


def _fit(samples: RaySamples, capacity: int) -> RaySamples:
    """The samples in tensors of ``capacity``: whole rays as long as they fit."""
    t_starts, t_ends, ray_indices, offsets, _ = samples
    fits = offsets <= capacity  # monotone
    written = offsets.where(fits, 0).amax()
    keep = torch.arange(capacity, device=offsets.device) < written

    def padded(x: Tensor, fill: int) -> Tensor:
        row = x.new_full((capacity,), fill)
        row[: min(capacity, len(x))] = x[:capacity]
        return row.where(keep, fill)

    return RaySamples(
        padded(t_starts, 0), padded(t_ends, 0), padded(ray_indices, -1), offsets.where(fits, written), (~fits).sum()
    )


def prune_samples(samples: RaySamples, keep: Tensor) -> RaySamples:
    """The samples for which ``keep`` holds, for instance those that a density says are visible.

    Args:
        samples: from :func:`fastvfx.march_rays`; padding, if any, is dropped.
        keep: bool ``(n_samples,)``.

    Returns:
        :class:`RaySamples` with offsets to match and no padding; as their number is not known beforehand, a GPU is
        waited for.

    Raises:
        TypeError: ``keep`` is no bool tensor.
        ValueError: its shape or device do not fit.
    """
    op = "prune_samples"
    _check.is_tensor(op, "keep", keep)
    if keep.dtype != torch.bool:
        raise TypeError(f"fastvfx.{op}: expected keep of dtype bool, got {keep.dtype}")
    _check.same_device(op, t_starts=samples.t_starts, keep=keep)
    n_samples = samples.t_starts.shape[0]
    _check.has_shape(op, "keep", keep, (n_samples,), lambda: f"(n_samples,) with n_samples={n_samples}")
    keep = keep & (samples.ray_indices >= 0)
    before = torch.cat([samples.offsets.new_zeros(1), keep.cumsum(0)])
    return RaySamples(samples.t_starts[keep], samples.t_ends[keep], samples.ray_indices[keep], before[samples.offsets])
