"""The Triton kernels of attention compiled for GPUs without one: on tensor cores, within shared memory, without spills.

What is compiled is what a launch on a video of 30 x 48 x 80 tokens would compile.
"""

from __future__ import annotations

import math
from typing import Any

import ahead
import pytest
import torch

from fastvfx import patterns
from fastvfx.patterns import Pattern

pytest.importorskip("triton")

GRID = (30, 48, 80)
SHARED = {80: 163, 90: 227, 120: 99}  # KiB that a block may have
FULL, NEAR = patterns.Full(), patterns.Neighborhood((19, 25, 25))
# Bytes of a thread's registers that lie in memory instead: a few that a loop does not need, or only the pairwise tests.
STACK = 160
CASES = [
    *((80, kernel, NEAR, 64) for kernel in ("fwd", "bwd_q", "bwd_kv")),
    *((90, kernel, FULL, 128) for kernel in ("fwd", "bwd_q", "bwd_kv")),
    *((90, kernel, NEAR, 64) for kernel in ("fwd", "bwd_q", "bwd_kv")),
    *((120, kernel, NEAR, 128) for kernel in ("fwd", "bwd_q", "bwd_kv")),
]


def recorded(monkeypatch: Any, capability: int, pattern: Pattern, dim: int, **more: Any) -> dict[str, ahead.Recorder]:
    """The kernels that a forward and a backward on a GPU of that capability would launch, by name."""
    from fastvfx._triton import attention as kernels

    recorders = {n: ahead.Recorder(getattr(kernels, f"{n}_kernel")) for n in ("fwd", "delta", "bwd_q", "bwd_kv")}
    for name, recorder in recorders.items():
        monkeypatch.setattr(kernels, f"{name}_kernel", recorder)
    monkeypatch.setattr(kernels, "_capability", lambda device: capability)
    n, heads = math.prod(GRID), 8

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    (spans,) = pattern.spans(GRID, None, heads, "meta")
    tensors = [empty(1, n, heads, dim) for _ in range(3)]
    inputs = kernels.Inputs(
        *tensors, None, None, None, None, None, None, None, None, None, *spans.axes, spans.of_head,
        [*GRID, *GRID, *spans.dilation, *spans.sink, 1, 1, 1, 0, *map(int, spans.whole), *spans.reach],
        dim**-0.5, 0.0, 0.0, 0,
    )._replace(**more)  # fmt: skip
    out, lse = empty(1, n, heads, dim), empty(1, heads, n, dtype=torch.float32)
    kernels.forward(inputs, out, lse)
    grads = kernels.Gradients(*(torch.empty_like(x) for x in tensors), None, None, None, None)
    kernels.backward(out, None, inputs, out, lse, grads)
    return recorders


@pytest.mark.parametrize("capability, kernel, pattern, dim", CASES, ids=lambda v: str(v).partition("(")[0].lower())
def test_compiles_without_a_gpu(capability, kernel, pattern, dim, monkeypatch):
    compiled = recorded(monkeypatch, capability, pattern, dim)[kernel].compiled(capability)
    assert compiled.shared <= SHARED[capability] * 1024
    assert compiled.stack <= STACK, f"{compiled.registers} registers, {compiled.stack} bytes beside them"
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in compiled.ptx
    assert "cp.async" in compiled.ptx  # the next tile is fetched meanwhile


def test_a_larger_video_compiles_nothing_anew(monkeypatch):
    """Sizes of grids are arguments: of two launches, only what no kernel is compiled for differs."""
    launches = []
    for grid in ((30, 48, 80), (31, 50, 84)):
        monkeypatch.setitem(globals(), "GRID", grid)
        launches.append([r.launches[0][1] for r in recorded(monkeypatch, 90, NEAR, 64).values()])
        monkeypatch.undo()
    assert launches[0] == launches[1]
