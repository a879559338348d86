"""What a pre-trained model knows without being fitted to it: words to fill in, and which caption belongs to a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import Batch, Batches
from .library import Segment
from .model import VideoBert
from .text import Vocabulary

_BATCH = 64  # sequences at a time


@dataclass(frozen=True)
class Guess:
    """A word piece for a ``[MASK]``."""

    piece: str
    probability: float


@torch.no_grad()
def fill(
    model: VideoBert, vocabulary: Vocabulary, batch: Batch, template: str, top: int = 5
) -> list[list[list[Guess]]]:
    """The likeliest word pieces for each ``[MASK]`` of a sentence, seen with each video.

    (The paper asks "now let me show you how to [MASK] the [MASK]" for verbs and nouns.)

    Args:
        model: the model; it is put in evaluation mode.
        vocabulary: its word pieces.
        batch: the videos; its text does not count.
        template: a sentence with at least one ``[MASK]``.
        top: how many guesses.

    Returns:
        For each video, for each ``[MASK]``, the guesses, best first.

    Raises:
        ValueError: no ``[MASK]`` in the template.
    """
    model.eval()
    pieces = vocabulary.encode(template)
    special = vocabulary.special
    places = [i for i, piece in enumerate(pieces) if piece == special.mask]
    if not places:
        raise ValueError(f"fastvfx.models.videobert.fill: expected a [MASK] in the sentence, got {template!r}")
    text = torch.tensor([pieces], device=batch.video.device).expand(len(batch.video), -1)
    hidden = model(batch.video, text, video_there=batch.video_there).text[:, places]
    logits = model.text_logits(hidden).float()
    for number in (special.pad, special.unk, special.cls, special.sep, special.mask, special.video):
        logits[..., number] = -torch.inf
    best = logits.softmax(-1).topk(min(top, len(vocabulary.ordinary)), -1)
    return [
        [
            [Guess(vocabulary.piece(i), p) for i, p in zip(ids, values, strict=True)]
            for ids, values in zip(video_ids, video_values, strict=True)
        ]
        for video_ids, video_values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@torch.no_grad()
def alignment_scores(model: VideoBert, batches: Batches, segments: Sequence[Segment], texts: Sequence[str]) -> Tensor:
    """How well each text fits each segment: differences of the alignment's logits, (segments, texts)."""
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for segment in segments:
        batch = batches.whole([segment]).to(device)
        vectors = model.video_vectors(batch.video, batch.video_there)
        row = []
        for start in range(0, len(texts), _BATCH):
            text = batches.encode(texts[start : start + _BATCH]).to(device)
            n = len(text)
            there = None if batch.video_there is None else batch.video_there.expand(n, -1)
            pooled = model.cross(vectors.expand(n, -1, -1), there, text).pooled
            logits = model.alignment_logits(pooled).float()
            row.append(logits[:, 0] - logits[:, 1])
        rows.append(torch.cat(row))
    return torch.stack(rows).cpu()


@dataclass(frozen=True)
class Retrieval:
    """How often the right caption of a segment is among the best.

    Attributes:
        scores: (segments, texts).
        right: (segments,) number of the right text.
        top1, top5: parts of the segments.
        chance1, chance5: what a blind choice would reach.
        mean_rank: of the right text, from 1.
        ranks: (segments,) of the right text; between those of texts that fit equally well.
    """

    scores: Tensor
    right: Tensor
    top1: float
    top5: float
    chance1: float
    chance5: float
    mean_rank: float
    ranks: Tensor

    def summary(self) -> dict[str, float]:
        """For JSON."""
        return {
            "segments": len(self.right),
            "captions": self.scores.shape[1],
            "top1": self.top1,
            "top5": self.top5,
            "chance_top1": self.chance1,
            "chance_top5": self.chance5,
            "mean_rank": self.mean_rank,
        }


def retrieval(model: VideoBert, batches: Batches, segments: Sequence[Segment], texts: Sequence[str]) -> Retrieval:
    """Look for the caption of each segment among ``texts``, all of which a model may never have seen together."""
    scores = alignment_scores(model, batches, segments, texts)
    right = torch.tensor([list(texts).index(segment.text) for segment in segments])
    own = scores.gather(1, right[:, None])
    # A tie counts as half lost: a model that says the same for all is at chance.
    rank = 1 + (scores > own).sum(1) + 0.5 * ((scores == own).sum(1) - 1)
    n = len(texts)
    return Retrieval(
        scores,
        right,
        float((rank <= 1).double().mean()),
        float((rank <= 5).double().mean()),
        1 / n,
        min(1.0, 5 / n),
        float(rank.double().mean()),
        rank,
    )


@torch.no_grad()
def fill_accuracy(model: VideoBert, batches: Batches, segments: Sequence[Segment]) -> dict[str, float]:
    """Hide one word piece of each caption after the other: how often is it guessed, with the video and without?

    The difference is what the model reads from the video; a caption's grammar is known without it.

    Returns:
        ``with_video``, ``without_video`` and the number of ``pieces``.
    """
    model.eval()
    special, device = model.config.special, next(model.parameters()).device
    right = {"with_video": 0, "without_video": 0}
    total = 0
    for segment in segments:
        batch = batches.whole([segment]).to(device)
        n = batch.text.shape[1]
        text = batch.text.expand(n, -1).clone()
        truth = batch.text[0]
        text.fill_diagonal_(special.mask)
        vectors = model.video_vectors(batch.video, batch.video_there).expand(n, -1, -1)
        there = None if batch.video_there is None else batch.video_there.expand(n, -1)
        each = torch.arange(n, device=device)
        for name, hidden in (
            ("with_video", model.cross(vectors, there, text).text),
            ("without_video", model.cross(None, None, text).text),
        ):
            right[name] += int((model.text_logits(hidden[each, each]).argmax(1) == truth).sum())
        total += n
    return {"pieces": total, **{name: count / max(total, 1) for name, count in right.items()}}
