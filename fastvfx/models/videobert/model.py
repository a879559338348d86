"""VideoBERT: a bidirectional transformer over words and video.

(Sun, Myers, Vondrick, Murphy, Schmid, VideoBERT: A Joint Model for Video and Language Representation Learning, 2019,
arXiv 1904.01766.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import VideoBertConfig
from .embeddings import BertEmbeddings, VideoTokenEmbeddings, sequence
from .encoder import CrossEncoder
from .heads import FeatureHead, Pooler, TokenHead, initialise
from .visual import VisualTransformer


class Hidden(NamedTuple):
    """What the cross encoder made of a sequence."""

    text: Tensor  #: (B, L, hidden), of the word pieces
    video: Tensor  #: (B, N, hidden), of the visual tokens
    pooled: Tensor  #: (B, hidden), of the whole


class Sequence(NamedTuple):
    """``[CLS] text [>] video [SEP]`` as the cross encoder takes it."""

    x: Tensor  #: (B, N, hidden)
    there: Tensor  #: (B, N) bool: no padding
    text: slice  #: where the word pieces are
    video: slice  #: where the visual tokens are


class VideoBert(nn.Module):
    """Text and video in one BERT.

    Attributes:
        text_embeddings: of word pieces, positions and token types.
        video_embeddings: a table of visual tokens, or a transformer over frames or features, as ``config.video`` says.
        cross_encoder: the layers in which they see each other.
        pooler, text_head, video_head, alignment_head: what pre-training predicts from.

    >>> model = VideoBert(VideoBertConfig(vocabulary=1000, video=VisualConfig("frames")))
    >>> hidden = model(torch.rand(2, 8, 3, 64, 64), torch.randint(6, 1000, (2, 12)))
    >>> hidden.text.shape, hidden.video.shape
    (torch.Size([2, 12, 192]), torch.Size([2, 256, 192]))
    """

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.config = config
        hidden, video = config.hidden, config.video
        self.text_embeddings = BertEmbeddings(config)
        self.video_embeddings: VideoTokenEmbeddings | VisualTransformer
        self.video_head: TokenHead | FeatureHead
        if video.kind == "tokens":
            self.video_embeddings = VideoTokenEmbeddings(video.n_tokens, hidden)
            self.video_head = TokenHead(hidden, video.n_tokens)
        else:
            self.video_embeddings = VisualTransformer(config)
            self.video_head = FeatureHead(hidden, video.patch_dim)
        self.cross_encoder = CrossEncoder(config)
        self.pooler = Pooler(hidden)
        self.text_head = TokenHead(hidden, config.vocabulary)
        self.alignment_head = nn.Linear(hidden, 2)
        initialise(self, config.deviation)

    def forward(
        self,
        video_features: Tensor | None = None,
        text_ids: Tensor | None = None,
        *,
        video_there: Tensor | None = None,
        text_there: Tensor | None = None,
        video_masked: Tensor | None = None,
    ) -> Hidden:
        """Encode ``[CLS] text [>] video [SEP]``, or one of the two alone.

        Args:
            video_features: visual tokens (B, N) int64, features (B, N, dim), or frames (B, T, 3, H, W) in [0, 1], as
                the configuration says.
            text_ids: word pieces (B, L) int64, without special tokens but ``[MASK]``.
            video_there: (B, N) bool: visual tokens that are no padding; all by default.
            text_there: (B, L) bool: the same of word pieces; those that are not ``[PAD]`` by default.
            video_masked: (B, N) bool: features or patches to hide. Visual tokens are hidden by their own ``[MASK]``.

        Returns:
            Hidden states. Those of padding have no meaning; those of what was not given have length 0.

        Raises:
            ValueError: nothing given, shapes that do not fit, or a sequence that is too long.
        """
        video = None
        if video_features is not None:
            self._check_video(video_features)
            video = self.video_vectors(video_features, video_there, video_masked)
        return self.cross(video, video_there, text_ids, text_there)

    def cross(
        self,
        video: Tensor | None,
        video_there: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_there: Tensor | None = None,
    ) -> Hidden:
        """:meth:`forward` from :meth:`video_vectors` (B, N, hidden) on."""
        seq = self.arrange(video, video_there, text_ids, text_there)
        x = self.cross_encoder(seq.x, seq.there)
        return Hidden(x[:, seq.text], x[:, seq.video], self.pooler(x))

    def video_vectors(self, video: Tensor, there: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """Vectors (B, N, hidden) of a video, without place and type."""
        if isinstance(self.video_embeddings, VideoTokenEmbeddings):
            return self.video_embeddings(video)
        return self.video_embeddings(video, there, masked)

    def arrange(
        self,
        video: Tensor | None,
        video_there: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_there: Tensor | None = None,
    ) -> Sequence:
        """The sequence of :meth:`video_vectors` and word pieces, with places and token types."""
        embeddings = self.text_embeddings
        if video is None and text_ids is None:
            raise ValueError("fastvfx.models.videobert.VideoBert: expected video_features or text_ids, got neither")
        text_part = video_part = None
        n_text = n_video = 0
        if text_ids is not None:
            if text_ids.ndim != 2 or (video is not None and text_ids.shape[0] != video.shape[0]):
                of = "" if video is None else f" with B={video.shape[0]}"
                raise ValueError(
                    f"fastvfx.models.videobert.VideoBert: expected text_ids of shape (B, L){of}, "
                    f"got {tuple(text_ids.shape)}"
                )
            there = text_ids != self.config.special.pad if text_there is None else text_there
            text_part, n_text = (embeddings.words(text_ids), there), text_ids.shape[1]
        if video is not None:
            whole = torch.ones(video.shape[:2], dtype=torch.bool, device=video.device)
            video_part, n_video = (video, whole if video_there is None else video_there), video.shape[1]
        x, there, types = sequence(embeddings.words, self.config.special, text_part, video_part)
        if x.shape[1] > self.config.positions:
            raise ValueError(
                f"fastvfx.models.videobert.VideoBert: expected at most {self.config.positions} tokens, got "
                f"{n_text} of text, {n_video} of video and {x.shape[1] - n_text - n_video} special ones"
            )
        # Padding of the text is in the middle; places go on behind it as if it was not there.
        positions = (there.cumsum(1) - 1).clamp_min(0)
        start = 1 + n_text + (video is not None)
        return Sequence(
            embeddings.place(x, positions, types), there, slice(1, 1 + n_text), slice(start, start + n_video)
        )

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) to (..., vocabulary)."""
        return self.text_head(hidden, self.text_embeddings.words.weight)

    def video_prediction(self, hidden: Tensor) -> Tensor:
        """(..., hidden) to logits (..., n_tokens), or to features or pixels (..., patch_dim) at mean 0, deviation 1."""
        if isinstance(self.video_embeddings, VideoTokenEmbeddings):
            return self.video_head(hidden, self.video_embeddings.tokens.weight[: self.config.video.n_tokens])
        return self.video_head(hidden)

    def alignment_logits(self, pooled: Tensor) -> Tensor:
        """(B, hidden) to (B, 2): text and video belong together, or not, in BERT's order."""
        return self.alignment_head(pooled)

    def _check_video(self, video: Tensor) -> None:
        config = self.config.video
        shape, kind = tuple(video.shape), config.kind
        if kind == "tokens":
            good, expected = video.ndim == 2 and not video.is_floating_point(), "whole numbers of shape (B, N)"
        elif kind == "features":
            good, expected = video.ndim == 3 and shape[2] == config.dim, f"features of shape (B, N, {config.dim})"
        else:
            clip = (config.frames, 3, *config.size)
            good, expected = shape[1:] == clip, f"frames of shape (B, {', '.join(map(str, clip))})"
        if not good:
            raise ValueError(
                f"fastvfx.models.videobert.VideoBert: expected video_features to be {expected}, got {video.dtype} of "
                f"shape {shape}"
            )
