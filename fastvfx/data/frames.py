"""Reading a transforms.json: frames, their poses and intrinsics, and how they are split."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .images import IMAGE_SUFFIXES

_FOCAL = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")
_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "OPENCV", "RADIAL", "SIMPLE_RADIAL")
# Lens models that other programs write and that this loader has no maths for: an error, not wrong rays.
_UNKNOWN_LENS = ("k4", "k5", "k6", "is_fisheye", "ftheta_p0", "latlong", "equirectangular", "rolling_shutter")


@dataclass
class Frame:
    """One image as the file describes it."""

    where: str  # For messages.
    name: str
    image: Path
    mask: Path | None
    pose: np.ndarray  # (3, 4) float64, file units.
    values: dict[str, Any]  # Intrinsics, the frame's own over those of the file.


def find_frames(path: Path, test_every: int) -> tuple[dict[str, list[Frame]], str, dict[str, Any]]:
    """The frames of each split, the rule of the split in words, and the head of the file."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        parts = {s: path / f"transforms_{s}.json" for s in ("train", "val", "test")}
        parts = {s: p for s, p in parts.items() if p.is_file()}
        if "train" in parts and len(parts) > 1:
            return _merge_files(parts)
        plain = path / "transforms.json"
        if not plain.is_file():
            plain = parts.get("train", plain)
        if not plain.is_file():
            found = sorted(p.name for p in path.glob("*.json"))
            hint = f"; it holds {', '.join(found[:5])}: give one of these by name" if found else ""
            raise DataError(f"{path}: no transforms.json or transforms_train.json in this folder{hint}")
        path = plain
    head, frames = _read_json(path)
    given = {s: head.get(f"{s}_filenames") for s in ("train", "val", "test")}
    if any(v is not None for v in given.values()):
        return _split_by_name(path, frames, given), "the file's lists of names", head
    frames.sort(key=lambda f: _natural(f.name))
    test = [f for i, f in enumerate(frames) if test_every and i % test_every == 0]
    train = [f for i, f in enumerate(frames) if not (test_every and i % test_every == 0)]
    rule = f"every {test_every}th image" if test_every else "no image held out"
    return {"train": train, "val": test, "test": test, "all": frames}, rule, head


def _merge_files(parts: dict[str, Path]) -> tuple[dict[str, list[Frame]], str, dict[str, Any]]:
    frames: dict[str, list[Frame]] = {}
    head: dict[str, Any] = {}
    for name, file in parts.items():
        own, frames[name] = _read_json(file)
        frames[name].sort(key=lambda f: _natural(f.name))
        head = head or own
    both = [*frames["train"], *frames.get("val", []), *frames.get("test", [])]
    frames.setdefault("test", frames.get("val", []))
    frames.setdefault("val", frames["test"])
    return {**frames, "all": both}, "files: " + ", ".join(p.name for p in parts.values()), head


def _split_by_name(path: Path, frames: list[Frame], given: dict[str, Any]) -> dict[str, list[Frame]]:
    by_name = {os.path.normpath(f.name): f for f in frames}
    out: dict[str, list[Frame]] = {}
    for split, names in given.items():
        if names is None:
            continue
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise DataError(f"{path}: {split}_filenames is not a list of names")
        lost = [n for n in names if os.path.normpath(n) not in by_name]
        if lost:
            raise DataError(f"{path}: {split}_filenames names {some(lost)}, which no frame has")
        out[split] = [by_name[os.path.normpath(n)] for n in names]
    out.setdefault("test", out.get("val", []))
    out.setdefault("val", out["test"])
    if "train" not in out:
        held = {id(f) for f in (*out["test"], *out["val"])}
        out["train"] = [f for f in frames if id(f) not in held]
    return {**out, "all": frames}


def _read_json(path: Path) -> tuple[dict[str, Any], list[Frame]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: invalid or truncated JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("frames"), list):
        raise DataError(f"{path}: expected an object with a list 'frames'")
    if not data["frames"]:
        raise DataError(f"{path}: 'frames' is empty")
    head = {k: v for k, v in data.items() if k != "frames"}
    return head, [_parse_frame(path, i, f, head) for i, f in enumerate(data["frames"])]


def _parse_frame(path: Path, i: int, frame: Any, head: dict[str, Any]) -> Frame:
    where = f"{path}: frame {i}"
    if not isinstance(frame, dict):
        raise DataError(f"{where}: expected an object, got {type(frame).__name__}")
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: no file_path")
    where = f"{where} ({name})"
    # The frame's own focal length replaces the file's, in whichever form either is given.
    own = any(k in frame for k in _FOCAL)
    values = {k: v for k, v in head.items() if not (own and k in _FOCAL)} | frame
    model = values.get("camera_model", "OPENCV")
    if not isinstance(model, str) or model.upper() not in _MODELS:
        raise DataError(f"{where}: camera_model {model!r} is not supported, expected one of {', '.join(_MODELS)}")
    for key in _UNKNOWN_LENS:
        value = values.get(key)
        if value is not None and np.any(np.asarray(value) != 0):
            raise DataError(f"{where}: {key} = {value} is not supported; undistort the images first (colmap does)")
    mask = frame.get("mask_path")
    return Frame(
        where=where,
        name=name,
        image=_find_image(path.parent, name),
        mask=None if mask is None else path.parent / str(mask),
        pose=_parse_pose(where, frame.get("transform_matrix")),
        values=values,
    )


def _parse_pose(where: str, value: Any) -> np.ndarray:
    if value is None:
        raise DataError(f"{where}: no transform_matrix")
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: transform_matrix is not a matrix of numbers") from None
    if matrix.shape not in ((4, 4), (3, 4)):
        raise DataError(f"{where}: expected transform_matrix of shape (4, 4) or (3, 4), got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise DataError(f"{where}: transform_matrix holds NaN or infinite values")
    if matrix.shape[0] == 4 and not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-5):
        raise DataError(f"{where}: expected the last row of transform_matrix to be 0 0 0 1, got {matrix[3].tolist()}")
    rotation = matrix[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if error > 1e-2:
        raise DataError(f"{where}: transform_matrix does not hold a rotation (R R^T differs from 1 by {error:.3g})")
    if np.linalg.det(rotation) < 0:
        raise DataError(f"{where}: transform_matrix holds a reflection (determinant -1) and not a rotation")
    u, _, vt = np.linalg.svd(rotation)  # The nearest rotation: files round to a few digits.
    return np.concatenate([u @ vt, matrix[:3, 3:]], axis=1)


def _find_image(folder: Path, name: str) -> Path:
    exact = folder / name
    if not exact.is_file() and "\\" in name:
        exact = folder / name.replace("\\", "/")
    if exact.suffix.lower() in IMAGE_SUFFIXES or exact.is_file():
        return exact
    # "r_0" and "r_0.5" both lack an extension.
    candidates = [exact.with_name(exact.name + suffix) for suffix in IMAGE_SUFFIXES]
    candidates += [exact.with_name(exact.name + suffix.upper()) for suffix in IMAGE_SUFFIXES]
    return next((c for c in candidates if c.is_file()), candidates[0])


def _natural(name: str) -> list[tuple[int, str]]:
    """r_2 before r_10."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
