"""From word pieces and visual tokens to vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import SpecialIds, VideoBertConfig


class BertEmbeddings(nn.Module):
    """BERT's: LayerNorm(word + position + token type), with dropout behind it.

    Video comes in as vectors of its own in place of words: :meth:`place` does the rest.
    """

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.hidden)
        self.positions = nn.Embedding(config.positions, config.hidden)
        self.types = nn.Embedding(2, config.hidden)  # 0 text, 1 video
        self.norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, positions: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Word pieces (B, L) to vectors (B, L, hidden); places and types are 0, 1, 2, ... and 0 by default."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return self.place(self.words(ids), positions, torch.zeros_like(ids) if types is None else types)

    def place(self, vectors: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        """Add places and types, both (B, L), to vectors (B, L, hidden)."""
        return self.dropout(self.norm(vectors + self.positions(positions) + self.types(types)))


class VideoTokenEmbeddings(nn.Module):
    """A vector for each visual token, and two more: for padding and for ``[MASK]``.

    Attributes:
        pad, mask: their numbers, behind those of the tokens.
    """

    def __init__(self, n_tokens: int, hidden: int) -> None:
        super().__init__()
        self.n_tokens, self.pad, self.mask = n_tokens, n_tokens, n_tokens + 1
        self.tokens = nn.Embedding(n_tokens + 2, hidden)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N) to (B, N, hidden)."""
        return self.tokens(ids)

    @torch.no_grad()
    def initialise(self, centroids: Tensor) -> None:
        """Start from the centroids (n_tokens, dim) of the tokens, as the paper does.

        Where their length is not that of the vectors, they are turned so that their principal axes come first, and
        cut or filled with zeros. They are moved and scaled as a whole, to mean 0 and the standard deviation that the
        vectors had.
        """
        if centroids.shape[0] != self.n_tokens:
            raise ValueError(
                f"fastvfx.models.videobert: expected centroids of {self.n_tokens} tokens, got {centroids.shape[0]}"
            )
        weight = self.tokens.weight
        spread = weight.std()
        x = centroids.double() - centroids.double().mean(0)
        hidden = weight.shape[1]
        if x.shape[1] != hidden:
            _, axes = torch.linalg.eigh(x.T @ x)  # ascending
            axes = axes.flip(1)[:, :hidden]
            # An axis and its opposite are as good: the larger end is made the positive one.
            axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
            x = nn.functional.pad(x @ axes, (0, hidden - axes.shape[1]))
        size = x.std() if x.numel() > 1 else x.new_ones(())
        if size > 0:
            weight[: self.n_tokens] = (x * (spread / size)).to(weight.dtype)


def sequence(
    words: nn.Module, special: SpecialIds, text: tuple[Tensor, Tensor] | None, video: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out ``[CLS] text [>] video [SEP]``.

    Without video that is ``[CLS] text [SEP]``, without text ``[CLS] [>] video [SEP]``.

    Args:
        words: gives the vectors of word pieces.
        special: numbers of the special ones.
        text, video: vectors (B, L, hidden) and what of them is there, (B, L) bool.

    Returns:
        vectors (B, N, hidden), what of them is there (B, N), and token types (B, N): 1 from the first of video on.
    """
    given = text or video
    assert given is not None
    batch, device = given[0].shape[0], given[0].device

    def piece(number: int) -> tuple[Tensor, Tensor]:
        ids = torch.full((batch, 1), number, device=device)
        return words(ids), torch.ones_like(ids, dtype=torch.bool)

    first = [piece(special.cls)] + ([] if text is None else [text]) + ([] if video is None else [piece(special.video)])
    last = ([] if video is None else [video]) + [piece(special.sep)]
    n_first = sum(x.shape[1] for x, _ in first)
    vectors = torch.cat([x for x, _ in first + last], 1)
    there = torch.cat([m for _, m in first + last], 1)
    types = torch.zeros_like(there, dtype=torch.long)
    if video is not None:
        types[:, n_first:] = 1
    return vectors, there, types
