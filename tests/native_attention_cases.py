"""Calls of the native attention operators and the same attention written out densely, for their tests."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

Grid = tuple[int, int, int]

#: What gradients are taken of, in the order of attention_bwd's results.
GRADIENTS = ("q", "k", "v", "extra_k", "extra_v", "relative_bias", "bias")


@dataclass
class Case:
    """Inputs of one call. ``spans`` holds (P, L_q, 2) for each axis."""

    q: Tensor  # (B, N_q, heads, dim)
    k: Tensor  # (B, N_k, kv_heads, dim)
    v: Tensor  # (B, N_k, kv_heads, dim_v)
    grid: Grid
    kv_grid: Grid
    spans: list[Tensor]
    head_spans: Tensor  # (heads,)
    dilation: Grid = (1, 1, 1)
    sink: Grid = (0, 0, 0)
    extra_k: Tensor | None = None
    extra_v: Tensor | None = None
    extra_mask: Tensor | None = None
    kv_mask: Tensor | None = None
    relative_bias: Tensor | None = None
    bias: Tensor | None = None
    rotary: Tensor | None = None
    kv_rotary: Tensor | None = None
    blocks: Tensor | None = None
    block: Grid = (1, 1, 1)
    rotary_halves: bool = False
    scale: float = 0.3
    softcap: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    shape: list[int] = field(init=False)

    def __post_init__(self) -> None:
        whole = [
            int(bool((s[..., 0] <= 0).all() and (s[..., 1] >= n).all() and d == 1))
            for s, n, d in zip(self.spans, self.kv_grid, self.dilation, strict=True)
        ]
        reach = [n - 1 for n in self.kv_grid]
        self.shape = [
            *self.grid, *self.kv_grid, *self.dilation, *self.sink, *self.block, int(self.rotary_halves), *whole, *reach
        ]  # fmt: skip

    def to(self, dtype: torch.dtype) -> Case:
        """With every floating-point tensor in ``dtype``; tables and biases stay float32 beside 16 bits."""
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        changed = {}
        for f in fields(self):
            x = getattr(self, f.name)
            if isinstance(x, Tensor) and x.is_floating_point():
                changed[f.name] = x.to(wide if "rotary" in f.name or "bias" in f.name else dtype)
        return replace(self, **changed)

    def tensors(self) -> tuple[Any, ...]:
        return (
            self.q, self.k, self.v, self.extra_k, self.extra_v, self.extra_mask, self.kv_mask, self.relative_bias,
            self.bias, self.rotary, self.kv_rotary, self.blocks, *self.spans, self.head_spans,
        )  # fmt: skip

    def options(self) -> tuple[Any, ...]:
        return self.shape, self.scale, self.softcap, self.dropout, self.seed


def forward(case: Case) -> tuple[Tensor, Tensor]:
    return torch.ops.fastvfx.attention_fwd(*case.tensors(), *case.options())


def backward(case: Case, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None) -> dict[str, Tensor]:
    """The gradients of every tensor that the case has."""
    wanted = [getattr(case, name) is not None for name in GRADIENTS]
    grads = torch.ops.fastvfx.attention_bwd(grad_out, grad_lse, *case.tensors(), out, lse, *case.options(), wanted)
    return {name: g for name, g, w in zip(GRADIENTS, grads, wanted, strict=True) if w}


def axis_mask(spans: Tensor, n_keys: int, dilation: int, sink: int) -> Tensor:
    """(P, L_q, L_k) bool."""
    key = torch.arange(n_keys)
    start, end = spans[..., :1].long(), spans[..., 1:].long()
    return ((key >= start) & (key < end) & ((key - start) % dilation == 0)) | ((key < sink) & (key < end))


def allowed(case: Case) -> Tensor:
    """(B, heads, N_q, N_k) bool."""
    masks = [
        axis_mask(s, n, d, sink)
        for s, n, d, sink in zip(case.spans, case.kv_grid, case.dilation, case.sink, strict=True)
    ]
    t, h, w = masks
    joined = torch.einsum("pab,pcd,pef->pacebdf", t.int(), h.int(), w.int()).bool()
    mask = joined.reshape(t.shape[0], math.prod(case.grid), math.prod(case.kv_grid))[case.head_spans.long()]
    mask = mask.expand(case.q.shape[0], *mask.shape)
    if case.blocks is not None:
        mask = mask & listed_blocks(case)
    return mask if case.kv_mask is None else mask & case.kv_mask[:, None, None]


def listed_blocks(case: Case) -> Tensor:
    """(1 | B, 1 | heads, N_q, N_k) bool: the key's block is in the list of the query's."""
    assert case.blocks is not None

    def number(grid: Grid) -> Tensor:
        count = [(n + b - 1) // b for n, b in zip(grid, case.block, strict=True)]
        t, h, w = (torch.arange(n) // b for n, b in zip(grid, case.block, strict=True))
        return ((t[:, None, None] * count[1] + h[:, None]) * count[2] + w).flatten()

    lists = case.blocks[:, :, number(case.grid)].long()  # (1 | B, 1 | heads, N_q, n)
    return (lists[..., None, :] == number(case.kv_grid)[:, None]).any(-1)


def offsets(case: Case) -> list[Tensor]:
    """For each axis (N_q, N_k): which entry of the table of relative biases a pair has, where it is allowed."""
    assert case.relative_bias is not None
    result = []
    for axis, size in enumerate(case.relative_bias.shape[1:]):
        n_q, n_k = case.grid[axis], case.kv_grid[axis]
        shape = [1, 1, 1]
        shape[axis] = -1
        query = (torch.arange(n_q) + n_k - n_q).view(shape).expand(case.grid).flatten()
        key = torch.arange(n_k).view(shape).expand(case.kv_grid).flatten()
        offset = torch.div(key - query[:, None], case.dilation[axis], rounding_mode="floor") + size // 2
        result.append(offset.clamp(0, size - 1))
    return result


def turned(x: Tensor, table: Tensor | None, halves: bool) -> Tensor:
    if table is None:
        return x
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    a, b = x.chunk(2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    pair = (a * cos - b * sin, a * sin + b * cos)
    return torch.cat(pair, -1) if halves else torch.stack(pair, -1).flatten(-2)


def mix64(x: int) -> int:
    mask = (1 << 64) - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
    return x ^ (x >> 31)


def kept(case: Case, n_keys: int) -> Tensor:
    """(B, heads, N_q, N_k + E) bool, number by number."""
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    threshold = int(case.dropout * 2**32)
    batch, n_q, heads, _ = case.q.shape
    rows = [mix64((mix64(case.seed & mask) + row * golden) & mask) for row in range(batch * heads * n_q)]
    bits = [[mix64((row + key * golden) & mask) >> 32 >= threshold for key in range(n_keys)] for row in rows]
    return torch.tensor(bits, dtype=torch.bool).view(batch, heads, n_q, n_keys)


def dense(case: Case) -> tuple[Tensor, Tensor]:
    """The same by the whole matrix of scores, in the dtype of the tensors (16 bits: in float32)."""
    wide = torch.float64 if case.q.dtype is torch.float64 else torch.float32
    ratio = case.q.shape[2] // case.k.shape[2]

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(ratio, 2)

    q = turned(case.q.to(wide), case.rotary, case.rotary_halves)
    k = repeated(turned(case.k.to(wide), case.kv_rotary, case.rotary_halves))
    v = repeated(case.v.to(wide))
    mask = allowed(case)
    added = torch.zeros((1, 1, 1, 1), dtype=wide)
    if case.relative_bias is not None:
        t, h, w = offsets(case)
        added = added + case.relative_bias.to(wide)[:, t, h, w]
    if case.bias is not None:
        added = added + case.bias.to(wide)
    if case.extra_k is not None and case.extra_v is not None:
        k = torch.cat([k, repeated(case.extra_k.to(wide))], 1)
        v = torch.cat([v, repeated(case.extra_v.to(wide))], 1)
        extra = case.extra_k.shape[1]
        visible = torch.ones((q.shape[0], extra), dtype=torch.bool) if case.extra_mask is None else case.extra_mask
        mask = torch.cat([mask, visible[:, None, None].expand(*mask.shape[:3], -1)], -1)
        added = added.expand(*added.shape[:2], mask.shape[2], mask.shape[3] - extra)
        added = torch.nn.functional.pad(added, (0, extra))
    scores = torch.einsum("bihc,bjhc->bhij", q, k) * case.scale
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    scores = (scores + added).masked_fill(~mask, -torch.inf)
    some = mask.any(-1, keepdim=True)
    scores = torch.where(some, scores, 0.0)
    lse = torch.where(some, torch.logsumexp(scores, -1, keepdim=True), -torch.inf)
    weights = torch.where(mask, torch.exp(scores - torch.where(some, lse, 0.0)), 0.0)
    if case.dropout:
        weights = torch.where(kept(case, weights.shape[-1]), weights, 0.0) / (1 - case.dropout)
    return torch.einsum("bhij,bjhc->bihc", weights, v).to(case.q.dtype), lse.squeeze(-1)


def random_spans(rng: random.Random, n_q: int, n_k: int, dilation: int, sink: int, patterns: int) -> Tensor:
    """Intervals around each query's place, some of them whole, some of them empty."""
    kind = rng.choice(["whole", "near", "near", "causal", "any"])
    spans = torch.empty((patterns, n_q, 2), dtype=torch.int32)
    for p in range(patterns):
        reach = rng.randint(0, max(n_k // 2, 1))
        for i in range(n_q):
            at = i + n_k - n_q
            start, end = 0, n_k
            if kind == "near":
                start, end = max(at - reach, 0), min(at + reach + 1, n_k)
            elif kind == "causal":
                end = min(max(at + 1, 0), n_k)
            elif kind == "any":
                start = rng.randint(0, n_k)
                end = rng.randint(start, n_k)
            if dilation > 1 and start < end:  # a query sees the keys of its own residue
                start += (at - start) % dilation
            spans[p, i, 0], spans[p, i, 1] = min(start, n_k), max(end, min(start, n_k))
    return spans


def random_case(seed: int) -> Case:
    """A case in float64 with a random choice of everything there is."""
    rng = random.Random(seed)
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=g, dtype=torch.float64)

    def coin(p: float) -> bool:
        return rng.random() < p

    kv_grid: Grid = (rng.randint(1, 9), rng.randint(1, 7), rng.randint(1, 9))
    if coin(0.2):
        kv_grid = rng.choice([(1, 1, 150), (150, 1, 1), (1, 300, 1)])
    grid: Grid = (rng.randint(1, kv_grid[0]), *kv_grid[1:]) if coin(0.25) else kv_grid
    batch, kv_heads, ratio = rng.randint(1, 3), rng.randint(1, 3), rng.choice([1, 1, 2, 3])
    heads, dim = kv_heads * ratio, rng.choice([2, 8, 20, 32, 64, 7])
    dim_v = dim if coin(0.7) else rng.choice([1, 5, 16, 40])
    n_q, n_k, patterns = math.prod(grid), math.prod(kv_grid), 1 if coin(0.7) else 2
    dilation = [rng.choice([1, 1, 1, 2, 3]) if n > 3 else 1 for n in kv_grid]
    sink = [rng.choice([0, 0, 0, 1, 2]) if d == 1 else 0 for d in dilation]
    axes = zip(grid, kv_grid, dilation, sink, strict=True)
    spans = [random_spans(rng, n, m, d, s, patterns) for n, m, d, s in axes]
    head_spans = torch.tensor([rng.randrange(patterns) for _ in range(heads)], dtype=torch.int32)
    case = Case(
        normal(batch, n_q, heads, dim), normal(batch, n_k, kv_heads, dim), normal(batch, n_k, kv_heads, dim_v),
        grid, kv_grid, spans, head_spans, (dilation[0], dilation[1], dilation[2]), (sink[0], sink[1], sink[2]),
        scale=rng.choice([dim**-0.5, 0.4, -0.3]), seed=rng.randrange(1 << 40),
    )  # fmt: skip
    if coin(0.3):
        n_extra = rng.randint(1, 20)
        case.extra_k, case.extra_v = normal(batch, n_extra, kv_heads, dim), normal(batch, n_extra, kv_heads, dim_v)
        case.extra_mask = torch.rand((batch, n_extra), generator=g) < 0.7 if coin(0.5) else None
    if coin(0.3):
        case.kv_mask = torch.rand((batch, n_k), generator=g) < 0.8
    if coin(0.3):
        case.relative_bias = normal(heads, *(2 * n + 1 for n in kv_grid))
    if coin(0.2):
        case.bias = normal(rng.choice([1, batch]), heads, n_q, n_k)
    if coin(0.3) and dim % 2 == 0:
        for name, n in (("rotary", n_q), ("kv_rotary", n_k)):
            angle = normal(n, dim // 2)
            setattr(case, name, torch.stack([angle.cos(), angle.sin()], -1))
        case.rotary_halves = coin(0.5)
    case.softcap = 2.0 if coin(0.2) else 0.0
    case.dropout = 0.3 if coin(0.2) and batch * heads * n_q * n_k < 200000 else 0.0
    if coin(0.25):
        case.block = (rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 4))
        counts = [
            math.prod((n + b - 1) // b for n, b in zip(size, case.block, strict=True)) for size in (grid, kv_grid)
        ]
        n = rng.randint(1, counts[1])
        lists = torch.rand((rng.choice([1, batch]), rng.choice([1, heads]), counts[0], counts[1]), generator=g)
        case.blocks = lists.argsort(-1)[..., :n].to(torch.int32)
        case.blocks[torch.rand(case.blocks.shape, generator=g) < 0.2] = -1
    return replace(case)
