"""Schema, shapes and calls of ``march`` and ``march_capacity``; the public function is in fastvfx/functional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._common import DTYPE_CODE, define, executor, kernel, on, on_huge_pages, ptr

#: Same as ``march_max_levels`` and ``march_block`` in csrc/include/fastvfx/march.h.
MAX_LEVELS = 8
BLOCK = 128

_INPUTS = (
    "Tensor rays_o, Tensor rays_d, Tensor bits, Tensor aabbs, Tensor? nears, Tensor? fars, Tensor? seed_tensor,"
    " float near, float far, int[] resolution, float step_size, float cone_angle, float max_step_size,"
    " SymInt max_samples, bool jitter, SymInt seed"
)


def _rays(
    rays_o, rays_d, bits, aabbs, nears, fars, seed_tensor, near, far, resolution, step_size, cone_angle, max_step_size,
    max_samples, jitter, seed,
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments that counting and writing share, in the order of the bindings."""
    return (
        DTYPE_CODE[rays_o.dtype], rays_o.shape[0], ptr(rays_o), ptr(rays_d), ptr(nears), ptr(fars), near, far,
        bits.shape[0], *resolution, ptr(bits), ptr(aabbs), step_size, cone_angle, max_step_size, max_samples, jitter,
        seed, ptr(seed_tensor), *executor(rays_o.device),
    )  # fmt: skip


def _check_aabbs(aabbs: Tensor) -> None:
    """Only on the CPU: on a GPU this would wait for the device, so there no ray has samples in such a box."""
    for level, box in enumerate(aabbs.tolist()):
        if not all(-float("inf") < box[i] < box[i + 3] < float("inf") for i in range(3)):
            raise ValueError(
                f"fastvfx.march_rays: expected finite aabbs with lower corner below upper, got aabbs[{level}]={box}"
            )


def _count(inputs: tuple[Any, ...]) -> tuple[Tensor, Any, tuple[Any, ...]]:
    """Sums of the rays' samples, what the CPU found on the way, and the shared arguments."""
    rays_o, aabbs = inputs[0], inputs[3]
    n_rays = rays_o.shape[0]
    is_cpu = rays_o.device.type == "cpu"
    if is_cpu:
        _check_aabbs(aabbs)
    rays = _rays(*inputs)
    sums = rays_o.new_empty((n_rays + 1,), dtype=torch.int64)
    scratch = None if is_cpu else sums.new_empty((1 + (n_rays + BLOCK - 1) // BLOCK,))
    log = _ext._C.MarchLog() if is_cpu and _ext._C is not None else None
    kernel("march_count", rays_o.device)(*rays, ptr(sums), ptr(scratch), log)
    return sums, log, rays


def _samples(rays_o: Tensor, n: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor]:
    shape: Any = (n,)
    return rays_o.new_empty(shape), rays_o.new_empty(shape), rays_o.new_empty(shape, dtype=torch.int32)


def _march(*inputs):
    rays_o = inputs[0]
    with on(rays_o.device):
        sums, log, rays = _count(inputs)
        n = int(sums[-1])  # on a GPU the one wait for the device, without which the outputs have no size
        samples = on_huge_pages(_samples(rays_o, n))
        kernel("march_write", rays_o.device)(*rays, ptr(sums), log, n, *(ptr(x) for x in samples), 0, 0)
    return *samples, sums


def _march_fake(*inputs):
    rays_o = inputs[0]
    n = torch.library.get_ctx().new_dynamic_size()
    return *_samples(rays_o, n), rays_o.new_empty((rays_o.shape[0] + 1,), dtype=torch.int64)


def _capacity_fake(*inputs_and_capacity):
    *inputs, capacity = inputs_and_capacity
    rays_o = inputs[0]
    offsets = rays_o.new_empty((rays_o.shape[0] + 1,), dtype=torch.int64)
    return *_samples(rays_o, capacity), offsets, rays_o.new_empty((), dtype=torch.int64)


def _march_capacity(*inputs_and_capacity):
    *inputs, capacity = inputs_and_capacity
    outputs = on_huge_pages(_capacity_fake(*inputs_and_capacity))
    device = inputs[0].device
    with on(device):
        sums, log, rays = _count(tuple(inputs))
        kernel("march_write", device)(*rays, ptr(sums), log, capacity, *(ptr(x) for x in outputs))
    return outputs


define(f"march({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)", _march, _march_fake)
define(
    f"march_capacity({_INPUTS}, SymInt capacity) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _march_capacity,
    _capacity_fake,
)
