"""``torch_utils.misc``, as far as networks, losses and augmentations use it."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Function = TypeVar("Function", bound=Callable[..., Any])

nan_to_num = torch.nan_to_num
symbolic_assert: Callable[[Any, str], None] = torch._assert


@functools.lru_cache(maxsize=256)
def _constant(
    data: bytes, of: str, value_shape: tuple[int, ...], shape: tuple[int, ...] | None, dtype: Any, device: Any,
    memory_format: Any,
) -> Tensor:  # fmt: skip
    value = torch.as_tensor(np.frombuffer(data, of).reshape(value_shape).copy(), dtype=dtype, device=device)
    if shape is not None:
        value = value.broadcast_to(shape)
    return value.contiguous(memory_format=memory_format)


def constant(
    value: Any,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """``value`` as a tensor, broadcast to ``shape``; the same tensor for the same arguments. Do not write to it."""
    array = np.asarray(value)
    return _constant(
        array.tobytes(), array.dtype.str, array.shape, None if shape is None else tuple(shape),
        dtype or torch.get_default_dtype(), torch.device("cpu" if device is None else device),
        memory_format or torch.contiguous_format,
    )  # fmt: skip


@contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """No ``torch.jit.TracerWarning`` inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def assert_shape(tensor: Tensor, ref_shape: Sequence[int | None]) -> None:
    """Raise AssertionError unless ``tensor`` has the shape ``ref_shape``, in which None stands for any size."""
    if tensor.dim() != len(ref_shape):
        raise AssertionError(f"expected {len(ref_shape)} dimensions, got {tensor.dim()}")
    for i, (size, wanted) in enumerate(zip(tensor.shape, ref_shape, strict=True)):
        if wanted is not None:
            symbolic_assert(size == wanted, f"expected size {wanted} in dimension {i}, got {size}")


def profiled_function(function: Function) -> Function:
    """A function that stands under its own name in the profiler."""

    @functools.wraps(function)
    def profiled(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.profiler.record_function(function.__name__):
            return function(*args, **kwargs)

    return profiled  # type: ignore[return-value]


def params_and_buffers(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def named_params_and_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def copy_params_and_buffers(src_module: nn.Module, dst_module: nn.Module, require_all: bool = False) -> None:
    """Copy what has the same name. With ``require_all``, a name that ``src_module`` lacks raises KeyError."""
    source = dict(named_params_and_buffers(src_module))
    for name, tensor in named_params_and_buffers(dst_module):
        if name in source:
            tensor.detach().copy_(source[name].detach())
        elif require_all:
            raise KeyError(f"copy_params_and_buffers: {name} is missing in {type(src_module).__name__}")


def ddp_sync(module: nn.Module, sync: bool) -> Any:
    """A context in which DistributedDataParallel reduces gradients only if ``sync``."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not sync:
        return module.no_sync()
    return nullcontext()


def check_ddp_consistency(module: nn.Module, ignore_regex: str | None = None) -> None:
    """Raise AssertionError where a parameter or buffer differs from that of rank 0."""
    for name, tensor in named_params_and_buffers(module):
        full = f"{type(module).__name__}.{name}"
        if ignore_regex is not None and re.fullmatch(ignore_regex, full):
            continue
        ours = tensor.detach().clone()
        theirs = ours.clone()
        torch.distributed.broadcast(theirs, src=0)
        if not torch.equal(ours.nan_to_num(), theirs.nan_to_num()):
            raise AssertionError(f"{full} differs between ranks")
