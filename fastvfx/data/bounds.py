"""Where the scene is: the map from the units of the file to scene coordinates, and the boxes that a model fills.

Scene coordinates are ``(file - center) * scale``, with the innermost box centred at the origin and its longest side
from -1 to 1. A capture of an object has that one box (``levels == 1``), as tight as is known. A capture with a
background has ``levels`` boxes, each twice as large as the one before: the levels of the occupancy grid and the
``aabb_scale = 2**(levels - 1)`` of instant-ngp. How the boxes are found, the first that applies:

1. what the caller gives;
2. ``"aabb"`` in the file, in file units;
3. mattes: the box of their visual hull;
4. ``"aabb_scale"`` (with ``"scale"``, default 0.33, and ``"offset"``, default 0.5) in the file: instant-ngp's unit cube
   ``position * scale + offset`` is the innermost box, so cameras at a mean distance of 4 give it a half side of 1.515;
5. the cameras alone: the same proportion (half side = 0.379 of the mean distance to the point they look at) and five
   levels, or, where they do not look at a common point, a box around all of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._threads import one_thread
from .cameras import Cameras
from .errors import DataError
from .paths import axes_center

__all__ = ["SceneBounds", "scene_bounds", "visual_hull"]

_NGP_SCALE = 0.33
_NGP_HALF = 0.5 / _NGP_SCALE / 4  # Half side of instant-ngp's unit cube, for cameras at a mean distance of one.
_FREE_LEVELS = 5
# Near plane of a capture with a background, in sides of the innermost box, as in instant-ngp: nothing is so close to
# the lens, and without it the model hangs a picture before each camera.
_NEAR = 0.1

Box = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class SceneBounds:
    """The scene's coordinates and boxes. Plain numbers: it can be stored as JSON and compared.

    Attributes:
        center: the origin of scene coordinates, in file units.
        scale: scene units per file unit.
        aabb: the innermost box in scene coordinates, (min x, y, z, max x, y, z); its centre is the origin, its longest
            side 2.
        levels: number of nested boxes; level l is ``aabb * 2**l``.
        near: rays start at this distance from the camera (scene units); 0 for captures of an object.
        source: how the boxes were found, in words.
    """

    center: tuple[float, float, float]
    scale: float
    aabb: Box
    levels: int = 1
    near: float = 0.0
    source: str = "given"

    @property
    def outer_aabb(self) -> Box:
        """The outermost box, scene coordinates: everything that the model can show."""
        k = 2.0 ** (self.levels - 1)
        a = self.aabb
        return (a[0] * k, a[1] * k, a[2] * k, a[3] * k, a[4] * k, a[5] * k)

    @property
    def unbounded(self) -> bool:
        """Whether there is a background beyond the innermost box."""
        return self.levels > 1

    def to_scene(self, points: Tensor) -> Tensor:
        """(..., 3) file units to scene coordinates."""
        return (points - torch.tensor(self.center, dtype=points.dtype, device=points.device)) * self.scale

    def to_file(self, points: Tensor) -> Tensor:
        """(..., 3) scene coordinates to file units."""
        return points / self.scale + torch.tensor(self.center, dtype=points.dtype, device=points.device)

    def to_dict(self) -> dict[str, Any]:
        """For JSON and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SceneBounds:
        """The inverse of `to_dict`, after a trip through JSON too."""
        values = dict(values)
        values["center"], values["aabb"] = tuple(values["center"]), tuple(values["aabb"])
        return cls(**values)

    @classmethod
    def from_box(
        cls, low: Sequence[float], high: Sequence[float], *, levels: int = 1, near: float = 0.0, source: str = "given"
    ) -> SceneBounds:
        """Bounds whose innermost box is ``low`` to ``high`` in file units."""
        numbers = [float(v) for v in (*low, *high)]
        if (
            len(numbers) != 6
            or not all(map(math.isfinite, numbers))
            or not all(a < b for a, b in zip(numbers[:3], numbers[3:], strict=True))
        ):
            raise DataError(
                f"expected an aabb of two corners [[x, y, z], [x, y, z]], the first below the second, "
                f"got {[list(low), list(high)]}"
            )
        if levels < 1:
            raise DataError(f"expected levels >= 1, got {levels}")
        lo, hi = numbers[:3], numbers[3:]
        half = [(b - a) / 2 for a, b in zip(lo, hi, strict=True)]
        scale = 1.0 / max(half)
        x, y, z = (h * scale for h in half)
        return cls(
            center=((lo[0] + hi[0]) / 2, (lo[1] + hi[1]) / 2, (lo[2] + hi[2]) / 2),
            scale=scale,
            aabb=(-x, -y, -z, x, y, z),
            levels=levels,
            near=near,
            source=source,
        )


def levels_of(aabb_scale: float) -> int:
    """Number of levels of an ``aabb_scale``, which must be a power of two from 1 to 128."""
    if not (1 <= aabb_scale <= 128) or math.log2(aabb_scale) % 1:
        raise DataError(f"expected aabb_scale to be a power of two from 1 to 128, got {aabb_scale}")
    return 1 + int(math.log2(aabb_scale))


def scene_bounds(
    centers: Tensor,
    forward: Tensor,
    *,
    aabb: Sequence[Sequence[float]] | None = None,
    aabb_scale: float | None = None,
    scale: float = _NGP_SCALE,
    offset: Sequence[float] = (0.5, 0.5, 0.5),
    mattes: tuple[Cameras, Sequence[Tensor]] | None = None,
) -> SceneBounds:
    """Find the scene's boxes from what is known, see the head of this module. All in file units.

    Args:
        centers, forward: (N, 3) positions and viewing directions of the cameras.
        aabb: ``[[x, y, z], [x, y, z]]``, the innermost box.
        aabb_scale: size of the outermost box relative to the innermost.
        scale, offset: instant-ngp's map to its unit cube; used with ``aabb_scale``.
        mattes: some of the cameras and their mattes (H, W), floating point in [0, 1], for the visual hull.
    """
    levels = 1 if aabb_scale is None else levels_of(aabb_scale)
    if aabb is not None:
        if len(aabb) != 2:
            raise DataError(f"expected an aabb of two corners [[x, y, z], [x, y, z]], got {aabb}")
        near = 2 * _NEAR if levels > 1 else 0.0
        return SceneBounds.from_box(aabb[0], aabb[1], levels=levels, near=near, source="aabb as given")
    center, converge = axes_center(centers, forward)
    distance = (centers - center).norm(dim=-1)
    if mattes is not None:
        with one_thread():
            box = visual_hull(*mattes, center, 0.9 * float(distance.mean()))
        if box is not None:
            return SceneBounds.from_box(
                box[0].tolist(), box[1].tolist(), source=f"visual hull of {len(mattes[1])} mattes"
            )
        warnings.warn(
            "fastvfx.data: the mattes have no point in common, so the scene's box is taken from the cameras alone; "
            "do mattes and poses belong together?",
            stacklevel=3,
        )
    if aabb_scale is not None:
        middle = [(0.5 - o) / scale for o in offset]
        half, source = 0.5 / scale, f"aabb_scale {aabb_scale:g}, scale {scale:g}"
    else:
        middle, levels = center.tolist(), _FREE_LEVELS
        if converge:
            half, source = _NGP_HALF * float(distance.mean()), "the point the cameras look at"
        else:
            half, source = float(distance.max()), "a box around the cameras"
        half = half if half > 0 else 1.0
    low, high = [c - half for c in middle], [c + half for c in middle]
    return SceneBounds.from_box(low, high, levels=levels, near=2 * _NEAR if levels > 1 else 0.0, source=source)


def visual_hull(
    cameras: Cameras, mattes: Sequence[Tensor], center: Tensor, half: float, *, levels: int = 3
) -> tuple[Tensor, Tensor] | None:
    """The box of the points that lie inside all mattes: two corners (3,), or None if there are none.

    The voxels of a cube are projected into every view; those that are left are split in eight and projected again.
    Beyond the border of an image its matte is taken to go on as it is at the border: a turntable cut off by the frame
    stays, and what lies outside a frame with a clear border goes. A point must still be inside the frame of half of
    the views. One view in 32 may err (mattes pulled with a key have holes). Mattes are widened by the size of a
    voxel, so that nothing thin is lost.

    Args:
        cameras: N cameras.
        mattes: N tensors (H, W), floating point in [0, 1].
        center, half: the cube to search.
        levels: how often to do so; the first time there are 32 voxels along a side.
    """
    n = len(cameras)
    allowed, needed = n // 32, max(1, n // 2)
    # In random order the first few views already carve from all sides.
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    middle = center.float()
    voxel = half / 16
    corner = torch.tensor([-1.0, 1.0])
    axis = (torch.arange(32) - 15.5) * voxel
    points = middle + torch.cartesian_prod(axis, axis, axis)
    for level in range(levels):
        if level:
            voxel /= 2
            points = (points[:, None] + torch.cartesian_prod(corner, corner, corner) * (voxel / 2)).reshape(-1, 3)
        seen = torch.zeros(points.shape[0], dtype=torch.int32)
        missed = torch.zeros_like(seen)
        for i in order:
            xy, depth = cameras.project(torch.full((points.shape[0],), i), points)
            h, w = mattes[i].shape
            distance = float((middle - cameras.centers[i]).norm())
            reach = math.ceil(0.87 * voxel * float(cameras.fx[i]) / max(distance, 1e-6))
            solid = _widen(mattes[i] > 0.5, min(reach, min(h, w) // 2))
            front = depth > 0.1 * distance
            at = xy.floor().clamp(-1e6, 1e6).long()
            border = torch.stack([at[:, 0].clamp(0, w - 1), at[:, 1].clamp(0, h - 1)], -1)
            seen += front & (at == border).all(-1)
            missed += front & ~solid.reshape(-1)[border[:, 1] * w + border[:, 0]]
            keep = missed <= allowed
            points, seen, missed = points[keep], seen[keep], missed[keep]
        points = points[seen >= (needed if level == levels - 1 else max(1, needed // 2))]
        if points.shape[0] == 0:
            return None
    # The surface lies somewhere in the outermost voxel; half a voxel more, as that one was judged by its centre.
    return points.amin(0) - voxel, points.amax(0) + voxel


def _widen(matte: Tensor, reach: int) -> Tensor:
    """Grow a (H, W) bool mask by ``reach`` pixels in each direction."""
    if reach < 1:
        return matte
    x = F.max_pool2d(matte.float()[None], (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return F.max_pool2d(x, (1, 2 * reach + 1), stride=1, padding=(0, reach))[0] > 0
