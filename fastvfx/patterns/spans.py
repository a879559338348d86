"""A pattern resolved for one grid: spans of all three axes and of every head, as the kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .axis import Axis, larger, span_mask

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Spans:
    """Which keys the queries of a grid may attend; P different patterns among the heads.

    Key (j_t, j_h, j_w) is allowed for query (i_t, i_h, i_w) iff each axis allows it (see :class:`.axis.Axis`).
    """

    t: Tensor  # (P, T_q, 2) int32: [start, end) of each query's keys
    h: Tensor  # (P, H_q, 2)
    w: Tensor  # (P, W_q, 2)
    of_head: Tensor  # (heads,) int32: which of the P
    grid: Grid
    kv_grid: Grid
    dilation: Grid
    sink: Grid
    reach: Grid  # how many dilations the furthest allowed key is away from its query
    whole: tuple[bool, bool, bool]  # every query may attend every key of the axis
    heads: tuple[int, ...] | None = None  # these heads only; None: all

    @property
    def axes(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.t, self.h, self.w

    def masks(self) -> list[Tensor]:
        """For each axis, (P, L_q, L_k) bool."""
        rows = zip(self.axes, self.kv_grid, self.dilation, self.sink, strict=True)
        return [span_mask(spans, n, dilation, sink) for spans, n, dilation, sink in rows]

    def mask(self) -> Tensor:
        """(P, N_q, N_k) bool."""
        return reduce(_outer, self.masks())


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Of (P, A, X) and (P, B, Y), (P, A B, X Y)."""
    return (a[:, :, None, :, None] & b[:, None, :, None, :]).flatten(3, 4).flatten(1, 2)


def stack(heads: Sequence[tuple[Axis, Axis, Axis]], of_head: Sequence[int], grid: Grid, kv_grid: Grid) -> list[Spans]:
    """Spans of the different patterns ``heads``, of which head n takes ``of_head[n]``.

    All of one :class:`Spans` have the same dilations and sinks: there is one for each combination.
    """
    kinds: dict[tuple[Grid, Grid], list[int]] = {}
    for p, axes in enumerate(heads):
        dilation, sink = (axes[0].dilation, axes[1].dilation, axes[2].dilation), tuple(a.sink for a in axes)
        kinds.setdefault((dilation, (sink[0], sink[1], sink[2])), []).append(p)
    parts = []
    for (dilation, sink), members in kinds.items():
        t, h, w = (torch.stack([heads[p][axis].spans for p in members]) for axis in range(3))
        reach = tuple(reduce(larger, [heads[p][axis].reach for p in members]) for axis in range(3))
        whole = tuple(all(heads[p][axis].whole for p in members) for axis in range(3))
        mine = tuple(n for n, p in enumerate(of_head) if p in members)
        index = torch.tensor([members.index(of_head[n]) for n in mine], dtype=torch.int32, device=t.device)
        parts.append(
            Spans(
                t,
                h,
                w,
                index,
                grid,
                kv_grid,
                dilation,
                sink,
                (reach[0], reach[1], reach[2]),
                (whole[0], whole[1], whole[2]),
                None if len(mine) == len(of_head) else mine,
            )
        )
    return parts
