"""Posed images in memory, and batches of their rays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .bounds import SceneBounds
from .cameras import Cameras

__all__ = ["PosedImages", "RayBatch"]


@dataclass(frozen=True)
class RayBatch:
    """Rays with the colours that they should have.

    Attributes:
        origins, directions: (n, 3) float32, scene coordinates, unit directions.
        colors: (n, C) float32, RGB or straight-alpha RGBA, in [0, 1] (EXR: linear, unclamped).
        camera_indices: (n,) int64.
        pixel_xy: (n, 2) int64, column and row.
    """

    origins: Tensor
    directions: Tensor
    colors: Tensor
    camera_indices: Tensor
    pixel_xy: Tensor


@dataclass
class PosedImages:
    """Images with their cameras. All pixels lie in one tensor, so that images may differ in size.

    Attributes:
        cameras: N cameras in scene coordinates (see `SceneBounds`).
        pixels: (P, C) uint8 or float32: the pixels of all images, row by row; C = 3 (RGB) or 4 (straight-alpha RGBA).
        starts: (N + 1,) int64: image i is ``pixels[starts[i]:starts[i + 1]]``.
        names: ``file_path`` of each image as the file has it.
        bounds: the scene's coordinates and boxes.
        split: "train", "val", "test" or "all".
        split_rule: how the split was made, in words.
        background: (3,) the colour that the images were composited over; None where they were not.
        valid: (P,) bool, the pixels to train on; None for all.
        linear: colours are linear light (EXR) and not sRGB.
    """

    cameras: Cameras
    pixels: Tensor
    starts: Tensor
    names: list[str]
    bounds: SceneBounds
    split: str
    split_rule: str
    background: Tensor | None = None
    valid: Tensor | None = None
    linear: bool = False

    def __post_init__(self) -> None:
        width, height = self.cameras.width, self.cameras.height
        self._uniform = bool((width == width[0]).all() and (height == height[0]).all())
        self._width, self._height = int(width[0]), int(height[0])
        self._valid_at = None if self.valid is None else self.valid.nonzero().squeeze(-1)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_alpha(self) -> bool:
        """Whether the colours are RGBA, to be composited over a background of the caller's choice."""
        return self.pixels.shape[-1] == 4

    @property
    def images(self) -> Tensor:
        """(N, H, W, C) in the stored dtype, without a copy. ValueError if the images differ in size."""
        if not self._uniform:
            raise ValueError("fastvfx.data.PosedImages.images: the images differ in size, use image(i)")
        return self.pixels.view(len(self), self._height, self._width, -1)

    def image(self, i: int) -> Tensor:
        """Image i as (H, W, C) float32."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"fastvfx.data.PosedImages.image: expected an index below {len(self)}, got {i}")
        i %= len(self)
        flat = self.pixels[int(self.starts[i]) : int(self.starts[i + 1])]
        return _floats(flat).view(int(self.cameras.height[i]), int(self.cameras.width[i]), -1)

    def to(self, device: torch.device | str) -> PosedImages:
        """The same data on ``device``."""
        return replace(
            self,
            cameras=self.cameras.to(device),
            pixels=self.pixels.to(device),
            starts=self.starts.to(device),
            background=None if self.background is None else self.background.to(device),
            valid=None if self.valid is None else self.valid.to(device),
        )

    def sample_rays(self, n: int, generator: torch.Generator | None = None) -> RayBatch:
        """``n`` pixels drawn uniformly, with replacement, from all (valid) pixels of all images, and their rays.

        Args:
            n: number of rays.
            generator: on the device of the data; the default generator of the device if None.
        """
        device = self.pixels.device
        count = self.pixels.shape[0] if self._valid_at is None else self._valid_at.shape[0]
        at = torch.randint(count, (n,), generator=generator, device=device)
        return self.rays_at(at if self._valid_at is None else self._valid_at.index_select(0, at))

    def rays_at(self, pixel_indices: Tensor) -> RayBatch:
        """The rays of ``pixels[pixel_indices]``, (n,) int64."""
        if self._uniform:
            camera = torch.div(pixel_indices, self._width * self._height, rounding_mode="floor")
            width: Tensor | int = self._width
        else:
            camera = torch.searchsorted(self.starts, pixel_indices, right=True) - 1
            width = self.cameras.width.index_select(0, camera)
        local = pixel_indices - self.starts.index_select(0, camera)
        row = torch.div(local, width, rounding_mode="floor")
        xy = torch.stack([local - row * width, row], -1)
        origins, directions = self.cameras._pixel_rays(camera, xy, camera.shape)
        return RayBatch(origins, directions, _floats(self.pixels.index_select(0, pixel_indices)), camera, xy)


def _floats(pixels: Tensor) -> Tensor:
    return pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels
