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
STACK = 96  # bytes of a thread's numbers that lie in memory meanwhile: a few that no loop needs
CASES = [
    *((80, kernel, NEAR, 64) for kernel in ("fwd", "bwd_q", "bwd_kv")),
    *((90, kernel, FULL, 128) for kernel in ("fwd", "bwd_q", "bwd_kv")),
    *((90, kernel, NEAR, 64) for kernel in ("fwd", "bwd_q", "bwd_kv")),
    *((120, kernel, NEAR, 128) for kernel in ("fwd", "bwd_q", "bwd_kv")),
]


def recorded(
    monkeypatch: Any, capability: int, pattern: Pattern, dim: int, *options: str, storage: torch.dtype = torch.bfloat16
) -> dict[str, ahead.Recorder]:
    """The kernels that a forward and a backward on a GPU of that capability would launch, by name."""
    from fastvfx._triton import attention as kernels
    from fastvfx._triton import attention_rotary

    recorders = {n: ahead.Recorder(getattr(kernels, f"{n}_kernel")) for n in ("fwd", "delta", "bwd_q", "bwd_kv")}
    for name, recorder in recorders.items():
        monkeypatch.setattr(kernels, f"{name}_kernel", recorder)
    recorders["rotate"] = ahead.Recorder(attention_rotary.rotate_kernel)
    monkeypatch.setattr(attention_rotary, "rotate_kernel", recorders["rotate"])
    monkeypatch.setattr(kernels, "_capability", lambda device: capability)
    n, heads = math.prod(GRID), 8

    def empty(*shape: int, dtype: torch.dtype = storage) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    (spans,) = pattern.spans(GRID, None, heads, "meta")
    tensors = [empty(1, n, heads, dim) for _ in range(3)]
    inputs = kernels.Inputs(
        *tensors, None, None, None, None, None, None, None, None, None, *spans.axes, spans.of_head,
        [*GRID, *GRID, *spans.dilation, *spans.sink, 4, 4, 6, 0, *map(int, spans.whole), *spans.reach],
        dim**-0.5, 0.0, 0.0, 0,
    )  # fmt: skip
    optional = {
        "extra_k": empty(1, 77, heads, dim), "extra_v": empty(1, 77, heads, dim),
        "extra_mask": empty(1, 77, dtype=torch.bool), "kv_mask": empty(1, n, dtype=torch.bool),
        "relative_bias": empty(heads, *(2 * r + 1 for r in spans.reach), dtype=torch.float32),
        "bias": empty(1, heads, n, n), "rotary": empty(n, dim // 2, 2, dtype=torch.float32),
        "kv_rotary": empty(n, dim // 2, 2, dtype=torch.float32),
        "blocks": empty(1, 1, 8 * 12 * 14, 9, dtype=torch.int32),
        "softcap": 30.0, "dropout": 0.1,
    }  # fmt: skip
    inputs = inputs._replace(**{name: optional[name] for name in options})
    out, lse = empty(1, n, heads, dim), empty(1, heads, n, dtype=torch.float32)
    kernels.forward(inputs, out, lse)
    grads = kernels.Gradients(*(None if x is None else torch.empty_like(x) for x in gradients_of(inputs)))
    kernels.backward(out, lse, inputs, out, lse, grads)
    return recorders


def gradients_of(inputs: Any) -> tuple[Any, ...]:
    return inputs.q, inputs.k, inputs.v, inputs.extra_k, inputs.extra_v, inputs.relative_bias, inputs.bias


@pytest.mark.parametrize("capability, kernel, pattern, dim", CASES, ids=lambda v: str(v).partition("(")[0].lower())
def test_compiles_without_a_gpu(capability, kernel, pattern, dim, monkeypatch):
    compiled = recorded(monkeypatch, capability, pattern, dim)[kernel].compiled(capability)
    assert compiled.shared <= SHARED[capability] * 1024
    assert compiled.stack <= STACK, f"{compiled.registers} registers, {compiled.stack} bytes beside them"
    assert compiled.spilled == 0
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in compiled.ptx
    assert "cp.async" in compiled.ptx  # the next tile is fetched meanwhile


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_extra_keys_fit_as_well(capability, monkeypatch):
    kernels = recorded(monkeypatch, capability, FULL, 128, "extra_k", "extra_v")
    for name in ("fwd", "bwd_q"):
        assert kernels[name].compiled(capability).shared <= SHARED[capability] * 1024


@pytest.mark.parametrize("kernel", ["fwd", "bwd_q", "bwd_kv"])
def test_float32_fits_everywhere(kernel, monkeypatch):
    compiled = recorded(monkeypatch, 120, NEAR, 256, storage=torch.float32)[kernel].compiled(120)
    assert compiled.shared <= SHARED[120] * 1024
    assert "mma.sync" in compiled.ptx


OPTIONS = {
    "biases": ("relative_bias", "bias", "softcap"),
    "masks": ("extra_k", "extra_v", "extra_mask", "kv_mask", "dropout"),
    "blocks": ("blocks",),
}


def small_tiles(monkeypatch: Any) -> None:
    """They compile fast. The interpreter does not see types; the compiler does."""
    from fastvfx._triton import attention as kernels
    from fastvfx._triton.attention_plan import Tile

    monkeypatch.setattr(kernels, "tiles_of", lambda *_: (Tile(16, 16, 1, 2),) * 3)


@pytest.mark.parametrize("kernel", ["fwd", "bwd_q", "bwd_kv"])
@pytest.mark.parametrize("options", list(OPTIONS))
def test_options_compile(options, kernel, monkeypatch):
    small_tiles(monkeypatch)
    recorder = recorded(monkeypatch, 80, NEAR, 16, *OPTIONS[options])[kernel]
    for launch in range(len(recorder.launches)):
        assert "mma.sync" in recorder.compiled(80, launch).ptx


@pytest.mark.parametrize("kernel", ["fwd", "bwd_kv"])
@pytest.mark.parametrize(
    "pattern",
    [patterns.CausalTime(local=3, sink=1), patterns.Neighborhood(3, dilation=2), patterns.Divided("time")],
    ids=["sink", "dilated", "time"],
)
def test_patterns_compile(pattern, kernel, monkeypatch):
    small_tiles(monkeypatch)
    assert "mma.sync" in recorded(monkeypatch, 80, pattern, 16)[kernel].compiled(80).ptx


@pytest.mark.parametrize("kernel", ["delta", "rotate"])
def test_small_kernels_compile(kernel, monkeypatch):
    recorder = recorded(monkeypatch, 90, FULL, 80, "rotary", "kv_rotary")[kernel]
    assert recorder.compiled(90).stack == 0


def test_a_larger_video_compiles_nothing_anew(monkeypatch):
    """Sizes of grids are arguments: of two launches, only what no kernel is compiled for differs."""
    launches = []
    for grid in ((30, 48, 80), (31, 50, 84)):
        monkeypatch.setitem(globals(), "GRID", grid)
        recorders = recorded(monkeypatch, 90, NEAR, 64)
        launches.append([recorders[n].launches[0][1] for n in ("fwd", "bwd_q", "bwd_kv")])
        monkeypatch.undo()
    assert launches[0] == launches[1]
