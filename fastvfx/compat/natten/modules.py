"""``natten.modules``: layers with projections, with the parameter names of NATTEN's checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partialmethod

import torch
from torch import Tensor, nn

from ...functional.scaled_dot_product_attention import random_seed
from .arguments import neighborhood
from .functional import neighborhood_attention_generic


class NeighborhoodAttentionGeneric(nn.Module):
    """Projections around :func:`.neighborhood_attention_generic` for tokens ``(batch, X, ..., embed_dim)``.

    Args:
        na_dim: axes of tokens: 1, 2 or 3.
        embed_dim: channels.
        num_heads: divides ``embed_dim``.
        kernel_size, stride, dilation, is_causal: for each axis, or one for all.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_scale: of the scores; ``None`` for ``(embed_dim / num_heads) ** -0.5``.
        proj_drop: dropout of the result.
        rel_pos_bias: a learned bias ``rpb`` (num_heads, 2 kernel - 1, ...), as before NATTEN 0.20.
        attn_drop: dropout of the attention weights, likewise.
    """

    def __init__(
        self,
        na_dim: int,
        embed_dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        rel_pos_bias: bool = False,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"fastvfx.compat.natten: expected embed_dim to be a multiple of num_heads={num_heads}, got {embed_dim}"
            )
        pattern = neighborhood(na_dim, kernel_size, stride, dilation, is_causal)
        self.na_dim, self.embed_dim, self.num_heads = na_dim, embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.scale = qk_scale or self.head_dim**-0.5
        self.kernel_size, self.stride = pattern.kernel[-na_dim:], pattern.stride[-na_dim:]
        self.dilation, self.is_causal = pattern.dilation[-na_dim:], pattern.causal[-na_dim:]
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.rpb = None
        if rel_pos_bias:
            self.rpb = nn.Parameter(torch.empty(num_heads, *(2 * (k or 1) - 1 for k in self.kernel_size)))
            nn.init.trunc_normal_(self.rpb, std=0.02, a=-2.0, b=2.0)
        self.attn_drop = attn_drop
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != self.na_dim + 2 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"fastvfx.compat.natten: expected tokens of shape (batch, {'X, Y, Z'[: 3 * self.na_dim - 2]}, "
                f"{self.embed_dim}), got {tuple(x.shape)}"
            )
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.unbind(-3)  # (batch, X, ..., heads, head_dim): views, which the operator reads in place
        dropout = self.attn_drop if self.training else 0.0
        x = neighborhood_attention_generic(  # type: ignore[assignment]
            query,
            key,
            value,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,
            self.dilation,
            self.is_causal,
            self.scale,
            rpb=self.rpb,
            dropout=dropout,
            seed=random_seed(dropout),
        )
        return self.proj_drop(self.proj(x.flatten(-2)))

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, is_causal={self.is_causal}"
        )


class NeighborhoodAttention1D(NeighborhoodAttentionGeneric):
    """:class:`NeighborhoodAttentionGeneric` of tokens ``(batch, X, embed_dim)``, without its ``na_dim``."""

    __init__ = partialmethod(NeighborhoodAttentionGeneric.__init__, 1)


class NeighborhoodAttention2D(NeighborhoodAttentionGeneric):
    """:class:`NeighborhoodAttentionGeneric` of tokens ``(batch, X, Y, embed_dim)``, without its ``na_dim``."""

    __init__ = partialmethod(NeighborhoodAttentionGeneric.__init__, 2)


class NeighborhoodAttention3D(NeighborhoodAttentionGeneric):
    """:class:`NeighborhoodAttentionGeneric` of tokens ``(batch, X, Y, Z, embed_dim)``, without its ``na_dim``."""

    __init__ = partialmethod(NeighborhoodAttentionGeneric.__init__, 3)
