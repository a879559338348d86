"""Captures of random images on disk, for tests of the loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvfx.data import look_at, write_image

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
