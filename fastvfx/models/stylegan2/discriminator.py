"""The discriminator: from images to one logit."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ... import _check
from ...convolution import EqualizedConv2d, EqualizedLinear
from ...functional import downsample2d, setup_filter
from ...normalization import MinibatchStddev
from .._precision import block_dtype
from .config import DiscriminatorConfig, half_above, resolutions
from .mapping import MappingNetwork


class DiscriminatorBlock(nn.Module):
    """All layers of one resolution, down to half of it.

    Args:
        in_channels: of the features from the block above; 0 makes this the first, which starts from the image.
        tmp_channels, out_channels: within the block and behind it.
        resolution: of the input.
        first_layer: number of layers above this block, for ``config.freeze_layers``.
        half: compute in ``config.half_dtype``.
        config: of the network.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        tmp_channels: int,
        out_channels: int,
        resolution: int,
        first_layer: int,
        half: bool,
        config: DiscriminatorConfig,
    ) -> None:
        super().__init__()
        self.resolution, self.architecture = resolution, config.architecture
        self.half_dtype = config.half_dtype if half else None
        self.register_buffer("resample_filter", setup_filter(config.resample_filter))
        act, clamp, taps = config.activation, config.conv_clamp, config.resample_filter
        self.has_fromrgb = in_channels == 0 or config.architecture == "skip"
        if self.has_fromrgb:
            self.fromrgb = EqualizedConv2d(config.img_channels, tmp_channels, 1, act=act, clamp=clamp)
        self.conv0 = EqualizedConv2d(tmp_channels, tmp_channels, 3, act=act, clamp=clamp)
        self.conv1 = EqualizedConv2d(tmp_channels, out_channels, 3, act=act, down=2, resample_filter=taps, clamp=clamp)
        if config.architecture == "resnet":
            self.skip = EqualizedConv2d(tmp_channels, out_channels, 1, bias=False, down=2, resample_filter=taps)
        layers = [layer for layer in self.children() if isinstance(layer, EqualizedConv2d)]
        self.num_layers = len(layers)
        for layer in layers[: max(config.freeze_layers - first_layer, 0)]:
            freeze(layer)

    def forward(self, x: Tensor | None, img: Tensor | None, force_fp32: bool) -> tuple[Tensor, Tensor | None]:
        """One resolution down.

        Args:
            x: features ``(N, in_channels, resolution, resolution)``, ``None`` for the first block.
            img: the image, where it is still needed.
            force_fp32: of :meth:`Discriminator.forward`.

        Returns:
            features at half the resolution, and the image if the block below needs it.
        """
        dtype = block_dtype(self.conv0.weight, self.half_dtype, force_fp32)
        if x is not None:
            x = x.to(dtype)
        if self.has_fromrgb:
            img = cast(Tensor, img).to(dtype)
            features = self.fromrgb(img)
            x = features if x is None else x + features
            img = downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture == "resnet":
            gain = math.sqrt(0.5)
            return self.skip(x, gain) + self.conv1(self.conv0(x), gain), img
        return self.conv1(self.conv0(x)), img

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, half_dtype={self.half_dtype}"


def freeze(layer: nn.Module) -> None:
    """Turn the parameters of one layer into buffers: the same names, unseen by optimisers and ``requires_grad_``."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        delattr(layer, name)
        layer.register_buffer(name, parameter.detach())


class DiscriminatorEpilogue(nn.Module):
    """From features at 4x4 to a logit; with labels, the projection of features on their embedding.

    Args:
        in_channels: of the features.
        cmap_dim: dimension of embedded labels, 0 for none.
        config: of the network.
    """

    def __init__(self, in_channels: int, cmap_dim: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.cmap_dim, self.architecture = cmap_dim, config.architecture
        act = config.activation
        if config.architecture == "skip":
            self.fromrgb = EqualizedConv2d(config.img_channels, in_channels, 1, act=act)
        extra = config.mbstd_num_channels
        self.mbstd = MinibatchStddev(config.mbstd_group_size, extra) if extra > 0 else None
        self.conv = EqualizedConv2d(in_channels + extra, in_channels, 3, act=act, clamp=config.conv_clamp)
        self.fc = EqualizedLinear(in_channels * 4 * 4, in_channels, act=act)
        self.out = EqualizedLinear(in_channels, cmap_dim if cmap_dim > 0 else 1)

    def forward(self, x: Tensor, img: Tensor | None, cmap: Tensor | None) -> Tensor:
        """Features (N, in_channels, 4, 4), the image at 4x4 if needed, embedded labels (N, cmap_dim), to (N, 1)."""
        dtype = self.fc.weight.dtype
        x = x.to(dtype)
        if self.architecture == "skip":
            x = x + self.fromrgb(cast(Tensor, img).to(dtype))
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if cmap is not None:
            x = (x * cmap).sum(1, keepdim=True) / math.sqrt(self.cmap_dim)
        return x


class Discriminator(nn.Module):
    """StyleGAN2's discriminator (Karras et al. 2020), StyleGAN3's too.

    Parameters and buffers have the names and shapes of NVIDIA's PyTorch release.

    Args:
        config: the shape of it.

    >>> discriminator = Discriminator(DiscriminatorConfig(img_resolution=64))
    >>> logits = discriminator(torch.rand(4, 3, 64, 64) * 2 - 1)  # (4, 1)
    """

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = DiscriminatorConfig() if config is None else config
        self.c_dim, self.img_resolution, self.img_channels = config.c_dim, config.img_resolution, config.img_channels
        self.block_resolutions = resolutions(config.img_resolution, smallest=8)[:0:-1]
        half_from = half_above(config.img_resolution, config.num_half_res)
        first_layer = in_channels = 0
        for resolution in self.block_resolutions:
            block = DiscriminatorBlock(
                in_channels,
                self._channels(resolution),
                self._channels(resolution // 2),
                resolution,
                first_layer,
                resolution >= half_from,
                config,
            )
            self.add_module(f"b{resolution}", block)
            first_layer += block.num_layers
            in_channels = self._channels(resolution // 2)
        cmap_dim = 0
        if config.c_dim > 0:
            cmap_dim = in_channels if config.cmap_dim is None else config.cmap_dim
            self.mapping = MappingNetwork(0, config.c_dim, cmap_dim, None, config.mapping)
        self.b4 = DiscriminatorEpilogue(in_channels, cmap_dim, config)

    def _channels(self, resolution: int) -> int:
        return min(self.config.channel_base // resolution, self.config.channel_max)

    def blocks(self) -> list[DiscriminatorBlock]:
        """From the highest resolution; the epilogue, ``b4``, is none of them."""
        return [cast(DiscriminatorBlock, self.get_submodule(f"b{k}")) for k in self.block_resolutions]

    def forward(self, img: Tensor, c: Tensor | None = None, force_fp32: bool = False) -> Tensor:
        """Logits for images: the higher, the more real.

        Args:
            img: ``(N, img_channels, img_resolution, img_resolution)``; N a multiple of ``mbstd_group_size``, or below.
            c: labels ``(N, c_dim)``; ignored if ``c_dim`` is 0.
            force_fp32: compute everything in the dtype of the weights.

        Returns:
            ``(N, 1)``, in the dtype of the weights.

        Raises:
            ValueError: shapes do not fit.
        """
        op = "stylegan2.Discriminator"
        _check.is_float(op, img=img)
        size, channels = self.img_resolution, self.img_channels
        _check.has_shape(op, "img", img, (len(img), channels, size, size), lambda: f"(N, {channels}, {size}, {size})")
        x = None
        # Layers keep the layout they are given; filters of small images and 16-bit convolutions are faster in this one.
        rest: Tensor | None = img.to(self.b4.fc.weight.dtype).contiguous(memory_format=torch.channels_last)
        for block in self.blocks():
            x, rest = block(x, rest, force_fp32)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return self.b4(x, rest, cmap)

    def extra_repr(self) -> str:
        return f"c_dim={self.c_dim}, img_resolution={self.img_resolution}, img_channels={self.img_channels}"
