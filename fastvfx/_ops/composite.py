"""Schema, shapes and calls of ``composite_fwd`` and ``composite_bwd``; the public function is in fastvfx/functional."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _check
from ._common import DTYPE_CODE, accumulate_dtype, define, executor, kernel, large_empty, on, ptr

#: Same table as ``DepthMode`` in csrc/include/fastvfx/composite.h.
DEPTH_MODE = {"expected": 0, "accumulated": 1, "first_hit": 2}

#: Same as ``composite_stride`` there.
STRIDE = 8

_INPUTS = "Tensor values, Tensor rgbs, Tensor t_starts, Tensor t_ends, Tensor? offsets, Tensor? background"
_OPTIONS = "bool alphas, int depth_mode, float depth_threshold, float early_stop_eps, bool padded"


def _n_rays(values: Tensor, offsets: Tensor | None) -> int:
    return values.shape[0] if offsets is None else offsets.shape[0] - 1


def _rays(
    values: Tensor,
    rgbs: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor | None,
    background: Tensor | None,
    alphas: bool,
    depth_mode: int,
    depth_threshold: float,
    early_stop_eps: float,
) -> tuple[Any, ...]:
    """The arguments that both directions share, in the order of the bindings."""
    channels = rgbs.shape[-1]
    return (
        DTYPE_CODE[values.dtype],
        alphas,
        depth_mode,
        depth_threshold,
        early_stop_eps,
        _n_rays(values, offsets),
        values.numel(),
        values.shape[1] if offsets is None else 0,
        channels,
        ptr(offsets),
        ptr(values),
        ptr(rgbs),
        ptr(t_starts),
        ptr(t_ends),
        ptr(background),
        channels if background is not None and background.dim() == 2 else 0,
        *executor(values.device),
    )


#: Makes a result with the shape of its first argument, of that dtype.
_Like = Callable[[Tensor, torch.dtype], Tensor]


def _fake_like(samples: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(samples, dtype=dtype)


def _kept_like(offsets: Tensor | None, padded: bool) -> _Like:
    """Results per sample in memory that is used again; the kernel fills all but the padding, which is 0."""

    def like(samples: Tensor, dtype: torch.dtype) -> Tensor:
        if padded and samples.device.type != "cpu":  # where the padding begins is not known without waiting
            return torch.zeros_like(samples, dtype=dtype)
        result = large_empty(tuple(samples.shape), dtype, samples.device)
        if padded and offsets is not None:
            result[int(offsets[-1]) :].zero_()
        return result

    return like


def _outputs(
    values: Tensor, rgbs: Tensor, offsets: Tensor | None, like: _Like, weights: bool, transmittance: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(values.dtype)
    n = _n_rays(values, offsets)
    return (
        values.new_empty((n, rgbs.shape[-1]), dtype=dtype),
        values.new_empty((n,), dtype=dtype),
        values.new_empty((n,), dtype=dtype),
        like(values, dtype) if weights else values.new_empty((0,), dtype=dtype),
        like(values, dtype) if transmittance else values.new_empty((0,), dtype=dtype),
    )


def _fwd_fake(
    values, rgbs, t_starts, t_ends, offsets, background, alphas, depth_mode, depth_threshold, early_stop_eps, padded,
    weights, transmittance,
):  # fmt: skip
    return _outputs(values, rgbs, offsets, _fake_like, weights, transmittance)


def _fwd(
    values, rgbs, t_starts, t_ends, offsets, background, alphas, depth_mode, depth_threshold, early_stop_eps, padded,
    weights, transmittance,
):  # fmt: skip
    if offsets is not None and values.device.type == "cpu":
        _check.offsets("composite", offsets, values.shape[0], padded)
    outputs = _outputs(values, rgbs, offsets, _kept_like(offsets, padded), weights, transmittance)
    rgb, opacity, depth, w, T = outputs
    options = (alphas, depth_mode, depth_threshold, early_stop_eps)
    with on(values.device):
        kernel("composite_fwd", values.device)(
            *_rays(values, rgbs, t_starts, t_ends, offsets, background, *options),
            ptr(rgb), ptr(opacity), ptr(depth), ptr(w) if weights else 0, ptr(T) if transmittance else 0,
        )  # fmt: skip
    return outputs


def _gradients(
    values: Tensor, rgbs: Tensor, offsets: Tensor | None, like: _Like, t_gradients: bool, background_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(values.dtype)
    none = values.new_empty((0,), dtype=dtype)
    n = _n_rays(values, offsets)
    return (
        like(values, values.dtype),
        like(rgbs, rgbs.dtype),
        like(values, dtype) if t_gradients else none,
        like(values, dtype) if t_gradients else torch.empty_like(none),
        values.new_empty((n, rgbs.shape[-1]), dtype=dtype) if background_gradient else torch.empty_like(none),
    )


def _bwd_fake(
    values, rgbs, t_starts, t_ends, offsets, background, opacity, depth, grad_rgb, grad_opacity, grad_depth,
    grad_weights, grad_transmittance, alphas, depth_mode, depth_threshold, early_stop_eps, padded, t_gradients,
    background_gradient,
):  # fmt: skip
    return _gradients(values, rgbs, offsets, _fake_like, t_gradients, background_gradient)


def _bwd(
    values, rgbs, t_starts, t_ends, offsets, background, opacity, depth, grad_rgb, grad_opacity, grad_depth,
    grad_weights, grad_transmittance, alphas, depth_mode, depth_threshold, early_stop_eps, padded, t_gradients,
    background_gradient,
):  # fmt: skip
    like = _kept_like(offsets, padded)
    grads = _gradients(values, rgbs, offsets, like, t_gradients, background_gradient)
    grad_values, grad_rgbs, grad_t_starts, grad_t_ends, grad_background = grads
    scratch = opacity.new_empty((values.numel() // STRIDE + _n_rays(values, offsets),))
    options = (alphas, depth_mode, depth_threshold, early_stop_eps)
    with on(values.device):
        kernel("composite_bwd", values.device)(
            *_rays(values, rgbs, t_starts, t_ends, offsets, background, *options),
            ptr(opacity), ptr(depth), ptr(grad_rgb), ptr(grad_opacity), ptr(grad_depth), ptr(grad_weights),
            ptr(grad_transmittance), ptr(scratch), ptr(grad_values), ptr(grad_rgbs),
            ptr(grad_t_starts) if t_gradients else 0, ptr(grad_t_ends) if t_gradients else 0,
            ptr(grad_background) if background_gradient else 0,
        )  # fmt: skip
    return grads


define(
    f"composite_fwd({_INPUTS}, {_OPTIONS}, bool weights, bool transmittance)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fwd,
    _fwd_fake,
)
define(
    f"composite_bwd({_INPUTS}, Tensor opacity, Tensor depth, Tensor grad_rgb, Tensor grad_opacity, Tensor grad_depth,"
    f" Tensor? grad_weights, Tensor? grad_transmittance, {_OPTIONS}, bool t_gradients, bool background_gradient)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
