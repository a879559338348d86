"""The growing discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import _check
from ...convolution import EqualizedConv2d, EqualizedLinear
from ...functional import downsample2d, setup_filter
from ...normalization import MinibatchStddev
from ..stylegan2.config import resolutions
from .config import DiscriminatorConfig
from .growth import Growth


class Block(nn.Module):
    """Features (N, in_channels, H, W) to features (N, out_channels, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        act, taps = config.activation, config.resample_filter
        self.conv0 = EqualizedConv2d(in_channels, in_channels, 3, act=act)
        self.conv1 = EqualizedConv2d(in_channels, out_channels, 3, act=act, down=2, resample_filter=taps)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(self.conv0(x))


class LastBlock(nn.Module):
    """Features (N, in_channels, 4, 4) to logits (N, 1)."""

    def __init__(self, in_channels: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        act, extra = config.activation, config.mbstd_num_channels
        self.mbstd = MinibatchStddev(config.mbstd_group_size, extra) if extra > 0 else nn.Identity()
        self.conv = EqualizedConv2d(in_channels + extra, in_channels, 3, act=act)
        self.dense = EqualizedLinear(in_channels * 4 * 4, in_channels, act=act)
        self.out = EqualizedLinear(in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dense(self.conv(self.mbstd(x)).flatten(1)))


class Discriminator(nn.Module):
    """Images to logits, the mirror image of :class:`Generator` (Karras et al. 2018).

    Args:
        config: the shape of it.

    Attributes:
        growth: which blocks take part; all, at first. The same as the generator's.
        b4, b8, ...: the blocks; ``rgb4``, ``rgb8``, ... make features of colours.
    """

    resample_filter: Tensor

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = DiscriminatorConfig() if config is None else config
        self.c_dim, self.img_resolution, self.img_channels = 0, config.img_resolution, config.img_channels
        self.growth = Growth(config.img_resolution)
        self.register_buffer("resample_filter", setup_filter(config.resample_filter))
        out_channels = 0
        for resolution in resolutions(config.img_resolution, smallest=8):
            channels = min(config.channel_base // resolution, config.channel_max)
            block = Block(channels, out_channels, config) if out_channels else LastBlock(channels, config)
            self.add_module(f"b{resolution}", block)
            self.add_module(
                f"rgb{resolution}", EqualizedConv2d(config.img_channels, channels, 1, act=config.activation)
            )
            out_channels = channels

    def forward(self, img: Tensor, c: None = None) -> Tensor:
        """Logits for images: the higher, the more real.

        Args:
            img: ``(N, img_channels, growth.resolution, growth.resolution)``, photographs by :meth:`Growth.images`.
            c: there are no labels.

        Returns:
            ``(N, 1)``.

        Raises:
            ValueError: images of another shape, labels, or a growth beyond the network.
        """
        op = "pggan.Discriminator"
        if c is not None:
            raise ValueError(f"fastvfx.{op}: expected c to be None, as there are no labels, got {type(c).__name__}")
        growth = self.growth.checked(self.img_resolution)
        size, channels = growth.resolution, self.img_channels
        _check.is_float(op, img=img)
        _check.has_shape(op, "img", img, (len(img), channels, size, size), lambda: f"(N, {channels}, {size}, {size})")
        img = img.to(next(self.parameters()).dtype)
        x = self.get_submodule(f"rgb{size}")(img)
        *below, _ = resolutions(size, smallest=4)
        if below:
            x = self.get_submodule(f"b{size}")(x)
        if growth.fades:
            coarse = self.get_submodule(f"rgb{size // 2}")(downsample2d(img, self.resample_filter))
            x = torch.lerp(coarse, x, growth.alpha)
        for resolution in reversed(below):
            x = self.get_submodule(f"b{resolution}")(x)
        return x if below else self.get_submodule("b4")(x)
