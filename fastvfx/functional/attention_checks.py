"""Arguments of ``spatiotemporal_attention``: what is wrong with them, and what is left to the defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _check
from ..patterns import Blocks, Pattern
from ..patterns.axis import larger
from ..patterns.blocks import counts
from ..patterns.spans import Grid
from ..reference.attention import Options, signed_64

OP = "spatiotemporal_attention"
MAX_HEAD_DIM = 1024
SEED_STEP = 0x632BE59BD9B4E019

Flat = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Inputs:
    """The tensors that attention is differentiated by, flat; the order is that of the native operators."""

    q: Tensor  # (B, N_q, heads, dim)
    k: Tensor  # (B, N_k, kv_heads, dim)
    v: Tensor  # (B, N_k, kv_heads, dim_v)
    extra_k: Tensor | None  # (B, E, kv_heads, dim)
    extra_v: Tensor | None  # (B, E, kv_heads, dim_v)
    relative_bias: Tensor | None  # (heads, 2 k_t - 1, 2 k_h - 1, 2 k_w - 1)
    bias: Tensor | None  # (1 | B, heads, N_q, N_k)

    def all(self) -> Flat:
        return self.q, self.k, self.v, self.extra_k, self.extra_v, self.relative_bias, self.bias

    def of_heads(self, heads: Sequence[int]) -> Inputs:
        """What these heads need."""
        ratio = self.q.shape[2] // self.k.shape[2]
        queries = torch.tensor(heads, device=self.q.device)
        keys = queries // ratio

        def pick(x: Tensor | None, axis: int, index: Tensor) -> Any:
            return None if x is None else x.index_select(axis, index)

        k, v, extra_k, extra_v = (pick(x, 2, keys) for x in (self.k, self.v, self.extra_k, self.extra_v))
        relative_bias, bias = pick(self.relative_bias, 0, queries), pick(self.bias, 1, queries)
        return Inputs(pick(self.q, 2, queries), k, v, extra_k, extra_v, relative_bias, bias)


def _wrong(what: str, got: object) -> ValueError:
    return ValueError(f"fastvfx.{OP}: expected {what}, got {got}")


def flat(name: str, x: Tensor, grid: Sequence[int] | None, grid_name: str) -> tuple[Tensor, Grid | None]:
    """x as (B, N, heads, dim), and the grid of its tokens if it is known."""
    if grid is not None:
        if not isinstance(grid, Sequence) or len(grid) != 3:
            raise _wrong(f"{grid_name} to be three sizes (T, H, W)", repr(grid))
        for n in grid:
            _check.is_int(OP, **{grid_name: n})
    if x.dim() == 6:
        t, h, w = x.shape[1:4]
        if grid is not None and tuple(grid) != (t, h, w):
            raise _wrong(f"{grid_name}={tuple(grid)} to be the shape of {name}", (t, h, w))
        return x.flatten(1, 3), (t, h, w)
    if x.dim() != 4:
        raise _wrong(f"{name} of shape (batch, T, H, W, heads, dim) or (batch, tokens, heads, dim)", tuple(x.shape))
    if grid is None:
        return x, None
    if any(n < 0 for n in grid):
        raise _wrong(f"{grid_name} to be three sizes (T, H, W)", tuple(grid))
    t, h, w = grid
    if t * h * w != x.shape[1]:
        raise _wrong(f"{name} with T * H * W = {t} * {h} * {w} tokens", x.shape[1])
    return x, (t, h, w)


def tensors(q: Any, k: Any, v: Any, extra_k: Any, extra_v: Any) -> None:
    """dtypes, devices, and what does not depend on the layout."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check.is_tensor(OP, name, x)
    _check.is_float(OP, q=q, k=k, v=v, extra_k=extra_k, extra_v=extra_v)
    for name, x in (("k", k), ("v", v), ("extra_k", extra_k), ("extra_v", extra_v)):
        if x is not None and x.dtype != q.dtype:
            raise TypeError(f"fastvfx.{OP}: expected {name} of dtype {q.dtype} like q, got {x.dtype}")
    if (extra_k is None) != (extra_v is None):
        raise _wrong("extra_k and extra_v together", "one of them")


def heads(inputs: Inputs) -> None:
    q, k, v = inputs.q, inputs.k, inputs.v
    batch, _, n_heads, dim = q.shape
    if n_heads < 1 or not 1 <= dim <= MAX_HEAD_DIM or not 1 <= v.shape[3] <= MAX_HEAD_DIM:
        raise _wrong(f"at least one head and head dimensions from 1 to {MAX_HEAD_DIM}", (n_heads, dim, v.shape[3]))
    for name, x, x_dim in (("k", k, dim), ("v", v, v.shape[3])):
        if x.shape[0] != batch or x.shape[3] != x_dim:
            raise _wrong(
                f"{name} of shape (batch, tokens, kv_heads, dim) with batch={batch}, dim={x_dim}", tuple(x.shape)
            )
    if v.shape[1:3] != k.shape[1:3]:
        raise _wrong(f"v with {k.shape[1]} tokens and {k.shape[2]} heads like k", f"{v.shape[1]} and {v.shape[2]}")
    if k.shape[2] < 1 or n_heads % k.shape[2]:
        raise _wrong("the heads of k and v to divide those of q", f"{k.shape[2]} and {n_heads}")
    if inputs.extra_k is not None and inputs.extra_v is not None:
        n_extra = inputs.extra_k.shape[1] if inputs.extra_k.dim() == 4 else 0
        for name, x, x_dim in (("extra_k", inputs.extra_k, dim), ("extra_v", inputs.extra_v, v.shape[3])):
            expected = (batch, n_extra, k.shape[2], x_dim)
            _check.has_shape(OP, name, x, expected, lambda e=expected: f"(batch, extras, kv_heads, dim) = {e}")  # type: ignore[misc]


def mask(name: str, x: Tensor | None, shape: tuple[int, int]) -> None:
    if x is None:
        return
    _check.is_tensor(OP, name, x)
    if x.dtype is not torch.bool:
        raise TypeError(
            f"fastvfx.{OP}: expected {name} of dtype torch.bool, True where a key may be attended, got {x.dtype}"
        )
    _check.has_shape(OP, name, x, shape, lambda: f"(batch, keys) = {shape}")


def biases(inputs: Inputs, reach: Grid) -> None:
    batch, n_q, n_heads, _ = inputs.q.shape
    table, bias = inputs.relative_bias, inputs.bias
    _check.is_float(OP, relative_bias=table, bias=bias)
    for name, x in (("relative_bias", table), ("bias", bias)):
        if x is not None and x.dtype is torch.float64 and inputs.q.dtype is not torch.float64:
            raise TypeError(
                f"fastvfx.{OP}: expected {name} of float64 only with q of float64, got q of {inputs.q.dtype}"
            )
    if table is not None:
        if table.dim() != 4 or table.shape[0] != n_heads or any(n % 2 == 0 for n in table.shape[1:]):
            raise _wrong(
                f"relative_bias of shape (heads, 2 kt - 1, 2 kh - 1, 2 kw - 1) with heads={n_heads}", tuple(table.shape)
            )
        if any(size < 2 * far + 1 for size, far in zip(table.shape[1:], reach, strict=True)):
            least = tuple(2 * far + 1 for far in reach)
            raise _wrong(
                f"relative_bias of at least {least} entries an axis, for the furthest keys of the pattern",
                tuple(table.shape[1:]),
            )
    if bias is not None and (
        bias.dim() != 4 or bias.shape[0] not in (1, batch) or tuple(bias.shape[1:]) != (n_heads, n_q, inputs.k.shape[1])
    ):
        raise _wrong(f"bias of shape (1 or {batch}, {n_heads}, {n_q}, {inputs.k.shape[1]})", tuple(bias.shape))


def rotary(
    table: Tensor | None, kv_table: Tensor | bool | None, inputs: Inputs, pairs: str
) -> tuple[Tensor | None, Tensor | None]:
    """Tables of queries and keys; the first serves both if they are as many."""
    _check.is_one_of(OP, "rotary_pairs", pairs, ("neighbours", "halves"))
    n_q, n_k, dim = inputs.q.shape[1], inputs.k.shape[1], inputs.q.shape[3]
    if kv_table is None and table is not None:
        if n_q != n_k:
            raise _wrong("kv_rotary, for there are other keys than queries (False leaves keys as they are)", None)
        kv_table = table
    if isinstance(kv_table, bool):
        if kv_table:
            raise _wrong("kv_rotary to be a tensor, None or False", True)
        kv_table = None
    for name, x, n in (("rotary", table, n_q), ("kv_rotary", kv_table, n_k)):
        if x is None:
            continue
        _check.is_float(OP, **{name: x})
        if dim % 2:
            raise _wrong(f"an even head dimension with {name}", dim)
        shape = (n, dim // 2, 2)
        _check.has_shape(OP, name, x, shape, lambda s=shape: f"(tokens, dim / 2, 2) = {s}")  # type: ignore[misc]
    return table, kv_table


def blocks(found: Blocks, batch: int, n_heads: int, grid: Grid, kv_grid: Grid) -> None:
    shape, indices = tuple(found.indices.shape), found.indices
    n_q, n_k = math.prod(counts(grid, found.block)), math.prod(counts(kv_grid, found.block))
    if shape[0] not in (1, batch) or shape[1] not in (1, n_heads) or shape[2] != n_q:
        raise _wrong(f"Blocks.indices of shape (1 or {batch}, 1 or {n_heads}, {n_q} query blocks, n)", shape)
    if not _check.is_concrete(indices) or indices.numel() == 0:
        return
    if int(indices.min()) < -1 or int(indices.max()) >= n_k:
        raise _wrong(
            f"Blocks.indices from -1 to {n_k - 1}, there being {n_k} key blocks",
            f"{int(indices.min())} to {int(indices.max())}",
        )
    ordered = indices.sort(-1).values
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()):
        raise _wrong("Blocks.indices to list a key block at most once for a query block", "one twice")


def same_device(inputs: Inputs, **others: Tensor | None) -> None:
    names = ("q", "k", "v", "extra_k", "extra_v", "relative_bias", "bias")
    _check.same_device(OP, **dict(zip(names, inputs.all(), strict=True)), **others)


def options(scale: Any, dropout: Any, seed: Any, softcap: Any) -> None:
    _check.is_number(OP, dropout=dropout, softcap=softcap)
    _check.is_number_or_none(OP, scale=scale)
    _check.is_int(OP, seed=seed)
    if not 0 <= dropout < 1:
        raise _wrong("dropout from 0 to below 1", dropout)
    if not 0 <= softcap < math.inf:
        raise _wrong("softcap >= 0, 0 for none", softcap)
    if scale is not None and not math.isfinite(scale):
        raise _wrong("a finite scale", scale)


def prepared(
    inputs: Inputs, pattern: Pattern, grid: Grid, kv_grid: Grid, seed: int, options_for: Callable[..., Options]
) -> list[tuple[Inputs, Options]]:
    """The calls that one pattern takes: one, or one for each combination of dilations and sinks among its heads."""
    parts = pattern.spans(grid, kv_grid, inputs.q.shape[2], inputs.q.device)
    reach = [parts[0].reach[a] for a in range(3)]
    for part in parts[1:]:
        reach = [larger(x, y) for x, y in zip(reach, part.reach, strict=True)]
    biases(inputs, (reach[0], reach[1], reach[2]))
    found = pattern.split()[1]
    if found is not None:
        blocks(found, inputs.q.shape[0], inputs.q.shape[2], grid, kv_grid)
        options_for = partial(options_for, block=found.block)
    calls = []
    for number, part in enumerate(parts):
        indices = None if found is None else found.indices
        if part.heads is not None and indices is not None and indices.shape[1] > 1:
            indices = indices[:, list(part.heads)]
        # Another seed for each: dropout is a function of the head's number within its call.
        own_seed = seed + signed_64(number * SEED_STEP)
        if isinstance(own_seed, int):  # and not a symbol of torch.compile
            own_seed = signed_64(own_seed)
        options = options_for(spans=part, seed=own_seed, blocks=indices)
        calls.append((inputs if part.heads is None else inputs.of_heads(part.heads), options))
    return calls


def why_no_gpu_kernel(inputs: Inputs) -> str | None:
    """Why the Triton kernels do not take such queries and values, or ``None`` if they do."""
    if inputs.q.dtype is torch.float64:
        return "its GPU kernel takes no float64"
    dim = max(inputs.q.shape[-1], inputs.v.shape[-1])
    return f"its GPU kernel takes heads of up to 256 channels, not {dim}" if dim > 256 else None
