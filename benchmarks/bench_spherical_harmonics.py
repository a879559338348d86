"""Spherical harmonics of view directions, one per sample of a NeRF training step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from harness import Race, Workload, against_torch
from torch import Tensor

import fastvfx
from fastvfx.reference import spherical_harmonics as reference


def prepare(
    device: str, small: bool, degree: int, direction: str, n: int = 1 << 20, dtype: torch.dtype = torch.float32
) -> Race:
    """Unit directions; the gradient to them."""
    n = 123 if small else n
    dirs = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1).to(dtype)

    def ours(dirs: Tensor) -> Tensor:
        return fastvfx.spherical_harmonics(dirs, degree)

    def formula(dirs: Tensor) -> Tensor:
        return reference(dirs, degree)

    # Three components are read, degree^2 columns written; the backward reads both again and writes three.
    forward = n * dtype.itemsize * (3 + degree**2)
    backward = n * dtype.itemsize * (6 + degree**2)
    return against_torch(
        ours,
        formula,
        [dirs.to(device)],
        device=device,
        grad=() if direction == "fwd" else (0,),
        items=n,
        item="direction",
        shape=f"{n} directions, degree {degree}, {str(dtype).removeprefix('torch.')}",
        n_bytes=forward if direction == "fwd" else forward + backward,
    )


CASES: dict[str, dict[str, Any]] = {
    "degree 4": {"degree": 4},
    "degree 8": {"degree": 8, "n": 1 << 18},
    "degree 4, fp16": {"degree": 4, "dtype": torch.float16},
}
WORKLOADS = [
    Workload("spherical_harmonics", case, direction, partial(prepare, direction=direction, **sizes))
    for case, sizes in CASES.items()
    for direction in ("fwd", "fwd+bwd")
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_spherical_harmonics(workload, versus):
    versus(workload)
