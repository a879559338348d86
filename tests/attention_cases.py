"""Random calls of attention, and an oracle that shares no code with fastvfx but the patterns' masks."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

import fastvfx
from fastvfx.patterns import (
    Blocks,
    CausalTime,
    Divided,
    Full,
    Neighborhood,
    Pattern,
    PerHead,
    ShiftedWindows,
    SlidingTile,
)

Grid = tuple[int, int, int]
NAMES = ("q", "k", "v", "extra_k", "extra_v", "relative_bias", "bias")


@dataclass
class Case:
    pattern: Pattern
    grid: Grid
    kv_grid: Grid
    tensors: dict[str, Tensor]  # by the names of the arguments; what is differentiated
    options: dict = field(default_factory=dict)

    def __str__(self) -> str:
        has = [name for name in (*self.tensors, *self.options) if name not in ("q", "k", "v")]
        return f"{type(self.pattern).__name__}-{'x'.join(map(str, self.grid))}-{'-'.join(has)}"[:70]

    def run(self, function=None, dtype: torch.dtype | None = None, **more) -> tuple[Tensor, Tensor, list[Tensor]]:
        """out, lse, and the leaves that they depend on."""
        leaves = {name: x.to(dtype or x.dtype).detach().requires_grad_() for name, x in self.tensors.items()}
        given = {n: x for n, x in leaves.items() if n not in ("q", "k", "v")} | self.options | more
        call = function or fastvfx.spatiotemporal_attention
        out, lse = call(
            leaves["q"], leaves["k"], leaves["v"], self.pattern, grid=self.grid, kv_grid=self.kv_grid,
            return_lse=True, **given,
        )  # fmt: skip
        return out, lse, list(leaves.values())

    def derivatives(self, function=None, dtype: torch.dtype | None = None, second: bool = True) -> dict[str, Tensor]:
        """Everything that can be compared: results, gradients, and gradients of a function of the gradients."""
        out, lse, leaves = self.run(function, dtype)
        generator = torch.Generator().manual_seed(1)

        def like(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)

        found = lse.detach() > -torch.inf
        g_out, g_lse = like(out).requires_grad_(), (like(lse) * found).requires_grad_()
        grads = torch.autograd.grad((out, lse), leaves, (g_out, g_lse), create_graph=second)
        result = {"out": out, "lse": torch.where(found, lse, 0)}
        result |= {f"grad_{n}": g for n, g in zip(self.tensors, grads, strict=True)}
        if second:
            targets = [*leaves, g_out, g_lse]
            again = torch.autograd.grad(grads, targets, [like(g) for g in grads], allow_unused=True)
            names = [*self.tensors, "g_out", "g_lse"]
            result |= {
                f"second_{n}": torch.zeros_like(x) if g is None else g
                for n, g, x in zip(names, again, targets, strict=True)
            }
        return {n: x.detach() for n, x in result.items()}


def oracle(
    q, k, v, pattern, *, grid, kv_grid, scale=None, rotary=None, kv_rotary=None, rotary_pairs="neighbours", bias=None,
    relative_bias=None, extra_k=None, extra_v=None, extra_mask=None, kv_mask=None, softcap=0.0, return_lse=True,
):  # fmt: skip
    """The whole matrix of scores, by torch.softmax."""
    heads, ratio = q.shape[2], q.shape[2] // k.shape[2]
    if rotary is not None:
        kv_rotary = rotary if kv_rotary is None else kv_rotary
        q = turn(q, rotary, rotary_pairs)
        k = k if kv_rotary is False else turn(k, kv_rotary, rotary_pairs)
    if extra_k is not None:
        k, v = torch.cat([k, extra_k], 1), torch.cat([v, extra_v], 1)
    k, v = k.repeat_interleave(ratio, 2), v.repeat_interleave(ratio, 2)
    n_k = kv_grid[0] * kv_grid[1] * kv_grid[2]
    allowed = torch.ones(q.shape[0], heads, q.shape[1], k.shape[1], dtype=torch.bool)
    allowed[..., :n_k] = pattern.mask(grid, kv_grid)
    if kv_mask is not None:
        allowed[..., :n_k] &= kv_mask[:, None, None]
    if extra_mask is not None:
        allowed[..., n_k:] &= extra_mask[:, None, None]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    added = torch.zeros(1, heads, q.shape[1], k.shape[1], dtype=q.dtype)
    if bias is not None:
        added = torch.cat([bias.to(q.dtype), added[..., n_k:].expand(len(bias), -1, -1, -1)], -1)
    if relative_bias is not None:
        near = looked_up(relative_bias.to(q.dtype), pattern, grid, kv_grid, heads)
        added = added + torch.cat([near, added[0, ..., n_k:]], -1)
    scores = (scores + added).masked_fill(~allowed, -torch.inf)
    some = allowed.any(-1, keepdim=True)
    weights = torch.where(some, torch.where(some, scores, 0).softmax(-1), 0)
    lse = torch.where(some[..., 0], torch.where(some, scores, 0).logsumexp(-1), -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v), lse


def turn(x: Tensor, table: Tensor, pairs: str) -> Tensor:
    """Pairs of channels as complex numbers, times those of the table."""
    if x.dtype in (torch.float16, torch.bfloat16):  # not every one of them has complex numbers
        return turn(x.float(), table, pairs).to(x.dtype)
    table = torch.view_as_complex(table.to(x.dtype).contiguous())[:, None]
    if pairs == "neighbours":
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * table).flatten(-2)
    z = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * table
    return torch.cat([z.real, z.imag], -1)


def looked_up(table: Tensor, pattern: Pattern, grid: Grid, kv_grid: Grid, heads: int) -> Tensor:
    """(heads, N_q, N_k): entries at (key - query) / dilation, 0 where that is none."""
    dilations = [pattern.heads(heads)[0][p] for p in pattern.heads(heads)[1]]
    queries = torch.tensor(list(itertools.product(*map(range, grid)))).view(-1, 3)
    queries = queries + torch.tensor(kv_grid) - torch.tensor(grid)
    offset = torch.tensor(list(itertools.product(*map(range, kv_grid)))).view(-1, 3) - queries[:, None]
    rows = []
    for head, one in enumerate(dilations):
        dilation = torch.tensor(getattr(one, "dilation", (1, 1, 1)))
        index = offset // dilation + torch.tensor(table.shape[1:]) // 2
        inside = ((index >= 0) & (index < torch.tensor(table.shape[1:]))).all(-1)
        t, h, w = (index * inside[..., None]).unbind(-1)
        rows.append(table[head][t, h, w] * inside)
    return torch.stack(rows)


def random_pattern(rng: random.Random, grid: Grid, heads: int, nested: bool = True) -> Pattern:
    def near() -> Pattern:
        dilation = [rng.randint(1, max(1, n // 2)) for n in grid]
        kernel = [rng.randint(1, n // d) for n, d in zip(grid, dilation, strict=True)]
        causal = [rng.random() < 0.3 for _ in grid]
        return Neighborhood(kernel, [rng.randint(1, k) for k in kernel], dilation, causal)

    def windows() -> Pattern:
        window = [rng.randint(1, 4) for _ in grid]
        return ShiftedWindows(window, [rng.randint(0, w - 1) for w in window])

    def tiles() -> Pattern:
        tile = [rng.randint(1, 3) for _ in grid]
        return SlidingTile(tile, [rng.randint(1, -(-n // t)) for n, t in zip(grid, tile, strict=True)])

    def causal() -> Pattern:
        chunk = rng.randint(1, 3)
        return CausalTime(chunk, rng.choice([None, rng.randint(chunk, 4)]), rng.randint(0, 2))

    def blocks() -> Pattern:
        block = [rng.randint(1, 3) for _ in grid]
        n = 1
        for size, b in zip(grid, block, strict=True):
            n *= -(-size // b)
        indices = torch.rand(rng.choice([1, 2]), rng.choice([1, heads]), n, n).argsort(-1)[..., : max(n // 2, 1)]
        indices = torch.where(torch.rand(indices.shape) < 0.2, -1, indices)
        made = Blocks(block, indices)
        return made & causal() if rng.random() < 0.3 else made

    plain = [Full, lambda: Divided("time"), lambda: Divided("space"), near, near, windows, tiles, causal]
    if not nested:
        return rng.choice(plain)()
    mixed = lambda: PerHead([random_pattern(rng, grid, heads, False) for _ in range(heads)])  # noqa: E731
    both = lambda: Neighborhood([max(n - 1, 1) for n in grid]) & windows()  # noqa: E731
    return rng.choice([*plain, blocks, blocks, mixed, mixed, both])()


def random_case(seed: int, batch: int = 2) -> Case:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    grid = (rng.randint(1, 5), rng.randint(1, 4), rng.randint(1, 5))
    kv_heads, ratio = rng.choice([(1, 2), (2, 1), (1, 1), (2, 2)])
    heads = kv_heads * ratio
    pattern = random_pattern(rng, grid, heads)
    n = grid[0] * grid[1] * grid[2]
    dim, dim_v, n_extra = 2 * rng.randint(1, 5), rng.randint(1, 9), rng.choice([0, 0, 1, 3])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    tensors = {
        "q": normal(batch, n, heads, dim),
        "k": normal(batch, n, kv_heads, dim),
        "v": normal(batch, n, kv_heads, dim_v),
    }
    options: dict = {}
    if n_extra:
        tensors |= {
            "extra_k": normal(batch, n_extra, kv_heads, dim),
            "extra_v": normal(batch, n_extra, kv_heads, dim_v),
        }
        if rng.random() < 0.5:
            options["extra_mask"] = torch.rand(batch, n_extra) < 0.7
    if rng.random() < 0.4:
        reach = [max(part.reach[a] for part in pattern.spans(grid, None, heads)) for a in range(3)]
        tensors["relative_bias"] = normal(heads, *(2 * (r + rng.randint(0, 1)) + 1 for r in reach))
    if rng.random() < 0.3:
        tensors["bias"] = normal(rng.choice([1, batch]), heads, n, n)
    if rng.random() < 0.4:
        options["rotary"] = fastvfx.rotary_3d(grid, dim, dtype=torch.float64)
        options["rotary_pairs"] = rng.choice(["neighbours", "halves"])
    if rng.random() < 0.4:
        options["kv_mask"] = torch.rand(batch, n) < 0.7
    if rng.random() < 0.3:
        options["softcap"] = 1.5
    if rng.random() < 0.3:
        options["scale"] = 0.7
    return Case(pattern, grid, grid, tensors, options)
