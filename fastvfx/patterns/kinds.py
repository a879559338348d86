"""The patterns themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from . import axis
from .axis import Axis
from .base import Pattern, met
from .spans import Grid

_NAMES = ("time", "height", "width")


def _integer(owner: str, name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"fastvfx.{owner}: expected {name} to be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"fastvfx.{owner}: expected {name} >= {least}, got {value}")
    return value


def _three(owner: str, name: str, value: Any, least: int, none: bool = False) -> tuple:
    """One number for all axes or three of them, checked."""
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,) * 3
    if len(entries) != 3:
        raise ValueError(
            f"fastvfx.{owner}: expected {name} to be one number or three, for time, height and width, got {value!r}"
        )
    return tuple(e if none and e is None else _integer(owner, name, e, least) for e in entries)


def _same_length(owner: str, name: str, n_queries: int, n_keys: int) -> None:
    if n_queries != n_keys:
        raise ValueError(
            f"fastvfx.{owner}: expected grid and kv_grid of the same {name} where the pattern does not take all of it, "
            f"got {n_queries} and {n_keys}"
        )


def _lengths(owner: str, a: int, n_queries: int, n_keys: int) -> None:
    """Queries may be the last of the keys in time; elsewhere there must be one for each."""
    if a > 0:
        _same_length(owner, _NAMES[a], n_queries, n_keys)
    elif n_queries > n_keys:
        raise ValueError(
            f"fastvfx.{owner}: expected at least as many frames of keys as of queries, which are the last of them, "
            f"got {n_queries} frames of queries and {n_keys} of keys"
        )


@dataclass(frozen=True)
class Full(Pattern):
    """Every query attends every key. The only pattern that takes any two grids."""

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        t, h, w = (axis.whole(q, k, device) for q, k in zip(grid, kv_grid, strict=True))
        return t, h, w


@dataclass(frozen=True)
class Divided(Pattern):
    """Attention along one of time and space (TimeSformer, Bertasius et al., 2021).

    ``"time"``: the same place in every frame. ``"space"``: every place in the same frame.
    """

    over: Literal["time", "space"]

    def __post_init__(self) -> None:
        if self.over not in ("time", "space"):
            raise ValueError(f"fastvfx.Divided: expected over to be 'time' or 'space', got {self.over!r}")

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        def one(a: int) -> Axis:
            if (a == 0) == (self.over == "time"):
                return axis.whole(grid[a], kv_grid[a], device)
            _lengths("Divided", a, grid[a], kv_grid[a])
            return axis.neighborhood(grid[a], kv_grid[a], 1, 1, 1, False, device)

        return one(0), one(1), one(2)


@dataclass(frozen=True)
class Neighborhood(Pattern):
    """Each query attends the ``kernel`` keys around it (generalised neighbourhood attention, Hassani et al., 2025).

    On an axis of L keys with dilation 1, query i and stride s:

    - ``causal`` off: the leader of i's group is min(s * (i // s) + s // 2, L - 1); its window of ``kernel`` keys is
      centred on it (one more to the left if ``kernel`` is even) and moved inwards at the borders, so that there are
      always ``kernel`` keys.
    - ``causal`` on: keys j <= i with leader - j < ``kernel``, where the leader is min(s * (i // s) + s - 1, L - 1).

    With dilation d the axis falls into d interleaved ones, i % d, and the above holds in each. These are NATTEN's
    definitions, and its limits: ``stride <= kernel``, ``kernel * dilation <= L``; a kernel of 1 is allowed as well.

    Args:
        kernel: number of keys in time, height and width, or one number for all; ``None`` takes the whole axis.
        stride, dilation, causal: likewise.
    """

    kernel: tuple[int | None, int | None, int | None]
    stride: tuple[int, int, int] = (1, 1, 1)
    dilation: tuple[int, int, int] = (1, 1, 1)
    causal: tuple[bool, bool, bool] = (False, False, False)

    def __init__(
        self,
        kernel: int | Sequence[int | None],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        causal: bool | Sequence[bool] = False,
    ) -> None:
        owner = "Neighborhood"
        kernels = _three(owner, "kernel", kernel, 1, none=True)
        strides, dilations = _three(owner, "stride", stride, 1), _three(owner, "dilation", dilation, 1)
        causals = tuple(causal) if isinstance(causal, (tuple, list)) else (causal,) * 3
        if len(causals) != 3 or not all(isinstance(c, bool) for c in causals):
            raise TypeError(f"fastvfx.{owner}: expected causal to be one bool or three, got {causal!r}")
        for k, s, d in zip(kernels, strides, dilations, strict=True):
            if k is None and (s > 1 or d > 1):
                raise ValueError(
                    f"fastvfx.{owner}: expected stride and dilation 1 where kernel is None, got {s} and {d}"
                )
            if k is not None and s > k:
                raise ValueError(f"fastvfx.{owner}: expected stride <= kernel, got stride {s} and kernel {k}")
        for name, value in zip(
            ("kernel", "stride", "dilation", "causal"), (kernels, strides, dilations, causals), strict=True
        ):
            object.__setattr__(self, name, value)

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        return (
            self._axis(0, grid, kv_grid, device),
            self._axis(1, grid, kv_grid, device),
            self._axis(2, grid, kv_grid, device),
        )

    def _axis(self, a: int, grid: Grid, kv_grid: Grid, device: torch.device) -> Axis:
        kernel, stride, dilation, causal = self.kernel[a], self.stride[a], self.dilation[a], self.causal[a]
        n_queries, n_keys = grid[a], kv_grid[a]
        if kernel is None and not causal:
            return axis.whole(n_queries, n_keys, device)
        _lengths("Neighborhood", a, n_queries, n_keys)
        if kernel is None:
            return axis.causal(n_queries, n_keys, 1, None, 0, device)
        if kernel * dilation > n_keys:
            raise ValueError(
                f"fastvfx.Neighborhood: expected kernel * dilation <= {n_keys}, the {_NAMES[a]} of the grid, got "
                f"kernel {kernel} and dilation {dilation}"
            )
        return axis.neighborhood(n_queries, n_keys, kernel, stride, dilation, causal, device)


@dataclass(frozen=True)
class ShiftedWindows(Pattern):
    """Windows that tile the grid, their borders moved by ``shift`` (Swin, Liu et al., 2021; Video Swin, 2022).

    A query attends the keys of its own window. The windows at the borders are cut off, as the mask of the original cuts
    them after rolling. Where a window is as long as the axis or longer, it is the axis and is not shifted.
    """

    window: tuple[int, int, int]
    shift: tuple[int, int, int] = (0, 0, 0)

    def __init__(self, window: int | Sequence[int], shift: int | Sequence[int] = 0) -> None:
        owner = "ShiftedWindows"
        windows, shifts = _three(owner, "window", window, 1), _three(owner, "shift", shift, 0)
        for w, s in zip(windows, shifts, strict=True):
            if s >= w:
                raise ValueError(f"fastvfx.{owner}: expected shift < window, got shift {s} and window {w}")
        object.__setattr__(self, "window", windows)
        object.__setattr__(self, "shift", shifts)

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        def one(a: int) -> Axis:
            if self.window[a] >= kv_grid[a]:
                return axis.whole(grid[a], kv_grid[a], device)
            _lengths("ShiftedWindows", a, grid[a], kv_grid[a])
            return axis.shifted_windows(grid[a], kv_grid[a], self.window[a], self.shift[a], device)

        return one(0), one(1), one(2)


@dataclass(frozen=True)
class SlidingTile(Pattern):
    """All queries of a tile attend the same window of whole tiles (STA, Zhang et al., 2025).

    On an axis of n tiles (the last may be cut off) the window of tile i holds the tiles within ``kernel // 2`` of
    min(max(i, kernel // 2), n - 1 - kernel // 2): an even kernel takes one tile more, as in the authors' code.

    Args:
        tile: tokens of a tile in time, height and width.
        kernel: the window, in tiles.
    """

    tile: tuple[int, int, int]
    kernel: tuple[int, int, int]

    def __init__(self, tile: int | Sequence[int], kernel: int | Sequence[int]) -> None:
        object.__setattr__(self, "tile", _three("SlidingTile", "tile", tile, 1))
        object.__setattr__(self, "kernel", _three("SlidingTile", "kernel", kernel, 1))

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        def one(a: int) -> Axis:
            tile, kernel = self.tile[a], self.kernel[a]
            _lengths("SlidingTile", a, grid[a], kv_grid[a])
            if (kernel - 1) * tile >= kv_grid[a] and kernel > 1:
                raise ValueError(
                    f"fastvfx.SlidingTile: expected a kernel of at most {-(-kv_grid[a] // tile)} tiles, which is the "
                    f"{_NAMES[a]} of the grid, got {kernel}"
                )
            return axis.sliding_tile(grid[a], kv_grid[a], tile, kernel, device)

        return one(0), one(1), one(2)


@dataclass(frozen=True)
class CausalTime(Pattern):
    """Frames attend what came before: everything within their chunk of frames and in earlier ones.

    Args:
        chunk: frames that see each other, as a block of frames that is generated together does.
        local: attend only this many frames, counted back from the end of the chunk; ``None``: all.
        sink: the first frames, which stay visible when ``local`` has left them behind.

    With fewer frames of queries than of keys the queries are the last ones, so that a cache of keys can be given.
    """

    chunk: int = 1
    local: int | None = None
    sink: int = 0

    def __post_init__(self) -> None:
        _integer("CausalTime", "chunk", self.chunk, 1)
        _integer("CausalTime", "sink", self.sink, 0)
        if self.local is not None and _integer("CausalTime", "local", self.local, 1) < self.chunk:
            raise ValueError(f"fastvfx.CausalTime: expected local >= chunk={self.chunk}, got {self.local}")

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        _lengths("CausalTime", 0, grid[0], kv_grid[0])
        t = axis.causal(grid[0], kv_grid[0], self.chunk, self.local, self.sink, device)
        return t, axis.whole(grid[1], kv_grid[1], device), axis.whole(grid[2], kv_grid[2], device)


@dataclass(frozen=True, eq=False)
class Blocks(Pattern):
    """Explicit lists of key blocks for every block of queries: sparsity that depends on the data.

    The grid is cut into blocks of ``block`` tokens (those at the far borders may be cut off), counted like tokens.

    Args:
        block: tokens of a block in time, height and width.
        indices: ``(1 or batch, 1 or heads, query blocks, n)`` int32 or int64: the key blocks that each query block may
            attend, each at most once, in any order, filled up with -1.
    """

    block: tuple[int, int, int]
    indices: Tensor

    def __init__(self, block: int | Sequence[int], indices: Tensor) -> None:
        object.__setattr__(self, "block", _three("Blocks", "block", block, 1))
        if not isinstance(indices, Tensor):
            raise TypeError(f"fastvfx.Blocks: expected indices to be a torch.Tensor, got {type(indices).__name__}")
        if indices.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"fastvfx.Blocks: expected indices of dtype int32 or int64, got {indices.dtype}")
        if indices.dim() != 4:
            raise ValueError(
                "fastvfx.Blocks: expected indices of shape (1 or batch, 1 or heads, query blocks, n), got "
                f"{tuple(indices.shape)}"
            )
        object.__setattr__(self, "indices", indices.to(torch.int32).contiguous())

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        return Full().axes(grid, kv_grid, device)

    def split(self) -> tuple[Pattern, Blocks | None]:
        return Full(), self


@dataclass(frozen=True)
class PerHead(Pattern):
    """A pattern for each head: ``PerHead([Divided("space")] * 4 + [Divided("time")] * 4)`` is ViViT's fourth model."""

    patterns: tuple[Pattern, ...]
    _different: tuple[Pattern, ...] = field(repr=False, compare=False)
    _of_head: tuple[int, ...] = field(repr=False, compare=False)

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        patterns = tuple(patterns)
        if not patterns or not all(isinstance(p, Pattern) for p in patterns):
            raise TypeError(f"fastvfx.PerHead: expected patterns to be a sequence of patterns, got {patterns!r}")
        if any(isinstance(p, PerHead) or p.split()[1] is not None for p in patterns):
            raise ValueError(
                "fastvfx.PerHead: expected no PerHead or Blocks among patterns (Blocks has heads of its own)"
            )
        different = tuple(dict.fromkeys(patterns))
        object.__setattr__(self, "patterns", patterns)
        object.__setattr__(self, "_different", different)
        object.__setattr__(self, "_of_head", tuple(different.index(p) for p in patterns))

    def heads(self, n_heads: int | None) -> tuple[tuple[Pattern, ...], tuple[int, ...]]:
        if n_heads is not None and n_heads != len(self.patterns):
            raise ValueError(
                f"fastvfx.PerHead: expected one pattern for each of {n_heads} heads, got {len(self.patterns)}"
            )
        return self._different, self._of_head


@dataclass(frozen=True)
class Both(Pattern):
    """What both patterns allow; made by ``a & b``."""

    a: Pattern
    b: Pattern

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        return met(self.a.axes(grid, kv_grid, device), self.b.axes(grid, kv_grid, device), f"{self.a} & {self.b}")

    def split(self) -> tuple[Pattern, Blocks | None]:
        (static_a, blocks_a), (static_b, blocks_b) = self.a.split(), self.b.split()
        return both(static_a, static_b), blocks_b if blocks_a is None else blocks_a

    def heads(self, n_heads: int | None) -> tuple[tuple[Pattern, ...], tuple[int, ...]]:
        return self.split()[0].heads(n_heads) if self.split()[1] is not None else ((self,), (0,) * (n_heads or 1))


def both(a: Pattern, b: Pattern) -> Pattern:
    """``a & b``, simplified."""
    if isinstance(a, Full) or isinstance(b, Full):
        return b if isinstance(a, Full) else a
    if a.split()[1] is not None or b.split()[1] is not None:
        if a.split()[1] is not None and b.split()[1] is not None:
            raise ValueError("fastvfx.patterns: expected at most one of the two patterns to hold Blocks, got two")
        return Both(a, b)
    if isinstance(a, PerHead) and isinstance(b, PerHead):
        if len(a.patterns) != len(b.patterns):
            raise ValueError(
                f"fastvfx.patterns: expected as many heads in both, got {len(a.patterns)} and {len(b.patterns)}"
            )
        return PerHead([both(x, y) for x, y in zip(a.patterns, b.patterns, strict=True)])
    if isinstance(a, PerHead):
        return PerHead([both(x, b) for x in a.patterns])
    if isinstance(b, PerHead):
        return PerHead([both(a, x) for x in b.patterns])
    return Both(a, b)
