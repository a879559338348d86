"""A small multilayer perceptron in PyTorch, differentiable to any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "exp": torch.exp,
    "sine": torch.sin,
}


def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] = (),
    activation: str = "relu",
    output_activation: str = "none",
) -> Tensor:
    """The maths of :func:`fastvfx.mlp`; (n_points, n_in) to (n_points, n_out), in the dtype of ``x``."""
    dtype = torch.promote_types(x.dtype, weights[0].dtype)
    h = x.to(dtype)
    for layer, weight in enumerate(weights):
        h = F.linear(h, weight.to(dtype), biases[layer].to(dtype) if biases else None)
        h = ACTIVATIONS[output_activation if layer == len(weights) - 1 else activation](h)
    return h.to(x.dtype)
