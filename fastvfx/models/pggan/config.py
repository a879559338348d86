"""Shapes of the networks of progressive growing, as plain dataclasses that go into a checkpoint as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from .._config import Config


@dataclass(frozen=True)
class GeneratorConfig(Config):
    """All of a generator.

    Attributes:
        z_dim: dimension of latents.
        img_resolution: a power of two from 8, fully grown.
        img_channels: of the images.
        channel_base, channel_max: a layer at resolution r has ``min(channel_base // r, channel_max)`` channels.
        resample_filter: taps of up- and downsampling: (1, 1) repeats and averages pixels as the paper does, (1, 2, 1)
            is smoother, as in StyleGAN.
        activation: of :func:`fastvfx.bias_act`.
        pixel_norm: normalise the features of each pixel behind every layer, and latents.
    """

    z_dim: int = 512
    img_resolution: int = 256
    img_channels: int = 3
    channel_base: int = 16384
    channel_max: int = 512
    resample_filter: tuple[float, ...] = (1, 1)
    activation: str = "lrelu"
    pixel_norm: bool = True


@dataclass(frozen=True)
class DiscriminatorConfig(Config):
    """All of a discriminator; see :class:`GeneratorConfig` for what both have.

    Attributes:
        mbstd_group_size, mbstd_num_channels: of :class:`fastvfx.MinibatchStddev`; 0 channels leave it out.
    """

    img_resolution: int = 256
    img_channels: int = 3
    channel_base: int = 16384
    channel_max: int = 512
    resample_filter: tuple[float, ...] = (1, 1)
    activation: str = "lrelu"
    mbstd_group_size: int | None = 4
    mbstd_num_channels: int = 1
