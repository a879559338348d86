"""Occupancy grids: which parts of a scene rays may skip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ._ops.march import MAX_LEVELS
from .functional.march import RaySamples, march_rays
from .functional.occupancy import checked_resolution, pack_bits, unpack_bits


class OccupancyGrid(nn.Module):
    """A moving maximum of a field's density on a grid, and one bit per cell that says where to place samples.

    Level 0 covers ``roi_aabb``; each further level has the same number of cells in a box twice as large around the same
    centre. Semantics are those of nerfacc's ``OccGridEstimator`` (Li et al. 2023), after instant-ngp (Müller et al.
    2022). A new grid is empty: march only after the first :meth:`update` or :meth:`fill`.

    Args:
        roi_aabb: the box of level 0: lower corner, then upper corner; 6 numbers.
        resolution: cells along x, y and z, or one number for all three.
        levels: 1 to 8.

    Buffers:
        aabbs: ``(levels, 6)`` the boxes.
        occs: ``(levels, X, Y, Z)`` moving maximum; -1 in cells that no camera sees.
        bits: ``(levels, words)`` int64, the bitfield; its layout is that of :func:`fastvfx.pack_bits`.

    >>> grid = fastvfx.OccupancyGrid([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5], resolution=128)
    >>> grid.update(step, lambda x: field.density(x) * step_size)
    >>> samples = grid.march(rays_o, rays_d, step_size=step_size, jitter_seed=step)
    """

    aabbs: Tensor
    occs: Tensor
    bits: Tensor

    def __init__(
        self, roi_aabb: Sequence[float] | Tensor, resolution: int | Sequence[int] = 128, levels: int = 1
    ) -> None:
        super().__init__()
        box = torch.as_tensor(roi_aabb, dtype=torch.float32).detach()
        if box.shape != (6,) or not bool(torch.isfinite(box).all() and (box[:3] < box[3:]).all()):
            raise ValueError(
                "fastvfx.OccupancyGrid: expected roi_aabb of 6 finite numbers, lower corner below upper corner, got "
                f"{box.tolist()}"
            )
        if not 1 <= levels <= MAX_LEVELS:
            raise ValueError(f"fastvfx.OccupancyGrid: expected 1 to {MAX_LEVELS} levels, got {levels}")
        self.resolution = tuple(checked_resolution("OccupancyGrid", resolution))
        self.levels = levels
        centre, half = (box[:3] + box[3:]) / 2, (box[3:] - box[:3]) / 2
        boxes = [torch.cat([centre - half * 2**level, centre + half * 2**level]) for level in range(levels)]
        boxes[0] = box.clone()
        self.register_buffer("aabbs", torch.stack(boxes))
        self.register_buffer("occs", torch.zeros(levels, *self.resolution))
        self.register_buffer("bits", pack_bits(torch.zeros(levels, *self.resolution, dtype=torch.bool)))

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, levels={self.levels}, roi_aabb={self.aabbs[0].tolist()}"

    @property
    def binaries(self) -> Tensor:
        """bool ``(levels, X, Y, Z)``: the bitfield, a cell each."""
        return unpack_bits(self.bits, self.resolution)

    def march(self, rays_o: Tensor, rays_d: Tensor, **options: Any) -> RaySamples:
        """:func:`fastvfx.march_rays` through this grid; ``options`` are its keyword arguments."""
        return march_rays(rays_o, rays_d, self.bits, self.aabbs.to(rays_o.dtype), self.resolution, **options)

    def reset(self) -> None:
        """Forget everything: all cells empty, and visible."""
        self.occs.zero_()
        self.bits.zero_()

    def fill(self) -> None:
        """Mark every cell as occupied, until the next update."""
        self.bits.copy_(pack_bits(torch.ones_like(self.occs, dtype=torch.bool)))

    @torch.no_grad()
    def update(
        self,
        step: int,
        occ_eval_fn: Callable[[Tensor], Tensor],
        occ_thre: float = 1e-2,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
        n: int = 16,
        generator: torch.Generator | None = None,
        chunk_size: int = 2**18,
    ) -> bool:
        """Every ``n`` steps, look at the field again at random points in cells.

        Until ``warmup_steps`` in every cell; afterwards in a quarter of the cells, drawn at random, and in the occupied
        ones, of which at most as many. A cell that was looked at becomes ``max(ema_decay * occ, new)``; occupied are
        the cells above the mean of all, or above ``occ_thre`` if that is lower.

        Args:
            step: of the training; nothing happens unless it is a multiple of ``n``.
            occ_eval_fn: from positions ``(m, 3)`` to occupancies ``(m,)`` or ``(m, 1)``, usually density times step.
            occ_thre, ema_decay, warmup_steps, n: see above.
            generator: of the random numbers, on the grid's device; the same state gives the same grid.
            chunk_size: positions for each call of ``occ_eval_fn``.

        Returns:
            Whether the grid was updated.
        """
        if step % n != 0:
            return False
        for level in range(self.levels):
            cells = self._all_cells(level) if step < warmup_steps else self._some_cells(level, generator)
            found = [self._evaluate(level, part, occ_eval_fn, generator) for part in cells.split(chunk_size)]
            occs = self.occs[level].view(-1)
            occs[cells] = occs[cells] * ema_decay  # cells drawn twice decay once
            occs.scatter_reduce_(0, cells, torch.cat([occs.new_zeros(0), *found]), "amax")
        self._binarise(occ_thre)
        return True

    def _all_cells(self, level: int) -> Tensor:
        return (self.occs[level].view(-1) >= 0).nonzero()[:, 0]

    def _some_cells(self, level: int, generator: torch.Generator | None) -> Tensor:
        occs = self.occs[level].view(-1)
        n = max(len(occs) // 4, 1)
        uniform = torch.randint(len(occs), (n,), generator=generator, device=occs.device)
        occupied = self.binaries[level].view(-1).nonzero()[:, 0]
        if len(occupied) > n:
            drawn = torch.randint(len(occupied), (n,), generator=generator, device=occs.device)
            occupied = occupied[drawn]
        return torch.cat([uniform[occs[uniform] >= 0], occupied])

    def _evaluate(
        self, level: int, cells: Tensor, occ_eval_fn: Callable[[Tensor], Tensor], generator: torch.Generator | None
    ) -> Tensor:
        jitter = torch.rand(len(cells), 3, generator=generator, device=cells.device)
        found = occ_eval_fn(self._positions(level, cells, jitter)).reshape(-1)
        if len(found) != len(cells):
            raise ValueError(
                f"fastvfx.OccupancyGrid: expected occ_eval_fn to return one value for each of {len(cells)} positions, "
                f"got {len(found)}"
            )
        return found.to(self.occs.dtype).nan_to_num(nan=0.0)

    def _positions(self, level: int, cells: Tensor, within: Tensor | float) -> Tensor:
        """World positions (m, 3) of the points at ``within`` [0, 1] of each cell."""
        _, y, z = self.resolution
        corner = torch.stack([cells // (y * z), cells // z % y, cells % z], 1)  # (m, 3)
        lower, upper = self.aabbs[level, :3], self.aabbs[level, 3:]
        size = (upper - lower) / torch.tensor(self.resolution, device=cells.device)
        return lower + (corner + within) * size

    def _binarise(self, occ_thre: float) -> None:
        visible = self.occs >= 0
        mean = self.occs.clamp(min=0).sum(dtype=torch.float64) / visible.sum().clamp(min=1)
        self.bits.copy_(pack_bits(self.occs, mean.clamp(max=occ_thre)))

    @torch.no_grad()
    def mark_invisible_cells(
        self,
        c2w: Tensor,
        fx: float | Tensor,
        fy: float | Tensor,
        cx: float | Tensor,
        cy: float | Tensor,
        w: int,
        h: int,
        near: float = 0.0,
        convention: Literal["opencv", "opengl"] = "opencv",
    ) -> None:
        """Take the cells that no camera sees out of training for good: nothing could teach the field about them.

        A cell counts as seen if its bounding sphere reaches into the pyramid of some camera, beyond ``near``.

        Args:
            c2w: camera to world, ``(n, 3, 4)`` or ``(n, 4, 4)``.
            fx, fy, cx, cy: focal lengths and principal point in pixels; numbers, or tensors ``(n,)``.
            w, h: size of the images in pixels.
            near: depth at which the cameras begin to see.
            convention: of the camera's axes: x right, y down, z forward for ``"opencv"``; x right, y up, z backward
                for ``"opengl"``, as in transforms.json.

        Raises:
            ValueError: ``c2w`` has another shape, or ``convention`` is another.
        """
        if c2w.dim() != 3 or c2w.shape[1:] not in ((3, 4), (4, 4)):
            raise ValueError(
                "fastvfx.OccupancyGrid.mark_invisible_cells: expected c2w of shape (n, 3, 4) or (n, 4, 4), got "
                f"{tuple(c2w.shape)}"
            )
        if convention not in ("opencv", "opengl"):
            raise ValueError(
                f"fastvfx.OccupancyGrid.mark_invisible_cells: expected convention opencv or opengl, got {convention!r}"
            )
        device = self.occs.device
        c2w = c2w.to(device, torch.float32)
        axes, origin = c2w[:, :3, :3], c2w[:, :3, 3]
        if convention == "opengl":
            axes = axes * axes.new_tensor([1.0, -1.0, -1.0])
        fx, fy, cx, cy = (torch.as_tensor(v, device=device).float().expand(len(c2w)) for v in (fx, fy, cx, cy))
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        # Inward normals of the four sides and of the near plane, in camera axes.
        sides = [[fx, zero, cx], [-fx, zero, w - cx], [zero, fy, cy], [zero, -fy, h - cy], [zero, zero, one]]
        normals = torch.stack([torch.stack(side, 1) for side in sides], 1)  # (n, 5, 3)
        normals = nn.functional.normalize(normals, dim=-1) @ axes.transpose(1, 2)
        offsets = -(normals @ origin[..., None])[..., 0]  # (n, 5)
        offsets[:, 4] -= near
        for level in range(self.levels):
            occs = self.occs[level].view(-1)
            size = (self.aabbs[level, 3:] - self.aabbs[level, :3]) / torch.tensor(self.resolution, device=device)
            radius = size.norm() / 2
            unseen = torch.arange(len(occs), device=device)
            centres = self._positions(level, unseen, 0.5)
            for normal, offset in zip(normals, offsets, strict=True):
                outside = (torch.addmm(offset, centres, normal.T) < -radius).any(1)
                unseen, centres = unseen[outside], centres[outside]
            seen = torch.ones_like(occs, dtype=torch.bool)
            seen[unseen] = False
            occs.copy_(torch.where(seen, occs.clamp(min=0), -1))
        self.bits.bitwise_and_(pack_bits(self.occs >= 0))
