"""Spatiotemporal attention against torch's scaled_dot_product_attention with the pattern as a mask."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from harness import Race, Workload, against_torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import fastvfx
from fastvfx import patterns

Grid = tuple[int, int, int]


def over_heads(function: Any) -> Any:
    """``function`` of (B, heads, N, dim) on our layout (B, N, heads, dim): transposed views, no copies."""

    def call(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        return function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), *rest).transpose(1, 2)

    return call


def flex(mask: Tensor) -> Any:
    """FlexAttention, compiled, that skips the blocks of 128 x 128 without an allowed pair."""

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[query, key]

    blocks = create_block_mask(allowed, None, None, *mask.shape, device=mask.device)
    attend = torch.compile(flex_attention, dynamic=False)
    return over_heads(lambda q, k, v: attend(q, k, v, block_mask=blocks))


def prepare(
    device: str,
    small: bool,
    batch: int,
    grid: Grid,
    heads: int,
    dim: int,
    pattern: patterns.Pattern,
    direction: str,
    dtype: torch.dtype = torch.float32,
    relative_bias: bool = False,
    with_flex: bool = False,
) -> Race:
    """Gradients to queries, keys and values, and to the table of relative biases where there is one."""
    batch, heads = (1, 2) if small else (batch, heads)
    if small and relative_bias is False:
        grid = (min(grid[0], 4), min(grid[1], 6), min(grid[2], 6))
    n = grid[0] * grid[1] * grid[2]
    inputs = [torch.randn(batch, n, heads, dim).to(device, dtype) for _ in range(3)]
    mask = pattern.mask(grid).to(device)
    full = bool(mask.all())
    also = {}
    if relative_bias:
        inputs.append(torch.randn(heads, *(2 * size - 1 for size in grid)).to(device, dtype))
        place = [x.flatten() for x in torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")]
        at = [x - x[:, None] + size - 1 for x, size in zip(place, grid, strict=True)]
    if with_flex and direction == "fwd" and not small:
        also["flex_attention"] = flex(mask)

    def ours(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Tensor:
        return fastvfx.spatiotemporal_attention(q, k, v, pattern, grid=grid, relative_bias=table)

    @over_heads
    def formula(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Tensor:
        added = None if full else mask
        if table is not None:
            added = table[:, at[0], at[1], at[2]]  # (heads, N, N)
        return scaled_dot_product_attention(q, k, v, attn_mask=added)

    pairs = batch * heads * int(mask.sum())
    backward = direction != "fwd"
    return against_torch(
        ours,
        formula,
        inputs,
        device=device,
        grad=range(len(inputs)) if backward else (),
        items=pairs,
        item="pair",
        shape=f"{[batch, *grid, heads, dim]}, {pattern}, {str(dtype).removeprefix('torch.')}",
        # Two products forwards, five more backwards, of 2 dim operations for a pair.
        flops=2 * dim * pairs * (7 if backward else 2),
        also=also,
    )


FULL = patterns.Full()
DENSE: dict[str, Any] = {"batch": 1, "grid": (8, 16, 16), "heads": 4, "dim": 64, "pattern": FULL}
WINDOWS: dict[str, Any] = {"batch": 128, "grid": (2, 7, 7), "heads": 4, "dim": 32, "pattern": FULL}
TIME: dict[str, Any] = {"batch": 784, "grid": (16, 1, 1), "heads": 4, "dim": 64, "pattern": FULL}
#: Sizes, and the goals of the forward and of both directions.
CASES: dict[str, tuple[dict[str, Any], float, float]] = {
    "all pairs, 2048 tokens": ({**DENSE, "with_flex": True}, 1.0, 1.0),
    "all pairs, 2048 tokens, bf16": ({**DENSE, "dtype": torch.bfloat16, "with_flex": True}, 2.0, 2.0),
    "neighborhood 3x5x5 of 8x16x16": (
        {**DENSE, "pattern": patterns.Neighborhood((3, 5, 5)), "with_flex": True}, 8.0, 8.0,
    ),
    "windows of 98": (WINDOWS, 2.0, 2.0),
    "windows of 98, relative bias": ({**WINDOWS, "relative_bias": True}, 2.0, 2.0),
    "time, 16 frames": (TIME, 3.0, 3.0),
    "time, 8 frames": ({**TIME, "grid": (8, 1, 1)}, 3.0, 3.0),
}  # fmt: skip
WORKLOADS = [
    Workload("attention", case, direction, partial(prepare, direction=direction, **sizes), target)
    for case, (sizes, *targets) in CASES.items()
    for direction, target in zip(("fwd", "fwd+bwd"), targets, strict=True)
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_attention(workload, versus):
    versus(workload)
