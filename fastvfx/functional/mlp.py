"""Small multilayer perceptrons, all layers in one kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import _check
from .._autograd import reference_double_backward
from .._backend import use_triton
from .._ops._common import accumulate_dtype
from .._ops.mlp import ACTIVATION, MAX_LAYERS, why_no_gpu_kernel
from ..reference.mlp import mlp as reference

Activation = Literal["none", "relu", "leaky_relu", "sigmoid", "tanh", "softplus", "exp", "sine"]


def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    activation: Activation = "relu",
    output_activation: Activation = "none",
) -> Tensor:
    r"""Run points through a small fully connected network, all layers in one pass.

    .. math::
        h_0 = x, \quad h_l = act(W_l h_{l-1} + b_l), \quad y = act_{out}(W_L h_{L-1} + b_L)

    Müller et al., "Real-time Neural Radiance Caching for Path Tracing" (2021) fuse such networks on a GPU. A tile of
    points stays in the processor's first cache through all layers; between input and output nothing is written to
    memory, and the backward pass recomputes the hidden layers of its tile, so that training takes no memory beyond x,
    y and the gradients. Made for widths up to 128; others work.

    Args:
        x: points, ``(..., n_in)``.
        weights: one ``(n_out, n_in)`` matrix a layer, as in ``torch.nn.Linear``; 1 to 16 of them.
        biases: one ``(n_out,)`` vector a layer, or ``None``.
        activation: of the hidden layers: ``"none"``, ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"sigmoid"``,
            ``"tanh"``, ``"softplus"``, ``"exp"`` or ``"sine"``.
        output_activation: of the last layer, likewise.

    Returns:
        ``(..., n_out)`` in the dtype of ``x``.

    Differentiable in x, weights and biases, twice and more (orders beyond the first run on the PyTorch formula).
    float32, float16 and bfloat16 are storage formats, and may differ between x and the parameters: products and sums
    are taken in float32, and hidden layers stay in float32. The exception is speed: with bfloat16 parameters, x and the
    hidden layers are rounded to bfloat16 as well, as under autocast, on processors that multiply it (AVX512-BF16).
    float64 stays float64, in all arguments. NaN and infinities
    stay in their own point, in y and in the gradient of x. Gradients are the same every time, on the CPU for any number
    of threads. On a GPU the kernel is Triton's and takes widths up to 128, up to 64 in float32; what it does not take
    runs on the PyTorch formula.

    Raises:
        TypeError: an argument is no tensor or has a dtype that is not listed, or one that does not go with the others.
        ValueError: shapes, devices or options do not fit.

    >>> y = fastvfx.mlp(torch.rand(1000, 32), [torch.randn(64, 32) / 6, torch.randn(3, 64) / 8])
    """
    x, weights, biases = _checked(x, weights, biases, activation, output_activation)
    n_in, n_out = x.shape[-1], weights[-1].shape[0]
    points = x.reshape(-1, n_in)
    if not use_triton("mlp", x.device, lambda: _why_no_gpu_kernel(x, weights)):
        y = reference(points, weights, biases, activation, output_activation)
    else:
        points = points.contiguous()
        params = [p.contiguous() for p in (*weights, *biases)]
        options = _Options(len(weights), ACTIVATION[activation], ACTIVATION[output_activation])
        if torch.is_grad_enabled() and any(t.requires_grad for t in (points, *params)):
            y = _Mlp.apply(points, options, *params)
        else:
            y = torch.ops.fastvfx.mlp_fwd(points, *options.split(params), *options.activations())
    return y.reshape(*x.shape[:-1], n_out)


def _why_no_gpu_kernel(x: Tensor, weights: list[Tensor]) -> str | None:
    return why_no_gpu_kernel([x.shape[-1], *(w.shape[0] for w in weights)], {weights[0].dtype})


class _Options(NamedTuple):
    n_layers: int
    activation: int
    output_activation: int

    def split(self, params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return list(params[: self.n_layers]), list(params[self.n_layers :])

    def activations(self) -> tuple[int, int]:
        return self.activation, self.output_activation

    def unflatten(self, flat: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
        """Views of a flat gradient in the order of ``params``; in it a layer's bias follows its weight."""
        weights, biases = self.split(params)
        order = [p for layer in range(self.n_layers) for p in (weights[layer], *biases[layer : layer + 1])]
        pieces = [g.view(p.shape) for g, p in zip(flat.split([p.numel() for p in order]), order, strict=True)]
        return pieces if not biases else pieces[0::2] + pieces[1::2]


def _checked(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    activation: str,
    output_activation: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    for name, kind in (("activation", activation), ("output_activation", output_activation)):
        _check.is_one_of("mlp", name, kind, ACTIVATION)
    for name, params in (("weights", weights), ("biases", () if biases is None else biases)):
        if not isinstance(params, Iterable) or isinstance(params, Tensor):
            got = type(params).__name__
            raise TypeError(f"fastvfx.mlp: expected {name} to be a sequence of tensors, one a layer, got {got}")
    weights, biases = list(weights), [] if biases is None else list(biases)
    if not 1 <= len(weights) <= MAX_LAYERS:
        raise ValueError(f"fastvfx.mlp: expected 1 to {MAX_LAYERS} weights, got {len(weights)}")
    if biases and len(biases) != len(weights):
        raise ValueError(f"fastvfx.mlp: expected {len(weights)} biases, one for each weight, got {len(biases)}")
    named = {f"weights[{i}]": w for i, w in enumerate(weights)} | {f"biases[{i}]": b for i, b in enumerate(biases)}
    _check.is_float("mlp", x=x, **named)
    _check.same_device("mlp", x=x, **named)
    if x.dim() < 1:
        raise ValueError("fastvfx.mlp: expected x of shape (..., n_in), got ()")
    width, source = x.shape[-1], "x"
    for i, w in enumerate(weights):
        if w.dim() != 2 or w.shape[1] != width or w.shape[0] < 1 or width < 1:
            raise ValueError(
                f"fastvfx.mlp: expected weights[{i}] of shape (n_out, n_in) with n_in={width} like {source}, "
                f"got {tuple(w.shape)}"
            )
        width, source = w.shape[0], f"weights[{i}]"
        if biases:
            like = partial("({},) like weights[{}]".format, width, i)
            _check.has_shape("mlp", f"biases[{i}]", biases[i], (width,), like)
    for name, p in named.items():
        if p.dtype != weights[0].dtype:
            raise TypeError(f"fastvfx.mlp: expected {name} of dtype {weights[0].dtype} like weights[0], got {p.dtype}")
    if (x.dtype is torch.float64) != (weights[0].dtype is torch.float64):
        raise TypeError(
            f"fastvfx.mlp: expected x and weights both in float64 or neither, got {x.dtype} and {weights[0].dtype}"
        )
    return x, weights, biases


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, options: _Options, *params: Tensor):
        y = torch.ops.fastvfx.mlp_fwd(x, *options.split(params), *options.activations())
        ctx.save_for_backward(x, y, *params)
        ctx.options = options
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor):
        x, y, *params = ctx.saved_tensors
        x_gradient, params_gradient = ctx.needs_input_grad[0], any(ctx.needs_input_grad[2:])
        grad_x, flat = _MlpBackward.apply(x, y, grad_y.contiguous(), ctx.options, x_gradient, params_gradient, *params)
        grad_params = ctx.options.unflatten(flat, params) if params_gradient else [None] * len(params)
        return (
            grad_x if x_gradient else None,
            None,
            *(g if needed else None for g, needed in zip(grad_params, ctx.needs_input_grad[2:], strict=True)),
        )


class _MlpBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that it has a derivative."""

    @staticmethod
    def forward(ctx: Any, x, y, grad_y, options, x_gradient, params_gradient, *params):
        ctx.save_for_backward(x, grad_y, *params)
        ctx.options = options
        ctx.gradients = x_gradient, params_gradient
        ctx.set_materialize_grads(False)
        return torch.ops.fastvfx.mlp_bwd(
            x, y, grad_y, *options.split(params), *options.activations(), x_gradient, params_gradient
        )

    @staticmethod
    def backward(ctx: Any, grad_grad_x: Tensor | None, grad_flat: Tensor | None):
        x, grad_y, *params = ctx.saved_tensors
        options = ctx.options
        names = list(ACTIVATION)
        # Storage may be 16 bits; the formula is differentiated in the accumulation type.
        acc = accumulate_dtype(x.dtype)

        def function(x, *params):
            weights, biases = options.split(params)
            return [reference(x, weights, biases, names[options.activation], names[options.output_activation])]

        x_gradient, params_gradient = ctx.gradients
        grad_grads: list[Tensor | None] = [None] * (1 + len(params))
        if x_gradient and grad_grad_x is not None:
            grad_grads[0] = grad_grad_x.to(acc)
        if params_gradient and grad_flat is not None:
            grad_grads[1:] = [g.to(acc) for g in options.unflatten(grad_flat, params)]
        inputs = [x, *params]
        grads, (grad_grad_y,) = reference_double_backward(
            function, [t.to(acc) for t in inputs], [grad_y.to(acc)], grad_grads
        )
        grad_x, *grad_params = [None if g is None else g.to(t.dtype) for g, t in zip(grads, inputs, strict=True)]
        grad_grad_y = None if grad_grad_y is None else grad_grad_y.to(grad_y.dtype)
        return (grad_x, None, grad_grad_y, None, None, None, *grad_params)
