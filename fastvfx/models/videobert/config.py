"""The numbers of the networks, as plain dataclasses that go into a checkpoint as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .._config import Config

FrontEnd = Literal["tokens", "features", "frames"]
VisualAttention = Literal["joint", "divided", "factorised"]


@dataclass(frozen=True)
class VisualConfig(Config):
    """What a video is to the model, and what makes vectors of it.

    Attributes:
        kind: ``"tokens"``: whole numbers, from :class:`HierarchicalKMeans`, as in the paper. ``"features"``: vectors of
            any network. ``"frames"``: pixels. The last two go through a :class:`VisualTransformer`.
        n_tokens: how many different tokens there are (tokens).
        dim: length of the vectors (features).
        frames, size: of a clip: how many, and (height, width) in pixels (frames).
        patch: (frames, height, width) that one token of the transformer stands for (frames).
        layers: of the transformer.
        attention: its pattern (frames): ``"joint"``, every patch to every patch; ``"divided"``, in each layer first
            over time, then over space (TimeSformer); ``"factorised"``, the first half of the layers over space, the
            others over time (ViViT's model 2, without pooling between them).
    """

    kind: FrontEnd = "tokens"
    n_tokens: int = 20736
    dim: int = 1024
    frames: int = 8
    size: tuple[int, int] = (64, 64)
    patch: tuple[int, int, int] = (2, 8, 8)
    layers: int = 2
    attention: VisualAttention = "divided"

    def __post_init__(self) -> None:
        whole = (self.frames, *self.size)
        if self.kind == "frames" and any(n % p for n, p in zip(whole, self.patch, strict=True)):
            raise ValueError(
                f"fastvfx.models.videobert: expected a patch that divides clips of {whole} (frames, height, width), "
                f"got {self.patch}"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """(time, height, width): patches of a clip of frames."""
        (t, h, w), (height, width) = self.patch, self.size
        return self.frames // t, height // h, width // w

    @property
    def patch_dim(self) -> int:
        """Numbers that one token stands for: of its pixels, or of its features."""
        t, h, w = self.patch
        return 3 * t * h * w if self.kind == "frames" else self.dim


@dataclass(frozen=True)
class SpecialIds(Config):
    """Numbers of the special word pieces; ``video`` is that of ``[>]``."""

    pad: int = 0
    unk: int = 1
    cls: int = 2
    sep: int = 3
    mask: int = 4
    video: int = 5

    def __contains__(self, number: int) -> bool:
        return number in (self.pad, self.unk, self.cls, self.sep, self.mask, self.video)


@dataclass(frozen=True)
class VideoBertConfig(Config):
    """Of :class:`VideoBert`.

    Attributes:
        vocabulary: how many word pieces there are.
        special: their special ones.
        video: of the visual front end.
        hidden, layers, heads, inner: of the cross encoder; ``inner`` is the width of its feed-forward layers.
        positions: the longest sequence, text, video and three special tokens together.
        dropout: of hidden states and attention weights.
    """

    vocabulary: int
    special: SpecialIds = field(default_factory=SpecialIds)
    video: VisualConfig = field(default_factory=VisualConfig)
    hidden: int = 192
    layers: int = 4
    heads: int = 4
    inner: int = 768
    positions: int = 512
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(
                f"fastvfx.models.videobert: expected heads that divide hidden={self.hidden}, got {self.heads}"
            )

    @property
    def deviation(self) -> float:
        """Of the random numbers that weights start from: BERT's 0.02 at its widths.

        Narrower layers get larger ones, so that their products are as large: with 0.02 at a width of 64 attention
        begins all but even, and takes long to learn to tell anything apart.
        """
        return 0.02 * max(1.0, 768 / self.hidden) ** 0.5


@dataclass(frozen=True)
class DecoderConfig(Config):
    """Of the decoder that writes captions: its width is that of the encoder.

    Attributes:
        layers, heads: as in the paper, two and four by default.
        max_length: word pieces of a caption at most.
        dropout: as in the encoder.
    """

    layers: int = 2
    heads: int = 4
    max_length: int = 64
    dropout: float = 0.1


#: Widths by name: hidden, layers, heads, inner. ``large`` is the paper's (BERT-large).
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (64, 4, 2, 256),
    "small": (192, 4, 4, 768),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}
