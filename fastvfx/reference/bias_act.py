"""Bias, activation, gain and clamp in PyTorch, differentiable to any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SELU, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


class Activation(NamedTuple):
    """An activation with the defaults that StyleGAN2 gave it.

    Attributes:
        function: of the input and ``alpha``.
        alpha: the slope of ``lrelu``; unused by the others.
        gain: keeps the variance of a normally distributed input.
        slope: the derivative, as a function of the result and ``alpha``, or of the input for ``swish``.
    """

    function: Callable[[Tensor, float], Tensor]
    alpha: float
    gain: float
    slope: Callable[[Tensor, float], Tensor]


def _slope_of_swish(z: Tensor, _: float) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, _: x, 0.0, 1.0, lambda u, _: torch.ones_like(u)),
    "relu": Activation(lambda x, _: F.relu(x), 0.0, math.sqrt(2), lambda u, _: (~(u <= 0)).to(u.dtype)),
    "lrelu": Activation(F.leaky_relu, 0.2, math.sqrt(2), lambda u, a: torch.where(u > 0, torch.ones_like(u), a)),
    "tanh": Activation(lambda x, _: torch.tanh(x), 0.0, 1.0, lambda u, _: 1 - u * u),
    "sigmoid": Activation(lambda x, _: torch.sigmoid(x), 0.0, 1.0, lambda u, _: u * (1 - u)),
    "elu": Activation(lambda x, _: F.elu(x), 0.0, 1.0, lambda u, _: torch.where(u > 0, torch.ones_like(u), u + 1)),
    "selu": Activation(
        lambda x, _: F.selu(x), 0.0, 1.0,
        lambda u, _: torch.where(u > 0, torch.full_like(u, _SELU), u + _SELU * _SELU_ALPHA),
    ),
    "softplus": Activation(lambda x, _: F.softplus(x), 0.0, 1.0, lambda u, _: -torch.expm1(-u)),
    "swish": Activation(lambda x, _: torch.sigmoid(x) * x, 0.0, math.sqrt(2), _slope_of_swish),
}  # fmt: skip


def slope_needs_input(act: str, alpha: float) -> bool:
    """Whether the derivative does not follow from the result. With a negative ``alpha``, lrelu's sign is lost."""
    return act == "swish" or (act == "lrelu" and alpha < 0)


def _clamps(y: Tensor, limit: float, stored: torch.dtype | None) -> Tensor:
    """Where a result, as stored, has reached the limit, which is rounded like it."""
    size = y.detach().abs().to(stored or y.dtype)
    return size >= torch.full((), limit, dtype=size.dtype, device=size.device)


def clamped(x: Tensor, limit: float, stored: torch.dtype | None = None) -> Tensor:
    """``x`` within ``limit`` of 0. The derivative is 1 strictly inside and 0 elsewhere; NaN stays NaN.

    With ``stored``, what ``x`` is rounded to in that dtype decides, as for a gradient that sees stored results.
    """
    return torch.where(_clamps(x, limit, stored), x.detach().clamp(-limit, limit), x)


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """The maths of :func:`fastvfx.functional.bias_act`, in float32 for 16-bit ``x``."""
    return scaled_bias_act(x, None, None, b, act, alpha, gain, clamp, dim)


def scaled_bias_act(
    x: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    dim: int = 1,
) -> Tensor:
    """The maths of :func:`fastvfx.functional.bias_act.scaled_bias_act`, in float32 for 16-bit ``x``."""
    kind = ACTIVATIONS[act]
    alpha = kind.alpha if alpha is None else alpha
    z = _before_activation(x, scale, noise, b, dim)
    y = kind.function(z, alpha) * (kind.gain if gain is None else gain)
    if clamp is not None:
        y = clamped(y, clamp, None if slope_needs_input(act, alpha) else x.dtype)
    return y.to(x.dtype)


def _before_activation(x: Tensor, scale: Tensor | None, noise: Tensor | None, b: Tensor | None, dim: int) -> Tensor:
    z = x if x.dtype is torch.float64 else x.float()
    if scale is not None:
        z = z * scale.to(z.dtype)[:, :, None, None]
    if noise is not None:
        z = z + noise.to(z.dtype)
    if b is not None:
        shape = [1] * x.dim()
        shape[dim] = -1
        z = z + b.to(z.dtype).reshape(shape)
    return z


def scaled_bias_act_backward(
    grad_y: Tensor,
    y: Tensor | None,
    x: Tensor | None,
    scale: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
    scale_gradient: bool,
    noise_images: int,
    b_gradient: bool,
) -> list[Tensor | None]:
    """Gradients of x, scale, noise and b as a function of the incoming one and of the result, differentiable in both.

    Where :func:`slope_needs_input`, ``y`` is ``None`` and the slope is taken from x, scale, noise and b.
    """
    kind = ACTIVATIONS[act]
    wide = torch.float64 if grad_y.dtype is torch.float64 else torch.float32
    grad_z = grad_y.to(wide) * gain
    stored = None if slope_needs_input(act, alpha) else grad_y.dtype
    if slope_needs_input(act, alpha):
        assert x is not None
        z = _before_activation(x, scale, noise, b, dim)
        grad_z = grad_z * kind.slope(z, alpha)
        result = kind.function(z, alpha) * gain
    elif act != "linear" or clamp is not None:
        assert y is not None
        result = y.to(wide)
        grad_z = grad_z * kind.slope(result / gain if gain else result, alpha)
    if clamp is not None:
        grad_z = grad_z.masked_fill(_clamps(result, clamp, stored), 0)
    grad_x = grad_z if scale is None else grad_z * scale[:, :, None, None]
    gradients: list[Tensor | None] = [grad_x.to(grad_y.dtype), None, None, None]
    if scale_gradient:
        assert x is not None
        gradients[1] = (grad_z * x.to(wide)).sum((2, 3))
    if noise_images:
        summed = grad_z.sum(1, keepdim=True)
        gradients[2] = summed if noise_images == grad_z.shape[0] else summed.sum(0, keepdim=True)
    if b_gradient:
        gradients[3] = grad_z.sum([i for i in range(grad_z.dim()) if i != dim])
    return gradients
