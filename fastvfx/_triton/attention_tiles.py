"""Tiles of tokens of a video, and which of them meet: the part of the attention kernels that knows patterns.

A tile is a box of tokens, so that a neighbourhood in time and space touches few of them; its rows are read where they
lie, whatever the box, so nothing is permuted in memory. On each axis a query attends one interval of keys, hence a tile
of queries meets a box of key tiles, and those that all of its queries see whole are a smaller box inside. Both follow
from a few numbers of the axes' tables, in the kernel: there are no lists, nothing is read back, and a grid of another
size compiles nothing anew.

A dilated axis is walked in the order of its residue classes, in which dilated neighbourhoods are intervals again
(``row_order``, ``column_order``; the tables of spans are in that order too).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Tokens(NamedTuple):
    """(B, N, heads, dim) with strides in elements; rows are contiguous."""

    data: Any
    batch: Any
    token: Any
    head: Any


class Tables(NamedTuple):
    """Of one axis: rows are what a program owns a tile of, columns pass by. What is ``None`` compiles to nothing."""

    spans: Any = None  #: (P, rows, 2) int32, [start, end) of the columns that meet a row; None: all do
    sink: Any = None  #: columns below it meet all rows whose span ends behind them
    row_order: Any = None  #: (rows,) int32, place on the axis of the i-th row
    column_order: Any = None


class Axis(NamedTuple):
    """:class:`Tables` with the length of the axis. (Numbers within a tuple that a kernel is given are compiled in.)"""

    rows: Any
    columns: Any
    spans: Any
    sink: Any
    row_order: Any
    column_order: Any


class Reach(NamedTuple):
    """Tiles of columns that meet one of rows, along an axis: ``sinks`` from 0 on, then those from ``first`` on."""

    sinks: Any
    first: Any
    count: Any
    full_from: Any  #: of the ``count``, those from here on are seen whole by all,
    full_count: Any  #: so many


class TileTokens(NamedTuple):
    """The tokens of a tile, one number for each."""

    i: Any  #: (i_t, i_h, i_w), indices into the tables of spans
    at: Any  #: (t, h, w), places on the axes
    token: Any
    exists: Any


@triton.jit
def _axis(tables, rows, columns):
    return Axis(rows, columns, tables.spans, tables.sink, tables.row_order, tables.column_order)


@triton.jit
def axes_of(tables, row_sizes, column_sizes):
    """Three :class:`Axis`."""
    t = _axis(tables[0], row_sizes[0], column_sizes[0])
    h = _axis(tables[1], row_sizes[1], column_sizes[1])
    w = _axis(tables[2], row_sizes[2], column_sizes[2])
    return t, h, w


@triton.jit
def line_of(rows, columns):
    """Axes of two lines of tokens that all meet."""
    one = Axis(1, 1, None, None, None, None)
    return one, one, Axis(rows, columns, None, None, None, None)


@triton.jit
def _reach(axis, pattern, tile, row_box: tl.constexpr, column_box: tl.constexpr):
    if axis.spans is None:
        found = Reach(0, 0, tl.cdiv(axis.columns, column_box), 0, axis.columns // column_box)
    else:
        found = _reach_of_spans(axis, pattern, tile, row_box, column_box)
    return found


@triton.jit
def _reach_of_spans(axis, pattern, tile, row_box: tl.constexpr, column_box: tl.constexpr):
    row = tile * row_box + tl.arange(0, row_box)
    at = axis.spans + (pattern * axis.rows + row) * 2
    exists = row < axis.rows
    start = tl.load(at, exists, axis.columns)
    end = tl.load(at + 1, exists, 0)
    low, high = tl.min(start, 0), tl.max(end, 0)  # what any row sees
    first = tl.where(low < high, low // column_box, axis.columns)
    behind = tl.where(low < high, tl.cdiv(high, column_box), axis.columns)
    sinks = 0
    if axis.sink is not None:
        sinks = tl.minimum(tl.cdiv(tl.minimum(axis.sink, high), column_box), first)
    low, high = tl.max(tl.where(exists, start, 0), 0), tl.min(tl.where(exists, end, axis.columns), 0)  # what all see
    full = tl.maximum(tl.cdiv(low, column_box), first)
    return Reach(sinks, first, sinks + behind - first, full - first + sinks, tl.maximum(high // column_box - full, 0))


@triton.jit
def reach(axes, pattern, tile, row_box: tl.constexpr, column_box: tl.constexpr):
    """:class:`Reach` of a tile of rows along each axis."""
    t = _reach(axes[0], pattern, tile[0], row_box[0], column_box[0])
    h = _reach(axes[1], pattern, tile[1], row_box[1], column_box[1])
    w = _reach(axes[2], pattern, tile[2], row_box[2], column_box[2])
    return t, h, w


@triton.jit
def _tile(r, i):
    return tl.where(i < r.sinks, i, i - r.sinks + r.first)


@triton.jit
def _outside(r, i):
    # The i-th of those that are not seen whole.
    return tl.where(i < r.full_from, i, i + r.full_count)


@triton.jit
def full_tile(i, t, h, w, flat: tl.constexpr):
    """The i-th of the tiles in the inner box of three :class:`Reach`."""
    if flat:
        tile = 0, 0, _tile(w, w.full_from + i)
    else:
        rest = i // w.full_count
        i_t, i_h = t.full_from + rest // h.full_count, h.full_from + rest % h.full_count
        tile = _tile(t, i_t), _tile(h, i_h), _tile(w, w.full_from + i % w.full_count)
    return tile


@triton.jit
def partial_count(t, h, w, flat: tl.constexpr):
    """How many tiles are in the outer box but not in the inner one."""
    return t.count * h.count * w.count - t.full_count * h.full_count * w.full_count


@triton.jit
def partial_tile(i, t, h, w, flat: tl.constexpr):
    """The i-th of these: first the slabs that leave the inner box in t, then those that only do in h, then in w."""
    if flat:  # all, if the one tile in t or h is not seen whole
        tile = 0, 0, _tile(w, tl.where(t.full_count * h.full_count == 0, i, _outside(w, i)))
    else:
        tile = _partial_tile(i, t, h, w)
    return tile


@triton.jit
def _partial_tile(i, t, h, w):
    in_t = (t.count - t.full_count) * h.count * w.count
    in_h = t.full_count * (h.count - h.full_count) * w.count
    by_t, by_h = i < in_t, (i >= in_t) & (i < in_t + in_h)
    i = tl.where(by_t, i, tl.where(by_h, i - in_t, i - in_t - in_h))
    n_h = tl.where(by_t, h.count, tl.where(by_h, h.count - h.full_count, h.full_count))
    n_w = tl.where(by_t | by_h, w.count, w.count - w.full_count)
    rest = i // n_w
    i_t, i_h, i_w = rest // n_h, rest % n_h, i % n_w
    i_t = tl.where(by_t, _outside(t, i_t), t.full_from + i_t)
    i_h = tl.where(by_t, i_h, tl.where(by_h, _outside(h, i_h), h.full_from + i_h))
    i_w = tl.where(by_t | by_h, i_w, _outside(w, i_w))
    return _tile(t, i_t), _tile(h, i_h), _tile(w, i_w)


@triton.jit
def _places(tile, local, box: tl.constexpr, step: tl.constexpr):
    # Blocks of ``step`` tokens that no box divides are cut into boxes of which the last ones are not filled.
    if step == box:
        place, exists = tile * box + local, local >= 0
    else:
        n: tl.constexpr = (step + box - 1) // box
        inside = tile % n * box + local
        place, exists = tile // n * step + inside, inside < step
    return place, exists


@triton.jit
def _ordered(order, i, exists):
    if order is not None:
        i = tl.load(order + i, exists, 0)
    return i


@triton.jit
def tokens_of(
    tile, n_t, n_h, n_w, order_t, order_h, order_w, box: tl.constexpr, step: tl.constexpr, flat: tl.constexpr
):
    """:class:`TileTokens` of a tile in a grid (n_t, n_h, n_w)."""
    m = tl.arange(0, box[0] * box[1] * box[2])
    i_w, in_w = _places(tile[2], m % box[2], box[2], step[2])
    in_w = in_w & (i_w < n_w)
    if flat:
        i_t, i_h, exists = i_w * 0, i_w * 0, in_w
    else:
        i_t, in_t = _places(tile[0], m // (box[1] * box[2]), box[0], step[0])
        i_h, in_h = _places(tile[1], m // box[2] % box[1], box[1], step[1])
        exists = in_t & in_h & in_w & (i_t < n_t) & (i_h < n_h)
    t, h, w = _ordered(order_t, i_t, exists), _ordered(order_h, i_h, exists), _ordered(order_w, i_w, exists)
    token = w
    if not flat:
        token = (t * n_h + h) * n_w + w
    return TileTokens((i_t, i_h, i_w), (t, h, w), token, exists)


@triton.jit
def rows_of(tile, axes, box: tl.constexpr, step: tl.constexpr, flat: tl.constexpr):
    t, h, w = axes
    orders = t.row_order, h.row_order, w.row_order
    return tokens_of(tile, t.rows, h.rows, w.rows, *orders, box, step, flat)


@triton.jit
def columns_of(tile, axes, box: tl.constexpr, step: tl.constexpr, flat: tl.constexpr):
    t, h, w = axes
    orders = t.column_order, h.column_order, w.column_order
    return tokens_of(tile, t.columns, h.columns, w.columns, *orders, box, step, flat)


@triton.jit
def tile_counts(sizes, box: tl.constexpr, step: tl.constexpr):
    """Tiles along each axis: boxes that blocks of ``step`` tokens are cut into."""
    t = tl.cdiv(sizes[0], step[0]) * ((step[0] + box[0] - 1) // box[0])
    h = tl.cdiv(sizes[1], step[1]) * ((step[1] + box[1] - 1) // box[1])
    w = tl.cdiv(sizes[2], step[2]) * ((step[2] + box[2] - 1) // box[2])
    return t, h, w


@triton.jit
def split_tile(index, counts, flat: tl.constexpr):
    """(t, h, w) of the index-th tile."""
    if flat:
        tile = 0, 0, index
    else:
        tile = index // (counts[1] * counts[2]), index // counts[2] % counts[1], index % counts[2]
    return tile


@triton.jit
def _spans(axis, pattern, i, exists):
    if axis.spans is None:
        span = None, None
    else:
        at = axis.spans + (pattern * axis.rows + i) * 2
        span = tl.load(at, exists, 0), tl.load(at + 1, exists, 0)
    return span


@triton.jit
def spans_of(axes, pattern, rows):
    """((start, end) of each row) of each axis."""
    t = _spans(axes[0], pattern, rows.i[0], rows.exists)
    h = _spans(axes[1], pattern, rows.i[1], rows.exists)
    w = _spans(axes[2], pattern, rows.i[2], rows.exists)
    return t, h, w


@triton.jit
def _within(axis, span, j, allowed):
    if axis.spans is not None:
        j = j[None, :]
        inside = j >= span[0][:, None]
        if axis.sink is not None:
            inside = inside | (j < axis.sink)
        allowed = allowed & inside & (j < span[1][:, None])
    return allowed


@triton.jit
def allowed_pairs(axes, spans, columns):
    """Which pairs (rows, columns) of a tile may meet; spans as of :func:`spans_of`."""
    allowed = _within(axes[0], spans[0], columns.i[0], columns.exists[None, :])
    allowed = _within(axes[1], spans[1], columns.i[1], allowed)
    return _within(axes[2], spans[2], columns.i[2], allowed)


@triton.jit
def load_rows(data, stride, token, exists, dim: tl.constexpr, padded: tl.constexpr):
    """(rows, padded) of rows of ``dim`` numbers; ``exists`` may be None."""
    d = tl.arange(0, padded)
    at = data + token.to(tl.int64)[:, None] * stride + d[None, :]
    if dim == padded:
        if exists is None:
            x = tl.load(at)
        else:
            x = tl.load(at, exists[:, None], 0.0)
    else:
        if exists is None:
            x = tl.load(at, (d < dim)[None, :], 0.0)
        else:
            x = tl.load(at, exists[:, None] & (d < dim)[None, :], 0.0)
    return x


@triton.jit
def store_rows(data, stride, token, exists, x, dim: tl.constexpr, padded: tl.constexpr):
    d = tl.arange(0, padded)
    at = data + token.to(tl.int64)[:, None] * stride + d[None, :]
    tl.store(at, x.to(data.dtype.element_ty), exists[:, None] & (d < dim)[None, :])
