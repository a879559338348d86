"""Occupancy bitfields and the occupancy grid: packing bit by bit, and the updates formula by formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvfx
from fastvfx import reference

SHAPES = [(1, 1, 1), (4, 4, 4), (5, 7, 3), (16, 1, 33)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layout(device, isa, shape):
    """Oracle: the definition of the layout, cell by cell."""
    cells = torch.rand(2, *shape) < 0.4
    bits = fastvfx.pack_bits(cells.to(device)).cpu()
    bricks = [math.ceil(n / 4) for n in shape]
    assert bits.shape == (2, math.prod(bricks))
    unsigned = [[word % 2**64 for word in level] for level in bits.tolist()]
    assert sum(word.bit_count() for level in unsigned for word in level) == cells.sum()
    for level, x, y, z in cells.nonzero().tolist():
        word = unsigned[level][(x // 4 * bricks[1] + y // 4) * bricks[2] + z // 4]
        assert word >> (x % 4 * 16 + y % 4 * 4 + z % 4) & 1
    assert torch.equal(reference.pack_bits(cells), bits)
    assert torch.equal(fastvfx.unpack_bits(bits.to(device), shape).cpu(), cells)
    assert torch.equal(reference.unpack_bits(bits, shape), cells)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=["f32", "f16", "f64"])
def test_threshold(device, isa, dtype):
    """Oracle: comparing, then packing. At the threshold and NaN are empty."""
    values = torch.rand(1, 6, 5, 9, dtype=dtype, device=device)
    values[0, 0, 0, :3] = torch.tensor([0.5, math.nan, math.inf], dtype=dtype)
    for threshold in (0.5, torch.tensor(0.5, device=device)):
        assert torch.equal(fastvfx.pack_bits(values, threshold), fastvfx.pack_bits(values > 0.5))


def test_threads_do_not_matter(isa, one_thread_and_many):
    cells = torch.rand(3, 33, 34, 35) < 0.5
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        assert torch.equal(fastvfx.pack_bits(cells), reference.pack_bits(cells))


def test_no_levels(device):
    assert fastvfx.pack_bits(torch.zeros(0, 4, 4, 4, dtype=torch.bool, device=device)).shape == (0, 1)
    assert fastvfx.unpack_bits(torch.zeros(0, 1, dtype=torch.int64, device=device), 4).shape == (0, 4, 4, 4)


def test_opcheck_compile_and_fake(device):
    values = torch.rand(1, 5, 6, 7, device=device)
    bits = fastvfx.pack_bits(values > 0.5)
    torch.library.opcheck(torch.ops.fastvfx.occupancy_pack.default, (values > 0.5, None))
    torch.library.opcheck(torch.ops.fastvfx.occupancy_pack.default, (values, torch.tensor(0.5, device=device)))
    torch.library.opcheck(torch.ops.fastvfx.occupancy_unpack.default, (bits, [5, 6, 7]))
    there_and_back = torch.compile(
        lambda x: fastvfx.unpack_bits(fastvfx.pack_bits(x, x.mean()), (5, 6, 7)), fullgraph=True
    )
    assert torch.equal(there_and_back(values), values > values.mean())
    with FakeTensorMode():
        assert fastvfx.pack_bits(torch.empty(2, 5, 6, 7, dtype=torch.bool)).shape == (2, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fastvfx.pack_bits(torch.zeros(4, 4, 4, dtype=torch.bool)), ValueError, r"\(levels, X, Y, Z\)"),
        (lambda: fastvfx.pack_bits(torch.zeros(1, 4, 4, 4)), TypeError, "bool without a threshold, got torch.float32"),
        (lambda: fastvfx.pack_bits(torch.zeros(1, 4, 4, 4).int(), 1), TypeError, "got torch.int32"),
        (lambda: fastvfx.pack_bits(torch.zeros(1, 4, 4, 4), torch.zeros(2)), ValueError, "threshold of one element"),
        (lambda: fastvfx.unpack_bits(torch.zeros(1, 7, dtype=torch.int64), 8), ValueError, r"\(levels, 8\)"),
        (lambda: fastvfx.unpack_bits(torch.zeros(1, 8), 8), TypeError, "bits of dtype int64, got torch.float32"),
        (lambda: fastvfx.unpack_bits(torch.zeros(1, 8, dtype=torch.int64), (8, 0, 8)), ValueError, "1 to 65536 cells"),
        (lambda: fastvfx.OccupancyGrid([0, 0, 0, 1, 1]), ValueError, "roi_aabb of 6 finite numbers"),
        (lambda: fastvfx.OccupancyGrid([0, 0, 0, 1, 1, -1]), ValueError, "lower corner below upper"),
        (lambda: fastvfx.OccupancyGrid([0, 0, 0, 1, 1, 1], levels=9), ValueError, "1 to 8 levels, got 9"),
    ],
    ids=[
        "rank",
        "no_threshold",
        "int",
        "thresholds",
        "words",
        "bits_dtype",
        "resolution",
        "roi",
        "roi_order",
        "levels",
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


ROI = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]


def ball(x: torch.Tensor) -> torch.Tensor:
    return (x.norm(dim=-1, keepdim=True) < 0.5).float()


def test_levels_double_the_box():
    grid = fastvfx.OccupancyGrid([0.0, 0, 0, 2, 1, 4], 8, levels=3)
    assert grid.aabbs.tolist() == [[0, 0, 0, 2, 1, 4], [-1, -0.5, -2, 3, 1.5, 6], [-3, -1.5, -6, 5, 2.5, 10]]


def test_update_finds_what_is_there(device):
    """A ball in the middle: every cell well inside is occupied, every cell well outside is not, on each level."""
    grid = fastvfx.OccupancyGrid(ROI, 24, levels=2).to(device)
    assert not grid.binaries.any()
    assert grid.update(0, ball) and not grid.update(1, ball)
    for level in range(2):
        centres = grid._positions(level, torch.arange(24**3, device=device), 0.5)
        cell = 2 * 2**level / 24
        occupied = grid.binaries[level].flatten()
        assert occupied[centres.norm(dim=-1) < 0.5 - cell].all()
        assert not occupied[centres.norm(dim=-1) > 0.5 + cell].any()


def test_update_is_a_decaying_maximum(device):
    """Oracle: the formula; the threshold is the mean of all cells where that is below occ_thre."""
    grid = fastvfx.OccupancyGrid(ROI, 8).to(device)
    grid.update(0, lambda x: torch.full((len(x),), 0.8, device=device))
    grid.update(16, lambda x: 0.1 * (x[:, 0] > 0), ema_decay=0.5)
    torch.testing.assert_close(grid.occs, torch.full_like(grid.occs, 0.4))
    assert grid.binaries.all()
    grid.update(32, lambda x: 0.6 * (x[:, 0] > 0), ema_decay=0.5, occ_thre=0.7)
    torch.testing.assert_close(grid.occs[0, 4:], torch.full((4, 8, 8), 0.6, device=device))
    torch.testing.assert_close(grid.occs[0, :4], torch.full((4, 8, 8), 0.2, device=device))
    assert grid.binaries[0, 4:].all() and not grid.binaries[0, :4].any()  # above the mean of 0.4


def test_after_the_warmup_a_quarter_and_the_occupied(device):
    grid = fastvfx.OccupancyGrid(ROI, 16).to(device)
    grid.update(0, ball)
    occupied = int(grid.binaries.sum())
    looked_at = []
    grid.update(256, lambda x: looked_at.append(x) or ball(x))
    assert len(torch.cat(looked_at)) == 16**3 // 4 + occupied
    grid.fill()
    looked_at.clear()
    grid.update(272, lambda x: looked_at.append(x) or ball(x), chunk_size=1000)
    assert len(torch.cat(looked_at)) == 16**3 // 2 and len(looked_at) == 3


def test_the_same_generator_gives_the_same_grid(device):
    states = []
    for _ in range(2):
        grid = fastvfx.OccupancyGrid(ROI, 16, levels=2).to(device)
        generator = torch.Generator(device).manual_seed(7)
        for step in (0, 256, 272):
            grid.update(step, lambda x: ball(x) * x[:, :1].abs(), generator=generator)
        states.append(grid.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def test_nan_from_the_field_is_empty(device):
    grid = fastvfx.OccupancyGrid(ROI, 8).to(device)
    grid.update(0, lambda x: torch.where(x[:, 0] > 0, math.nan, 1.0))
    assert torch.isfinite(grid.occs).all()
    assert grid.binaries[0, :4].all() and not grid.binaries[0, 4:].any()


def test_an_update_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match="one value for each of 512 positions, got 511"):
        fastvfx.OccupancyGrid(ROI, 8).update(0, lambda x: torch.zeros(len(x) - 1))


def test_state_dict_reset_and_fill(device):
    grid = fastvfx.OccupancyGrid(ROI, (9, 8, 7), levels=2).to(device)
    grid.update(0, ball)
    other = fastvfx.OccupancyGrid([0.0, 0, 0, 1, 1, 1], (9, 8, 7), levels=2).to(device)
    other.load_state_dict(grid.state_dict())
    assert torch.equal(other.binaries, grid.binaries) and torch.equal(other.aabbs, grid.aabbs)
    grid.fill()
    assert grid.binaries.all()
    grid.reset()
    assert not grid.binaries.any() and not grid.occs.any()


def test_the_module_marches_like_the_function(device):
    grid = fastvfx.OccupancyGrid(ROI, 16, levels=2).to(device)
    grid.update(0, ball)
    o = torch.tensor([[2.0, 0.01, 0.02]], device=device)
    for dtype in (torch.float32, torch.float64):
        samples = grid.march(o.to(dtype), -o.to(dtype), step_size=0.01)
        assert samples.t_starts.dtype == dtype
        assert samples.t_starts[0] == pytest.approx(0.75, abs=0.07)
        assert samples.t_ends[-1] == pytest.approx(1.25, abs=0.07)


@pytest.mark.parametrize("convention", ["opencv", "opengl"])
def test_cells_that_no_camera_sees(device, convention):
    """Oracle: projecting cell centres. One camera at z = 3 looks at the origin, another beside it."""
    grid = fastvfx.OccupancyGrid(ROI, 16, levels=2).to(device)
    forward = torch.tensor([0.0, 0, -1])
    flip = -1.0 if convention == "opengl" else 1.0
    axes = torch.stack([torch.tensor([1.0, 0, 0]), torch.tensor([0.0, -1, 0]) * flip, forward * flip], 1)
    c2w = torch.cat([axes, torch.tensor([[0.0], [0], [3]])], 1).repeat(2, 1, 1)
    c2w[1, 0, 3] = 0.5
    grid.fill()
    grid.mark_invisible_cells(c2w, 100.0, 100.0, torch.tensor([32.0, 32]), 24.0, 64, 48, 1.0, convention=convention)
    for level in range(2):
        centres = grid._positions(level, torch.arange(16**3, device=device), 0.5)
        depth = 3 - centres[:, 2]
        seen = torch.zeros_like(depth, dtype=torch.bool)
        margin = 2 * 2**level / 16 * math.sqrt(3) / 2
        near_it = torch.zeros_like(seen)
        for x0 in (0.0, 0.5):
            u, v = 100 * (centres[:, 0] - x0) / depth, 100 * centres[:, 1] / depth
            seen |= (depth >= 1) & (u.abs() <= 32) & (v.abs() <= 24)
            wide = 100 * margin / depth.clamp(min=0.5) * 2
            near_it |= (depth >= 1 - margin) & (u.abs() <= 32 + wide) & (v.abs() <= 24 + wide)
        marked = grid.occs[level].flatten() < 0
        assert not marked[seen].any()
        assert marked[~near_it & (depth > 0.5)].all() and marked[depth < 1 - 2 * margin].all()
        assert torch.equal(grid.binaries[level].flatten(), ~marked)
    looked_at = []
    grid.update(0, lambda x: looked_at.append(x) or torch.ones(len(x), device=device))
    assert len(torch.cat(looked_at)) == int((grid.occs >= 0).sum())
    assert torch.equal(grid.binaries, grid.occs >= 0)
    with pytest.raises(ValueError, match=r"c2w of shape \(n, 3, 4\) or \(n, 4, 4\), got \(3, 4\)"):
        grid.mark_invisible_cells(c2w[0], 1.0, 1.0, 1.0, 1.0, 2, 2)
