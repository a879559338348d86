"""StyleGAN's operators in plain PyTorch, as a project runs them where no plugin was built: the baseline of the races.

Not our references, which are oracles: these work in the dtype of the images, take the strided convolutions that spare
work, and make a weight for each image where that is the usual way (``fused=True``). Signatures are those of
``fastvfx.functional``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvfx import functional
from fastvfx.functional.upfirdn2d import checked_factor, checked_padding, filter_size
from fastvfx.reference.bias_act import ACTIVATIONS


def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None):
    kind = ACTIVATIONS[act]
    if b is not None:
        x = x + b.to(x.dtype).reshape([-1 if i == dim % x.dim() else 1 for i in range(x.dim())])
    x = kind.function(x, kind.alpha if alpha is None else alpha)
    gain = kind.gain if gain is None else gain
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1):
    (up_x, up_y), (down_x, down_y) = checked_factor("plain", "up", up), checked_factor("plain", "down", down)
    left, right, top, bottom = checked_padding("plain", padding)
    n, c, h, w = x.shape
    if up_x > 1 or up_y > 1:
        x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, up_x - 1, 0, 0, 0, up_y - 1]).reshape(n, c, h * up_y, w * up_x)
    x = F.pad(x, [left, right, top, bottom])  # negative pads crop
    if f is None:
        return (x * gain)[:, :, ::down_y, ::down_x]
    f = (f * gain ** (f.dim() / 2)).to(x.dtype)
    if not flip_filter:
        f = f.flip(list(range(f.dim())))
    kernel = f[None, None].repeat([c, 1] + [1] * f.dim())
    if f.dim() == 2:
        x = F.conv2d(x, kernel, groups=c)
    else:
        x = F.conv2d(F.conv2d(x, kernel.unsqueeze(2), groups=c), kernel.unsqueeze(3), groups=c)
    return x[:, :, ::down_y, ::down_x]


def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1):
    (up_x, up_y), (fh, fw) = checked_factor("plain", "up", up), filter_size(f)
    left, right, top, bottom = checked_padding("plain", padding)
    pads = [
        left + (fw + up_x - 1) // 2,
        right + (fw - up_x) // 2,
        top + (fh + up_y - 1) // 2,
        bottom + (fh - up_y) // 2,
    ]
    return upfirdn2d(x, f, up, 1, pads, flip_filter, gain * up_x * up_y)


def filtered_lrelu(
    x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=2**0.5, slope=0.2, clamp=None, flip_filter=False
):
    x = bias_act(x, b)
    x = upfirdn2d(x, fu, up, 1, padding, flip_filter, up**2)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return upfirdn2d(x, fd, 1, down, 0, flip_filter)


def conv2d_resample(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False):
    out, per_group, kh, kw = w.shape
    fh, fw = filter_size(f)
    left, right, top, bottom = checked_padding("plain", padding)
    if up > 1:
        left, right = left + (fw + up - 1) // 2, right + (fw - up) // 2
        top, bottom = top + (fh + up - 1) // 2, bottom + (fh - up) // 2
    if down > 1:
        left, right = left + (fw - down + 1) // 2, right + (fw - down) // 2
        top, bottom = top + (fh - down + 1) // 2, bottom + (fh - down) // 2
    pads = [left, right, top, bottom]
    correlated = w if flip_weight else w.flip([2, 3])

    if kw == kh == 1 and down > 1 and up == 1:
        return F.conv2d(upfirdn2d(x, f, 1, down, pads, flip_filter), correlated, groups=groups)
    if kw == kh == 1 and up > 1 and down == 1:
        return upfirdn2d(F.conv2d(x, correlated, groups=groups), f, up, 1, pads, flip_filter, up**2)
    if down > 1 and up == 1:
        return F.conv2d(upfirdn2d(x, f, 1, 1, pads, flip_filter), correlated, stride=down, groups=groups)
    if up > 1:
        transposed = w.flip([2, 3]) if flip_weight else w
        transposed = transposed.reshape(groups, out // groups, per_group, kh, kw).transpose(1, 2)
        transposed = transposed.reshape(groups * per_group, out // groups, kh, kw)
        pads = [left - (kw - 1), right - (kw - up), top - (kh - 1), bottom - (kh - up)]
        inside = [max(min(-pads[2], -pads[3]), 0), max(min(-pads[0], -pads[1]), 0)]  # (y, x)
        x = F.conv_transpose2d(x, transposed, stride=up, padding=inside, groups=groups)
        pads = [pads[0] + inside[1], pads[1] + inside[1], pads[2] + inside[0], pads[3] + inside[0]]
        x = upfirdn2d(x, f, 1, 1, pads, flip_filter, up**2)
        return upfirdn2d(x, f, 1, down, 0, flip_filter) if down > 1 else x
    if left == right and top == bottom and left >= 0 and top >= 0:
        return F.conv2d(x, correlated, padding=[top, left], groups=groups)
    return F.conv2d(F.pad(x, pads), correlated, groups=groups)


def modulated_conv2d(
    x,
    weight,
    styles,
    *,
    noise=None,
    bias=None,
    up=1,
    down=1,
    padding=0,
    resample_filter=None,
    demodulate=True,
    flip_weight=True,
    normalize=False,
    input_gain=None,
    act="linear",
    alpha=None,
    gain=None,
    clamp=None,
    fused=True,
):
    n, channels = x.shape[:2]
    out = weight.shape[0]
    if normalize:
        weight = weight * weight.square().mean([1, 2, 3], keepdim=True).rsqrt()
        styles = styles * styles.square().mean().rsqrt()
    elif x.dtype is torch.float16 and demodulate:  # keeps the products in range
        weight = weight / weight[0].numel() ** 0.5 / weight.norm(float("inf"), dim=[1, 2, 3], keepdim=True)
        styles = styles / styles.norm(float("inf"), dim=1, keepdim=True)
    resample = partial(conv2d_resample, f=resample_filter, up=up, down=down, padding=padding, flip_weight=flip_weight)
    per_image = demodulation = None
    if demodulate or fused:
        per_image = weight[None] * styles[:, None, :, None, None]  # (N, O, I, k, k)
    if demodulate:
        demodulation = (per_image.square().sum([2, 3, 4]) + 1e-8).rsqrt()  # (N, O)
    if input_gain is not None:
        per_channel = input_gain.expand(n, channels)
        styles = styles * per_channel
        if fused:
            per_image = per_image * per_channel[:, None, :, None, None]
    if not fused:
        y = resample(x * styles.to(x.dtype)[:, :, None, None], weight.to(x.dtype))
        if demodulation is not None:
            y = y * demodulation.to(y.dtype)[:, :, None, None]
    else:
        if demodulation is not None:
            per_image = per_image * demodulation[:, :, None, None, None]
        rows = per_image.reshape(n * out, channels, *weight.shape[2:]).to(x.dtype)
        y = resample(x.reshape(1, n * channels, *x.shape[2:]), rows, groups=n)
        y = y.reshape(n, out, *y.shape[2:])
    if noise is not None:
        y = y + noise.to(y.dtype)
    return bias_act(y, bias, 1, act, alpha, gain, clamp)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "bias_act": bias_act,
    "conv2d_resample": conv2d_resample,
    "filtered_lrelu": filtered_lrelu,
    "modulated_conv2d": modulated_conv2d,
    "upfirdn2d": upfirdn2d,
    "upsample2d": upsample2d,
}


@contextmanager
def plain(fused: bool = True) -> Iterator[None]:
    """Models of fastvfx run on the operators above, instead of on its own, inside."""
    ours: dict[Any, Callable[..., Tensor]] = {getattr(functional, name): f for name, f in OPERATORS.items()}
    ours[functional.modulated_conv2d] = partial(modulated_conv2d, fused=fused)
    replaced = []
    for module in [m for name, m in list(sys.modules.items()) if name.startswith("fastvfx")]:
        for name, value in list(vars(module).items()):
            if callable(value) and getattr(value, "__hash__", None) and value in ours:
                replaced.append((module, name, value))
                setattr(module, name, ours[value])
    try:
        yield
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)
