"""Keys and values go round: each process attends to a slab of them at a time and merges what it gets.

In the rotation's step s a process sends what rank + s needs of its keys and values, and receives what it needs of
rank - s; where a pattern reaches only neighbouring frames, that is a few frames of neighbours, and nothing of others.
The next step's slab is on its way while this one's is attended. Nothing of other processes is kept for the backward:
their slabs go round once more, and their gradients travel back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..functional import merge_attentions
from ..functional import spatiotemporal_attention as attend
from ..patterns import Pattern
from .exchange import Pending, Ranks
from .part import Frames, Part, needed

SEED_STEP = 0x2545F4914F6CDD1D
Returned = tuple[Pending, slice, list[Tensor | None]]  # the transfer, frames of this process, gradients of k and v


@dataclass(frozen=True)
class Ring:
    """One attention call on all processes, but for the tensors that it is differentiated by."""

    ranks: Ranks
    pattern: Pattern
    space: tuple[int, int]
    heads: int
    kv_mask: Tensor | None  # (B, N of this rank) bool
    rotary: Tensor | None  # (N of all ranks, dim / 2, 2)
    seed: int
    options: dict[str, Any] = field(default_factory=dict)  # as for the operator

    @property
    def n_frames(self) -> int:
        return sum(self.ranks.frames)

    @property
    def mine(self) -> Frames:
        return self.ranks.bounds[self.ranks.rank]

    def slab(self, of: int, by: int) -> Frames:
        """The frames that rank ``of`` holds and rank ``by`` needs; of its own it takes all."""
        bounds = self.ranks.bounds
        if of == by:
            return bounds[of]
        return needed(self.pattern, self.n_frames, self.space, self.heads, bounds[by], bounds[of])

    def step(self, number: int) -> tuple[int, int]:
        """Whom this process receives from, and whom it sends to."""
        rank, world = self.ranks.rank, self.ranks.world
        return (rank - number) % world, (rank + number) % world

    def tokens(self, frames: Frames) -> slice:
        """Where the tokens of frames lie among those of all frames."""
        size = self.space[0] * self.space[1]
        return slice(frames[0] * size, frames[1] * size)

    def local(self, frames: Frames) -> slice:
        """Where frames of this process lie among its own."""
        return slice(frames[0] - self.mine[0], frames[1] - self.mine[0])

    def rotate(self, target: int, leaving: list[Tensor], source: int, arriving: list[Tensor]) -> Pending:
        """Send to one rank and receive from another; nothing of no frames."""
        sends = [(target, x) for x in leaving if x.shape[1]]
        return self.ranks.post(sends, [(source, x) for x in arriving if x.shape[1]])


@dataclass
class Slab:
    """Keys and values of some frames, here or on their way here."""

    source: int
    frames: Frames
    tensors: list[Tensor]  # k, v, and what is masked
    arriving: Pending | None = None

    @property
    def empty(self) -> bool:
        return self.frames[0] == self.frames[1]


def slabs(ring: Ring, k: Tensor, v: Tensor) -> Iterator[Slab]:
    """The slab of every step, of which some may be empty; the next is asked for before one is handed out."""
    own = [k, v] if ring.kv_mask is None else [k, v, ring.kv_mask.unflatten(1, k.shape[1:4]).to(torch.uint8)]

    def ask(number: int) -> Slab:
        source, target = ring.step(number)
        if number == 0:
            return Slab(source, ring.mine, own)
        frames = ring.slab(source, ring.ranks.rank)
        arriving = [x.new_empty((x.shape[0], frames[1] - frames[0], *x.shape[2:])) for x in own]
        leaving = ring.local(ring.slab(ring.ranks.rank, target))
        return Slab(source, frames, arriving, ring.rotate(target, [x[:, leaving] for x in own], source, arriving))

    following = ask(0)
    for number in range(ring.ranks.world):
        slab = following
        if slab.arriving is not None:
            slab.arriving.wait()
        if number + 1 < ring.ranks.world:
            following = ask(number + 1)
        yield slab


def attend_slab(ring: Ring, slab: Slab, inputs: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """This process' queries and one slab: out (B, T, H, W, heads, dim_v) and lse (B, heads, N)."""
    q, k, v, extra_k, extra_v, relative_bias, bias = inputs
    assert q is not None and k is not None and v is not None
    part = Part(ring.pattern, ring.n_frames, ring.mine, slab.frames)
    if relative_bias is not None:
        relative_bias = part.relative_bias(relative_bias)
    rotary = ring.rotary
    out, lse = attend(
        q,
        k,
        v,
        part,
        rotary=None if rotary is None else rotary[ring.tokens(ring.mine)],
        kv_rotary=None if rotary is None else rotary[ring.tokens(slab.frames)],
        bias=None if bias is None else bias[..., ring.tokens(slab.frames)],
        relative_bias=relative_bias,
        extra_k=extra_k,
        extra_v=extra_v,
        kv_mask=None if ring.kv_mask is None else slab.tensors[2].flatten(1).bool(),
        # Masks of dropout count tokens from 0 in every call: another seed for each.
        seed=(ring.seed + (ring.ranks.rank * ring.ranks.world + slab.source) * SEED_STEP) % 2**63,
        return_lse=True,
        **(ring.options if extra_k is not None else ring.options | {"extra_mask": None}),
    )
    return out, lse


def inputs_of(ring: Ring, slab: Slab, tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """What the operator takes for a slab: text counts once, with this process' own frames."""
    q, extra_k, extra_v, relative_bias, bias = tensors
    if slab.source != ring.ranks.rank:
        extra_k = extra_v = None
    return [q, slab.tensors[0], slab.tensors[1], extra_k, extra_v, relative_bias, bias]


class RingAttention(torch.autograd.Function):
    """(q, k, v, extra_k, extra_v, relative_bias, bias) of this process to out and lse."""

    @staticmethod
    def forward(
        ctx: Any,
        ring: Ring,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_k: Tensor | None,
        extra_v: Tensor | None,
        relative_bias: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        others = (q, extra_k, extra_v, relative_bias, bias)
        out = lse = None
        for slab in slabs(ring, k, v):
            if slab.empty:
                continue
            part, part_lse = attend_slab(ring, slab, inputs_of(ring, slab, others))
            if out is None or lse is None:  # the sum over slabs is taken in float32, whatever they are
                out, lse = part if part.dtype is torch.float64 else part.float(), part_lse
            else:
                out, lse = merge_attentions([out, part], [lse, part_lse])
        assert out is not None and lse is not None
        ctx.ring = ring
        ctx.save_for_backward(q, k, v, extra_k, extra_v, relative_bias, bias, out, lse)
        return out.to(q.dtype), lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        ring: Ring = ctx.ring
        q, k, v, *others, out, lse = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        sums: list[Tensor | None] = [
            torch.zeros_like(x, dtype=out.dtype) if x is not None and want else None
            for x, want in zip((q, k, v, *others), wanted, strict=True)
        ]
        due: list[Returned] = []  # gradients on their way home: of one step, while the next one is computed
        for number, slab in enumerate(slabs(ring, k, v)):
            inputs = inputs_of(ring, slab, (q, *others))
            grads = _gradients(ring, slab, inputs, wanted, (out, lse), (grad_out, grad_lse))
            home = number == 0
            for index in range(7) if home else (0, 5, 6):  # q, relative_bias, bias
                _add(sums[index], grads[index])
            if not home:
                due.append(_give_back(ring, number, slab, grads[1:3], (k, v), wanted[1:3]))
            if len(due) > 1:
                _collect(due.pop(0), sums[1:3])
        for returned in due:
            _collect(returned, sums[1:3])
        tensors = (q, k, v, *others)
        return None, *(g if x is None or g is None else g.to(x.dtype) for g, x in zip(sums, tensors, strict=True))


def _gradients(
    ring: Ring,
    slab: Slab,
    inputs: list[Tensor | None],
    wanted: Sequence[bool],
    whole: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor],
) -> list[Tensor | None]:
    """What the inputs of one slab get of the gradients of ``whole``, the merged output and log-sum-exp."""
    leaves = [None if x is None else x.detach().requires_grad_(want) for x, want in zip(inputs, wanted, strict=True)]
    learned = [x for x in leaves if x is not None and x.requires_grad]
    if slab.empty or not learned:
        return [None] * len(leaves)
    with torch.enable_grad():
        out, lse = attend_slab(ring, slab, leaves)
    # out of whole = sum of share * out, share = exp(lse - lse of whole)
    share = torch.where(whole[1] == -torch.inf, 0, (lse.detach() - whole[1]).exp())  # (B, heads, N)
    share_of_row = share.transpose(1, 2).unflatten(1, out.shape[1:4])[..., None]  # (B, T, H, W, heads, 1)
    grad_out = grads[0].to(whole[0].dtype)
    change = ((out.detach() - whole[0]) * grad_out).sum(-1).flatten(1, 3).transpose(1, 2)  # (B, heads, N)
    incoming = (share_of_row * grad_out).to(out.dtype), share * (grads[1] + change)
    found = iter(torch.autograd.grad((out, lse), learned, incoming, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in leaves]


def _give_back(
    ring: Ring,
    number: int,
    slab: Slab,
    grads: Sequence[Tensor | None],
    own: tuple[Tensor, Tensor],
    wanted: Sequence[bool],
) -> Returned:
    """Send a slab's gradients to whom it came from, and receive those of the slab that went out in the same step."""
    source, target = ring.step(number)
    frames = ring.local(ring.slab(ring.ranks.rank, target))
    leaving = [
        torch.zeros_like(x) if grad is None else grad
        for x, grad, want in zip(slab.tensors, grads, wanted, strict=False)
        if want
    ]
    arriving = [torch.empty_like(x[:, frames]) if want else None for x, want in zip(own, wanted, strict=True)]
    return ring.rotate(source, leaving, target, [x for x in arriving if x is not None]), frames, arriving


def _collect(returned: Returned, sums: Sequence[Tensor | None]) -> None:
    transfer, frames, arrived = returned
    transfer.wait()
    for total, grad in zip(sums, arrived, strict=True):
        _add(None if total is None else total[:, frames], grad)


def _add(total: Tensor | None, x: Tensor | None) -> None:
    if total is not None and x is not None:
        total += x
