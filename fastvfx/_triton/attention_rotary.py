"""Rotations of queries and keys, before the kernels of attention read them, and of their gradients, back.

A tile of keys is read by every tile of queries that sees it; turned once, it costs one pass over the keys, which is
little beside the products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import Tokens


@triton.jit(do_not_specialize=["n", "heads", "sign"])
def rotate_kernel(
    x, y, table, n, heads, sign, half: tl.constexpr, padded: tl.constexpr, halves: tl.constexpr, block: tl.constexpr
):
    """y = x turned by the angles of ``table`` (n, half, 2), or against them; y may be x."""
    blocks = tl.cdiv(n, block)
    token = tl.program_id(0) % blocks * block + tl.arange(0, block)
    rest = tl.program_id(0) // blocks
    batch, head = (rest // heads).to(tl.int64), rest % heads
    i = tl.arange(0, padded)
    exists = (token < n)[:, None] & (i < half)[None, :]
    step: tl.constexpr = half if halves else 1  # between the two of a pair
    first: tl.constexpr = 1 if halves else 2  # between pairs
    row = token.to(tl.int64)[:, None]
    at = x.data + batch * x.batch + head.to(tl.int64) * x.head + row * x.token + i[None, :] * first
    a, b = tl.load(at, exists, 0.0).to(tl.float32), tl.load(at + step, exists, 0.0).to(tl.float32)
    angle = table + (row * half + i[None, :]) * 2
    cos, sin = tl.load(angle, exists, 0.0), tl.load(angle + 1, exists, 0.0) * sign
    at = y.data + batch * y.batch + head.to(tl.int64) * y.head + row * y.token + i[None, :] * first
    dtype = y.data.dtype.element_ty
    tl.store(at, (a * cos - b * sin).to(dtype), exists)
    tl.store(at + step, (a * sin + b * cos).to(dtype), exists)


def rotate(x: Tensor, table: Tensor | None, halves: bool, y: Tensor | None = None, back: bool = False) -> Tensor:
    """x (B, N, heads, dim) turned, into ``y`` (which may be x) or a new tensor; without a table x itself."""
    if table is None:
        return x
    batch, n, heads, dim = x.shape
    y = x.new_empty(x.shape) if y is None else y
    if y.numel():
        rotate_kernel[(triton.cdiv(n, 32) * batch * heads,)](
            Tokens(x, *x.stride()[:3]), Tokens(y, *y.stride()[:3]), table.to(torch.float32).contiguous(), n, heads,
            -1.0 if back else 1.0, half=dim // 2, padded=triton.next_power_of_2(dim // 2), halves=halves, block=32,
        )  # fmt: skip
    return y
