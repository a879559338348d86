"""Schemas, shapes and calls of ``conv2d_fwd``, ``_dgrad`` and ``_wgrad``: convolutions of scaled channels.

On a GPU Triton kernels where there are factors to apply on the way, and cuDNN, through torch, where there are none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._backend import why_no_triton
from . import _torch_conv2d as by_torch
from . import _winograd as winograd
from ._common import accumulate_dtype, define, on
from ._torch_conv2d import Geometry, layout_of

#: Whether oneDNN convolves bfloat16 on this processor.
FAST_BFLOAT16: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compute_dtype(x: Tensor, scaled: bool) -> torch.dtype:
    """What the convolution of ``x`` gives: float16 becomes float32 where a factor could take it out of its range."""
    if x.device.type == "cuda":
        return torch.float32 if scaled and x.dtype is torch.float16 else x.dtype
    return x.dtype if x.dtype is torch.bfloat16 and FAST_BFLOAT16 else accumulate_dtype(x.dtype)


def why_no_gpu_kernel(x: Tensor, geometry: Geometry) -> str | None:
    """Why the Triton kernels do not take a convolution, or ``None`` if they do."""
    if x.dtype is torch.float64:
        return "its GPU kernel takes no float64"
    if geometry.groups != 1:
        return "its GPU kernel takes no groups"
    if x[0].numel() >= 1 << 31:
        return "its GPU kernel takes no single image of 2^31 numbers"
    return None


def _by_triton(x: Tensor, s: Tensor | None, geometry: Geometry) -> bool:
    if x.device.type != "cuda" or s is None:
        return False
    return why_no_triton() is None and why_no_gpu_kernel(x, geometry) is None


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _scaled(x: Tensor, s: Tensor | None) -> Tensor:
    """``s x`` in the dtype that it is convolved in, rounded once."""
    x = x.to(compute_dtype(x, s is not None))
    if s is None:
        return x
    if x.device.type == "cuda":
        return (x * s[:, :, None, None]).to(x.dtype)
    return torch.ops.fastvfx.bias_act_fwd(x.contiguous(memory_format=layout_of(x)), s, None, None, 1, 0, 0.0, 1.0, None)


def _scales_weights(x: Tensor, w: Tensor, geometry: Geometry) -> bool:
    """Whether factors cost less on the weight, one image after the other: where few channels are made of many."""
    out, channels = w.shape[:2]
    return (
        x.device.type == "cpu"
        and geometry.groups == 1
        and tuple(w.shape[2:]) == (1, 1)
        and 2 * out <= channels
        and len(x) > 0
        and 16 * w.numel() <= x[0].numel()
    )


def _fwd(x, s, w, scale, noise, bias, act, alpha, gain, clamp, finished, *geometry_):
    geometry = _geometry(*geometry_)
    layout = layout_of(x)
    if _by_triton(x, s, geometry):
        from .._triton import conv2d as kernels

        y = _last(_fwd_fake(x, s, w, scale, noise, bias, act, alpha, gain, clamp, finished, *geometry_))
        weight = by_torch.arranged(w, geometry)
        if x.dtype is torch.float16:  # products of s x and of w would leave its range
            most, most_w = _largest(s, 1), _largest(w, (1, 2, 3))  # (N, 1), (O, 1, 1, 1)
            s, weight = s / most, by_torch.arranged(w / most_w, geometry)
            factor = most.to(torch.float32) * most_w.flatten().to(torch.float32)
            scale = factor if scale is None else factor * scale
        order = (2, 3, 0, 1) if geometry.transposed else (2, 3, 1, 0)
        weight = weight.permute(order).to(x.dtype).contiguous()  # (kh, kw, I, O)
        epilogue = kernels.Epilogue(scale, noise, bias, act, alpha, gain, clamp)
        with on(x.device):
            kernels.conv(_last(x), s, weight, y, geometry.stride, geometry.padding, geometry.transposed, epilogue)
        return y.contiguous(memory_format=layout)
    after = (scale, noise, bias, act, alpha, gain, clamp)
    by_winograd = winograd.fprop(x, s, w, geometry, after if finished else winograd.NOTHING)
    if by_winograd is not None:
        return winograd.laid_out(by_winograd, layout)
    if s is not None and _scales_weights(x, w, geometry):
        wide = x.to(compute_dtype(x, True))
        parts = [by_torch.fprop(wide[i : i + 1], w * s[i, :, None, None], geometry) for i in range(len(x))]
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
    else:
        y = by_torch.fprop(_scaled(x, s), w, geometry)
    if not finished:
        return y
    return torch.ops.fastvfx.bias_act_fwd(y, scale, noise, bias, 1, act, alpha, gain, clamp).to(x.dtype)


def _largest(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    return x.abs().amax(dims, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _fwd_fake(x, s, w, scale, noise, bias, act, alpha, gain, clamp, finished, *geometry):
    height, width = _geometry(*geometry).output_size(x, w)
    dtype = x.dtype if finished else compute_dtype(x, s is not None)
    return _images(x, w.shape[0], height, width, dtype)


def _images(like: Tensor, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    shape = like.shape[0], channels, height, width
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout_of(like))


def _dgrad(g, w, height, width, *geometry):
    x = winograd.dgrad(g, w, _geometry(*geometry), (height, width))
    if x is not None:
        return winograd.laid_out(x, layout_of(g))
    return by_torch.dgrad(g, w, _geometry(*geometry), (height, width))


def _dgrad_fake(g, w, height, width, *geometry):
    channels = w.shape[1] * _geometry(*geometry).groups
    return _images(g, channels, height, width, g.dtype)


def _up_fwd(x, s, w, f, size, pad, flip, scale, noise, bias, act, alpha, gain, clamp):
    after = (scale, noise, bias, act, alpha, gain, clamp)
    y = winograd.upsampled(x, s, w, f, pad, size, flip, after)
    if y is not None:
        y = winograd.laid_out(y, layout_of(x))
    else:
        # The transposed convolution has kernel - 1 pixels more at each end.
        f = x.new_ones((1, 1), dtype=accumulate_dtype(x.dtype)) if f is None else f
        y = by_torch.fprop(_scaled(x, s), w, Geometry(2, transposed=True, flip=not flip))
        pad = [a - (taps - 1) for a, taps in zip(pad, w.shape[2:], strict=True)]
        y = torch.ops.fastvfx.upfirdn2d_fwd(y, f, size, [1, 1], [1, 1], pad, False, 4.0)
        y = torch.ops.fastvfx.bias_act_fwd(y, scale, noise, bias, 1, act, alpha, gain, clamp)
    return y.to(x.dtype).contiguous(memory_format=layout_of(x))


def _up_fwd_fake(x, s, w, f, size, pad, flip, scale, noise, bias, act, alpha, gain, clamp):
    return _images(x, w.shape[0], size[0], size[1], x.dtype)


def _wgrad(x, s, g, shape, *geometry_):
    geometry = _geometry(*geometry_)
    if not _by_triton(x, s, geometry):
        return by_torch.wgrad(_scaled(x, s), g, geometry, torch.Size(shape))
    from .._triton import conv2d as kernels

    small, large, small_scale, large_scale = (x, g, s, None) if geometry.transposed else (g, x, None, s)
    programs = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count
    with on(x.device):
        sums = kernels.wgrad(
            _last(small), _last(large), small_scale, large_scale, (shape[2], shape[3]), geometry.stride,
            geometry.padding, programs,
        )  # fmt: skip
    # (kh, kw, channels of the large image, of the small one) to torch's order of the two channels
    return by_torch.arranged_back(sums.permute(3, 2, 0, 1), geometry).contiguous()


def _wgrad_fake(x, s, g, shape, *geometry):
    return x.new_empty(shape, dtype=_wgrad_dtype(x, s, _geometry(*geometry)))


def _wgrad_dtype(x: Tensor, s: Tensor | None, geometry: Geometry) -> torch.dtype:
    return torch.float32 if _by_triton(x, s, geometry) else compute_dtype(x, s is not None)


def _geometry(stride: int, pad_y: int, pad_x: int, transposed: bool, flip: bool, groups: int) -> Geometry:
    return Geometry(stride, (pad_y, pad_x), transposed, flip, groups)


def options(geometry: Geometry) -> tuple[Any, ...]:
    """As the last arguments of the operators."""
    return geometry.stride, *geometry.padding, geometry.transposed, geometry.flip, geometry.groups


_GEOMETRY = "int stride, int pad_y, int pad_x, bool transposed, bool flip, int groups"
# finished: y is scaled and so on and in the dtype of x, else as it comes from the convolution.
define(
    "conv2d_fwd(Tensor x, Tensor? s, Tensor w, Tensor? scale, Tensor? noise, Tensor? bias, int act, float alpha, "
    f"float gain, float? clamp, bool finished, {_GEOMETRY}) -> Tensor",
    _fwd,
    _fwd_fake,
)
# Upsampled by 2 first, without a gradient; pad: (y, x) in front of the upsampled image.
define(
    "conv2d_up_fwd(Tensor x, Tensor? s, Tensor w, Tensor? f, SymInt[] size, SymInt[] pad, bool flip, Tensor? scale, "
    "Tensor? noise, Tensor? bias, int act, float alpha, float gain, float? clamp) -> Tensor",
    _up_fwd,
    _up_fwd_fake,
)
define(f"conv2d_dgrad(Tensor g, Tensor w, int height, int width, {_GEOMETRY}) -> Tensor", _dgrad, _dgrad_fake)
define(f"conv2d_wgrad(Tensor x, Tensor? s, Tensor g, int[] shape, {_GEOMETRY}) -> Tensor", _wgrad, _wgrad_fake)
