"""Video Swin (Liu et al., 2022): windows in stages, each with half the rows and columns and twice the channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...attention_blocks import WindowBlock
from .config import SwinConfig
from .tokens import PatchEmbedding


class PatchMerging(nn.Module):
    """Four neighbours of a frame become one token of twice the channels; odd sides are filled up with 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        nn.init.trunc_normal_(self.reduction.weight, std=0.02, a=-0.04, b=0.04)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, T, H, W, dim)`` to ``(batch, T, H / 2, W / 2, 2 dim)``, rounded up."""
        h, w = (n % 2 for n in x.shape[2:4])
        if h or w:
            x = pad(x, (0, 0, 0, w, 0, h))
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class SwinTransformer3d(nn.Module):
    """Clips to classes or features, by attention in shifted windows of space and time.

    >>> model = SwinTransformer3d(SwinConfig(depths=(2, 2), n_heads=(3, 6), window=(2, 4, 4)))
    >>> features = model(torch.rand(1, 8, 3, 64, 64))  # (1, 192)
    """

    def __init__(self, config: SwinConfig | None = None) -> None:
        super().__init__()
        config = self.config = SwinConfig() if config is None else config
        self.embed = PatchEmbedding(config.channels, config.patch, config.dim)
        self.embed_norm = nn.LayerNorm(config.dim)
        stages: list[nn.Module] = []
        for stage, (depth, heads) in enumerate(zip(config.depths, config.n_heads, strict=True)):
            dim = config.dim * 2**stage
            if stage:
                stages.append(PatchMerging(dim // 2))
            stages += [
                WindowBlock(
                    dim, heads, config.window, shifted=block % 2 == 1, attend_padding=config.attend_padding,
                    mlp_ratio=config.mlp_ratio, dropout=config.dropout,
                )
                for block in range(depth)
            ]  # fmt: skip
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.n_classes) if config.n_classes else nn.Identity()

    def forward(self, clips: Tensor) -> Tensor:
        """``(batch, frames, channels, height, width)`` to ``(batch, n_classes)``, or features without classes."""
        return self.head(self.tokens(clips).mean((1, 2, 3)))

    def tokens(self, clips: Tensor) -> Tensor:
        """The tokens of the last stage, ``(batch, T, H, W, dim)``."""
        return self.norm(self.stages(self.embed_norm(self.embed(clips))))
