"""Shapes of plain convolutional networks, as dataclasses that go into a checkpoint as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .._config import Config

Normalization = Literal["spectral", "batch", "none"]


@dataclass(frozen=True)
class GeneratorConfig(Config):
    """All of a generator.

    Attributes:
        z_dim: dimension of latents.
        img_resolution: a power of two from 8.
        img_channels: of the images.
        channel_base, channel_max: a layer at resolution r has ``min(channel_base // r, channel_max)`` channels.
    """

    z_dim: int = 128
    img_resolution: int = 64
    img_channels: int = 3
    channel_base: int = 2048
    channel_max: int = 512


@dataclass(frozen=True)
class DiscriminatorConfig(Config):
    """All of a discriminator; see :class:`GeneratorConfig` for what both have.

    Attributes:
        normalization: ``"spectral"`` divides every weight by its spectral norm, which makes the network Lipschitz;
            ``"batch"`` is DCGAN's; ``"none"`` suits the gradient penalty of WGAN-GP.
        slope: of the leaky ReLU.
    """

    img_resolution: int = 64
    img_channels: int = 3
    channel_base: int = 2048
    channel_max: int = 512
    normalization: Normalization = "spectral"
    slope: float = 0.1
