"""Attention over video tokens as a module: projections, positions, and a cache of frames that were seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .functional.attention import spatiotemporal_attention
from .functional.rotary import rotary_3d
from .functional.scaled_dot_product_attention import random_seed
from .patterns import CausalTime, Divided, Full, Pattern
from .patterns.spans import Grid

_OWNER = "SpatioTemporalAttention"


@dataclass(frozen=True)
class Rotary:
    """How queries and keys are turned by their positions; see :func:`fastvfx.rotary_3d`."""

    base: float = 10000.0
    split: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pairs: Literal["neighbours", "halves"] = "neighbours"

    def table(self, grid: Grid, dim: int, first_frame: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(N, dim / 2, 2) for frames from ``first_frame`` on."""
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
        return (_table if traced else _kept_table)(self, grid, dim, first_frame, wide, device)


def _table(rotary: Rotary, grid: Grid, dim: int, first_frame: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    start = (first_frame * rotary.spacing[0], 0.0, 0.0)
    return rotary_3d(
        grid, dim, split=rotary.split, base=rotary.base, start=start, spacing=rotary.spacing, dtype=dtype, device=device
    )


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be used in a later call that has gradients
def _kept_table(*arguments: Any) -> Tensor:
    return _table(*arguments)


@dataclass
class FrameCache:
    """Keys and values of frames that a :class:`SpatioTemporalAttention` with :class:`~.patterns.CausalTime` has seen.

    Kept are the frames that later ones may attend: all of them, or with ``local`` the sinks and the last ones, so that
    memory stays the same however long the video. Pass the same object with every chunk of frames. Each attention of a
    model needs its own.
    """

    frames_seen: int = 0
    grid: Grid = (0, 0, 0)  # of the frames that are kept
    keys: Tensor | None = field(default=None, repr=False)  # (B, N, kv_heads, dim)
    values: Tensor | None = field(default=None, repr=False)
    rotary: Tensor | None = field(default=None, repr=False)  # (N, dim / 2, 2): of the frames' own positions

    def append(self, k: Tensor, v: Tensor, table: Tensor | None, grid: Grid, pattern: CausalTime) -> Keys:
        """Keys, values and rotations of kept and new frames; then forgets the frames that no later one may attend.

        Frames are dropped between the sinks and the rest, by whole chunks: so the pattern, with the queries as the last
        of its frames, means the same for what is kept as for all.
        """
        if self.frames_seen % pattern.chunk:
            raise ValueError(
                f"fastvfx.FrameCache: expected whole chunks of {pattern.chunk} frames before more of them, "
                f"got {self.frames_seen} frames so far"
            )
        if self.keys is not None and self.values is not None:
            if grid[1:] != self.grid[1:] or k.shape[0] != self.keys.shape[0]:
                raise ValueError(
                    f"fastvfx.FrameCache: expected frames of {self.grid[1]} x {self.grid[2]} tokens and a batch of "
                    f"{self.keys.shape[0]} as before, got {grid[1]} x {grid[2]} and {k.shape[0]}"
                )
            k, v = torch.cat([self.keys, k], 1), torch.cat([self.values, v], 1)
            table = None if table is None or self.rotary is None else torch.cat([self.rotary, table])
        n_frames = self.grid[0] + grid[0]
        whole = (n_frames, grid[1], grid[2])
        result = Keys(k, v, table, whole)
        self.frames_seen += grid[0]
        drop = 0 if pattern.local is None else n_frames - pattern.sink - (pattern.local - pattern.chunk)
        drop = max(drop // pattern.chunk, 0) * pattern.chunk
        area, sink = grid[1] * grid[2], min(pattern.sink, n_frames)
        self.keys, self.values = _without(k, 1, sink * area, drop * area), _without(v, 1, sink * area, drop * area)
        self.rotary = None if table is None else _without(table, 0, sink * area, drop * area)
        self.grid = (n_frames - drop, grid[1], grid[2])
        return result


@dataclass(frozen=True)
class Keys:
    """What a chunk of queries attends."""

    k: Tensor
    v: Tensor
    rotary: Tensor | None
    grid: Grid


def _without(x: Tensor, axis: int, first: int, n: int) -> Tensor:
    """x without ``n`` entries from ``first`` on."""
    if n == 0:
        return x
    return torch.cat([x.narrow(axis, 0, first), x.narrow(axis, first + n, x.shape[axis] - first - n)], axis)


class SpatioTemporalAttention(nn.Module):
    """Multi-head attention over the tokens of a video by :func:`fastvfx.spatiotemporal_attention`.

    Args:
        dim: width of the tokens.
        n_heads: heads of queries.
        pattern: which tokens attend which; ``None`` is all. An attribute, which may be replaced at any time.
        kv_heads: heads of keys and values, a divisor of ``n_heads``; ``None`` is ``n_heads``.
        head_dim: channels of a head; ``None`` is ``dim // n_heads``.
        qkv_bias, out_bias: biases of the projections.
        qk_norm: RMS normalisation of queries and keys, with learned factors shared among heads.
        rotary: turn queries and keys by their positions: a :class:`Rotary`, ``True`` for its defaults.
        relative_position: learn a bias for every distance within windows of this size (kt, kh, kw).
        context_dim: width of tokens outside of the video, such as a text's, that :meth:`forward` takes as ``context``;
            ``None``: no such tokens.
        dropout: of the attention weights, in training. Its seed comes from torch's generator on
            the CPU, a number that ``torch.compile(fullgraph=True)`` cannot trace.
        softcap: see :func:`fastvfx.spatiotemporal_attention`.
        dtype, device: of the parameters.

    Attributes:
        qkv: ``torch.nn.Linear`` to queries, keys and values, in this order, each ``(heads, head_dim)``.
        out: ``torch.nn.Linear`` from the heads back to ``dim``.
        context_kv: ``torch.nn.Linear`` to keys and values of the context, or ``None``.
        relative_bias: ``(heads, 2 kt - 1, 2 kh - 1, 2 kw - 1)`` by key - query, or ``None``.

    >>> attention = fastvfx.SpatioTemporalAttention(256, 4, patterns.Neighborhood((3, 7, 7)), rotary=True)
    >>> y = attention(torch.randn(2, 8, 14, 14, 256))
    """

    relative_bias: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        n_heads: int,
        pattern: Pattern | None = None,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        out_bias: bool = True,
        qk_norm: bool = False,
        rotary: Rotary | bool = False,
        relative_position: Sequence[int] | None = None,
        context_dim: int | None = None,
        dropout: float = 0.0,
        softcap: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        kv_heads = n_heads if kv_heads is None else kv_heads
        if n_heads < 1 or kv_heads < 1 or n_heads % kv_heads:
            raise ValueError(f"fastvfx.{_OWNER}: expected kv_heads to divide n_heads, got {kv_heads} and {n_heads}")
        if head_dim is None and dim % n_heads:
            raise ValueError(f"fastvfx.{_OWNER}: expected n_heads to divide dim={dim}, got {n_heads}")
        self.dim, self.n_heads, self.kv_heads = dim, n_heads, kv_heads
        self.head_dim = dim // n_heads if head_dim is None else head_dim
        self.pattern: Pattern = Full() if pattern is None else pattern
        self.rotary = Rotary() if rotary is True else rotary or None
        if self.rotary is not None and self.head_dim % 2:
            raise ValueError(f"fastvfx.{_OWNER}: expected an even head_dim with rotary, got {self.head_dim}")
        self.dropout, self.softcap = dropout, softcap
        at: dict[str, Any] = {"dtype": dtype, "device": device}
        self.qkv = nn.Linear(dim, (n_heads + 2 * kv_heads) * self.head_dim, bias=qkv_bias, **at)
        self.out = nn.Linear(n_heads * self.head_dim, dim, bias=out_bias, **at)
        self.context_kv = None
        if context_dim is not None:
            self.context_kv = nn.Linear(context_dim, 2 * kv_heads * self.head_dim, bias=qkv_bias, **at)
        self.q_norm = nn.RMSNorm(self.head_dim, **at) if qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_dim, **at) if qk_norm else None
        self.relative_bias = None
        if relative_position is not None:
            sides = [2 * n - 1 for n in relative_position]
            self.relative_bias = nn.Parameter(torch.empty(n_heads, *sides, **at))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of deviation 0.02, cut off at twice that, as vision transformers start; biases 0."""
        for layer in (self.qkv, self.out, self.context_kv):
            if layer is not None:
                nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if self.relative_bias is not None:
            nn.init.trunc_normal_(self.relative_bias, std=0.02, a=-0.04, b=0.04)

    def forward(
        self,
        x: Tensor,
        *,
        grid: Grid | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        mask: Tensor | None = None,
        cache: FrameCache | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: tokens ``(batch, T, H, W, dim)``, or ``(batch, N, dim)`` with ``grid``; without one, a line in time.
            grid: (T, H, W) of flat tokens.
            context: ``(batch, E, context_dim)``, tokens that every token of the video attends besides.
            context_mask: ``(batch, E)`` bool, which of these are there.
            mask: ``(batch, N)`` bool, which tokens may be attended, for padded batches.
            cache: frames from calls before, which these continue. The pattern must be
                :class:`~fastvfx.patterns.CausalTime`; results are those of one call with all frames.

        Returns:
            Shaped like ``x``.

        Raises:
            ValueError: shapes do not fit, context without ``context_dim``, or a cache with another pattern.
        """
        flat, at = self._tokens(x, grid)
        q, k, v = self.project(flat)
        first = 0 if cache is None else cache.frames_seen
        table = None if self.rotary is None else self.rotary.table(at, self.head_dim, first, q.dtype, q.device)
        keys = Keys(k, v, table, at)
        if cache is not None:
            if not isinstance(self.pattern, CausalTime):
                raise ValueError(f"fastvfx.{_OWNER}: expected the pattern CausalTime with a cache, got {self.pattern}")
            if mask is not None:
                raise ValueError(f"fastvfx.{_OWNER}: expected no mask with a cache, got both")
            keys = cache.append(k, v, table, at, self.pattern)
        extra_k, extra_v = self._context(context)
        out = self.attend(
            q, keys, self.pattern, at, rotary=table, extra_k=extra_k, extra_v=extra_v, extra_mask=context_mask,
            kv_mask=mask,
        )  # fmt: skip
        return self.out(out.flatten(2)).reshape(x.shape)

    def project(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(batch, N, heads, head_dim)``, keys and values ``(batch, N, kv_heads, head_dim)`` of tokens."""
        packed = self.qkv(flat).unflatten(-1, (self.n_heads + 2 * self.kv_heads, self.head_dim))
        q, k, v = packed.split([self.n_heads, self.kv_heads, self.kv_heads], 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def attend(self, q: Tensor, keys: Keys, pattern: Pattern, grid: Grid, **options: Any) -> Tensor:
        """:func:`fastvfx.spatiotemporal_attention` of projected tokens with the options of this module."""
        dropout = self.dropout if self.training else 0.0
        options.setdefault("relative_bias", self.relative_bias)
        out = spatiotemporal_attention(
            q, keys.k, keys.v, pattern, grid=grid, kv_grid=keys.grid,
            kv_rotary=False if keys.rotary is None else keys.rotary,
            rotary_pairs="neighbours" if self.rotary is None else self.rotary.pairs,
            dropout=dropout, seed=random_seed(dropout), softcap=self.softcap, **options,
        )  # fmt: skip
        return cast(Tensor, out)

    def _tokens(self, x: Tensor, grid: Grid | None) -> tuple[Tensor, Grid]:
        if x.dim() not in (3, 5) or x.shape[-1] != self.dim:
            raise ValueError(
                f"fastvfx.{_OWNER}: expected x of shape (batch, T, H, W, {self.dim}) or (batch, tokens, {self.dim}), "
                f"got {tuple(x.shape)}"
            )
        if x.dim() == 5:
            t, h, w = x.shape[1:4]
            return x.flatten(1, 3), (t, h, w)
        return x, (x.shape[1], 1, 1) if grid is None else grid

    def _context(self, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if context is None:
            return None, None
        if self.context_kv is None:
            raise ValueError(f"fastvfx.{_OWNER}: expected context only with a context_dim, got both None and a tensor")
        packed = self.context_kv(context).unflatten(-1, (2 * self.kv_heads, self.head_dim))
        k, v = packed.split(self.kv_heads, 2)
        return k if self.k_norm is None else self.k_norm(k), v

    def extra_repr(self) -> str:
        return f"{self.dim}, n_heads={self.n_heads}, kv_heads={self.kv_heads}, pattern={self.pattern}"


class ClassAttention(SpatioTemporalAttention):
    """:class:`SpatioTemporalAttention` with a class token, which has no position and belongs to no frame.

    Tokens of the video attend by the pattern, and the class token besides. The class token attends itself and the whole
    video; with ``Divided("space")`` it attends itself and one frame, for each frame, and the results are averaged,
    as if it had been copied into every frame (TimeSformer).
    """

    def forward(self, x: Tensor, cls: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Attend.

        Args:
            x: tokens ``(batch, T, H, W, dim)``.
            cls: class token ``(batch, 1, dim)``.

        Returns:
            Both, shaped as they were.
        """
        flat, grid = self._tokens(x, None)
        q, k, v = self.project(flat)
        q_cls, k_cls, v_cls = self.project(cls)
        table = None if self.rotary is None else self.rotary.table(grid, self.head_dim, 0, q.dtype, q.device)
        keys = Keys(k, v, table, grid)
        out = self.attend(q, keys, self.pattern, grid, rotary=table, extra_k=k_cls, extra_v=v_cls)
        by_frame = self.pattern == Divided("space")
        n = grid[0] if by_frame else 1
        pattern = self.pattern if by_frame else Full()
        of_cls = self.attend(
            q_cls.expand(-1, n, -1, -1), keys, pattern, (n, 1, 1), extra_k=k_cls, extra_v=v_cls, relative_bias=None
        ).mean(1, keepdim=True)
        return self.out(out.flatten(2)).reshape(x.shape), self.out(of_cls.flatten(2))
