"""Schemas, shapes and calls of ``frequency_*``; the public function is in fastvfx/functional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import DTYPE_CODE, define, executor, kernel, on, on_huge_pages, ptr

#: Same table as ``FrequencyLayout`` in csrc/include/fastvfx/frequency.h; the code of NeRF and torch-ngp agree.
LAYOUT = {"tcnn": 0, "torch_ngp": 1, "nerf": 1, "nerfstudio": 2}

_OPTIONS = "int n_frequencies, int layout, bool include_input"


def _rows(x: Tensor, n_frequencies: int, layout: int, include_input: bool) -> tuple[Any, ...]:
    """The arguments that every direction shares, in the order of the bindings."""
    n, dims = x.shape
    return DTYPE_CODE[x.dtype], layout, include_input, n, dims, n_frequencies, ptr(x), *executor(x.device)


def _fwd_fake(x, n_frequencies, layout, include_input):
    n, dims = x.shape
    return x.new_empty((n, dims * (2 * n_frequencies + include_input)))


def _fwd(x, n_frequencies, layout, include_input):
    (out,) = on_huge_pages((_fwd_fake(x, n_frequencies, layout, include_input),))
    with on(x.device):
        kernel("frequency_fwd", x.device)(*_rows(x, n_frequencies, layout, include_input), ptr(out))
    return out


def _bwd_fake(x, grad_out, n_frequencies, layout, include_input):
    return torch.empty_like(x)


def _bwd(x, grad_out, n_frequencies, layout, include_input):
    (grad_x,) = on_huge_pages((torch.empty_like(x),))
    with on(x.device):
        kernel("frequency_bwd", x.device)(*_rows(x, n_frequencies, layout, include_input), ptr(grad_out), ptr(grad_x))
    return grad_x


def _bwd_bwd_fake(x, grad_out, grad_grad_x, n_frequencies, layout, include_input):
    return torch.empty_like(x), torch.empty_like(grad_out)


def _bwd_bwd(x, grad_out, grad_grad_x, n_frequencies, layout, include_input):
    grad_x, grad_grad_out = on_huge_pages((torch.empty_like(x), torch.empty_like(grad_out)))
    with on(x.device):
        kernel("frequency_bwd_bwd", x.device)(
            *_rows(x, n_frequencies, layout, include_input),
            ptr(grad_out), ptr(grad_grad_x), ptr(grad_x), ptr(grad_grad_out),
        )  # fmt: skip
    return grad_x, grad_grad_out


define(f"frequency_fwd(Tensor x, {_OPTIONS}) -> Tensor", _fwd, _fwd_fake)
define(f"frequency_bwd(Tensor x, Tensor grad_out, {_OPTIONS}) -> Tensor", _bwd, _bwd_fake)
define(
    f"frequency_bwd_bwd(Tensor x, Tensor grad_out, Tensor grad_grad_x, {_OPTIONS}) -> (Tensor, Tensor)",
    _bwd_bwd,
    _bwd_bwd_fake,
)
