"""``natten.functional``: the operators. Tokens come as a grid, heads last but one; ``lse`` comes with heads last."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import functional
from ...functional.scaled_dot_product_attention import attend_sequence
from .arguments import neighborhood
from .unfused import (
    natten1dav,
    natten1dqkrpb,
    natten2dav,
    natten2dqkrpb,
    natten3dav,
    natten3dqkrpb,
)

__all__ = [
    "attention",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "natten1dav",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqkrpb",
    "neighborhood_attention_generic",
]

Result = Tensor | tuple[Tensor, Tensor]
# What tunes NATTEN's kernels, accepted everywhere and ignored.
_TUNING = {
    "backend", "q_tile_size", "kv_tile_size", "backward_q_tile_size", "backward_kv_tile_size", "backward_kv_splits",
    "backward_use_pt_reduction", "run_persistent_kernel", "kernel_schedule", "torch_compile",
}  # fmt: skip


def neighborhood_attention_generic(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = 1,
    dilation: int | Sequence[int] | None = 1,
    is_causal: bool | Sequence[bool] | None = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: Sequence[int] | None = None,
    kv_tile_shape: Sequence[int] | None = None,
    backward_q_tile_shape: Sequence[int] | None = None,
    backward_kv_tile_shape: Sequence[int] | None = None,
    backward_kv_splits: Sequence[int] | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any = None,
    torch_compile: bool = False,
    return_lse: bool = False,
    *,
    rpb: Tensor | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> Result:
    """Neighbourhood attention over one, two or three axes, as many as the tensors have.

    Args:
        query: ``(batch, X, heads, dim)``, ``(batch, X, Y, heads, dim)`` or ``(batch, X, Y, Z, heads, dim)``.
        key, value: the same grid; ``heads_kv`` of them divide ``heads``, and ``value`` may have its own ``dim``.
        kernel_size, stride, dilation, is_causal: for each axis, or one for all.
        scale: of the scores; ``None`` or 0 for ``dim ** -0.5``.
        additional_keys, additional_values: ``(batch, N, heads_kv, dim)``, which every query attends as well.
        attention_kwargs: arguments that tune NATTEN's ``attention``; they are ignored, like those that follow.
        return_lse: also return ``lse``, ``(batch, X, ..., heads)``.
        rpb: relative position bias ``(heads, 2 kernel_x - 1, ...)``, as NATTEN had it before 0.20: entry
            ``n + kernel - 1`` of each axis is added to the score of a key that is n dilations behind its query.
        dropout, seed: as in :func:`fastvfx.spatiotemporal_attention`.

    Returns:
        ``(batch, X, ..., heads, dim)`` of ``value``'s ``dim``, and ``lse`` if asked for.
    """
    op = "compat.natten"
    n = query.dim() - 3
    if n not in (1, 2, 3):
        raise ValueError(f"fastvfx.{op}: expected query of 4, 5 or 6 axes, got shape {tuple(query.shape)}")
    if key.shape[1:-2] != query.shape[1:-2] or value.shape[1:-2] != query.shape[1:-2]:
        raise ValueError(
            f"fastvfx.{op}: expected key and value on the grid {tuple(query.shape[1:-2])} of query, got "
            f"{tuple(key.shape)} and {tuple(value.shape)}"
        )
    if (additional_keys is None) != (additional_values is None):
        raise ValueError(f"fastvfx.{op}: expected both of additional_keys and additional_values, or none, got one")
    if unknown := set(attention_kwargs or {}) - _TUNING:
        raise TypeError(
            f"fastvfx.{op}: expected attention_kwargs that tune attention, got {', '.join(sorted(unknown))}"
        )
    pattern = neighborhood(n, kernel_size, stride, dilation, is_causal)
    if rpb is not None:
        if rpb.dim() != n + 1:
            raise ValueError(f"fastvfx.{op}: expected rpb of {n + 1} axes, heads first, got shape {tuple(rpb.shape)}")
        rpb = rpb[(slice(None), *(None,) * (3 - n))]  # (heads, 2 k_t - 1, 2 k_h - 1, 2 k_w - 1)
    grid = (1,) * (3 - n) + tuple(query.shape[1:-2])
    out, lse = functional.spatiotemporal_attention(
        query.flatten(1, -3),
        key.flatten(1, -3),
        value.flatten(1, -3),
        pattern,
        grid=grid,
        scale=scale or None,
        relative_bias=rpb,
        extra_k=additional_keys,
        extra_v=additional_values,
        dropout=dropout,
        seed=seed,
        return_lse=True,
    )
    out = out.unflatten(1, query.shape[1:-2])
    return (out, lse.transpose(1, 2).unflatten(1, query.shape[1:-2])) if return_lse else out


def _of_axes(n: int, shape: str) -> Any:
    """``na1d``, ``na2d`` or ``na3d``: the generic one for tensors of ``n`` axes of tokens."""

    @functools.wraps(neighborhood_attention_generic)
    def function(query: Tensor, *args: Any, **kwargs: Any) -> Result:
        if query.dim() != n + 3:
            raise ValueError(f"fastvfx.compat.natten.na{n}d: expected query of shape {shape}, got {tuple(query.shape)}")
        return neighborhood_attention_generic(query, *args, **kwargs)

    function.__name__ = function.__qualname__ = f"na{n}d"
    function.__doc__ = f":func:`neighborhood_attention_generic` of ``{shape}``."
    return function


na1d = _of_axes(1, "(batch, X, heads, dim)")
na2d = _of_axes(2, "(batch, X, Y, heads, dim)")
na3d = _of_axes(3, "(batch, X, Y, Z, heads, dim)")


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    seqlens_Q: Tensor | None = None,
    seqlens_KV: Tensor | None = None,
    cumulative_seqlen_Q: Tensor | None = None,
    cumulative_seqlen_KV: Tensor | None = None,
    max_seqlen_Q: int | None = None,
    max_seqlen_KV: int | None = None,
    backend: str | None = None,
    q_tile_size: int | None = None,
    kv_tile_size: int | None = None,
    backward_q_tile_size: int | None = None,
    backward_kv_tile_size: int | None = None,
    backward_kv_splits: int | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> Result:
    """Plain attention of ``(batch, N, heads, dim)``, and its ``lse`` ``(batch, N, heads)`` if asked for.

    Args:
        is_causal: query i attends keys 0 to i.
        seqlens_Q, seqlens_KV: lengths of sequences that lie one behind the other in a batch of 1 and do not attend each
            other; or their cumulative sums from 0, ``cumulative_seqlen_Q`` and ``cumulative_seqlen_KV``. They are read
            on the host. The ``max_seqlen`` of either and everything behind is ignored.
    """
    q_ends, k_ends = (
        _ends(query, seqlens_Q, cumulative_seqlen_Q, "Q"),
        _ends(key, seqlens_KV, cumulative_seqlen_KV, "KV"),
    )
    if len(q_ends) != len(k_ends):
        raise ValueError(
            f"fastvfx.compat.natten.attention: expected as many sequences of queries as of keys, got {len(q_ends)} and "
            f"{len(k_ends)}"
        )
    parts, q_start, k_start = [], 0, 0
    for q_end, k_end in zip(q_ends, k_ends, strict=True):
        part = query[:, q_start:q_end], key[:, k_start:k_end], value[:, k_start:k_end]
        parts.append(attend_sequence(*part, is_causal, scale=scale or None))
        q_start, k_start = q_end, k_end
    outs, lses = zip(*parts, strict=True)
    out, lse = parts[0] if len(parts) == 1 else (torch.cat(outs, 1), torch.cat(lses, 2))
    return (out, lse.transpose(1, 2)) if return_lse else out


def _ends(x: Tensor, lengths: Tensor | None, cumulative: Tensor | None, name: str) -> list[int]:
    """Where each of the sequences in ``x`` ends."""
    if cumulative is None:
        if lengths is None:
            return [x.shape[1]]
        cumulative = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    start, *ends = cumulative.tolist()
    if x.shape[0] != 1 or not ends or start != 0 or ends[-1] != x.shape[1] or sorted(ends) != ends:
        raise ValueError(
            f"fastvfx.compat.natten.attention: expected a batch of 1 and lengths {name} that sum to the number of "
            f"tokens, got shape {tuple(x.shape)} and ends {ends}"
        )
    return ends


def merge_attentions(
    outputs: Sequence[Tensor],
    lse_tensors: Sequence[Tensor],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`fastvfx.merge_attentions` with ``lse_tensors`` ``(batch, N, heads)``; its gradient is exact by itself."""
    out, lse = functional.merge_attentions(outputs, [lse.transpose(1, 2) for lse in lse_tensors])
    return out, lse.transpose(1, 2)
