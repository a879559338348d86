"""A moving average of a network, which makes better images than the network itself."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """Keeps a copy whose parameters follow those of a network.

    In ``nimg`` images the weight of the past halves: beta = 0.5^(batch / nimg) (Karras et al., "Progressive Growing of
    GANs", 2018, section 5, there with a fixed beta of 0.999). Buffers, moving averages themselves, are taken over.

    Args:
        network: what to follow.
        kimg: the half-life, in thousands of images.
        rampup: at first the half-life is at most this part of the images so far, so that the average does not keep the
            random weights of the beginning; ``None`` for no such limit.

    Attributes:
        network: the copy, without gradients.
    """

    def __init__(self, network: M, kimg: float, rampup: float | None = 0.05) -> None:
        self.network: M = copy.deepcopy(network).requires_grad_(False).eval()
        self.kimg, self.rampup = kimg, rampup

    def beta(self, batch: int, images: int) -> float:
        """Weight of the past after ``batch`` more images, with ``images`` so far."""
        half_life = self.kimg * 1000
        if self.rampup is not None:
            half_life = min(half_life, images * self.rampup)
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, network: M, batch: int, images: int) -> None:
        """One step towards ``network``; arguments as of :meth:`beta`."""
        own: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(own, theirs, 1 - self.beta(batch, images))
        for mine, other in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(other)
