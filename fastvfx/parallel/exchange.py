"""What goes from process to process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The processes of a group, by their number within it, and which frames each of them holds."""

    group: Any
    rank: int
    frames: tuple[int, ...]  # how many, of every rank

    @property
    def world(self) -> int:
        return len(self.frames)

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """First frame of each rank, and the one behind its last."""
        return tuple(pairwise(accumulate(self.frames, initial=0)))

    def post(self, sends: Iterable[tuple[int, Tensor]], receives: Iterable[tuple[int, Tensor]]) -> Pending:
        """Start sending tensors to ranks and receiving from ranks, each pair of ranks in the order given."""
        kept = [(rank, x.contiguous()) for rank, x in sends]
        ops = [self._op(dist.isend, *each) for each in kept] + [self._op(dist.irecv, *each) for each in receives]
        return Pending(dist.batch_isend_irecv(ops) if ops else [], kept)

    def _op(self, kind: Any, rank: int, x: Tensor) -> dist.P2POp:
        return dist.P2POp(kind, x, rank if self.group is None else dist.get_global_rank(self.group, rank), self.group)


@dataclass
class Pending:
    """Transfers under way."""

    works: list[Any]
    sent: list[tuple[int, Tensor]]  # alive until they have left

    def wait(self) -> None:
        for work in self.works:
            work.wait()


def group_of(group: Any) -> tuple[int, int]:
    """This process' rank in the group, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "fastvfx.parallel: expected torch.distributed to be initialised, got no process group; call "
            "torch.distributed.init_process_group in every process first"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("fastvfx.parallel: expected this process to be in group, got a group without it")
    return rank, dist.get_world_size(group)


def share(n_frames: int, group: Any = None) -> slice:
    """Which of ``n_frames`` are this process': as equal shares as there can be, in the order of the ranks.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        ValueError: fewer frames than processes.
    """
    rank, world = group_of(group)
    if n_frames < world:
        raise ValueError(f"fastvfx.parallel.share: expected a frame for each of {world} processes, got {n_frames}")
    return slice(n_frames * rank // world, n_frames * (rank + 1) // world)


def frames_to_heads(x: Tensor, ranks: Ranks) -> Tensor:
    """(B, frames of this rank, H, W, heads, dim) to (B, all frames, H, W, this rank's heads, dim); differentiable."""
    return _Transpose.apply(x, ranks, True)


def heads_to_frames(x: Tensor, ranks: Ranks) -> Tensor:
    """The inverse of :func:`frames_to_heads`."""
    return _Transpose.apply(x, ranks, False)


class _Transpose(torch.autograd.Function):
    """Every process sends a part to every other; its derivative does the inverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, to_heads: bool) -> Tensor:
        ctx.ranks, ctx.to_heads = ranks, to_heads
        parts: Sequence[Tensor] = x.chunk(ranks.world, 4) if to_heads else x.split(ranks.frames, 1)
        shape = list(parts[ranks.rank].shape)
        pieces = []
        for rank in range(ranks.world):
            shape[1] = ranks.frames[rank] if to_heads else ranks.frames[ranks.rank]
            pieces.append(x.new_empty(shape))
        others = [rank for rank in range(ranks.world) if rank != ranks.rank]
        pieces[ranks.rank] = parts[ranks.rank]
        ranks.post([(rank, parts[rank]) for rank in others], [(rank, pieces[rank]) for rank in others]).wait()
        return torch.cat(pieces, 1 if to_heads else 4)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Transpose.apply(grad, ctx.ranks, not ctx.to_heads), None, None


def all_frames(x: Tensor, ranks: Ranks) -> Tensor:
    """(B, frames of this rank, ...) to (B, all frames, ...), without a gradient."""
    pieces = [x.new_empty((x.shape[0], n, *x.shape[2:])) for n in ranks.frames]
    pieces[ranks.rank] = x
    others = [rank for rank in range(ranks.world) if rank != ranks.rank]
    ranks.post([(rank, x) for rank in others], [(rank, pieces[rank]) for rank in others]).wait()
    return torch.cat(pieces, 1)
