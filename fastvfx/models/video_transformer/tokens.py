"""Clips cut into tokens."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad


class PatchEmbedding(nn.Module):
    """Each box of ``patch`` frames, rows and columns becomes a token of ``dim`` channels.

    Clips that do not come in whole patches are filled up with 0 at their ends.
    """

    def __init__(self, channels: int, patch: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Conv3d(channels, dim, patch, stride=patch)

    def forward(self, clips: Tensor) -> Tensor:
        """``(batch, frames, channels, height, width)`` to ``(batch, T, H, W, dim)``."""
        if clips.dim() != 5 or clips.shape[2] != self.project.in_channels:
            raise ValueError(
                f"fastvfx.PatchEmbedding: expected clips of shape (batch, frames, {self.project.in_channels}, height, "
                f"width), got {tuple(clips.shape)}"
            )
        x = clips.transpose(1, 2)
        t, h, w = (-n % p for n, p in zip(x.shape[2:], self.patch, strict=True))
        if t or h or w:
            x = pad(x, (0, w, 0, h, 0, t))
        return self.project(x).movedim(1, -1)
