"""Argument checks. Every message reads ``fastvfx.op: expected WHAT, got WHAT``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def is_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"fastvfx.{op}: expected {name} to be a torch.Tensor, got {type(value).__name__}")


def is_float(op: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        is_tensor(op, name, tensor)
        if tensor.dtype not in FLOATS:
            raise TypeError(
                f"fastvfx.{op}: expected {name} of dtype float32, float16, bfloat16 or float64, got {tensor.dtype}"
            )


def same_device(op: str, **tensors: Tensor | None) -> torch.device:
    """The device that all tensors share."""
    first_name, first = next((n, t) for n, t in tensors.items() if t is not None)
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(
                f"fastvfx.{op}: expected {name} on {first.device} like {first_name}, got it on {tensor.device}"
            )
    return first.device


def has_shape(op: str, name: str, tensor: Tensor, expected: Sequence[int], described: str) -> None:
    """``described`` is the shape in words, e.g. ``(n_samples, channels) with n_samples=4096``."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"fastvfx.{op}: expected {name} of shape {described}, got {tuple(tensor.shape)}")
