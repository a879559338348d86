"""What is learned from: videos as rows of units, and which words belong to which of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ...data import Captions, DataError


@dataclass(frozen=True)
class Segment:
    """A part of a video and its caption.

    Attributes:
        video: its number in the library.
        start, end: units.
        text: the caption.
        label: number of its class, or -1.
    """

    video: int
    start: int
    end: int
    text: str
    label: int = -1


@dataclass(frozen=True)
class Library:
    """Videos and their captions.

    Attributes:
        names: of the videos.
        units: of each: tokens (n,), features (n, dim), or frames (n, 3, H, W) uint8.
        segments: video after video, in order of time.
        labels: names of the classes.
        broken: what was wrong with captions that were left out.
    """

    names: tuple[str, ...]
    units: tuple[Tensor, ...]
    segments: tuple[Segment, ...]
    labels: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    def split(self, hold_out: float = 0.0, test_every: int = 0) -> tuple[Library, Library]:
        """What to learn from, and what not: two libraries of the same videos.

        Args:
            hold_out: the last part of each segment, in [0, 1), that is not learned from. A segment keeps a unit at
                least, so short ones hold nothing out.
            test_every: no segment of every N-th video is learned from; 0 for none.
        """
        train, test = [], []
        for segment in self.segments:
            if test_every and segment.video % test_every == 0:
                test.append(segment)
                continue
            n = segment.end - segment.start
            cut = segment.start + max(1, round((1 - hold_out) * n))
            train.append(replace(segment, end=cut))
            if cut < segment.end:
                test.append(replace(segment, start=cut))
        return replace(self, segments=tuple(train)), replace(self, segments=tuple(test))

    def part(self, segment: Segment) -> Tensor:
        """Its units."""
        return self.units[segment.video][segment.start : segment.end]

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions, each once, in order."""
        return tuple(dict.fromkeys(segment.text for segment in self.segments))

    def fingerprint(self) -> str:
        """Of names, captions and times: a training goes on only with what it began with."""
        told = [self.names, [(s.video, s.start, s.end, s.text, s.label) for s in self.segments]]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def make_library(captions: Captions, units: dict[str, Tensor], rate: float, *, skip_broken: bool = False) -> Library:
    """Bring captions and units together.

    Args:
        captions: those of videos that are not among ``units`` are left out.
        units: of each video by its name.
        rate: units per second.
        skip_broken: leave out captions behind the end of their videos instead of raising.

    Raises:
        DataError: a caption begins behind the end of its video, or nothing is left.
    """
    entries = [entry for entry in captions.entries if entry.name in units]
    names = tuple(dict.fromkeys(entry.name for entry in entries))
    classes = tuple(sorted({entry.label for entry in entries if entry.label is not None}))
    segments, broken = [], []
    for entry in entries:
        n = len(units[entry.name])
        start = int(entry.start * rate + 1e-6)
        end = n if entry.end is None else min(n, int(np.ceil(entry.end * rate - 1e-6)))
        if start >= n:
            broken.append(f"{entry.where}: begins at {entry.start:g} s, {entry.name} ends at {n / rate:.2f} s")
            continue
        label = -1 if entry.label is None else classes.index(entry.label)
        segments.append(Segment(names.index(entry.name), start, max(end, start + 1), entry.text, label))
    if broken and not skip_broken:
        raise DataError(broken[0] + (f" (and {len(broken) - 1} more such captions)" if len(broken) > 1 else ""))
    if not segments:
        raise DataError(f"{captions.path}: none of its videos can be used")
    return Library(names, tuple(units[name] for name in names), tuple(segments), classes, tuple(broken))


def single(name: str, units: Tensor, text: str = "") -> Library:
    """A library of one video."""
    return Library((name,), (units,), (Segment(0, 0, len(units), text),))
