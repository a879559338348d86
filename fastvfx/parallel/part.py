"""A pattern between some frames of queries and some frames of keys; which frames a process needs of another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..patterns import Pattern
from ..patterns.axis import Axis
from ..patterns.spans import Grid

Frames = tuple[int, int]  # the first, and the one behind the last


@dataclass(frozen=True)
class Part(Pattern):
    """``whole`` over ``n_frames``, for queries of the frames ``queries`` and keys of the frames ``keys``."""

    whole: Pattern
    n_frames: int
    queries: Frames
    keys: Frames

    def heads(self, n_heads: int | None) -> tuple[tuple[Pattern, ...], tuple[int, ...]]:
        different, of_head = self.whole.heads(n_heads)
        return tuple(replace(self, whole=pattern) for pattern in different), of_head

    def axes(self, grid: Grid, kv_grid: Grid, device: torch.device) -> tuple[Axis, Axis, Axis]:
        t, h, w = self.whole.axes((self.n_frames, *grid[1:]), (self.n_frames, *kv_grid[1:]), device)
        return self._cut(t), h, w

    def _cut(self, t: Axis) -> Axis:
        first, behind = self.keys
        start, end = t.spans[slice(*self.queries)].unbind(-1)
        steps = ((first - start).clamp(min=0) + t.dilation - 1) // t.dilation  # the phase of a dilated span stays
        start, end = start + steps * t.dilation - first, end.clamp(max=behind) - first
        end = end.clamp(min=0)
        spans = torch.stack([torch.minimum(start, end), end], -1).to(torch.int32)
        sink = max(min(t.sink, behind) - first, 0)
        reach = t.reach + abs(self.shift(t.dilation))
        return replace(t, spans=spans, n_keys=behind - first, sink=sink, reach=reach)

    def shift(self, dilation: int) -> int:
        """What the distance from query to key, in dilations, is more here than in the whole video.

        Queries count as the last frames of the keys.
        """
        return (self.queries[1] - self.keys[1]) // dilation

    def relative_bias(self, table: Tensor) -> Tensor:
        """The table of the whole video, moved to the distances here; what is new at its ends is never read.

        Of patterns that are not dilated in time.
        """
        shift = self.shift(1)
        return F.pad(table, (0, 0, 0, 0, abs(shift) + shift, abs(shift) - shift)) if shift else table


@lru_cache(maxsize=256)
def needed(
    pattern: Pattern, n_frames: int, space: tuple[int, int], heads: int, queries: Frames, keys: Frames
) -> Frames:
    """The frames among ``keys`` that one of ``queries`` attends, and all between them; empty if there are none."""
    used = torch.zeros(keys[1] - keys[0], dtype=torch.bool)
    for spans in pattern.spans((n_frames, *space), n_heads=heads):
        used |= spans.masks()[0][:, slice(*queries), slice(*keys)].flatten(0, 1).any(0)
    frames = used.nonzero()[:, 0] + keys[0]
    return (int(frames[0]), int(frames[-1]) + 1) if len(frames) else (keys[0], keys[0])


def dilations(pattern: Pattern, n_frames: int, space: tuple[int, int], heads: int) -> set[int]:
    """Those of the time axis, over all heads."""
    return {spans.dilation[0] for spans in pattern.spans((n_frames, *space), n_heads=heads)}
