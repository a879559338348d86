"""Encodings of positions and directions as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .functional.frequency import Mode as FrequencyMode
from .functional.frequency import checked_options as frequency_options
from .functional.frequency import frequency
from .functional.hashgrid import hashgrid
from .functional.spherical_harmonics import InputRange, checked_options, spherical_harmonics
from .functional.spherical_harmonics import Mode as SphericalHarmonicsMode
from .grid import HashGridSpec


class HashGrid(nn.Module):
    """:func:`fastvfx.hashgrid` with its table.

    Args:
        n_input_dims, n_levels, n_features_per_level, log2_hashmap_size, base_resolution, per_level_scale,
            max_resolution, interpolation, grid_type, mode: see :class:`fastvfx.HashGridSpec`.
        dtype, device: of the table, and so of the output. 16-bit tables halve the memory that is read; their
            gradients are summed in float32.
        seed: makes the initial table reproducible; without it, it comes from torch's global generator.

    Attributes:
        table: the parameter, ``(n_entries, n_features_per_level)``, coarsest level first; uniform in ±1e-4 at first.
        spec: the :class:`fastvfx.HashGridSpec`.
        n_output_dims: ``n_levels * n_features_per_level``.

    >>> grid = fastvfx.HashGrid(n_levels=8, max_resolution=512)
    >>> grid(torch.rand(1000, 3)).shape
    torch.Size([1000, 16])
    """

    def __init__(
        self,
        n_input_dims: int = 3,
        n_levels: int = 16,
        n_features_per_level: int = 2,
        log2_hashmap_size: int = 19,
        base_resolution: int = 16,
        per_level_scale: float = 2.0,
        max_resolution: int | None = None,
        interpolation: str = "linear",
        grid_type: str = "hash",
        mode: str = "tcnn",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.spec = HashGridSpec(
            n_input_dims=n_input_dims,
            n_levels=n_levels,
            n_features_per_level=n_features_per_level,
            log2_hashmap_size=log2_hashmap_size,
            base_resolution=base_resolution,
            per_level_scale=per_level_scale,
            max_resolution=max_resolution,
            interpolation=interpolation,
            grid_type=grid_type,
            mode=mode,
        )
        self.n_output_dims = self.spec.n_output_dims
        self.table = nn.Parameter(torch.empty(self.spec.n_entries, n_features_per_level, dtype=dtype, device=device))
        self.reset_parameters(seed)

    def reset_parameters(self, seed: int | None = None) -> None:
        """Draw a new table, always on the CPU, so that a seed means the same one everywhere."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        start = torch.empty(self.table.shape, device="cpu").uniform_(-1e-4, 1e-4, generator=generator)
        with torch.no_grad():
            self.table.copy_(start)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_input_dims) in the unit cube to (..., n_output_dims)."""
        return hashgrid(x, self.table, self.spec)

    def extra_repr(self) -> str:
        s = self.spec
        return (
            f"{s.n_input_dims} -> {s.n_output_dims}, {s.n_levels} levels of {s.n_features_per_level} features, "
            f"resolution {s.levels[0].resolution} to {s.levels[-1].resolution}, {s.n_entries} entries, "
            f"{s.grid_type}, {s.interpolation}, {s.mode}"
        )


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
