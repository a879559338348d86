"""How results are compared: against float64, within twice the error that torch's own formula makes in the same dtype.

The rule is flash-attention's. It needs no hand-picked tolerance: where the formula itself is ill-conditioned torch
errs as well, and where it is not, the kernel may not be worse. ``floor`` covers results that torch happens to hit
exactly: a few roundings of the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_as_good_as_torch(got: Tensor, torch_same: Tensor, exact: Tensor, what: str, floor: float = 1.0) -> None:
    """``got`` and ``torch_same`` (computed by torch in the same dtype) against ``exact`` (float64)."""
    assert got.shape == exact.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    got64, same64 = got.detach().double(), torch_same.detach().double()
    if exact.numel() == 0:
        return
    scale = exact.detach().abs().max().item() + 1e-30
    allowed = 2 * (same64 - exact).abs().max().item() + floor * ROUNDING[got.dtype] * scale
    error = (got64 - exact).abs().max().item()
    assert error <= allowed, f"{what}: error {error:.3g}, torch's own doubled is {allowed:.3g}"


def assert_same_direction(got: Tensor, exact: Tensor, what: str, cosine: float = 0.999) -> None:
    """Gradients that were zeroed by mistake can hide inside a tolerance; their direction and sparsity cannot."""
    a, b = got.detach().double().flatten(), exact.detach().double().flatten()
    similarity = torch.dot(a, b) / (a.norm() * b.norm() + 1e-300)
    assert similarity > cosine, f"{what}: cosine {similarity:.6f}"
    zeros, expected = (a == 0).double().mean(), (b == 0).double().mean()
    assert abs(zeros - expected) < 0.02, f"{what}: {zeros:.3f} of the entries are zero, expected {expected:.3f}"
