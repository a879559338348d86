"""Grids, points and the check that the tests of hash grids share."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_as_good_as_torch
from torch import Tensor

import fastvfx
from fastvfx import HashGridSpec
from fastvfx.reference import hashgrid as reference

DTYPES = [
    pytest.param(d, id=str(d).removeprefix("torch."))
    for d in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
]
MODES = ["tcnn", "torch_ngp", "nerfstudio"]
GRID_TYPES = ["hash", "dense", "tiled"]


def small(**options) -> HashGridSpec:
    """Some levels dense, some hashed."""
    defaults = {"n_levels": 5, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 1.6}
    return HashGridSpec(**(defaults | options))


def points(spec: HashGridSpec, n: int, device: str = "cpu", margin: float = 0.0) -> Tensor:
    """float32 points that lie away from every lattice plane, where another rounding could choose another cell."""
    x = torch.rand(4 * n + 64, spec.n_input_dims) * (1 + 2 * margin) - margin
    clear = torch.ones(len(x), dtype=torch.bool)
    for scale in spec.scales:
        frac = (x.double() * scale + spec.shift) % 1
        clear &= ((frac > 2e-4) & (frac < 1 - 2e-4)).all(1)
    x = x[clear][:n]
    assert len(x) == n
    return x.to(device)


def draw(spec: HashGridSpec, dtype: torch.dtype = torch.float32, n: int = 123, device: str = "cpu"):
    """x, table and a gradient of the output."""
    table = torch.randn(spec.n_entries, spec.n_features_per_level).to(device, dtype)
    grad = torch.randn(n, spec.n_output_dims).to(device, dtype)
    return points(spec, n, device), table, grad


def run(function, x: Tensor, table: Tensor, grad: Tensor, spec: HashGridSpec) -> list[Tensor]:
    """The encoding and its gradients with respect to x and table."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, table)]
    out = function(*leaves, spec)
    gradients = torch.autograd.grad(out, leaves, grad.to(out.dtype), allow_unused=True)
    return [out, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True))]


def check(spec: HashGridSpec, x: Tensor, table: Tensor, grad: Tensor) -> None:
    got = run(fastvfx.hashgrid, x, table, grad, spec)
    same = run(reference, x, table, grad, spec)
    exact = run(reference, x.double(), table.double(), grad, spec)
    for name, g, s, e in zip(("out", "grad_x", "grad_table"), got, same, exact, strict=True):
        assert g.dtype == s.dtype
        assert_as_good_as_torch(g, s, e, name)
