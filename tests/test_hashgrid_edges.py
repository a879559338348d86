"""fastvfx.hashgrid and fastvfx.HashGrid at the edges: odd points, bad arguments, torch's machinery, the module."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hashgrid_cases import GRID_TYPES, MODES, draw, points, run, small
from marks import native
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvfx
from fastvfx import HashGridSpec
from fastvfx.reference import hashgrid as reference

# ---------------------------------------------------------------------------------------------- odd points


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid_type", GRID_TYPES)
def test_points_outside_the_cube(mode, grid_type, device):
    if mode == "nerfstudio" and grid_type != "hash":
        pytest.skip("nerfstudio has only hashed levels")
    spec = small(mode=mode, grid_type=grid_type)
    _, table, grad = draw(spec, torch.float64, n=500, device=device)
    x = points(spec, 500, device, margin=1.5).double()
    for g, e in zip(run(fastvfx.hashgrid, x, table, grad, spec), run(reference, x, table, grad, spec), strict=True):
        assert torch.allclose(g, e, atol=1e-9)
    if mode == "torch_ngp":
        outside = ((x < 0) | (x > 1)).any(1)
        assert (fastvfx.hashgrid(x, table, spec)[outside] == 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("n", [100, 17000])
def test_a_bad_point_stays_alone(mode, bad, interpolation, n, device):
    """NaN in its own row; no gradient, not even of a NaN that comes back for it."""
    spec = small(mode=mode, interpolation=interpolation)
    x, table, grad = draw(spec, n=n, device=device)
    kept = torch.arange(n, device=device) != 37
    grad[37] = 0
    clean = run(fastvfx.hashgrid, x, table, grad, spec)
    x[37, 1], grad[37] = bad, float("nan")
    out, grad_x, grad_table = run(fastvfx.hashgrid, x, table, grad, spec)
    assert out[37].isnan().all() and (grad_x[37] == 0).all()
    assert torch.equal(out[kept], clean[0][kept]) and torch.equal(grad_x[kept], clean[1][kept])
    assert torch.allclose(grad_table, clean[2], atol=1e-4)
    assert reference(x, table, spec)[37].isnan().all()


@pytest.mark.parametrize("grid_type", GRID_TYPES)
def test_far_points_read_within_the_table(grid_type, device):
    spec = small(grid_type=grid_type)
    _, table, grad = draw(spec, n=8, device=device)
    x = torch.tensor([1e4, -1e4, 3e9, -3e9, 1e20, -1e20, 3e38, -3e38], device=device)[:, None].expand(8, 3)
    out, grad_x, grad_table = run(fastvfx.hashgrid, x, table, grad, spec)
    assert out[:6].isfinite().all() and grad_x[:6].isfinite().all()
    assert out.shape == (8, spec.n_output_dims) and grad_table.shape == table.shape


def test_no_points(device):
    spec = small()
    x, table, grad = draw(spec, n=0, device=device)
    out, grad_x, grad_table = run(fastvfx.hashgrid, x, table, grad, spec)
    assert out.shape == (0, spec.n_output_dims) and grad_x.shape == (0, 3)
    assert (grad_table == 0).all()


def test_leading_dimensions_and_strides(device):
    spec = small()
    x, table, _ = draw(spec, n=24, device=device)
    expected = fastvfx.hashgrid(x, table, spec)
    assert torch.equal(fastvfx.hashgrid(x.view(2, 3, 4, 3), table, spec), expected.view(2, 3, 4, -1))
    assert torch.equal(fastvfx.hashgrid(x[0], table, spec), expected[0])
    assert torch.equal(fastvfx.hashgrid(x.T.contiguous().T, table.T.contiguous().T, spec), expected)
    # A view that starts in the middle of a pair of features.
    shifted = torch.cat([table.new_zeros(1), table.flatten()])[1:].view_as(table)
    assert torch.equal(fastvfx.hashgrid(x, shifted, spec), expected)


def test_large_gradients_are_separate_memory():
    """Memory of large gradients is used again only once nothing refers to it."""
    spec = HashGridSpec(n_levels=2, log2_hashmap_size=19, base_resolution=80)
    x, table, grad = draw(spec, n=500)
    torch.use_deterministic_algorithms(False)  # poisoned memory comes from torch
    first = run(fastvfx.hashgrid, x, table, grad, spec)[2]
    copy_of_first = first.clone()
    second = run(fastvfx.hashgrid, x, table, 2 * grad, spec)[2]
    assert first.data_ptr() != second.data_ptr() and torch.equal(first, copy_of_first)
    view, address = second[100:200], second.data_ptr()
    del second
    third = run(fastvfx.hashgrid, x, table, grad, spec)[2]
    assert third.data_ptr() != address and torch.allclose(view, 2 * third[100:200])
    del view
    assert torch.equal(run(fastvfx.hashgrid, x, table, grad, spec)[2], copy_of_first)


# ---------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.rand(5, 2)}, ValueError, r"x of shape \(\.\.\., n_input_dims\) with n_input_dims=3, got \(5, 2\)"),
        ({"x": torch.tensor(1.0)}, ValueError, "expected x of shape"),
        ({"x": torch.zeros(5, 3, dtype=torch.int64)}, TypeError, "x of dtype float32.*got torch.int64"),
        ({"x": [[0.0, 0.0, 0.0]]}, TypeError, "expected x to be a torch.Tensor, got list"),
        ({"table": torch.rand(7, 2)}, ValueError, r"expected table of shape \(n_entries, n_features_per_level\)"),
        ({"table": torch.rand(small().n_entries, 3)}, ValueError, "expected table of shape"),
        ({"table": torch.rand(small().n_entries * 2)}, ValueError, "expected table of shape"),
        ({"table": torch.zeros(small().n_entries, 2, dtype=torch.int32)}, TypeError, "table of dtype"),
        ({"table": torch.rand(small().n_entries, 2, device="meta")}, ValueError, "expected table on cpu like x"),
        ({"spec": {}}, TypeError, "expected spec to be a fastvfx.HashGridSpec, got dict"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_bad_arguments(change, error, message):
    arguments = {"x": torch.rand(5, 3), "table": torch.rand(small().n_entries, 2), "spec": small()} | change
    with pytest.raises(error, match="fastvfx.hashgrid: .*" + message):
        fastvfx.hashgrid(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_input_dims": 5}, "n_input_dims as an integer from 1 to 4, got 5"),
        ({"n_input_dims": 0}, "n_input_dims"),
        ({"n_levels": 0}, "n_levels as an integer from 1 to 64, got 0"),
        ({"n_levels": -3}, "n_levels"),
        ({"n_levels": 2.0}, "n_levels"),
        ({"n_features_per_level": 3}, "n_features_per_level to be one of 1, 2, 4, 8, got 3"),
        ({"log2_hashmap_size": 40}, "log2_hashmap_size"),
        ({"base_resolution": 0}, "base_resolution"),
        ({"max_resolution": 8}, "max_resolution as an integer from 16 to"),
        ({"per_level_scale": 0.5}, "per_level_scale >= 1, got 0.5"),
        ({"per_level_scale": float("nan")}, "per_level_scale"),
        ({"per_level_scale": 1e30}, r"finest resolution of at most 2\*\*30, got"),
        ({"interpolation": "cubic"}, "interpolation to be one of 'nearest', 'linear', 'smoothstep', got 'cubic'"),
        ({"grid_type": "octree"}, "grid_type"),
        ({"mode": "ngp"}, "mode to be one of 'tcnn', 'torch_ngp', 'nerfstudio', got 'ngp'"),
        ({"mode": "nerfstudio", "grid_type": "tiled"}, "'nerfstudio' has only grid_type 'hash'"),
        ({"grid_type": "dense"}, "level 7 .*more than 2147483647; lower the resolution"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_bad_specs(options, message):
    with pytest.raises(ValueError, match="fastvfx.HashGridSpec: .*" + message):
        HashGridSpec(**options)


def test_more_than_2_31_elements_have_shapes():
    """2^28 entries of 8 features in one of 10 levels: sizes past 2^31 stay exact, on tensors without memory."""
    spec = HashGridSpec(n_levels=10, n_features_per_level=8, log2_hashmap_size=28, base_resolution=1024)
    assert spec.n_entries * 8 > 2**31
    with FakeTensorMode():
        table = torch.empty(spec.n_entries, 8, requires_grad=True)
        x = torch.empty(2**26, 3, requires_grad=True)
        out = fastvfx.hashgrid(x, table, spec)
        assert out.shape == (2**26, 80) and out.numel() > 2**31
        grads = torch.autograd.grad(out.sum(), (x, table))
        assert [g.shape for g in grads] == [x.shape, table.shape]


@native
def test_entries_behind_2_31_elements_are_found():
    """The last level of a 16-bit table of 2^31 elements and more, of which only the touched pages exist."""
    spec = HashGridSpec(
        n_levels=9, n_features_per_level=8, log2_hashmap_size=25, base_resolution=1024, per_level_scale=1.0
    )
    assert spec.levels[-1].offset * 8 >= 2**31
    buffer = np.zeros((spec.n_entries, 8), dtype=np.float16)  # zero pages are only taken once they are written
    table = torch.from_numpy(buffer)
    x = points(spec, 3)
    level = spec.levels[-1]
    position = (x.double() * level.scale + 0.5).floor().long()
    index = (position * torch.tensor(level.multipliers)) & 0xFFFFFFFF
    entry = (index[:, 0] ^ index[:, 1] ^ index[:, 2]) % level.entries + level.offset
    table[entry] = 1
    out = fastvfx.hashgrid(x, table, spec)
    frac = x.double() * level.scale + 0.5 - position
    expected = (1 - frac).prod(1)
    assert torch.allclose(out[:, -1].double(), expected, atol=2e-3)
    assert (out[:, : -spec.n_features_per_level] == 0).all()


# ---------------------------------------------------------------------------------------------- torch's machinery


def op_arguments(spec: HashGridSpec, dtype: torch.dtype = torch.float32):
    x, table, grad = draw(spec, dtype, n=12)
    grid = (list(spec.scales), list(spec.packed), spec.n_features_per_level, 1, spec.zero_outside, spec.shift)
    return x, table, grad, grid


@native
@pytest.mark.parametrize("along", [False, True], ids=["value", "along"])
def test_opcheck(along):
    spec = small(n_levels=2)
    x, table, grad, grid = op_arguments(spec)
    direction = torch.randn_like(x) if along else None
    ops = torch.ops.fastvfx
    torch.library.opcheck(ops.hashgrid_fwd, (x, table, direction, *grid))
    torch.library.opcheck(ops.hashgrid_bwd_x, (x, table, grad, direction, *grid))
    torch.library.opcheck(ops.hashgrid_bwd_table, (x, grad, direction, spec.n_entries, *grid))


@native
def test_packed_levels_of_the_wrong_length_are_refused():
    x, table, _, grid = op_arguments(small())
    with pytest.raises(ValueError, match="3 \\+ dims integers for each level"):
        torch.ops.fastvfx.hashgrid_fwd(x, table, None, grid[0], grid[1][:-1], *grid[2:])


def test_compile(device):
    spec = small()
    x, table, grad = draw(spec, device=device)
    expected = run(fastvfx.hashgrid, x, table, grad, spec)
    compiled = torch.compile(fastvfx.hashgrid, fullgraph=True, backend="aot_eager")
    for g, e in zip(run(compiled, x, table, grad, spec), expected, strict=True):
        assert torch.allclose(g, e, atol=1e-6)


def test_compile_module(device):
    grid = fastvfx.HashGrid(n_levels=3, log2_hashmap_size=8, seed=0).to(device)
    x = torch.rand(10, 3, device=device)
    assert torch.allclose(torch.compile(grid, fullgraph=True, backend="aot_eager")(x), grid(x))


def test_fake_tensors():
    spec = small()
    with FakeTensorMode():
        x = torch.rand(5, 3, requires_grad=True)
        table = torch.rand(spec.n_entries, 2, dtype=torch.bfloat16, requires_grad=True)
        out = fastvfx.hashgrid(x, table, spec)
        assert out.shape == (5, spec.n_output_dims) and out.dtype == torch.bfloat16
        grads = torch.autograd.grad(out.sum(), (x, table))
        assert [(g.shape, g.dtype) for g in grads] == [(x.shape, x.dtype), (table.shape, table.dtype)]


def test_reference_backend(device):
    spec = small()
    x, table, _ = draw(spec, device=device)
    with fastvfx.backend("reference"):
        assert torch.equal(fastvfx.hashgrid(x, table, spec), reference(x, table, spec))


# ---------------------------------------------------------------------------------------------- the module


def test_module(device):
    grid = fastvfx.HashGrid(max_resolution=2048, seed=3).to(device)
    assert isinstance(grid.table, torch.nn.Parameter) and grid.table.shape == (6_098_120, 2)
    assert grid.n_output_dims == 32 and list(grid.state_dict()) == ["table"]
    assert grid.table.abs().max() <= 1e-4 and grid.table.std() > 5e-5
    assert torch.equal(grid.table, fastvfx.HashGrid(max_resolution=2048, seed=3).to(device).table)
    assert "16 levels of 2 features, resolution 16 to 2048" in repr(grid)


def test_module_fits_a_function(device):
    """Regression of a smooth function of the plane with Adam."""
    torch.manual_seed(0)
    grid = fastvfx.HashGrid(2, n_levels=4, n_features_per_level=1, base_resolution=4, seed=0).to(device)
    optimizer = torch.optim.Adam(grid.parameters(), lr=1e-2)
    x = torch.rand(2000, 2, device=device)
    y = torch.sin(6 * x[:, 0]) * x[:, 1]
    for _ in range(150):
        loss = ((grid(x).sum(1) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


def test_module_copies_and_loads():
    grid = fastvfx.HashGrid(n_levels=2, log2_hashmap_size=6, seed=0)
    other = fastvfx.HashGrid(n_levels=2, log2_hashmap_size=6, seed=1)
    other.load_state_dict(grid.state_dict())
    x = torch.rand(5, 3)
    assert torch.equal(other(x), grid(x)) and torch.equal(copy.deepcopy(grid)(x), grid(x))
    wrong = fastvfx.HashGrid(n_levels=3, log2_hashmap_size=6)
    with pytest.raises(RuntimeError, match="size mismatch for table"):
        wrong.load_state_dict(grid.state_dict())
