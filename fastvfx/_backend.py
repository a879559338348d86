"""Which implementation runs: the native kernels or the PyTorch reference."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Literal

import torch

from . import _ext

Backend = Literal["auto", "native", "reference"]
_CHOICES = ("auto", "native", "reference")


def _checked(name: str, source: str) -> str:
    if name not in _CHOICES:
        raise ValueError(f"{source}: expected one of {', '.join(_CHOICES)}, got {name!r}")
    return name


_current: str = _checked(os.environ.get("FASTVFX_BACKEND", "auto"), "FASTVFX_BACKEND")


def get_backend() -> str:
    """The backend in force: ``"auto"``, ``"native"`` or ``"reference"``."""
    return _current


class backend:
    """Choose the implementation of every operator; usable as a statement or as a context manager.

    ``"auto"`` (the default, or what ``FASTVFX_BACKEND`` says) runs the native kernel where one was built for the
    tensors' device and the PyTorch reference elsewhere; ``"native"`` raises ``RuntimeError`` instead of falling back;
    ``"reference"`` always runs PyTorch.

    >>> with fastvfx.backend("reference"):
    ...     slow = fastvfx.composite(sigmas, rgbs, t_starts, t_ends)
    """

    def __init__(self, name: Backend) -> None:
        global _current
        self.previous = _current
        _current = _checked(name, "fastvfx.backend")

    def __enter__(self) -> backend:
        return self

    def __exit__(self, *exc: object) -> None:
        global _current
        _current = self.previous


def use_native(op: str, device: torch.device) -> bool:
    """Whether ``op`` runs natively for tensors on ``device``. Raises ``RuntimeError`` if it must but cannot."""
    if _current == "reference":
        return False
    if device.type in _ext.native_devices or (device.type == "meta" and _ext.native_devices):
        return True
    if _current == "native":
        reason = _ext.why_missing or (
            f"fastvfx._C was built without kernels for {device.type}; "
            + ("rebuild with nvcc on PATH" if device.type == "cuda" else "it has them for cpu and cuda")
        )
        raise RuntimeError(f"fastvfx.{op}: no native kernel for device {device}: {reason}")
    return False


def why_no_triton() -> str | None:
    """Why Triton kernels cannot run, or ``None`` if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; `pip install triton` brings it"
    return None


def use_triton(op: str, device: torch.device, why_not: Callable[[], str | None]) -> bool:
    """:func:`use_native` for an operator whose GPU kernel is written in Triton.

    ``why_not`` says why that kernel does not take the arguments at hand, or returns ``None`` if it does.
    """
    if device.type != "cuda":
        return use_native(op, device)
    if _current == "reference":
        return False
    reason = why_no_triton() or why_not()
    if reason is not None and _current == "native":
        raise RuntimeError(f"fastvfx.{op}: no native kernel for device {device}: {reason}")
    return reason is None
