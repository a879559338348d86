"""Layers of StyleGAN's generators and discriminators as modules, named and shaped as in stylegan2-ada-pytorch.

Weights are drawn from N(0, 1) and scaled when they are used, so that Adam's steps are as large for every layer
("equalised learning rate", Karras et al., "Progressive Growing of GANs", 2018, section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional.bias_act import bias_act, checked_activation
from .functional.conv2d_resample import conv2d_resample
from .functional.modulated_conv2d import modulated_conv2d
from .functional.upfirdn2d import setup_filter

#: Where a layer's noise comes from: drawn in every call, drawn once when the layer was made, or nowhere.
NoiseMode = Literal["random", "const", "none"]

#: The filter of StyleGAN2's up- and downsampling.
RESAMPLE_FILTER = (1, 3, 3, 1)


def _activation_gain(owner: str, act: str) -> float:
    return checked_activation(owner, act, None, None, None)[1]


def _padding(owner: str, kernel_size: int) -> int:
    """What keeps the size of the image."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"fastvfx.{owner}: expected an odd kernel_size, got {kernel_size}")
    return kernel_size // 2


class EqualizedLinear(nn.Module):
    """``act(x W^T + b)`` with an equalised learning rate.

    Args:
        in_features, out_features: sizes of the last dimension.
        bias: learn a bias.
        act: activation of :func:`fastvfx.bias_act`, with its default gain.
        lr_multiplier: factor of the learning rate; what the layer computes at first does not depend on it.
        bias_init: first value of the bias.

    Attributes:
        weight: (out_features, in_features), used times ``lr_multiplier / sqrt(in_features)``.
        bias: (out_features,) or ``None``, used times ``lr_multiplier``.

    >>> fastvfx.EqualizedLinear(512, 512, act="lrelu", lr_multiplier=0.01)(torch.randn(4, 512))  # (4, 512)
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        act: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        _activation_gain("EqualizedLinear", act)
        self.act = act
        self.lr_multiplier = lr_multiplier
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), in the dtype of ``x``."""
        weight: Tensor = self.weight
        if x.dtype is weight.dtype and x.numel() < weight.numel():
            x = x * self.weight_gain  # the smaller of the two takes the factor
        else:
            weight = (weight * self.weight_gain).to(x.dtype)
        bias = None if self.bias is None else (self.bias * self.lr_multiplier).to(x.dtype)
        if self.act == "linear":
            return F.linear(x, weight, bias)
        return bias_act(F.linear(x, weight), bias, dim=-1, act=self.act)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, bias={self.bias is not None}, act={self.act}"


class EqualizedConv2d(nn.Module):
    """Convolution with an equalised learning rate, resampling, bias and activation, of the same image size otherwise.

    Args:
        in_channels, out_channels: of the images.
        kernel_size: odd.
        bias: learn a bias.
        act: activation of :func:`fastvfx.bias_act`.
        up, down: factors, as in :func:`fastvfx.conv2d_resample`.
        resample_filter: taps of the filter for both.
        clamp: the output is limited to [-clamp, clamp] times the ``gain`` of the call.

    Attributes:
        weight: (out_channels, in_channels, kernel_size, kernel_size), used over ``sqrt(in_channels kernel_size^2)``.
        bias: (out_channels,) or ``None``.
        resample_filter: buffer.

    >>> fastvfx.EqualizedConv2d(64, 128, 3, act="lrelu", down=2)(torch.randn(4, 64, 32, 32))  # (4, 128, 16, 16)
    """

    bias: nn.Parameter | None
    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        act: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = RESAMPLE_FILTER,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.act, self.act_gain = act, _activation_gain("EqualizedConv2d", act)
        self.up, self.down, self.clamp = up, down, clamp
        self.padding = _padding("EqualizedConv2d", kernel_size)
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("resample_filter", setup_filter(resample_filter))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H up / down, W up / down); ``gain`` multiplies the output."""
        y = conv2d_resample(
            x,
            self.weight * self.weight_gain,
            self.resample_filter,
            up=self.up,
            down=self.down,
            padding=self.padding,
            flip_weight=self.up == 1,
        )
        clamp = None if self.clamp is None else self.clamp * gain
        return bias_act(y, self.bias, act=self.act, gain=self.act_gain * gain, clamp=clamp)

    def extra_repr(self) -> str:
        return (
            f"{self.weight.shape[1]}, {self.weight.shape[0]}, kernel_size={self.weight.shape[2]}, "
            f"bias={self.bias is not None}, act={self.act}, up={self.up}, down={self.down}, clamp={self.clamp}"
        )


class ModulatedConv2d(nn.Module):
    """:func:`fastvfx.modulated_conv2d` with its weights and the affine map from latents to styles.

    Args:
        in_channels, out_channels: of the images.
        kernel_size: odd; the image keeps its size but for ``up`` and ``down``.
        w_dim: size of a latent.
        up, down: factors.
        resample_filter: taps of the filter for both; ``None`` is 1.
        demodulate: divide by the norm of the scaled weights. Without it the weights are used over
            ``sqrt(in_channels kernel_size^2)``.

    Attributes:
        affine: :class:`EqualizedLinear` (w_dim, in_channels), styles of 1 at first.
        weight: (out_channels, in_channels, kernel_size, kernel_size). Layers that upsample convolve with it, others
            correlate, as in StyleGAN2's PyTorch release.
        resample_filter: buffer, or ``None``.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        w_dim: int,
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] | None = RESAMPLE_FILTER,
        demodulate: bool = True,
    ) -> None:
        super().__init__()
        self.up, self.down, self.demodulate = up, down, demodulate
        self.padding = _padding(type(self).__name__, kernel_size)
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.affine = EqualizedLinear(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.register_buffer("resample_filter", None if resample_filter is None else setup_filter(resample_filter))

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        *,
        noise: Tensor | None = None,
        bias: Tensor | None = None,
        act: str = "linear",
        gain: float | None = None,
        clamp: float | None = None,
    ) -> Tensor:
        """Images (N, in_channels, H, W) and latents (N, w_dim) to (N, out_channels, H up / down, W up / down)."""
        styles = self.affine(w)  # (N, in_channels)
        if not self.demodulate:
            styles = styles * self.weight_gain
        return modulated_conv2d(
            x,
            self.weight,
            styles,
            noise=noise,
            bias=bias,
            up=self.up,
            down=self.down,
            padding=self.padding,
            resample_filter=self.resample_filter,
            demodulate=self.demodulate,
            flip_weight=self.up == 1,
            act=act,
            gain=gain,
            clamp=clamp,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.weight.shape[1]}, {self.weight.shape[0]}, kernel_size={self.weight.shape[2]}, "
            f"up={self.up}, down={self.down}, demodulate={self.demodulate}"
        )


class SynthesisLayer(ModulatedConv2d):
    """A layer of StyleGAN2's synthesis network: modulated convolution, noise, bias and activation.

    Args:
        in_channels, out_channels, w_dim, kernel_size, up, resample_filter: as in :class:`ModulatedConv2d`.
        resolution: of the output, which noise of mode ``"const"`` is drawn for.
        use_noise: add noise, times the learned ``noise_strength``, which is 0 at first.
        act: activation of :func:`fastvfx.bias_act`.
        clamp: the output is limited to [-clamp, clamp] times the ``gain`` of the call.

    >>> layer = fastvfx.SynthesisLayer(512, 256, w_dim=512, resolution=64, up=2, clamp=256)
    >>> layer(torch.randn(4, 512, 32, 32), torch.randn(4, 512))  # (4, 256, 64, 64)
    """

    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        act: str = "lrelu",
        resample_filter: Sequence[float] = RESAMPLE_FILTER,
        clamp: float | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, w_dim, up=up, resample_filter=resample_filter)
        self.act, self.act_gain = act, _activation_gain("SynthesisLayer", act)
        self.clamp = clamp
        self.resolution = resolution
        self.use_noise = use_noise
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(  # type: ignore[override]  # its latents come first too; noise and gain are the layer's own
        self, x: Tensor, w: Tensor, noise_mode: NoiseMode = "random", gain: float = 1.0
    ) -> Tensor:
        """Images (N, in_channels, H, W) and latents (N, w_dim) to (N, out_channels, H up, W up), times ``gain``."""
        clamp = None if self.clamp is None else self.clamp * gain
        return super().forward(
            x,
            w,
            noise=self._noise(x, noise_mode),
            bias=self.bias,
            act=self.act,
            gain=self.act_gain * gain,
            clamp=clamp,
        )

    def _noise(self, x: Tensor, mode: NoiseMode) -> Tensor | None:
        """(N, 1, H', W'), (H', W') or nothing."""
        if mode not in get_args(NoiseMode):
            names = ", ".join(get_args(NoiseMode))
            raise ValueError(f"fastvfx.SynthesisLayer: expected noise_mode to be one of {names}, got {mode!r}")
        if not self.use_noise or mode == "none":
            return None
        if mode == "const":
            return self.noise_const * self.noise_strength
        n, _, height, width = x.shape
        noise = torch.randn(n, 1, height * self.up, width * self.up, device=x.device, dtype=self.noise_strength.dtype)
        return noise * self.noise_strength

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, resolution={self.resolution}, act={self.act}, clamp={self.clamp}"


class ToRGB(ModulatedConv2d):
    """From features to colours: a modulated convolution without demodulation, a bias and a clamp.

    >>> fastvfx.ToRGB(64, 3, w_dim=512)(torch.randn(4, 64, 256, 256), torch.randn(4, 512))  # (4, 3, 256, 256)
    """

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, kernel_size: int = 1, clamp: float | None = None
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, w_dim, resample_filter=None, demodulate=False)
        self.clamp = clamp
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:  # type: ignore[override]  # nothing to choose
        """Images (N, in_channels, H, W) and latents (N, w_dim) to (N, out_channels, H, W)."""
        return super().forward(x, w, bias=self.bias, clamp=self.clamp)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, clamp={self.clamp}"
