"""How the attention kernels are launched for a pattern and a grid: boxes of tokens, tables of the axes, tiles, warps.

Only shapes decide, nothing is read back from the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .attention_tiles import Tables

Triple = tuple[int, int, int]


class Tile(NamedTuple):
    """Queries and keys of a tile, and how a kernel on it is launched."""

    rows: int
    columns: int
    warps: int
    stages: int


class Geometry(NamedTuple):
    """The integers that a resolved pattern comes with, as ``shape`` of torch.ops.fastvfx.attention_fwd has them."""

    grid: Triple
    kv_grid: Triple
    dilation: Triple
    sink: Triple
    block: Triple
    halves: bool  #: of the rotation
    whole: tuple[bool, bool, bool]
    reach: Triple

    @staticmethod
    def of(shape: Sequence[int]) -> Geometry:
        grid, kv_grid, dilation, sink, block = (tuple(shape[i : i + 3]) for i in range(0, 15, 3))
        whole, reach = tuple(bool(w) for w in shape[16:19]), tuple(shape[19:22])
        return Geometry(grid, kv_grid, dilation, sink, block, bool(shape[15]), whole, reach)  # type: ignore[arg-type]


def padded(dim: int) -> int:
    """What ``tl.dot`` multiplies."""
    return max(16, triton.next_power_of_2(dim))


#: By compute capability (the highest that is not above the device's) and padded head dim: forward, gradient of queries,
#: gradient of keys. That they fit registers and shared memory (163 KiB on 8.0, 227 on 9.0, 99 on 12.0) is checked in
#: tests/test_attention_triton_compiles.py.
_TILES: dict[int, dict[int, tuple[Tile, Tile, Tile]]] = {
    80: {
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
        128: (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
        256: (Tile(64, 64, 8, 1), Tile(64, 32, 8, 1), Tile(32, 64, 8, 1)),
    },
    90: {
        64: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 2)),
        128: (Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(32, 128, 8, 2)),
        256: (Tile(128, 64, 8, 2), Tile(64, 64, 8, 1), Tile(32, 64, 8, 1)),
    },
    120: {
        64: (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
        128: (Tile(128, 32, 8, 2), Tile(64, 32, 8, 2), Tile(32, 64, 8, 2)),
        256: (Tile(64, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    },
}


#: Of float32, on all of them: each number is two of tf32 beside the rest.
_TILES_FLOAT32: dict[int, tuple[Tile, Tile, Tile]] = {
    64: (Tile(64, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    128: (Tile(32, 32, 8, 1), Tile(16, 32, 4, 1), Tile(32, 16, 8, 1)),
    256: (Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
}


def tiles_of(capability: int, dim: int, dim_v: int, n_bytes: int) -> tuple[Tile, Tile, Tile]:
    """Forward, gradient of queries, gradient of keys."""
    wide = max(padded(dim), padded(dim_v), 64)
    if n_bytes == 4:
        return _TILES_FLOAT32[wide]
    return _TILES[max(c for c in _TILES if c <= max(capability, 80))][wide]


def merged(geometry: Geometry, spans: Sequence[Tensor]) -> tuple[Geometry, list[Tensor], bool]:
    """Neighbouring axes that no pattern tells apart become one. If a single one is left, it is the last: ``flat``."""
    n, m, whole = list(geometry.grid), list(geometry.kv_grid), geometry.whole
    for a in (0, 1):
        if whole[a] and whole[a + 1]:
            n[a + 1], m[a + 1] = n[a] * n[a + 1], m[a] * m[a + 1]
            n[a], m[a] = 1, 1
    geometry = geometry._replace(grid=(n[0], n[1], n[2]), kv_grid=(m[0], m[1], m[2]))
    long = [a for a in range(3) if (n[a], m[a]) != (1, 1)]
    if len(long) > 1:
        return geometry, list(spans), False
    last = long[0] if long else 2
    order = [a for a in range(3) if a != last] + [last]

    def moved(x: Any) -> Any:
        return tuple(x[a] for a in order)

    geometry = geometry._replace(
        grid=moved(n), kv_grid=moved(m), dilation=moved(geometry.dilation), sink=moved(geometry.sink),
        whole=moved(whole), reach=moved(geometry.reach),
    )  # fmt: skip
    return geometry, [spans[a] for a in order], True


@cache
def _boxes(volume: int) -> list[Triple]:
    sizes = [1 << i for i in range(volume.bit_length())]
    return [(t, h, volume // (t * h)) for t, h in product(sizes, sizes) if t * h <= volume]


@lru_cache(maxsize=4096)
def boxes_of(geometry: Geometry, rows: int, columns: int) -> tuple[Triple, Triple]:
    """Boxes of so many queries and keys that make the fewest pairs of tokens be looked at.

    Along an axis a box of b queries sees about reach + b keys, which lie in one box of c keys more than they fill.
    Among equals the flattest: its rows are neighbours in memory.
    """

    def cost(axis: int, b: int, c: int) -> float:
        n, m = geometry.grid[axis], geometry.kv_grid[axis]
        most = -(-m // c) * c
        if not geometry.whole[axis]:
            most = min(most, geometry.reach[axis] + b + c - 1)
        return -(-n // b) * b * most

    costs = [
        {(b, c): cost(a, b, c) for b in (1 << i for i in range(12)) for c in (1 << i for i in range(12))}
        for a in range(3)
    ]

    def total(pair: tuple[Triple, Triple]) -> tuple[float, int, int]:
        b, c = pair
        return math.prod(costs[a][b[a], c[a]] for a in range(3)), -c[2], -b[2]

    return min(product(_boxes(rows), _boxes(columns)), key=total)


def _ranks(n: int, dilation: int, shift: int, device: torch.device) -> Tensor:
    """(n,) int64: places of an axis in the order of their residue classes, the first being that of ``-shift``."""
    at = torch.arange(n, device=device)
    return ((at + shift) % dilation).argsort(stable=True)


def _in_order(spans: Tensor, n_rows: int, n_columns: int, dilation: int) -> tuple[Tensor, None, Tensor, Tensor]:
    """Of a dilated axis, which has no sink: spans of its columns in residue order, and the order of both sides."""
    device = spans.device
    row_order = _ranks(n_rows, dilation, n_columns - n_rows, device)
    column_order = _ranks(n_columns, dilation, 0, device)
    start, end = spans[:, row_order].long().unbind(-1)
    residue = torch.arange(dilation, device=device)
    sizes = (n_columns - residue + dilation - 1) // dilation
    begin = (sizes.cumsum(0) - sizes)[start % dilation] + start // dilation
    count = ((end - start + dilation - 1) // dilation).clamp(min=0)
    ordered = torch.stack([begin, begin + count], -1).to(torch.int32)
    return ordered, None, row_order.to(torch.int32), column_order.to(torch.int32)


def inverse(spans: Tensor, n_columns: int, sink: int) -> Tensor:
    """(P, columns, 2): the rows that meet each column, of spans (P, rows, 2) whose starts and ends never fall."""
    start, end = (x.contiguous() for x in spans.unbind(-1))
    column = torch.arange(n_columns, device=spans.device, dtype=torch.int32).expand(len(spans), -1).contiguous()
    first = torch.searchsorted(end, column, right=True, out_int32=True)
    last = torch.searchsorted(start, column, right=True, out_int32=True)
    if sink:
        last[:, :sink] = start.shape[1]
    return torch.stack([first, last], -1)


def tables_of(geometry: Geometry, spans: Sequence[Tensor]) -> tuple[Tables, Tables, Tables]:
    """Tables of the axes with queries as rows."""
    t, h, w = (_tables(geometry, a, spans[a]) for a in range(3))
    return t, h, w


def _tables(geometry: Geometry, a: int, spans: Tensor) -> Tables:
    if geometry.whole[a]:
        return Tables()
    if geometry.dilation[a] > 1:
        return Tables(*_in_order(spans, geometry.grid[a], geometry.kv_grid[a], geometry.dilation[a]))
    return Tables(spans, geometry.sink[a] or None)


def turned(tables: tuple[Tables, Tables, Tables], kv_grid: Triple) -> tuple[Tables, Tables, Tables]:
    """The same with keys as rows."""
    t, h, w = (
        Tables(
            None if x.spans is None else inverse(x.spans, n, x.sink or 0),
            row_order=x.column_order, column_order=x.row_order,
        )
        for x, n in zip(tables, kv_grid, strict=True)
    )  # fmt: skip
    return t, h, w
