"""BERT's layers, and the encoder in which text and video see each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import SpatioTemporalAttention
from .config import VideoBertConfig


class FeedForward(nn.Sequential):
    """Two layers with BERT's GELU between them."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__(nn.Linear(hidden, inner), nn.GELU(), nn.Linear(inner, hidden))


class BertLayer(nn.Module):
    """x = LayerNorm(x + attention(x)), then x = LayerNorm(x + feed_forward(x))."""

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.attention = SpatioTemporalAttention(config.hidden, config.heads, dropout=config.dropout)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.feed_forward = FeedForward(config.hidden, config.inner)
        self.feed_forward_norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = config.dropout

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """(B, N, hidden), of which the tokens that are ``there`` (B, N) are seen, to (B, N, hidden)."""
        x = self.attention_norm(x + F.dropout(self.attention(x, mask=there), self.dropout, self.training))
        return self.feed_forward_norm(x + F.dropout(self.feed_forward(x), self.dropout, self.training))


class CrossEncoder(nn.Module):
    """BERT over text and video together: every token sees every other one."""

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """(B, N, hidden) to (B, N, hidden); ``there`` (B, N) bool says which are no padding."""
        for layer in self.layers:
            x = layer(x, there)
        return x

    @torch.no_grad()
    def attention_maps(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """What every layer looks at, to draw it: (layers, B, heads, N, N), rows of sum 1."""
        maps = []
        for layer in self.layers:
            assert isinstance(layer, BertLayer)
            q, k, _ = layer.attention.project(x)  # (B, N, heads, dim)
            scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[3] ** -0.5
            if there is not None:
                scores = scores.masked_fill(~there[:, None, None], -torch.inf)
            maps.append(scores.softmax(-1))
            x = layer(x, there)
        return torch.stack(maps)
