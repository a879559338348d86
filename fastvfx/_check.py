"""Argument checks. Every message reads ``fastvfx.op: expected WHAT, got WHAT``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from . import _ext

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# The symbols are torch.compile's.
NUMBERS = (float, int, torch.SymFloat, torch.SymInt, Real)
INTEGERS = (int, torch.SymInt, Integral)


def is_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise _type_error(op, name, "a torch.Tensor", value)


def is_number(op: str, **values: object) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, NUMBERS):
            raise _type_error(op, name, "a number", value)


def is_number_or_none(op: str, **values: object) -> None:
    is_number(op, **{name: value for name, value in values.items() if value is not None})


def is_int(op: str, **values: object) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, INTEGERS):
            raise _type_error(op, name, "an int", value)


def is_bool(op: str, **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise _type_error(op, name, "a bool", value)


def is_one_of(op: str, name: str, value: object, choices: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"fastvfx.{op}: expected {name} to be one of {', '.join(choices)}, got {value!r}")


def _type_error(op: str, name: str, wanted: str, value: object) -> TypeError:
    return TypeError(f"fastvfx.{op}: expected {name} to be {wanted}, got {type(value).__name__}")


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
        if tensor is None:
            continue
        is_tensor(op, name, tensor)
        if tensor.device != first.device:
            raise ValueError(
                f"fastvfx.{op}: expected {name} on {first.device} like {first_name}, got it on {tensor.device}"
            )
    return first.device


def has_shape(op: str, name: str, tensor: Tensor, expected: Sequence[int], described: Callable[[], str]) -> None:
    """``described()`` is the shape in words, e.g. ``(n_samples, channels) with n_samples=4096``.

    A function, so that there is a string only when there is something to say: torch.compile cannot format symbolic
    sizes.
    """
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"fastvfx.{op}: expected {name} of shape {described()}, got {tuple(tensor.shape)}")


def offsets(op: str, offsets: Tensor, n_samples: int, padded: bool) -> None:
    """Packed rays' offsets (n_rays + 1,) on the CPU: sorted, from 0 to ``n_samples`` (or less, if ``padded``).

    Not done on a GPU, where it would wait for the device.
    """
    if _ext._C is not None:
        bad = _ext._C.check_offsets(offsets.data_ptr(), offsets.shape[0] - 1)
    else:
        steps = torch.diff(offsets)
        bad = int(steps.argmin()) if steps.numel() and int(steps.min()) < 0 else -1
    if bad >= 0:
        raise ValueError(
            f"fastvfx.{op}: expected sorted offsets, got offsets[{bad}]={int(offsets[bad])} "
            f"> offsets[{bad + 1}]={int(offsets[bad + 1])}"
        )
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last > n_samples or (last < n_samples and not padded):
        raise ValueError(
            f"fastvfx.{op}: expected offsets from 0 to n_samples={n_samples}, got {first} to {last}"
            + ("" if padded or last > n_samples else "; pass padded=True if the samples behind the last are padding")
        )


def is_concrete(tensor: Tensor) -> bool:
    """Whether the tensor's values can be read now: not while tracing, and not on a GPU without waiting for it."""
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling()
