"""Transformer blocks for videos: attention by one pattern, divided, factorised, or in shifted windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .attention import ClassAttention, SpatioTemporalAttention
from .patterns import Divided, Pattern, PerHead, ShiftedWindows


class FeedForward(nn.Sequential):
    """Two layers with a GELU between them, ``ratio`` times as wide inside."""

    def __init__(self, dim: int, ratio: float = 4.0, dropout: float = 0.0) -> None:
        hidden = int(dim * ratio)
        super().__init__(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )
        for layer in (self[0], self[3]):
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            nn.init.zeros_(layer.bias)


class AttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with one pattern of attention.

    With :func:`space_and_time_heads` as pattern it is that of ViViT's fourth model.

    Args:
        dim, n_heads, pattern: see :class:`fastvfx.SpatioTemporalAttention`.
        mlp_ratio: width of the feed-forward layer in units of ``dim``.
        dropout: of the feed-forward layer and of what attention adds.
        options: further arguments of the attention (``rotary``, ``qk_norm``, ``kv_heads``, ``relative_position``...).
    """

    kind: type[SpatioTemporalAttention] = SpatioTemporalAttention

    def __init__(
        self,
        dim: int,
        n_heads: int,
        pattern: Pattern | None = None,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = self.kind(dim, n_heads, pattern, **options)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp_ratio, dropout)

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        """Of tokens ``(batch, T, H, W, dim)`` or ``(batch, N, dim)``; ``arguments`` go to the attention."""
        x = x + self.dropout(self.attention(self.norm1(x), **arguments))
        return x + self.mlp(self.norm2(x))


class ClassBlock(AttentionBlock):
    """:class:`AttentionBlock` of tokens and a class token (see :class:`fastvfx.ClassAttention`)."""

    kind = ClassAttention

    def forward(self, x: Tensor, cls: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Of tokens ``(batch, T, H, W, dim)`` and the class token ``(batch, 1, dim)``."""
        of_x, of_cls = self.attention(self.norm1(x), self.norm1(cls))
        x, cls = x + self.dropout(of_x), cls + self.dropout(of_cls)
        return x + self.mlp(self.norm2(x)), cls + self.mlp(self.norm2(cls))


class DividedBlock(nn.Module):
    """Attention in time, then in space, then the feed-forward layer (TimeSformer, Bertasius et al., 2021).

    The class token takes no part in time. In space it is copied into every frame, and what comes back is averaged. A
    linear layer follows attention in time; it starts at 0, so that a block begins as one of a still image.

    Args:
        dim, n_heads, mlp_ratio, dropout, options: see :class:`AttentionBlock`.
    """

    def __init__(self, dim: int, n_heads: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.time_norm = nn.LayerNorm(dim)
        self.time = SpatioTemporalAttention(dim, n_heads, Divided("time"), **options)
        self.time_out = nn.Linear(dim, dim)
        nn.init.zeros_(self.time_out.weight)
        nn.init.zeros_(self.time_out.bias)
        self.space_norm = nn.LayerNorm(dim)
        self.space = ClassAttention(dim, n_heads, Divided("space"), **options)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp_ratio, dropout)

    def forward(self, x: Tensor, cls: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens ``(batch, T, H, W, dim)`` and the class token ``(batch, 1, dim)``."""
        x = x + self.dropout(self.time_out(self.time(self.time_norm(x))))
        in_space, of_cls = self.space(self.space_norm(x), self.space_norm(cls))
        x, cls = x + self.dropout(in_space), cls + self.dropout(of_cls)
        return x + self.mlp(self.norm(x)), cls + self.mlp(self.norm(cls))


class FactorisedBlock(nn.Module):
    """Attention in space, then in time, then the feed-forward layer (ViViT's third model, Arnab et al., 2021).

    Args:
        dim, n_heads, mlp_ratio, dropout, options: see :class:`AttentionBlock`.
    """

    def __init__(self, dim: int, n_heads: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.space_norm, self.time_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.space = SpatioTemporalAttention(dim, n_heads, Divided("space"), **options)
        self.time = SpatioTemporalAttention(dim, n_heads, Divided("time"), **options)
        self.dropout = nn.Dropout(dropout)
        self.mlp = FeedForward(dim, mlp_ratio, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Of tokens ``(batch, T, H, W, dim)``."""
        x = x + self.dropout(self.space(self.space_norm(x)))
        x = x + self.dropout(self.time(self.time_norm(x)))
        return x + self.mlp(self.norm(x))


class WindowBlock(AttentionBlock):
    """Attention in shifted windows with a learned bias of relative positions (Video Swin, Liu et al., 2022).

    Args:
        dim, n_heads, mlp_ratio, dropout, options: see :class:`AttentionBlock`.
        window: tokens of a window in time, height and width.
        shifted: move the windows by half their size. Axes that one window covers are not moved.
        attend_padding: fill the grid up to whole windows with tokens of 0, which are attended, as torchvision's and the
            original's weights were trained; else windows at the border are cut off.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        window: Sequence[int],
        *,
        shifted: bool = False,
        attend_padding: bool = False,
        **options: Any,
    ) -> None:
        pattern = ShiftedWindows(window, [n // 2 if shifted else 0 for n in window])
        super().__init__(dim, n_heads, pattern, relative_position=window, **options)
        self.window, self.attend_padding = pattern.window, attend_padding

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        """Of tokens ``(batch, T, H, W, dim)``; ``arguments`` go to the attention."""
        grid = x.shape[1:4]
        missing = [0, 0, 0]
        if self.attend_padding:
            missing = [-n % min(w, n) for n, w in zip(grid, self.window, strict=True)]
        if not any(missing):
            return super().forward(x, **arguments)
        t, h, w = missing
        padded = pad(self.norm1(x), (0, 0, 0, w, 0, h, 0, t))
        attended = self.attention(padded, **arguments)[:, : grid[0], : grid[1], : grid[2]]
        x = x + self.dropout(attended)
        return x + self.mlp(self.norm2(x))


def space_and_time_heads(n_heads: int) -> PerHead:
    """The first half of the heads attend in space, the others in time (ViViT's fourth model)."""
    if n_heads < 2 or n_heads % 2:
        raise ValueError(f"fastvfx.space_and_time_heads: expected an even number of heads, got {n_heads}")
    half = n_heads // 2
    return PerHead([Divided("space")] * half + [Divided("time")] * half)


def relative_bias_of_swin(table: Tensor, window: Sequence[int]) -> Tensor:
    """The table of a Swin transformer, ``((2 wt - 1) (2 wh - 1) (2 ww - 1), heads)``, as ``relative_bias``.

    Swin counts query - key where :func:`fastvfx.spatiotemporal_attention` counts key - query.
    """
    sides = [2 * n - 1 for n in window]
    if table.dim() != 2 or table.shape[0] != sides[0] * sides[1] * sides[2]:
        raise ValueError(
            f"fastvfx.relative_bias_of_swin: expected a table of shape ({sides[0] * sides[1] * sides[2]}, heads), "
            f"got {tuple(table.shape)}"
        )
    return torch.flip(table.T.unflatten(1, sides), (1, 2, 3))
