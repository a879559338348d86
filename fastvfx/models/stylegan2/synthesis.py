"""The synthesis network: from styles to images, a block for each resolution."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ... import _check
from ...convolution import EqualizedConv2d, NoiseMode, SynthesisLayer, ToRGB
from ...functional import setup_filter, upsample2d
from .._precision import block_dtype
from .config import SynthesisConfig, half_above, resolutions


class SynthesisBlock(nn.Module):
    """All layers of one resolution.

    Args:
        in_channels: of the features from the block below; 0 makes this the first, which starts from a constant.
        out_channels: of the features.
        img_channels: of the image.
        w_dim: dimension of styles.
        resolution: of the result.
        is_last: the image leaves here, whatever the architecture.
        half: compute in ``config.half_dtype``.
        config: of the network.

    Attributes:
        num_conv, num_torgb: how many layers take a style for features and for colours.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_channels: int,
        w_dim: int,
        resolution: int,
        is_last: bool,
        half: bool,
        config: SynthesisConfig,
    ) -> None:
        super().__init__()
        self.in_channels, self.img_channels = in_channels, img_channels
        self.w_dim, self.resolution, self.config = w_dim, resolution, config
        self.half_dtype = config.half_dtype if half else None
        self.residual = config.architecture == "resnet" and in_channels > 0
        self.register_buffer("resample_filter", setup_filter(config.resample_filter))
        self.num_conv, self.num_torgb = 1, int(is_last or config.architecture == "skip")
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = self._layer(in_channels, out_channels, up=2, resample_filter=config.resample_filter)
            self.num_conv += 1
        self.conv1 = self._layer(out_channels, out_channels)
        if self.num_torgb:
            self.torgb = ToRGB(out_channels, img_channels, w_dim, clamp=config.conv_clamp)
        if self.residual:
            self.skip = EqualizedConv2d(
                in_channels, out_channels, 1, bias=False, up=2, resample_filter=config.resample_filter
            )

    def _layer(self, in_channels: int, out_channels: int, **resampling: Any) -> SynthesisLayer:
        config = self.config
        return SynthesisLayer(
            in_channels,
            out_channels,
            self.w_dim,
            self.resolution,
            config.kernel_size,
            use_noise=config.use_noise,
            act=config.activation,
            clamp=config.conv_clamp,
            **resampling,
        )

    def forward(
        self, x: Tensor | None, img: Tensor | None, ws: Tensor, noise_mode: NoiseMode, force_fp32: bool
    ) -> tuple[Tensor, Tensor | None]:
        """One resolution up.

        Args:
            x: features ``(N, in_channels, resolution / 2, resolution / 2)``, ``None`` for the first block.
            img: the image so far, as large, in full precision; ``None`` where there is none yet.
            ws: styles ``(N, num_conv + num_torgb, w_dim)``.
            noise_mode, force_fp32: of :meth:`SynthesisNetwork.forward`.

        Returns:
            features and image at ``resolution``.
        """
        dtype = block_dtype(self.conv1.weight, self.half_dtype, force_fp32)
        *conv_ws, last_w = ws.unbind(1)
        if not self.num_torgb:
            conv_ws.append(last_w)
        # The sum of a residual block keeps the variance that its two halves have.
        gain = math.sqrt(0.5) if self.residual else 1.0
        if self.in_channels == 0:
            # Layers keep the layout they are given, and transposed convolutions are faster in this one.
            x = self.const.to(dtype).expand(ws.shape[0], -1, -1, -1).contiguous(memory_format=torch.channels_last)
        else:
            below = cast(Tensor, x).to(dtype)
            x = self.conv0(below, conv_ws[0], noise_mode)
        x = self.conv1(x, conv_ws[-1], noise_mode, gain)
        if self.residual:
            x = x + self.skip(below, gain)
        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.num_torgb:
            colors = self.torgb(x, last_w).to(self.torgb.weight.dtype)
            img = colors if img is None else img + colors
        return x, img

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, half_dtype={self.half_dtype}"


class SynthesisNetwork(nn.Module):
    """Styles to images (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020).

    Args:
        w_dim: dimension of styles.
        img_resolution: a power of two from 4.
        img_channels: of the images.
        config: everything else.

    Attributes:
        num_ws: how many styles an image takes.
        block_resolutions: 4, 8, ..., ``img_resolution``; ``b4``, ``b8``, ... are the blocks.
    """

    def __init__(
        self, w_dim: int, img_resolution: int, img_channels: int, config: SynthesisConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config = SynthesisConfig() if config is None else config
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.block_resolutions = resolutions(img_resolution, smallest=4)
        half_from = half_above(img_resolution, config.num_half_res)
        self.num_ws = 0
        in_channels = 0
        for resolution in self.block_resolutions:
            out_channels = min(config.channel_base // resolution, config.channel_max)
            is_last = resolution == img_resolution
            block = SynthesisBlock(
                in_channels, out_channels, img_channels, w_dim, resolution, is_last, resolution >= half_from, config
            )
            self.add_module(f"b{resolution}", block)
            # The style that makes colours is also that of the next block's first layer.
            self.num_ws += block.num_conv + (block.num_torgb if is_last else 0)
            in_channels = out_channels

    def blocks(self) -> list[SynthesisBlock]:
        """From the lowest resolution."""
        return [cast(SynthesisBlock, self.get_submodule(f"b{k}")) for k in self.block_resolutions]

    def forward(
        self, ws: Tensor, noise_mode: NoiseMode = "random", update_emas: bool = False, force_fp32: bool = False
    ) -> Tensor:
        """Images for styles.

        Args:
            ws: ``(N, num_ws, w_dim)``.
            noise_mode: ``"random"`` (from torch's generator), ``"const"`` (the same for every image) or ``"none"``.
            update_emas: for StyleGAN3, whose synthesis has averages; this one has none.
            force_fp32: compute everything in the dtype of the weights.

        Returns:
            ``(N, img_channels, img_resolution, img_resolution)``, about [-1, 1], in the dtype of the weights.

        Raises:
            ValueError: styles of another shape, or an unknown ``noise_mode``.
        """
        op = "stylegan2.SynthesisNetwork"
        _check.is_float(op, ws=ws)
        _check.has_shape(op, "ws", ws, (len(ws), self.num_ws, self.w_dim), lambda: f"(N, {self.num_ws}, {self.w_dim})")
        x = img = None
        first = 0
        for block in self.blocks():
            ws_here = ws[:, first : first + block.num_conv + block.num_torgb]
            x, img = block(x, img, ws_here.to(block.conv1.weight.dtype), noise_mode, force_fp32)
            first += block.num_conv
        return cast(Tensor, img).contiguous()

    def extra_repr(self) -> str:
        return f"img_resolution={self.img_resolution}, img_channels={self.img_channels}, num_ws={self.num_ws}"
