"""Spatiotemporal attention in PyTorch, tile by tile: memory goes with the pairs that a pattern allows.

Queries are cut into tiles, boxes on the grid. A tile gathers the keys that any of its queries may attend, and is then a
small masked attention; tiles are taken many at a time. It is the fallback where no kernel was built, and what second
derivatives differentiate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from ..patterns.blocks import block_of, counts
from ..patterns.spans import Spans
from .attention import (
    Options,
    attend,
    coordinates,
    dropout_keeps,
    dropout_rows,
    relative,
    rotate,
    wide,
    with_extras,
)

#: Scores of tiles that are computed at once: what fits a cache, more or less.
CHUNK = 1 << 20
TILE_PAIRS = 1 << 20
_PER_KEY = 4  # gathering a key costs about as much as this many of its scores

Axes = tuple[Tensor, Tensor, Tensor]  # spans of the queries of each axis, (L_q, 2)


@dataclass(frozen=True)
class Tiles:
    """Which queries and keys each of n tiles holds, as token indices; -1 fills up."""

    query: Tensor  # (n, Q)
    key: Tensor  # (1 | B, 1 | heads, n, K)


def attention_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    relative_bias: Tensor | None,
    bias: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """As :func:`fastvfx.reference.attention`, which it equals up to rounding, in less memory."""
    heads, ratio = q.shape[2], q.shape[2] // k.shape[2]
    dtype = wide(q)
    queries = rotate(q.to(dtype), options.rotary, options.rotary_halves).transpose(1, 2)  # (B, heads, N_q, dim)
    keys = rotate(k.to(dtype), options.kv_rotary, options.rotary_halves).transpose(1, 2)  # (B, kv_heads, N_k, dim)
    values = v.to(dtype).transpose(1, 2)
    extras = [None if x is None else x.to(dtype).transpose(1, 2) for x in (extra_k, extra_v)]
    biases = [None if x is None else x.to(dtype) for x in (relative_bias, bias)]
    spans, parts = options.spans, []  # (heads, results) of each pattern
    with temporarily_clear_interpreter_stack():  # the numbers of a tensor cannot be listed inside torch.func
        of_head = spans.of_head.tolist()
    for p in range(spans.t.shape[0]):
        members = [n for n in range(heads) if of_head[n] == p]
        if members:
            head = torch.tensor(members, device=q.device)
            one = _Heads(members, head, head // ratio, (spans.t[p], spans.h[p], spans.w[p]), options)
            parts.append((members, one.attend(queries, keys, values, extras, biases)))
    if not parts:  # no heads have no pattern
        raise ValueError("fastvfx.reference.attention_tiles: expected at least one head")
    if len(parts) == 1:
        out, lse = parts[0][1]
    else:
        order = torch.tensor([n for members, _ in parts for n in members], device=q.device).argsort()
        out = torch.cat([out for _, (out, _) in parts], 1).index_select(1, order)
        lse = torch.cat([lse for _, (_, lse) in parts], 1).index_select(1, order)
    return out.transpose(1, 2).to(q.dtype), lse


@dataclass(frozen=True)
class _Heads:
    """The heads that share a pattern."""

    members: list[int]
    head: Tensor  # the same, (heads,) int64
    kv_head: Tensor
    axes: Axes
    options: Options

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, extras: list[Tensor | None], biases: list[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """out (B, heads, N_q, dim_v) and lse (B, heads, N_q)."""
        options, n_q = self.options, q.shape[2]
        batch, n_heads = q.shape[0], len(self.head)
        tiles = _block_tiles(options) if options.blocks is not None else static_tiles(options.spans, self.axes)
        rows = dropout_rows(options.seed, batch, q.shape[1], n_q, q.device)[:, self.head] if options.dropout else None
        q = q[:, self.head]
        outs, sums, order = [], [], []
        for tile in _chunks(tiles, batch * n_heads):
            real = tile.query >= 0  # (n, Q)
            query = tile.query.clamp(min=0)
            args = (q[:, :, query], tile, query, k, v, extras, biases, rows)
            out, lse = self._tile(*args)  # (B, heads, n, Q, dim_v)
            outs.append(out.flatten(2, 3)[:, :, real.flatten()])
            sums.append(lse.flatten(2, 3)[:, :, real.flatten()])
            order.append(query[real])
        if not outs:
            given = [x for x in (q, k, v, *extras, *biases) if x is not None]
            zero = torch.cat([x.flatten()[:0] for x in given]).sum()  # the result has the gradient 0, not none
            shape = (batch, n_heads, n_q)
            return v.new_zeros((*shape, v.shape[3])) + zero, q.new_full(shape, -torch.inf) + zero
        inverse = torch.cat(order).argsort()
        return torch.cat(outs, 2).index_select(2, inverse), torch.cat(sums, 2).index_select(2, inverse)

    def _tile(
        self,
        q: Tensor,  # (B, heads, n, Q, dim)
        tile: Tiles,
        query: Tensor,
        k: Tensor,
        v: Tensor,
        extras: list[Tensor | None],
        biases: list[Tensor | None],
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        options = self.options
        key = tile.key if tile.key.shape[1] == 1 else tile.key[:, self.head]
        n_k = k.shape[2]
        exists, key = (key >= 0)[..., None, :], key.clamp(min=0)
        allowed = exists & self._allowed(query[..., None], key[..., None, :])  # (1 | B, 1 | heads, n, Q, K)
        batch = torch.arange(q.shape[0], device=q.device)[:, None, None, None]
        if options.kv_mask is not None:
            allowed = allowed & options.kv_mask[batch, key][..., None, :]
        kv_head = self.kv_head[:, None, None]
        keys, values = k[batch, kv_head, key], v[batch, kv_head, key]  # (B, heads, n, K, dim)
        table, bias = biases
        added = None
        if bias is not None:
            first = batch if bias.shape[0] > 1 else batch[:1] * 0
            added = bias[first[..., None], self.head[:, None, None, None], query[..., None], key[..., None, :]]
        if table is not None:
            near = self._relative(table, query, key)
            added = near if added is None else added + near
        key = key[..., None, :]
        extra_k, extra_v = extras
        if extra_k is not None and extra_v is not None:
            more = (*q.shape[:3], -1, -1)
            keys = torch.cat([keys, extra_k[:, self.kv_head][:, :, None].expand(*more)], 3)
            values = torch.cat([values, extra_v[:, self.kv_head][:, :, None].expand(*more)], 3)
            allowed, added, key = with_extras(allowed, added, key, n_k, extra_k.shape[2], options.extra_mask)
        kept = None if rows is None else dropout_keeps(rows[:, :, query][..., None], key, options.dropout)
        return attend(q, keys, values, allowed, added, kept, options)

    def _allowed(self, query: Tensor, key: Tensor) -> Tensor:
        spans = self.options.spans
        rows = (self.axes, coordinates(query, spans.grid), coordinates(key, spans.kv_grid), spans.dilation, spans.sink)
        return reduce(torch.logical_and, [_on_axis(*row) for row in zip(*rows, strict=True)])

    def _relative(self, table: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """(1 | B, heads, n, Q, K)."""
        spans, at, there = self.options.spans, query[..., None], key[..., None, :]
        if key.shape[1] == 1:
            return relative(table[self.head], spans, at, there[:, 0]).transpose(0, 1)
        each = [relative(table[h : h + 1], spans, at, there[:, i]) for i, h in enumerate(self.members)]
        return torch.cat(each).transpose(0, 1)


def _on_axis(spans: Tensor, query: Tensor, key: Tensor, dilation: int, sink: int) -> Tensor:
    start, end = spans.long()[query].unbind(-1)
    return (key < end) & (((key >= start) & ((key - start) % dilation == 0)) | (key < sink))


def _chunks(tiles: Tiles, batch_heads: int) -> Iterator[Tiles]:
    n, pairs = len(tiles.query), tiles.query.shape[1] * max(tiles.key.shape[3], 1) * max(batch_heads, 1)
    step = max(1, CHUNK // max(pairs, 1))
    for first in range(0, n, step):
        yield Tiles(tiles.query[first : first + step], tiles.key[:, :, first : first + step])


def _block_tiles(options: Options) -> Tiles:
    """A tile is a block of queries; its keys are those of the listed blocks."""
    assert options.blocks is not None
    spans, block, device = options.spans, options.block, options.blocks.device
    of_query = _members(block_of(spans.grid, block, device), math.prod(counts(spans.grid, block)))
    of_key = _members(block_of(spans.kv_grid, block, device), math.prod(counts(spans.kv_grid, block)))
    listed = options.blocks.long()
    if len(of_key) == 0:
        of_key = of_key.new_full((1, 1), -1)
    key = torch.where(listed[..., None] < 0, -1, of_key[listed.clamp(min=0)])  # (1 | B, 1 | heads, n, listed, K)
    return Tiles(of_query, key.flatten(3))


def _members(group: Tensor, n: int) -> Tensor:
    """Which tokens are in each of n groups, (n, the most there are in one), -1 behind them."""
    order = group.argsort(stable=True)
    size = torch.bincount(group, minlength=n)
    column = torch.arange(len(group), device=group.device) - (size.cumsum(0) - size)[group[order]]
    table = torch.full((n, int(size.max()) if n else 0), -1, device=group.device)
    table[group[order], column] = order
    return table


def static_tiles(spans: Spans, axes: Axes) -> Tiles:
    """Boxes of queries that have many keys in common, and these keys."""
    host = [axis.cpu().long() for axis in axes]
    most = [max(len(axis), 1) for axis in host]
    while True:
        cut = [_cut(*args) for args in zip(host, most, spans.dilation, spans.sink, strict=True)]
        sides = [queries.shape[1] for queries, _ in cut]
        pairs = math.prod(sides) * math.prod(keys.shape[1] for _, keys in cut)
        widest = max(range(3), key=lambda axis: sides[axis])
        if pairs <= TILE_PAIRS or sides[widest] <= 1:
            break
        most[widest] = sides[widest] // 2
    query, _ = reduce(_box, [(queries, n) for (queries, _), n in zip(cut, spans.grid, strict=True)])
    key, _ = reduce(_box, [(keys, n) for (_, keys), n in zip(cut, spans.kv_grid, strict=True)])
    return Tiles(query.to(spans.t.device), key.to(spans.t.device)[None, None])


def _box(a: tuple[Tensor, int], b: tuple[Tensor, int]) -> tuple[Tensor, int]:
    """Of index lists (n, A) and (m, B) on two axes, those of the boxes on both, (n m, A B)."""
    (x, size), (y, n) = (a[0][:, None, :, None], a[1]), (b[0][None, :, None], b[1])
    both = torch.where((x < 0) | (y < 0), -1, x * n + y)
    return both.flatten(2).flatten(0, 1), size * n


def _cut(spans: Tensor, most: int, dilation: int, sink: int) -> tuple[Tensor, Tensor]:
    """One axis's queries in lists of at most ``most``, (n, Q), and the keys of each list, (n, K).

    Queries with the same keys make a list, or neighbours do (those of one phase, where the axis is dilated): whichever
    gives the least work.
    """
    _, same = torch.unique(spans, dim=0, return_inverse=True)
    candidates = [_split(same, most)]
    candidates += [_split(spans[:, 0] % dilation, size) for size in {1, 2, 4, 8, 16, most} if size <= most]
    lists = [(_members(group, int(group.max()) + 1 if len(group) else 0), group) for group in candidates]
    cuts = [(queries, _keys(spans, group, len(queries), dilation, sink)) for queries, group in lists]
    return min(cuts, key=lambda cut: cut[1].numel() * (cut[0].shape[1] + _PER_KEY))


def _split(group: Tensor, most: int) -> Tensor:
    """Groups in parts of at most ``most`` members, numbered from 0."""
    order = group.argsort(stable=True)
    size = torch.bincount(group)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group)) - (size.cumsum(0) - size)[group[order]]
    return torch.unique(torch.stack([group, rank // most]), dim=1, return_inverse=True)[1]


def _keys(spans: Tensor, group: Tensor, n: int, dilation: int, sink: int) -> Tensor:
    """For each of n groups of queries, the keys of any of them, (n, K), -1 behind them."""
    start, end = spans.unbind(1)
    last = torch.zeros(n, dtype=torch.int64).scatter_reduce(0, group, end, "amax")
    first = last.scatter_reduce(0, group, torch.where(start < end, start, last[group]), "amin")
    in_phase = torch.ones(n, dtype=torch.int64).scatter_reduce(
        0, group, ((start >= end) | ((start - first[group]) % dilation == 0)).long(), "amin"
    )
    step = torch.where(in_phase > 0, dilation, 1)
    n_sinks = first.clamp(max=sink)  # those in front of the interval; patterns with sinks are not dilated
    size = n_sinks + (last - first + step - 1) // step
    column = torch.arange(int(size.max()) if n else 0)
    key = torch.where(column < n_sinks[:, None], column, first[:, None] + (column - n_sinks[:, None]) * step[:, None])
    return torch.where(column < size[:, None], key, -1)
