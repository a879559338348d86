"""Schemas, shapes and calls of ``bias_act_*``; the public function is in fastvfx/functional."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._common import DTYPE_CODE, accumulate_dtype, define, executor, kernel, large_empty_like, on, ptr

#: Same table as ``BiasActivation`` in csrc/include/fastvfx/bias_act.h.
ACTIVATION = {
    name: code
    for code, name in enumerate(("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"))
}

_COEFFICIENTS = "Tensor? scale, Tensor? noise, Tensor? b"
_OPTIONS = "int dim, int act, float alpha, float gain, float? clamp"


def _view(x: Tensor, dim: int, has_channels: bool, per_image: bool) -> tuple[bool, int, int, int]:
    """``interleaved, images, channels, pixels`` of a dense tensor, contiguous or channels_last: how it lies."""
    if x.numel() == 0 or not has_channels:
        return False, 1, 1, x.numel()
    rank = x.dim()
    order = range(rank) if x.is_contiguous() else (0, *range(2, rank), 1)  # of the dimensions in memory
    at = list(order).index(dim)
    outer, inner = (math.prod(x.shape[d] for d in dims) for dims in (order[:at], order[at + 1 :]))
    channels = x.shape[dim]
    if per_image:  # scale and noise differ between images: dim is 1 of four
        images = x.shape[0]
        return inner == 1, images, channels, x.numel() // (images * channels)
    return (True, 1, channels, outer) if inner == 1 else (False, outer, channels, inner)


def _shared(like, x, scale, noise, b, dim, act, alpha, gain, clamp, has_channels, per_image, noise_images) -> Any:
    """The arguments that every direction shares, in the order of the bindings."""
    return (
        DTYPE_CODE[like.dtype], act, alpha, gain, math.nan if clamp is None else clamp,
        *_view(like, dim, has_channels or per_image, per_image),
        ptr(x), ptr(scale), ptr(noise), noise_images > 1, ptr(b), *executor(like.device),
    )  # fmt: skip


def _on_vectors(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors whose memory begins where 16 bytes may be read at once: GPU kernels do."""
    return [t if t is None or t.device.type == "cpu" or t.data_ptr() % 16 == 0 else t.clone() for t in tensors]


def _sums(like: Tensor, shared: Any, scale_gradient: bool, noise_gradient: bool, b_gradient: bool) -> Tensor | None:
    """What the gradients of a GPU keep their partial sums in."""
    if like.device.type == "cpu" or _ext._C is None:
        return None
    size = _ext._C.bias_act_sums(shared, scale_gradient, noise_gradient, b_gradient)
    return like.new_empty((size,), dtype=accumulate_dtype(like.dtype))


def _images_of(noise: Tensor | None) -> int:
    return 0 if noise is None else noise.shape[0]


def _fwd_fake(x, scale, noise, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


def _fwd(x, scale, noise, b, dim, act, alpha, gain, clamp):
    x, scale, noise, b = _on_vectors(x, scale, noise, b)
    y = large_empty_like(x)
    per_image = scale is not None or noise is not None
    shared = _shared(
        x, x, scale, noise, b, dim, act, alpha, gain, clamp, b is not None, per_image, _images_of(noise)
    )  # fmt: skip
    with on(x.device):
        kernel("bias_act_fwd", x.device)(shared, ptr(y))
    return y


def _bwd_fake(grad_y, y, x, scale, noise, b, dim, act, alpha, gain, clamp, scale_gradient, noise_images, b_gradient):
    wide = accumulate_dtype(grad_y.dtype)
    return (
        torch.empty_like(grad_y),
        grad_y.new_empty(grad_y.shape[:2] if scale_gradient else (0,), dtype=wide),
        grad_y.new_empty((noise_images, 1, *grad_y.shape[2:]) if noise_images else (0,), dtype=wide),
        grad_y.new_empty((grad_y.shape[dim],) if b_gradient else (0,), dtype=wide),
    )


def _bwd(grad_y, y, x, scale, noise, b, dim, act, alpha, gain, clamp, scale_gradient, noise_images, b_gradient):
    grad_y, y, x, scale, noise, b = _on_vectors(grad_y, y, x, scale, noise, b)
    wide = accumulate_dtype(grad_y.dtype)
    grad_x = large_empty_like(grad_y)
    empty = grad_y.new_zeros if grad_y.numel() == 0 else grad_y.new_empty
    grad_scale = empty(grad_y.shape[:2] if scale_gradient else (0,), dtype=wide)
    grad_noise = empty((grad_y.shape[0], 1, *grad_y.shape[2:]) if noise_images else (0,), dtype=wide)
    grad_b = empty((grad_y.shape[dim],) if b_gradient else (0,), dtype=wide)
    per_image = scale is not None or noise is not None or scale_gradient or noise_images > 0
    shared = _shared(
        grad_y, x, scale, noise, b, dim, act, alpha, gain, clamp, b is not None or b_gradient, per_image,
        _images_of(noise),
    )  # fmt: skip
    with on(grad_y.device):
        sums = _sums(grad_y, shared, scale_gradient, noise_images > 0, b_gradient)
        kernel("bias_act_bwd", grad_y.device)(
            shared, ptr(grad_y), ptr(y), ptr(grad_x), ptr(grad_scale) if scale_gradient else 0,
            ptr(grad_noise) if noise_images else 0, ptr(grad_b) if b_gradient else 0, ptr(sums),
        )  # fmt: skip
    if noise_images and noise_images != grad_noise.shape[0]:
        grad_noise = grad_noise.sum(0, keepdim=True)
    return grad_x, grad_scale, grad_noise, grad_b


def _bwd_bwd_fake(
    grad_y, grad_grad_x, y, x, scale, noise, b, grad_grad_scale, grad_grad_noise, grad_grad_b,
    dim, act, alpha, gain, clamp, scale_gradient, r_gradient,
):  # fmt: skip
    wide = accumulate_dtype(grad_y.dtype)
    return (
        torch.empty_like(grad_y),
        torch.empty_like(grad_y) if grad_grad_scale is not None else grad_y.new_empty((0,)),
        grad_y.new_empty(grad_y.shape[:2] if scale_gradient else (0,), dtype=wide),
        torch.empty_like(grad_y) if r_gradient else grad_y.new_empty((0,)),
    )


def _bwd_bwd(
    grad_y, grad_grad_x, y, x, scale, noise, b, grad_grad_scale, grad_grad_noise, grad_grad_b,
    dim, act, alpha, gain, clamp, scale_gradient, r_gradient,
):  # fmt: skip
    grad_y, grad_grad_x, y, x, scale, noise, b = _on_vectors(grad_y, grad_grad_x, y, x, scale, noise, b)
    grad_grad_scale, grad_grad_noise, grad_grad_b = _on_vectors(grad_grad_scale, grad_grad_noise, grad_grad_b)
    grad_grad_y = large_empty_like(grad_y)
    grad_x = large_empty_like(grad_y) if grad_grad_scale is not None else grad_y.new_empty((0,))
    grad_r = large_empty_like(grad_y) if r_gradient else grad_y.new_empty((0,))
    empty = grad_y.new_zeros if grad_y.numel() == 0 else grad_y.new_empty
    grad_scale = empty(grad_y.shape[:2] if scale_gradient else (0,), dtype=accumulate_dtype(grad_y.dtype))
    per_image = any(t is not None for t in (scale, noise, grad_grad_scale, grad_grad_noise)) or scale_gradient
    shared = _shared(
        grad_y, x, scale, noise, b, dim, act, alpha, gain, clamp, b is not None or grad_grad_b is not None, per_image,
        max(_images_of(noise), _images_of(grad_grad_noise)),
    )  # fmt: skip
    with on(grad_y.device):
        sums = _sums(grad_y, shared, scale_gradient, False, False)
        kernel("bias_act_bwd_bwd", grad_y.device)(
            shared, ptr(grad_y), ptr(y), ptr(grad_grad_x), ptr(grad_grad_scale), ptr(grad_grad_noise), ptr(grad_grad_b),
            ptr(grad_grad_y), ptr(grad_x) if grad_grad_scale is not None else 0,
            ptr(grad_scale) if scale_gradient else 0, ptr(grad_r) if r_gradient else 0, ptr(sums),
        )  # fmt: skip
    return grad_grad_y, grad_x, grad_scale, grad_r


# Everything but x, y and their gradients is in the type of the sums; all of x, y and their gradients have one layout.
define(f"bias_act_fwd(Tensor x, {_COEFFICIENTS}, {_OPTIONS}) -> Tensor", _fwd, _fwd_fake)
# Gradients of x, scale, noise and b, empty where not wanted. noise_images: how many of them noise has, 0 without.
define(
    f"bias_act_bwd(Tensor grad_y, Tensor? y, Tensor? x, {_COEFFICIENTS}, {_OPTIONS}, "
    "bool scale_gradient, int noise_images, bool b_gradient) -> (Tensor, Tensor, Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
# Gradients of grad_y, x, scale and of y (or, where there is none, of what the activation was applied to).
define(
    f"bias_act_bwd_bwd(Tensor grad_y, Tensor grad_grad_x, Tensor? y, Tensor? x, {_COEFFICIENTS}, "
    "Tensor? grad_grad_scale, Tensor? grad_grad_noise, Tensor? grad_grad_b, "
    f"{_OPTIONS}, bool scale_gradient, bool r_gradient) -> (Tensor, Tensor, Tensor, Tensor)",
    _bwd_bwd,
    _bwd_bwd_fake,
)
