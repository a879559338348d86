"""Bias, activation, gain and clamp in PyTorch, differentiable to any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """An activation with the defaults that StyleGAN2 gave it.

    Attributes:
        function: of the input and ``alpha``.
        alpha: the slope of ``lrelu``; unused by the others.
        gain: keeps the variance of a normally distributed input.
    """

    function: Callable[[Tensor, float], Tensor]
    alpha: float
    gain: float


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, _: x, 0.0, 1.0),
    "relu": Activation(lambda x, _: F.relu(x), 0.0, math.sqrt(2)),
    "lrelu": Activation(F.leaky_relu, 0.2, math.sqrt(2)),
    "tanh": Activation(lambda x, _: torch.tanh(x), 0.0, 1.0),
    "sigmoid": Activation(lambda x, _: torch.sigmoid(x), 0.0, 1.0),
    "elu": Activation(lambda x, _: F.elu(x), 0.0, 1.0),
    "selu": Activation(lambda x, _: F.selu(x), 0.0, 1.0),
    "softplus": Activation(lambda x, _: F.softplus(x), 0.0, 1.0),
    "swish": Activation(lambda x, _: torch.sigmoid(x) * x, 0.0, math.sqrt(2)),
}


def clamped(x: Tensor, limit: float) -> Tensor:
    """``x`` within ``limit`` of 0. The derivative is 1 strictly inside and 0 elsewhere; NaN stays NaN."""
    return torch.where(x.abs() < limit, x, x.detach().clamp(-limit, limit))


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
    kind = ACTIVATIONS[act]
    wide = x if x.dtype is torch.float64 else x.float()
    if b is not None:
        shape = [1] * x.dim()
        shape[dim] = -1
        wide = wide + b.to(wide.dtype).reshape(shape)
    y = kind.function(wide, kind.alpha if alpha is None else alpha)
    y = y * (kind.gain if gain is None else gain)
    if clamp is not None:
        y = clamped(y, clamp)
    return y.to(x.dtype)
