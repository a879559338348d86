"""march_rays: the dense evaluation of every step in float64 as oracle, the reference to the bit, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvfx
from fastvfx.functional import RaySamples

INF = math.inf


def grid(shape=(20, 20, 20), levels=1, occupied=0.2, kind="blobs", seed=3) -> Tensor:
    """bool (levels, X, Y, Z)."""
    g = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.rand(levels, *shape, generator=g) < occupied
    coarse = torch.randn(levels, 1, 5, 5, 5, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[:, 0]
    return smooth > torch.quantile(smooth.flatten(), 1 - occupied)


def boxes(levels=1, dtype=torch.float32) -> Tensor:
    half = torch.tensor([1.0, 1.5, 0.8], dtype=dtype)
    centre = torch.tensor([0.1, -0.2, 0.3], dtype=dtype)
    return torch.stack([torch.cat([centre - half * 2**l, centre + half * 2**l]) for l in range(levels)])


def rays(n=64, dtype=torch.float32, seed=5) -> tuple[Tensor, Tensor]:
    """From outside, from inside, and past the box."""
    g = torch.Generator().manual_seed(seed)
    o = torch.randn(n, 3, generator=g, dtype=torch.float64)
    o[::2] = 3 * torch.nn.functional.normalize(o[::2], dim=-1)
    target = torch.rand(n, 3, generator=g, dtype=torch.float64) * 3 - 1.5
    return o.to(dtype), (target - o).to(dtype)


class Scene:
    def __init__(self, shape=(20, 20, 20), levels=1, n=64, dtype=torch.float32, device="cpu", cells=None, **options):
        self.cells = (grid(shape, levels) if cells is None else cells).to(device)
        self.shape = tuple(self.cells.shape[1:])
        self.aabbs = boxes(len(self.cells), dtype).to(device)
        self.o, self.d = (x.to(device) for x in rays(n, dtype))
        self.bits = fastvfx.pack_bits(self.cells)
        self.options = {"step_size": 0.011, **options}

    def run(self, **options) -> RaySamples:
        return fastvfx.march_rays(self.o, self.d, self.bits, self.aabbs, self.shape, **{**self.options, **options})

    def reference(self, **options) -> RaySamples:
        with fastvfx.backend("reference"):
            return self.run(**options)


def steps_one_by_one(near: float, far: float, step: float, cone: float, largest: float) -> list[float]:
    """t_k by the recurrence that defines them."""
    ts = [near]
    while ts[-1] < far:
        ts.append(ts[-1] + min(max(ts[-1] * cone, step), largest))
    return ts


def dense(scene: Scene, r: int, near=0.0, far=12.0, cone=0.0, largest=INF) -> tuple[Tensor, Tensor, Tensor]:
    """t (K + 1,), which of the K steps the ray has, and which are too near to a border to say; all in float64."""
    t = torch.tensor(steps_one_by_one(near, far, scene.options["step_size"], cone, largest), dtype=torch.float64)
    middle = 0.5 * (t[:-1] + t[1:])
    x = scene.o[r].double() + middle[:, None] * scene.d[r].double()
    kept, unsure = torch.zeros(len(middle), dtype=torch.bool), middle.sub(far).abs() < 1e-6
    decided = torch.zeros_like(kept)
    for level, box in enumerate(scene.aabbs.double()):
        unit = (x - box[:3]) / (box[3:] - box[:3])
        inside = ((unit >= 0) & (unit < 1)).all(-1) & (middle < far)
        unsure |= (torch.minimum(unit.abs(), (unit - 1).abs()) < 1e-5).any(-1) & ~decided
        position = unit * torch.tensor(scene.shape)
        unsure |= ((position - position.round()).abs() < 1e-3).any(-1) & inside & ~decided
        cell = position.floor().long()
        cell = torch.minimum(cell.clamp(min=0), torch.tensor(scene.shape) - 1)
        occupied = scene.cells[level, cell[:, 0], cell[:, 1], cell[:, 2]]
        kept |= inside & occupied & ~decided
        decided |= inside
    return t, kept, unsure


def assert_is_dense(scene: Scene, samples: RaySamples, **lattice) -> None:
    checked = 0
    for r in range(len(scene.o)):
        t, kept, unsure = dense(scene, r, **lattice)
        begin, end = samples.offsets[r : r + 2].tolist()
        starts = samples.t_starts[begin:end].double()
        k = (t[None] - starts[:, None]).abs().argmin(1)
        torch.testing.assert_close(starts, t[k], rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(samples.t_ends[begin:end].double(), t[k + 1], rtol=2e-6, atol=2e-6)
        assert (k[1:] > k[:-1]).all()
        got = torch.zeros_like(kept)
        got[k] = True
        wrong = (got != kept) & ~unsure
        assert not wrong.any(), f"ray {r}: steps {wrong.nonzero()[:5, 0].tolist()} of {len(kept)}"
        checked += int(kept.sum())
    assert checked > 100


def assert_same(a: RaySamples, b: RaySamples) -> None:
    for name, x, y in zip(RaySamples._fields, a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert torch.equal(x, y), name


LATTICES = {
    "even": {},
    "near_far": {"near": 1.03, "far": 4.2},
    "cone": {"cone": 0.02, "near": 0.05},
    "cone_near_0": {"cone": 0.004},
    "cone_largest": {"cone": 0.02, "near": 0.05, "largest": 0.05},
}


def as_options(lattice: dict) -> dict:
    names = {"cone": "cone_angle", "largest": "max_step_size"}
    return {names.get(k, k): v for k, v in lattice.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("levels", [1, 3], ids=["1level", "3levels"])
@pytest.mark.parametrize("lattice", LATTICES.values(), ids=LATTICES.keys())
def test_samples_are_those_of_every_step(device, isa, lattice, levels, dtype):
    """Oracle: every step of the recurrence, looked up densely in float64."""
    scene = Scene(levels=levels, n=24, dtype=dtype)
    samples = scene.run(**as_options(lattice))
    assert_is_dense(scene, samples, **lattice)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (33, 12, 123)], ids=str)
@pytest.mark.parametrize("kind", ["blobs", "random"])
def test_odd_resolutions(isa, shape, kind):
    """Oracle: as above; resolutions that are no multiple of a brick."""
    scene = Scene(cells=grid(shape, 2, 0.5, kind) | (torch.tensor(shape).prod() == 1), n=24)
    assert_is_dense(scene, scene.run())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("levels", [1, 4], ids=["1level", "4levels"])
@pytest.mark.parametrize("kind", ["blobs", "random"])
def test_even_steps_equal_the_reference_to_the_bit(device, isa, kind, levels, dtype):
    """Oracle: the reference, which rounds alike. So all instruction sets agree, and the GPU with the CPU."""
    scene = Scene(cells=grid((40, 40, 40), levels, 0.1, kind), n=3000, dtype=dtype, device=device)
    samples = scene.run(jitter_seed=11, near=0.3)
    assert samples.t_starts.shape[0] > 10000
    assert_same(samples, scene.reference(jitter_seed=11, near=0.3))


def test_cone_steps_equal_the_reference(device, isa):
    """Oracle: the reference; exp2 may differ in the last place of a double, seldom seen in a float."""
    scene = Scene(cells=grid((40, 40, 40), 3, 0.1), n=2000, device=device)
    a, b = (f(cone_angle=0.01, near=0.1, jitter_seed=1) for f in (scene.run, scene.reference))
    assert torch.equal(a.offsets, b.offsets) and torch.equal(a.ray_indices, b.ray_indices)
    torch.testing.assert_close(a.t_starts, b.t_starts, rtol=1e-6, atol=0)
    torch.testing.assert_close(a.t_ends, b.t_ends, rtol=1e-6, atol=0)


@pytest.mark.parametrize("levels", [1, 3], ids=["1level", "3levels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_one_sample_per_cell(device, isa, levels, dtype):
    """Oracle: the reference, which sorts the t of all planes. Together a ray's samples cover its dense samples."""
    scene = Scene(levels=levels, n=200, dtype=dtype, device=device, step_size=0.0)
    a, b = scene.run(), scene.reference()
    long = [(s.t_ends - s.t_starts) > 1e-5 for s in (a, b)]  # shorter: where two planes are crossed at once
    assert torch.equal(a.ray_indices[long[0]], b.ray_indices[long[1]])
    torch.testing.assert_close(a.t_starts[long[0]], b.t_starts[long[1]], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(a.t_ends[long[0]], b.t_ends[long[1]], rtol=1e-5, atol=2e-5)
    assert (a.t_ends >= a.t_starts).all()
    covered = torch.zeros(200).index_add_(0, a.ray_indices.cpu(), (a.t_ends - a.t_starts).float().cpu())
    fine = scene.run(step_size=1e-3)
    length = torch.zeros(200).index_add_(0, fine.ray_indices.cpu(), (fine.t_ends - fine.t_starts).float().cpu())
    torch.testing.assert_close(covered, length, rtol=0, atol=0.03)


def test_a_ray_from_far_away_returns_at_once(isa):
    """40,000 units at steps of 1e-3, where adding up in float32 stands still; the steps are even to float precision."""
    far_o = torch.tensor([[40000.0, 0.25, 0.3], [4e9, 0.1, 0.1]])
    d = torch.tensor([[-1.0, 0, 0], [-1.0, 0, 0]])
    bits = fastvfx.pack_bits(torch.ones(1, 16, 16, 16, dtype=torch.bool))
    box = torch.tensor([[-1.0, -1, -1, 1, 1, 1]])
    samples = fastvfx.march_rays(far_o, d, bits, box, 16, step_size=1e-3)
    assert samples.offsets[1] == 2000
    torch.testing.assert_close(samples.t_starts[:2000], 39999 + torch.arange(2000) * 1e-3, rtol=0, atol=4e-3)
    assert samples.t_ends[1999] - samples.t_starts[0] == pytest.approx(2, abs=8e-3)
    exact = fastvfx.march_rays(far_o.double(), d.double(), bits, box.double(), 16, step_size=1e-3)
    steps = exact.t_ends[:2000] - exact.t_starts[:2000]
    torch.testing.assert_close(steps, torch.full_like(steps, 1e-3), rtol=0, atol=1e-10)
    cone = fastvfx.march_rays(far_o[:1], d[:1], bits, box, 16, step_size=1e-3, cone_angle=1e-3, near=0.1)
    assert cone.t_starts.shape[0] <= 1


def test_an_empty_grid_is_crossed_at_once_whatever_the_step(isa):
    """10^9 steps lie in the box; bricks are skipped in closed form."""
    bits = fastvfx.pack_bits(torch.zeros(1, 64, 64, 64, dtype=torch.bool))
    samples = fastvfx.march_rays(*rays(2000), bits, boxes(), 64, step_size=1e-9)
    assert samples.t_starts.shape == (0,) and not samples.offsets.any()


@pytest.mark.parametrize("high", [0, 3, 7, 8, 2**31 - 1])
def test_no_pattern_of_cells_is_mistaken_for_another(isa, high):
    """Oracle: the reference. The vector walk marks empty bricks with 0x5bd1e995 in a copy; here a brick has it too."""
    scene = Scene(cells=torch.zeros(1, 32, 32, 32, dtype=torch.bool), n=2000)
    scene.bits[0, 100:400:3] = (high << 32) | 0x5BD1E995
    samples = scene.run()
    assert samples.t_starts.shape[0] > 1000
    assert_same(samples, scene.reference())


def test_a_full_grid_has_every_step(isa):
    cells = torch.ones(1, 9, 9, 9, dtype=torch.bool)
    o, d = torch.tensor([[-2.0, 0.013, 0.021]]), torch.tensor([[1.0, 0, 0]])
    box = torch.tensor([[-1.0, -1, -1, 1, 1, 1]])
    samples = fastvfx.march_rays(o, d, fastvfx.pack_bits(cells), box, 9, step_size=0.25)
    torch.testing.assert_close(samples.t_starts, torch.arange(1, 3, 0.25))
    torch.testing.assert_close(samples.t_ends, torch.arange(1, 3, 0.25) + 0.25)


def test_axis_parallel_and_grazing_rays(isa):
    """Along planes between cells and along sides of the box: to the bit like the reference, and no endless loop."""
    scene = Scene(cells=grid((16, 16, 16), 2, 0.5, "random"))
    scene.aabbs = torch.tensor([[-1.0, -1, -1, 1, 1, 1], [-2.0, -2, -2, 2, 2, 2]])
    lines = [-2.0, -1.0, -1 + 1e-7, -0.5, -1e-7, 0.0, 1e-30, 0.125, 0.125 - 1e-8, 1 - 6e-8, 1.0, 2.0]
    o, d = [], []
    for axis in range(3):
        for u in lines:
            for v in lines:
                for sign in (1.0, -1.0):
                    point, direction = [0.0] * 3, [0.0] * 3
                    point[axis], point[(axis + 1) % 3], point[(axis + 2) % 3] = -3 * sign, u, v
                    direction[axis] = sign
                    direction[(axis + 1) % 3] = [0.0, 1e-12, -1e-7][len(o) % 3]
                    o.append(point)
                    d.append(direction)
    scene.o, scene.d = torch.tensor(o), torch.tensor(d)
    assert_same(scene.run(), scene.reference())
    assert scene.run().t_starts.shape[0] > 10000


BAD = {
    "nan_origin": ([math.nan, 0, 0], [1.0, 0, 0]),
    "inf_origin": ([INF, 0, 0], [1.0, 0, 0]),
    "nan_direction": ([0.0, 0, 0], [0, math.nan, 1]),
    "inf_direction": ([0.0, 0, 0], [0, INF, 1]),
    "no_direction": ([0.0, 0, 0], [0.0, 0, 0]),
    "tiny_direction": ([0.0, 0, 0], [1e-38, 0, 0]),
    "huge_direction": ([0.0, 0, 0], [3e38, 3e38, 0]),
    "huge_origin": ([3e38, 3e38, 3e38], [-1.0, -1.0, -1.0]),
}


@pytest.mark.parametrize("step_size", [0.01, 0.0], ids=["steps", "cells"])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_rays_stay_alone(device, isa, bad, step_size):
    """A broken ray returns at once and leaves its neighbours as they are."""
    scene = Scene(n=300, device=device, step_size=step_size)
    good = scene.run(max_samples_per_ray=50)
    scene.o[7], scene.d[7] = torch.tensor(bad[0]), torch.tensor(bad[1])
    samples = scene.run(max_samples_per_ray=50)
    counts, wanted = samples.offsets.diff(), good.offsets.diff()
    if not (torch.isfinite(scene.o[7]).all() and torch.isfinite(scene.d[7]).all() and scene.d[7].any()):
        assert counts[7] == 0
    wanted[7] = counts[7]
    assert torch.equal(counts, wanted)
    assert torch.equal(samples.t_starts[samples.ray_indices != 7], good.t_starts[good.ray_indices != 7])


def test_near_and_far_of_each_ray(device, isa):
    """Each ray as if it were alone with its own numbers; near >= far, NaN and an infinite near have no samples."""
    scene = Scene(n=40, device=device)
    near, far = torch.linspace(0, 1, 40, device=device), torch.linspace(3, 0.8, 40, device=device)
    near[3], far[4], near[5], far[6], far[7] = 7, math.nan, -INF, INF, -1
    samples = scene.run(near=near, far=far)
    counts = samples.offsets.diff()
    assert not counts[[3, 4, 5, 7]].any() and counts.sum() > 100
    for r in range(40):
        if r in (3, 4, 5, 7):
            continue
        alone = scene.run(near=near[r].item(), far=far[r].item())
        begin, end = alone.offsets[r : r + 2].tolist()
        mine = samples.t_starts[samples.offsets[r] : samples.offsets[r + 1]]
        assert torch.equal(mine, alone.t_starts[begin:end])


def test_jitter_is_a_function_of_seed_and_ray(device, isa):
    """Uniform in [0, 1) of a step; the same for the same seed, other for another; a tensor is as good as a number."""
    bits = fastvfx.pack_bits(torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device))
    box = torch.tensor([[-1.0, -1, -1, 1, 1, 1]], device=device)
    o = torch.zeros(20000, 3, device=device)
    d = torch.tensor([[1.0, 0, 0]], device=device).expand(20000, 3)

    def first(seed) -> Tensor:
        samples = fastvfx.march_rays(o, d, bits, box, 1, step_size=0.5, jitter_seed=seed, max_samples_per_ray=1)
        return samples.t_starts / 0.5

    a = first(1)
    assert a.min() >= 0 and a.max() < 1 and a.unique().numel() > 19900
    assert abs(a.mean() - 0.5) < 0.01 and abs(a.var() - 1 / 12) < 0.003
    assert torch.corrcoef(torch.stack([a[:-1], a[1:]]))[0, 1].abs() < 0.03
    assert torch.corrcoef(torch.stack([a, first(2)]))[0, 1].abs() < 0.03
    assert torch.equal(a, first(1)) and not torch.equal(a, first(-1))
    assert torch.equal(a, first(torch.tensor(1, device=device)))
    with fastvfx.backend("reference"):
        assert torch.equal(a, first(1))


@pytest.mark.parametrize("most", [1, 7, 100])
@pytest.mark.parametrize("step_size", [0.011, 0.0], ids=["steps", "cells"])
def test_max_samples_keeps_the_first_of_each_ray(device, isa, most, step_size):
    """Oracle: the unlimited march, cut."""
    scene = Scene(levels=3, n=500, device=device, step_size=step_size)
    full, cut = scene.run(), scene.run(max_samples_per_ray=most)
    rank = torch.arange(full.t_starts.shape[0], device=device) - full.offsets[full.ray_indices.long()]
    for name in ("t_starts", "t_ends", "ray_indices"):
        assert torch.equal(getattr(cut, name), getattr(full, name)[rank < most])
    assert torch.equal(cut.offsets.diff(), full.offsets.diff().clamp(max=most))
    assert_same(cut, scene.reference(max_samples_per_ray=most)) if step_size else None


@pytest.mark.parametrize("room", [0, 1, 1000, "exact", "one_less", "plenty"])
@pytest.mark.parametrize("options", [{}, {"step_size": 0.0}, {"cone_angle": 0.01}], ids=["even", "cells", "cone"])
def test_capacity_keeps_whole_rays(device, isa, room, options):
    """Oracle: the exact form, cut behind the last ray that fits."""
    scene = Scene(levels=2, n=700, device=device, **options)
    exact = scene.run()
    n = exact.t_starts.shape[0]
    capacity = {"exact": n, "one_less": n - 1, "plenty": 2 * n + 5}.get(room, room)
    samples = scene.run(capacity=capacity)
    fit = int((exact.offsets <= capacity).sum()) - 1
    written = int(exact.offsets[fit])
    assert samples.overflow == len(scene.o) - fit
    assert torch.equal(samples.offsets, exact.offsets.clamp(max=written))
    for name, padding in (("t_starts", 0), ("t_ends", 0), ("ray_indices", -1)):
        row = getattr(samples, name)
        assert row.shape == (capacity,)
        assert torch.equal(row[:written], getattr(exact, name)[:written])
        assert (row[written:] == padding).all()
    if not options:
        assert_same(samples, scene.reference(capacity=capacity))


def test_threads_do_not_matter(isa, one_thread_and_many):
    scene = Scene(cells=grid((32, 32, 32), 2, 0.1), n=3000)
    results = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        results.append((scene.run(), scene.run(capacity=5000), scene.run(step_size=0.0)))
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("capacity", [None, 8], ids=["exact", "capacity"])
@pytest.mark.parametrize("n", [0, 1], ids=["no_rays", "one_ray"])
def test_few_rays(device, n, capacity):
    scene = Scene(n=n, device=device)
    samples = scene.run(capacity=capacity)
    assert samples.offsets.shape == (n + 1,) and samples.offsets[0] == 0
    assert samples.t_starts.shape[0] == (samples.offsets[-1] if capacity is None else capacity)


def test_strides_do_not_matter(device):
    scene = Scene(device=device)
    plain = scene.run()
    scene.o, scene.d = (torch.stack([x, x], -1)[..., 0] for x in (scene.o, scene.d))
    scene.bits = scene.bits.repeat(2, 1)[::2]
    assert not scene.o.is_contiguous()
    assert_same(plain, scene.run())


def test_prune_keeps_what_it_is_told_to(device):
    """Oracle: boolean indexing and counting."""
    scene = Scene(n=100, device=device)
    samples = scene.run(capacity=6000)
    keep = torch.rand(6000, device=device) < 0.3
    pruned = fastvfx.prune_samples(samples, keep)
    kept = keep & (samples.ray_indices >= 0)
    assert torch.equal(pruned.t_starts, samples.t_starts[kept])
    assert torch.equal(pruned.t_ends, samples.t_ends[kept])
    assert torch.equal(pruned.offsets.diff(), torch.bincount(pruned.ray_indices, minlength=100))
    with pytest.raises(TypeError, match="expected keep of dtype bool, got"):
        fastvfx.prune_samples(samples, keep.float())
    with pytest.raises(ValueError, match=r"expected keep of shape \(n_samples,\) with n_samples=6000, got \(5999,\)"):
        fastvfx.prune_samples(samples, keep[1:])


def op_inputs(scene: Scene) -> tuple:
    return (
        scene.o, scene.d, scene.bits, scene.aabbs, None, None, None, 0.0, INF, list(scene.shape), 0.05, 0.0, INF,
        2**62, True, 3,
    )  # fmt: skip


def test_opcheck(device):
    scene = Scene(n=9, device=device)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.fastvfx.march.default, op_inputs(scene), test_utils=tests)
    torch.library.opcheck(torch.ops.fastvfx.march_capacity.default, (*op_inputs(scene), 200))


def test_compiles_with_a_capacity(device):
    scene = Scene(n=30, device=device)
    compiled = torch.compile(lambda o, d: fastvfx.march_rays(
        o, d, scene.bits, scene.aabbs, scene.shape, step_size=0.02, jitter_seed=4, capacity=2000
    ), fullgraph=True)  # fmt: skip
    assert_same(compiled(scene.o, scene.d), scene.run(step_size=0.02, jitter_seed=4, capacity=2000))


def test_compiles_with_a_size_that_depends_on_the_data(device):
    scene = Scene(n=30, device=device)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(lambda o, d: fastvfx.march_rays(
            o, d, scene.bits, scene.aabbs, scene.shape, step_size=0.02
        ), fullgraph=True)  # fmt: skip
        assert_same(compiled(scene.o, scene.d), scene.run(step_size=0.02))


def test_fake_tensors():
    with FakeTensorMode(shape_env=torch.fx.experimental.symbolic_shapes.ShapeEnv()):
        o, d = torch.empty(7, 3), torch.empty(7, 3)
        bits, box = torch.empty(1, 125, dtype=torch.int64), torch.empty(1, 6)
        exact = fastvfx.march_rays(o, d, bits, box, 20, step_size=0.1)
        fixed = fastvfx.march_rays(o, d, bits, box, 20, step_size=0.1, capacity=55)
    assert exact.offsets.shape == (8,) and exact.ray_indices.dtype == torch.int32
    assert fixed.t_starts.shape == (55,) and fixed.overflow.dtype == torch.int64


def test_gradients_stop_here(device):
    scene = Scene(n=5, device=device)
    scene.o.requires_grad_()
    samples = scene.run()
    assert not samples.t_starts.requires_grad


MISTAKES = {
    "list": ({"o": [[0.0, 0, 0]]}, TypeError, "expected rays_o to be a torch.Tensor, got list"),
    "half": ({"o": torch.zeros(64, 3).half()}, TypeError, "expected rays_o of dtype float32 or float64"),
    "mixed": ({"d": torch.zeros(64, 3).double()}, TypeError, "expected rays_d of dtype torch.float32 like rays_o"),
    "rank": ({"o": torch.zeros(64)}, ValueError, r"expected rays_o of shape \(n_rays, 3\), got \(64,\)"),
    "rays": ({"d": torch.zeros(63, 3)}, ValueError, r"expected rays_d of shape \(n_rays, 3\) with n_rays=64"),
    "bits_dtype": ({"bits": torch.zeros(1, 125)}, TypeError, "expected bits of dtype int64, got torch.float32"),
    "bits_shape": ({"bits": torch.zeros(1, 124, dtype=torch.int64)}, ValueError, r"bits of shape \(levels, 125\)"),
    "no_levels": ({"bits": torch.zeros(0, 125, dtype=torch.int64)}, ValueError, "1 to 8 levels, got 0"),
    "box_count": ({"aabbs": boxes(2)}, ValueError, r"expected aabbs of shape \(levels, 6\) with levels=1"),
    "box_empty": ({"aabbs": -boxes(1)}, ValueError, "lower corner below upper"),
    "box_nan": ({"aabbs": boxes(1) * math.nan}, ValueError, "expected finite aabbs"),
    "step_nan": ({"step_size": math.nan}, ValueError, "expected a finite step_size, got nan"),
    "cone": ({"cone_angle": -0.1}, ValueError, "expected a finite cone_angle of 0 or more"),
    "cone_cells": ({"cone_angle": 0.1, "step_size": 0.0}, ValueError, "expected a step_size above 0"),
    "max_step": ({"max_step_size": 1e-9}, ValueError, "expected max_step_size of at least step_size"),
    "near_inf": ({"near": -INF}, ValueError, "expected a finite near"),
    "far_nan": ({"far": math.nan}, ValueError, "expected far to be a number, got nan"),
    "near_column": ({"near": torch.zeros(64, 1)}, ValueError, r"expected near of shape \(n_rays,\)"),
    "seed": ({"jitter_seed": torch.zeros(2, dtype=torch.int64)}, ValueError, "int64 tensor of one element"),
    "max_samples": ({"max_samples_per_ray": 0}, ValueError, "expected max_samples_per_ray of 1 or more, got 0"),
    "capacity": ({"capacity": -1}, ValueError, "expected a capacity of 0 or more, got -1"),
    "device": ({"d": torch.zeros(64, 3, device="meta")}, ValueError, "expected rays_d on cpu like rays_o"),
}


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(change, error, message):
    scene = Scene()
    options = {}
    for name, value in change.items():
        if hasattr(scene, name):
            setattr(scene, name, value)
        else:
            options[name] = value
    with pytest.raises(error, match=message):
        scene.run(**options)
