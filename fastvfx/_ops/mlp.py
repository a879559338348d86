"""Schema, shapes and calls of ``mlp_fwd`` and ``mlp_bwd``; the public function is in fastvfx/functional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import DTYPE_CODE, define, executor, kernel, on, on_huge_pages, ptr

#: Same table as ``Activation`` in csrc/include/fastvfx/mlp.h.
ACTIVATION = {"none": 0, "relu": 1, "leaky_relu": 2, "sigmoid": 3, "tanh": 4, "softplus": 5, "exp": 6, "sine": 7}

#: Same as ``mlp_max_layers`` there.
MAX_LAYERS = 16

_NETWORK = "Tensor[] weights, Tensor[] biases, int activation, int output_activation"


def _mlp(x: Tensor, weights: list[Tensor], biases: list[Tensor], activation: int, output_activation: int) -> Any:
    """The arguments that both directions share, in the order of the bindings."""
    return (
        DTYPE_CODE[x.dtype],
        DTYPE_CODE[weights[0].dtype],
        activation,
        output_activation,
        x.shape[0],
        [x.shape[1], *(w.shape[0] for w in weights)],
        [ptr(w) for w in weights],
        [ptr(b) for b in biases],
        ptr(x),
        *executor(x.device),
    )


def _fwd_fake(x, weights, biases, activation, output_activation):
    return x.new_empty((x.shape[0], weights[-1].shape[0]))


def why_no_gpu_kernel(widths: list[int], dtypes: set[torch.dtype]) -> str | None:
    """Why the Triton kernels do not take a network, or ``None`` if they do."""
    if torch.float64 in dtypes:
        return "its GPU kernel takes no float64"
    most = 64 if torch.float32 in dtypes else 128
    if max(widths) > most:
        return f"its GPU kernel takes widths up to {most} in this dtype, not {max(widths)}"
    return None


def _fwd(x, weights, biases, activation, output_activation):
    (y,) = on_huge_pages((_fwd_fake(x, weights, biases, activation, output_activation),))
    with on(x.device):
        if x.device.type == "cuda":
            from .._triton import mlp as triton_mlp

            triton_mlp.forward(x, y, weights, biases, activation, output_activation)
            return y
        kernel("mlp_fwd", x.device)(*_mlp(x, weights, biases, activation, output_activation), ptr(y))
    return y


def _bwd_fake(x, y, grad_y, weights, biases, activation, output_activation, x_gradient, params_gradient):
    n_params = sum(p.numel() for p in (*weights, *biases)) if params_gradient else 0
    return x.new_empty(x.shape if x_gradient else (0,)), weights[0].new_empty((n_params,))


def _bwd(x, y, grad_y, weights, biases, activation, output_activation, x_gradient, params_gradient):
    grad_x, grad_params = on_huge_pages(
        _bwd_fake(x, y, grad_y, weights, biases, activation, output_activation, x_gradient, params_gradient)
    )
    with on(x.device):
        if x.device.type == "cuda":
            from .._triton import mlp as triton_mlp

            # Two to a multiprocessor is what the registers allow.
            programs = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count
            triton_mlp.backward(
                x, y, grad_y, weights, biases, activation, output_activation, grad_x if x_gradient else None,
                grad_params if params_gradient else None, programs,
            )  # fmt: skip
            return grad_x, grad_params
        kernel("mlp_bwd", x.device)(
            *_mlp(x, weights, biases, activation, output_activation), ptr(y), ptr(grad_y),
            ptr(grad_x) if x_gradient else 0, ptr(grad_params) if params_gradient else 0,
        )  # fmt: skip
    return grad_x, grad_params


define(f"mlp_fwd(Tensor x, {_NETWORK}) -> Tensor", _fwd, _fwd_fake)
# grad_params: the gradients of weights[0], biases[0], weights[1], ... one after the other.
define(
    f"mlp_bwd(Tensor x, Tensor y, Tensor grad_y, {_NETWORK}, bool x_gradient, bool params_gradient)"
    " -> (Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
