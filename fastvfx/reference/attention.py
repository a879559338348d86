"""Spatiotemporal attention in PyTorch, differentiable to any order: the whole matrix of scores, masked.

The oracle of the tests. :mod:`.attention_tiles` computes the same in memory that is linear in the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..patterns.blocks import token_mask
from ..patterns.spans import Grid, Spans
from .march import mix64, shifted

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


@dataclass(frozen=True)
class Options:
    """What attention has besides the tensors it is differentiated by."""

    spans: Spans
    scale: float
    softcap: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    rotary: Tensor | None = None  # (N_q, dim / 2, 2)
    kv_rotary: Tensor | None = None  # (N_k, dim / 2, 2)
    rotary_halves: bool = False
    extra_mask: Tensor | None = None  # (B, E) bool
    kv_mask: Tensor | None = None  # (B, N_k) bool
    blocks: Tensor | None = None  # (1 | B, 1 | heads, query blocks, n) int32
    block: Grid = (1, 1, 1)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    relative_bias: Tensor | None,
    bias: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """The maths of :func:`fastvfx.spatiotemporal_attention` for flat q (B, N_q, heads, dim), k and v (B, N_k, ...).

    Returns:
        out (B, N_q, heads, v's dim) in the dtype of q, and the log of the sum of exponentials (B, heads, N_q), float32
        or float64.
    """
    spans = options.spans
    batch, n_q, heads, _ = q.shape
    n_k, ratio = k.shape[1], heads // k.shape[2]
    query, key = torch.arange(n_q, device=q.device), torch.arange(n_k, device=q.device)
    allowed = spans.mask()[spans.of_head.long()]  # (heads, N_q, N_k)
    if options.blocks is not None:
        allowed = allowed & token_mask(options.blocks, options.block, spans.grid, spans.kv_grid)
    if options.kv_mask is not None:
        allowed = allowed & options.kv_mask[:, None, None]
    added = None if bias is None else bias.to(wide(q))
    if relative_bias is not None:
        near = relative(relative_bias.to(wide(q)), spans, query[:, None], key)
        added = near if added is None else added + near
    queries = rotate(q.to(wide(q)), options.rotary, options.rotary_halves).transpose(1, 2)  # (B, heads, N_q, dim)
    keys = rotate(k.to(wide(q)), options.kv_rotary, options.rotary_halves).transpose(1, 2)
    values = v.to(wide(q)).transpose(1, 2)
    if extra_k is not None and extra_v is not None:
        keys = torch.cat([keys, extra_k.to(wide(q)).transpose(1, 2)], 2)
        values = torch.cat([values, extra_v.to(wide(q)).transpose(1, 2)], 2)
        allowed, added, key = with_extras(allowed, added, key, n_k, extra_k.shape[1], options.extra_mask)
    keys, values = (x.repeat_interleave(ratio, 1) for x in (keys, values))
    kept = None
    if options.dropout:
        rows = dropout_rows(options.seed, batch, heads, n_q, q.device)
        kept = dropout_keeps(rows[..., None], key, options.dropout)
    out, lse = attend(queries, keys, values, allowed, added, kept, options)
    return out.transpose(1, 2).to(q.dtype), lse


def wide(x: Tensor) -> torch.dtype:
    """What 16-bit and 32-bit inputs are computed in: float32; float64 stays."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, added: Tensor | None, kept: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """Softmax attention of q (..., Q, dim), k (..., K, dim), v (..., K, dim_v); the rest broadcasts to (..., Q, K).

    What is not allowed has no influence on values or gradients, be it NaN or infinite: numbers that are not finite are
    taken out of the products, where 0 times NaN would spread them, and brought back where they are attended.
    """
    q, spoilt_q = finite_part(q)
    k, spoilt_k = finite_part(k)
    v, lost = finite_part(v)
    scores = q @ k.transpose(-1, -2) * options.scale
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    for spoilt, axis in ((spoilt_q, -1), (spoilt_k, -2)):
        if spoilt is not None:
            bad = torch.where(spoilt != 0, torch.nan, 0.0).sum(-1).to(scores.dtype)
            scores = scores + bad.unsqueeze(axis)
    if added is not None:
        scores = scores + added
    scores = scores.masked_fill(~allowed, -torch.inf)
    if scores.shape[-1] == 0:  # no maximum to take
        return scores @ v, scores.sum(-1) - torch.inf
    top = scores.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    safe = torch.where(empty, 1.0, total)
    lse = torch.where(empty, -torch.inf, torch.log(safe) + top).squeeze(-1)
    weights = weights / safe
    if kept is not None:
        weights = torch.where(kept, weights, 0.0) / (1 - options.dropout)
    out = weights @ v
    if lost is not None:
        hit = (weights.detach() != 0).to(v.dtype)  # NaN counts as attended
        for value, where in (
            (torch.inf, lost == torch.inf),
            (-torch.inf, lost == -torch.inf),
            (torch.nan, lost.isnan()),
        ):
            out = out + torch.where(hit @ where.to(v.dtype) > 0, value, 0.0)
    return out, lse


def finite_part(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """x with 0 where it is not finite, and what was there (0 elsewhere), or ``None`` if all of it is finite."""
    is_finite = x.isfinite()
    can_look = x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    if can_look and bool(is_finite.all()):
        return x, None
    return torch.where(is_finite, x, 0.0), torch.where(is_finite, 0.0, x.detach())


def rotate(x: Tensor, table: Tensor | None, halves: bool) -> Tensor:
    """Turn pairs of channels of x (B, N, heads, dim) by each token's angles; table (N, dim / 2, 2): cosine, sine."""
    if table is None:
        return x
    cos, sin = table.to(x.dtype)[:, None].unbind(-1)  # (N, 1, dim / 2)
    a, b = x.chunk(2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    turned = (a * cos - b * sin, a * sin + b * cos)
    return torch.cat(turned, -1) if halves else torch.stack(turned, -1).flatten(-2)


def coordinates(token: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Frame, row and column of tokens in the order of the grid."""
    _, h, w = grid
    return token // max(h * w, 1), token // max(w, 1) % max(h, 1), token % max(w, 1)


def relative(table: Tensor, spans: Spans, query: Tensor, key: Tensor) -> Tensor:
    """Entries of ``table`` (heads, 2 k_t - 1, 2 k_h - 1, 2 k_w - 1) at key - query, in dilations.

    ``query`` and ``key`` are token indices that broadcast to (..., Q, K); the result is (heads, ..., Q, K). Pairs that
    the pattern does not allow may get any entry.
    """
    index = []
    rows = (coordinates(query, spans.grid), coordinates(key, spans.kv_grid), spans.grid, spans.kv_grid, spans.dilation)
    for (q, k, n_q, n_k, dilation), size in zip(zip(*rows, strict=True), table.shape[1:], strict=True):
        offset = torch.div(k - q - (n_k - n_q), dilation, rounding_mode="floor")
        index.append((offset + size // 2).clamp(0, size - 1))
    return table[:, index[0], index[1], index[2]]


def with_extras(
    allowed: Tensor, added: Tensor | None, key: Tensor, n_k: int, n_extra: int, extra_mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Mask, bias and key indices with columns for extra keys appended, which every query may attend."""
    visible = allowed.new_ones((1, 1, 1, n_extra)) if extra_mask is None else extra_mask[:, None, None]
    while allowed.dim() < 4:
        allowed = allowed[None]
    if allowed.dim() > 4:  # tiles have an axis of their own
        visible = visible[:, :, None]
    lead = torch.broadcast_shapes(allowed.shape[:-1], visible.shape[:-1])
    allowed = torch.cat([allowed.expand(*lead, -1), visible.expand(*lead, -1)], -1)
    added = None if added is None else torch.nn.functional.pad(added, (0, n_extra))
    extra = torch.arange(n_k, n_k + n_extra, device=key.device).expand(*key.shape[:-1], n_extra)
    return allowed, added, torch.cat([key, extra], -1)


def dropout_rows(seed: int, batch: int, heads: int, n_q: int, device: torch.device) -> Tensor:
    """(B, heads, N_q) int64: the state that the keys of a query are hashed from."""
    row = torch.arange(batch * heads * n_q, device=device).view(batch, heads, n_q)
    start = mix64(torch.tensor(signed_64(seed), device=device))
    return mix64(start + row * GOLDEN)


def signed_64(seed: int) -> int:
    """The same bits as an int64, which is what operators take."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def dropout_keeps(row: Tensor, key: Tensor, p: float) -> Tensor:
    """Which weights are kept, a function of seed, batch, head, query and key alone: 32 bits of a hash against p."""
    return shifted(mix64(row + key * GOLDEN), 32) >= int(p * 2**32)
