"""PyTorch's attention function, by its own arguments, on our operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import _check
from ..patterns import Full, Pattern
from ..patterns.axis import Axis
from ..patterns.spans import Grid
from .attention import spatiotemporal_attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    r""":func:`torch.nn.functional.scaled_dot_product_attention`, argument by argument.

    .. math:: \mathrm{softmax}(s \, q k^\top + \text{mask}) \, v

    What differs from PyTorch's: ``attn_mask`` has a gradient and ``value`` its own size without a slower path, a mask
    of padding costs no memory, and the second derivative exists everywhere. Random numbers of the dropout are others.

    Args:
        query: ``(..., heads, L, E)``; any number of axes from ``(L, E)`` on. The axes before L broadcast.
        key: ``(..., heads, S, E)``.
        value: ``(..., heads, S, Ev)``.
        attn_mask: broadcastable to ``(..., heads, L, S)``: bool, ``True`` where a key may be attended, or floats that
            are added to the scores. A mask of keys alone, of the shape ``(..., 1, 1, S)``, is cheapest.
        dropout_p: probability that a weight becomes 0, always in force, as in PyTorch's; its seed is drawn from
            PyTorch's default generator.
        is_causal: query i may attend keys 0 to i, also where L and S differ (aligned at the upper left, as PyTorch's).
            Not together with ``attn_mask``.
        scale: s; ``None`` for 1 / sqrt(E).
        enable_gqa: heads of ``key`` and ``value`` may be fewer and are used by as many heads of ``query`` in a row.

    Returns:
        ``(..., heads, L, Ev)``, dtype of ``query``. A query that may attend nothing gets 0, with zero gradients, as
        from PyTorch since 2.5.

    Raises:
        TypeError: no tensor of floats, dtypes that differ, a mask neither bool nor floats.
        ValueError: shapes or devices that do not fit, both of ``attn_mask`` and ``is_causal``, ``dropout_p`` outside
            of [0, 1].

    >>> torch.nn.functional.scaled_dot_product_attention = fastvfx.scaled_dot_product_attention
    """
    op = "scaled_dot_product_attention"
    axes = _checked(op, query, key, value, attn_mask)
    if is_causal and attn_mask is not None:
        raise ValueError(f"fastvfx.{op}: expected attn_mask or is_causal, got both")
    _check.is_number(op, dropout_p=dropout_p)
    _check.is_number_or_none(op, scale=scale)
    _check.is_bool(op, is_causal=is_causal, enable_gqa=enable_gqa)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"fastvfx.{op}: expected dropout_p in [0, 1], got {dropout_p}")
    if torch.is_autocast_enabled(query.device.type) and query.dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)

    q, k, v, batch = _tokens(op, query, key, value, enable_gqa)
    (L, heads), S = q.shape[1:3], k.shape[1]
    bias, kv_mask = bias_or_kv_mask(op, attn_mask, batch, heads, L, S)
    if dropout_p == 1:  # no weight is left, as without keys
        k, v, S, bias, kv_mask, dropout_p = k[:, :0], v[:, :0], 0, None, None, 0.0
    options = {"scale": scale, "bias": bias, "kv_mask": kv_mask, "dropout": dropout_p, "seed": random_seed(dropout_p)}
    out, _ = attend_sequence(q, k, v, is_causal, **options)
    shape = (*batch, heads, L, value.shape[-1])
    return out.transpose(1, 2).reshape(shape[len(shape) - axes :])


@dataclass(frozen=True)
class UpperLeft(Pattern):
    """Causal, with the first query at the first key however many there are: PyTorch's alignment."""

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        t, h, w = Full().axes(grid, kv_grid, device)
        end = torch.arange(1, grid[2] + 1, dtype=torch.int32, device=device).clamp(max=kv_grid[2])
        spans = torch.stack([torch.zeros_like(end), end], 1)
        return t, h, replace(w, spans=spans, whole=False)


def attend_sequence(q: Tensor, k: Tensor, v: Tensor, causal: bool, **options: Any) -> tuple[Tensor, Tensor]:
    """Attention of sequences (B, L | S, heads, dim) without a grid: out (B, L, heads, dim) and lse (B, heads, L)."""
    pattern = UpperLeft() if causal else Full()
    grid, kv_grid = (1, 1, q.shape[1]), (1, 1, k.shape[1])
    out, lse = spatiotemporal_attention(q, k, v, pattern, grid=grid, kv_grid=kv_grid, return_lse=True, **options)
    return out, lse


def random_seed(dropout: float) -> int:
    """A seed for this call's dropout from PyTorch's default generator, which stays where it is without dropout."""
    return int(torch.randint(2**63 - 1, ())) if dropout else 0


def _checked(op: str, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> int:
    """How many axes the result has."""
    named = {"query": query, "key": key, "value": value}
    _check.is_float(op, **named)
    if attn_mask is not None:
        _check.is_tensor(op, "attn_mask", attn_mask)
        if attn_mask.dtype is not torch.bool and attn_mask.dtype not in _check.FLOATS:
            raise TypeError(f"fastvfx.{op}: expected attn_mask of bools or floats, got {attn_mask.dtype}")
    _check.same_device(op, **named, attn_mask=attn_mask)
    for name, x in named.items():
        if x.dtype is not query.dtype:
            raise TypeError(f"fastvfx.{op}: expected {name} of dtype {query.dtype} like query, got {x.dtype}")
        if x.dim() < 2:
            raise ValueError(f"fastvfx.{op}: expected {name} of shape (..., heads, tokens, dim), got {tuple(x.shape)}")
    return max(x.dim() for x in named.values())


def _tokens(
    op: str, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
    """Each as (B, tokens, heads, dim), without a copy where nothing broadcasts, and the shape that B stands for."""
    q, k, v = (x if x.dim() > 3 else x[(None,) * (4 - x.dim())] for x in (query, key, value))
    try:
        batch = torch.broadcast_shapes(*(x.shape[:-3] for x in (q, k, v)))
        if enable_gqa and k.shape[-3] != v.shape[-3]:
            k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        (kv_heads,) = torch.broadcast_shapes(k.shape[-3:-2], v.shape[-3:-2])
        # One head of keys for all of query's is what the operator takes anyway.
        fewer = kv_heads == 1 or enable_gqa
        (heads,) = q.shape[-3:-2] if fewer else torch.broadcast_shapes(q.shape[-3:-2], (kv_heads,))
        if heads % kv_heads:
            raise RuntimeError
    except RuntimeError:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise ValueError(
            f"fastvfx.{op}: expected query, key and value whose axes before the tokens broadcast"
            f"{', heads of query a multiple of the others' if enable_gqa else ''}, got {shapes}"
        ) from None
    sizes = ((q, heads), (k, kv_heads), (v, kv_heads))
    q, k, v = (x.expand(*batch, n, -1, -1).flatten(0, -4).transpose(1, 2) for x, n in sizes)
    return q, k, v, batch


def bias_or_kv_mask(
    op: str, mask: Tensor | None, batch: torch.Size, heads: int, L: int, S: int
) -> tuple[Tensor | None, Tensor | None]:
    """A mask that broadcasts to (*batch, heads, L, S) as ``bias`` (1|B, heads, L, S) or as ``kv_mask`` (B, S)."""
    if mask is None:
        return None, None
    full = (*batch, heads, L, S)
    try:
        fits = torch.broadcast_shapes(mask.shape, full) == full
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"fastvfx.{op}: expected attn_mask that broadcasts to (..., heads, L, S) = {full}, got {tuple(mask.shape)}"
        )
    mask = mask[(None,) * (len(full) - mask.dim())]
    if mask.dtype is torch.bool:
        if mask.shape[-3:-1] == (1, 1):
            return None, mask[..., 0, 0, :].expand(*batch, S).reshape(-1, S)
        zero = torch.zeros((), device=mask.device)
        mask = torch.where(mask, zero, -torch.inf)
    shared = all(n == 1 for n in mask.shape[:-3])
    return mask.expand(*((1,) * len(batch) if shared else batch), heads, L, S).flatten(0, -4), None
