"""Real spherical harmonics in PyTorch, differentiable to any order."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spherical_harmonics(dirs: Tensor, degree: int, condon_shortley: bool = True, unit_range: bool = False) -> Tensor:
    """The maths of :func:`fastvfx.spherical_harmonics`: columns ``l^2 + l + m`` are N_l|m|(z) times the real
    (m >= 0) or imaginary (m < 0) part of (x + i y)^|m|.

    Returns:
        (..., degree^2), the dtype of ``dirs``; 16-bit inputs are widened to float32 in between.
    """
    wide = dirs if dirs.dtype is torch.float64 else dirs.float()
    if unit_range:
        wide = 2 * wide - 1
    x, y, z = wide.unbind(-1)
    if condon_shortley:
        x, y = -x, -y
    columns: list[Tensor] = [x] * degree**2  # each is replaced below
    real, imaginary = torch.ones_like(x), torch.zeros_like(x)
    diagonal = math.sqrt(1 / (4 * math.pi))
    for m in range(degree):
        if m > 0:
            real, imaginary = (x, y) if m == 1 else (x * real - y * imaginary, x * imaginary + y * real)
            diagonal *= math.sqrt((2 * m + 1) / (2 * m)) * (math.sqrt(2) if m == 1 else 1)
        before, legendre = torch.zeros_like(z), torch.full_like(z, diagonal)  # N_l-1,m and N_lm
        for l in range(m, degree):
            if l > m:
                alpha = math.sqrt((4 * l * l - 1) / (l * l - m * m))
                beta = math.sqrt((2 * l + 1) * ((l - 1) ** 2 - m * m) / ((2 * l - 3) * (l * l - m * m)))
                before, legendre = legendre, alpha * z * legendre - beta * before
            columns[l * l + l + m] = legendre * real if m > 0 else legendre
            if m > 0:
                columns[l * l + l - m] = legendre * imaginary
    if degree == 1:  # a constant, but one that autograd can be asked about
        columns[0] = torch.where(torch.ones_like(z, dtype=torch.bool), columns[0], z)
    return torch.stack(columns, -1).to(dirs.dtype)
