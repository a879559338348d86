"""Marching rays through an occupancy grid in PyTorch: all rays step from cell to cell together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .aabb import box_interval, is_ray

CHUNK = 32768  # parts of rays that step together: their state fits the second-level cache
LATTICE_END = 2.0**40
FLOAT_STEPS = 2.0**22


def shifted(x: Tensor, n: int) -> Tensor:
    """Logical shift of int64 to the right."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def mix64(x: Tensor) -> Tensor:
    """The finaliser of splitmix64, as in march.h."""
    x = (x ^ shifted(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ shifted(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ shifted(x, 31)


def ray_jitter(seed: int | Tensor, n_rays: int, device: torch.device) -> Tensor:
    """(R,) float64, uniform in [0, 1): a function of seed and ray alone, the same as in march.h."""
    start = mix64(torch.as_tensor(seed, dtype=torch.int64, device=device).reshape(()))
    ray = torch.arange(n_rays, device=device)
    return shifted(mix64(start + ray * (0x9E3779B97F4A7C15 - (1 << 64))), 40).double() * 2.0**-24


@dataclass
class Lattice:
    """Steps t_k of every ray: t_{k+1} - t_k = clamp(cone t_k, step, max_step), in closed form. Fields: see march.h."""

    t0: Tensor  # (R, 1), like all that are tensors
    step: float
    cone: float
    max_step: float

    def __post_init__(self) -> None:
        self.k1 = self.k2 = torch.full_like(self.t0, torch.inf)
        self.t1 = self.t2 = torch.zeros_like(self.t0)
        if self.cone > 0:
            self.log_ratio = torch.log2(self.t0.new_tensor(1 + self.cone))
            self.k1 = torch.ceil((self.step / self.cone - self.t0) / self.step).clamp(min=0)
            self.t1 = self.t0 + self.k1 * self.step
            if self.max_step < torch.inf:
                n = torch.ceil(torch.log2(self.max_step / self.cone / self.t1) / self.log_ratio).clamp(min=0)
                self.k2 = self.k1 + n
                self.t2 = self.t1 * torch.exp2((self.k2 - self.k1) * self.log_ratio)

    def of_rays(self, rays: Tensor) -> Lattice:
        return Lattice(self.t0[rays], self.step, self.cone, self.max_step)

    def t(self, k: Tensor) -> Tensor:
        even = self.t0 + k * self.step
        if self.cone <= 0:
            return even
        geometric = self.t1 * torch.exp2((k - self.k1) * self.log_ratio)
        if self.max_step < torch.inf:
            geometric = torch.where(k <= self.k2, geometric, self.t2 + (k - self.k2) * self.max_step)
        return torch.where(k <= self.k1, even, geometric)

    def middle(self, k: Tensor) -> Tensor:
        if self.cone <= 0:
            return self.t0 + (k + 0.5) * self.step
        return 0.5 * (self.t(k) + self.t(k + 1))

    def index(self, m: Tensor) -> Tensor:
        k = (m - self.t0) / self.step - 0.5
        if self.cone <= 0:
            return k
        first = self.t1 * (1 + 0.5 * self.cone)
        g = self.k1 + (torch.log2(m / first) / self.log_ratio).clamp(min=0).nan_to_num(nan=0.0)
        if self.max_step < torch.inf:
            g = torch.where(g < self.k2, g, torch.maximum(self.k2, self.k2 + (m - self.t2) / self.max_step - 0.5))
        return torch.where(k < self.k1, k, g)

    def first_at(self, m: Tensor) -> Tensor:
        k = torch.ceil(self.index(m)).clamp(min=0)
        back = (k > 0) & (self.middle(k - 1) >= m)
        fixed = torch.where(back, k - 1, torch.where(self.middle(k) < m, k + 1, k))
        return torch.where(k < LATTICE_END, fixed, LATTICE_END)


@dataclass
class Parts:
    """Stretches of rays that lie in one level each, ray by ray, in order; all (P,)."""

    ray: Tensor
    level: Tensor
    first: Tensor  # where the ray enters the level
    begin: Tensor
    end: Tensor


def _parts(begin: Tensor, end: Tensor) -> Parts:
    """From where rays are in each level, (R, L): of the levels around a point the first counts."""
    empty = ~(begin < end)
    begin, end = begin.masked_fill(empty, torch.inf), end.masked_fill(empty, torch.inf)
    edges = torch.cat([begin, end], 1).sort(1).values  # (R, 2 L)
    left, right = edges[:, :-1, None], edges[:, 1:, None]
    is_in = (begin[:, None] <= left) & (left < end[:, None])  # (R, 2 L - 1, L)
    level = is_in.to(torch.uint8).argmax(2)
    ray, gap = (is_in.any(2) & (left < right)[..., 0]).nonzero(as_tuple=True)
    level = level[ray, gap]
    return Parts(ray, level, begin[ray, level], edges[ray, gap], edges[ray, gap + 1])


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    cells: Tensor,
    aabbs: Tensor,
    near: float | Tensor,
    far: float | Tensor,
    step_size: float,
    cone_angle: float = 0.0,
    max_step_size: float = float("inf"),
    max_samples: int = 2**62,
    jitter_seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The maths of :func:`fastvfx.march_rays`; ``cells`` (L, X, Y, Z) bool, ``near`` and ``far`` floats or (R,).

    Returns:
        t_starts, t_ends, ray_indices (n,) and offsets (R + 1,).
    """
    n_rays, device = rays_o.shape[0], rays_o.device
    o, d, boxes = rays_o.double()[:, None], rays_d.double()[:, None], aabbs.double()  # (R, 1, 3), (L, 6)
    near_t, far_t = (torch.as_tensor(x, dtype=torch.float64, device=device).expand(n_rays) for x in (near, far))
    lo, hi = box_interval(o, d, boxes)  # (R, L)
    lo, hi = torch.maximum(lo, near_t[:, None]), torch.minimum(hi, far_t[:, None])
    valid = is_ray(rays_o, rays_d) & torch.isfinite(near_t) & (far_t > near_t)
    valid = valid[:, None] & (boxes[:, :3] < boxes[:, 3:]).all(1) & (lo < hi)
    lo, hi = lo.where(valid, torch.inf), hi.where(valid, torch.inf)

    if step_size > 0:
        t0 = near_t.where(torch.isfinite(near_t), 0.0)
        if jitter_seed is not None:
            first_step = (cone_angle * t0).clamp(min=step_size, max=max_step_size)
            t0 = t0 + ray_jitter(jitter_seed, n_rays, device) * first_step
        lattice = Lattice(t0[:, None], step_size, cone_angle, max_step_size)
        begin = lattice.first_at(lo).where(valid, torch.inf)
        end = lattice.first_at(hi).where(valid, torch.inf)
        ray, k = _walk(o[:, 0], d[:, 0], cells, boxes, lattice, _parts(begin, end), rays_o.dtype)
        of_ray = lattice.of_rays(ray)
        t_starts, t_ends = of_ray.t(k[:, None])[:, 0], of_ray.t(k[:, None] + 1)[:, 0]
    else:
        ray, t_starts, t_ends = _cells(o[:, 0], d[:, 0], cells, boxes, _parts(lo, hi))
    counts = torch.bincount(ray, minlength=n_rays)
    if counts.numel() and int(counts.max()) > max_samples:
        rank = torch.arange(len(ray), device=device) - (counts.cumsum(0) - counts)[ray]
        keep = rank < max_samples
        ray, t_starts, t_ends = ray[keep], t_starts[keep], t_ends[keep]
        counts = counts.clamp(max=max_samples)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return t_starts.to(rays_o.dtype), t_ends.to(rays_o.dtype), ray.to(torch.int32), offsets


def _cell_lines(
    o: Tensor, d: Tensor, boxes: Tensor, resolution: Sequence[int], parts: Parts
) -> tuple[Tensor, Tensor, Tensor]:
    """Start, direction and scale (P, 3) of each part: in cells its ray is at (start + direction t) scale."""
    scale = torch.tensor(resolution, dtype=torch.float64, device=o.device) / (boxes[:, 3:] - boxes[:, :3])  # (L, 3)
    return o[parts.ray] - boxes[parts.level, :3], d[parts.ray], scale[parts.level]


def _walk(
    o: Tensor, d: Tensor, cells: Tensor, boxes: Tensor, lattice: Lattice, parts: Parts, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The kept steps: ray (n,) and k (n,) float64, ray by ray."""
    start, direction, scale = _cell_lines(o, d, boxes, cells.shape[1:], parts)
    of_part = lattice.of_rays(parts.ray)
    if lattice.cone > 0:
        groups = [(torch.arange(len(parts.ray), device=o.device), torch.float64)]
        a, b, origin = start * scale, direction * scale, torch.zeros_like(parts.first)
    else:  # counted from where the ray enters the level: few digits go into how far away that is
        a = (start + direction * of_part.middle(parts.first[:, None])) * scale
        b = (direction * scale) * lattice.step
        origin = parts.first
        is_long = parts.end - parts.first >= FLOAT_STEPS
        groups = [((~is_long).nonzero()[:, 0], dtype), (is_long.nonzero()[:, 0], torch.float64)]
    skip = _skip_table(cells)
    found = [
        _step_together(skip, cells.shape, a, b, parts, origin, of_part, chunk, number)
        for group, number in groups
        for chunk in group.split(CHUNK)
        if len(chunk)
    ]
    if not found:
        return parts.ray[:0], parts.first[:0]
    part, k, k_end = (torch.cat(x) for x in zip(*found, strict=True))
    order = torch.sort(part.to(torch.int32), stable=True).indices
    part, k, lengths = part[order], k[order], (k_end - k).to(torch.int64)[order]
    n = int(lengths.sum())
    run = torch.repeat_interleave(lengths, output_size=n)
    within = torch.arange(n, device=o.device) - (lengths.cumsum(0) - lengths)[run]
    return parts.ray[part][run], k[run] + within


def _skip_table(cells: Tensor) -> Tensor:
    """Of each cell, flat: bit 0 whether it is occupied, bit 1 whether its brick of 4 x 4 x 4 is empty."""
    _, x, y, z = cells.shape
    padded = torch.nn.functional.pad(cells, (0, -z % 4, 0, -y % 4, 0, -x % 4))
    bricks = torch.nn.functional.max_pool3d(padded[:, None].float(), 4, 4)
    empty = bricks.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)[:, 0, :x, :y, :z] == 0
    return (cells + 2 * empty.to(torch.uint8)).reshape(-1).to(torch.int32)


def _step_together(
    skip: Tensor,
    shape: Sequence[int],
    a: Tensor,
    b: Tensor,
    parts: Parts,
    origin: Tensor,
    lattice: Lattice,
    chunk: Tensor,
    number: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps of the parts ``chunk`` in occupied cells, as (part, first k, last k + 1). Positions are in ``number``."""
    shape = list(shape)
    eps = torch.finfo(number).eps
    base = (parts.level[chunk] * (shape[1] * shape[2] * shape[3])).to(torch.int32)
    k, end = (parts.begin - origin)[chunk].to(number), (parts.end - origin)[chunk].to(number)
    state = [base, k, end]
    for i in range(3):
        ai, bi = a[chunk, i].to(number), b[chunk, i].to(number)
        bi = bi.where(bi.abs() > 1e-30, 0)
        slack = 4 * eps * (shape[i + 1] + (ai.abs() if lattice.cone > 0 else 0))
        up = (bi >= 0).to(torch.int32)
        # A plane p is reached no earlier than u = p inverse - shift; where nothing moves, never.
        inverse = torch.where(bi == 0, 0, 1 / bi)
        shift = torch.where(bi == 0, -torch.inf, torch.where(bi > 0, ai + slack, ai - slack) * inverse)
        state += [ai, bi, up, inverse, shift]
    own = lattice.of_rays(chunk) if lattice.cone > 0 else lattice
    part, found, steps = chunk, [], 0
    while len(part):
        base, k, end = state[:3]
        u = own.middle(k[:, None])[:, 0] if lattice.cone > 0 else k
        xyz, index = [], None
        for i in range(3):
            ai, bi = state[3 + 5 * i : 5 + 5 * i]
            cell = (ai + bi * u).to(torch.int32).clamp_(0, shape[i + 1] - 1)
            index = cell if index is None else index * shape[i + 1] + cell
            xyz.append(cell)
        assert index is not None
        info = skip.index_select(0, index + base)
        mask = (info >> 1) * 3
        size, keep_bits = mask + 1, ~mask
        exit_u = None
        for i in range(3):
            up, inverse, shift = state[5 + 5 * i : 8 + 5 * i]
            plane = (xyz[i] & keep_bits) + up * size
            at = plane * inverse - shift
            exit_u = at if exit_u is None else torch.minimum(exit_u, at)
        assert exit_u is not None
        if lattice.cone > 0:
            exit_u = own.index(exit_u[:, None])[:, 0] * (1 - 1e-12) - 1e-9
        after = torch.minimum(torch.maximum(torch.ceil(exit_u), k + 1), end)
        hit = ((info & 1) != 0).logical_and_(after > k).nonzero()[:, 0]
        found.append((part[hit], k[hit], after[hit]))
        state[1] = after
        steps += 1
        if steps % 16 == 0:
            going = (after < end).nonzero()[:, 0]
            part, state = part[going], [x[going] for x in state]
            own = own.of_rays(going) if lattice.cone > 0 else own
    parts_found = torch.cat([x[0] for x in found])
    shift_back = origin[parts_found]
    begin = torch.cat([x[1] for x in found]).double() + shift_back
    return parts_found, begin, torch.cat([x[2] for x in found]).double() + shift_back


def _cells(o: Tensor, d: Tensor, cells: Tensor, boxes: Tensor, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """One sample per occupied cell: ray, t_in and t_out (n,), ray by ray, float64."""
    start, direction, scale = _cell_lines(o, d, boxes, cells.shape[1:], parts)
    shape = cells.shape[1:]
    found = []
    for chunk in torch.arange(len(parts.ray), device=o.device).split(2048):
        a, b = (start * scale)[chunk], (direction * scale)[chunk]  # (P, 3)
        lo, hi = parts.begin[chunk, None], parts.end[chunk, None]
        planes = []
        for i in range(3):
            plane = torch.arange(shape[i] + 1, device=o.device, dtype=torch.float64)
            t = (plane - a[:, i, None]) * (1 / b[:, i, None])
            planes.append(t.where(b[:, i, None].abs() > 1e-30, torch.inf))
        t = torch.cat([lo, hi, *planes], 1)
        t = torch.minimum(torch.maximum(t, lo), hi).sort(1).values
        t_in, t_out = t[:, :-1], t[:, 1:]
        at = a[:, None] + b[:, None] * (0.5 * (t_in + t_out))[..., None]  # (P, n, 3)
        x, y, z = (at[..., i].to(torch.int64).clamp(0, shape[i] - 1) for i in range(3))
        kept = cells[parts.level[chunk, None], x, y, z] & (t_out > t_in)
        row, column = kept.nonzero(as_tuple=True)
        found.append((parts.ray[chunk][row], t_in[row, column], t_out[row, column]))
    if not found:
        return parts.ray[:0], parts.first[:0], parts.first[:0]
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    return columns[0], columns[1], columns[2]
