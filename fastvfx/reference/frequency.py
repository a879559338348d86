"""Frequency encoding in PyTorch, differentiable to any order."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frequency(x: Tensor, n_frequencies: int, mode: str = "tcnn", include_input: bool = False) -> Tensor:
    """The maths of :func:`fastvfx.frequency`, in each project's order of columns.

    Returns:
        (..., D * (2 * n_frequencies + include_input)), the dtype of ``x``; 16-bit inputs are widened to float32 in
        between.
    """
    wide = x if x.dtype is torch.float64 else x.float()
    factor = {"tcnn": math.pi, "nerfstudio": 2 * math.pi}.get(mode, 1.0)
    powers = torch.tensor([factor * 2.0**f for f in range(n_frequencies)], dtype=wide.dtype, device=x.device)
    if mode == "tcnn":
        angle = wide[..., :, None] * powers  # (..., D, F)
        waves = torch.stack([torch.sin(angle), torch.cos(angle)], -1).flatten(-3)
        parts = [wide, waves]
    elif mode == "nerfstudio":
        angle = (wide[..., :, None] * powers).flatten(-2)  # (..., D F)
        parts = [torch.sin(angle), torch.cos(angle), wide]
    else:
        angle = wide[..., None, :] * powers[:, None]  # (..., F, D)
        waves = torch.stack([torch.sin(angle), torch.cos(angle)], -2).flatten(-3)
        parts = [wide, waves]
    if not include_input:
        parts = [part for part in parts if part is not wide]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).to(x.dtype)
