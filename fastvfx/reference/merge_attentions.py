"""Attention over a whole context from attention over its parts, in PyTorch, differentiable to any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_attentions(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The maths of :func:`fastvfx.functional.merge_attentions`: outs (B, N, heads, dim), lses (B, heads, N)."""
    wide = torch.float64 if outs[0].dtype is torch.float64 else torch.float32
    parts = torch.stack([lse.to(wide) for lse in lses])  # (parts, B, heads, N)
    top = parts.detach().amax(0)
    top = torch.where(top.isneginf(), 0, top)  # a query without a key in any part: its weights are exp(-inf) = 0
    weights = (parts - top).exp()
    total = weights.sum(0)
    empty = total == 0
    safe = torch.where(empty, 1, total)  # log and quotient with finite derivatives where the result is chosen anyway
    lse = torch.where(empty, -torch.inf, top + safe.log())
    out = torch.zeros((), dtype=wide, device=outs[0].device)
    for part, weight in zip(outs, weights / safe, strict=True):
        seen = weight.transpose(1, 2)[..., None]  # (B, N, heads, 1)
        # What a part that saw nothing left in its rows is not read: 0 * NaN would be NaN.
        out = out + seen * torch.where(seen == 0, 0, part.to(wide))
    return out.to(outs[0].dtype), lse
