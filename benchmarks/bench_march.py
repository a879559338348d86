"""Marching rays from cameras around a scene through an occupancy grid."""

from __future__ import annotations

from functools import partial
from typing import Any

import harness
import pytest
import torch
from harness import CheckFailed, Race, Workload
from torch import Tensor

import fastvfx
from fastvfx.reference.aabb import box_interval

BOX = [-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]
RESOLUTION = 128
STEP = 3 * 3**0.5 / 1024  # 1024 steps along the diagonal, as nerfacc's examples and instant-ngp take them
CHUNK = 512  # rays that the dense baseline handles at once, so that what it makes stays in the cache


def scene(kind: str, occupied: float = 0.1) -> Tensor:
    """bool (1, 128, 128, 128): connected shapes, as scenes have them, or cells at random, where nothing is skipped."""
    if kind == "random":
        return torch.rand(1, *[RESOLUTION] * 3) < occupied
    noise = torch.randn(1, 1, 12, 12, 12)
    smooth = torch.nn.functional.interpolate(noise, size=[RESOLUTION] * 3, mode="trilinear", align_corners=True)[0]
    return smooth > smooth.flatten().kthvalue(int(smooth.numel() * (1 - occupied))).values


def cameras(n: int) -> tuple[Tensor, Tensor]:
    """Rays (n, 3) of a training batch: random pixels of 16 cameras on a sphere around the box, aimed into it."""
    places = 4 * torch.nn.functional.normalize(torch.randn(16, 3), dim=-1)
    rays_o = places[torch.randint(16, (n,))]
    target = (torch.rand(n, 3) - 0.5) * 2.4
    return rays_o, torch.nn.functional.normalize(target - rays_o, dim=-1)


def look_up(cells: Tensor, a: Tensor, b: Tensor, n: Tensor, k: Tensor) -> Tensor:
    """Which steps k (K,) of each ray are kept (R, K): position in cells a + b k, looked up for all of them."""
    last = RESOLUTION - 1
    x, y, z = ((a[:, i, None] + b[:, i, None] * k).to(torch.int32).clamp(0, last) for i in range(3))
    return cells[(x * RESOLUTION + y) * RESOLUTION + z] & (k < n[:, None])


def dense(rays_o: Tensor, rays_d: Tensor, cells: Tensor, box: Tensor, look_up: Any) -> tuple[Tensor, ...]:
    """The other way to march in torch: look at every step between entering and leaving the box."""
    o, d, wide = rays_o.double(), rays_d.double(), box.double()
    lo, hi = box_interval(o, d, wide[0])
    first = torch.ceil(lo / STEP - 0.5).clamp(min=0)
    n = (torch.ceil(hi / STEP - 0.5) - first).where(lo < hi, 0).clamp(min=0)
    scale = RESOLUTION / (wide[0, 3:] - wide[0, :3])
    a = ((o - wide[0, :3] + d * ((first + 0.5) * STEP)[:, None]) * scale).float()
    b = ((d * scale) * STEP).float()
    flat, n_float, steps = cells.view(-1), n.float(), torch.arange(1024, dtype=torch.float32, device=o.device)
    found = []
    for i in range(0, len(o), CHUNK):
        part = slice(i, i + CHUNK)
        ray, k = look_up(flat, a[part], b[part], n_float[part], steps).nonzero(as_tuple=True)
        found.append((ray + i, k))
    ray, k = (torch.cat(x) for x in zip(*found, strict=True))
    k = first[ray] + k
    offsets = torch.cat([ray.new_zeros(1), torch.bincount(ray, minlength=len(o)).cumsum(0)])
    return (k * STEP).float(), ((k + 1) * STEP).float(), ray.to(torch.int32), offsets


def prepare(device: str, small: bool, kind: str, form: str, rays: int = 1 << 16) -> Race:
    """64k rays; ours against two ways in torch, one of them compiled too. All keep the same samples, to the bit."""
    rays = 123 if small else rays
    cells = scene(kind).to(device)
    rays_o, rays_d = (x.to(device) for x in cameras(rays))
    box = torch.tensor([BOX], device=device)
    bits = fastvfx.pack_bits(cells)
    march = partial(fastvfx.march_rays, rays_o, rays_d, bits, box, RESOLUTION, step_size=STEP)
    exact = march()
    n = exact.t_starts.shape[0]
    capacity = n if form == "capacity" else None

    def reference(_: int) -> Any:
        with fastvfx.backend("reference"):
            return march()

    baselines = {
        harness.EAGER: reference,
        "torch dense": lambda _: dense(rays_o, rays_d, cells, box, look_up),
        harness.COMPILED: partial(
            lambda compiled, _: dense(rays_o, rays_d, cells, box, compiled), harness.compiled(look_up)
        ),
    }

    def check() -> dict[str, float]:
        errors = {}
        for name, call in {harness.OURS: lambda _: march(capacity=capacity), **baselines}.items():
            got = call(0)[:4]
            # The compiled one may contract to fused multiply-adds: it may disagree at the borders of a few cells.
            if got[0].shape != exact.t_starts.shape:
                errors[name] = abs(got[0].shape[0] - n) / n
            else:
                errors[name] = max(harness.error(got, exact[:4]))
            if errors[name] > (1e-4 if name == harness.COMPILED else 0):
                raise CheckFailed(f"{name}: off by {errors[name]:.3g}")
        return errors

    return Race(
        lambda _: march(capacity=capacity),
        baselines,
        check,
        f"{rays} rays, {RESOLUTION}^3 cells, {cells.float().mean():.0%} occupied ({kind}), {n} samples",
        rays,
        "ray",
        n_bytes=rays * (24 + 8) + bits.numel() * 8 + n * 12,
    )


WORKLOADS = [
    Workload("march", f"64k rays, {kind}, {form}", "fwd", partial(prepare, kind=kind, form=form), target)
    for kind, form, target in (("shapes", "exact", 50.0), ("shapes", "capacity", 50.0), ("random", "exact", None))
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_march(workload, versus):
    versus(workload)
