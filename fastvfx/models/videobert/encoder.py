"""Attention, BERT's layers, and the encoder in which text and video see each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...functional import spatiotemporal_attention
from ...patterns import Pattern
from .config import VideoBertConfig

Grid = tuple[int, int, int]


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself, or to another one.

    Args:
        hidden, heads, dropout: width, heads, and the part of the weights that training drops.
        memory: whether keys and values come from another sequence.
    """

    def __init__(self, hidden: int, heads: int, dropout: float, memory: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        if memory:
            self.q, self.kv = nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * hidden)
        else:
            self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(
        self,
        x: Tensor,
        there: Tensor | None = None,
        pattern: Pattern | None = None,
        grid: Grid | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        """One look.

        Args:
            x: (B, N, hidden).
            there: keys that may be seen, (B, N) bool or, with a memory, (B, M).
            pattern, grid: of :func:`fastvfx.spatiotemporal_attention`: full attention of a sequence by default.
            memory: (B, M, hidden), for a module that was made for it.

        Returns:
            (B, N, hidden).
        """
        q, k, v = self.project(x, memory)  # (B, N or M, heads, dim) each, views of one projection
        training = self.training and self.dropout > 0
        seen = spatiotemporal_attention(
            q,
            k,
            v,
            pattern,
            grid=grid,
            kv_mask=there,
            dropout=self.dropout if training else 0.0,
            seed=int(torch.randint(1 << 31, ())) if training else 0,
        )
        assert isinstance(seen, Tensor)  # without return_lse
        return self.out(seen.flatten(2))

    def project(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, N, heads, dim)."""
        if memory is None:
            q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).unbind(2)
            return q, k, v
        k, v = self.kv(memory).unflatten(2, (2, self.heads, -1)).unbind(2)
        return self.q(x).unflatten(2, (self.heads, -1)), k, v

    @torch.no_grad()
    def weights(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """What is looked at, to draw it: (B, heads, N, N), rows of sum 1."""
        q, k, _ = self.project(x)
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[3] ** -0.5
        if there is not None:
            scores = scores.masked_fill(~there[:, None, None], -torch.inf)
        return scores.softmax(-1)


class FeedForward(nn.Sequential):
    """Two layers with BERT's GELU between them."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__(nn.Linear(hidden, inner), nn.GELU(), nn.Linear(inner, hidden))


class BertLayer(nn.Module):
    """x = LayerNorm(x + attention(x)), then x = LayerNorm(x + feed_forward(x))."""

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.attention = Attention(config.hidden, config.heads, config.dropout)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.feed_forward = FeedForward(config.hidden, config.inner)
        self.feed_forward_norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = config.dropout

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """(B, N, hidden), of which the tokens that are ``there`` (B, N) are seen, to (B, N, hidden)."""
        x = self.attention_norm(x + F.dropout(self.attention(x, there), self.dropout, self.training))
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
        """The weights of every layer, (layers, B, heads, N, N)."""
        maps = []
        for layer in self.layers:
            maps.append(layer.attention.weights(x, there))  # type: ignore[union-attr,operator]
            x = layer(x, there)
        return torch.stack(maps)
