"""Attention of a video whose frames are spread over processes: what is checked, and which way it is done."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _check
from ..functional import spatiotemporal_attention as attend
from ..patterns import Blocks, Both, Full, Pattern, PerHead
from .exchange import Ranks, all_frames, frames_to_heads, group_of, heads_to_frames
from .part import dilations
from .ring import SEED_STEP, Ring, RingAttention

OP = "parallel.spatiotemporal_attention"


def spatiotemporal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | None = None,
    *,
    group: Any = None,
    method: Literal["ring", "heads"] = "ring",
    scale: float | None = None,
    rotary: Tensor | None = None,
    rotary_pairs: Literal["neighbours", "halves"] = "neighbours",
    bias: Tensor | None = None,
    relative_bias: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    extra_mask: Tensor | None = None,
    kv_mask: Tensor | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    softcap: float = 0.0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`fastvfx.spatiotemporal_attention` of a video whose frames are spread over the processes of a group.

    Every process of the group calls it, with its own frames, in the order of the ranks; how many they are may differ.

    Args:
        q, k, v: ``(batch, T of this process, H, W, heads, dim)``, and the same of keys and values.
        pattern: over all frames of the video.
        group: of torch.distributed; ``None`` for all processes.
        method: ``"ring"`` (Liu et al., "Ring Attention with Blockwise Transformers", 2023): keys and values go from
            process to process, only the frames that the pattern needs; any number of heads, memory of one more slab of
            keys and values; the backward attends once more. ``"heads"`` (Jacobs et al., "DeepSpeed Ulysses", 2023):
            every process gets all frames of its share of the heads, attends once, and gives them back; the number of
            processes divides ``heads``, and divides ``kv_heads`` or is a multiple of it.
        rotary: of **all** tokens of the video, ``(N, dim / 2, 2)``, for queries and keys.
        bias: ``(1 or batch, heads, tokens of this process, all tokens)``.
        relative_bias, extra_k, extra_v, extra_mask: the same in every process. Each gets the part of the gradient that
            comes from its own queries (``"ring"``) or heads (``"heads"``); the sum over processes is the gradient, as
            of every parameter in such training.
        kv_mask: ``(batch, tokens of this process)`` bool.
        dropout, seed: weights are dropped independently, but others than in one process.
        scale, rotary_pairs, softcap, return_lse: as of the operator.

    Returns:
        The results of this process' queries, and ``(batch, heads, tokens of this process)`` with ``return_lse``. They
        and all gradients equal those of one process with all frames, but for rounding. Once differentiable with
        ``"ring"``, any number of times with ``"heads"``.

    The processes first compare 16 bytes that say what each was given. Where they do not fit each other, all raise.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        TypeError, ValueError: an argument of this process is wrong, or of another, or they differ in what must be the
            same; the pattern does not fit the whole grid; the heads do not fit the processes; ``Blocks``, or a
            ``relative_bias`` of a pattern dilated in time, with ``"ring"``.
    """
    rank, world = group_of(group)
    call = Call(
        q, k, v, Full() if pattern is None else pattern, method, Learned(extra_k, extra_v, relative_bias, bias), rotary,
        kv_mask, extra_mask, seed,
        {"scale": scale, "rotary_pairs": rotary_pairs, "dropout": dropout, "softcap": softcap},
    )  # fmt: skip
    refusal: TypeError | ValueError | None = None
    try:
        _check_own(call, group, world)
        said, own_frames = _description(call), q.shape[1]
    except (TypeError, ValueError) as error:  # raised when the others know, who would wait for ever
        refusal, said, own_frames = error, f"refused: {error}", 0
    frames = _agreed(group, world, own_frames, said, refusal)
    n = sum(frames) * q.shape[2] * q.shape[3]
    for name, x, axis in (("rotary", rotary, 0), ("bias", bias, 3)):
        if x is not None and x.shape[axis] != n:
            raise ValueError(
                f"fastvfx.{OP}: expected axis {axis} of {name} to be the {n} tokens of all processes, got "
                f"{tuple(x.shape)}"
            )
    run = _by_heads if method == "heads" else _by_ring
    out, lse = run(call, Ranks(group, rank, frames))
    return (out, lse) if return_lse else out


class Learned(NamedTuple):
    """What attention is differentiated by besides queries, keys and values; the order is that of the operator."""

    extra_k: Tensor | None
    extra_v: Tensor | None
    relative_bias: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class Call:
    """What one process was given."""

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Pattern
    method: str
    learned: Learned
    rotary: Tensor | None
    kv_mask: Tensor | None
    extra_mask: Tensor | None
    seed: int
    numbers: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments that reach the operator as they are."""
        return self.numbers | {"extra_mask": self.extra_mask}


def _by_ring(call: Call, ranks: Ranks) -> tuple[Tensor, Tensor]:
    q, pattern = call.q, call.pattern
    space, heads = (q.shape[2], q.shape[3]), q.shape[4]
    table = call.learned.relative_bias
    if table is not None and (steps := dilations(pattern, sum(ranks.frames), space, heads)) != {1}:
        # Distances between cuts of the video need not be multiples of the dilation, as the operator counts them.
        raise ValueError(
            f"fastvfx.{OP}: expected method='heads' with a relative_bias of a pattern that is dilated in time, got "
            f"'ring' and dilations {sorted(steps)}"
        )
    ring = Ring(ranks, pattern, space, heads, call.kv_mask, call.rotary, call.seed, call.options)
    return RingAttention.apply(ring, q, call.k, call.v, *call.learned)


def _by_heads(call: Call, ranks: Ranks) -> tuple[Tensor, Tensor]:
    world, heads, kv_heads = ranks.world, call.q.shape[4], call.k.shape[4]
    tokens = call.q.shape[1:4]
    mine = slice(heads * ranks.rank // world, heads * (ranks.rank + 1) // world)
    copies = max(world // kv_heads, 1)  # of each head of keys, so that there is one for every process
    kv_mine = slice(kv_heads * copies * ranks.rank // world, kv_heads * copies * (ranks.rank + 1) // world)
    k, v = (x.repeat_interleave(copies, 4) if copies > 1 else x for x in (call.k, call.v))
    extra_k, extra_v, table, bias = call.learned
    extra_k, extra_v = (
        None if x is None else x.repeat_interleave(copies, 2)[:, :, kv_mine] for x in (extra_k, extra_v)
    )
    if bias is not None:  # (1 | B, heads, own tokens, all tokens) travels like queries of so many channels
        bias = frames_to_heads(bias.transpose(1, 2).unflatten(1, tokens), ranks).flatten(1, 3).transpose(1, 2)
    out, lse = attend(
        frames_to_heads(call.q, ranks),
        frames_to_heads(k, ranks),
        frames_to_heads(v, ranks),
        _of_heads(call.pattern, mine),
        rotary=call.rotary,
        bias=bias,
        relative_bias=None if table is None else table[mine],
        extra_k=extra_k,
        extra_v=extra_v,
        kv_mask=None if call.kv_mask is None else all_frames(call.kv_mask.unflatten(1, tokens), ranks).flatten(1),
        seed=(call.seed + ranks.rank * SEED_STEP) % 2**63,  # the mask of dropout counts heads from 0 in every process
        return_lse=True,
        **call.options,
    )
    lse = heads_to_frames(lse.transpose(1, 2).unflatten(1, out.shape[1:4])[..., None], ranks)
    return heads_to_frames(out, ranks), lse[..., 0].flatten(1, 3).transpose(1, 2)


def _of_heads(pattern: Pattern, heads: slice) -> Pattern:
    """The pattern of some of the heads."""
    if isinstance(pattern, PerHead):
        return PerHead(pattern.patterns[heads])
    if isinstance(pattern, Both):
        return _of_heads(pattern.a, heads) & _of_heads(pattern.b, heads)
    if isinstance(pattern, Blocks) and pattern.indices.shape[1] > 1:
        return Blocks(pattern.block, pattern.indices[:, heads])
    return pattern


def _check_own(call: Call, group: Any, world: int) -> None:
    """What one process can tell by itself, and the operator would find only after others have begun to wait."""
    q, k, v, pattern, method, bias, kv_mask = (
        call.q, call.k, call.v, call.pattern, call.method, call.learned.bias, call.kv_mask,
    )  # fmt: skip
    _check.is_float(OP, q=q, k=k, v=v, **call.learned._asdict())
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 6 or x.shape[:4] != q.shape[:4] or 0 in x.shape:
            raise ValueError(
                f"fastvfx.{OP}: expected {name} of shape (batch, T, H, W, heads, dim), T the frames of this process, "
                f"the same of q, k and v and at least one, got {tuple(x.shape)}"
            )
    if dist.get_backend(group) == "nccl" and q.device.type != "cuda":
        raise ValueError(
            f"fastvfx.{OP}: expected q on a GPU, as the group's backend nccl needs it, got it on {q.device}"
        )
    if not isinstance(pattern, Pattern):
        raise TypeError(f"fastvfx.{OP}: expected pattern to be one of fastvfx.patterns, got {pattern!r}")
    if method not in ("ring", "heads"):
        raise ValueError(f"fastvfx.{OP}: expected method to be 'ring' or 'heads', got {method!r}")
    if method == "ring" and pattern.split()[1] is not None:
        raise ValueError(f"fastvfx.{OP}: expected method='heads' with a pattern of Blocks, got 'ring'")
    batch, heads, kv_heads, tokens = q.shape[0], q.shape[4], k.shape[4], q.shape[1:4].numel()
    if method == "heads" and (heads % world or (kv_heads % world and world % kv_heads)):
        raise ValueError(
            f"fastvfx.{OP}: expected heads that are a multiple of the {world} processes, and kv_heads that are one or "
            f"divide them, got {heads} and {kv_heads}; method='ring' takes any"
        )
    if bias is not None and (
        bias.dim() != 4 or bias.shape[0] not in (1, batch) or tuple(bias.shape[1:3]) != (heads, tokens)
    ):
        raise ValueError(
            f"fastvfx.{OP}: expected bias of shape (1 or {batch}, {heads}, {tokens}, all tokens), got "
            f"{tuple(bias.shape)}"
        )
    if kv_mask is not None:
        _check.has_shape(OP, "kv_mask", kv_mask, (batch, tokens), lambda: f"(batch, own tokens) = {(batch, tokens)}")


def _description(call: Call) -> str:
    """Everything that must be the same in every process, in words."""

    def told(x: Tensor | None, own: int | None = None) -> str:
        """``own``: the axis that may differ."""
        if x is None:
            return "none"
        shape = ["*" if axis == own else str(n) for axis, n in enumerate(x.shape)]
        learns = " with a gradient" if x.requires_grad and torch.is_grad_enabled() else ""
        return f"{str(x.dtype).removeprefix('torch.')} ({', '.join(shape)}){learns}"

    static, blocks = call.pattern.split()
    words = {
        "method": call.method,
        "pattern": str(static),
        "blocks": told(None if blocks is None else blocks.indices),
        **{name: told(getattr(call, name), 1) for name in ("q", "k", "v", "kv_mask")},
        **{name: told(x, 2 if name == "bias" else None) for name, x in call.learned._asdict().items()},
        **{name: told(getattr(call, name)) for name in ("rotary", "extra_mask")},
        "seed": call.seed,
        **call.numbers,
    }
    return "; ".join(f"{name} {value}" for name, value in words.items())


def _agreed(group: Any, world: int, frames: int, said: str, refusal: TypeError | ValueError | None) -> tuple[int, ...]:
    """The frames of every process, if all say the same and none has refused its arguments; else all raise."""
    digest = int.from_bytes(blake2b(said.encode(), digest_size=7).digest(), "big")
    mine = torch.tensor([frames, digest], device="cuda" if dist.get_backend(group) == "nccl" else "cpu")
    every = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(every, mine, group)
    table = torch.stack(every).tolist()
    if all(row[1] == digest for row in table):
        if refusal is not None:
            raise refusal
        return tuple(row[0] for row in table)
    texts: list[Any] = [None] * world
    dist.all_gather_object(texts, said, group)
    if refusal is not None:
        raise refusal
    for rank, text in enumerate(texts):
        if text.startswith("refused: "):
            raise ValueError(f"fastvfx.{OP}: expected arguments that every process takes, process {rank} {text}")
    other = next(rank for rank, text in enumerate(texts) if text != said)
    differ = zip(said.split("; "), texts[other].split("; "), strict=True)
    here, there = next((a, b) for a, b in differ if a != b)
    raise ValueError(
        f"fastvfx.{OP}: expected the same in every process but for the number of frames, got {here} here and {there} "
        f"in process {other} of the group"
    )
