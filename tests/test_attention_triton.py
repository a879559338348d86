"""The Triton kernels of attention without a GPU: run by Triton's interpreter.

Oracle: fastvfx.reference.attention in float64, gradients by autograd; the same-dtype formula is the reference too. The
interpreter has to be chosen before Triton is imported, so one child process (this file as a script) runs all cases. It
is slow, so tiles are small: small grids have tiles of every kind. It multiplies the bits of bfloat16 operands as
integers, so they are only compiled.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import interpreted
import pytest
import torch
from oracle import assert_as_good_as_torch
from torch import Tensor

from fastvfx import patterns
from fastvfx.functional.attention_checks import Inputs, why_no_gpu_kernel
from fastvfx.patterns import Pattern
from fastvfx.patterns.spans import Spans
from fastvfx.reference.attention import Options, attention

pytest.importorskip("triton")

Grid = tuple[int, int, int]
NAMES = ("q", "k", "v", "extra_k", "extra_v", "relative_bias", "bias")


class Case(NamedTuple):
    pattern: Pattern = patterns.Full()
    grid: Grid = (3, 4, 5)
    kv_grid: Grid | None = None
    heads: tuple[int, int] = (1, 1)  #: of queries, of keys
    dims: tuple[int, int] = (16, 16)
    batch: int = 1
    dtype: torch.dtype = torch.float32
    options: tuple[str, ...] = ()
    blocks: tuple[int, int] = (16, 16)  #: queries and keys of a tile


NEAR, WINDOWS = patterns.Neighborhood, patterns.ShiftedWindows
CASES = {
    "full": Case(),
    "full-odd": Case(grid=(1, 1, 53), heads=(2, 1), dims=(20, 40), batch=2),
    "other-keys": Case(grid=(2, 3, 4), kv_grid=(3, 5, 3)),
    "float16": Case(dtype=torch.float16, heads=(2, 1), dims=(24, 16), blocks=(32, 16)),
    "neighborhood": Case(NEAR((3, 3, 5)), (4, 5, 6), blocks=(32, 16)),
    "neighborhood-full-tiles": Case(NEAR((1, 7, 12)), (1, 9, 16)),
    "neighborhood-1d": Case(NEAR((9, 1, 1)), (90, 1, 1)),
    "neighborhood-stride": Case(NEAR((4, 5, 3), (2, 4, 1)), (4, 6, 5)),
    "neighborhood-dilated": Case(NEAR((2, 3, 3), dilation=(3, 2, 1)), (6, 6, 3)),
    "neighborhood-causal": Case(NEAR((3, 3, 3), dilation=(2, 1, 1), causal=(True, False, True)), (6, 3, 4)),
    "windows": Case(WINDOWS((2, 4, 4), (1, 2, 2)), (3, 6, 6), blocks=(32, 16)),
    "sliding-tiles": Case(patterns.SlidingTile((1, 2, 4), (1, 3, 3)), (1, 6, 12)),
    "causal": Case(patterns.CausalTime(), (6, 3, 4), heads=(2, 2)),
    "causal-local-sink": Case(patterns.CausalTime(chunk=2, local=3, sink=2), (9, 3, 3)),
    "causal-cache": Case(patterns.CausalTime(), (2, 3, 4), (5, 3, 4)),
    "space": Case(patterns.Divided("space"), (4, 4, 5)),
    "time": Case(patterns.Divided("time"), (5, 3, 4)),
    "heads": Case(
        patterns.PerHead([NEAR((1, 3, 3)), patterns.CausalTime()]), (3, 4, 5), heads=(2, 1)
    ),
    "extra": Case(NEAR((1, 3, 3)), (2, 4, 5), options=("extra",), heads=(2, 1), batch=2),
    "masks": Case(patterns.CausalTime(), options=("extra", "extra_mask", "kv_mask"), batch=2),
    "mask-of-all": Case(options=("kv_mask", "no_keys")),
    "relative-bias": Case(WINDOWS((2, 2, 3), (1, 1, 0)), (3, 4, 6), heads=(2, 2), options=("relative",)),
    "relative-bias-dilated": Case(
        NEAR((1, 3, 3), dilation=(1, 1, 2)), (2, 4, 7), options=("relative", "extra")
    ),
    "bias": Case(patterns.CausalTime(), (4, 2, 3), batch=2, options=("bias",)),
    "bias-of-each": Case(batch=2, options=("bias_each", "softcap")),
    "softcap": Case(NEAR((3, 3, 3)), (3, 4, 4), options=("softcap", "extra")),
    "rotary": Case(options=("rotary",), dims=(20, 16), heads=(2, 1)),
    "rotary-halves": Case(patterns.CausalTime(), (2, 3, 4), (3, 3, 4), options=("rotary", "halves")),
    "dropout": Case(NEAR((3, 3, 3)), (3, 4, 4), heads=(2, 2), options=("dropout", "extra", "relative")),
    "negative-scale": Case(options=("negative",)),
    "blocks": Case(grid=(2, 4, 3), heads=(2, 1), options=("blocks",)),
    "blocks-causal": Case(patterns.CausalTime(), (5, 3, 4), options=("blocks", "large_blocks"), batch=2),
    "packed": Case(grid=(2, 3, 4), heads=(2, 2), options=("packed",)),
}  # fmt: skip


class Arguments(NamedTuple):
    leaves: dict[str, Tensor | None]  #: the names above
    options: Options
    grad: Tensor
    grad_lse: Tensor


def arguments(case: Case, dtype: torch.dtype) -> Arguments:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype).to(dtype)

    n, m = math.prod(case.grid), math.prod(case.kv_grid or case.grid)
    heads, kv_heads = case.heads
    dim, dim_v = case.dims
    spans = spans_of(case)
    wide = torch.promote_types(dtype, torch.float32)
    leaves: dict[str, Tensor | None] = dict.fromkeys(NAMES)
    leaves["q"] = draw(case.batch, n, heads, dim)
    leaves["k"], leaves["v"] = draw(case.batch, m, kv_heads, dim), draw(case.batch, m, kv_heads, dim_v)
    more = {"scale": -0.3 if "negative" in case.options else dim**-0.5}
    if "packed" in case.options:
        leaves["q"], leaves["k"], leaves["v"] = draw(case.batch, n, 3, heads, dim).unbind(2)
    if "extra" in case.options:
        leaves["extra_k"], leaves["extra_v"] = (
            draw(case.batch, 19, kv_heads, dim),
            draw(case.batch, 19, kv_heads, dim_v),
        )
    more |= {"extra_mask": draw(case.batch, 19) > 0} if "extra_mask" in case.options else {}
    more |= (
        {"kv_mask": draw(case.batch, m) > (9 if "no_keys" in case.options else 0)} if "kv_mask" in case.options else {}
    )
    if "relative" in case.options:
        leaves["relative_bias"] = draw(heads, *(2 * r + 1 for r in spans.reach)).float().to(wide)
    if "bias" in case.options or "bias_each" in case.options:
        leaves["bias"] = draw(case.batch if "bias_each" in case.options else 1, heads, n, m)
    more |= {"softcap": 0.8} if "softcap" in case.options else {}
    more |= {"dropout": 0.3, "seed": 5} if "dropout" in case.options else {}
    if "rotary" in case.options:
        more |= {"rotary": turns(draw(n, dim // 2)), "kv_rotary": turns(draw(m, dim // 2))}
        more |= {"rotary_halves": "halves" in case.options}
    if "blocks" in case.options:
        block = (4, 3, 4) if "large_blocks" in case.options else (2, 2, 3)
        more |= {"block": block, "blocks": some_blocks(block, case, generator)}
    grad = draw(case.batch, n, heads, dim_v)
    return Arguments(leaves, Options(spans, **more), grad, draw(case.batch, heads, n).to(wide))


def turns(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], -1)


def some_blocks(block: Grid, case: Case, generator: torch.Generator) -> Tensor:
    """(batch, heads, query blocks, n): for each block of queries about half of those of keys, -1 among them."""
    count = math.prod(-(-n // b) for n, b in zip(case.grid, block, strict=True))
    shape = case.batch, case.heads[0], count
    order = torch.rand((*shape, count), generator=generator).argsort(-1)
    chosen = torch.rand((*shape, count), generator=generator) < 0.5
    return torch.where(chosen, order, -1).to(torch.int32)


def spans_of(case: Case) -> Spans:
    (spans,) = case.pattern.spans(case.grid, case.kv_grid, case.heads[0])
    return spans


def shape_of(options: Options) -> list[int]:
    """The integers of torch.ops.fastvfx.attention_fwd."""
    s = options.spans
    return [
        *s.grid, *s.kv_grid, *s.dilation, *s.sink, *options.block, int(options.rotary_halves), *map(int, s.whole),
        *s.reach,
    ]  # fmt: skip


def run(case: Case, device: str) -> list[Tensor | None]:
    """out, lse and all gradients."""
    from fastvfx._triton import attention as kernels

    leaves, o, grad, grad_lse = arguments(case, case.dtype)
    q, k, v, extra_k, extra_v, relative_bias, bias = leaves.values()
    inputs = (
        q, k, v, extra_k, extra_v, o.extra_mask, o.kv_mask, relative_bias, bias, o.rotary, o.kv_rotary, o.blocks,
        *o.spans.axes, o.spans.of_head, shape_of(o), o.scale, o.softcap, o.dropout, o.seed,
    )  # fmt: skip
    *inputs, grad, grad_lse = (x.to(device) if isinstance(x, Tensor) else x for x in (*inputs, grad, grad_lse))
    out, lse = kernels.attention_fwd(*inputs)
    wanted = [x is not None for x in leaves.values()]
    grads = kernels.attention_bwd(grad, grad_lse, *inputs[:16], out, lse, *inputs[16:], wanted)
    return [x.cpu() if want else None for x, want in zip((out, lse, *grads), [True, True, *wanted], strict=True)]


def computed() -> dict[str, list[Tensor | None]]:
    """Of every case, by the interpreter. What is not written is NaN."""
    torch.use_deterministic_algorithms(True)  # fills empty tensors
    from fastvfx._triton import attention as kernels
    from fastvfx._triton.attention_plan import Tile

    results = {}
    for name, case in CASES.items():
        kernels.tiles_of = lambda *_, b=case.blocks: (Tile(*b, 4, 1), Tile(*b, 4, 1), Tile(*b[::-1], 4, 1))
        results[name] = run(case, "cpu")
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[Tensor | None]]:
    return interpreted.results_of(__file__, tmp_path_factory.mktemp("interpreted"))


def formula(case: Case, dtype: torch.dtype) -> list[Tensor | None]:
    leaves, options, grad, grad_lse = arguments(case, dtype)
    given = [x.requires_grad_() for x in leaves.values() if x is not None]
    out, lse = attention(*leaves.values(), options)
    some = lse.isfinite()
    outputs, weights = [out, torch.where(some, lse, 0.0)], [grad, torch.where(some, grad_lse, 0.0)]
    found = iter(torch.autograd.grad(outputs, given, weights))
    return [out, lse, *(None if x is None else next(found) for x in leaves.values())]


def assert_agrees(case: Case, results: list[Tensor | None]) -> None:
    same, exact = formula(case, case.dtype), formula(case, torch.float64)
    names = ("out", "lse", *(f"grad_{n}" for n in NAMES))
    for what, g, s, e in zip(names, results, same, exact, strict=True):
        if what == "lse":
            assert torch.equal(g.isfinite(), e.isfinite())
            g, s, e = (torch.where(e.isfinite(), x, 0.0) for x in (g, s, e))
        assert (g is None) == (e is None), what
        if g is not None:
            assert_as_good_as_torch(g, s, e, what, floor=2.0)


@pytest.mark.parametrize("name", list(CASES))
def test_interpreter_agrees_with_float64(name, results):
    assert_agrees(CASES[name], results[name])


LARGE = Case(grid=(6, 14, 18), heads=(4, 2), dims=(64, 64), batch=2, dtype=torch.bfloat16)
ON_A_GPU = {
    "full": LARGE,
    "full-128": LARGE._replace(dims=(128, 128), dtype=torch.float16),
    "full-float32": LARGE._replace(dims=(40, 72), dtype=torch.float32),
    "full-256": LARGE._replace(dims=(256, 256)),
    "neighborhood": LARGE._replace(pattern=NEAR((3, 7, 9))),
    "neighborhood-dilated": LARGE._replace(pattern=NEAR((3, 3, 3), dilation=(2, 2, 3)), options=("relative",)),
    "windows": LARGE._replace(pattern=WINDOWS((2, 7, 7), (1, 3, 3)), options=("relative", "softcap")),
    "causal": LARGE._replace(pattern=patterns.CausalTime(local=3, sink=1), options=("rotary", "extra", "extra_mask")),
    "masks": LARGE._replace(options=("kv_mask", "dropout", "extra")),
    "bias": LARGE._replace(options=("bias", "packed", "rotary", "halves"), heads=(2, 2)),
    "blocks": LARGE._replace(options=("blocks", "large_blocks")),
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", list(ON_A_GPU))
def test_cuda_agrees_with_float64(name):
    """With the tiles that users get. Twice: every gradient is the same every time."""
    case = ON_A_GPU[name]
    first, again = run(case, "cuda"), run(case, "cuda")
    assert_agrees(case, first)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_says_what_the_gpu_kernel_does_not_take():
    def inputs(dim: int, dtype: torch.dtype) -> Inputs:
        x = torch.empty(1, 4, 1, dim, dtype=dtype)
        return Inputs(x, x, x, None, None, None, None)

    assert why_no_gpu_kernel(inputs(256, torch.bfloat16)) is None
    assert "no float64" in str(why_no_gpu_kernel(inputs(64, torch.float64)))
    assert "up to 256 channels, not 264" in str(why_no_gpu_kernel(inputs(264, torch.float16)))


TABLES = [
    patterns.Full(),
    patterns.Divided("time"),
    patterns.Divided("space"),
    *(NEAR(k, s, causal=c) for k, s in ((1, 1), (4, 3), (5, 2), (7, 7)) for c in (False, True)),
    *(NEAR(3, s, d, c) for s, d in ((1, 2), (2, 3), (3, 2)) for c in (False, True)),
    WINDOWS(3, 0),
    WINDOWS((4, 3, 5), (2, 1, 3)),
    patterns.SlidingTile(2, (1, 2, 3)),
    patterns.CausalTime(),
    patterns.CausalTime(chunk=3, local=4, sink=2),
    patterns.CausalTime(local=2) & NEAR((1, 3, 5)),
    NEAR((2, 3, 3), dilation=(3, 2, 1)) & WINDOWS((4, 5, 3), (1, 2, 0)),
    NEAR(3, dilation=2) & NEAR(5, causal=True, dilation=2) & patterns.CausalTime(),
]


@pytest.mark.parametrize("grid, kv_grid", [((10, 11, 12), None), ((3, 11, 12), (10, 11, 12))], ids=["all", "cache"])
@pytest.mark.parametrize("pattern", TABLES, ids=str)
def test_tables_agree(pattern, grid, kv_grid):
    """The gradient of keys needs that spans of queries never fall, in the order of residues: so it is."""
    from fastvfx._triton.attention_plan import Geometry, tables_of, turned

    (spans,) = pattern.spans(grid, kv_grid, 1)
    geometry = Geometry.of(shape_of(Options(spans, 1.0)))
    tables = tables_of(geometry, spans.axes)
    backward = turned(tables, geometry.kv_grid)
    for a, (mask, there, back) in enumerate(zip(spans.masks(), tables, backward, strict=True)):
        n, m = geometry.grid[a], geometry.kv_grid[a]
        assert torch.equal(mask_of(there, n, m), mask[0])
        assert torch.equal(mask_of(back, m, n), mask[0].T)


def mask_of(tables, rows: int, columns: int) -> Tensor:
    """(rows, columns) bool: what the kernels make of the tables of an axis."""
    if tables.spans is None:
        return torch.ones((rows, columns), dtype=torch.bool)
    column = torch.arange(columns)
    start, end = tables.spans[0, :, :1], tables.spans[0, :, 1:]
    ordered = ((column >= start) | (column < (tables.sink or 0))) & (column < end)
    row_order = torch.arange(rows) if tables.row_order is None else tables.row_order.long()
    column_order = column if tables.column_order is None else tables.column_order.long()
    return ordered[row_order.argsort()][:, column_order.argsort()]


if __name__ == "__main__":
    torch.save(computed(), sys.argv[1])
