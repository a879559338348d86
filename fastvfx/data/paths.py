"""Camera paths for films: around the scene, along the captured views, between given poses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .cameras import Cameras

__all__ = ["axes_center", "camera_path", "interpolate_poses", "look_at", "orbit_path"]


def axes_center(centers: Tensor, forward: Tensor) -> tuple[Tensor, bool]:
    """The point closest to all viewing axes (least squares), and whether the cameras do look at a common point.

    They do not where the axes are parallel, or where most cameras look away from the point (a capture from the inside
    outwards). The point is then the mean camera position.

    Args:
        centers: (N, 3) camera positions.
        forward: (N, 3) viewing directions.
    """
    o, d = centers.double(), torch.nn.functional.normalize(forward.double(), dim=-1)
    across = torch.eye(3, dtype=o.dtype, device=o.device) - d[:, :, None] * d[:, None, :]  # (N, 3, 3)
    a = across.mean(0)
    if float(torch.linalg.eigvalsh(a)[0]) < 1e-3:
        return o.mean(0).float(), False
    center = torch.linalg.solve(a, (across @ o[:, :, None]).mean(0)).squeeze(-1)
    ahead = ((center - o) * d).sum(-1) > 0
    if float(ahead.double().mean()) < 0.75:
        return o.mean(0).float(), False
    return center.float(), True


def look_at(positions: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Camera-to-world matrices (N, 3, 4) at ``positions`` (N, 3), looking at ``target`` (3,), with ``up`` (3,) upwards.

    Where a camera looks along ``up``, any upward direction is taken.
    """
    unit = torch.nn.functional.normalize
    back = unit(positions - target, dim=-1)
    right = torch.linalg.cross(up.expand_as(back), back)
    spare = torch.linalg.cross(torch.eye(3).to(back)[back.abs().argmin(-1)], back)
    right = unit(torch.where(right.norm(dim=-1, keepdim=True) < 1e-4, spare, right), dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, positions], -1)


def _upward(cameras: Cameras) -> Tensor:
    """Unit vector (3,) against gravity: what is square to the right-hand axes of all cameras, which are held level."""
    mean = torch.nn.functional.normalize(cameras.up.mean(0), dim=0)
    right = cameras.camera_to_world[:, :, 0].double()
    values, vectors = torch.linalg.eigh(right.T @ right / len(cameras))
    # Tilted cameras leave no such direction, and cameras side by side leave two.
    if float(values[0]) > 0.05 or float(values[1]) < 0.1:
        return mean
    up = vectors[:, 0].float()
    return up if float(up @ mean) > 0 else -up


def orbit_path(cameras: Cameras, n_frames: int) -> Tensor:
    """A closed path on the sphere of the captured views, looking at what they look at.

    A full circle at the median height where the views surround the scene (no gap above 90 degrees of azimuth); else a
    sweep to and fro inside the captured range, so that the path never goes where no camera was.

    Args:
        cameras: the captured views.
        n_frames: length of the path; the frame after the last is the first.

    Returns:
        camera-to-world (n_frames, 3, 4) float32.
    """
    if n_frames < 1:
        raise ValueError(f"fastvfx.data.orbit_path: expected n_frames >= 1, got {n_frames}")
    center, converge = axes_center(cameras.centers, cameras.forward)
    position = cameras.centers
    if not converge:
        return _sway(cameras, n_frames)
    up = _upward(cameras)
    offset = position - center
    radius = offset.norm(dim=-1)
    height = (offset @ up) / radius.clamp_min(1e-9)  # sine of the elevation
    # Axes of the horizontal plane; azimuth 0 points at the mean camera, or anywhere if they cancel.
    e1 = offset.mean(0) - (offset.mean(0) @ up) * up
    if float(e1.norm()) < 1e-3 * float(radius.mean()):
        e1 = torch.linalg.cross(up, torch.eye(3).to(up)[up.abs().argmin()])
    e1 = torch.nn.functional.normalize(e1, dim=0)
    e2 = torch.linalg.cross(up, e1)
    azimuth = torch.atan2(offset @ e2, offset @ e1)

    ordered = azimuth.sort().values
    gaps = torch.diff(ordered, append=ordered[:1] + 2 * math.pi)
    phase = torch.arange(n_frames, device=up.device) * (2 * math.pi / n_frames)
    middle = float(height.median())
    if float(gaps.max()) <= math.pi / 2:
        az = phase
        el = torch.full_like(phase, math.asin(middle))
    else:
        k = int(gaps.argmax())  # The range starts after the largest gap.
        start, span = float(ordered[(k + 1) % len(ordered)]), 2 * math.pi - float(gaps[k])
        az = start + span * (0.5 + 0.4 * torch.sin(phase))
        spread = float(height.quantile(0.75) - height.quantile(0.25)) / 2
        el = torch.asin((middle + spread * torch.sin(2 * phase)).clamp(-0.99, 0.99))
    flat = torch.cos(az)[:, None] * e1 + torch.sin(az)[:, None] * e2
    unit = flat * torch.cos(el)[:, None] + torch.sin(el)[:, None] * up
    return look_at(center + float(radius.median()) * unit, center, up)


def _sway(cameras: Cameras, n_frames: int) -> Tensor:
    """Cameras without a common target: an ellipse across the mean view, as wide as half the captured positions."""
    middle = int((cameras.centers - cameras.centers.mean(0)).norm(dim=-1).argmin())
    pose = cameras.camera_to_world[middle]
    local = (cameras.centers - pose[:, 3]) @ pose[:, :3]
    reach = local[:, :2].abs().quantile(0.5, dim=0)
    phase = torch.arange(n_frames, device=pose.device) * (2 * math.pi / n_frames)
    shift = torch.stack([reach[0] * torch.cos(phase), reach[1] * torch.sin(phase), torch.zeros_like(phase)], -1)
    path = pose.expand(n_frames, 3, 4).clone()
    path[:, :, 3] += shift @ pose[:, :3].T
    return path


def _quaternions(rotation: Tensor) -> Tensor:
    """(N, 3, 3) to (N, 4), w first: the largest eigenvector of Bar-Itzhack's symmetric matrix, safe at any angle."""
    m = rotation.double()
    k = torch.empty(m.shape[0], 4, 4, dtype=m.dtype, device=m.device)
    trace = m.diagonal(dim1=1, dim2=2).sum(-1)
    vector = torch.stack([m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], -1)
    k[:, 0, 0] = trace
    k[:, 0, 1:] = k[:, 1:, 0] = vector
    k[:, 1:, 1:] = m + m.mT - trace[:, None, None] * torch.eye(3, dtype=m.dtype, device=m.device)
    return torch.linalg.eigh(k).eigenvectors[:, :, -1]


def _rotations(q: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def interpolate_poses(camera_to_world: Tensor, n_frames: int, *, loop: bool = False) -> Tensor:
    """A smooth path through poses: Catmull-Rom splines of the positions and of the (normalised) quaternions.

    Args:
        camera_to_world: (N, 3, 4), N >= 2, visited in order at equal spacing.
        n_frames: poses to return; the first and the last are the ends of the path (with ``loop``, the frame after the
            last is the first).
        loop: return to the first pose.

    Returns:
        (n_frames, 3, 4) float32.
    """
    n = camera_to_world.shape[0]
    if camera_to_world.shape != (n, 3, 4) or n < 2 or n_frames < 1:
        raise ValueError(
            "fastvfx.data.interpolate_poses: expected camera_to_world of shape (N, 3, 4) with N >= 2 "
            f"and n_frames >= 1, got {tuple(camera_to_world.shape)} and {n_frames}"
        )
    q = _quaternions(camera_to_world[:, :, :3])
    for i in range(1, n):  # q and -q are one rotation: take the near one.
        if float(q[i] @ q[i - 1]) < 0:
            q[i] = -q[i]
    state = torch.cat([camera_to_world[:, :, 3].double(), q], -1)  # (N, 7)
    if loop:
        t = torch.arange(n_frames, dtype=torch.float64, device=state.device) * (n / n_frames)
    else:
        t = torch.linspace(0, n - 1, n_frames, dtype=torch.float64, device=state.device)
    base = t.floor().long().clamp(max=n - 1 if loop else n - 2)
    f = (t - base)[:, None]

    def at(i: Tensor) -> Tensor:
        if not loop:
            return state[i.clamp(0, n - 1)]
        value = state[i % n].clone()
        # The way round may end on -q: keep the sign of the segment's start.
        sign = torch.where((value[:, 3:] * state[base][:, 3:]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        value[:, 3:] *= sign
        return value

    p0, p1, p2, p3 = at(base - 1), at(base), at(base + 1), at(base + 2)
    value = p1 + 0.5 * f * (p2 - p0 + f * (2 * p0 - 5 * p1 + 4 * p2 - p3 + f * (3 * (p1 - p2) + p3 - p0)))
    return torch.cat([_rotations(value[:, 3:]), value[:, :3, None]], -1).float()


def camera_path(cameras: Cameras, n_frames: int, *, kind: str = "orbit", scale: float = 1.0) -> Cameras:
    """The cameras of a film of the scene, with the intrinsics of the first captured view and no lens distortion.

    Args:
        cameras: the captured views.
        n_frames: length of the film.
        kind: ``"orbit"``, see `orbit_path`; ``"poses"``, through the captured poses in their order, see
            `interpolate_poses`.
        scale: size of the pictures relative to the captured ones.
    """
    if kind == "orbit":
        poses = orbit_path(cameras, n_frames)
    elif kind == "poses":
        poses = (
            interpolate_poses(cameras.camera_to_world, n_frames)
            if len(cameras) > 1
            else (cameras.camera_to_world.expand(n_frames, 3, 4))
        )
    else:
        raise ValueError(f"fastvfx.data.camera_path: expected kind 'orbit' or 'poses', got {kind!r}")
    return cameras.with_poses(poses, scale=scale)
