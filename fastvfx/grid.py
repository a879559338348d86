"""Level tables of multiresolution grids: which scale, stride and slice of the parameters each level has.

The three modes are three published sets of conventions. They differ in how the scale is rounded, in how many entries a
level gets and in how a lattice point finds its entry, so parameters trained under one mode mean nothing under another.
Everything is computed here, once and in float32 as the originals do, and handed to every backend, so that backends
agree bit for bit on the scale of a level (computing it anew with another ``exp2`` moves outputs by up to 1e-2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

MODES = ("tcnn", "torch_ngp", "nerfstudio")
GRID_TYPES = ("hash", "dense", "tiled")
INTERPOLATIONS = ("nearest", "linear", "smoothstep")
MAX_DIMS = 4
MAX_LEVELS = 64
FEATURES = (1, 2, 4, 8)

#: Multipliers of the coordinates before they are XORed (Müller et al., Instant NGP, 2022, eq. 4).
PRIMES = (1, 2654435761, 805459861, 3674653429)

_MAX_ENTRIES = 2**31 - 1
_MAX_LOG2_RESOLUTION = 30


@dataclass(frozen=True)
class GridLevel:
    """One level of a grid.

    Attributes:
        scale: Cells per unit of the input; a float32 value.
        resolution: Lattice points per axis.
        offset: First entry of the level in the parameters.
        entries: Number of entries of the level, below 2**31.
        hashed: Whether a lattice point ``g`` has entry ``XOR_d(g_d * multipliers[d]) % entries``; otherwise it has
            ``sum_d(g_d * multipliers[d]) % entries``, both in unsigned 32-bit arithmetic.
        multipliers: One per input dimension: primes if hashed, else strides (0 for axes that a tiled level ignores).
    """

    scale: float
    resolution: int
    offset: int
    entries: int
    hashed: bool
    multipliers: tuple[int, ...]


@dataclass(frozen=True)
class HashGridSpec:
    """Shape and conventions of a multiresolution grid (hashed, dense or tiled).

    Attributes:
        n_input_dims: Dimension of the points, 1 to 4.
        n_levels: Number of levels, 1 to 64.
        n_features_per_level: Features per entry: 1, 2, 4 or 8.
        log2_hashmap_size: A level has at most ``2**log2_hashmap_size`` entries (see ``grid_type``), 1 to 30.
        base_resolution: Resolution of the coarsest level.
        per_level_scale: Growth of the resolution from one level to the next. Not used if ``max_resolution`` is given.
        max_resolution: Resolution of the finest level, instead of ``per_level_scale``.
        interpolation: ``"linear"``, ``"smoothstep"`` (cubic weights ``w*w*(3-2w)``, continuous first derivative) or
            ``"nearest"`` (the lower lattice point alone; no gradient to the points).
        grid_type: ``"hash"``: levels that do not fit into ``2**log2_hashmap_size`` entries are hashed. ``"dense"``:
            every level has all its lattice points. ``"tiled"``: levels that do not fit repeat with a period.
        mode: ``"tcnn"`` (tiny-cuda-nn, Instant NGP), ``"torch_ngp"`` (torch-ngp's GridEncoder,
            ``align_corners=False``) or ``"nerfstudio"`` (the PyTorch implementation in nerfstudio's HashEncoding:
            every level is hashed).
        levels: The table of levels, coarsest first (derived).
        scales: Their scales (derived).
        packed: Offset, entries, kind (0 dense, 1 hashed, 2 tiled) and multipliers of each level in turn, as the kernels
            take them (derived).
        n_entries: Entries of all levels together (derived).
        n_output_dims: ``n_levels * n_features_per_level`` (derived).
    """

    n_input_dims: int = 3
    n_levels: int = 16
    n_features_per_level: int = 2
    log2_hashmap_size: int = 19
    base_resolution: int = 16
    per_level_scale: float = 2.0
    max_resolution: int | None = None
    interpolation: str = "linear"
    grid_type: str = "hash"
    mode: str = "tcnn"
    levels: tuple[GridLevel, ...] = field(init=False, repr=False, compare=False)
    scales: tuple[float, ...] = field(init=False, repr=False, compare=False)
    packed: tuple[int, ...] = field(init=False, repr=False, compare=False)
    n_entries: int = field(init=False, repr=False, compare=False)
    n_output_dims: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        levels: list[GridLevel] = []
        packed: list[int] = []
        offset = 0
        for index, scale in enumerate(_scales(self)):
            level = _level(self, index, scale, offset)
            levels.append(level)
            packed += (offset, level.entries, _kind(level), *level.multipliers)
            offset += level.entries
        derived = {
            "levels": tuple(levels),
            "scales": tuple(level.scale for level in levels),
            "packed": tuple(packed),
            "n_entries": offset,
            "n_output_dims": self.n_levels * self.n_features_per_level,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def growth(self) -> float:
        """Growth of the resolution from one level to the next, whichever way it was given."""
        if self.max_resolution is None:
            return float(self.per_level_scale)
        if self.n_levels == 1:
            return 1.0
        return math.exp(math.log(self.max_resolution / self.base_resolution) / (self.n_levels - 1))

    @property
    def shift(self) -> float:
        """What is added to ``scale * x`` before it is split into lattice point and weight."""
        return 0.0 if self.mode == "nerfstudio" else 0.5

    @property
    def zero_outside(self) -> bool:
        """Whether points outside the unit cube are encoded as 0 rather than wrapped around."""
        return self.mode == "torch_ngp"

    def _check(self) -> None:
        _in_range("n_input_dims", self.n_input_dims, 1, MAX_DIMS)
        _in_range("n_levels", self.n_levels, 1, MAX_LEVELS)
        _in_range("log2_hashmap_size", self.log2_hashmap_size, 1, 30)
        _in_range("base_resolution", self.base_resolution, 1, 2**24)
        if self.max_resolution is not None:
            _in_range("max_resolution", self.max_resolution, self.base_resolution, 2**24)
        _one_of("n_features_per_level", self.n_features_per_level, FEATURES)
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        _one_of("grid_type", self.grid_type, GRID_TYPES)
        _one_of("mode", self.mode, MODES)
        if not (math.isfinite(self.growth) and self.growth >= 1.0):
            raise ValueError(f"fastvfx.HashGridSpec: expected per_level_scale >= 1, got {self.per_level_scale}")
        finest = math.log2(self.base_resolution) + math.log2(self.growth) * (self.n_levels - 1)
        if finest > _MAX_LOG2_RESOLUTION:
            raise ValueError(
                f"fastvfx.HashGridSpec: expected a finest resolution of at most 2**{_MAX_LOG2_RESOLUTION}, got "
                f"2**{finest:.1f}; lower n_levels, per_level_scale or base_resolution"
            )
        if self.mode == "nerfstudio" and self.grid_type != "hash":
            raise ValueError(
                f"fastvfx.HashGridSpec: mode 'nerfstudio' has only grid_type 'hash', got {self.grid_type!r}"
            )


def _in_range(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"fastvfx.HashGridSpec: expected {name} as an integer from {low} to {high}, got {value!r}")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        names = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"fastvfx.HashGridSpec: expected {name} to be one of {names}, got {value!r}")


def _scales(spec: HashGridSpec) -> list[float]:
    """Float32 scales of all levels, rounded where the original of the mode rounds."""
    f32 = np.float32
    if spec.mode == "nerfstudio":
        grown = torch.floor(spec.base_resolution * spec.growth ** torch.arange(spec.n_levels))
        return [float(f32(v)) for v in grown.tolist()]
    # tcnn keeps the growth itself in float32, torch-ngp only its logarithm.
    growth = float(f32(spec.growth)) if spec.mode == "tcnn" else spec.growth
    log2_growth = f32(math.log2(growth))
    # exp2 and the fused multiply-subtract are evaluated in float64 and rounded once, as correctly rounded float32 does.
    powers = [f32(2.0 ** float(f32(level) * log2_growth)) for level in range(spec.n_levels)]
    return [float(f32(float(power) * spec.base_resolution - 1.0)) for power in powers]


def _level(spec: HashGridSpec, index: int, scale: float, offset: int) -> GridLevel:
    dims, cap = spec.n_input_dims, 2**spec.log2_hashmap_size
    resolution = math.ceil(scale) + 1
    if spec.mode == "nerfstudio":
        return GridLevel(scale, resolution, offset, cap, True, PRIMES[:dims])
    if spec.mode == "tcnn":
        stride = resolution
        entries = _round_up_8(stride**dims)
        if spec.grid_type == "hash":
            entries = min(entries, cap)
        elif spec.grid_type == "tiled":
            entries = min(entries, spec.base_resolution**dims)
    else:
        # The entries follow a float64 resolution, the strides the float32 one.
        stride = resolution + 1
        entries = (math.ceil(spec.base_resolution * spec.growth**index) + 1) ** dims
        entries = _round_up_8(entries if spec.grid_type == "dense" else min(entries, cap))
    if entries > _MAX_ENTRIES:
        raise ValueError(
            f"fastvfx.HashGridSpec: level {index} with {resolution} lattice points per axis needs {entries} entries, "
            f"more than {_MAX_ENTRIES}; lower the resolution or use grid_type 'hash'"
        )
    if spec.grid_type == "hash" and stride**dims > entries:
        return GridLevel(scale, resolution, offset, entries, True, PRIMES[:dims])
    # A tiled level stops counting axes once the strides have passed its size.
    strides = tuple(stride**d if stride**d <= entries else 0 for d in range(dims))
    return GridLevel(scale, resolution, offset, entries, False, strides)


def _kind(level: GridLevel) -> int:
    """The code of ``GridIndex`` in csrc/include/fastvfx/hashgrid.h."""
    if level.hashed:
        return 1
    # The highest corner of any cell with points in [0, 1]: up to twice the entries one subtraction wraps it.
    highest = sum(level.multipliers) * level.resolution
    return 0 if highest < 2 * level.entries and highest < 2**32 else 2


def _round_up_8(n: int) -> int:
    return (n + 7) // 8 * 8
