"""``load_transforms``: captures with a transforms.json, as instant-ngp, nerfstudio and Blender scripts write it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .bounds import SceneBounds, scene_bounds
from .cameras import Cameras, distort, undistort
from .dataset import PosedImages
from .errors import DataError
from .frames import Frame, find_frames, some
from .images import Color, PathLike, over_background, parse_color, read_image

__all__ = ["load_transforms"]

_SPLITS = ("train", "val", "test", "all")
_LENS = ("k1", "k2", "k3", "p1", "p2")
_HULL_VIEWS = 48


@dataclass
class _Picture:
    """What was read of a frame."""

    pixels: Tensor  # (H, W, C) uint8 or float32
    valid: Tensor | None  # (H, W) bool
    intrinsics: tuple[float, float, float, float]  # fx, fy, cx, cy
    lens: list[float]
    linear: bool


def load_transforms(
    path: PathLike,
    split: str = "train",
    *,
    background: Color | None = None,
    test_every: int = 8,
    downscale: int = 1,
    mask: str = "ignore",
    bounds: SceneBounds | None = None,
    aabb: Sequence[Sequence[float]] | None = None,
    aabb_scale: float | None = None,
) -> PosedImages:
    """Load a capture: images, cameras, and the box that the scene lies in.

    ``path`` is a json file, or a folder with ``transforms_train.json`` beside ``transforms_test.json`` or
    ``transforms_val.json`` (Blender), or with ``transforms.json`` (instant-ngp, nerfstudio). The split is, the first
    that applies: one file per split; ``train_filenames``, ``val_filenames`` and ``test_filenames`` in the file; every
    ``test_every``-th image in the order of the names, from the first, for testing and the others for training. Where
    only one of val and test exists, it is used for both.

    Intrinsics are ``fl_x``, ``fl_y``, ``cx``, ``cy`` in pixels or ``camera_angle_x``, ``camera_angle_y`` in radians,
    lens distortion ``k1 k2 k3 p1 p2`` of OpenCV; each for all frames or per frame. ``transform_matrix`` is
    camera-to-world in OpenGL convention (x right, y up, looking along -z). A ``file_path`` without extension means
    .png, or whatever image is there. 8-bit images stay sRGB as they are.

    Args:
        path: folder or json file. A json file given by name is used alone.
        split: "train", "val", "test" or "all".
        background: colour to composite RGBA images over ("white", "black", "gray" or three numbers); None keeps RGBA,
            so that a trainer may use random backgrounds.
        test_every: see above; 0 keeps every image for training.
        downscale: average squares of this many pixels (mattes correctly weighted) and scale the intrinsics.
        mask: what the masks of ``mask_path`` mean: "ignore" (nerfstudio: black pixels are not trained on) or "alpha"
            (the mask is a matte).
        bounds: the scene's bounds, found earlier: those of the training split or of a checkpoint. Otherwise they are
            found from the training images, whatever the split, so that all splits agree.
        aabb, aabb_scale: override what the file says, see `fastvfx.data.bounds`.

    Returns:
        `PosedImages` in scene coordinates.

    Raises:
        DataError: anything wrong with the files; the message names the file, the frame and what is wrong.
        ValueError: a wrong argument.
    """
    if split not in _SPLITS:
        raise ValueError(f"fastvfx.data.load_transforms: expected split to be one of {_SPLITS}, got {split!r}")
    if mask not in ("ignore", "alpha"):
        raise ValueError(f"fastvfx.data.load_transforms: expected mask 'ignore' or 'alpha', got {mask!r}")
    for name, value, least in (("test_every", test_every, 0), ("downscale", downscale, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"fastvfx.data.load_transforms: expected {name} to be an integer >= {least}, got {value!r}"
            )
    color = None if background is None else parse_color(background)

    frames, split_rule, head = find_frames(Path(path), test_every)
    chosen = frames[split]
    if not chosen:
        counts = ", ".join(f"{name} {len(frames[name])}" for name in _SPLITS)
        raise DataError(f"{path}: the {split} split is empty (images: {counts}; split by {split_rule})")
    # The bounds come from the training images, whichever split is asked for.
    fit = frames["train"] or frames["all"]
    hull: list[Frame] = []
    if bounds is None and aabb is None and "aabb" not in head:
        hull = [fit[i] for i in np.unique(np.linspace(0, len(fit) - 1, min(len(fit), _HULL_VIEWS)).round().astype(int))]
    wanted = {id(f): f for f in (*chosen, *hull)}
    _check_files(path, list(wanted.values()))

    def read(frame: Frame) -> _Picture:
        return _read_frame(frame, downscale, mask)

    pictures = dict(zip(wanted, _map_threads(read, list(wanted.values())), strict=True))
    if bounds is None:
        bounds = _bounds(Path(path), head, fit, hull, pictures, aabb, aabb_scale)
    return _assemble(path, chosen, [pictures[id(f)] for f in chosen], bounds, color, split, split_rule)


# --- the images -----------------------------------------------------------------------------------------------------


def _check_files(path: PathLike, frames: list[Frame]) -> None:
    files = [p for f in frames for p in (f.image, f.mask) if p is not None]
    lost = [str(p) for p in files if not p.is_file()]
    if lost:
        raise DataError(f"{path}: {len(lost)} of {len(files)} images are missing: {some(lost)}")


def _map_threads(function: Callable[[Frame], _Picture], items: list[Frame]) -> list[_Picture]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [f.result() for f in futures]
        except BaseException:
            for f in futures:
                f.cancel()
            raise


def _number(frame: Frame, key: str) -> float | None:
    value = frame.values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{frame.where}: {key} is not a number: {value!r}")
    if not math.isfinite(value):
        raise DataError(f"{frame.where}: {key} is {value}")
    return float(value)


def _focal(frame: Frame, axis: str, size: int) -> float | None:
    """Focal length along x or y in pixels of the image as stored, or None if the file does not say."""
    focal = _number(frame, f"fl_{axis}")
    if focal is None:
        angle = _number(frame, f"camera_angle_{axis}")
        if angle is None:
            return None
        if not 0 < angle < math.pi:
            raise DataError(f"{frame.where}: expected camera_angle_{axis} between 0 and pi, got {angle}")
        focal = 0.5 * size / math.tan(0.5 * angle)
    if not focal > 0:
        raise DataError(f"{frame.where}: expected fl_{axis} > 0, got {focal}")
    return focal


def _read_frame(frame: Frame, downscale: int, mask: str) -> _Picture:
    pixels = read_image(frame.image)
    h, w, _ = pixels.shape
    for key, size in (("w", w), ("h", h)):
        said = _number(frame, key)
        if said is not None and said != size:
            turned = " (the photograph's orientation tag is not applied)" if said in (w, h) else ""
            raise DataError(f"{frame.where}: {key} is {said:g} but {frame.image} has {w}x{h} pixels{turned}")
    fx, fy = _focal(frame, "x", w), _focal(frame, "y", h)
    if fx is None and fy is None:
        raise DataError(f"{frame.where}: no focal length (fl_x or camera_angle_x)")
    fx, fy = (fy if fx is None else fx), (fx if fy is None else fy)
    assert fx is not None and fy is not None
    cx, cy = _number(frame, "cx"), _number(frame, "cy")
    cx, cy = (w / 2 if cx is None else cx), (h / 2 if cy is None else cy)
    lens = [_number(frame, key) or 0.0 for key in _LENS]
    if not _has_inverse(w, h, (fx, fy, cx, cy), tuple(lens)):
        values = ", ".join(f"{key} = {v:g}" for key, v in zip(_LENS, lens, strict=True) if v)
        raise DataError(f"{frame.where}: the lens distortion ({values}) folds over inside the image and has no inverse")

    valid = None
    if frame.mask is not None:
        matte = _read_mask(frame, (h, w))
        if mask == "ignore":
            valid = matte > 0.5
        else:
            pixels = _with_alpha(pixels, matte)
    if downscale > 1:
        if min(h, w) < downscale:
            raise DataError(f"{frame.image}: an image of {w}x{h} pixels can't be scaled down by {downscale}")
        pixels = _shrink(pixels, downscale)
        if valid is not None:  # A small pixel counts if all its large ones do.
            valid = F.avg_pool2d(valid.float()[None], downscale)[0] > 0.999
        fx, fy, cx, cy = fx / downscale, fy / downscale, cx / downscale, cy / downscale
    return _Picture(pixels, valid, (fx, fy, cx, cy), lens, frame.image.suffix.lower() == ".exr")


@lru_cache
def _has_inverse(w: int, h: int, intrinsics: tuple[float, ...], lens: tuple[float, ...]) -> bool:
    """Whether the lens model has an inverse all over the image; its worst points are on the border."""
    if not any(lens):
        return True
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    border = torch.cat([torch.stack(p, -1) for p in ((t, zero), (t, one), (zero, t), (one, t))])
    size, focal, center = (torch.tensor(v, dtype=torch.float64) for v in ((w, h), intrinsics[:2], intrinsics[2:]))
    plane = (border * size - center) / focal
    coefficients = torch.tensor(lens, dtype=torch.float64)
    error = ((distort(undistort(plane, coefficients), coefficients) - plane) * focal).abs().max()
    return float(error) < 0.1


def _read_mask(frame: Frame, size: tuple[int, int]) -> Tensor:
    """(H, W) in [0, 1]."""
    assert frame.mask is not None
    mask = read_image(frame.mask)
    if tuple(mask.shape[:2]) != size:
        raise DataError(
            f"{frame.where}: the mask {frame.mask} has {mask.shape[1]}x{mask.shape[0]} pixels, "
            f"its image {size[1]}x{size[0]}"
        )
    return mask[..., 0].float() / 255 if mask.dtype == torch.uint8 else mask[..., 0]


def _with_alpha(pixels: Tensor, matte: Tensor) -> Tensor:
    """``matte`` as the alpha of the image, times the alpha that it had."""
    top = 255.0 if pixels.dtype == torch.uint8 else 1.0
    if pixels.shape[-1] == 4:
        matte = matte * pixels[..., 3].float() / top
    alpha = (matte * top).round() if pixels.dtype == torch.uint8 else matte
    return torch.cat([pixels[..., :3], alpha.to(pixels.dtype)[..., None]], -1)


def _shrink(pixels: Tensor, k: int) -> Tensor:
    """Average k x k squares; colour is weighted by alpha, so that invisible pixels do not bleed in."""
    x = pixels.double().movedim(-1, 0)  # (C, H, W)
    if x.shape[0] == 4:
        alpha = F.avg_pool2d(x[3:], k)
        x = torch.cat([F.avg_pool2d(x[:3] * x[3:], k) / torch.where(alpha > 0, alpha, 1.0), alpha])
    else:
        x = F.avg_pool2d(x, k)
    x = x.movedim(0, -1)
    return (x.round() if pixels.dtype == torch.uint8 else x).to(pixels.dtype).contiguous()


# --- together -------------------------------------------------------------------------------------------------------


def _cameras(frames: list[Frame], pictures: list[_Picture]) -> Cameras:
    k = torch.tensor([p.intrinsics for p in pictures])
    return Cameras.create(
        torch.from_numpy(np.stack([f.pose for f in frames])),
        fx=k[:, 0],
        fy=k[:, 1],
        cx=k[:, 2],
        cy=k[:, 3],
        width=torch.tensor([p.pixels.shape[1] for p in pictures]),
        height=torch.tensor([p.pixels.shape[0] for p in pictures]),
        distortion=torch.tensor([p.lens for p in pictures]),
    )


def _bounds(
    path: Path,
    head: dict[str, Any],
    fit: list[Frame],
    hull: list[Frame],
    pictures: dict[int, _Picture],
    aabb: Sequence[Sequence[float]] | None,
    aabb_scale: float | None,
) -> SceneBounds:
    poses = torch.from_numpy(np.stack([f.pose for f in fit])).float()
    views = [pictures[id(f)] for f in hull]
    mattes = None
    if aabb_scale is None and views and all(p.pixels.shape[-1] == 4 for p in views):
        alphas = [p.pixels[..., 3].float() / (255.0 if p.pixels.dtype == torch.uint8 else 1.0) for p in views]
        # RGBA in name only, where nothing is transparent.
        if sum(float((a < 0.5).float().mean()) for a in alphas) / len(alphas) > 0.01:
            mattes = (_cameras(hull, views), alphas)
    try:
        return scene_bounds(
            poses[:, :, 3],
            -poses[:, :, 2],
            aabb=head.get("aabb") if aabb is None else aabb,
            aabb_scale=head.get("aabb_scale") if aabb_scale is None else aabb_scale,
            scale=head.get("scale", 0.33),
            offset=head.get("offset", (0.5, 0.5, 0.5)),
            mattes=mattes,
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (TypeError, ZeroDivisionError, ValueError) as error:
        raise DataError(f"{path}: aabb, aabb_scale, scale or offset make no sense: {error}") from error


def _assemble(
    path: PathLike,
    frames: list[Frame],
    pictures: list[_Picture],
    bounds: SceneBounds,
    color: Tensor | None,
    split: str,
    rule: str,
) -> PosedImages:
    if len({p.linear for p in pictures}) > 1:
        raise DataError(f"{path}: EXR (linear) and other (sRGB) images are mixed")
    cameras = _cameras(frames, pictures)
    cameras.camera_to_world[:, :, 3] = bounds.to_scene(cameras.centers.double()).float()
    dtype = torch.uint8 if all(p.pixels.dtype == torch.uint8 for p in pictures) else torch.float32
    channels = max(p.pixels.shape[-1] for p in pictures) if color is None else 3
    flat = []
    for p in pictures:
        x = p.pixels
        if x.dtype != dtype:
            x = x.float() / 255
        if color is not None and x.shape[-1] == 4:
            top = 255.0 if dtype == torch.uint8 else 1.0
            x = over_background(x.float() / top, color) * top
            x = (x.round() if dtype == torch.uint8 else x).to(dtype)
        elif x.shape[-1] < channels:
            x = _with_alpha(x, torch.ones(x.shape[:2]))
        flat.append(x.reshape(-1, channels))
    valid = None
    if any(p.valid is not None for p in pictures):
        parts = [torch.ones(p.pixels.shape[:2], dtype=torch.bool) if p.valid is None else p.valid for p in pictures]
        valid = torch.cat([v.reshape(-1) for v in parts])
        if not bool(valid.any()):
            raise DataError(f"{path}: the masks leave no pixel of the {split} split")
    counts = torch.tensor([0, *(x.shape[0] for x in flat)])
    return PosedImages(
        cameras=cameras,
        pixels=torch.cat(flat),
        starts=counts.cumsum(0),
        names=[f.name for f in frames],
        bounds=bounds,
        split=split,
        split_rule=rule,
        background=color,
        valid=valid,
        linear=pictures[0].linear,
    )
