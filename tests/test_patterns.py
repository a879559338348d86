"""Patterns: definitions spelled out token by token, composition, densities, and what does not fit."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

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

GRID = (4, 5, 6)


def mask_of(grid, allowed, kv_grid=None) -> torch.Tensor:
    """allowed(query, key) for every pair of coordinates."""
    queries = list(itertools.product(*map(range, grid)))
    keys = list(itertools.product(*map(range, kv_grid or grid)))
    return torch.tensor([[allowed(q, k) for k in keys] for q in queries], dtype=torch.bool).view(
        len(queries), len(keys)
    )


def test_full_and_divided() -> None:
    assert Full().mask(GRID).all()
    assert torch.equal(Divided("time").mask(GRID), mask_of(GRID, lambda q, k: q[1:] == k[1:]))
    assert torch.equal(Divided("space").mask(GRID), mask_of(GRID, lambda q, k: q[0] == k[0]))


def gna_axis(i: int, j: int, n: int, kernel: int, stride: int, dilation: int, causal: bool) -> bool:
    """The definition in the docstring of Neighborhood, one pair at a time."""
    if i % dilation != j % dilation:
        return False
    length = len(range(i % dilation, n, dilation))
    i, j = i // dilation, j // dilation
    group = stride * (i // stride)
    if causal:
        return j <= i and min(group + stride - 1, length - 1) - j < kernel
    leader = min(group + stride // 2, length - 1)
    before, after = kernel // 2, kernel // 2 + kernel % 2 - 1
    centre = max(before, min(leader, length - 1 - after))
    return centre - before <= j <= centre + after


@pytest.mark.parametrize("seed", range(12))
def test_neighborhood_is_as_defined(seed: int) -> None:
    rng = random.Random(seed)
    grid = tuple(rng.randint(2, 7) for _ in range(3))
    dilation = tuple(rng.randint(1, max(1, n // 2)) for n in grid)
    kernel = tuple(rng.randint(1, n // d) for n, d in zip(grid, dilation, strict=True))
    stride = tuple(rng.randint(1, k) for k in kernel)
    causal = tuple(rng.random() < 0.5 for _ in grid)

    def allowed(q, k):
        return all(gna_axis(*args) for args in zip(q, k, grid, kernel, stride, dilation, causal, strict=True))

    assert torch.equal(Neighborhood(kernel, stride, dilation, causal).mask(grid), mask_of(grid, allowed))


def test_neighborhood_always_has_its_kernel() -> None:
    for n, kernel, stride in [(9, 4, 3), (5, 5, 2), (7, 1, 1), (6, 2, 2)]:
        counts = Neighborhood((kernel, 1, 1), (stride, 1, 1)).mask((n, 1, 1)).sum(1)
        assert (counts == kernel).all()


def test_a_kernel_of_none_is_the_whole_axis() -> None:
    assert torch.equal(Neighborhood((2, None, None)).mask(GRID), Neighborhood((2, GRID[1], GRID[2])).mask(GRID))
    causal = Neighborhood((None, 1, 1), causal=(True, False, False)).mask((5, 1, 1))
    assert torch.equal(causal, torch.ones(5, 5).tril().bool())


@pytest.mark.parametrize("window", [(2, 3, 3), (8, 2, 4), (3, 3, 7)], ids=str)
@pytest.mark.parametrize("fraction", [0, 2], ids=["unshifted", "shifted"])
def test_windows_are_those_of_swin(window: tuple[int, int, int], fraction: int) -> None:
    """Roll by -shift, cut into windows, mask by the regions of the three slices an axis: as the original does it."""
    grid = (4, 6, 8)
    shift = tuple(w // 2 if fraction and w < n else 0 for w, n in zip(window, grid, strict=True))
    window_of, region_of = [], []
    for n, w, s in zip(grid, window, shift, strict=True):
        w = min(w, n)
        padded = -(-n // w) * w
        rolled = (torch.arange(n) - s) % padded  # where a token is after the roll
        window_of.append(rolled // w)
        region_of.append((rolled >= padded - w).int() + (rolled >= padded - s).int() if s else rolled * 0)

    def same(q, k):
        return all(x[i] == x[j] for xs in (window_of, region_of) for x, i, j in zip(xs, q, k, strict=True))

    given = tuple(w // 2 if fraction else 0 for w in window)  # longer windows than the axis are not shifted
    assert torch.equal(ShiftedWindows(window, given).mask(grid), mask_of(grid, same))


@pytest.mark.parametrize("kernel", [(1, 3, 1), (3, 1, 3), (2, 2, 4)], ids=str)
def test_sliding_tile_is_that_of_its_authors(kernel: tuple[int, int, int]) -> None:
    """|clamped centre - key tile| <= kernel // 2, in tiles."""
    grid, tile = (6, 6, 8), (2, 2, 2)

    def one(q: int, k: int, n: int, size: int, kernel: int) -> bool:
        n_tiles = n // size
        centre = min(max(q // size, kernel // 2), n_tiles - 1 - kernel // 2)
        return abs(centre - k // size) <= kernel // 2

    expected = mask_of(grid, lambda q, k: all(one(*args) for args in zip(q, k, grid, tile, kernel, strict=True)))
    assert torch.equal(SlidingTile(tile, kernel).mask(grid), expected)


def test_odd_sliding_tiles_are_strided_neighborhoods() -> None:
    grid = (6, 9, 12)
    assert torch.equal(SlidingTile((2, 3, 4), (3, 1, 3)).mask(grid), Neighborhood((6, 3, 12), (2, 3, 4)).mask(grid))


@pytest.mark.parametrize(
    ("chunk", "local", "sink"), [(1, None, 0), (2, None, 0), (1, 2, 0), (1, 2, 1), (2, 4, 3), (3, 3, 2)], ids=str
)
@pytest.mark.parametrize("frames", [7, 3], ids=["all frames", "the last frames"])
def test_causal_time(chunk: int, local: int | None, sink: int, frames: int) -> None:
    n = 7

    def allowed(q, k):
        i, j = q[0] + n - frames, k[0]
        end = (i // chunk + 1) * chunk
        return j < end and (local is None or j >= end - local or j < sink)

    got = CausalTime(chunk, local, sink).mask((frames, 2, 1), (n, 2, 1))
    assert torch.equal(got, mask_of((frames, 2, 1), allowed, (n, 2, 1)))


def test_blocks() -> None:
    grid, block = (3, 4, 5), (2, 2, 2)  # blocks at the far borders are cut off
    n = 2 * 2 * 3
    indices = torch.full((2, 1, n, 3), -1)
    for b, q in itertools.product(range(2), range(n)):
        chosen = torch.randperm(n)[: int(torch.randint(0, 4, ()))]
        indices[b, 0, q, : len(chosen)] = chosen
    got = Blocks(block, indices).mask(grid)
    assert got.shape == (2, 1, 60, 60)

    def block_of(x):
        return ((x[0] // 2) * 2 + x[1] // 2) * 3 + x[2] // 2

    for b in range(2):
        assert torch.equal(got[b, 0], mask_of(grid, lambda q, k, b=b: block_of(k) in indices[b, 0, block_of(q)]))


def test_per_head_and_intersections() -> None:
    a, b = Neighborhood((3, 3, 3), dilation=(1, 1, 2)), CausalTime(2)
    heads = PerHead([a, b, a])
    assert torch.equal(heads.mask(GRID), torch.stack([a.mask(GRID), b.mask(GRID), a.mask(GRID)]))
    assert torch.equal((heads & b).mask(GRID), heads.mask(GRID) & b.mask(GRID))
    assert torch.equal((b & heads).mask(GRID), heads.mask(GRID) & b.mask(GRID))
    assert (Full() & a) == a == (a & Full())
    blocks = Blocks((2, 2, 2), torch.arange(18).view(1, 1, 18, 1))
    assert torch.equal((blocks & b).mask(GRID), blocks.mask(GRID) & b.mask(GRID))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Neighborhood((2, 3, 3)), CausalTime(2)),
        (Neighborhood((2, 2, 3), dilation=(2, 1, 2)), ShiftedWindows((3, 2, 4), (1, 1, 3))),
        (Neighborhood((2, 2, 3), dilation=(2, 1, 2)), Neighborhood((2, 5, 2), dilation=(2, 1, 2), causal=True)),
        (CausalTime(1, 2, 1), CausalTime(2, 4, 1)),
        (CausalTime(1, 1, 2), Neighborhood((None, 3, 3))),
        (Divided("time"), Divided("space")),
        (SlidingTile(2, (1, 2, 3)), Divided("space")),
    ],
    ids=str,
)
def test_both_is_the_intersection(a: Pattern, b: Pattern) -> None:
    for x, y in ((a, b), (b, a)):
        assert torch.equal((x & y).mask(GRID), a.mask(GRID) & b.mask(GRID))


PATTERNS = [
    Full(),
    Divided("time"),
    Neighborhood((2, 3, 2), (1, 2, 1), (2, 1, 3), (True, False, False)),
    ShiftedWindows((3, 2, 4), (1, 1, 3)),
    SlidingTile((2, 2, 4), (1, 3, 2)),
    CausalTime(1, 2, 1),
    PerHead([Divided("space"), Neighborhood((1, 2, 2), dilation=(1, 1, 2)), CausalTime(), Divided("space")]),
    Neighborhood((3, 3, 3)) & CausalTime(),
    Blocks((2, 3, 2), torch.randint(0, 4, (2, 4, 12, 1))) & Neighborhood((3, 3, 3)),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: str(p)[:40])
def test_density_is_the_mean_of_the_mask(pattern: Pattern) -> None:
    assert pattern.density(GRID) == pytest.approx(pattern.mask(GRID).double().mean().item(), abs=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS[:-1], ids=lambda p: str(p)[:40])
def test_reach_bounds_every_offset(pattern: Pattern) -> None:
    """What relative_bias must hold: no allowed key is further away on an axis than reach."""
    at = torch.tensor(list(itertools.product(*map(range, GRID))))
    offset = (at[None] - at[:, None]).abs()
    for part in pattern.spans(GRID, None, 4 if isinstance(pattern, PerHead) else None):
        for p, mask in enumerate(part.mask()):
            furthest = offset[mask].amax(0) if mask.any() else torch.zeros(3)
            limit = torch.tensor(part.reach) * torch.tensor(part.dilation)
            assert (furthest <= limit).all(), (p, furthest, limit)


def test_spans_are_kept_and_free_of_modes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    pattern = Neighborhood((2, 2, 2))
    with FakeTensorMode():
        fake = pattern.spans((5, 7, 9))[0].t
    with torch.inference_mode():
        kept = pattern.spans((5, 7, 9))[0].t
    assert type(kept) is torch.Tensor is not type(fake) and not kept.is_inference()
    assert pattern.spans((5, 7, 9))[0].t is kept and Neighborhood((2, 2, 2)).spans((5, 7, 9))[0].t is kept


def test_plots() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure = Neighborhood((3, 3, 3)).plot(GRID, query=(1, 2, 3))
    assert len(figure.axes) == 4
    drawn = [axes.images[0].get_array() for axes in figure.axes]
    assert sum(float(image.sum()) for image in drawn) == 27
    whole = PERHEAD.plot(GRID, head=1)
    assert whole.axes[0].images[0].get_array().shape == (math.prod(GRID), math.prod(GRID))
    with pytest.raises(ValueError, match=r"expected query inside the grid \(4, 5, 6\), got \(4, 0, 0\)"):
        Full().plot(GRID, query=(4, 0, 0))
    with pytest.raises(ValueError, match="expected head from 0 to 1, got 2"):
        PERHEAD.plot(GRID, head=2)
    pyplot.close("all")


PERHEAD = PerHead([Divided("time"), Divided("space")])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Divided("depth"), ValueError, "Divided: expected over to be 'time' or 'space', got 'depth'"),
        (
            lambda: Neighborhood((3, 3)),
            ValueError,
            r"Neighborhood: expected kernel to be one number or three, .*, got \(3, 3\)",
        ),
        (lambda: Neighborhood(0), ValueError, "Neighborhood: expected kernel >= 1, got 0"),
        (lambda: Neighborhood(2.5), TypeError, "Neighborhood: expected kernel to be an int, got float"),
        (
            lambda: Neighborhood(3, stride=4),
            ValueError,
            "Neighborhood: expected stride <= kernel, got stride 4 and kernel 3",
        ),
        (
            lambda: Neighborhood(None, dilation=2),
            ValueError,
            "expected stride and dilation 1 where kernel is None, got 1 and 2",
        ),
        (lambda: Neighborhood(3, causal=1), TypeError, "Neighborhood: expected causal to be one bool or three, got 1"),
        (
            lambda: Neighborhood((5, 3, 3)).mask(GRID),
            ValueError,
            r"expected kernel \* dilation <= 4, the time of the grid, got kernel 5 and dilation 1",
        ),
        (
            lambda: Neighborhood((1, 1, 3), dilation=(1, 1, 3)).mask(GRID),
            ValueError,
            "<= 6, the width of the grid, got kernel 3 and dilation 3",
        ),
        (lambda: Neighborhood(1).mask((0, 2, 2)), ValueError, r"expected kernel \* dilation <= 0"),
        (
            lambda: Neighborhood((1, 3, 3)).mask((2, 5, 5), (2, 6, 5)),
            ValueError,
            "Neighborhood: expected grid and kv_grid of the same height .* got 5 and 6",
        ),
        (
            lambda: CausalTime().mask((3, 1, 1), (2, 1, 1)),
            ValueError,
            "CausalTime: expected at least as many frames of keys .* 3 frames of queries and 2 of keys",
        ),
        (lambda: CausalTime(chunk=3, local=2), ValueError, "CausalTime: expected local >= chunk=3, got 2"),
        (lambda: CausalTime(sink=-1), ValueError, "CausalTime: expected sink >= 0, got -1"),
        (lambda: ShiftedWindows(4, 4), ValueError, "ShiftedWindows: expected shift < window, got shift 4 and window 4"),
        (
            lambda: SlidingTile(2, (3, 3, 3)).mask(GRID),
            ValueError,
            "SlidingTile: expected a kernel of at most 2 tiles, which is the time of the grid, got 3",
        ),
        (
            lambda: Blocks(2, torch.zeros(1, 1, 2, 2)),
            TypeError,
            "Blocks: expected indices of dtype int32 or int64, got torch.float32",
        ),
        (
            lambda: Blocks(2, torch.zeros(2, 2, dtype=torch.int32)),
            ValueError,
            r"Blocks: expected indices of shape \(1 or batch, .*, got \(2, 2\)",
        ),
        (lambda: Blocks(2, [1]), TypeError, "Blocks: expected indices to be a torch.Tensor, got list"),
        (lambda: PerHead([]), TypeError, "PerHead: expected patterns to be a sequence of patterns"),
        (lambda: PerHead([PERHEAD]), ValueError, "PerHead: expected no PerHead or Blocks among patterns"),
        (lambda: PERHEAD & PerHead([Full()] * 3), ValueError, "expected as many heads in both, got 2 and 3"),
        (lambda: PERHEAD.spans(GRID, None, 3), ValueError, "PerHead: expected one pattern for each of 3 heads, got 2"),
        (
            lambda: (CausalTime(1, 2, 1) & CausalTime(1, 2, 2)).mask(GRID),
            ValueError,
            "whose time axes meet in one interval",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
