"""Encodings of positions and directions as modules."""

from __future__ import annotations

from torch import Tensor, nn

from .functional.spherical_harmonics import InputRange, checked_options, spherical_harmonics
from .functional.spherical_harmonics import Mode as SphericalHarmonicsMode


class SphericalHarmonics(nn.Module):
    """:func:`fastvfx.spherical_harmonics` with its options kept; no parameters.

    Args:
        degree, mode, input_range: see :func:`fastvfx.spherical_harmonics`.
    """

    n_input_dims = 3

    def __init__(
        self, degree: int = 4, mode: SphericalHarmonicsMode = "tcnn", input_range: InputRange = "signed"
    ) -> None:
        super().__init__()
        checked_options("SphericalHarmonics", degree, mode, input_range)
        self.degree = degree
        self.mode: SphericalHarmonicsMode = mode
        self.input_range: InputRange = input_range
        self.n_output_dims = degree * degree

    def forward(self, dirs: Tensor) -> Tensor:
        """(..., 3) to (..., n_output_dims)."""
        return spherical_harmonics(dirs, self.degree, mode=self.mode, input_range=self.input_range)

    def extra_repr(self) -> str:
        return f"degree={self.degree}, mode={self.mode!r}, input_range={self.input_range!r}"
