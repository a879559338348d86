"""Sizes of the encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .._config import Config

Attention = Literal["joint", "divided", "factorised_encoder", "factorised_attention", "factorised_heads"]


@dataclass(frozen=True)
class VideoTransformerConfig(Config):
    """A transformer whose tokens are patches of a clip.

    ``attention`` is how they see each other:

    - ``"joint"``: all see all (ViViT's first model);
    - ``"divided"``: time, then space (TimeSformer);
    - ``"factorised_encoder"``: each frame by itself, then what became of the frames (ViViT's second);
    - ``"factorised_attention"``: space, then time, in every block (its third);
    - ``"factorised_heads"``: half of the heads in space, half in time (its fourth).
    """

    attention: Attention = "divided"
    clip: tuple[int, int, int] = (8, 224, 224)  # frames, height, width: what learned positions are for
    patch: tuple[int, int, int] = (1, 16, 16)
    channels: int = 3
    dim: int = 768
    depth: int = 12
    time_depth: int = 4  # blocks over frames in "factorised_encoder"
    n_heads: int = 12
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    positions: Literal["separate", "joint"] = "separate"  # learned: of frames and of places, added; or of every token
    rotary: bool = False  # turn queries and keys instead of learning positions; then clips may have any size
    norm_eps: float = 1e-5  # of the layer normalisations
    gelu: Literal["none", "tanh"] = "none"  # its approximation, as torch.nn.GELU calls it
    n_classes: int = 0  # 0: features

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            raise ValueError(
                f"fastvfx.VideoTransformerConfig: expected attention to be one of {', '.join(get_args(Attention))}, "
                f"got {self.attention!r}"
            )
        if self.positions not in ("separate", "joint"):
            raise ValueError(
                f"fastvfx.VideoTransformerConfig: expected positions to be separate or joint, got {self.positions!r}"
            )
        if self.gelu not in ("none", "tanh"):
            raise ValueError(f"fastvfx.VideoTransformerConfig: expected gelu to be none or tanh, got {self.gelu!r}")
        if any(n % p for n, p in zip(self.clip, self.patch, strict=True)):
            raise ValueError(
                f"fastvfx.VideoTransformerConfig: expected clip in whole patches of {self.patch}, got {self.clip}"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens in time, height and width."""
        t, h, w = (n // p for n, p in zip(self.clip, self.patch, strict=True))
        return t, h, w


@dataclass(frozen=True)
class SwinConfig(Config):
    """A Video Swin transformer; the defaults are the tiny one."""

    patch: tuple[int, int, int] = (2, 4, 4)
    channels: int = 3
    dim: int = 96  # of the first stage; each later one has twice as many
    depths: tuple[int, ...] = (2, 2, 6, 2)
    n_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: tuple[int, int, int] = (8, 7, 7)
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    attend_padding: bool = True  # as the released weights were trained
    n_classes: int = 0

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.n_heads) or not self.depths:
            raise ValueError(
                f"fastvfx.SwinConfig: expected as many depths as n_heads, got {self.depths} and {self.n_heads}"
            )
