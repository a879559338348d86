"""What every operator's registration needs: the library, pointers, dtype codes, threads and streams."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from .. import _ext

LIB = torch.library.Library("fastvfx", "DEF")

#: Same table as ``DType`` in csrc/include/fastvfx/dtype.h.
DTYPE_CODE = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


def accumulate_dtype(storage: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: 16-bit types are only ever stored."""
    return torch.float64 if storage is torch.float64 else torch.float32


def ptr(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


#: Below this, what the kernel saves on page faults is not worth a system call.
_HUGE = 4 << 20


def on_huge_pages(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Ask for huge pages under large outputs that nothing has been written to yet.

    The system's allocator maps large tensors afresh each time, so that a kernel which only streams spends more time on
    page faults (4 KiB each) than on its work. Only Linux has the call; elsewhere, and on a GPU, this does nothing.
    """
    for tensor in outputs:
        if tensor.nbytes >= _HUGE and tensor.device.type == "cpu" and _ext._C is not None:
            _ext._C.use_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return outputs


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register ``fastvfx::<schema>``: one implementation for CPU and CUDA, which differ in the kernel they name."""
    name = schema.partition("(")[0]
    LIB.define(schema)
    LIB.impl(name, implementation, "CPU")
    LIB.impl(name, implementation, "CUDA")
    torch.library.register_fake(f"fastvfx::{name}", fake, lib=LIB)


def kernel(name: str, device: torch.device) -> Callable[..., None]:
    """The ``_C`` function of that name for ``device``."""
    function = getattr(_ext._C, f"{name}_{device.type}", None)
    if function is None:
        raise RuntimeError(f"fastvfx.{name}: no native kernel for {device}: {_ext.why_missing or 'it was not built'}")
    return function


def executor(device: torch.device) -> tuple[int, int]:
    """``(threads, stream)`` to run with: torch's thread count on the CPU, torch's current stream on a GPU."""
    if device.type == "cpu":
        return torch.get_num_threads(), 0
    return 0, torch.cuda.current_stream(device).cuda_stream


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes ``device`` the current one while a kernel is launched."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def large_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.empty``, where a large result on the CPU lies in memory that is kept when it dies and used again.

    Huge pages alone leave the cost of clearing them: 6 ms for the 48 MB gradient of a hash grid on a virtual machine
    (26 without them), half the time of the kernel that fills it. At most 256 MiB are kept.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    poisoned = (
        torch.are_deterministic_algorithms_enabled() and deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    )
    if device.type != "cpu" or n_bytes < _HUGE or _ext._C is None or poisoned:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(_ext._C.HostBlock(n_bytes), dtype=dtype).view(shape)


def large_empty_like(like: Tensor) -> Tensor:
    """``torch.empty_like`` of a dense tensor, strides included, by :func:`large_empty`."""
    if like.device.type != "cpu" or like.nbytes < _HUGE:
        return torch.empty_like(like)
    return large_empty((like.numel(),), like.dtype, like.device).as_strided(like.size(), like.stride())
