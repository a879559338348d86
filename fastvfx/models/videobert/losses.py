"""What pre-training minimises, of predictions for hidden tokens and of pairs; each a mean, 0 where there is none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_tokens(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], for logits (M, n) and targets (M,)."""
    return F.cross_entropy(logits.float(), targets) if len(targets) else logits.sum() * 0.0


def masked_regression(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean square of the difference, both (M, dim); 1 for who always says the mean of standardised targets."""
    return F.mse_loss(predictions.float(), targets.float()) if len(targets) else predictions.sum() * 0.0


def masked_contrast(predictions: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Which of the M hidden vectors is the one? -log softmax_j(cos(prediction_i, target_j) / temperature)[i].

    Both (M, dim). (As in Sun et al., Contrastive Bidirectional Transformer, 2019, with the hidden vectors of the batch
    as each other's negatives.)
    """
    if not len(targets):
        return predictions.sum() * 0.0
    similar = F.normalize(predictions.float(), dim=1) @ F.normalize(targets.float(), dim=1).T
    return F.cross_entropy(similar / temperature, torch.arange(len(targets), device=targets.device))


def alignment(logits: Tensor, aligned: Tensor) -> Tensor:
    """-log softmax(logits)[0 where text and video belong together, else 1]; (B, 2) and (B,) bool."""
    return F.cross_entropy(logits.float(), (~aligned).long())
