"""Captures on disk: the loader, scene bounds, images, films, atomic files, and what can be wrong with them."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvfx._extras import require
from fastvfx.data import (
    Cameras,
    DataError,
    SceneBounds,
    atomic_path,
    atomic_write,
    load_transforms,
    look_at,
    over_background,
    parse_color,
    read_image,
    scene_bounds,
    visual_hull,
    write_image,
    write_video,
)

STILL_LIFE = Path(__file__).resolve().parents[1] / "examples" / "still_life"
W, H = 12, 10


def circle(n: int, radius: float = 4.0) -> Tensor:
    """(n, 3, 4) poses on a spiral over the upper half of a sphere, looking at the origin."""
    a = torch.arange(n) * 2.4
    z = radius * (0.1 + 0.7 * torch.arange(n) / max(n - 1, 1))
    r = (radius**2 - z**2).sqrt()
    positions = torch.stack([r * torch.cos(a), r * torch.sin(a), z], -1)
    return look_at(positions, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))


def capture(
    folder: Path,
    n: int = 10,
    *,
    channels: int = 3,
    file: str = "transforms.json",
    prefix: str = "images/",
    frame: Callable[[int, dict[str, Any]], Any] = lambda i, f: f,
    **head: Any,
) -> Path:
    """A capture of random images; image i has the value 20 i in its first pixel. ``head`` adds to the file."""
    frames = []
    for i, pose in enumerate(circle(n)):
        name = f"{prefix}{i}.png"
        pixels = torch.randint(256, (H, W, channels), dtype=torch.uint8)
        pixels[0, 0] = 20 * i % 256
        write_image(folder / name, pixels)
        matrix = torch.cat([pose, torch.tensor([[0.0, 0.0, 0.0, 1.0]])]).tolist()
        frames.append(frame(i, {"file_path": name, "transform_matrix": matrix}))
    content = {"camera_angle_x": 0.7, "frames": frames, **head}
    (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


# --- conventions ----------------------------------------------------------------------------------------------------


def test_every_eighth_image_is_held_out(tmp_path: Path) -> None:
    capture(tmp_path, 18)
    train, test = load_transforms(tmp_path), load_transforms(tmp_path, "test")
    assert test.names == ["images/0.png", "images/8.png", "images/16.png"]
    assert train.names == [f"images/{i}.png" for i in range(18) if i % 8]
    assert [int(x[0, 0, 0]) for x in test.images] == [0, 160, 320 % 256]
    assert train.images.shape == (15, H, W, 3)
    assert train.bounds == test.bounds
    assert len(load_transforms(tmp_path, "all")) == 18
    assert len(load_transforms(tmp_path, test_every=0)) == 18
    assert train.split_rule == "every 8th image"


def test_nerfstudio_lists_of_names(tmp_path: Path) -> None:
    names = [f"images/{i}.png" for i in range(10)]
    capture(tmp_path, train_filenames=names[:6], test_filenames=["./images/9.png"], val_filenames=names[6:8])
    assert load_transforms(tmp_path).names == names[:6]
    assert load_transforms(tmp_path, "val").names == names[6:8]
    assert load_transforms(tmp_path, "test").names == names[9:]


def test_only_held_out_names_are_listed(tmp_path: Path) -> None:
    capture(tmp_path, val_filenames=["images/2.png"])
    assert load_transforms(tmp_path, "test").names == ["images/2.png"]
    assert len(load_transforms(tmp_path)) == 9


def test_blender_files(tmp_path: Path) -> None:
    def strip(i: int, f: dict[str, Any]) -> dict[str, Any]:
        return f | {"file_path": "./" + f["file_path"].removesuffix(".png")}

    capture(tmp_path, 12, file="transforms_train.json", prefix="train/r_", frame=strip)
    capture(tmp_path, 3, file="transforms_val.json", prefix="val/r_", frame=strip)
    train = load_transforms(tmp_path)
    assert train.names == [f"./train/r_{i}" for i in range(12)]  # r_2 before r_10
    assert load_transforms(tmp_path, "test").names == load_transforms(tmp_path, "val").names
    assert len(load_transforms(tmp_path, "all")) == 15
    assert float(train.cameras.fx[0]) == pytest.approx(0.5 * W / math.tan(0.35), rel=1e-6)
    assert (float(train.cameras.cx[0]), float(train.cameras.cy[0])) == (W / 2, H / 2)
    # A file given by name is used alone.
    assert len(load_transforms(tmp_path / "transforms_train.json", "test")) == 2


def test_intrinsics_of_the_file_and_of_the_frame(tmp_path: Path) -> None:
    def own(i: int, f: dict[str, Any]) -> dict[str, Any]:
        return f | {"camera_angle_x": 1.0, "k1": 0.02} if i == 1 else f

    capture(
        tmp_path, frame=own, fl_x=30.0, fl_y=31.0, cx=5.5, cy=4.5, w=W, h=H, k1=0.01, p2=0.001, camera_model="OPENCV"
    )
    c = load_transforms(tmp_path, "all").cameras
    assert (float(c.fx[0]), float(c.fy[0]), float(c.cx[0]), float(c.cy[0])) == (30.0, 31.0, 5.5, 4.5)
    torch.testing.assert_close(c.distortion[0], torch.tensor([0.01, 0, 0, 0, 0.001]))
    assert float(c.fx[1]) == float(c.fy[1]) == pytest.approx(0.5 * W / math.tan(0.5), rel=1e-6)
    assert float(c.distortion[1, 0]) == pytest.approx(0.02)


def test_camera_angle_y_gives_its_own_focal_length(tmp_path: Path) -> None:
    c = load_transforms(capture(tmp_path, camera_angle_y=0.6)).cameras
    assert float(c.fy[0]) == pytest.approx(0.5 * H / math.tan(0.3), rel=1e-6)


def test_images_of_different_sizes(tmp_path: Path) -> None:
    capture(tmp_path, 4)
    write_image(tmp_path / "images" / "2.png", torch.full((7, 5, 3), 99, dtype=torch.uint8))
    views = load_transforms(tmp_path, "all")
    assert views.image(2).shape == (7, 5, 3)
    assert views.image(-1).shape == (H, W, 3)
    with pytest.raises(ValueError, match="differ in size"):
        _ = views.images
    batch = views.rays_at(torch.arange(len(views.pixels)))
    third = batch.camera_indices == 2
    assert batch.pixel_xy[third].tolist() == [[x, y] for y in range(7) for x in range(5)]
    assert bool((batch.colors[third] == 99 / 255).all())
    torch.testing.assert_close(batch.directions[third], views.cameras.image_rays(2)[1].reshape(-1, 3))


@pytest.mark.parametrize("channels", [3, 4])
def test_rays_carry_the_color_of_their_pixel(tmp_path: Path, channels: int) -> None:
    views = load_transforms(capture(tmp_path, channels=channels, aabb=[[-1, -1, -1], [1, 1, 1]]))
    batch = views.sample_rays(500, torch.Generator().manual_seed(1))
    x, y = batch.pixel_xy.unbind(-1)
    expected = views.images[batch.camera_indices, y, x].float() / 255
    torch.testing.assert_close(batch.colors, expected)
    o, d = views.cameras.rays(batch.camera_indices, batch.pixel_xy + 0.5)
    torch.testing.assert_close(batch.origins, o)
    torch.testing.assert_close(batch.directions, d, atol=1e-6, rtol=0)
    again = views.sample_rays(500, torch.Generator().manual_seed(1))
    assert torch.equal(batch.pixel_xy, again.pixel_xy)
    assert views.sample_rays(0).origins.shape == (0, 3)


def test_backgrounds_are_composited_straight(tmp_path: Path) -> None:
    capture(tmp_path, channels=4)
    raw = load_transforms(tmp_path)
    white = load_transforms(tmp_path, background="white")
    assert raw.has_alpha
    assert not white.has_alpha
    exact = over_background(raw.images.float() / 255, torch.ones(3))
    assert float((white.images.float() / 255 - exact).abs().max()) <= 0.5 / 255 + 1e-6
    assert white.background is not None
    assert white.background.tolist() == [1, 1, 1]


def test_opaque_frames_among_rgba_become_rgba(tmp_path: Path) -> None:
    capture(tmp_path, channels=4)
    write_image(tmp_path / "images" / "3.png", torch.full((H, W, 3), 7, dtype=torch.uint8))
    views = load_transforms(tmp_path, "all")
    assert bool((views.images[3] == torch.tensor([7, 7, 7, 255])).all())


def test_downscale_weighs_color_by_alpha(tmp_path: Path) -> None:
    capture(tmp_path, channels=4, fl_x=30.0, cx=7.0, cy=5.0, w=W, h=H)
    pixels = torch.zeros(H, W, 4, dtype=torch.uint8)
    pixels[0, 0] = torch.tensor([200, 100, 50, 255])  # Three invisible green neighbours must not show.
    pixels[0, 1] = pixels[1, 0] = pixels[1, 1] = torch.tensor([0, 255, 0, 0])
    write_image(tmp_path / "images" / "0.png", pixels)
    views = load_transforms(tmp_path, "all", downscale=2)
    assert views.images.shape == (10, H // 2, W // 2, 4)
    assert views.images[0, 0, 0].tolist() == [200, 100, 50, 64]
    assert (float(views.cameras.fx[0]), float(views.cameras.cx[0]), float(views.cameras.cy[0])) == (15.0, 3.5, 2.5)


def test_masks_ignore_or_matte(tmp_path: Path) -> None:
    mask = torch.zeros(H, W, dtype=torch.uint8)
    mask[2:5, 3:7] = 255
    write_image(tmp_path / "mask.png", mask)
    capture(tmp_path, frame=lambda i, f: f | {"mask_path": "mask.png"} if i else f)
    views = load_transforms(tmp_path)
    assert views.valid is not None
    assert int(views.valid.sum()) == 8 * 12
    x, y = views.sample_rays(200).pixel_xy.unbind(-1)
    assert bool(((x >= 3) & (x < 7) & (y >= 2) & (y < 5)).all())
    mattes = load_transforms(tmp_path, "all", mask="alpha")
    assert mattes.valid is None
    assert torch.equal(mattes.images[1, ..., 3], mask)
    assert bool((mattes.images[0, ..., 3] == 255).all())


@pytest.mark.parametrize(
    ("name", "split", "shape"),
    [
        ("fox", "train", (43, 320, 180, 3)),
        ("fox", "test", (7, 320, 180, 3)),
        ("conch", "train", (45, 180, 240, 4)),
        ("conch/transforms_all.json", "test", (11, 180, 240, 4)),
        ("lego200", "test", (13, 200, 200, 4)),
    ],
)
def test_real_captures_load(shared_data: Path, name: str, split: str, shape: tuple[int, ...]) -> None:
    views = load_transforms(shared_data / name, split)
    assert views.images.shape == shape
    batch = views.sample_rays(1000)
    assert bool(batch.origins.isfinite().all())
    torch.testing.assert_close(batch.directions.norm(dim=-1), torch.ones(1000))


# --- scene bounds ---------------------------------------------------------------------------------------------------


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
    torch.testing.assert_close(corners, expected, atol=1e-9, rtol=0)
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


# --- bad input ------------------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        load_transforms(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no transforms\.json or transforms_train\.json in this folder$"):
        load_transforms(tmp_path)
    (tmp_path / "cameras.json").write_text("{}")
    with pytest.raises(DataError, match=r"it holds cameras\.json: give one of these by name"):
        load_transforms(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"frames": [{"file_', "invalid or truncated JSON: .* line 1 column"),
        (b"", "invalid or truncated JSON"),
        (b"\xff\xfe\x00{", "not a text file"),
        (b"[]", "expected an object with a list 'frames'"),
        (b'{"frames": {}}', "expected an object with a list 'frames'"),
        (b'{"frames": []}', "'frames' is empty"),
        (b'{"frames": [3]}', "frame 0: expected an object, got int"),
        (b'{"frames": [{}]}', "frame 0: no file_path"),
        (b'{"frames": [{"file_path": "a.png"}]}', r"frame 0 \(a.png\): no transform_matrix"),
    ],
    ids=["truncated", "empty", "binary", "list", "frames", "no-frames", "number", "no-path", "no-pose"],
)
def test_damaged_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "transforms.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_transforms(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "transforms.json"))


def changed(key: str, value: Any) -> Callable[[int, dict[str, Any]], Any]:
    """Frame 4 with ``key`` replaced."""
    return lambda i, f: f | {key: value} if i == 4 else f


def pose(change: Callable[[list[list[float]]], Any]) -> Callable[[int, dict[str, Any]], Any]:
    def apply(i: int, f: dict[str, Any]) -> dict[str, Any]:
        if i == 4:
            f["transform_matrix"] = change(f["transform_matrix"])
        return f

    return apply


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pose(lambda m: m[:2]), r"transform_matrix of shape \(4, 4\) or \(3, 4\), got \(2, 4\)"),
        (pose(lambda m: [m[0], m[1][:3], m[2]]), "not a matrix of numbers"),
        (pose(lambda m: "up"), "not a matrix of numbers"),
        (pose(lambda m: [[math.nan] * 4, *m[1:]]), "holds NaN or infinite values"),
        (pose(lambda m: [[*m[0][:3], math.inf], *m[1:]]), "holds NaN or infinite values"),
        (pose(lambda m: [[-x for x in m[0]], *m[1:]]), r"holds a reflection \(determinant -1\)"),
        (pose(lambda m: [[2 * x for x in m[0]], *m[1:]]), r"does not hold a rotation \(R R\^T differs from 1 by"),
        (pose(lambda m: [*m[:3], [0, 0, 0, 2]]), "last row of transform_matrix to be 0 0 0 1"),
        (changed("fl_x", 0.0), "expected fl_x > 0, got 0"),
        (changed("fl_x", math.nan), "fl_x is nan"),
        (changed("fl_x", "wide"), "fl_x is not a number: 'wide'"),
        (changed("camera_angle_x", 4.0), "expected camera_angle_x between 0 and pi, got 4"),
        (changed("camera_model", "OPENCV_FISHEYE"), "camera_model 'OPENCV_FISHEYE' is not supported, expected one of"),
        (changed("is_fisheye", True), "is_fisheye = True is not supported"),
        (changed("k4", 0.1), "k4 = 0.1 is not supported"),
        (changed("k1", -5.0), r"lens distortion \(k1 = -5\) folds over inside the image"),
        (changed("w", W + 1), f"w is {W + 1} but .*4.png has {W}x{H} pixels$"),
        (changed("h", W), r"h is 12 but .*4.png has 12x10 pixels \(the photograph's orientation tag is not applied\)"),
        (changed("mask_path", "images/small.png"), f"the mask .*small.png has 5x4 pixels, its image {W}x{H}"),
    ],
    ids=[
        "pose-shape", "pose-ragged", "pose-text", "pose-nan", "pose-inf", "reflection", "scaled", "last-row", "focal-0",
        "focal-nan", "focal-text", "angle", "fisheye-model", "fisheye", "k4", "fold", "width", "turned", "mask-size",
    ],
)  # fmt: skip
def test_a_wrong_frame_is_named(tmp_path: Path, frame: Callable[[int, dict[str, Any]], Any], message: str) -> None:
    capture(tmp_path, frame=frame)
    write_image(tmp_path / "images" / "small.png", torch.zeros(4, 5, dtype=torch.uint8))
    with pytest.raises(DataError, match=message) as caught:
        load_transforms(tmp_path)
    assert "transforms.json: frame 4 (images/4.png): " in str(caught.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"camera_angle_x": None}, r"no focal length \(fl_x or camera_angle_x\)"),
        ({"aabb_scale": 3}, "expected aabb_scale to be a power of two from 1 to 128, got 3"),
        ({"aabb_scale": "big"}, "make no sense"),
        ({"aabb_scale": 4, "scale": 0}, "make no sense"),
        ({"aabb": [[1, 1, 1], [0, 0, 0]]}, "expected an aabb of two corners"),
        ({"aabb": [[0, 0, 0], [1, math.nan, 1]]}, "expected an aabb of two corners"),
        ({"aabb": [0, 0, 0, 1, 1, 1]}, "expected an aabb of two corners"),
        ({"test_filenames": ["images/77.png"]}, "test_filenames names images/77.png, which no frame has"),
        ({"test_filenames": 3}, "test_filenames is not a list of names"),
    ],
    ids=["focal", "aabb-scale", "aabb-text", "scale-0", "aabb-order", "aabb-nan", "aabb-flat", "names", "no-list"],
)
def test_wrong_heads(tmp_path: Path, head: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_transforms(capture(tmp_path, **head))


def test_missing_images_are_listed_up_to_five(tmp_path: Path) -> None:
    capture(tmp_path)
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 8 images are missing: .*images/1\.png$"):
        load_transforms(tmp_path)
    for i in range(2, 9):
        (tmp_path / "images" / f"{i}.png").unlink()
    with pytest.raises(DataError, match=r"missing: (.*images/\d\.png, ){4}.*images/\d\.png and 3 more$"):
        load_transforms(tmp_path, "all", bounds=SceneBounds.from_box([-1] * 3, [1] * 3))


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b[:20], lambda b: b"", lambda b: b"not a picture"],
    ids=["half", "header", "empty", "text"],
)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".exr"])
def test_damaged_images_are_named(tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"x{suffix}"
    write_image(tmp_path / "good.jpg" if suffix == ".jpg" else tmp_path / "good.png", torch.rand(40, 40, 3))
    good = tmp_path / ("good.jpg" if suffix == ".jpg" else "good.png")
    path.write_bytes(damage(good.read_bytes()) if suffix != ".exr" else damage(b"v/1\x01\x02\x00\x00\x00" + bytes(100)))
    with pytest.raises(DataError, match=r"x\.(png|jpg|exr): the image is damaged or not an image"):
        read_image(path)


def test_a_damaged_image_of_a_capture(tmp_path: Path) -> None:
    capture(tmp_path)
    path = tmp_path / "images" / "3.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"images/3\.png: the image is damaged"):
        load_transforms(tmp_path)


def test_empty_splits(tmp_path: Path) -> None:
    capture(tmp_path, 1)
    with pytest.raises(DataError, match=r"the train split is empty \(images: train 0, val 1, test 1, all 1; split by"):
        load_transforms(tmp_path)
    with pytest.raises(DataError, match="the test split is empty"):
        load_transforms(tmp_path, "test", test_every=0)


def test_masks_that_leave_nothing(tmp_path: Path) -> None:
    write_image(tmp_path / "mask.png", torch.zeros(H, W, dtype=torch.uint8))
    with pytest.raises(DataError, match="the masks leave no pixel of the train split"):
        load_transforms(capture(tmp_path, frame=lambda i, f: f | {"mask_path": "mask.png"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "training"}, "expected split to be one of .* got 'training'"),
        ({"mask": "black"}, "expected mask 'ignore' or 'alpha', got 'black'"),
        ({"test_every": -1}, "expected test_every to be an integer >= 0, got -1"),
        ({"downscale": 0}, "expected downscale to be an integer >= 1, got 0"),
        ({"downscale": 100}, "can't be scaled down by 100"),
        ({"background": "mauve"}, "unknown colour 'mauve'"),
        ({"background": (0, 0, 2)}, "three numbers in"),
    ],
    ids=["split", "mask", "every", "scale-0", "scale-100", "colour", "range"],
)
def test_wrong_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_transforms(capture(tmp_path), **options)


# --- images and films -----------------------------------------------------------------------------------------------


def png16(path: Path, pixels: np.ndarray) -> None:
    """A 16-bit PNG, as Pillow can't write it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    h, w, c = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 3: 2, 4: 6}[c], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_kept(tmp_path: Path, channels: int) -> None:
    pixels = (np.arange(5 * 7 * channels, dtype=np.uint16) * 401).reshape(5, 7, channels)
    png16(tmp_path / "x.png", pixels)
    found = read_image(tmp_path / "x.png")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[..., :channels], torch.from_numpy(pixels.astype(np.float32)) / 65535)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_round_trip(tmp_path: Path, channels: int) -> None:
    pixels = torch.randint(256, (5, 7, channels), dtype=torch.uint8)
    write_image(tmp_path / "x.png", pixels)
    found = read_image(tmp_path / "x.png")
    assert torch.equal(found, pixels.expand(5, 7, 3) if channels == 1 else pixels)
    write_image(tmp_path / "y.png", pixels.float() / 255)
    assert torch.equal(read_image(tmp_path / "y.png"), found)


def test_floats_are_clamped(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", torch.tensor([[-1.0, 0.5, 2.0, math.nan, math.inf]]))
    assert read_image(tmp_path / "x.png")[0, :, 0].tolist() == [0, 128, 255, 0, 255]


def test_exr_is_linear_and_unclipped(shared_data: Path) -> None:
    image = read_image(shared_data / "hdri_cc0" / "park.exr")
    assert image.shape == (256, 512, 3)
    assert float(image.max()) > 10
    assert float(image[40, :, 2].mean()) > 1.5 * float(image[40, :, 0].mean())  # A blue sky above
    assert float(image[200, :, 1].mean()) > 1.5 * float(image[200, :, 2].mean())  # and grass below.


def test_wrong_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an image of shape .* got \(3, 4, 5\)"):
        write_image(tmp_path / "x.png", torch.zeros(3, 4, 5))
    with pytest.raises(TypeError, match=r"expected uint8 or floating point, got torch\.int64"):
        write_image(tmp_path / "x.png", torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"unknown image format '\.xyz'"):
        write_image(tmp_path / "x.xyz", torch.zeros(3, 4))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"x\.png: no such image"):
        read_image(tmp_path / "x.png")


def test_colors() -> None:
    assert parse_color("gray").tolist() == [0.5, 0.5, 0.5]
    assert parse_color((0.25, 0.5, 1)).tolist() == [0.25, 0.5, 1.0]
    rgba = torch.tensor([[1.0, 0.0, 0.0, 0.25]])
    torch.testing.assert_close(over_background(rgba, torch.tensor([0.0, 1.0, 1.0])), torch.tensor([[0.25, 0.75, 0.75]]))


def test_films_have_even_sizes(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    frames = (torch.full((33, 47, 3), i / 10) for i in range(10))
    assert write_video(tmp_path / "x.mp4", frames, fps=24) == 10
    with av.open(str(tmp_path / "x.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (48, 34, 24)
        decoded = [f.to_ndarray(format="rgb24") for f in film.decode(video=0)]
    assert len(decoded) == 10
    for i, f in enumerate(decoded):
        assert abs(float(f.mean()) - 25.5 * i) < 3


def test_wrong_films_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one frame, got none"):
        write_video(tmp_path / "x.mp4", [])
    with pytest.raises(ValueError, match=r"expected frames of shape \(8, 8, 3\), got \(8, 10, 3\) at frame 1"):
        write_video(tmp_path / "x.mp4", [torch.zeros(8, 8, 3), torch.zeros(8, 10, 3)])
    assert list(tmp_path.iterdir()) == []


# --- atomic files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path, "w") as file:
        file.write("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [True, False], ids=["old", "none"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    path = tmp_path / "checkpoint.bin"
    if old:
        path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"the disk is full, .*checkpoint\.bin was not written") as caught:  # noqa: SIM117
        with atomic_write(path) as file:
            file.write(b"new")
    assert caught.value.errno == errno.ENOSPC
    assert ("the old file is kept" in str(caught.value)) == old
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([b"old"] if old else [])


def test_atomic_files_replace_and_make_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    for text in ("first", "zweite Fassung, größer"):
        with atomic_write(path, "w") as file:
            file.write(text)
        assert path.read_text(encoding="utf-8") == text
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("third")
        assert path.read_text(encoding="utf-8") == "zweite Fassung, größer"
    assert path.read_text() == "third"
    with pytest.raises(ValueError, match="expected mode 'wb' or 'w', got 'a'"), atomic_write(path, "a"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")
def test_links_and_modes_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with atomic_write(link, "w") as file:
        file.write("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


# --- extras ---------------------------------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"^fastvfx needs pillow for writing images: pip install 'fastvfx\[data\]'$"):
        write_image(tmp_path / "x.png", torch.zeros(3, 4))
    with pytest.raises(ImportError, match=r"^fastvfx needs no_such_thing for a test: pip install 'fastvfx\[x\]'$"):
        require("no_such_thing", extra="x", purpose="a test")


def test_a_broken_package_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_thing.py").write_text("import its_own_dependency")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="importing it failed: No module named 'its_own_dependency'"):
        require("broken_thing", extra="x", purpose="a test")
