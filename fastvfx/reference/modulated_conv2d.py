"""Modulated convolution in PyTorch, differentiable to any order, without a weight per image."""

from __future__ import annotations

import torch
from torch import Tensor

from .bias_act import bias_act
from .conv2d_resample import conv2d_resample
from .upfirdn2d import Padding

EPS = 1e-8  # below the square root of the demodulation, as in StyleGAN2


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    bias: Tensor | None,
    up: int,
    down: int,
    padding: Padding,
    resample_filter: Tensor | None,
    demodulate: bool,
    flip_weight: bool,
    normalize: bool,
    input_gain: Tensor | None,
    act: str,
    alpha: float | None,
    gain: float | None,
    clamp: float | None,
) -> Tensor:
    """The maths of :func:`fastvfx.functional.modulated_conv2d`, in float32 for 16-bit ``x``."""
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    wide, w, s = x.to(dtype), weight.to(dtype), styles.to(dtype)
    if normalize:
        w = w * w.square().mean([1, 2, 3], keepdim=True).rsqrt()
        s = s * s.square().mean().rsqrt()
    d = (s.square() @ w.square().sum([2, 3]).T + EPS).rsqrt() if demodulate else None  # (N, O)
    if input_gain is not None:
        s = s * input_gain.to(dtype)
    y = conv2d_resample(
        wide * s[:, :, None, None], w, resample_filter, up, down, padding, 1, flip_weight, flip_filter=False
    )
    if d is not None:
        y = y * d[:, :, None, None]
    if noise is not None:
        y = y + noise.to(dtype)
    return bias_act(y, bias, 1, act, alpha, gain, clamp).to(x.dtype)
