"""What a pre-trained model is fitted to: naming the class of a clip, and writing its caption."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import SpatioTemporalAttention
from ...functional import spatiotemporal_attention
from ...functional.scaled_dot_product_attention import random_seed
from ...patterns import CausalTime
from .batches import Batch
from .config import DecoderConfig
from .encoder import FeedForward
from .heads import initialise
from .model import VideoBert


class Classifier(nn.Module):
    """The class of a clip, from the pooled state of ``[CLS] [>] video [SEP]``.

    Args:
        encoder: the pre-trained model.
        n_classes: how many there are.
        dropout: in front of the layer.
    """

    def __init__(self, encoder: VideoBert, n_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden, n_classes)
        initialise(self.head, encoder.config.deviation)

    def forward(self, video: Tensor, there: Tensor | None = None) -> Tensor:
        """A video, as :class:`VideoBert` takes it, to logits (B, n_classes)."""
        return self.head(self.dropout(self.encoder(video, video_there=there).pooled))

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy with the labels."""
        return F.cross_entropy(self(batch.video, batch.video_there), batch.labels)


class MemoryAttention(nn.Module):
    """Attention of one sequence to another."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.kv = nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, memory: Tensor, there: Tensor | None = None) -> Tensor:
        """(B, L, hidden) with a memory (B, N, hidden), of which ``there`` (B, N) may be seen, to (B, L, hidden)."""
        q = self.q(x).unflatten(2, (self.heads, -1))  # (B, L, heads, dim)
        k, v = self.kv(memory).unflatten(2, (2, self.heads, -1)).unbind(2)
        dropout = self.dropout if self.training else 0.0
        seed = random_seed(dropout)
        line = (memory.shape[1], 1, 1)
        seen = spatiotemporal_attention(q, k, v, kv_grid=line, kv_mask=there, dropout=dropout, seed=seed)
        assert isinstance(seen, Tensor)  # without return_lse
        return self.out(seen.flatten(2))


class DecoderLayer(nn.Module):
    """Looks at the words so far, then at the video, then thinks; LayerNorm behind each, as in BERT."""

    def __init__(self, hidden: int, inner: int, config: DecoderConfig) -> None:
        super().__init__()
        self.words = SpatioTemporalAttention(hidden, config.heads, CausalTime(), dropout=config.dropout)
        self.video = MemoryAttention(hidden, config.heads, config.dropout)
        self.feed_forward = FeedForward(hidden, inner)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden, eps=1e-12) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor, there: Tensor | None) -> Tensor:
        """Words (B, L, hidden) with a video (B, N, hidden) of which ``there`` may be seen, to (B, L, hidden)."""
        first, second, third = self.norms
        x = first(x + self.dropout(self.words(x)))
        x = second(x + self.dropout(self.video(x, memory, there)))
        return third(x + self.dropout(self.feed_forward(x)))


class Captioner(nn.Module):
    """Writes captions: a transformer decoder over the hidden states of ``[CLS] [>] video [SEP]``.

    Its words are embedded by the encoder's table, which also gives the logits.

    Args:
        encoder: the pre-trained model.
        config: of the decoder.
    """

    def __init__(self, encoder: VideoBert, config: DecoderConfig) -> None:
        super().__init__()
        hidden = encoder.config.hidden
        if hidden % config.heads:
            raise ValueError(
                f"fastvfx.models.videobert.Captioner: expected heads that divide {hidden}, got {config.heads}"
            )
        self.encoder, self.config = encoder, config
        self.positions = nn.Parameter(torch.zeros(config.max_length + 1, hidden))
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.layers = nn.ModuleList(DecoderLayer(hidden, encoder.config.inner, config) for _ in range(config.layers))
        self.dropout = nn.Dropout(config.dropout)
        self.bias = nn.Parameter(torch.zeros(encoder.config.vocabulary))
        initialise(self.layers, encoder.config.deviation)
        nn.init.normal_(self.positions, std=encoder.config.deviation)

    def memory(self, video: Tensor, there: Tensor | None = None) -> Tensor:
        """What the decoder looks at: (B, N, hidden)."""
        return self.encoder(video, video_there=there).video

    def forward(self, memory: Tensor, there: Tensor | None, ids: Tensor) -> Tensor:
        """Logits of the next piece.

        Args:
            memory: (B, N, hidden), of :meth:`memory`.
            there: (B, N) bool: what of it is no padding.
            ids: (B, L) the pieces so far, ``[CLS]`` the first.

        Returns:
            (B, L, vocabulary).
        """
        words = self.encoder.text_embeddings.words
        x = self.dropout(self.norm(words(ids) + self.positions[: ids.shape[1]]))
        for layer in self.layers:
            x = layer(x, memory, there)
        return F.linear(x, words.weight, self.bias)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the pieces of the captions and of the ``[SEP]`` that ends them."""
        special = self.encoder.config.special
        text = batch.text[:, : self.config.max_length]
        first = torch.full_like(text[:, :1], special.cls)
        # What is to be said: the sentence, then [SEP], then nothing.
        target = F.pad(text, (0, 1), value=special.pad)
        lengths = (text != special.pad).sum(1, keepdim=True)
        target = target.scatter(1, lengths, special.sep)
        logits = self(self.memory(batch.video, batch.video_there), batch.video_there, torch.cat([first, text], 1))
        return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), ignore_index=special.pad)

    @torch.no_grad()
    def write(self, video: Tensor, there: Tensor | None = None, *, beams: int = 1) -> list[list[int]]:
        """Captions of videos, as word pieces.

        Args:
            video: as :class:`VideoBert` takes it.
            there: (B, N) bool: what of it is no padding.
            beams: 1 always takes the likeliest next piece; more keep so many sentences open, and the one with the best
                mean log probability of its pieces (``[SEP]`` counts) is taken.

        Returns:
            A list for each video, without special pieces, of at most ``max_length`` pieces.
        """
        if beams < 1:
            raise ValueError(f"fastvfx.models.videobert.Captioner.write: expected beams of at least 1, got {beams}")
        memory = self.memory(video, there)
        rows = range(len(memory))
        return [self._search(memory[i : i + 1], None if there is None else there[i : i + 1], beams) for i in rows]

    def _search(self, memory: Tensor, there: Tensor | None, beams: int) -> list[int]:
        special = self.encoder.config.special
        never = torch.tensor([special.pad, special.unk, special.cls, special.mask, special.video], device=memory.device)
        ids = torch.full((1, 1), special.cls, device=memory.device)
        scores = torch.zeros(1, device=memory.device)  # sums of log probabilities
        best, best_score = [], -torch.inf
        for length in range(1, self.config.max_length + 1):
            k = len(ids)
            logits = self(memory.expand(k, -1, -1), None if there is None else there.expand(k, -1), ids)[:, -1]
            logits = logits.float().index_fill(1, never, -torch.inf)
            if length == self.config.max_length:  # no room for more
                logits = logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) != special.sep, -1e9)
            total = (scores[:, None] + logits.log_softmax(1)).flatten()
            scores, index = total.topk(min(beams, int((total > -torch.inf).sum())))
            row, piece = index // logits.shape[1], index % logits.shape[1]
            ids = torch.cat([ids[row], piece[:, None]], 1)
            ended = piece == special.sep
            for sentence, score in zip(ids[ended].tolist(), (scores[ended] / length).tolist(), strict=True):
                if score > best_score:
                    best, best_score = sentence[1:-1], score
            ids, scores = ids[~ended], scores[~ended]
            # A sum of log probabilities only falls, but a mean may rise: the bound is that of the longest sentence.
            if not len(ids) or float(scores.max()) / self.config.max_length <= best_score:
                break
        return best
