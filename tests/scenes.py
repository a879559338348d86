"""A scene that is known exactly: a painted ball, seen by cameras around it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from fastvfx.data import Cameras, PosedImages, SceneBounds, look_at, write_image


def ball_cameras(n: int, size: int) -> Cameras:
    """``n`` cameras on a rising spiral at distance 4 around the origin."""
    phase = torch.arange(n) * (2 * math.pi / n)
    height = torch.linspace(-0.6, 0.6, n)
    ring = torch.stack([phase.cos(), phase.sin(), height], -1)
    poses = look_at(4 * torch.nn.functional.normalize(ring, dim=-1), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return Cameras.create(poses, fx=1.6 * size, width=size, height=size)


def ball_image(cameras: Cameras, i: int) -> Tensor:
    """(H, W, 4): a ball of radius 0.7, its colour the position on it."""
    origins, directions = cameras.image_rays(i)
    along = (origins * directions).sum(-1)
    inside = along.square() - origins.square().sum(-1) + 0.7**2
    hit = inside > 0
    t = -along - inside.clamp(min=0).sqrt()
    color = 0.5 + 0.45 * (origins + t[..., None] * directions) / 0.7
    return torch.cat([color.clamp(0, 1), hit.float()[..., None]], -1)


def ball(n: int = 12, size: int = 32, split: str = "train") -> PosedImages:
    """The views in memory."""
    cameras = ball_cameras(n, size)
    pixels = torch.cat([ball_image(cameras, i).reshape(-1, 4) for i in range(n)])
    return PosedImages(
        cameras=cameras,
        pixels=pixels,
        starts=torch.arange(n + 1) * size * size,
        names=[f"{i:03d}" for i in range(n)],
        bounds=SceneBounds.from_box((-1, -1, -1), (1, 1, 1)),
        split=split,
        split_rule="all views",
    )


def write_ball(folder: Path, n: int = 9, size: int = 24) -> Path:
    """The views on disk, with a transforms.json."""
    cameras = ball_cameras(n, size)
    frames = []
    for i in range(n):
        write_image(folder / f"{i:03d}.png", ball_image(cameras, i))
        pose = torch.cat([cameras.camera_to_world[i], torch.tensor([[0.0, 0.0, 0.0, 1.0]])])
        frames.append({"file_path": f"{i:03d}.png", "transform_matrix": pose.tolist()})
    content = {"fl_x": 1.6 * size, "aabb": [[-1, -1, -1], [1, 1, 1]], "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder
