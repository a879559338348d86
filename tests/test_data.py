"""The loader of captures: their conventions, and what can be wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captures import H, W, capture

from fastvfx.data import DataError, SceneBounds, load_transforms, over_background, read_image, write_image

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
