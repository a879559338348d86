"""Lists of blocks that attend each other: for each block of queries those of keys, and the other way round."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

Triple = tuple[int, int, int]


class BlockLists(NamedTuple):
    """``ids[bounds[b, h, i, 0] : bounds[b, h, i, 1]]`` are the blocks that block i meets; -1 stands for none."""

    ids: Any  #: int32
    bounds: Any  #: (1 | B, 1 | heads, blocks, 2) int32
    batch: Any  #: strides of bounds
    head: Any


def _lists(ids: Tensor, bounds: Tensor) -> BlockLists:
    strides = [0 if size == 1 else stride for size, stride in zip(bounds.shape, bounds.stride(), strict=True)]
    return BlockLists(ids, bounds.to(torch.int32), strides[0], strides[1])


def of_queries(blocks: Tensor) -> BlockLists:
    """Of (1 | B, 1 | heads, query blocks, n) int32."""
    blocks = blocks.contiguous()
    n = blocks.shape[3]
    begin = torch.arange(blocks.numel() // max(n, 1), device=blocks.device).view(blocks.shape[:3]) * n
    return _lists(blocks, torch.stack([begin, begin + n], -1))


def of_keys(blocks: Tensor, n_keys: int) -> BlockLists:
    """The same pairs, sorted by their block of keys, of which there are ``n_keys``."""
    batch, heads, n_queries, n = blocks.shape
    keys, order = blocks.reshape(batch, heads, n_queries * n).sort(dim=-1, stable=True)
    edges = torch.arange(n_keys + 1, device=blocks.device, dtype=keys.dtype).expand(batch, heads, -1).contiguous()
    edges = torch.searchsorted(keys, edges)  # -1 lies before the first
    first = torch.arange(batch * heads, device=blocks.device).view(batch, heads, 1) * (n_queries * n)
    edges = edges + first
    return _lists((order // max(n, 1)).to(torch.int32), torch.stack([edges[..., :-1], edges[..., 1:]], -1))


def box_in(block: Triple, volume: int) -> Triple:
    """Powers of two whose product is from 16 to ``volume``, and which cover as much of a block as they can."""
    box = [triton.next_power_of_2(b) for b in block]
    while math.prod(box) > volume:
        box[box.index(max(box))] //= 2
    box[2] *= max(1, 16 // math.prod(box))
    return box[0], box[1], box[2]


def boxes_per_block(block: Triple, box: Triple) -> Triple:
    t, h, w = (triton.cdiv(n, b) for n, b in zip(block, box, strict=True))
    return t, h, w


@triton.jit
def block_of(tile, n_h, n_w, box: tl.constexpr, step: tl.constexpr):
    """The block that a tile is in, in a grid (., n_h, n_w) of tokens."""
    t = tile[0] // ((step[0] + box[0] - 1) // box[0])
    h = tile[1] // ((step[1] + box[1] - 1) // box[1])
    w = tile[2] // ((step[2] + box[2] - 1) // box[2])
    return (t * tl.cdiv(n_h, step[1]) + h) * tl.cdiv(n_w, step[2]) + w


@triton.jit
def bounds_of(lists, block, batch, head, box: tl.constexpr, step: tl.constexpr):
    """Where the tiles that meet a block begin and end; they are cut from blocks of ``step`` into boxes."""
    n: tl.constexpr = (
        ((step[0] + box[0] - 1) // box[0]) * ((step[1] + box[1] - 1) // box[1]) * ((step[2] + box[2] - 1) // box[2])
    )
    at = lists.bounds + batch * lists.batch + head.to(tl.int64) * lists.head + block * 2
    return tl.load(at) * n, tl.load(at + 1) * n


@triton.jit
def listed_tile(lists, i, n_h, n_w, box: tl.constexpr, step: tl.constexpr):
    """The i-th of these tiles in a grid (., n_h, n_w) of tokens, and whether there is one."""
    n_t: tl.constexpr = (step[0] + box[0] - 1) // box[0]
    m_h: tl.constexpr = (step[1] + box[1] - 1) // box[1]
    m_w: tl.constexpr = (step[2] + box[2] - 1) // box[2]
    block = tl.load(lists.ids + i // (n_t * m_h * m_w))
    part = i % (n_t * m_h * m_w)
    blocks_h, blocks_w = tl.cdiv(n_h, step[1]), tl.cdiv(n_w, step[2])
    t = block // (blocks_h * blocks_w) * n_t + part // (m_h * m_w)
    h = block // blocks_w % blocks_h * m_h + part // m_w % m_h
    return (t, h, block % blocks_w * m_w + part % m_w), block >= 0
