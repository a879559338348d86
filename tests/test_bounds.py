"""Where the scene is: visual hulls, boxes of files and of cameras."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from captures import STILL_LIFE, H, W, capture, circle
from torch import Tensor

from fastvfx.data import Cameras, SceneBounds, load_transforms, scene_bounds, visual_hull, write_image


def test_the_still_life_fills_its_box() -> None:
    """The hull's box holds every surface point that the true depth gives, and little more but below, where only the
    lowest views cut into the cone under the disc."""
    views = load_transforms(STILL_LIFE, "test")
    depth = torch.from_numpy(np.load(STILL_LIFE / "test_depth.npz")["depth"]).float() * views.bounds.scale
    points = []
    for i in range(len(views)):
        o, d = views.cameras.image_rays(i)
        solid = (depth[i] > 0) & (views.image(i)[..., 3] > 0.99)
        points.append((o + d * depth[i][..., None])[solid])
    low, high = torch.cat(points).amin(0), torch.cat(points).amax(0)
    box = torch.tensor(views.bounds.aabb)
    assert bool((box[:3] <= low).all())
    assert bool((box[3:] >= high).all())
    assert float((box[3:] - high).max()) < 0.1
    assert float((low - box[:3])[:2].max()) < 0.1
    assert float((low - box[:3])[2]) < 0.4
    assert views.bounds.levels == 1
    assert max(views.bounds.aabb) == pytest.approx(1.0)


def sphere_mattes(n: int, radius: float, size: int = 64, fx: float = 60.0) -> tuple[Cameras, list[Tensor]]:
    cameras = Cameras.create(circle(n), fx=fx, width=size, height=size)
    mattes = []
    for i in range(n):
        o, d = cameras.image_rays(i)
        nearest = (o - (o * d).sum(-1, keepdim=True) * d).norm(dim=-1)
        mattes.append((nearest < radius).float())
    return cameras, mattes


def test_hull_of_a_sphere() -> None:
    cameras, mattes = sphere_mattes(36, 0.8)
    mattes[5][:] = 0  # One matte that missed the object altogether does not matter.
    box = visual_hull(cameras, mattes, torch.zeros(3), 3.6)
    assert box is not None
    low, high = box
    assert bool((low <= -0.8).all())
    assert bool((high >= 0.8).all())
    assert bool((low[:2] > -1.05).all())  # Below, no camera cuts the cone off.
    assert bool((high > 0.8).all() and (high < 1.05).all())


def test_an_object_cut_off_by_the_frame_is_kept() -> None:
    cameras, mattes = sphere_mattes(24, 0.8, fx=160.0)  # The frame ends at a radius of 0.8 at the object.
    box = visual_hull(cameras, mattes, torch.zeros(3), 3.6)
    assert box is not None
    assert bool((box[0] <= -0.7).all())
    assert bool((box[1] >= 0.7).all())


def test_mattes_that_do_not_fit_fall_back_to_the_cameras(tmp_path: Path) -> None:
    capture(tmp_path, channels=4)
    for i in range(10):
        pixels = torch.zeros(H, W, 4, dtype=torch.uint8)
        pixels[:, : W // 3 if i % 2 else 0] = 255  # Half of them are empty.
        write_image(tmp_path / "images" / f"{i}.png", pixels)
    with pytest.warns(UserWarning, match="mattes have no point in common"):
        bounds = load_transforms(tmp_path).bounds
    assert bounds.source == "the point the cameras look at"


def test_fox_has_the_boxes_of_instant_ngp(shared_data: Path) -> None:
    bounds = load_transforms(shared_data / "fox", "test").bounds
    assert (bounds.levels, bounds.scale, bounds.near) == (3, pytest.approx(0.66), pytest.approx(0.2))
    assert bounds.aabb == (-1, -1, -1, 1, 1, 1)
    assert bounds.outer_aabb == (-4, -4, -4, 4, 4, 4)
    # Half a side of the unit cube is 0.5 / 0.33 file units.
    torch.testing.assert_close(bounds.to_file(torch.tensor([1.0, 0, 0])), torch.tensor([0.5 / 0.33, 0, 0]))


def test_conch_has_the_box_of_its_file(shared_data: Path) -> None:
    bounds = load_transforms(shared_data / "conch").bounds
    corners = bounds.to_file(torch.tensor(bounds.aabb, dtype=torch.float64).view(2, 3))
    expected = torch.tensor([[-1.33, -0.953, -1.274], [1.255, 1.123, 0.368]], dtype=torch.float64)
    # Decimals of the file, there and back: a few roundings of float64.
    torch.testing.assert_close(corners, expected, atol=4 * torch.finfo(torch.float64).eps, rtol=0)
    assert bounds.levels == 1


def test_scale_and_offset_of_instant_ngp(tmp_path: Path) -> None:
    bounds = load_transforms(capture(tmp_path, aabb_scale=2, scale=0.5, offset=[0.25, 0.5, 0.5])).bounds
    assert bounds.center == pytest.approx((0.5, 0, 0))
    assert bounds.scale == pytest.approx(1.0)
    assert bounds.levels == 2
    assert bounds.unbounded


def test_cameras_alone_give_the_proportions_of_instant_ngp() -> None:
    poses = circle(30, radius=8.0)
    bounds = scene_bounds(poses[:, :, 3], -poses[:, :, 2])
    assert bounds.center == pytest.approx((0, 0, 0), abs=1e-5)
    assert 1 / bounds.scale == pytest.approx(8 * 0.5 / 0.33 / 4, rel=1e-5)
    assert bounds.levels == 5
    inside_out = scene_bounds(poses[:, :, 3], poses[:, :, 2])
    assert inside_out.source == "a box around the cameras"
    assert bool((inside_out.to_scene(poses[:, :, 3]).abs() <= 1 + 1e-5).all())


def test_callers_override_the_file(tmp_path: Path) -> None:
    capture(tmp_path, aabb_scale=4)
    assert load_transforms(tmp_path, aabb_scale=16).bounds.levels == 5
    given = load_transforms(tmp_path, aabb=[[-2, -2, -2], [2, 2, 0]], aabb_scale=1).bounds
    assert given.aabb == (-1, -1, -0.5, 1, 1, 0.5)
    views = load_transforms(tmp_path, "test", bounds=given)
    assert views.bounds is given
    torch.testing.assert_close(given.to_file(views.cameras.centers).norm(dim=-1), torch.full((2,), 4.0))


def test_bounds_survive_json() -> None:
    bounds = SceneBounds.from_box([0, 1, 2], [3, 2, 4], levels=3, near=0.2, source="x")
    assert SceneBounds.from_dict(json.loads(json.dumps(bounds.to_dict()))) == bounds
    points = torch.rand(5, 3)
    torch.testing.assert_close(bounds.to_scene(bounds.to_file(points)), points)
