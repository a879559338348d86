"""Bias, activation, gain and clamp in one pass."""

from __future__ import annotations

import math

from torch import Tensor

from .. import _check
from ..reference.bias_act import ACTIVATIONS
from ..reference.bias_act import bias_act as reference


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

    Differentiable in ``x`` and ``b`` to any order.

    Raises:
        TypeError: ``x`` or ``b`` is no tensor of floats.
        ValueError: the bias does not fit, ``act`` is unknown, ``clamp`` is negative, or a number is not finite.

    >>> fastvfx.bias_act(torch.randn(4, 64, 32, 32), torch.zeros(64), act="lrelu", clamp=256)
    """
    op = "bias_act"
    alpha, gain = checked_activation(op, act, alpha, gain, clamp)
    _check.is_float(op, x=x, b=b)
    _check.same_device(op, x=x, b=b)
    if b is not None:
        if not -x.dim() <= dim < x.dim():
            raise ValueError(f"fastvfx.{op}: expected dim to be a dimension of x of shape {tuple(x.shape)}, got {dim}")
        if b.dim() != 1 or b.shape[0] != x.shape[dim]:
            raise ValueError(
                f"fastvfx.{op}: expected b of shape (x.shape[dim],) with dim={dim} and x of shape {tuple(x.shape)}, "
                f"got {tuple(b.shape)}"
            )
        dim %= x.dim()
    return reference(x, b, dim, act, alpha, gain, clamp)


def checked_activation(
    op: str, act: str, alpha: float | None, gain: float | None, clamp: float | None
) -> tuple[float, float]:
    """``alpha`` and ``gain`` with their defaults filled in, or an error that names what is wrong."""
    if act not in ACTIVATIONS:
        raise ValueError(f"fastvfx.{op}: expected act to be one of {', '.join(ACTIVATIONS)}, got {act!r}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"fastvfx.{op}: expected clamp to be None or at least 0, got {clamp}")
    for name, value in {"alpha": alpha, "gain": gain}.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"fastvfx.{op}: expected {name} to be a finite number, got {value}")
    kind = ACTIVATIONS[act]
    return kind.alpha if alpha is None else float(alpha), kind.gain if gain is None else float(gain)
