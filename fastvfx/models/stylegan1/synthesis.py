"""The synthesis network: from styles to images, a block for each resolution, which take part one after the other."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from ... import _check
from ...convolution import EqualizedConv2d, EqualizedLinear, NoiseMode
from ...functional import bias_act, setup_filter, upsample2d
from ..pggan import Growth
from ..stylegan2.config import resolutions
from .config import SynthesisConfig

#: Added to variances.
EPS = 1e-8


def adaptive_instance_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    r"""Features of each image normalised channel by channel, then scaled and shifted by its style.

    .. math:: y_{nc} = s_{nc} (x_{nc} - \mu_{nc}) / \sqrt{\sigma_{nc}^2 + 10^{-8}} + t_{nc}

    with mean and (biased) variance over pixels (Huang and Belongie, 2017; StyleGAN, equation 1).

    Args:
        x: ``(N, C, H, W)``.
        scale, shift: s and t, ``(N, C)``.

    Returns:
        ``(N, C, H, W)``.
    """
    variance, mean = torch.var_mean(x, (2, 3), correction=0)  # (N, C)
    factor = scale * (variance + EPS).rsqrt()
    return torch.addcmul((shift - mean * factor)[:, :, None, None], x, factor[:, :, None, None])


class StyledLayer(nn.Module):
    """What follows a convolution: noise, bias, activation, and the style.

    Args:
        channels: of the features.
        w_dim: dimension of styles.
        resolution: of the features.
        config: of the network.

    Attributes:
        noise_strength: (channels,), 0 at first.
        affine: :class:`fastvfx.EqualizedLinear` (w_dim, 2 channels), from a style to scales, less 1, and shifts.
    """

    noise_const: Tensor

    def __init__(self, channels: int, w_dim: int, resolution: int, config: SynthesisConfig) -> None:
        super().__init__()
        self.config = config
        self.bias = nn.Parameter(torch.zeros(channels))
        self.affine = EqualizedLinear(w_dim, 2 * channels)
        if config.use_noise:
            self.register_buffer("noise_const", torch.randn(1, 1, resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, w: Tensor, noise_mode: NoiseMode) -> Tensor:
        """Features (N, channels, H, W) and a style (N, w_dim) for each image to features."""
        if self.config.use_noise and noise_mode != "none":
            n, _, height, width = x.shape
            random = noise_mode == "random"
            noise = x.new_empty((n, 1, height, width)).normal_() if random else self.noise_const.to(x.dtype)
            x = torch.addcmul(x, noise, self.noise_strength[:, None, None])
        x = bias_act(x, self.bias, act=self.config.activation)
        scale, shift = self.affine(w).chunk(2, 1)  # (N, channels) each
        return adaptive_instance_norm(x, scale + 1, shift)


class SynthesisBlock(nn.Module):
    """All layers of one resolution.

    Args:
        in_channels: of the features from the block below; 0 makes this the first, which starts from a constant.
        out_channels: of the features.
        w_dim: dimension of styles.
        resolution: of the result.
        config: of the network.
    """

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, resolution: int, config: SynthesisConfig
    ) -> None:
        super().__init__()
        if in_channels == 0:
            self.const = nn.Parameter(torch.ones(1, out_channels, resolution, resolution))
        else:
            taps = config.resample_filter
            self.conv0 = EqualizedConv2d(in_channels, out_channels, 3, bias=False, up=2, resample_filter=taps)
        self.style0 = StyledLayer(out_channels, w_dim, resolution, config)
        self.conv1 = EqualizedConv2d(out_channels, out_channels, 3, bias=False)
        self.style1 = StyledLayer(out_channels, w_dim, resolution, config)

    def forward(self, x: Tensor | None, ws: Tensor, noise_mode: NoiseMode) -> Tensor:
        """Features (N, in_channels, r / 2, r / 2), ``None`` for the first block, and styles (N, 2, w_dim) to features
        (N, out_channels, r, r)."""
        x = self.const.expand(len(ws), -1, -1, -1) if x is None else self.conv0(x)
        x = self.style0(x, ws[:, 0], noise_mode)
        return self.style1(self.conv1(x), ws[:, 1], noise_mode)


class SynthesisNetwork(nn.Module):
    """Styles to images.

    Args:
        w_dim: dimension of styles.
        img_resolution: a power of two from 8.
        img_channels: of the images.
        config: everything else.

    Attributes:
        growth: which blocks take part; all, at first.
        num_ws: how many styles an image takes, two for each resolution. Those of blocks to come are not looked at.
        b4, b8, ...: the blocks; ``rgb4``, ``rgb8``, ... make colours of their features.
    """

    resample_filter: Tensor

    def __init__(
        self, w_dim: int, img_resolution: int, img_channels: int, config: SynthesisConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config = SynthesisConfig() if config is None else config
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.growth = Growth(img_resolution)
        self.register_buffer("resample_filter", setup_filter((1, 1)))  # of the image below, as the paper's program does
        all_resolutions = resolutions(img_resolution, smallest=8)
        self.num_ws = 2 * len(all_resolutions)
        in_channels = 0
        for resolution in all_resolutions:
            channels = min(config.channel_base // resolution, config.channel_max)
            self.add_module(f"b{resolution}", SynthesisBlock(in_channels, channels, w_dim, resolution, config))
            self.add_module(f"rgb{resolution}", EqualizedConv2d(channels, img_channels, 1))
            in_channels = channels

    def forward(
        self, ws: Tensor, noise_mode: NoiseMode = "random", update_emas: bool = False, force_fp32: bool = False
    ) -> Tensor:
        """Images for styles.

        Args:
            ws: ``(N, num_ws, w_dim)``.
            noise_mode: ``"random"`` (from torch's generator), ``"const"`` (the same for every image) or ``"none"``.
            update_emas, force_fp32: as later StyleGANs take them; this one has no averages and no 16-bit layers.

        Returns:
            ``(N, img_channels, growth.resolution, growth.resolution)``, about [-1, 1], in the dtype of the weights.

        Raises:
            ValueError: styles of another shape, an unknown ``noise_mode``, or a growth beyond the network.
        """
        op = "stylegan1.SynthesisNetwork"
        _check.is_float(op, ws=ws)
        _check.has_shape(op, "ws", ws, (len(ws), self.num_ws, self.w_dim), lambda: f"(N, {self.num_ws}, {self.w_dim})")
        if noise_mode not in get_args(NoiseMode):
            names = ", ".join(get_args(NoiseMode))
            raise ValueError(f"fastvfx.{op}: expected noise_mode to be one of {names}, got {noise_mode!r}")
        growth = self.growth.checked(self.img_resolution)
        ws = ws.to(next(self.parameters()).dtype)
        x = below = None
        for k, resolution in enumerate(resolutions(growth.resolution, smallest=4)):
            below, x = x, self.get_submodule(f"b{resolution}")(x, ws[:, 2 * k : 2 * k + 2], noise_mode)
        image = self.get_submodule(f"rgb{growth.resolution}")(x)
        if growth.fades:
            coarse = self.get_submodule(f"rgb{growth.resolution // 2}")(below)
            image = torch.lerp(upsample2d(coarse, self.resample_filter), image, growth.alpha)
        return image

    def extra_repr(self) -> str:
        return f"img_resolution={self.img_resolution}, img_channels={self.img_channels}, num_ws={self.num_ws}"
