"""What each kind of training minimises, as named terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._config import Config
from . import losses
from .batches import Batch
from .embeddings import VideoTokenEmbeddings
from .masking import mask_tokens, mask_vectors
from .model import Hidden, VideoBert

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class PretrainLoss(Config):
    """Weights of the terms, and how features and patches are predicted.

    Attributes:
        text, video: hidden tokens of a sequence of text alone, and of video alone.
        joint: the same in sequences of both.
        alignment: whether text and video belong together.
        hidden_vectors: for features and frames, ``"regression"`` predicts their standardised numbers,
            ``"contrast"`` tells the right one from the others of the batch.
    """

    text: float = 1.0
    video: float = 1.0
    joint: float = 1.0
    alignment: float = 1.0
    hidden_vectors: Literal["regression", "contrast"] = "regression"


def pretraining_terms(
    model: VideoBert, batch: Batch, other_text: Tensor, changed: Tensor, ordinary: Tensor, loss: PretrainLoss
) -> Terms:
    """The paper's regimes: hidden tokens of text alone, of video alone, of both, and whether both belong together.

    In the last nothing is hidden: the word that decides might be.

    Args:
        model: the model.
        batch: text and video that belong together.
        other_text: (B, L') word pieces of other samples.
        changed: (B,) bool: samples whose text is the other one, in the last regime.
        ordinary: (n,) word pieces that are not special.
        loss: weights; a regime whose weights are 0 is left out.
    """
    terms: Terms = {}
    if loss.text > 0:
        text, chosen = _hide_text(model, batch.text, ordinary)
        terms["text"] = loss.text * _text_loss(model, model(None, text), batch.text, chosen)
    if loss.video > 0:
        hidden, target, chosen = _video_pass(model, batch, None)
        terms["video"] = loss.video * _video_loss(model, hidden, target, chosen, loss)
    if loss.joint > 0:
        text, chosen_text = _hide_text(model, batch.text, ordinary)
        hidden, target, chosen = _video_pass(model, batch, text)
        terms["joint_text"] = loss.joint * _text_loss(model, hidden, batch.text, chosen_text)
        terms["joint_video"] = loss.joint * _video_loss(model, hidden, target, chosen, loss)
    if loss.alignment > 0:
        text = _swap(batch.text, other_text, changed, model.config.special.pad)
        pooled = model(batch.video, text, video_there=batch.video_there).pooled
        terms["alignment"] = loss.alignment * losses.alignment(model.alignment_logits(pooled), ~changed)
    return terms


def _hide_text(model: VideoBert, text: Tensor, ordinary: Tensor) -> tuple[Tensor, Tensor]:
    special = model.config.special
    return mask_tokens(text, text != special.pad, special.mask, ordinary)


def _video_pass(model: VideoBert, batch: Batch, text: Tensor | None) -> tuple[Hidden, Tensor, Tensor]:
    """Hidden states of a video with hidden tokens, what it was, and which (B, N) were hidden."""
    embeddings, video, there = model.video_embeddings, batch.video, batch.video_there
    if isinstance(embeddings, VideoTokenEmbeddings):
        assert there is not None
        ids, chosen = mask_tokens(video, there, embeddings.mask, torch.arange(embeddings.n_tokens))
        return model(ids, text, video_there=there), video, chosen
    inputs = embeddings.inputs(video)
    present = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device) if there is None else there
    vectors, masked, chosen = mask_vectors(inputs, present)
    return model.cross(embeddings.encode(vectors, there, masked), there, text), inputs, chosen


def _text_loss(model: VideoBert, hidden: Hidden, ids: Tensor, chosen: Tensor) -> Tensor:
    return losses.masked_tokens(model.text_logits(hidden.text[chosen]), ids[chosen])


def _video_loss(model: VideoBert, hidden: Hidden, target: Tensor, chosen: Tensor, loss: PretrainLoss) -> Tensor:
    predicted, wanted = model.video_prediction(hidden.video[chosen]), target[chosen]
    if model.config.video.kind == "tokens":
        return losses.masked_tokens(predicted, wanted)
    if loss.hidden_vectors == "contrast":
        return losses.masked_contrast(predicted, wanted)
    return losses.masked_regression(predicted, wanted)


def _swap(text: Tensor, other: Tensor, changed: Tensor, pad: int) -> Tensor:
    """Rows of ``other`` where ``changed``, else of ``text``, padded to one length."""
    length = max(text.shape[1], other.shape[1])
    text, other = (torch.nn.functional.pad(x, (0, length - x.shape[1]), value=pad) for x in (text, other))
    return torch.where(changed[:, None], other, text)
