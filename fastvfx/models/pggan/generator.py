"""The growing generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import _check
from ...convolution import EqualizedConv2d, EqualizedLinear
from ...functional import setup_filter, upsample2d
from ...normalization import PixelNorm
from ..stylegan2.config import resolutions
from .config import GeneratorConfig
from .growth import Growth


class FirstBlock(nn.Module):
    """Latents (N, z_dim) to features (N, out_channels, 4, 4)."""

    def __init__(self, out_channels: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.dense = EqualizedLinear(config.z_dim, out_channels * 4 * 4, act=config.activation)
        self.conv = EqualizedConv2d(out_channels, out_channels, 3, act=config.activation)
        self.normalize = PixelNorm() if config.pixel_norm else nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        x = self.dense(self.normalize(z)).unflatten(1, (self.out_channels, 4, 4))
        return self.normalize(self.conv(self.normalize(x)))


class Block(nn.Module):
    """Features (N, in_channels, H, W) to features (N, out_channels, 2 H, 2 W)."""

    def __init__(self, in_channels: int, out_channels: int, config: GeneratorConfig) -> None:
        super().__init__()
        act, taps = config.activation, config.resample_filter
        self.conv0 = EqualizedConv2d(in_channels, out_channels, 3, act=act, up=2, resample_filter=taps)
        self.conv1 = EqualizedConv2d(out_channels, out_channels, 3, act=act)
        self.normalize = PixelNorm() if config.pixel_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(self.conv1(self.normalize(self.conv0(x))))


class Generator(nn.Module):
    """Latents to images, by blocks that double the resolution and take part one after the other.

    (Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and Variation", 2018.)

    Args:
        config: the shape of it.

    Attributes:
        growth: which blocks take part; all, at first. :class:`GrowthSchedule` says what it shall be when.
        b4, b8, ...: the blocks; ``rgb4``, ``rgb8``, ... make colours of their features.

    >>> generator = Generator(GeneratorConfig(img_resolution=64))
    >>> generator.growth = Growth(16, alpha=0.3)
    >>> images = generator(torch.randn(4, 512))  # (4, 3, 16, 16)
    """

    resample_filter: Tensor

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = GeneratorConfig() if config is None else config
        self.z_dim, self.c_dim = config.z_dim, 0
        self.img_resolution, self.img_channels = config.img_resolution, config.img_channels
        self.growth = Growth(config.img_resolution)
        self.register_buffer("resample_filter", setup_filter(config.resample_filter))
        in_channels = 0
        for resolution in resolutions(config.img_resolution, smallest=8):
            channels = min(config.channel_base // resolution, config.channel_max)
            block = Block(in_channels, channels, config) if in_channels else FirstBlock(channels, config)
            self.add_module(f"b{resolution}", block)
            self.add_module(f"rgb{resolution}", EqualizedConv2d(channels, config.img_channels, 1))
            in_channels = channels

    def forward(self, z: Tensor, c: None = None) -> Tensor:
        """Images for latents.

        Args:
            z: ``(N, z_dim)`` from N(0, 1).
            c: there are no labels.

        Returns:
            ``(N, img_channels, growth.resolution, growth.resolution)``, about [-1, 1].

        Raises:
            ValueError: latents of another shape, labels, or a growth beyond the network.
        """
        op = "pggan.Generator"
        if c is not None:
            raise ValueError(f"fastvfx.{op}: expected c to be None, as there are no labels, got {type(c).__name__}")
        _check.is_float(op, z=z)
        _check.has_shape(op, "z", z, (len(z), self.z_dim), lambda: f"(N, {self.z_dim})")
        growth = self.growth.checked(self.img_resolution)
        x = z.to(next(self.parameters()).dtype)
        below = x
        for resolution in resolutions(growth.resolution, smallest=4):
            below, x = x, self.get_submodule(f"b{resolution}")(x)
        image = self.get_submodule(f"rgb{growth.resolution}")(x)
        if growth.fades:
            coarse = self.get_submodule(f"rgb{growth.resolution // 2}")(below)
            image = torch.lerp(upsample2d(coarse, self.resample_filter), image, growth.alpha)
        return image
