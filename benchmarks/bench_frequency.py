"""Frequency encoding of positions and directions, as in the original NeRF and in neural surfaces."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from harness import Race, Workload, against_torch
from torch import Tensor

import fastvfx
from fastvfx.reference import frequency as reference


def prepare(
    device: str,
    small: bool,
    mode: str,
    n_frequencies: int,
    direction: str,
    n: int = 1 << 18,
    dtype: torch.dtype = torch.float32,
) -> Race:
    """Points in [-1, 1]^3; the gradient to them."""
    n = 123 if small else n
    x = (torch.rand(n, 3) * 2 - 1).to(dtype)
    include_input = mode == "torch_ngp"

    def ours(x: Tensor) -> Tensor:
        return fastvfx.frequency(x, n_frequencies, mode=mode)  # type: ignore[arg-type]

    def formula(x: Tensor) -> Tensor:
        return reference(x, n_frequencies, mode, include_input)

    # Three coordinates are read, all columns written; the backward reads both again and writes three.
    columns = 3 * (2 * n_frequencies + include_input)
    forward = n * dtype.itemsize * (3 + columns)
    backward = n * dtype.itemsize * (6 + columns)
    return against_torch(
        ours,
        formula,
        [x.to(device)],
        device=device,
        grad=() if direction == "fwd" else (0,),
        items=n,
        item="point",
        shape=f"{n} points, D=3, {n_frequencies} frequencies, {mode}, {str(dtype).removeprefix('torch.')}",
        n_bytes=forward if direction == "fwd" else forward + backward,
    )


CASES: dict[str, dict[str, Any]] = {
    "tcnn, 12": {"mode": "tcnn", "n_frequencies": 12},
    "torch_ngp, 10": {"mode": "torch_ngp", "n_frequencies": 10},
    "nerfstudio, 10": {"mode": "nerfstudio", "n_frequencies": 10},
    "tcnn, 12, fp16": {"mode": "tcnn", "n_frequencies": 12, "dtype": torch.float16},
}
WORKLOADS = [
    Workload("frequency", case, direction, partial(prepare, direction=direction, **sizes))
    for case, sizes in CASES.items()
    for direction in ("fwd", "fwd+bwd")
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_frequency(workload, versus):
    versus(workload)
