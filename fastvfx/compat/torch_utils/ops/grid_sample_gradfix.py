"""``torch_utils.ops.grid_sample_gradfix``: bilinear sampling of images with every order of derivative."""

from __future__ import annotations

from torch import Tensor

from .... import functional

enabled = True  #: training scripts set it; derivatives of every order are there either way


def grid_sample(input: Tensor, grid: Tensor) -> Tensor:
    """:func:`fastvfx.functional.grid_sample`, bilinear with zeros outside."""
    return functional.grid_sample(input, grid)
