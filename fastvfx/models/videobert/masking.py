"""Which tokens pre-training hides, and behind what: BERT's recipe.

15 % of a sequence's tokens are chosen, at least one; of these 80 % become ``[MASK]``, 10 % another token, and 10 % stay
as they are (Devlin et al. 2018). Random numbers are those of torch's global generator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1


class MaskedTokens(NamedTuple):
    """What became of a batch."""

    ids: Tensor  #: (B, N), some of them hidden
    chosen: Tensor  #: (B, N) bool: what is to be predicted


class MaskedVectors(NamedTuple):
    """What became of a batch of vectors."""

    vectors: Tensor  #: (B, N, dim), some of them another's
    masked: Tensor  #: (B, N) bool: to be hidden by the model's own vector
    chosen: Tensor  #: (B, N) bool: what is to be predicted


def choose(there: Tensor, part: float = CHOSEN) -> Tensor:
    """``max(1, round(part * n))`` of the n tokens that are ``there`` (B, N) in each row, (B, N) bool."""
    counts = there.sum(1)
    wanted = (counts * part).round().clamp_min(1).minimum(counts)  # (B,)
    order = torch.rand(there.shape, device=there.device).masked_fill(~there, 2.0).argsort(1)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(there.shape[1], device=there.device).expand_as(order)
    )
    return rank < wanted[:, None]


def mask_tokens(ids: Tensor, there: Tensor, mask: int, others: Tensor) -> MaskedTokens:
    """Hide word pieces or visual tokens.

    Args:
        ids: (B, N) int64.
        there: (B, N) bool: which can be chosen.
        mask: number of ``[MASK]``.
        others: (n,) what a token may be replaced by.
    """
    chosen = choose(there)
    masked, replaced = _fates(chosen)
    random = others.to(ids.device)[torch.randint(len(others), ids.shape, device=ids.device)]
    return MaskedTokens(torch.where(masked, mask, torch.where(replaced, random, ids)), chosen)


def mask_vectors(vectors: Tensor, there: Tensor) -> MaskedVectors:
    """Hide features or patches (B, N, dim); those that are replaced get one of another place in the batch."""
    chosen = choose(there)
    masked, replaced = _fates(chosen)
    pool = vectors[there]  # (n, dim)
    random = pool[torch.randint(len(pool), there.shape, device=vectors.device)]
    return MaskedVectors(torch.where(replaced[..., None], random, vectors), masked, chosen)


def _fates(chosen: Tensor) -> tuple[Tensor, Tensor]:
    dice = torch.rand(chosen.shape, device=chosen.device)
    return chosen & (dice < MASKED), chosen & (dice >= MASKED) & (dice < MASKED + REPLACED)
