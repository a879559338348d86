"""Hash grid encoding as in Instant NGP: 16 levels, two features, 2^19 entries a level; uniform points."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import CheckFailed, Race, Workload, against_torch, error, fwd_bwd
from torch import Tensor

import fastvfx
from fastvfx.reference import hashgrid as reference

DRJIT = "Dr.Jit LLVM"


def drjit_race(x: Tensor, table: Tensor, spec: fastvfx.HashGridSpec, train: bool) -> tuple[Callable[[int], Any], Any]:
    """Dr.Jit's HashGridEncoding with its own arrays, made once: nothing is converted while the clock runs.

    Returns the call and a function that gives its last encoding and gradient of the table as tensors.
    """
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/llvm-19/lib", "/usr/lib64"):
        for library in sorted(Path(folder).glob("libLLVM*.so*"), reverse=True):
            os.environ.setdefault("DRJIT_LIBLLVM_PATH", str(library))
    import drjit as dr
    from drjit.hashgrid import HashGridEncoding
    from drjit.llvm.ad import Float

    dr.set_thread_count(torch.get_num_threads())
    encoding = HashGridEncoding(
        Float,
        spec.n_input_dims,
        n_levels=spec.n_levels,
        n_features_per_level=spec.n_features_per_level,
        hashmap_size=2**spec.log2_hashmap_size,
        base_resolution=spec.base_resolution,
        per_level_scale=spec.growth,
        torchngp_compat=True,
    )
    encoding.data = Float(table.detach().flatten().numpy())
    points = [Float(column.contiguous().numpy()) for column in x.T]
    generator = torch.Generator().manual_seed(0)  # the incoming gradient of harness.fwd_bwd
    incoming = torch.randn((x.shape[0], spec.n_output_dims), generator=generator)
    weights = [Float(column.contiguous().numpy()) for column in incoming.T]
    dr.eval(encoding.data, points, weights)
    last: list[Any] = []

    def call(_: int) -> None:
        last.clear()
        if not train:
            with dr.suspend_grad():
                last.append(encoding(points))
            dr.eval(last)
        else:
            dr.enable_grad(encoding.data)
            dr.set_grad(encoding.data, 0)
            last.append(encoding(points))
            loss = sum((e * w for e, w in zip(last[0], weights, strict=True)), Float(0))
            dr.backward(dr.sum(loss))
            last.append(dr.grad(encoding.data))
            dr.eval(last)
        dr.sync_thread()

    def results() -> list[Tensor]:
        encoded = torch.stack([torch.from_numpy(dr.detach(e).numpy()) for e in last[0]], 1)
        return [encoded, *(torch.from_numpy(g.numpy()).view(table.shape) for g in last[1:])]

    return call, results


def prepare(
    device: str,
    small: bool,
    direction: str,
    n: int = 1 << 17,
    max_resolution: int | None = 2048,
    dtype: torch.dtype = torch.float32,
    peer: bool = False,
) -> Race:
    """Gradients to the table, as training a field takes them; ``fwd+bwd x`` to the points too."""
    spec = fastvfx.HashGridSpec(max_resolution=max_resolution)
    if small:
        spec, n = fastvfx.HashGridSpec(n_levels=4, log2_hashmap_size=10), 123
    x = torch.rand(n, 3).to(device)
    table = (torch.rand(spec.n_entries, 2) - 0.5).to(device, dtype)
    train = direction != "fwd"
    n_bytes = x.nbytes + table.nbytes + n * spec.n_output_dims * dtype.itemsize
    race = against_torch(
        lambda x, table: fastvfx.hashgrid(x, table, spec),
        lambda x, table: reference(x, table, spec),
        [x, table],
        device=device,
        grad=() if not train else (0, 1) if direction == "fwd+bwd x" else (1,),
        items=n,
        item="point",
        shape=f"{n} points, 16 levels, F=2, 2^19 entries, to {spec.levels[-1].resolution}, {str(dtype)[6:]}",
        n_bytes=2 * n_bytes if train else n_bytes,
    )
    if not peer or device != "cpu":
        return race
    try:
        call, results = drjit_race(x, table, spec, train)
    except (ImportError, RuntimeError):  # not installed, or it finds no LLVM
        return race
    race.baselines[DRJIT] = call
    check_torch = race.check

    def check() -> dict[str, float]:
        errors = check_torch()
        call(0)
        table.requires_grad_(train)
        wanted = fwd_bwd(lambda x, table: fastvfx.hashgrid(x, table, spec), [x, table], (1,) if train else ())(0)
        errors[DRJIT] = max(error(results(), [w.detach() for w in wanted]))
        if not errors[DRJIT] < 1e-3:  # it rounds positions differently
            raise CheckFailed(f"{DRJIT}: off by {errors[DRJIT]:.3g}")
        return errors

    race.check = check
    return race


CASES: dict[str, dict[str, Any]] = {
    "2^17 points": {},
    # Dr.Jit computes the same only where levels double: at other growths its levels have other sizes.
    "2^17 points, growth 2": {"max_resolution": None, "peer": True},
    "2^17 points, fp16": {"dtype": torch.float16},
    "2^12 points": {"n": 1 << 12},
}
TARGETS = {"2^17 points": {"fwd": 8.0, "fwd+bwd": 20.0}}
PEER_TARGETS = {"2^17 points, growth 2": {"fwd": {DRJIT: 3.0}, "fwd+bwd": {DRJIT: 10.0}}}
WORKLOADS = [
    Workload(
        "hashgrid",
        case,
        direction,
        partial(prepare, direction=direction, **sizes),
        TARGETS.get(case, {}).get(direction),
        PEER_TARGETS.get(case, {}).get(direction, {}),
    )
    for case, sizes in CASES.items()
    for direction in ("fwd", "fwd+bwd", "fwd+bwd x")[: 3 if case == "2^17 points" else 2]
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_hashgrid(workload, versus):
    versus(workload)
