"""A transformer that makes vectors for the cross encoder out of frames, or of features of another network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...attention import SpatioTemporalAttention
from ...patterns import Divided, Full, Pattern
from .config import VideoBertConfig, VisualConfig
from .encoder import FeedForward

Patterns = tuple[Pattern, ...]
Grid = tuple[int, int, int]


def patches(frames: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Cut clips (B, T, 3, H, W) into (B, N, 3 * t * h * w), in order of time, row, column."""
    t, h, w = patch
    x = frames.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(1, (-1, t))  # (B, T', t, 3, H', h, W', w)
    return x.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3)


class VisualBlock(nn.Module):
    """Attention over one or two patterns after another, then a feed-forward layer; norms in front of each."""

    def __init__(self, config: VideoBertConfig, patterns: Patterns) -> None:
        super().__init__()
        hidden = config.hidden
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in patterns)
        self.attentions = nn.ModuleList(
            SpatioTemporalAttention(hidden, config.heads, pattern, dropout=config.dropout) for pattern in patterns
        )
        self.norm = nn.LayerNorm(hidden)
        self.feed_forward = FeedForward(hidden, config.inner)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, there: Tensor | None, grid: Grid) -> Tensor:
        """(B, N, hidden) on that grid to the same."""
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + self.dropout(attention(norm(x), mask=there, grid=grid))
        return x + self.dropout(self.feed_forward(self.norm(x)))


class VisualTransformer(nn.Module):
    """Patches of clips, or features, to vectors (B, N, hidden).

    Where a token is masked, a learned vector stands in place of what would have been its patch.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        video = self.config = config.video
        self.project = nn.Linear(video.patch_dim, config.hidden)
        self.masked = nn.Parameter(torch.zeros(config.hidden))
        # Of features, over all that is learned from; pixels are in [0, 1].
        self.register_buffer("mean", torch.full((video.patch_dim,), 0.5 if video.kind == "frames" else 0.0))
        self.register_buffer("scale", torch.full((video.patch_dim,), 0.25 if video.kind == "frames" else 1.0))
        if video.kind == "frames":
            t, h, w = video.grid
            self.time = nn.Parameter(torch.zeros(t, 1, config.hidden))
            self.space = nn.Parameter(torch.zeros(1, h * w, config.hidden))
        self.blocks = nn.ModuleList(VisualBlock(config, patterns) for patterns in _patterns(video))
        self.norm = nn.LayerNorm(config.hidden)

    def inputs(self, video: Tensor) -> Tensor:
        """What the tokens stand for, at mean 0 and deviation 1: (B, N, patch_dim)."""
        x = patches(video, self.config.patch) if self.config.kind == "frames" else video
        return (x - self.mean) / self.scale

    def forward(self, video: Tensor, there: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """Vectors of clips or features.

        Args:
            video: (B, T, 3, H, W) in [0, 1], or (B, N, dim).
            there: (B, N) bool: tokens that are no padding.
            masked: (B, N) bool: tokens to be hidden.

        Returns:
            (B, N, hidden).
        """
        return self.encode(self.inputs(video), there, masked)

    def encode(self, inputs: Tensor, there: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """The same from :meth:`inputs`, which may have been corrupted."""
        x = self.project(inputs)
        if masked is not None:
            x = torch.where(masked[..., None], self.masked, x)
        grid: Grid = (x.shape[1], 1, 1)
        if self.config.kind == "frames":
            grid = self.config.grid
            x = x + (self.time + self.space).flatten(0, 1)
        for block in self.blocks:
            x = block(x, there, grid)
        return self.norm(x)

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Take mean and deviation from features (N, dim)."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0, correction=0).clamp_min(1e-6))


def _patterns(config: VisualConfig) -> list[Patterns]:
    if config.kind != "frames" or config.attention == "joint":
        return [(Full(),)] * config.layers
    time, space = Divided("time"), Divided("space")
    if config.attention == "divided":
        return [(time, space)] * config.layers
    first = -(-config.layers // 2)
    return [(space,) if layer < first else (time,) for layer in range(config.layers)]
