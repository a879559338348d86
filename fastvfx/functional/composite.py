"""Emission-absorption compositing of samples along rays."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import _check
from .._autograd import reference_double_backward
from .._backend import use_native
from .._ops._common import accumulate_dtype
from .._ops.composite import DEPTH_MODE
from ..reference.composite import composite as reference

Depth = Literal["expected", "accumulated", "median", "first_hit"]


class CompositeOutput(NamedTuple):
    """Per-ray results, float32 (float64 for float64 inputs)."""

    rgb: Tensor  #: (n_rays, channels)
    opacity: Tensor  #: (n_rays,) sum of the weights
    depth: Tensor  #: (n_rays,) in the unit of ``t_starts``
    weights: Tensor | None  #: layout of ``sigmas``, if asked for
    transmittance: Tensor | None  #: layout of ``sigmas``, in front of each sample, if asked for


def composite(
    sigmas: Tensor,
    rgbs: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor | None = None,
    background: Tensor | None = None,
    *,
    depth: Depth = "expected",
    depth_threshold: float = 0.5,
    early_stop_eps: float = 0.0,
    return_weights: bool = False,
    return_transmittance: bool = False,
    padded: bool = False,
) -> CompositeOutput:
    r"""Accumulate densities and colours along rays, front to back.

    .. math::
        \alpha_i = 1 - e^{-\sigma_i (t^{end}_i - t^{start}_i)}, \quad
        T_i = \prod_{j<i} (1 - \alpha_j), \quad w_i = T_i \alpha_i, \quad
        rgb = \sum_i w_i c_i + T_n\, background

    the quadrature of Max, "Optical Models for Direct Volume Rendering" (1995), used by NeRF (Mildenhall et al. 2020).

    Samples are either packed, ray after ray in one row with ``offsets``, or batched, the same number for every ray.
    One pass forward and one backward; nothing per sample is stored that is not asked for.

    Args:
        sigmas: densities per unit of t, ``(n_samples,)`` packed or ``(n_rays, n_per_ray)`` batched.
        rgbs: colours or any other features, ``(n_samples, channels)`` or ``(n_rays, n_per_ray, channels)``.
        t_starts: distances at which the samples begin, shape of ``sigmas``.
        t_ends: distances at which they end, shape of ``sigmas``.
        offsets: packed only: int32 or int64 ``(n_rays + 1,)``, sorted, from 0 to ``n_samples``; ray r owns samples
            ``offsets[r]`` to ``offsets[r + 1] - 1``.
        background: colour behind everything, ``(channels,)`` or ``(n_rays, channels)``.
        depth: ``"expected"`` sum(w t) / opacity with t the middle of a sample; ``"accumulated"`` sum(w t);
            ``"median"`` t of the sample in which the opacity reaches one half; ``"first_hit"`` likewise
            ``depth_threshold``. A ray that never gets there, or has no samples, has depth 0.
        depth_threshold: in (0, 1]; for ``depth="first_hit"``.
        early_stop_eps: samples in front of which the transmittance is below this are left out; 0 takes all.
        return_weights: also return the weights w.
        return_transmittance: also return T in front of each sample.
        padded: packed only: samples from ``offsets[-1]`` on are padding, as fixed-capacity marching leaves them.

    Returns:
        :class:`CompositeOutput`.

    Differentiable in sigmas, rgbs, t_starts, t_ends and background, twice and more (orders beyond the first run on the
    PyTorch formula). float32, float16 and bfloat16 are storage formats: sums are taken, and results returned, in
    float32; t_starts and t_ends are float32 throughout. float64 stays float64. NaN and infinities stay in their own
    ray. The gradient is exact at alpha = 1.

    Raises:
        TypeError: an argument is no tensor, has a dtype that is not listed, or an option is of another type.
        ValueError: shapes, devices or options do not fit; on the CPU also if ``offsets`` is not sorted or does not end
            at ``n_samples``. On a GPU that would cost a synchronisation: there such a ray comes out as NaN.

    >>> out = fastvfx.composite(torch.ones(2, 8), torch.rand(2, 8, 3), t[:, :-1], t[:, 1:])
    """
    return _composite(
        "composite", "sigmas", sigmas, rgbs, t_starts, t_ends, offsets, background, False, depth, depth_threshold,
        early_stop_eps, return_weights, return_transmittance, padded,
    )  # fmt: skip


def composite_alphas(
    alphas: Tensor,
    rgbs: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor | None = None,
    background: Tensor | None = None,
    *,
    depth: Depth = "expected",
    depth_threshold: float = 0.5,
    early_stop_eps: float = 0.0,
    return_weights: bool = False,
    return_transmittance: bool = False,
    padded: bool = False,
) -> CompositeOutput:
    """:func:`composite` with the opacity ``alphas`` in [0, 1] of each sample given instead of its density."""
    return _composite(
        "composite_alphas", "alphas", alphas, rgbs, t_starts, t_ends, offsets, background, True, depth,
        depth_threshold, early_stop_eps, return_weights, return_transmittance, padded,
    )  # fmt: skip


class _Options(NamedTuple):
    alphas: bool
    depth: str
    depth_threshold: float
    early_stop_eps: float
    padded: bool

    def for_op(self) -> tuple[bool, int, float, float, bool]:
        return self.alphas, DEPTH_MODE[self.depth], self.depth_threshold, self.early_stop_eps, self.padded


def _composite(
    op: str,
    name: str,
    values: Tensor,
    rgbs: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor | None,
    background: Tensor | None,
    alphas: bool,
    depth: str,
    depth_threshold: float,
    early_stop_eps: float,
    return_weights: bool,
    return_transmittance: bool,
    padded: bool,
) -> CompositeOutput:
    if depth == "median":
        depth, depth_threshold = "first_hit", 0.5
    _check.is_one_of(op, "depth", depth, (*DEPTH_MODE, "median"))
    _check.is_number(op, depth_threshold=depth_threshold, early_stop_eps=early_stop_eps)
    _check.is_bool(op, return_weights=return_weights, return_transmittance=return_transmittance, padded=padded)
    if not 0 < depth_threshold <= 1:
        raise ValueError(f"fastvfx.{op}: expected depth_threshold in (0, 1], got {depth_threshold}")
    if not 0 <= early_stop_eps < 1:
        raise ValueError(f"fastvfx.{op}: expected early_stop_eps in [0, 1), got {early_stop_eps}")
    options = _Options(alphas, depth, float(depth_threshold), float(early_stop_eps), padded)
    values, rgbs, t_starts, t_ends, offsets, background = _checked(
        op, name, values, rgbs, t_starts, t_ends, offsets, background, padded
    )
    if not use_native(op, values.device):
        if offsets is not None and _check.is_concrete(offsets):
            _check.offsets(op, offsets, values.shape[0], padded)
        rgb, opacity, z, w, T = reference(
            values, rgbs, t_starts, t_ends, offsets, background, alphas, depth, depth_threshold, early_stop_eps
        )
    else:
        inputs = (values, rgbs, t_starts, t_ends, offsets, background)
        needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
        if needs_grad:
            rgb, opacity, z, w, T = _Composite.apply(*inputs, options, return_weights, return_transmittance)
        else:
            rgb, opacity, z, w, T = torch.ops.fastvfx.composite_fwd(
                *inputs, *options.for_op(), return_weights, return_transmittance
            )
    return CompositeOutput(rgb, opacity, z, w if return_weights else None, T if return_transmittance else None)


def _checked(
    op: str,
    name: str,
    values: Tensor,
    rgbs: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor | None,
    background: Tensor | None,
    padded: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The arguments, contiguous and in the dtypes that the kernels take."""
    floats = {name: values, "rgbs": rgbs, "t_starts": t_starts, "t_ends": t_ends, "background": background}
    _check.is_float(op, **floats)
    if offsets is not None:
        _check.is_tensor(op, "offsets", offsets)
    _check.same_device(op, **floats, offsets=offsets)
    if offsets is None:
        if values.dim() != 2:
            raise ValueError(
                f"fastvfx.{op}: expected {name} of shape (n_rays, n_per_ray), or offsets with {name} of shape "
                f"(n_samples,), got {tuple(values.shape)}"
            )
        if padded:
            raise ValueError(f"fastvfx.{op}: expected offsets with padded=True, got none")
        n_rays = values.shape[0]
    else:
        if values.dim() != 1:
            raise ValueError(
                f"fastvfx.{op}: expected {name} of shape (n_samples,) with offsets, got {tuple(values.shape)}"
            )
        if offsets.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"fastvfx.{op}: expected offsets of dtype int32 or int64, got {offsets.dtype}")
        if offsets.dim() != 1 or offsets.shape[0] < 1:
            raise ValueError(f"fastvfx.{op}: expected offsets of shape (n_rays + 1,), got {tuple(offsets.shape)}")
        n_rays = offsets.shape[0] - 1

    def per_sample(inner: str = "") -> str:
        names = ("n_samples",) if offsets is not None else ("n_rays", "n_per_ray")
        known = ", ".join(f"{n}={size}" for n, size in zip(names, values.shape, strict=True))
        return f"({', '.join(names)}{inner or (',' if len(names) == 1 else '')}) with {known}"

    if rgbs.dim() != values.dim() + 1 or rgbs.shape[:-1] != values.shape or rgbs.shape[-1] < 1:
        raise ValueError(f"fastvfx.{op}: expected rgbs of shape {per_sample(', channels')}, got {tuple(rgbs.shape)}")
    _check.has_shape(op, "t_starts", t_starts, values.shape, per_sample)
    _check.has_shape(op, "t_ends", t_ends, values.shape, per_sample)
    channels = rgbs.shape[-1]
    # Two comparisons rather than `in`, which torch.compile does not resolve for symbolic sizes.
    if background is not None and background.shape != (channels,) and background.shape != (n_rays, channels):
        raise ValueError(
            f"fastvfx.{op}: expected background of shape (channels,) or (n_rays, channels) with n_rays={n_rays}, "
            f"channels={channels}, got {tuple(background.shape)}"
        )
    dtype = torch.promote_types(values.dtype, rgbs.dtype)
    if torch.float64 in (t_starts.dtype, t_ends.dtype, None if background is None else background.dtype):
        dtype = torch.float64
    acc = accumulate_dtype(dtype)
    return (
        values.to(dtype).contiguous(),
        rgbs.to(dtype).contiguous(),
        t_starts.to(acc).contiguous(),
        t_ends.to(acc).contiguous(),
        None if offsets is None else offsets.to(torch.int64).contiguous(),
        None if background is None else background.to(acc).contiguous(),
    )


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values, rgbs, t_starts, t_ends, offsets, background, options, weights, transmittance):
        outputs = torch.ops.fastvfx.composite_fwd(
            values, rgbs, t_starts, t_ends, offsets, background, *options.for_op(), weights, transmittance
        )
        ctx.save_for_backward(values, rgbs, t_starts, t_ends, offsets, background, outputs[1], outputs[2])
        ctx.options = options
        ctx.asked = (weights, transmittance)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_rgb, grad_opacity, grad_depth, grad_weights, grad_transmittance):
        values, rgbs, t_starts, t_ends, offsets, background, opacity, z = ctx.saved_tensors
        weights, transmittance = ctx.asked
        if grad_rgb is None:
            grad_rgb = opacity.new_zeros((opacity.shape[0], rgbs.shape[-1]))
        grads = _CompositeBackward.apply(
            values, rgbs, t_starts, t_ends, offsets, background, opacity, z,
            grad_rgb.contiguous(),
            torch.zeros_like(opacity) if grad_opacity is None else grad_opacity.contiguous(),
            torch.zeros_like(opacity) if grad_depth is None else grad_depth.contiguous(),
            None if grad_weights is None or not weights else grad_weights.contiguous(),
            None if grad_transmittance is None or not transmittance else grad_transmittance.contiguous(),
            ctx.options,
            ctx.needs_input_grad[2] or ctx.needs_input_grad[3],
            ctx.needs_input_grad[5],
        )  # fmt: skip
        grad_values, grad_rgbs, grad_t_starts, grad_t_ends, grad_background = grads
        if not ctx.needs_input_grad[5]:
            grad_background = None
        elif background.dim() == 1:
            grad_background = grad_background.sum(0)
        return (
            grad_values if ctx.needs_input_grad[0] else None,
            grad_rgbs if ctx.needs_input_grad[1] else None,
            grad_t_starts if ctx.needs_input_grad[2] else None,
            grad_t_ends if ctx.needs_input_grad[3] else None,
            None, grad_background, None, None, None,
        )  # fmt: skip


class _CompositeBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that it has a derivative."""

    @staticmethod
    def forward(
        ctx: Any, values, rgbs, t_starts, t_ends, offsets, background, opacity, z, grad_rgb, grad_opacity, grad_depth,
        grad_weights, grad_transmittance, options, t_gradients, background_gradient,
    ):  # fmt: skip
        ctx.save_for_backward(
            values, rgbs, t_starts, t_ends, offsets, background, grad_rgb, grad_opacity, grad_depth, grad_weights,
            grad_transmittance,
        )  # fmt: skip
        ctx.options = options
        ctx.set_materialize_grads(False)
        return torch.ops.fastvfx.composite_bwd(
            values, rgbs, t_starts, t_ends, offsets, background, opacity, z, grad_rgb, grad_opacity, grad_depth,
            grad_weights, grad_transmittance, *options.for_op(), t_gradients, background_gradient,
        )  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor | None):
        values, rgbs, t_starts, t_ends, offsets, background, *grad_outputs = ctx.saved_tensors
        o = ctx.options
        per_ray = None  # the gradient of a shared background is summed outside, so here every ray has its own
        if background is not None:
            n_rays = grad_outputs[0].shape[0]
            per_ray = background.expand(n_rays, -1)

        def function(values, rgbs, t_starts, t_ends, background):
            return reference(
                values, rgbs, t_starts, t_ends, offsets, background, o.alphas, o.depth, o.depth_threshold,
                o.early_stop_eps,
            )  # fmt: skip

        inputs = [values, rgbs, t_starts, t_ends, per_ray]
        # Storage may be 16 bits; the formula is differentiated in the accumulation type.
        acc = t_starts.dtype
        wide = [None if x is None else x.to(acc) for x in inputs]
        wide_gg = [None if g is None or g.numel() == 0 else g.to(acc) for g in grad_grads]
        grad_inputs, grad_grad_outputs = reference_double_backward(function, wide, grad_outputs, wide_gg)
        grad_background = grad_inputs[4]
        if grad_background is not None and background.dim() == 1:
            grad_background = grad_background.sum(0)
        narrow = [None if g is None else g.to(x.dtype) for g, x in zip(grad_inputs[:4], inputs[:4], strict=True)]
        return (*narrow, None, grad_background, None, None, *grad_grad_outputs, None, None, None)
