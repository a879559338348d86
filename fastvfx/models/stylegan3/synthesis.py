"""The synthesis network: layers between band-limited signals."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ... import _check
from ...convolution import EqualizedLinear, NoiseMode
from ...functional import filtered_lrelu, modulated_conv2d
from .._precision import block_dtype
from .config import SynthesisConfig
from .filters import lowpass_filter
from .fourier import SynthesisInput
from .schedule import Signal, signals


class SynthesisLayer(nn.Module):
    """Modulated convolution and a nonlinearity between up- and downsampling, which keep it from aliasing.

    (Karras et al., "Alias-Free Generative Adversarial Networks", 2021, section 3 and figure 4b.)

    Args:
        w_dim: dimension of styles.
        before, after: the signals.
        critical: sampled so tightly that the downsampling filter is never radial.
        torgb: the last layer: a 1x1 convolution without demodulation, nonlinearity or filters.
        half: compute in ``config.half_dtype``.
        config: of the network.

    Attributes:
        affine: from w to the scales of the input channels.
        weight: ``(O, I, k, k)``.
        bias: ``(O,)``.
        magnitude_ema: a scalar buffer, the moving average of the input's mean square, which it is divided by.
        up_filter, down_filter: buffers, or ``None`` where the rate stays.
    """

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(
        self,
        w_dim: int,
        before: Signal,
        after: Signal,
        critical: bool,
        torgb: bool,
        half: bool,
        config: SynthesisConfig,
    ) -> None:
        super().__init__()
        self.before, self.after, self.torgb, self.config = before, after, torgb, config
        self.half_dtype = config.half_dtype if half else None
        self.kernel_size = 1 if torgb else config.conv_kernel
        self.affine = EqualizedLinear(w_dim, before.channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(after.channels, before.channels, self.kernel_size, self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(after.channels))
        self.register_buffer("magnitude_ema", torch.ones(()))

        between = max(before.rate, after.rate) * (1 if torgb else config.lrelu_upsampling)
        self.up, self.down = between // before.rate, between // after.rate
        up_taps, down_taps = (1 if torgb or k == 1 else config.filter_size * k for k in (self.up, self.down))
        radial = config.use_radial_filters and not critical
        up_filter = lowpass_filter(up_taps, before.cutoff, 2 * before.half_width, between)
        down_filter = lowpass_filter(down_taps, after.cutoff, 2 * after.half_width, between, radial)
        self.register_buffer("up_filter", up_filter)
        self.register_buffer("down_filter", down_filter)

        # Pixels that the downsampling reads, less what the upsampling gives; the filters take some of them.
        needed = (after.size - 1) * self.down + 1 + (up_taps - 1) + (down_taps - 1)
        missing = needed - (before.size + self.kernel_size - 1) * self.up
        # Samples lie at the centres of pixels, so that zeros go in around them and not only behind them.
        low = (missing + self.up) // 2
        self.padding = (low, missing - low, low, missing - low)

    def forward(self, x: Tensor, w: Tensor, update_emas: bool = False, force_fp32: bool = False) -> Tensor:
        """Features of the signal ``before`` and styles (N, w_dim) to features of the signal ``after``.

        Args:
            x: ``(N, before.channels, before.size, before.size)``.
            w: styles.
            update_emas: take ``x`` into the average of magnitudes.
            force_fp32: compute in the dtype of the weights.
        """
        if update_emas:
            now = x.detach().to(self.magnitude_ema.dtype).square().mean()
            self.magnitude_ema.copy_(now.lerp(self.magnitude_ema, self.config.magnitude_ema_beta))
        styles = self.affine(w)
        if self.torgb:
            styles = styles / math.sqrt(self.before.channels)
        x = modulated_conv2d(
            x.to(block_dtype(self.weight, self.half_dtype, force_fp32)),
            self.weight,
            styles,
            padding=self.kernel_size - 1,
            demodulate=not self.torgb,
            normalize=not self.torgb,
            input_gain=self.magnitude_ema.rsqrt(),
        )
        return filtered_lrelu(
            x,
            self.up_filter,
            self.down_filter,
            self.bias,
            self.up,
            self.down,
            self.padding,
            gain=1.0 if self.torgb else math.sqrt(2),
            slope=1.0 if self.torgb else 0.2,
            clamp=self.config.conv_clamp,
        )

    def extra_repr(self) -> str:
        return f"{self.before} -> {self.after}, kernel_size={self.kernel_size}, half_dtype={self.half_dtype}"


class SynthesisNetwork(nn.Module):
    """Styles to images that move as a whole (Karras et al., "Alias-Free Generative Adversarial Networks", 2021).

    Args:
        w_dim: dimension of styles.
        img_resolution: a power of two from 8.
        img_channels: of the images.
        config: everything else.

    Attributes:
        num_ws: how many styles an image takes: one for the input and one for each layer.
        input: the Fourier features.
        layer_names: names of the layers, from the lowest resolution: number, size and channels of what they make.
    """

    def __init__(
        self, w_dim: int, img_resolution: int, img_channels: int, config: SynthesisConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config = SynthesisConfig() if config is None else config
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.num_ws = config.num_layers + 2
        steps = signals(img_resolution, img_channels, config)
        self.input = SynthesisInput(w_dim, steps[0])
        self.layer_names = []
        for number, (before, after) in enumerate(zip([steps[0], *steps], steps, strict=False)):
            layer = SynthesisLayer(
                w_dim,
                before,
                after,
                critical=number >= config.num_layers - config.num_critical,
                torgb=number == config.num_layers,
                half=after.rate << config.num_half_res > img_resolution,
                config=config,
            )
            name = f"L{number}_{after.size}_{after.channels}"
            self.add_module(name, layer)
            self.layer_names.append(name)

    def layers(self) -> list[SynthesisLayer]:
        """From the lowest resolution; the last makes the colours."""
        return [cast(SynthesisLayer, self.get_submodule(name)) for name in self.layer_names]

    def forward(
        self, ws: Tensor, noise_mode: NoiseMode = "random", update_emas: bool = False, force_fp32: bool = False
    ) -> Tensor:
        """Images for styles.

        Args:
            ws: ``(N, num_ws, w_dim)``.
            noise_mode: for StyleGAN2, whose layers have noise; these have none.
            update_emas: take the features into the averages of their magnitudes.
            force_fp32: compute everything in the dtype of the weights.

        Returns:
            ``(N, img_channels, img_resolution, img_resolution)``, about [-1, 1], in the dtype of the weights.

        Raises:
            ValueError: styles of another shape.
        """
        op = "stylegan3.SynthesisNetwork"
        _check.is_float(op, ws=ws)
        _check.has_shape(op, "ws", ws, (len(ws), self.num_ws, self.w_dim), lambda: f"(N, {self.num_ws}, {self.w_dim})")
        dtype = self.input.weight.dtype
        first, *others = ws.to(dtype).unbind(1)
        x = self.input(first)
        for layer, w in zip(self.layers(), others, strict=True):
            x = layer(x, w, update_emas, force_fp32)
        return x.to(dtype) * self.config.output_scale

    def extra_repr(self) -> str:
        return f"img_resolution={self.img_resolution}, img_channels={self.img_channels}, num_ws={self.num_ws}"
