"""``torch_utils.ops.conv2d_gradfix``: convolutions whose gradient for the weights can be switched off.

PyTorch's own convolutions have every order of derivative today, and compute no gradient that ``autograd.grad`` was not
asked for, so that only the switch is left to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

enabled = True  #: training scripts set it; nothing depends on it
weight_gradients_disabled = False  #: read when a backward pass runs


@contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """No gradients for the weights of :func:`conv2d` and :func:`conv_transpose2d` in backward passes run inside."""
    global weight_gradients_disabled
    before = weight_gradients_disabled
    weight_gradients_disabled = before or disable
    try:
        yield
    finally:
        weight_gradients_disabled = before


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv2d``."""
    return F.conv2d(input, _switched(weight), bias, stride, padding, dilation, groups)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """``torch.nn.functional.conv_transpose2d``."""
    return F.conv_transpose2d(input, _switched(weight), bias, stride, padding, output_padding, groups, dilation)


def _switched(weight: Tensor) -> Tensor:
    return _Switch.apply(weight) if weight.requires_grad and torch.is_grad_enabled() else weight


class _Switch(torch.autograd.Function):
    """The identity, with no gradient while the switch is off."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        return None if weight_gradients_disabled else grad
