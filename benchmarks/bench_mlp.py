"""The small networks behind encodings: all layers in one pass against one matrix product and one activation each."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from harness import Race, Workload, against_torch

import fastvfx
from fastvfx.reference import mlp as by_layers


def prepare(
    device: str, small: bool, widths: tuple[int, ...], n: int, direction: str, dtype: torch.dtype = torch.float32
) -> Race:
    """Hidden layers with ReLU; gradients to points and weights."""
    n = 123 if small else n
    weights = [(torch.randn(b, a) * a**-0.5).to(device, dtype) for a, b in pairwise(widths)]
    x = torch.randn(n, widths[0]).to(device, dtype)
    parameters = sum(a * b for a, b in pairwise(widths))
    forward = dtype.itemsize * (n * (widths[0] + widths[-1]) + parameters)
    train = direction != "fwd"
    return against_torch(
        lambda x, *weights: fastvfx.mlp(x, weights),
        lambda x, *weights: by_layers(x, weights),
        [x, *weights],
        device=device,
        grad=range(1 + len(weights)) if train else (),
        items=n,
        item="point",
        shape=f"{n} points, {'-'.join(map(str, widths))}, {str(dtype).removeprefix('torch.')}",
        n_bytes=3 * forward if train else forward,
        flops=2 * n * parameters * (3 if train else 1),  # without what is recomputed
    )


CASES: dict[str, dict[str, Any]] = {
    f"2^{log2}, {'-'.join(map(str, widths))}": {"n": 1 << log2, "widths": widths}
    for log2 in (16, 17)
    for widths in ((32, 64, 16), (32, 64, 64, 3), (32, 64, 64, 16))
}
CASES |= {
    f"{case}, bf16": {**CASES[case], "dtype": torch.bfloat16} for case in ("2^16, 32-64-64-3", "2^17, 32-64-64-16")
}
WORKLOADS = [
    Workload("mlp", case, direction, partial(prepare, direction=direction, **sizes))
    for case, sizes in CASES.items()
    for direction in ("fwd", "fwd+bwd")
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_mlp(workload, versus):
    versus(workload)
