"""Schema, shapes and call of ``aabb_fwd``; the public function is in fastvfx/functional."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import DTYPE_CODE, define, executor, kernel, on, ptr


def _outputs(rays_o: Tensor, aabbs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = (rays_o.shape[0], aabbs.shape[0])
    return rays_o.new_empty(shape), rays_o.new_empty(shape), rays_o.new_empty(shape, dtype=torch.bool)


def _fake(rays_o, rays_d, aabbs, nears, fars, near, far, miss_value):
    return _outputs(rays_o, aabbs)


def _fwd(rays_o, rays_d, aabbs, nears, fars, near, far, miss_value):
    outputs = _outputs(rays_o, aabbs)
    with on(rays_o.device):
        kernel("aabb_fwd", rays_o.device)(
            DTYPE_CODE[rays_o.dtype], rays_o.shape[0], aabbs.shape[0], ptr(rays_o), ptr(rays_d), ptr(aabbs),
            ptr(nears), ptr(fars), near, far, miss_value, *(ptr(x) for x in outputs), *executor(rays_o.device),
        )  # fmt: skip
    return outputs


define(
    "aabb_fwd(Tensor rays_o, Tensor rays_d, Tensor aabbs, Tensor? nears, Tensor? fars, float near, float far,"
    " float miss_value) -> (Tensor, Tensor, Tensor)",
    _fwd,
    _fake,
)
