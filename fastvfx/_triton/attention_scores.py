"""From products of queries and keys to scores and weights: the same steps in the forward and in both backward kernels.

    score = cap tanh(scale q.k / cap) + relative_bias[key - query] + bias[query, key]        then times log2(e)

A pair that may not attend scores -inf.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


class Options(NamedTuple):
    """What changes scores and weights; ``None`` compiles to nothing."""

    softcap: Any = None
    kv_mask: Any = None  #: (B, columns) bool as uint8
    kv_mask_batch: Any = 0  #: its strides
    kv_mask_column: Any = 0
    relative: Any = None  #: (heads, r_t, r_h, r_w) float32
    relative_sizes: Any = (1, 1, 1)
    shift: Any = (0, 0, 0)  #: place of the first query among the keys
    dilation: Any = (1, 1, 1)
    bias: Any = None
    bias_strides: Any = (0, 0, 0, 0)  #: batch, head, query, key
    threshold: Any = None  #: a pair is dropped whose 32 random bits are below
    kept: Any = 1.0  #: what weights that are kept are multiplied by
    seed: Any = 0  #: mixed, int64
    first_key: Any = 0  #: number of the first key


class Place(NamedTuple):
    """Of one program."""

    batch: Any  #: int64
    head: Any
    heads: Any
    pattern: Any  #: which of the P tables its head takes


@triton.jit
def along_queries(x, transposed: tl.constexpr):
    """One number a query, for a tile (queries, keys) of pairs, or (keys, queries) if it is ``transposed``."""
    return x[None, :] if transposed else x[:, None]


@triton.jit
def along_keys(x, transposed: tl.constexpr):
    return x[:, None] if transposed else x[None, :]


@triton.jit
def existing_keys(keys, options, place):
    """Of the keys of a tile those that exist and that the mask of keys has not taken away."""
    exists = keys.exists
    if options.kv_mask is not None:
        at = options.kv_mask + place.batch * options.kv_mask_batch + keys.token * options.kv_mask_column
        exists = exists & (tl.load(at, exists, 0) != 0)
    return exists


@triton.jit
def relative_index(queries, keys, options, transposed: tl.constexpr):
    """Entry of (r_t, r_h, r_w) for each pair; forbidden pairs get any."""
    index = tl.zeros_like(along_queries(queries.token, transposed) + along_keys(keys.token, transposed))
    for axis in tl.static_range(3):
        size = options.relative_sizes[axis]
        query = along_queries(queries.at[axis] + options.shift[axis], transposed)
        offset = (along_keys(keys.at[axis], transposed) - query) // options.dilation[axis]
        index = index * size + tl.minimum(tl.maximum(offset + size // 2, 0), size - 1)
    return index


@triton.jit
def _biased(s, queries, keys, options, place, transposed: tl.constexpr):
    if options.relative is not None:
        index = relative_index(queries, keys, options, transposed)
        n_t, n_h, n_w = options.relative_sizes
        s += tl.load(options.relative + place.head * (n_t * n_h * n_w) + index)
    if options.bias is not None:
        batch, head, row, column = options.bias_strides
        start = options.bias + place.batch * batch + place.head.to(tl.int64) * head
        at = along_queries(queries.token.to(tl.int64) * row, transposed)
        at = at + along_keys(keys.token.to(tl.int64) * column, transposed)
        exists = along_queries(queries.exists, transposed) & along_keys(keys.exists, transposed)
        s += tl.load(start + at, exists, 0.0).to(tl.float32)
    return s


@triton.jit
def scores(s, scale, queries, keys, allowed, options, place, transposed: tl.constexpr):
    """Scores, times log2(e), of products ``s``, and the derivative of the soft cap. ``allowed`` None: all pairs are."""
    slope = 1.0
    if options.softcap is None and options.relative is None and options.bias is None:
        s = s * (scale * _LOG2E)
    else:
        s = s * scale
        if options.softcap is not None:
            e = tl.exp2(tl.abs(s) * (-2 * _LOG2E / options.softcap))  # in [0, 1]
            tanh = (1 - e) / (1 + e)
            slope = 1 - tanh * tanh
            s = tl.where(s < 0, -tanh, tanh) * options.softcap
        s = _biased(s, queries, keys, options, place, transposed) * _LOG2E
    if allowed is not None:
        s = tl.where(allowed, s, float("-inf"))
    return s, slope


@triton.jit
def _mix(x):
    # The finaliser of splitmix64, as mix64 in csrc/include/fastvfx.
    x = (x ^ (x >> 30)) * tl.full((), -0x40A7B892E31B1A47, tl.int64).to(tl.uint64, bitcast=True)
    x = (x ^ (x >> 27)) * tl.full((), -0x6B2FB644ECCEEE15, tl.int64).to(tl.uint64, bitcast=True)
    return x ^ (x >> 31)


@triton.jit
def kept_weights(queries, keys, n_q, options, place, transposed: tl.constexpr):
    """For each pair ``options.kept`` or, where it is dropped, 0; by the hash of fastvfx/reference/attention.py."""
    golden = tl.full((), -0x61C8864680B583EB, tl.int64)
    row = (place.batch * place.heads + place.head) * n_q + queries.token
    row = _mix((options.seed + row * golden).to(tl.uint64, bitcast=True))
    key = ((keys.token.to(tl.int64) + options.first_key) * golden).to(tl.uint64, bitcast=True)
    bits = _mix(along_queries(row, transposed) + along_keys(key, transposed)) >> 32
    return tl.where(bits >= options.threshold, options.kept, 0.0)
