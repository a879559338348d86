"""Volume rendering as a module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .functional import CompositeOutput, composite
from .functional.composite import Depth


class VolumeRenderer(nn.Module):
    """:func:`fastvfx.composite` with its options kept, and a background that may be learned.

    Args:
        background: colour behind everything, ``channels`` floats, or ``None``.
        learn_background: make it a parameter rather than a buffer.
        depth, depth_threshold, early_stop_eps: see :func:`fastvfx.composite`.
    """

    background: Tensor | None

    def __init__(
        self,
        background: Sequence[float] | None = None,
        learn_background: bool = False,
        depth: Depth = "expected",
        depth_threshold: float = 0.5,
        early_stop_eps: float = 1e-4,
    ) -> None:
        super().__init__()
        if learn_background and background is None:
            raise ValueError("fastvfx.VolumeRenderer: expected a background to start from with learn_background=True")
        colour = None if background is None else torch.tensor(background, dtype=torch.float32)
        if learn_background and colour is not None:
            self.background = nn.Parameter(colour)
        else:
            self.register_buffer("background", colour)
        self.depth: Depth = depth
        self.depth_threshold = depth_threshold
        self.early_stop_eps = early_stop_eps

    def forward(
        self,
        sigmas: Tensor,
        rgbs: Tensor,
        t_starts: Tensor,
        t_ends: Tensor,
        offsets: Tensor | None = None,
        background: Tensor | None = None,
        return_weights: bool = False,
        padded: bool = False,
    ) -> CompositeOutput:
        """Shapes as in :func:`fastvfx.composite`; ``background`` overrides the module's own."""
        return composite(
            sigmas,
            rgbs,
            t_starts,
            t_ends,
            offsets,
            self.background if background is None else background,
            depth=self.depth,
            depth_threshold=self.depth_threshold,
            early_stop_eps=self.early_stop_eps,
            return_weights=return_weights,
            padded=padded,
        )
