"""From video files to what the model takes: visual tokens, features, or frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data import DataError, in_background, read_clip, stream_clips
from .._config import Config
from .config import FrontEnd, VisualConfig
from .features import ClipFeatures, FeatureName
from .tokens import HierarchicalKMeans

_CLIPS = 4  # that the network of features sees at a time


@dataclass(frozen=True)
class ReaderConfig(Config):
    """How videos are read.

    A video becomes a row of units: a frame each (frames), or a clip of ``length`` frames each, without overlap.

    Attributes:
        kind: what the model takes.
        fps: frames per second.
        length: frames of a clip (tokens, features). The paper's 30 at 20 fps are 1.5 s.
        size: side of the square in the middle, in pixels.
        network: of the features of clips (tokens, features).
        depth, ways: of the tree of visual tokens (tokens).
    """

    kind: FrontEnd = "tokens"
    fps: float = 20.0
    length: int = 30
    size: int = 112
    network: FeatureName = "random"
    depth: int = 4
    ways: int = 12

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.fps if self.kind == "frames" else self.fps / self.length


class VideoReader(nn.Module):
    """Reads videos; for visual tokens it holds the tree that :meth:`fit` grows.

    Args:
        config: how.
    """

    balance: Tensor

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        self.tree = HierarchicalKMeans(config.depth, config.ways) if config.kind == "tokens" else None
        # Weights of the two halves of features, so that looks and motion count alike.
        self.register_buffer("balance", torch.ones(2))
        # Made when it is first needed; no submodule, so no part of checkpoints.
        self._features = cache(partial(ClipFeatures, config.network))

    def raw(self, path: Path, start: float = 0.0, end: float | None = None) -> Tensor:
        """Units before they become tokens: features (n, dim), or frames (n, 3, size, size) uint8.

        Raises:
            DataError: the file can't be read.
        """
        config = self.config
        if config.kind == "frames":
            return read_clip(path, fps=config.fps, size=config.size, start=start, end=end, dtype=torch.uint8)
        clips = stream_clips(path, length=config.length, fps=config.fps, size=config.size, start=start, end=end)
        frames = (clip.frames for clip in clips)
        network = self._features()
        return torch.cat([network(torch.stack(some)) for some in _groups(in_background(frames), _CLIPS)])

    def fit(self, raw: Sequence[Tensor], seed: int = 0) -> None:
        """Grow the tree of visual tokens from the units of many videos; nothing to do for the other kinds."""
        if self.tree is None:
            return
        x = torch.cat(list(raw))
        for half, part in enumerate(x.chunk(2, 1)):
            self.balance[half] = 1 / part.var(0, correction=0).sum().sqrt().clamp_min(1e-6)
        self.tree.fit(self._balanced(x), seed=seed)

    def finish(self, raw: Tensor) -> Tensor:
        """Units as the library keeps them: tokens (n,), features (n, dim), frames (n, 3, size, size) uint8."""
        return raw if self.tree is None else self.tree(self._balanced(raw))

    def _balanced(self, features: Tensor) -> Tensor:
        return (features.unflatten(1, (2, -1)) * self.balance[:, None]).flatten(1)

    def visual_config(self, raw: Sequence[Tensor], base: VisualConfig) -> VisualConfig:
        """What a model must be for these units; ``base`` says the rest."""
        kind = self.config.kind
        if kind == "tokens":
            assert self.tree is not None
            return replace(base, kind=kind, n_tokens=self.tree.n_tokens)
        if kind == "features":
            return replace(base, kind=kind, dim=raw[0].shape[1])
        return replace(base, kind=kind, size=(self.config.size, self.config.size))


def read_all(
    reader: VideoReader,
    videos: dict[str, Path],
    *,
    on_broken: Callable[[str, Exception], Any] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """The raw units of many videos by their names.

    Args:
        reader: reads them.
        videos: the files.
        on_broken: called with the name and the error of a video that can't be read; otherwise that is raised.
        on_progress: called with the number of videos that were read.
    """
    found: dict[str, Tensor] = {}
    for i, (name, path) in enumerate(videos.items(), 1):
        try:
            found[name] = reader.raw(path)
        except DataError as error:
            if on_broken is None:
                raise
            on_broken(name, error)
        if on_progress is not None:
            on_progress(i)
    return found


def _groups(items: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    group: list[Tensor] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
