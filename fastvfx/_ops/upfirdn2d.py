"""Schemas, shapes and calls of ``upfirdn2d_*``; the public function is in fastvfx/functional.

Pairs are (y, x) here. ``pad`` is what stands above and to the left of the upsampled image; what stands below and to the
right only decides the size of the output, which is an argument of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import DTYPE_CODE, accumulate_dtype, define, executor, kernel, large_empty, on, ptr

#: ``kUpfirdn2dBlocks`` in csrc/include/fastvfx/upfirdn2d.h.
_BLOCKS = 256


def memory_format(x: Tensor) -> torch.memory_format:
    """How the kernels walk ``x``, (N, C, H, W): by pixels if its channels are last, else by planes."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def empty_images(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised (N, C, H, W) in the dtype, on the device and in the memory format of ``like``."""
    n, channels, height, width = shape
    if memory_format(like) is torch.channels_last:
        return large_empty((n, height, width, channels), like.dtype, like.device).permute(0, 3, 1, 2)
    return large_empty((n, channels, height, width), like.dtype, like.device)


def _sizes(x: Tensor, f_size, out_size, up, down, pad, flip: bool, gain: float) -> tuple[Any, ...]:
    """The arguments that both directions share, in the order of the bindings."""
    n, channels, *in_size = x.shape
    last = memory_format(x) is torch.channels_last
    return (
        DTYPE_CODE[x.dtype], last, n, channels, in_size, out_size, f_size, up, down, pad, flip, gain,
        *executor(x.device),
    )  # fmt: skip


def _fwd_fake(x, f, out_size, up, down, pad, flip, gain):
    shape = (*x.shape[:2], *out_size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _fwd(x, f, out_size, up, down, pad, flip, gain):
    x = x.contiguous(memory_format=memory_format(x))
    f = f.to(accumulate_dtype(x.dtype)).contiguous()
    out = empty_images((*x.shape[:2], *out_size), x)
    if out.numel():
        f_size = (f.shape[0], f.shape[-1])
        with on(x.device):
            kernel("upfirdn2d_fwd", x.device)(
                *_sizes(x, f_size, out_size, up, down, pad, flip, gain), f.dim() == 1, ptr(x), ptr(f), ptr(out)
            )
    return out


def _bwd_f_fake(x, grad_out, f_size, up, down, pad, flip, gain):
    return x.new_empty(f_size, dtype=accumulate_dtype(x.dtype))


def _bwd_f(x, grad_out, f_size, up, down, pad, flip, gain):
    x = x.contiguous(memory_format=memory_format(x))
    grad_out = grad_out.contiguous(memory_format=memory_format(x))
    grad_f = _bwd_f_fake(x, grad_out, f_size, up, down, pad, flip, gain)
    work = grad_f.new_empty((_BLOCKS if x.device.type == "cuda" else 0, *f_size))
    with on(x.device):
        kernel("upfirdn2d_bwd_f", x.device)(
            *_sizes(x, f_size, grad_out.shape[2:], up, down, pad, flip, gain),
            ptr(x), ptr(grad_out), ptr(grad_f), ptr(work),
        )  # fmt: skip
    return grad_f


_OPTIONS = "int[] up, int[] down, SymInt[] pad, bool flip, float gain"

define(f"upfirdn2d_fwd(Tensor x, Tensor f, SymInt[] out_size, {_OPTIONS}) -> Tensor", _fwd, _fwd_fake)
define(f"upfirdn2d_bwd_f(Tensor x, Tensor grad_out, SymInt[] f_size, {_OPTIONS}) -> Tensor", _bwd_f, _bwd_f_fake)
