"""Convolution whose weights are scaled for each image, the layer of StyleGAN2 and StyleGAN3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _check
from .._backend import use_triton
from .._ops._common import accumulate_dtype
from .._ops._torch_conv2d import Geometry
from .._ops.bias_act import ACTIVATION
from .._ops.conv2d import why_no_gpu_kernel
from ..reference.conv2d_resample import resampling_pads
from ..reference.modulated_conv2d import EPS
from ..reference.modulated_conv2d import modulated_conv2d as reference
from .bias_act import checked_activation, scaled_bias_act
from .conv2d_resample import output_size, resampled
from .scaled_conv2d import convolution
from .upfirdn2d import PaddingLike, check_filter, check_images, checked_factor, checked_padding


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    noise: Tensor | None = None,
    bias: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: PaddingLike = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    normalize: bool = False,
    input_gain: Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    r"""Convolution with weights that a style scales and normalises image by image.

    .. math::
        d_{no} = \Bigl(\sum_{i,k} (w_{oik}\, s_{ni})^2 + 10^{-8}\Bigr)^{-1/2}, \quad
        y_{no} = clamp\bigl(gain \cdot act(d_{no} \sum_i w_{oi} * (s_{ni} x_{ni}) + noise_n + b_o)\bigr)

    (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020, equations 1 to 3). The scales go
    around one convolution of the whole batch; there is no weight tensor per image.

    Args:
        x: images, ``(N, I, H, W)``, contiguous or channels_last.
        weight: ``(O, I, kh, kw)``.
        styles: ``(N, I)``.
        noise: added in front of the bias, broadcastable to ``(N, 1, H', W')``.
        bias: ``(O,)``.
        up, down: factors, with ``resample_filter``, as in :func:`conv2d_resample`.
        padding: of the upsampled image, in pixels.
        resample_filter: of :func:`setup_filter`; ``None`` is 1.
        demodulate: divide by the norm of the scaled weights.
        flip_weight: ``True`` correlates with ``weight``, as ``conv2d`` does; ``False`` convolves.
        normalize: StyleGAN3's form: first divide ``weight`` by its root mean square for each output channel, and
            ``styles`` by theirs over the whole batch.
        input_gain: factor of ``x`` that demodulation does not see: a scalar, ``(I,)`` or ``(N, I)`` (StyleGAN3).
        act, alpha, gain, clamp: as in :func:`bias_act`.

    Returns:
        ``(N, O, H', W')`` in the dtype and memory format of ``x``. 16-bit types are storage: nothing overflows that
        does not overflow in the result.

    Differentiable in ``x``, ``weight``, ``styles``, ``noise``, ``bias``, ``resample_filter`` and ``input_gain`` to any
    order.

    Raises:
        TypeError: a tensor is none or has no float dtype, or an option is of another type.
        ValueError: shapes, devices or options do not fit.

    >>> fastvfx.modulated_conv2d(x, weight, styles, padding=1, bias=b, act="lrelu", clamp=256)
    """
    op = "modulated_conv2d"
    up, _ = checked_factor(op, "up", up)
    down, _ = checked_factor(op, "down", down)
    pads = checked_padding(op, padding)
    _check.is_bool(op, demodulate=demodulate, flip_weight=flip_weight, normalize=normalize)
    alpha, gain = checked_activation(op, act, alpha, gain, clamp)
    check_images(op, x)
    check_filter(op, "resample_filter", resample_filter, x)
    tensors = {"weight": weight, "styles": styles, "noise": noise, "bias": bias, "input_gain": input_gain}
    _check.is_float(op, **tensors)
    _check.same_device(op, x=x, **tensors)
    n, channels = x.shape[:2]
    if weight.dim() != 4 or weight.shape[1] != channels or 0 in weight.shape:
        raise ValueError(
            f"fastvfx.{op}: expected weight of shape (O, I, kh, kw) with I={channels}, none of them 0, "
            f"got {tuple(weight.shape)}"
        )
    _check.has_shape(op, "styles", styles, (n, channels), lambda: f"(N, I) with N={n}, I={channels}")
    out_channels = weight.shape[0]
    if bias is not None:
        _check.has_shape(op, "bias", bias, (out_channels,), lambda: f"(O,) with O={out_channels}")
    if input_gain is not None and input_gain.shape not in (torch.Size([]), (channels,), (n, channels)):
        raise ValueError(
            f"fastvfx.{op}: expected input_gain to be a scalar or of shape (I,) or (N, I) with N={n}, I={channels}, "
            f"got {tuple(input_gain.shape)}"
        )
    size = (n, 1, *output_size(op, x, weight, resample_filter, up, down, pads))
    if noise is not None and not broadcastable(noise.shape, size):
        raise ValueError(
            f"fastvfx.{op}: expected noise of a shape that broadcasts to (N, 1, H', W') = {size}, "
            f"got {tuple(noise.shape)}"
        )
    if not use_triton(op, x.device, lambda: why_no_gpu_kernel(x, Geometry())) or n == 0:
        return reference(
            x, weight, styles, noise, bias, up, down, pads, resample_filter, demodulate, flip_weight, normalize,
            input_gain, act, alpha, gain, clamp,
        )  # fmt: skip
    if noise is not None:
        noise = noise.expand(noise.shape[0] if noise.dim() == 4 else 1, *size[1:])
    scale, s = _factors(x, weight, styles, demodulate, normalize, input_gain)
    inputs = x, weight, s, scale, noise, bias, resample_filter
    if down == 1 and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)):
        # In one kernel. With a gradient to come the convolution itself is kept, so that it is two.
        wide = accumulate_dtype(x.dtype)
        b, z = (None if t is None else t.to(wide).contiguous() for t in (bias, noise))
        epilogue = scale, z, b, ACTIVATION[act], alpha, gain, clamp
        if up == 1 and pads == (pads[0], pads[0], pads[2], pads[2]) and min(pads) >= 0:
            return convolution(x, s, weight, Geometry(padding=(pads[2], pads[0]), flip=not flip_weight), epilogue)
        if up == 2 and x.device.type == "cpu" and max(weight.shape[2:]) > 1:
            f = None if resample_filter is None else resample_filter.to(wide)
            left, _, top, _ = resampling_pads(f, up, down, pads)
            return torch.ops.fastvfx.conv2d_up_fwd(x, s, weight, f, size[2:], (top, left), not flip_weight, *epilogue)
    y = resampled(x, s, weight, resample_filter, up, down, pads, 1, flip_weight, flip_filter=False)
    return scaled_bias_act(y, scale, noise, bias, act, alpha, gain, clamp).to(x.dtype)


def _factors(
    x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool, normalize: bool, input_gain: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """What the result (N, O) and the images (N, I) are multiplied by, around a convolution with ``weight`` as it is."""
    dtype = accumulate_dtype(x.dtype)
    s = styles.to(dtype)
    scale = None
    if demodulate or normalize:
        norms = _SquareSums.apply(weight.to(dtype))  # (O, I)
        rms = None
        if normalize:
            rms = (norms.sum(1) / weight[0].numel()).rsqrt()  # (O,), of a whole filter
            norms = norms * rms.square()[:, None]
            s = s * s.square().mean().rsqrt()
            scale = rms.expand(s.shape[0], -1)
        if demodulate:
            d = (s.square() @ norms.T + EPS).rsqrt()  # (N, O)
            scale = d if rms is None else d * rms
    if input_gain is not None:
        s = s * input_gain.to(dtype)
    return scale, s


class _SquareSums(torch.autograd.Function):
    """Squares added up over the last two dimensions; keeps the tensor and makes no squares of its size."""

    @staticmethod
    def forward(ctx: Any, w: Tensor):
        ctx.save_for_backward(w)
        return torch.ops.fastvfx.square_sums(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        (w,) = ctx.saved_tensors
        return w * (2 * grad)[:, :, None, None]


def broadcastable(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape, to[len(to) - len(shape) :], strict=True))
