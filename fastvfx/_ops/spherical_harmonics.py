"""Schemas, shapes and calls of ``spherical_harmonics_*``; the public function is in fastvfx/functional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import DTYPE_CODE, define, executor, kernel, on, on_huge_pages, ptr

_OPTIONS = "int degree, bool condon_shortley, bool unit_range"


def _rows(dirs: Tensor, degree: int, condon_shortley: bool, unit_range: bool) -> tuple[Any, ...]:
    """The arguments that every direction shares, in the order of the bindings."""
    threads, stream = executor(dirs.device)
    return (
        DTYPE_CODE[dirs.dtype], dirs.shape[0], degree, condon_shortley, unit_range, ptr(dirs), threads, stream,
    )  # fmt: skip


def _fwd_fake(dirs, degree, condon_shortley, unit_range):
    return dirs.new_empty((dirs.shape[0], degree * degree))


def _fwd(dirs, degree, condon_shortley, unit_range):
    (out,) = on_huge_pages((_fwd_fake(dirs, degree, condon_shortley, unit_range),))
    with on(dirs.device):
        kernel("spherical_harmonics_fwd", dirs.device)(*_rows(dirs, degree, condon_shortley, unit_range), ptr(out))
    return out


def _bwd_fake(dirs, grad_out, degree, condon_shortley, unit_range):
    return torch.empty_like(dirs)


def _bwd(dirs, grad_out, degree, condon_shortley, unit_range):
    (grad_dirs,) = on_huge_pages((torch.empty_like(dirs),))
    with on(dirs.device):
        kernel("spherical_harmonics_bwd", dirs.device)(
            *_rows(dirs, degree, condon_shortley, unit_range), ptr(grad_out), ptr(grad_dirs)
        )
    return grad_dirs


def _bwd_bwd_fake(dirs, grad_out, grad_grad_dirs, degree, condon_shortley, unit_range):
    return torch.empty_like(dirs), torch.empty_like(grad_out)


def _bwd_bwd(dirs, grad_out, grad_grad_dirs, degree, condon_shortley, unit_range):
    grad_dirs, grad_grad_out = on_huge_pages((torch.empty_like(dirs), torch.empty_like(grad_out)))
    with on(dirs.device):
        kernel("spherical_harmonics_bwd_bwd", dirs.device)(
            *_rows(dirs, degree, condon_shortley, unit_range),
            ptr(grad_out), ptr(grad_grad_dirs), ptr(grad_dirs), ptr(grad_grad_out),
        )  # fmt: skip
    return grad_dirs, grad_grad_out


define(f"spherical_harmonics_fwd(Tensor dirs, {_OPTIONS}) -> Tensor", _fwd, _fwd_fake)
define(f"spherical_harmonics_bwd(Tensor dirs, Tensor grad_out, {_OPTIONS}) -> Tensor", _bwd, _bwd_fake)
define(
    f"spherical_harmonics_bwd_bwd(Tensor dirs, Tensor grad_out, Tensor grad_grad_dirs, {_OPTIONS}) -> (Tensor, Tensor)",
    _bwd_bwd,
    _bwd_bwd_fake,
)
