"""Compositing packed rays of very different lengths, the work of every NeRF training step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from harness import Race, Workload, against_torch
from torch import Tensor

import fastvfx
from fastvfx.reference import composite as padded


def flat(sigmas: Tensor, rgbs: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    """The same with one scan over all samples in place of padding, as a third baseline.

    In float64: optical depth sums up over all rays, and float32 would lose the last ones.
    """
    n_rays = offsets.shape[0] - 1
    ray = torch.repeat_interleave(torch.arange(n_rays, device=offsets.device), offsets.diff(), output_size=len(sigmas))
    tau = sigmas * (t_ends - t_starts)  # (N,)
    total = torch.cumsum(tau.double(), 0)
    before = total - tau
    T = torch.exp(before[offsets[:-1].clamp(max=len(tau) - 1)][ray] - before).float()
    w = T * -torch.expm1(-tau)
    opacity = w.new_zeros(n_rays).index_add(0, ray, w)
    depth = w.new_zeros(n_rays).index_add(0, ray, w * (0.5 * (t_starts + t_ends)))
    rgb = w.new_zeros(n_rays, rgbs.shape[1]).index_add(0, ray, w[:, None] * rgbs)
    return rgb, opacity, depth / opacity.clamp(min=torch.finfo(w.dtype).eps)


def prepare(
    device: str, small: bool, rays: int, direction: str, channels: int = 3, dtype: torch.dtype = torch.float32
) -> Race:
    """Rays of 0 to 128 samples, 64 in the mean; gradients to densities and colours."""
    rays = 123 if small else rays
    longest = 128
    counts = torch.randint(0, longest + 1, (rays,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    n = int(offsets[-1])
    t_starts = (torch.arange(n) - offsets[:-1].repeat_interleave(counts)) * 0.02 + 1  # (N,)
    sigmas = (torch.randn(n).exp() * 2).to(dtype)
    inputs = (sigmas, torch.rand(n, channels).to(dtype), t_starts, t_starts + 0.02, offsets)

    def ours(*inputs: Any) -> tuple[Tensor, ...]:
        return fastvfx.composite(*inputs)[:3]

    def reference(*inputs: Any) -> tuple[Tensor, ...]:
        return padded(*inputs, max_per_ray=longest)[:3]

    # Densities, colours and two distances are read; per ray the colour, opacity and depth are written and an offset
    # is read. The backward reads all of it again with the incoming gradients and writes two gradients per sample.
    stored = dtype.itemsize * (1 + channels)
    forward = n * (stored + 8) + rays * (4 * (channels + 2) + 8)
    backward = forward + n * stored + rays * 4 * 2
    return against_torch(
        ours,
        reference,
        [x.to(device) for x in inputs],
        device=device,
        grad=() if direction == "fwd" else (0, 1),
        items=n,
        item="sample",
        shape=f"{n} samples in {rays} rays of 0 to {longest}, C={channels}, {str(dtype).removeprefix('torch.')}",
        n_bytes=forward if direction == "fwd" else forward + backward,
        also={"torch flat scan": flat} if dtype is torch.float32 else None,
    )


CASES: dict[str, dict[str, Any]] = {
    "4M samples": {"rays": 1 << 16},
    "1M samples": {"rays": 1 << 14},
    "1M samples, C=16": {"rays": 1 << 14, "channels": 16},
    "4M samples, fp16": {"rays": 1 << 16, "dtype": torch.float16},
}
TARGETS = {"4M samples": {"fwd": 20.0, "fwd+bwd": 15.0}}
WORKLOADS = [
    Workload(
        "composite",
        case,
        direction,
        partial(prepare, direction=direction, **sizes),
        TARGETS.get(case, {}).get(direction),
    )
    for case, sizes in CASES.items()
    for direction in ("fwd", "fwd+bwd")
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_composite(workload, versus):
    versus(workload)
