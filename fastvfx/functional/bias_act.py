"""Bias, activation, gain and clamp in one pass."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _check
from .._autograd import reference_backward
from .._backend import use_native
from .._ops._common import accumulate_dtype
from .._ops.bias_act import ACTIVATION
from ..reference.bias_act import ACTIVATIONS, scaled_bias_act_backward, slope_needs_input
from ..reference.bias_act import scaled_bias_act as reference


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    r"""Add a bias, apply an activation, scale and clamp: :math:`y = clamp(gain \cdot act(x + b))`.

    The operator of that name in StyleGAN2 (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN",
    2020), with the defaults of its PyTorch release.

    ============ ============================== =============
    act          function                       default gain
    ============ ============================== =============
    ``linear``   x                              1
    ``relu``     max(x, 0)                      sqrt(2)
    ``lrelu``    x > 0 ? x : alpha x            sqrt(2)
    ``tanh``     tanh(x)                        1
    ``sigmoid``  1 / (1 + exp(-x))              1
    ``elu``      x > 0 ? x : exp(x) - 1         1
    ``selu``     scaled elu (Klambauer 2017)    1
    ``softplus`` log(1 + exp(x))                1
    ``swish``    x / (1 + exp(-x))              sqrt(2)
    ============ ============================== =============

    Args:
        x: any shape.
        b: bias, ``(x.shape[dim],)``.
        dim: the dimension of ``x`` that the bias belongs to.
        act: see above.
        alpha: slope of ``lrelu`` for negative inputs (default 0.2); the others ignore it.
        gain: factor behind the activation; ``None`` takes the default above.
        clamp: results are limited to [-clamp, clamp]; ``None`` leaves them. The derivative is 1 strictly inside.

    Returns:
        The shape, dtype and memory format of ``x``. 16-bit types are computed in float32 and rounded once.

    Differentiable in ``x`` and ``b`` to any order, natively to the second. The derivative is taken from the result, so
    that ``x`` is not kept (``swish`` keeps it): where a stored 16-bit result has been rounded to the clamp, it is 0.
    Gradients of 16-bit ``elu``, ``selu``, ``softplus`` and ``swish`` run on the PyTorch formula: their slopes would
    lose too many digits.

    Raises:
        TypeError: ``x`` or ``b`` is no tensor of floats, or an option no number.
        ValueError: the bias does not fit, ``act`` is unknown, ``clamp`` is negative, or a number is not finite.

    >>> fastvfx.bias_act(torch.randn(4, 64, 32, 32), torch.zeros(64), act="lrelu", clamp=256)
    """
    op = "bias_act"
    alpha, gain = checked_activation(op, act, alpha, gain, clamp)
    _check.is_float(op, x=x, b=b)
    _check.same_device(op, x=x, b=b)
    if b is not None:
        _check.is_int(op, dim=dim)
        if not -x.dim() <= dim < x.dim():
            raise ValueError(f"fastvfx.{op}: expected dim to be a dimension of x of shape {tuple(x.shape)}, got {dim}")
        if b.dim() != 1 or b.shape[0] != x.shape[dim]:
            raise ValueError(
                f"fastvfx.{op}: expected b of shape (x.shape[dim],) with dim={dim} and x of shape {tuple(x.shape)}, "
                f"got {tuple(b.shape)}"
            )
        dim %= x.dim()
    options = _Options(dim if b is not None else 0, act, alpha, gain, clamp)
    if not use_native(op, x.device) or _on_the_formula(act, x, b):
        return reference(x, None, None, b, act, alpha, gain, clamp, dim)
    return _native(x, None, None, b, options)


def scaled_bias_act(
    x: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    r"""What follows the convolution of a :func:`modulated_conv2d`, in one pass:
    :math:`y = clamp(gain \cdot act(x \cdot scale_{nc} + noise_{np} + b_c))`.

    For use inside the library: arguments are expected to have been checked.

    Args:
        x: ``(N, C, H, W)``.
        scale: ``(N, C)`` or ``None``.
        noise: ``(N, 1, H, W)``, ``(1, 1, H, W)`` or ``None``.
        b: ``(C,)`` or ``None``.
        act, alpha, gain, clamp: as in :func:`bias_act`.

    Returns:
        The shape, dtype and memory format of ``x``; the dtypes of the others may differ from it.

    Differentiable in all four tensors to any order.
    """
    op = "scaled_bias_act"
    alpha, gain = checked_activation(op, act, alpha, gain, clamp)
    if not use_native(op, x.device) or _on_the_formula(act, x, scale, noise, b):
        return reference(x, scale, noise, b, act, alpha, gain, clamp)
    return _native(x, scale, noise, b, _Options(1, act, alpha, gain, clamp))


def _on_the_formula(act: str, *tensors: Tensor | None) -> bool:
    """Whether gradients run on PyTorch: the slopes of these activations lose too much with a 16-bit result or input."""
    x = tensors[0]
    if act not in ("elu", "selu", "softplus", "swish") or x is None or x.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def scale_gradients(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative of ``x`` times ``scale``, by both in one pass: ``grad scale_{nc}`` and the sums of ``grad x`` over
    pixels, (N, C). For use inside the library, with images of one dtype; differentiable to any order."""
    if not use_native("scaled_bias_act", x.device):
        wide = accumulate_dtype(x.dtype)
        products = grad.to(wide) * scale[:, :, None, None]
        return products.to(x.dtype), (grad.to(wide) * x.to(wide)).sum([2, 3])
    layout = _format_of(x)
    tensors = _dense(grad, layout), None, _dense(x, layout), scale.contiguous(), None, None
    options = _Options(1, "linear", 0.0, 1.0, None)
    grad_x, grad_scale, _, _ = _BiasActBackward.apply(*tensors, options, layout, (True, 0, False))
    return grad_x, grad_scale


class _Options(NamedTuple):
    dim: int
    act: str
    alpha: float
    gain: float
    clamp: float | None

    def codes(self) -> tuple[int, int, float, float, float | None]:
        return self.dim, ACTIVATION[self.act], self.alpha, self.gain, self.clamp

    def slope_needs_input(self) -> bool:
        return slope_needs_input(self.act, self.alpha)

    def slope_needs_result(self) -> bool:
        return not self.slope_needs_input() and (self.act != "linear" or self.clamp is not None)

    def slope_varies(self) -> bool:
        """Whether it has a derivative itself."""
        return self.act not in ("linear", "relu", "lrelu")


def _native(x: Tensor, scale: Tensor | None, noise: Tensor | None, b: Tensor | None, options: _Options) -> Tensor:
    wide = accumulate_dtype(x.dtype)
    x = _dense(x, _format_of(x))
    scale, noise, b = (None if t is None else t.to(wide).contiguous() for t in (scale, noise, b))
    tensors = (x, scale, noise, b)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _BiasAct.apply(*tensors, options)
    return torch.ops.fastvfx.bias_act_fwd(*tensors, *options.codes())


def _format_of(x: Tensor) -> torch.memory_format:
    """The layout that the kernels keep: channels_last if ``x`` has it, else contiguous."""
    if not x.is_contiguous():
        for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if x.dim() == rank and x.is_contiguous(memory_format=layout):
                return layout
    return torch.contiguous_format


def _dense(x: Tensor, layout: torch.memory_format) -> Tensor:
    return x.contiguous(memory_format=layout)


class _BiasAct(torch.autograd.Function):
    """Keeps y where the slope follows from it: it is kept anyway, as the input of the next layer."""

    @staticmethod
    def forward(ctx: Any, x, scale, noise, b, options):
        y = torch.ops.fastvfx.bias_act_fwd(x, scale, noise, b, *options.codes())
        from_input = options.slope_needs_input()
        _, scale_gradient, noise_gradient, b_gradient, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            y if options.slope_needs_result() else None,
            x if from_input or scale_gradient else None,
            scale,
            noise if from_input else None,
            b if from_input else None,
        )
        ctx.options, ctx.layout = options, _format_of(x)
        ctx.wanted = scale_gradient, noise.shape[0] if noise_gradient else 0, b_gradient
        return y

    @staticmethod
    def backward(ctx: Any, grad_y):
        gradients = _BiasActBackward.apply(
            _dense(grad_y, ctx.layout), *ctx.saved_tensors, ctx.options, ctx.layout, ctx.wanted
        )
        wanted = (ctx.needs_input_grad[0], *ctx.wanted)
        return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), None


class _BiasActBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that it has a derivative: a function of grad_y and y, or of x, scale,
    noise and b where the slope needs them. What flows into y goes through the gradient of :class:`_BiasAct` again."""

    @staticmethod
    def forward(ctx: Any, grad_y, y, x, scale, noise, b, options, layout, wanted):
        ctx.save_for_backward(grad_y, y, x, scale, noise, b)
        ctx.options, ctx.layout, ctx.wanted = options, layout, wanted
        ctx.set_materialize_grads(False)
        return torch.ops.fastvfx.bias_act_bwd(grad_y, y, x, scale, noise, b, *options.codes(), *wanted)

    @staticmethod
    def backward(ctx: Any, *grad_grads):
        saved, options, wanted = ctx.saved_tensors, ctx.options, ctx.wanted
        incoming = [g if w else None for g, w in zip(grad_grads, (True, *wanted), strict=True)]
        if all(g is None for g in incoming):
            return (None,) * 9
        if torch.is_grad_enabled():
            gradients = reference_backward(
                lambda *tensors: scaled_bias_act_backward(*tensors, *options, *wanted), saved, incoming
            )
            return *gradients, None, None, None

        grad_y, y, x, scale, noise, b = saved
        gg_x, gg_scale, gg_noise, gg_b = incoming
        gg_x = torch.zeros_like(grad_y) if gg_x is None else _dense(gg_x, ctx.layout)
        gg_scale, gg_noise, gg_b = (None if g is None else g.contiguous() for g in (gg_scale, gg_noise, gg_b))
        _, of_y, of_x, of_scale, of_noise, of_b, *_ = ctx.needs_input_grad
        from_input = options.slope_needs_input()
        of_r = options.slope_varies() and (of_y or (from_input and (of_x or of_scale or of_noise or of_b)))
        gg_y, grad_x, grad_scale, grad_r = torch.ops.fastvfx.bias_act_bwd_bwd(
            grad_y, gg_x, y, x, scale, noise, b, gg_scale, gg_noise, gg_b, *options.codes(), of_scale, of_r
        )
        grads = [grad_x if gg_scale is not None else None, grad_scale if of_scale else None, None, None]
        if of_r and from_input:  # what flows into the argument of the activation goes on to what it is the sum of
            through = (of_x, of_scale, noise.shape[0] if of_noise else 0, of_b)
            linear = options._replace(act="linear", gain=1.0, clamp=None)
            more = torch.ops.fastvfx.bias_act_bwd(grad_r, None, x, scale, None, None, *linear.codes(), *through[1:])
            grads = [g if not t else m if g is None else g + m for g, m, t in zip(grads, more, through, strict=True)]
        return gg_y, grad_r if of_r and not from_input else None, *grads, None, None, None


def checked_activation(
    op: str, act: str, alpha: float | None, gain: float | None, clamp: float | None
) -> tuple[float, float]:
    """``alpha`` and ``gain`` with their defaults filled in, or an error that names what is wrong."""
    _check.is_one_of(op, "act", act, ACTIVATIONS)
    _check.is_number_or_none(op, alpha=alpha, gain=gain, clamp=clamp)
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"fastvfx.{op}: expected clamp to be None or at least 0, got {clamp}")
    for name, value in {"alpha": alpha, "gain": gain}.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"fastvfx.{op}: expected {name} to be a finite number, got {value}")
    kind = ACTIVATIONS[act]
    return kind.alpha if alpha is None else float(alpha), kind.gain if gain is None else float(gain)
