"""Cameras: pinhole with OpenCV lens distortion, rays through pixels, projection of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._threads import one_thread

__all__ = ["Cameras", "distort", "undistort"]

# Direction tables above this many pixels in all are not kept; rays are then computed at each call.
_TABLE_PIXELS = 1 << 24


def _radial_tangential(x: Tensor, y: Tensor, k: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    k1, k2, k3, p1, p2 = k
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y),
    )


def distort(xy: Tensor, coefficients: Tensor) -> Tensor:
    """OpenCV's lens model on the image plane at depth 1 (x right, y down).

    ``x' = x (1 + k1 r² + k2 r⁴ + k3 r⁶) + 2 p1 x y + p2 (r² + 2 x²)`` and
    ``y' = y (1 + k1 r² + k2 r⁴ + k3 r⁶) + 2 p2 x y + p1 (r² + 2 y²)``.

    Args:
        xy: (..., 2) ideal coordinates.
        coefficients: (5,) or (..., 5): k1, k2, k3, p1, p2.

    Returns:
        (..., 2) distorted coordinates.
    """
    return torch.stack(_radial_tangential(xy[..., 0], xy[..., 1], coefficients.to(xy).unbind(-1)), -1)


def undistort(xy: Tensor, coefficients: Tensor, *, iterations: int = 12) -> Tensor:
    """The inverse of `distort` by Newton's method, in float64 (no gradient).

    Args:
        xy: (..., 2) distorted coordinates.
        coefficients: (5,) or (..., 5): k1, k2, k3, p1, p2.
        iterations: Newton steps; each about doubles the correct digits.

    Returns:
        (..., 2) ideal coordinates in the dtype of ``xy``. Where the lens model folds over (strong negative k1 far from
        the centre) there is no inverse, and the result does not distort back to ``xy``.
    """
    with torch.no_grad():
        k1, k2, k3, p1, p2 = k = coefficients.to(device=xy.device, dtype=torch.float64).unbind(-1)
        xd, yd = xy.double().unbind(-1)
        x, y = xd, yd
        for _ in range(iterations):
            fx, fy = _radial_tangential(x, y, k)
            fx, fy = fx - xd, fy - yd
            r2 = x * x + y * y
            radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
            slope = 2 * (k1 + r2 * (2 * k2 + r2 * 3 * k3))  # d(radial)/dx = slope * x
            dxx = radial + x * x * slope + 2 * p1 * y + 6 * p2 * x
            dyy = radial + y * y * slope + 2 * p2 * x + 6 * p1 * y
            dxy = x * y * slope + 2 * p1 * x + 2 * p2 * y  # The Jacobian is symmetric.
            det = dxx * dyy - dxy * dxy
            ok = det > 1e-6  # Beyond the fold a step would run away.
            det = torch.where(ok, det, torch.ones_like(det))
            x = torch.where(ok, x - (fx * dyy - fy * dxy) / det, x)
            y = torch.where(ok, y - (fy * dxx - fx * dxy) / det, y)
        return torch.stack([x, y], -1).to(xy.dtype)


@dataclass
class Cameras:
    """N cameras. Pixel coordinates are (x right, y down) with the centre of the first pixel at (0.5, 0.5).

    Attributes:
        camera_to_world: (N, 3, 4) float32, OpenGL convention: x right, y up, the camera looks along -z.
        fx, fy, cx, cy: (N,) float32, focal lengths and principal point in pixels.
        width, height: (N,) int64, image size in pixels.
        distortion: (N, 5) float32: k1, k2, k3, p1, p2 of OpenCV's lens model; zeros for a pinhole.
    """

    camera_to_world: Tensor
    fx: Tensor
    fy: Tensor
    cx: Tensor
    cy: Tensor
    width: Tensor
    height: Tensor
    distortion: Tensor
    _distorted: bool = field(init=False, repr=False, compare=False)
    # Unit directions in camera space, one table per distinct set of intrinsics: (sum of H*W, 3), and where each
    # camera's table starts: (N,).
    _table: tuple[Tensor, Tensor] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        n = self.camera_to_world.shape[0]
        if self.camera_to_world.shape != (n, 3, 4):
            found = tuple(self.camera_to_world.shape)
            raise ValueError(f"fastvfx.data.Cameras: expected camera_to_world of shape (N, 3, 4), got {found}")
        for name in ("fx", "fy", "cx", "cy", "width", "height", "distortion"):
            shape = (n, 5) if name == "distortion" else (n,)
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"fastvfx.data.Cameras: expected {name} of shape {shape}, got {found}")
        self._distorted = bool((self.distortion != 0).any())

    @classmethod
    def create(
        cls,
        camera_to_world: Tensor,
        *,
        fx: float | Tensor,
        fy: float | Tensor | None = None,
        cx: float | Tensor | None = None,
        cy: float | Tensor | None = None,
        width: int | Tensor,
        height: int | Tensor,
        distortion: Tensor | None = None,
    ) -> Cameras:
        """Cameras from scalars or (N,) tensors; ``fy`` defaults to ``fx``, the principal point to the image centre.

        Args:
            camera_to_world: (N, 3, 4) or (N, 4, 4).
            fx, fy, cx, cy, width, height: as the attributes; a scalar holds for all cameras.
            distortion: (5,) or (N, 5).
        """
        poses = camera_to_world[..., :3, :4].float()
        n, device = poses.shape[0], poses.device

        def per_camera(value: float | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.as_tensor(value, dtype=dtype, device=device).expand(n).clone()

        w, h = per_camera(width, torch.int64), per_camera(height, torch.int64)
        lens = torch.zeros(5) if distortion is None else torch.as_tensor(distortion, dtype=torch.float32)
        return cls(
            camera_to_world=poses.clone(),
            fx=per_camera(fx),
            fy=per_camera(fx if fy is None else fy),
            cx=w.float() / 2 if cx is None else per_camera(cx),
            cy=h.float() / 2 if cy is None else per_camera(cy),
            width=w,
            height=h,
            distortion=lens.to(device).expand(n, 5).clone(),
        )

    def __len__(self) -> int:
        return self.camera_to_world.shape[0]

    @property
    def device(self) -> torch.device:
        return self.camera_to_world.device

    @property
    def centers(self) -> Tensor:
        """(N, 3) camera positions."""
        return self.camera_to_world[:, :, 3]

    @property
    def forward(self) -> Tensor:
        """(N, 3) unit viewing directions."""
        return -self.camera_to_world[:, :, 2]

    @property
    def up(self) -> Tensor:
        """(N, 3) unit upward directions."""
        return self.camera_to_world[:, :, 1]

    def _tensors(self) -> dict[str, Tensor]:
        names = ("camera_to_world", "fx", "fy", "cx", "cy", "width", "height", "distortion")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device | str) -> Cameras:
        """The same cameras on ``device``."""
        return Cameras(**{name: x.to(device) for name, x in self._tensors().items()})

    def select(self, indices: Tensor | Sequence[int]) -> Cameras:
        """The cameras at ``indices``."""
        at = torch.as_tensor(indices, dtype=torch.int64, device=self.device)
        return Cameras(**{name: x[at] for name, x in self._tensors().items()})

    def with_poses(self, camera_to_world: Tensor, *, like: int = 0, scale: float = 1.0, lens: bool = False) -> Cameras:
        """Cameras at new poses with the intrinsics of camera ``like``: the cameras of a film.

        Args:
            camera_to_world: (M, 3, 4).
            like: whose intrinsics to take.
            scale: size of the new images relative to the old.
            lens: keep the lens distortion; a film is usually wanted without.
        """
        i = like
        width = max(1, round(int(self.width[i]) * scale))
        height = max(1, round(int(self.height[i]) * scale))
        sx, sy = width / int(self.width[i]), height / int(self.height[i])
        return Cameras.create(
            camera_to_world.to(self.device),
            fx=float(self.fx[i]) * sx,
            fy=float(self.fy[i]) * sy,
            cx=float(self.cx[i]) * sx,
            cy=float(self.cy[i]) * sy,
            width=width,
            height=height,
            distortion=self.distortion[i] if lens else None,
        )

    # --- rays -------------------------------------------------------------------------------------------------------

    def rays(self, camera_indices: Tensor, pixel_xy: Tensor) -> tuple[Tensor, Tensor]:
        """Rays through pixels.

        Args:
            camera_indices: (...) integers.
            pixel_xy: (..., 2). Integers name pixels (column, row) and mean their centres; these come from tables that
                are computed once. Floating point is a position in the image, the centre of the first pixel at
                (0.5, 0.5), and is computed (undistorted) at each call.

        Returns:
            origins (..., 3) and unit directions (..., 3), float32, in world coordinates.

        Raises:
            ValueError: shapes that do not match.
            IndexError: an integer pixel or a camera that does not exist (not checked on CUDA devices, where it would
                wait for the device).
        """
        if pixel_xy.shape != (*camera_indices.shape, 2):
            raise ValueError(
                f"fastvfx.data.Cameras.rays: expected pixel_xy of shape {(*camera_indices.shape, 2)} "
                f"for camera_indices of shape {tuple(camera_indices.shape)}, got {tuple(pixel_xy.shape)}"
            )
        shape = camera_indices.shape
        cameras = camera_indices.reshape(-1).to(device=self.device, dtype=torch.int64)
        xy = pixel_xy.reshape(-1, 2).to(self.device)
        if not xy.is_floating_point():
            self._check_pixels(cameras, xy)
            return self._pixel_rays(cameras, xy, shape)
        return self._to_world(cameras, self._local_directions(cameras, xy.float()), shape)

    def image_rays(self, camera: int) -> tuple[Tensor, Tensor]:
        """Rays through all pixel centres of one camera: origins and directions, (H, W, 3) each."""
        h, w = int(self.height[camera]), int(self.width[camera])
        y, x = torch.meshgrid(torch.arange(h, device=self.device), torch.arange(w, device=self.device), indexing="ij")
        index = torch.full((h, w), camera, dtype=torch.int64, device=self.device)
        return self.rays(index, torch.stack([x, y], -1))

    def project(self, camera_indices: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where cameras see points.

        Args:
            camera_indices: (...) integers.
            points: (..., 3) in world coordinates.

        Returns:
            pixel_xy (..., 2), and depth (...): the distance along the viewing axis. Points with depth <= 0 lie behind
            the camera, and their pixel_xy means nothing.
        """
        pose = self.camera_to_world[camera_indices]  # (..., 3, 4)
        local = ((points - pose[..., 3]).unsqueeze(-2) @ pose[..., :3]).squeeze(-2)  # R^T (p - t)
        depth = -local[..., 2]
        safe = torch.where(depth > 0, depth, torch.ones_like(depth))
        plane = torch.stack([local[..., 0], -local[..., 1]], -1) / safe.unsqueeze(-1)
        if self._distorted:
            plane = distort(plane, self.distortion[camera_indices])
        focal = torch.stack([self.fx, self.fy], -1)[camera_indices]
        center = torch.stack([self.cx, self.cy], -1)[camera_indices]
        return plane * focal + center, depth

    def _pixel_rays(self, cameras: Tensor, xy: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """`rays` through the centres of pixels that are known to exist: int64 (n,) and (n, 2)."""
        table = self._direction_table()
        if table is None:
            return self._to_world(cameras, self._local_directions(cameras, xy + 0.5), shape)
        at = table[1].index_select(0, cameras) + xy[:, 1] * self.width.index_select(0, cameras) + xy[:, 0]
        return self._to_world(cameras, table[0].index_select(0, at), shape)

    def _check_pixels(self, cameras: Tensor, xy: Tensor) -> None:
        if cameras.is_cuda or cameras.numel() == 0:
            return
        if int(cameras.min()) < 0 or int(cameras.max()) >= len(self):
            raise IndexError(
                f"fastvfx.data.Cameras.rays: camera index out of range, expected 0 to {len(self) - 1}, "
                f"got {int(cameras.min())} to {int(cameras.max())}"
            )
        size = torch.stack([self.width, self.height], -1)[cameras]
        bad = ((xy < 0) | (xy >= size)).any(-1)
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            raise IndexError(
                f"fastvfx.data.Cameras.rays: pixel {tuple(xy[i].tolist())} is outside the image of "
                f"{int(size[i, 0])}x{int(size[i, 1])} pixels"
            )

    def _local_directions(self, cameras: Tensor, xy: Tensor) -> Tensor:
        """Unit directions in camera space (OpenGL axes) through pixel positions (n, 2)."""
        x = (xy[:, 0] - self.cx[cameras]) / self.fx[cameras]
        y = (xy[:, 1] - self.cy[cameras]) / self.fy[cameras]
        if self._distorted:
            x, y = undistort(torch.stack([x, y], -1), self.distortion[cameras]).unbind(-1)
        inverse = torch.rsqrt(x * x + y * y + 1)
        return torch.stack([x * inverse, -y * inverse, -inverse], -1)

    def _to_world(self, cameras: Tensor, local: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        pose = self.camera_to_world.index_select(0, cameras)  # (n, 3, 4)
        # Written out: a reduction over an axis of three is nine times slower.
        directions = pose[:, :, 0] * local[:, :1] + pose[:, :, 1] * local[:, 1:2] + pose[:, :, 2] * local[:, 2:]
        return pose[:, :, 3].reshape(*shape, 3), directions.reshape(*shape, 3)

    def _direction_table(self) -> tuple[Tensor, Tensor] | None:
        if self._table is None:
            sizes = torch.stack([self.width, self.height], -1).double()
            focal = torch.stack([self.fx, self.fy, self.cx, self.cy], -1).double()
            rows = torch.cat([sizes, focal, self.distortion.double()], -1)
            unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
            counts = (unique[:, 0] * unique[:, 1]).long()
            if int(counts.sum()) > _TABLE_PIXELS:
                return None
            parts = []
            for i in range(unique.shape[0]):
                camera = int((inverse == i).nonzero()[0])
                h, w = int(self.height[camera]), int(self.width[camera])
                index = torch.arange(h * w, device=self.device)
                xy = torch.stack([index % w, index // w], -1) + 0.5
                with one_thread():
                    parts.append(self._local_directions(torch.full_like(index, camera), xy))
            starts = counts.cumsum(0) - counts
            self._table = (torch.cat(parts), starts[inverse])
        return self._table
