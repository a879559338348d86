"""How far a pair of networks has grown, and when it grows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Growth:
    """A state between two resolutions.

    Attributes:
        resolution: of the images.
        alpha: share of the layers of that resolution; the rest comes from those of half of it.
    """

    resolution: int
    alpha: float = 1.0

    def checked(self, img_resolution: int) -> Growth:
        """Itself, if a network of that full resolution can be in this state.

        Raises:
            ValueError: it can't.
        """
        r = self.resolution
        if not 4 <= r <= img_resolution or r & (r - 1) or not 0 <= self.alpha <= 1:
            raise ValueError(
                f"fastvfx.pggan.Growth: expected a power of two from 4 to {img_resolution} and alpha in [0, 1], "
                f"got resolution={r}, alpha={self.alpha}"
            )
        return self

    @property
    def fades(self) -> bool:
        """Whether layers of two resolutions take part; at 4x4 there is nothing below."""
        return self.alpha < 1 and self.resolution > 4

    def images(self, x: Tensor) -> Tensor:
        """Photographs as a discriminator in this state shall see them.

        Averaged down to ``resolution``, and blended with what half of it would leave of them, so that real images gain
        their details when generated ones do (Karras et al. 2018, section 2).

        Args:
            x: ``(N, C, H, W)`` at a multiple of ``resolution``.

        Raises:
            ValueError: another size.
        """
        factor, rest = divmod(x.shape[-1], self.resolution)
        if x.dim() != 4 or x.shape[2] != x.shape[3] or rest:
            raise ValueError(
                f"fastvfx.pggan.Growth: expected square images (N, C, H, W) at a multiple of {self.resolution}, "
                f"got {tuple(x.shape)}"
            )
        if factor > 1:
            x = F.avg_pool2d(x, factor)
        if self.fades:
            x = torch.lerp(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0), x, self.alpha)
        return x


@dataclass(frozen=True)
class GrowthSchedule:
    """When networks grow: a resolution is trained, then the next one fades in, and so on.

    Attributes:
        img_resolution: the last one.
        first_resolution: the first one.
        stable_images, fade_images: how many photographs the discriminator sees at a resolution that is fully there,
            and while it fades in (Karras et al. 2018, appendix A.1).
    """

    img_resolution: int
    first_resolution: int = 4
    stable_images: int = 600_000
    fade_images: int = 600_000

    def __post_init__(self) -> None:
        Growth(self.first_resolution).checked(self.img_resolution)
        Growth(self.img_resolution).checked(self.img_resolution)
        if self.stable_images < 0 or self.fade_images < 0 or self.stable_images + self.fade_images == 0:
            raise ValueError(
                "fastvfx.pggan.GrowthSchedule: expected stable_images and fade_images of at least 0 and not both 0, "
                f"got {self.stable_images} and {self.fade_images}"
            )

    def at(self, images: int) -> Growth:
        """The state after so many photographs."""
        phase, within = divmod(images + self.fade_images, self.stable_images + self.fade_images)
        resolution = self.first_resolution << phase
        if resolution > self.img_resolution:
            return Growth(self.img_resolution)
        # The first resolution does not fade in: the count starts as if it just had.
        return Growth(resolution, min(within / self.fade_images, 1.0) if self.fade_images else 1.0)

    @property
    def grown_after(self) -> int:
        """Photographs until everything is fully there; the last resolution's stable phase follows."""
        doublings = (self.img_resolution // self.first_resolution).bit_length() - 1
        return doublings * (self.stable_images + self.fade_images)
