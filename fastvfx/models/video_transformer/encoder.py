"""TimeSformer and the four models of ViViT: one encoder, five ways to attend."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...attention_blocks import AttentionBlock, ClassBlock, DividedBlock, FactorisedBlock, space_and_time_heads
from .config import VideoTransformerConfig
from .tokens import PatchEmbedding

#: Kinds of attention that a class token takes part in; the others end in the mean over tokens.
WITH_CLASS_TOKEN = ("joint", "divided", "factorised_encoder")


class VideoTransformer(nn.Module):
    """Clips to classes or features.

    Args:
        config: sizes, and how tokens attend each other.

    >>> model = VideoTransformer(VideoTransformerConfig(attention="divided", clip=(8, 64, 64), dim=192, n_heads=3))
    >>> features = model(torch.rand(2, 8, 3, 64, 64))  # (2, 192)
    """

    def __init__(self, config: VideoTransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.embed = PatchEmbedding(config.channels, config.patch, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if config.attention in WITH_CLASS_TOKEN else None
        self.position: nn.Parameter | None = None
        self.time_position: nn.Parameter | None = None
        self.space_position: nn.Parameter | None = None
        if not config.rotary:
            t, h, w = config.grid
            if config.positions == "joint":
                self.position = _learned(t, h, w, dim)
            else:
                self.time_position, self.space_position = _learned(t, 1, 1, dim), _learned(1, h, w, dim)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.time_cls: nn.Parameter | None = None
        self.time_blocks = nn.ModuleList()
        if config.attention == "factorised_encoder":
            self.time_cls = nn.Parameter(torch.zeros(1, 1, dim))
            self.time_blocks.extend(_block(config) for _ in range(config.time_depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.n_classes) if config.n_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps
            elif isinstance(module, nn.GELU):
                module.approximate = config.gelu

    def forward(self, clips: Tensor) -> Tensor:
        """``(batch, frames, channels, height, width)`` to ``(batch, n_classes)``, or ``(batch, dim)`` without classes.

        Raises:
            ValueError: clips of another size than the learned positions.
        """
        x, cls = self.tokens(clips)
        return self.head(x.mean((1, 2, 3)) if cls is None else cls[:, 0])

    def tokens(self, clips: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens ``(batch, T, H, W, dim)`` after all blocks, and the class token ``(batch, 1, dim)`` or ``None``.

        In ``"factorised_encoder"`` tokens see their own frame only.
        """
        x = self._positioned(self.embed(clips))
        if self.config.attention == "factorised_encoder":
            return self._factorised(x)
        cls = None if self.cls is None else self.cls.expand(len(x), -1, -1)
        for block in self.blocks:
            if cls is None:
                x = block(x)
            else:
                x, cls = block(x, cls)
        return self.norm(x), None if cls is None else self.norm(cls)

    def _positioned(self, x: Tensor) -> Tensor:
        positions = [p for p in (self.position, self.time_position, self.space_position) if p is not None]
        if positions and tuple(x.shape[1:4]) != self.config.grid:
            raise ValueError(
                f"fastvfx.VideoTransformer: expected clips of {self.config.grid} tokens, whose positions were learned, "
                f"got {tuple(x.shape[1:4])}"
            )
        for position in positions:
            x = x + position
        return x

    def _factorised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.cls is not None and self.time_cls is not None
        batch, n_frames = x.shape[:2]
        frames = x.flatten(0, 1)[:, None]  # (B T, 1, H, W, dim)
        cls = self.cls.expand(len(frames), -1, -1)
        for block in self.blocks:
            frames, cls = block(frames, cls)
        of_frames = cls.view(batch, n_frames, 1, 1, -1)
        cls = self.time_cls.expand(batch, -1, -1)
        for block in self.time_blocks:
            of_frames, cls = block(of_frames, cls)
        return self.norm(frames[:, 0].unflatten(0, (batch, n_frames))), self.norm(cls)


def _learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02, a=-0.04, b=0.04))


def _block(config: VideoTransformerConfig) -> nn.Module:
    dim, heads = config.dim, config.n_heads
    ratio, dropout, rotary = config.mlp_ratio, config.dropout, config.rotary
    if config.attention == "divided":
        return DividedBlock(dim, heads, mlp_ratio=ratio, dropout=dropout, rotary=rotary)
    if config.attention == "factorised_attention":
        return FactorisedBlock(dim, heads, mlp_ratio=ratio, dropout=dropout, rotary=rotary)
    if config.attention == "factorised_heads":
        pattern = space_and_time_heads(heads)
        return AttentionBlock(dim, heads, pattern, mlp_ratio=ratio, dropout=dropout, rotary=rotary)
    return ClassBlock(dim, heads, mlp_ratio=ratio, dropout=dropout, rotary=rotary)
