"""Attention of one tile of queries: keys pass by in tiles, the softmax is kept running (Dao et al., FlashAttention).

Tiles of keys that all queries of the tile see whole come first, in a loop that tests nothing; then those at the borders
of the pattern, tested pair by pair; then extra keys, which belong to no grid. With blocks given, the keys are those of
the listed blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_blocks import block_of, bounds_of, listed_tile
from .attention_scores import Place, existing_keys, kept_weights, scores
from .attention_tiles import (
    allowed_pairs,
    axes_of,
    columns_of,
    full_tile,
    line_of,
    load_rows,
    partial_count,
    partial_tile,
    reach,
    rows_of,
    spans_of,
    split_tile,
    store_rows,
    tile_counts,
)

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def place_of(program, tiles, heads, head_patterns):
    """The last tiles first: under a causal pattern they have the most to do."""
    tile = tiles - 1 - program % tiles
    rest = program // tiles
    head = rest % heads
    return tile, Place((rest // heads).to(tl.int64), head, heads, tl.load(head_patterns + head))


@triton.jit
def _attend(
    state, query, k, v, tile, scale, rows, spans, axes, options, place, n_rows,
    dim: tl.constexpr, padded: tl.constexpr, dim_v: tl.constexpr, padded_v: tl.constexpr,
    key_box: tl.constexpr, key_step: tl.constexpr, flat: tl.constexpr, tested: tl.constexpr, positive: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """Lets a tile of keys into the running softmax. ``k``, ``v``: (data of this batch and head, stride of a token)."""
    acc, peak, total = state
    columns = columns_of(tile, axes, key_box, key_step, flat)
    exists = None
    allowed = None
    if tested:
        allowed = allowed_pairs(axes, spans, columns)
        exists = columns.exists
    if options.kv_mask is not None:
        exists = existing_keys(columns, options, place)  # the others are not read
        allowed = exists[None, :] if allowed is None else allowed & exists[None, :]
    key = load_rows(k[0], k[1], columns.token, exists, dim, padded)
    s = tl.dot(query, tl.trans(key), input_precision=precision)
    factor = 1.0
    if positive and options.softcap is None and options.relative is None and options.bias is None:
        factor = scale * _LOG2E  # one multiplication and subtraction for each pair
        if allowed is not None:
            s = tl.where(allowed, s, float("-inf"))
    else:
        s, _ = scores(s, scale, rows, columns, allowed, options, place, False)
    new = tl.maximum(peak, tl.max(s, 1) * factor)
    shift = new
    if allowed is not None or options.bias is not None:
        shift = tl.where(new == float("-inf"), 0.0, new)  # no key so far
    p = tl.exp2(s * factor - shift[:, None])
    fade = tl.exp2(peak - shift)
    total = total * fade + tl.sum(p, 1)
    if options.threshold is not None:
        p = p * kept_weights(rows, columns, n_rows, options, place, False)
    value = load_rows(v[0], v[1], columns.token, exists, dim_v, padded_v)
    acc = tl.dot(p.to(value.dtype), value, acc * fade[:, None], input_precision=precision)
    return acc, new, total


@triton.jit
def head_of(tokens, batch, head):
    """Rows of one batch and head: data and stride of a token."""
    return tokens.data + batch * tokens.batch + head.to(tl.int64) * tokens.head, tokens.token


@triton.jit(do_not_specialize=["n_t", "n_h", "n_w", "m_t", "m_h", "m_w", "n_extra", "heads"])
def fwd_kernel(
    q, k, v, extra_k, extra_v, out, lse, tables, head_patterns, blocks, options, extra_options,
    n_t, n_h, n_w, m_t, m_h, m_w, n_extra, heads, group, scale,
    dim: tl.constexpr, padded: tl.constexpr, dim_v: tl.constexpr, padded_v: tl.constexpr,
    box: tl.constexpr, step: tl.constexpr, key_box: tl.constexpr, key_step: tl.constexpr, flat: tl.constexpr,
    positive: tl.constexpr, stages: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """``out`` (B, n_q, heads, dim_v) and ``lse`` (B, heads, n_q); queries lie on a grid (n_t, n_h, n_w), keys on m."""
    axes, n_q = axes_of(tables, (n_t, n_h, n_w), (m_t, m_h, m_w)), n_t * n_h * n_w
    counts = tile_counts((n_t, n_h, n_w), box, step)
    index, place = place_of(tl.program_id(0), counts[0] * counts[1] * counts[2], heads, head_patterns)
    tile = split_tile(index, counts, flat)
    rows = rows_of(tile, axes, box, step, flat)
    spans = spans_of(axes, place.pattern, rows)
    q_rows, q_stride = head_of(q, place.batch, place.head)
    query = load_rows(q_rows, q_stride, rows.token, rows.exists, dim, padded)
    keys, values = head_of(k, place.batch, place.head // group), head_of(v, place.batch, place.head // group)

    n_rows: tl.constexpr = box[0] * box[1] * box[2]
    acc = tl.zeros((n_rows, padded_v), tl.float32)
    peak = tl.full((n_rows,), float("-inf"), tl.float32)
    total = tl.zeros((n_rows,), tl.float32)
    state = acc, peak, total
    if blocks is None:
        r_t, r_h, r_w = reach(axes, place.pattern, tile, box, key_box)
        for i in tl.range(0, r_t.full_count * r_h.full_count * r_w.full_count, num_stages=stages):
            state = _attend(
                state, query, keys, values, full_tile(i, r_t, r_h, r_w, flat), scale, rows, spans, axes, options,
                place, n_q, dim, padded, dim_v, padded_v, key_box, key_step, flat, False, positive, precision,
            )  # fmt: skip
        for i in tl.range(0, partial_count(r_t, r_h, r_w, flat), num_stages=stages):
            state = _attend(
                state, query, keys, values, partial_tile(i, r_t, r_h, r_w, flat), scale, rows, spans, axes, options,
                place, n_q, dim, padded, dim_v, padded_v, key_box, key_step, flat, True, positive, precision,
            )  # fmt: skip
    else:
        block = block_of(tile, n_h, n_w, box, step)
        begin, end = bounds_of(blocks, block, place.batch, place.head, key_box, key_step)
        for i in tl.range(begin, end, num_stages=stages):
            key_tile, listed = listed_tile(blocks, i, m_h, m_w, key_box, key_step)
            if listed:
                state = _attend(
                    state, query, keys, values, key_tile, scale, rows, spans, axes, options, place, n_q, dim, padded,
                    dim_v, padded_v, key_box, key_step, flat, True, positive, precision,
                )  # fmt: skip
    if extra_k is not None:
        extra_keys = head_of(extra_k, place.batch, place.head // group)
        extra_values = head_of(extra_v, place.batch, place.head // group)
        flat_box: tl.constexpr = (1, 1, key_box[0] * key_box[1] * key_box[2])
        line = line_of(n_q, n_extra)
        for i in tl.range(0, tl.cdiv(n_extra, flat_box[2]), num_stages=stages):
            state = _attend(
                state, query, extra_keys, extra_values, (0, 0, i), scale, rows, spans, line, extra_options,
                place, n_q, dim, padded, dim_v, padded_v, flat_box, flat_box, True, True, positive, precision,
            )  # fmt: skip
    acc, peak, total = state
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    start = (place.batch * n_q * heads + place.head) * dim_v
    store_rows(out + start, heads * dim_v, rows.token, rows.exists, acc, dim_v, padded_v)
    none = total == 0
    logsumexp = tl.where(none, float("-inf"), peak / _LOG2E + tl.log(tl.where(none, 1.0, total)))
    tl.store(lse + (place.batch * heads + place.head) * n_q + rows.token, logsumexp, rows.exists)
