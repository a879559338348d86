"""Gradients of attention, the same every time: each number is summed by one program, in a fixed order.

With P the weights, dO the gradient of the output and D = rowsum(dO O) - (gradient of the log-sum-exp):

    dS = P (dO V^T - D)        dQ = scale dS K        dK = scale dS^T Q        dV = P^T dO

``bwd_q_kernel`` owns a tile of queries and passes over the keys, ``bwd_kv_kernel`` owns a tile of keys and passes over
the queries that see it, of all heads that share it. Both compute P anew from the log-sum-exp.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .attention_blocks import block_of, bounds_of, listed_tile
from .attention_fwd import head_of, place_of
from .attention_scores import Place, along_queries, existing_keys, kept_weights, relative_index, scores
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


@triton.jit(do_not_specialize=["n", "heads"])
def delta_kernel(
    out, grad_out, grad_lse, delta, n, heads, dim_v: tl.constexpr, padded_v: tl.constexpr, block: tl.constexpr
):
    """D of (B, heads, n) from ``out`` (B, n, heads, dim_v), which is contiguous, and ``grad_out`` likewise."""
    blocks = tl.cdiv(n, block)
    token = tl.program_id(0) % blocks * block + tl.arange(0, block)
    rest = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = rest // heads, rest % heads
    exists = token < n
    start = (batch * n * heads + head) * dim_v
    o = load_rows(out + start, heads * dim_v, token, exists, dim_v, padded_v).to(tl.float32)
    rows, stride = head_of(grad_out, batch, head)
    g = load_rows(rows, stride, token, exists, dim_v, padded_v).to(tl.float32)
    sums = tl.sum(o * g, 1)
    at = (batch * heads + head) * n + token
    if grad_lse is not None:
        sums -= tl.load(grad_lse + at, exists, 0.0)
    tl.store(delta + at, sums, exists)


@triton.jit
def row_numbers(lse, delta, place, n_q, rows):
    """(log-sum-exp times log2(e), D) of queries; one without keys, or that does not exist, has weights 0."""
    at = (place.batch * place.heads + place.head) * n_q + rows.token
    top = tl.load(lse + at, rows.exists, float("-inf"))
    return tl.where(top == float("-inf"), float("inf"), top * _LOG2E), tl.load(delta + at, rows.exists, 0.0)


@triton.jit
def weights_and_slopes(s, dp, top, delta, scale, queries, keys, allowed, options, place, n_q, transposed: tl.constexpr):
    """Weights as they multiply values, dS by the scores, and dS by the scaled products of queries and keys."""
    s, slope = scores(s, scale, queries, keys, allowed, options, place, transposed)
    p = tl.exp2(s - along_queries(top, transposed))
    kept = p
    if options.threshold is not None:
        factor = kept_weights(queries, keys, n_q, options, place, transposed)
        kept, dp = p * factor, dp * factor
    ds = p * (dp - along_queries(delta, transposed))
    return kept, ds, ds * slope


class BiasSums(NamedTuple):
    """What the gradients of the biases follow from."""

    bias: Any  #: (B, heads, n_q, keys) float32: dS where pairs may attend
    relative: (
        Any  #: (copies, heads, r_t, r_h, r_w) int64: dS times ``unit``, rounded. Integers sum to the same in any order
    )
    copies: Any
    unit: Any  #: (1,) float32


@triton.jit
def _sum_biases(sums, ds, rows, columns, axes, options, place, n_q):
    if sums.bias is not None:
        n_k = axes[0].columns * axes[1].columns * axes[2].columns
        start = sums.bias + (place.batch * place.heads + place.head) * n_q * n_k
        at = rows.token.to(tl.int64)[:, None] * n_k + columns.token[None, :]
        tl.store(start + at, ds, rows.exists[:, None] & columns.exists[None, :])
    if sums.relative is not None:
        n_t, n_h, n_w = options.relative_sizes
        copy = tl.program_id(0) % sums.copies * place.heads + place.head
        at = sums.relative + copy * (n_t * n_h * n_w) + relative_index(rows, columns, options, False)
        tl.atomic_add(at, (ds * tl.load(sums.unit)).to(tl.int64), ds != 0, sem="relaxed")


@triton.jit
def _query_step(
    acc, query, grad, top, delta, k, v, sums, tile, scale, rows, spans, axes, options, place, n_q,
    dim: tl.constexpr, padded: tl.constexpr, dim_v: tl.constexpr, padded_v: tl.constexpr,
    key_box: tl.constexpr, key_step: tl.constexpr, flat: tl.constexpr, tested: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    columns = columns_of(tile, axes, key_box, key_step, flat)
    exists = None
    allowed = None
    if tested:
        allowed = allowed_pairs(axes, spans, columns)
        exists = columns.exists
    if options.kv_mask is not None:
        exists = existing_keys(columns, options, place)
        allowed = exists[None, :] if allowed is None else allowed & exists[None, :]
    key = load_rows(k[0], k[1], columns.token, exists, dim, padded)
    value = load_rows(v[0], v[1], columns.token, exists, dim_v, padded_v)
    s = tl.dot(query, tl.trans(key), input_precision=precision)
    dp = tl.dot(grad, tl.trans(value), input_precision=precision)
    _, ds, dx = weights_and_slopes(s, dp, top, delta, scale, rows, columns, allowed, options, place, n_q, False)
    if sums is not None:
        _sum_biases(sums, ds, rows, columns, axes, options, place, n_q)
    return tl.dot(dx.to(key.dtype), key, acc, input_precision=precision)


@triton.jit(do_not_specialize=["n_t", "n_h", "n_w", "m_t", "m_h", "m_w", "n_extra", "heads"])
def bwd_q_kernel(
    q, k, v, extra_k, extra_v, grad_out, lse, delta, grad_q, sums, tables, head_patterns, blocks,
    options, extra_options, n_t, n_h, n_w, m_t, m_h, m_w, n_extra, heads, group, scale,
    dim: tl.constexpr, padded: tl.constexpr, dim_v: tl.constexpr, padded_v: tl.constexpr,
    box: tl.constexpr, step: tl.constexpr, key_box: tl.constexpr, key_step: tl.constexpr, flat: tl.constexpr,
    stages: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """``grad_q`` like ``q``, and ``sums``, if they are given; grids as of the forward kernel."""
    axes, n_q = axes_of(tables, (n_t, n_h, n_w), (m_t, m_h, m_w)), n_t * n_h * n_w
    counts = tile_counts((n_t, n_h, n_w), box, step)
    index, place = place_of(tl.program_id(0), counts[0] * counts[1] * counts[2], heads, head_patterns)
    tile = split_tile(index, counts, flat)
    rows = rows_of(tile, axes, box, step, flat)
    spans = spans_of(axes, place.pattern, rows)
    q_rows, q_stride = head_of(q, place.batch, place.head)
    query = load_rows(q_rows, q_stride, rows.token, rows.exists, dim, padded)
    g_rows, g_stride = head_of(grad_out, place.batch, place.head)
    grad = load_rows(g_rows, g_stride, rows.token, rows.exists, dim_v, padded_v)
    top, d = row_numbers(lse, delta, place, n_q, rows)
    keys, values = head_of(k, place.batch, place.head // group), head_of(v, place.batch, place.head // group)

    acc = tl.zeros((box[0] * box[1] * box[2], padded), tl.float32)
    if blocks is None:
        r_t, r_h, r_w = reach(axes, place.pattern, tile, box, key_box)
        for i in tl.range(0, r_t.full_count * r_h.full_count * r_w.full_count, num_stages=stages):
            acc = _query_step(
                acc, query, grad, top, d, keys, values, sums, full_tile(i, r_t, r_h, r_w, flat), scale, rows,
                spans, axes, options, place, n_q, dim, padded, dim_v, padded_v, key_box, key_step, flat, False,
                precision,
            )  # fmt: skip
        for i in tl.range(0, partial_count(r_t, r_h, r_w, flat), num_stages=stages):
            acc = _query_step(
                acc, query, grad, top, d, keys, values, sums, partial_tile(i, r_t, r_h, r_w, flat), scale, rows,
                spans, axes, options, place, n_q, dim, padded, dim_v, padded_v, key_box, key_step, flat, True,
                precision,
            )  # fmt: skip
    else:
        block = block_of(tile, n_h, n_w, box, step)
        begin, end = bounds_of(blocks, block, place.batch, place.head, key_box, key_step)
        for i in tl.range(begin, end, num_stages=stages):
            key_tile, listed = listed_tile(blocks, i, m_h, m_w, key_box, key_step)
            if listed:
                acc = _query_step(
                    acc, query, grad, top, d, keys, values, sums, key_tile, scale, rows, spans, axes, options, place,
                    n_q, dim, padded, dim_v, padded_v, key_box, key_step, flat, True, precision,
                )  # fmt: skip
    if extra_k is not None:
        extra_keys = head_of(extra_k, place.batch, place.head // group)
        extra_values = head_of(extra_v, place.batch, place.head // group)
        flat_box: tl.constexpr = (1, 1, key_box[0] * key_box[1] * key_box[2])
        line = line_of(n_q, n_extra)
        for i in tl.range(0, tl.cdiv(n_extra, flat_box[2]), num_stages=stages):
            acc = _query_step(
                acc, query, grad, top, d, extra_keys, extra_values, None, (0, 0, i), scale, rows, spans, line,
                extra_options, place, n_q, dim, padded, dim_v, padded_v, flat_box, flat_box, True, True, precision,
            )  # fmt: skip
    out_rows, out_stride = head_of(grad_q, place.batch, place.head)
    store_rows(out_rows, out_stride, rows.token, rows.exists, acc * scale, dim, padded)


@triton.jit
def _key_step(
    acc_k, acc_v, key, value, keys, exists, spans, q, grad_out, lse, delta, tile, scale, axes, options, place, n_q,
    dim: tl.constexpr, padded: tl.constexpr, dim_v: tl.constexpr, padded_v: tl.constexpr,
    box: tl.constexpr, step: tl.constexpr, flat: tl.constexpr, tested: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    queries = columns_of(tile, axes, box, step, flat)
    queries_exist = None
    allowed = None
    if tested:
        allowed = allowed_pairs(axes, spans, queries)
        queries_exist = queries.exists
    if options.kv_mask is not None:
        allowed = exists[:, None] if allowed is None else allowed & exists[:, None]
    query = load_rows(q[0], q[1], queries.token, queries_exist, dim, padded)
    grad = load_rows(grad_out[0], grad_out[1], queries.token, queries_exist, dim_v, padded_v)
    top, d = row_numbers(lse, delta, place, n_q, queries)
    s = tl.dot(key, tl.trans(query), input_precision=precision)  # (keys, queries)
    dp = tl.dot(value, tl.trans(grad), input_precision=precision)
    p, _, dx = weights_and_slopes(s, dp, top, d, scale, queries, keys, allowed, options, place, n_q, True)
    acc_v = tl.dot(p.to(grad.dtype), grad, acc_v, input_precision=precision)
    acc_k = tl.dot(dx.to(query.dtype), query, acc_k, input_precision=precision)
    return acc_k, acc_v


@triton.jit(do_not_specialize=["n_t", "n_h", "n_w", "m_t", "m_h", "m_w", "kv_heads"])
def bwd_kv_kernel(
    q, k, v, grad_out, lse, delta, grad_k, grad_v, tables, head_patterns, blocks, options,
    n_t, n_h, n_w, m_t, m_h, m_w, kv_heads, group, scale,
    dim: tl.constexpr, padded: tl.constexpr, dim_v: tl.constexpr, padded_v: tl.constexpr,
    box: tl.constexpr, step: tl.constexpr, key_box: tl.constexpr, key_step: tl.constexpr, flat: tl.constexpr,
    stages: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """``grad_k`` and ``grad_v`` like ``k`` and ``v``; ``tables`` are those of keys, whose grid is m."""
    axes, n_q = axes_of(tables, (m_t, m_h, m_w), (n_t, n_h, n_w)), n_t * n_h * n_w
    counts = tile_counts((m_t, m_h, m_w), key_box, key_step)
    n_tiles = counts[0] * counts[1] * counts[2]
    tile = split_tile(tl.program_id(0) % n_tiles, counts, flat)
    rest = tl.program_id(0) // n_tiles
    batch, kv_head = (rest // kv_heads).to(tl.int64), rest % kv_heads
    keys = rows_of(tile, axes, key_box, key_step, flat)
    exists = existing_keys(keys, options, Place(batch, kv_head, kv_heads, 0))
    k_rows, k_stride = head_of(k, batch, kv_head)
    key = load_rows(k_rows, k_stride, keys.token, exists, dim, padded)
    v_rows, v_stride = head_of(v, batch, kv_head)
    value = load_rows(v_rows, v_stride, keys.token, exists, dim_v, padded_v)

    n_keys: tl.constexpr = key_box[0] * key_box[1] * key_box[2]
    acc_k = tl.zeros((n_keys, padded), tl.float32)
    acc_v = tl.zeros((n_keys, padded_v), tl.float32)
    for of_group in range(group):
        head = kv_head * group + of_group
        place = Place(batch, head, kv_heads * group, tl.load(head_patterns + head))
        queries, grads = head_of(q, batch, head), head_of(grad_out, batch, head)
        spans = spans_of(axes, place.pattern, keys)
        if blocks is None:
            r_t, r_h, r_w = reach(axes, place.pattern, tile, key_box, box)
            for i in tl.range(0, r_t.full_count * r_h.full_count * r_w.full_count, num_stages=stages):
                acc_k, acc_v = _key_step(
                    acc_k, acc_v, key, value, keys, exists, spans, queries, grads, lse, delta,
                    full_tile(i, r_t, r_h, r_w, flat), scale, axes, options, place, n_q, dim, padded, dim_v, padded_v,
                    box, step, flat, False, precision,
                )  # fmt: skip
            for i in tl.range(0, partial_count(r_t, r_h, r_w, flat), num_stages=stages):
                acc_k, acc_v = _key_step(
                    acc_k, acc_v, key, value, keys, exists, spans, queries, grads, lse, delta,
                    partial_tile(i, r_t, r_h, r_w, flat), scale, axes, options, place, n_q, dim, padded, dim_v,
                    padded_v, box, step, flat, True, precision,
                )  # fmt: skip
        else:
            key_block = block_of(tile, m_h, m_w, key_box, key_step)
            begin, end = bounds_of(blocks, key_block, batch, head, box, step)
            for i in tl.range(begin, end, num_stages=stages):
                query_tile, listed = listed_tile(blocks, i, n_h, n_w, box, step)
                if listed:
                    acc_k, acc_v = _key_step(
                        acc_k, acc_v, key, value, keys, exists, spans, queries, grads, lse, delta, query_tile, scale,
                        axes, options, place, n_q, dim, padded, dim_v, padded_v, box, step, flat, True, precision,
                    )  # fmt: skip
    k_out, k_step = head_of(grad_k, batch, kv_head)
    store_rows(k_out, k_step, keys.token, keys.exists, acc_k * scale, dim, padded)
    v_out, v_step = head_of(grad_v, batch, kv_head)
    store_rows(v_out, v_step, keys.token, keys.exists, acc_v, dim_v, padded_v)
