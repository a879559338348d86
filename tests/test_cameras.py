"""Cameras, rays and camera paths. Oracles: hand-computed numbers, the inverse map, the true depth of the still life."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvfx.data import (
    Cameras,
    axes_center,
    camera_path,
    distort,
    interpolate_poses,
    load_transforms,
    look_at,
    orbit_path,
    undistort,
)

STILL_LIFE = Path(__file__).resolve().parents[1] / "examples" / "still_life"
FOX_LENS = torch.tensor([0.0578421, -0.0805099, 0.0, -0.000980296, 0.00015575])
IDENTITY = torch.eye(4)[None, :3]


def ring(n: int, *, radius: float = 4.0, height: float = 1.0, lens: Tensor | None = None) -> Cameras:
    """Cameras on a circle around z that look at the origin."""
    a = torch.arange(n) * (2 * math.pi / n)
    positions = torch.stack([radius * torch.cos(a), radius * torch.sin(a), torch.full((n,), height)], -1)
    poses = look_at(positions, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return Cameras.create(poses, fx=50.0, fy=52.0, cx=19.0, cy=16.0, width=40, height=30, distortion=lens)


def assert_rotations(r: Tensor) -> None:
    torch.testing.assert_close(r @ r.mT, torch.eye(3).expand_as(r), atol=1e-5, rtol=0)
    assert bool((torch.linalg.det(r) > 0).all())


# --- lens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, (0.5 * 1.03125, 0.25 * 1.03125)),  # k1: 1 + 0.1 r², r² = 0.3125
        (1, (0.5 * 1.009765625, 0.25 * 1.009765625)),  # k2: 1 + 0.1 r⁴
        (2, (0.5 * (1 + 0.1 * 0.3125**3), 0.25 * (1 + 0.1 * 0.3125**3))),
        (3, (0.5 + 0.2 * 0.125, 0.25 + 0.1 * (0.3125 + 0.125))),  # p1: 2 p1 x y, p1 (r² + 2 y²)
        (4, (0.5 + 0.1 * (0.3125 + 0.5), 0.25 + 0.2 * 0.125)),  # p2: p2 (r² + 2 x²), 2 p2 x y
    ],
    ids=["k1", "k2", "k3", "p1", "p2"],
)
def test_each_coefficient_of_the_lens(index: int, expected: tuple[float, float]) -> None:
    lens = torch.zeros(5, dtype=torch.float64)
    lens[index] = 0.1
    found = distort(torch.tensor([0.5, 0.25], dtype=torch.float64), lens)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "lens",
    [FOX_LENS, torch.tensor([-0.2, 0.05, 0.01, 0.002, -0.003]), torch.zeros(5)],
    ids=["fox", "barrel", "none"],
)
def test_undistort_inverts_distort(lens: Tensor) -> None:
    axis = torch.linspace(-0.7, 0.7, 41, dtype=torch.float64)
    xy = torch.cartesian_prod(axis, axis)
    torch.testing.assert_close(undistort(distort(xy, lens), lens), xy, atol=1e-12, rtol=0)
    torch.testing.assert_close(distort(undistort(xy, lens), lens), xy, atol=1e-12, rtol=0)


def test_undistort_stays_finite_beyond_the_fold() -> None:
    xy = torch.tensor([[2.0, 2.0], [50.0, -3.0]])
    assert bool(undistort(xy, torch.tensor([-0.5, 0.0, 0.0, 0.0, 0.0])).isfinite().all())


# --- rays -----------------------------------------------------------------------------------------------------------


def test_opengl_axes() -> None:
    camera = Cameras.create(IDENTITY, fx=10.0, width=4, height=4)
    index = torch.zeros(3, dtype=torch.int64)
    _, d = camera.rays(index, torch.tensor([[2.0, 2.0], [4.0, 2.0], [2.0, 4.0]]))
    torch.testing.assert_close(d[0], torch.tensor([0.0, 0.0, -1.0]))  # ahead is -z
    assert float(d[1, 0]) > 0  # a pixel to the right lies at +x
    assert float(d[2, 1]) < 0  # a lower pixel lies at -y


@pytest.mark.parametrize("lens", [None, FOX_LENS], ids=["pinhole", "lens"])
def test_integer_pixels_mean_their_centers(lens: Tensor | None) -> None:
    cameras = ring(5, lens=lens)
    index = torch.randint(5, (7, 11))
    xy = torch.stack([torch.randint(40, (7, 11)), torch.randint(30, (7, 11))], -1)
    for table, exact in zip(cameras.rays(index, xy), cameras.rays(index, xy + 0.5), strict=True):
        assert table.shape == (7, 11, 3)
        torch.testing.assert_close(table, exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("lens", [None, FOX_LENS], ids=["pinhole", "lens"])
def test_projection_inverts_rays(lens: Tensor | None) -> None:
    cameras = ring(5, lens=lens)
    index = torch.randint(5, (200,))
    xy = torch.rand(200, 2) * torch.tensor([40.0, 30.0])
    o, d = cameras.rays(index, xy)
    torch.testing.assert_close(d.norm(dim=-1), torch.ones(200))
    t = 1 + 3 * torch.rand(200, 1)
    found, depth = cameras.project(index, o + t * d)
    torch.testing.assert_close(found, xy, atol=2e-4, rtol=0)
    torch.testing.assert_close(depth, t[:, 0] * (d * cameras.forward[index]).sum(-1), atol=1e-5, rtol=0)
    _, behind = cameras.project(index, o - t * d)
    assert bool((behind < 0).all())


def test_cameras_of_different_sizes_and_lenses() -> None:
    size = torch.tensor([[4, 3], [7, 5], [4, 3]])
    lens = torch.stack([torch.zeros(5), FOX_LENS, torch.zeros(5)])
    cameras = Cameras.create(
        IDENTITY.expand(3, 3, 4), fx=torch.tensor([9.0, 8.0, 7.0]), width=size[:, 0], height=size[:, 1], distortion=lens
    )
    for i in range(3):
        _, d = cameras.image_rays(i)
        assert d.shape == (int(size[i, 1]), int(size[i, 0]), 3)
        alone = cameras.select([i]).image_rays(0)[1]
        torch.testing.assert_close(d, alone)
        xy, _ = cameras.project(torch.full(d.shape[:2], i), d)
        torch.testing.assert_close(xy[0, 0], torch.tensor([0.5, 0.5]), atol=1e-4, rtol=0)


def test_no_table_for_huge_images(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras, index, xy = ring(3, lens=FOX_LENS), torch.tensor([0, 2]), torch.tensor([[3, 4], [39, 29]])
    expected = cameras.rays(index, xy)[1]
    monkeypatch.setattr("fastvfx.data.cameras._TABLE_PIXELS", 100)
    torch.testing.assert_close(ring(3, lens=FOX_LENS).rays(index, xy)[1], expected, atol=1e-6, rtol=0)


def test_no_rays() -> None:
    for xy in (torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.int64)):
        o, d = ring(3).rays(torch.zeros(0, dtype=torch.int64), xy)
        assert o.shape == d.shape == (0, 3)


def test_wrong_rays() -> None:
    cameras, index = ring(3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"expected pixel_xy of shape \(2, 2\)"):
        cameras.rays(index, torch.zeros(3, 2))
    with pytest.raises(IndexError, match=r"pixel \(40, 0\) is outside the image of 40x30 pixels"):
        cameras.rays(index, torch.tensor([[0, 0], [40, 0]]))
    with pytest.raises(IndexError, match="expected 0 to 2, got 0 to 3"):
        cameras.rays(torch.tensor([0, 3]), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected camera_to_world of shape \(N, 3, 4\), got \(2, 4, 4\)"):
        Cameras(torch.zeros(2, 4, 4), *[torch.zeros(2)] * 6, torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"expected distortion of shape \(2, 5\), got \(2, 4\)"):
        Cameras(torch.zeros(2, 3, 4), *[torch.zeros(2)] * 6, torch.zeros(2, 4))


def test_true_depth_carries_pixels_from_view_to_view() -> None:
    """Points found with one view's true depth, projected into another, meet that view's depth and colour.

    A mirrored axis, a shifted pixel centre or a wrong pose would not survive this.
    """
    views = load_transforms(STILL_LIFE, "test")
    depth = torch.from_numpy(np.load(STILL_LIFE / "test_depth.npz")["depth"]).float() * views.bounds.scale
    for i, j in ((0, 1), (3, 4), (10, 11)):
        o, d = views.cameras.image_rays(i)
        solid = (depth[i] > 0) & (views.image(i)[..., 3] > 0.99)
        points = (o + d * depth[i][..., None])[solid]
        xy, _ = views.cameras.project(torch.full(points.shape[:1], j), points)
        distance = (points - views.cameras.centers[j]).norm(dim=-1)
        at = xy.floor().long()
        inside = ((at >= 0) & (at < 160)).all(-1)
        at, distance, color = at[inside], distance[inside], views.image(i)[solid][inside, :3]
        error = depth[j][at[:, 1], at[:, 0]] - distance
        seen = error.abs() < 0.02  # The others are hidden behind something in view j.
        assert float(seen.float().mean()) > 0.6
        assert float(error[seen].abs().median()) < 0.005
        found = views.image(j)[at[:, 1], at[:, 0], :3]
        assert float((found - color)[seen].abs().mean()) < 0.07  # Mirror and glass change with the view.


@pytest.mark.parametrize(
    ("name", "expected", "tolerance"),
    [("lego200", (0, 0, 0), 1e-3), ("conch", (0, 0, 0), 0.2), ("fox", (0, 0, 0), 0.8)],
    ids=["lego200", "conch", "fox"],
)
def test_viewing_axes_of_captures_meet(shared_data: Path, name: str, expected: tuple, tolerance: float) -> None:
    views = load_transforms(shared_data / name, "all", aabb=[[-1, -1, -1], [1, 1, 1]])
    center, converge = axes_center(views.cameras.centers, views.cameras.forward)
    assert converge
    assert float((center - torch.tensor(expected)).norm()) < tolerance


# --- paths ----------------------------------------------------------------------------------------------------------


def test_axes_that_do_not_meet() -> None:
    side_by_side = torch.cat([torch.eye(3).expand(4, 3, 3), torch.rand(4, 3, 1)], -1)
    center, converge = axes_center(side_by_side[:, :, 3], -side_by_side[:, :, 2])
    assert not converge
    torch.testing.assert_close(center, side_by_side[:, :, 3].mean(0))
    outwards = ring(6, radius=1.0)
    assert not axes_center(outwards.centers, -outwards.forward)[1]
    path = orbit_path(Cameras.create(side_by_side, fx=5.0, width=4, height=4), 7)
    assert path.shape == (7, 3, 4)
    assert_rotations(path[:, :, :3])


def test_look_at() -> None:
    positions = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])  # The second looks straight down.
    pose = look_at(positions, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    assert_rotations(pose[:, :, :3])
    torch.testing.assert_close(-pose[:, :, 2], -torch.nn.functional.normalize(positions, dim=-1))
    assert float(pose[0, 2, 1]) > 0.5  # up is up
    assert float(pose[0, 2, 0]) == pytest.approx(0, abs=1e-6)  # and the horizon level


def test_orbit_of_a_surrounded_scene_is_a_full_circle() -> None:
    cameras = ring(12)
    path = orbit_path(cameras, 36)
    assert_rotations(path[:, :, :3])
    p = path[:, :, 3]
    torch.testing.assert_close(p.norm(dim=-1), torch.full((36,), 17.0**0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(p[:, 2], torch.ones(36), atol=1e-3, rtol=0)
    steps = (p - p.roll(1, 0)).norm(dim=-1)
    torch.testing.assert_close(steps, steps[:1].expand(36), atol=1e-4, rtol=0)
    assert float((-path[:, :, 2] + torch.nn.functional.normalize(p, dim=-1)).abs().max()) < 1e-5


def test_orbit_of_a_half_seen_scene_stays_where_cameras_were() -> None:
    cameras = ring(12).select(range(5))  # azimuth 0 to 120 degrees
    p = orbit_path(cameras, 60)[:, :, 3]
    azimuth = torch.rad2deg(torch.atan2(p[:, 1], p[:, 0]))
    assert float(azimuth.min()) > 0
    assert float(azimuth.max()) < 120
    assert float(azimuth.max() - azimuth.min()) == pytest.approx(96, abs=1)
    assert float((p - p.roll(1, 0)).norm(dim=-1).max()) < 0.6  # closed


@pytest.mark.parametrize("loop", [False, True], ids=["open", "loop"])
def test_interpolation_goes_through_the_poses(loop: bool) -> None:
    poses = ring(8).camera_to_world
    n = 8 * 5 if loop else 7 * 5 + 1
    path = interpolate_poses(poses, n, loop=loop)
    torch.testing.assert_close(path[::5], poses, atol=1e-5, rtol=0)
    assert_rotations(path[:, :, :3])
    steps = (path - path.roll(1, 0))[0 if loop else 1 :, :, 3].norm(dim=-1)
    assert float(steps.max()) < 1.2 * 4 * math.pi / 4 / 5  # no jumps: an eighth of the circle in five steps


def test_interpolation_turns_the_short_way() -> None:
    def turned(degrees: float) -> Tensor:
        a = math.radians(degrees)
        return torch.tensor([[math.cos(a), -math.sin(a), 0, 0], [math.sin(a), math.cos(a), 0, 0], [0, 0, 1.0, 0]])

    path = interpolate_poses(torch.stack([turned(170), turned(190)]), 3)
    torch.testing.assert_close(path[1], turned(180), atol=1e-5, rtol=0)


def test_camera_path_takes_the_intrinsics() -> None:
    cameras = ring(12, lens=FOX_LENS)
    film = camera_path(cameras, 10, scale=2.0)
    assert len(film) == 10
    assert (int(film.width[0]), int(film.height[0]), float(film.fx[0]), float(film.cy[0])) == (80, 60, 100.0, 32.0)
    assert not bool(film.distortion.any())
    assert len(camera_path(cameras, 9, kind="poses")) == 9
    with pytest.raises(ValueError, match="expected kind 'orbit' or 'poses', got 'spin'"):
        camera_path(cameras, 9, kind="spin")
    with pytest.raises(ValueError, match="expected n_frames >= 1, got 0"):
        camera_path(cameras, 0)
    with pytest.raises(ValueError, match=r"with N >= 2 and n_frames >= 1, got \(1, 3, 4\) and 5"):
        interpolate_poses(cameras.camera_to_world[:1], 5)
