"""Encodings of positions and directions as modules."""

from __future__ import annotations

from torch import Tensor, nn

from .functional.frequency import Mode as FrequencyMode
from .functional.frequency import checked_options as frequency_options
from .functional.frequency import frequency
from .functional.spherical_harmonics import InputRange, checked_options, spherical_harmonics
from .functional.spherical_harmonics import Mode as SphericalHarmonicsMode


class Frequency(nn.Module):
    """:func:`fastvfx.frequency` with its options kept; no parameters.

    Args:
        n_input_dims: coordinates of a point.
        n_frequencies, mode, include_input: see :func:`fastvfx.frequency`.
    """

    def __init__(
        self,
        n_input_dims: int,
        n_frequencies: int = 12,
        mode: FrequencyMode = "tcnn",
        include_input: bool | None = None,
    ) -> None:
        super().__init__()
        if n_input_dims < 1:
            raise ValueError(f"fastvfx.Frequency: expected n_input_dims >= 1, got {n_input_dims}")
        self.include_input = frequency_options("Frequency", n_frequencies, mode, include_input)
        self.n_input_dims = n_input_dims
        self.n_frequencies = n_frequencies
        self.mode: FrequencyMode = mode
        self.n_output_dims = n_input_dims * (2 * n_frequencies + self.include_input)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_input_dims) to (..., n_output_dims)."""
        if x.shape[-1:] != (self.n_input_dims,):
            raise ValueError(
                f"fastvfx.Frequency: expected x of shape (..., n_input_dims) with n_input_dims={self.n_input_dims}, "
                f"got {tuple(x.shape)}"
            )
        return frequency(x, self.n_frequencies, mode=self.mode, include_input=self.include_input)

    def extra_repr(self) -> str:
        return (
            f"{self.n_input_dims}, n_frequencies={self.n_frequencies}, mode={self.mode!r}, "
            f"include_input={self.include_input}"
        )


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
