"""Batches: neighbouring sentences put together, videos subsampled, everything padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._config import Config
from .config import VisualConfig
from .library import Library, Segment
from .text import Vocabulary

_LEAST = 4  # units that subsampling leaves


@dataclass(frozen=True)
class BatchConfig(Config):
    """How batches are made.

    Attributes:
        batch: samples in one.
        concatenate: probability that a sample goes on with the next segment of the same video, and so on. (The paper
            joins neighbouring sentences, since what is said and what is shown are often a little apart.)
        subsample: a random one of the rates 1 to this thins out the units of a sample; of tokens and features at least
            four are left, where there are so many, since some of them will be hidden.
        max_text, max_video: longest text and video; longer texts are cut, of longer videos a random part is taken.
    """

    batch: int = 32
    concatenate: float = 0.5
    subsample: int = 5
    max_text: int = 64
    max_video: int = 128


class Batch(NamedTuple):
    """What a step looks at."""

    text: Tensor  #: (B, L) int64, filled up with ``[PAD]``
    video: Tensor  #: (B, N) int64, (B, N, dim), or (B, T, 3, H, W) in [0, 1]
    video_there: Tensor | None  #: (B, N) bool; ``None`` for frames, which are all there
    labels: Tensor  #: (B,) int64
    texts: tuple[str, ...]  #: the sentences

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        there = None if self.video_there is None else self.video_there.to(device)
        return Batch(self.text.to(device), self.video.to(device), there, self.labels.to(device), self.texts)


class Batches:
    """Draws batches from a library; batch ``step`` of a seed is always the same.

    Args:
        library: to draw from.
        vocabulary: for its captions.
        visual: what the model takes.
        config: how.
        seed: of everything random.
    """

    def __init__(
        self, library: Library, vocabulary: Vocabulary, visual: VisualConfig, config: BatchConfig, seed: int = 0
    ) -> None:
        self.library, self.vocabulary, self.visual, self.config, self.seed = library, vocabulary, visual, config, seed
        self.pieces = {text: vocabulary.encode(text) for text in library.texts}

    def __len__(self) -> int:
        return len(self.library.segments)

    def draw(self, step: int) -> Batch:
        """Each segment begins a sample once before any does again."""
        config, random = self.config, np.random.default_rng([self.seed, step, 1])
        places = range(step * config.batch, (step + 1) * config.batch)
        samples = [self._sample(_order(len(self), self.seed, p // len(self))[p % len(self)], random) for p in places]
        return self.collate(samples)

    def whole(self, segments: Sequence[Segment]) -> Batch:
        """Segments as they are, nothing random: of frames, as many as a clip has, spread evenly."""
        return self.collate([(s.text, self.fit(self.library.part(s), None), s.label) for s in segments])

    def other_texts(self, texts: Sequence[str], step: int) -> list[str]:
        """For each text another one of the library, at random; the same where there is only one."""
        random, known = np.random.default_rng([self.seed, step, 2]), self.library.texts
        others = []
        for text in texts:
            candidates = [other for other in known if other != text]
            others.append(candidates[random.integers(len(candidates))] if candidates else text)
        return others

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Pieces of sentences, (B, L)."""
        pieces = [self.pieces[text] if text in self.pieces else self.vocabulary.encode(text) for text in texts]
        return self.vocabulary.pad([p[: self.config.max_text] for p in pieces])

    def collate(self, samples: Sequence[tuple[str, Tensor, int]]) -> Batch:
        """Samples of a text, units and a label in one batch."""
        texts = tuple(text for text, _, _ in samples)
        videos = [units for _, units, _ in samples]
        there = None
        if self.visual.kind == "frames":
            video = torch.stack(videos).float() / 255
        else:
            lengths = torch.tensor([len(v) for v in videos])
            there = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, N)
            fill = self.visual.n_tokens if self.visual.kind == "tokens" else 0
            video = videos[0].new_full((len(videos), int(lengths.max()), *videos[0].shape[1:]), fill)
            for row, units in zip(video, videos, strict=True):
                row[: len(units)] = units
        return Batch(self.encode(texts), video, there, torch.tensor([label for _, _, label in samples]), texts)

    def fit(self, units: Tensor, random: np.random.Generator | None) -> Tensor:
        """Thin out and cut units to what the model takes; without a generator evenly."""
        config, n = self.config, len(units)
        if self.visual.kind == "frames":
            length = self.visual.frames
            if random is None or n <= length:
                index = spread(n, length)
            else:
                rate = random.integers(1, min(config.subsample, n // length) + 1)
                index = random.integers(n - rate * (length - 1)) + rate * np.arange(length)
            return units[torch.from_numpy(index)]
        if random is not None:
            rate = random.integers(1, max(1, min(config.subsample, n // _LEAST)) + 1)
            units = units[random.integers(rate) :: rate]
            n = len(units)
        start = 0 if random is None or n <= config.max_video else random.integers(n - config.max_video + 1)
        return units[start : start + config.max_video]

    def _sample(self, index: int, random: np.random.Generator) -> tuple[str, Tensor, int]:
        segments, first = self.library.segments, self.library.segments[index]
        text, parts, last = first.text, [self.library.part(first)], index
        while random.random() < self.config.concatenate:
            last += 1
            if last == len(segments) or segments[last].video != first.video:
                break
            text += " " + segments[last].text
            parts.append(self.library.part(segments[last]))
        return text, self.fit(torch.cat(parts), random), first.label


def spread(n: int, length: int) -> np.ndarray:
    """``length`` of ``n`` units, evenly, the first and the last among them."""
    return np.linspace(0, n - 1, length).round().astype(np.int64)


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(n)
