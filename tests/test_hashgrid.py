"""fastvfx.hashgrid and fastvfx.HashGrid.

Oracles: the PyTorch formula in float64 (fastvfx.reference.hashgrid), tiny-cuda-nn's and torch-ngp's formulas written
out point by point below, Dr.Jit's HashGridEncoding, and torch's grid_sample for dense grids.
"""

from __future__ import annotations

import copy
import ctypes
import ctypes.util
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import native
from oracle import assert_as_good_as_torch, assert_same_direction
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvfx
from fastvfx import HashGridSpec
from fastvfx.reference import hashgrid as reference

DTYPES = [
    pytest.param(d, id=str(d).removeprefix("torch."))
    for d in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
]
MODES = ["tcnn", "torch_ngp", "nerfstudio"]
GRID_TYPES = ["hash", "dense", "tiled"]


def small(**options) -> HashGridSpec:
    """Some levels dense, some hashed."""
    defaults = {"n_levels": 5, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 1.6}
    return HashGridSpec(**(defaults | options))


def points(spec: HashGridSpec, n: int, device: str = "cpu", margin: float = 0.0) -> Tensor:
    """float32 points that lie away from every lattice plane, where another rounding could choose another cell."""
    x = torch.rand(4 * n + 64, spec.n_input_dims) * (1 + 2 * margin) - margin
    clear = torch.ones(len(x), dtype=torch.bool)
    for scale in spec.scales:
        frac = (x.double() * scale + spec.shift) % 1
        clear &= ((frac > 2e-4) & (frac < 1 - 2e-4)).all(1)
    x = x[clear][:n]
    assert len(x) == n
    return x.to(device)


def draw(spec: HashGridSpec, dtype: torch.dtype = torch.float32, n: int = 123, device: str = "cpu"):
    """x, table and a gradient of the output."""
    table = torch.randn(spec.n_entries, spec.n_features_per_level).to(device, dtype)
    grad = torch.randn(n, spec.n_output_dims).to(device, dtype)
    return points(spec, n, device), table, grad


def run(function, x: Tensor, table: Tensor, grad: Tensor, spec: HashGridSpec) -> list[Tensor]:
    """The encoding and its gradients with respect to x and table."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, table)]
    out = function(*leaves, spec)
    gradients = torch.autograd.grad(out, leaves, grad.to(out.dtype), allow_unused=True)
    return [out, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True))]


def check(spec: HashGridSpec, x: Tensor, table: Tensor, grad: Tensor) -> None:
    got = run(fastvfx.hashgrid, x, table, grad, spec)
    same = run(reference, x, table, grad, spec)
    exact = run(reference, x.double(), table.double(), grad, spec)
    for name, g, s, e in zip(("out", "grad_x", "grad_table"), got, same, exact, strict=True):
        assert g.dtype == s.dtype
        assert_as_good_as_torch(g, s, e, name)


# -------------------------------------------------------------------------------------------------- the level table


def test_entries_of_the_published_configurations():
    """16 levels from 16 to 2048 with 2^19 entries: 6,098,120 entries in tiny-cuda-nn, 6,119,864 in torch-ngp."""
    assert HashGridSpec(max_resolution=2048).n_entries == 6_098_120
    assert HashGridSpec(max_resolution=2048, mode="torch_ngp").n_entries == 6_119_864
    assert HashGridSpec(max_resolution=2048, mode="nerfstudio").n_entries == 16 * 2**19


def test_scales_are_float32_as_in_the_original():
    """``exp2f(level * log2f(b)) * base - 1``, with the C library's float32 functions."""
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("no C mathematics library to compare with")
    libm = ctypes.CDLL(name)
    for function in (libm.exp2f, libm.log2f):
        function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
    f32 = np.float32
    for growth in (1.3, 1.5, 2.0, math.exp(math.log(128) / 15)):
        log2_growth = f32(libm.log2f(growth))
        expected = [f32(libm.exp2f(f32(level) * log2_growth)) * f32(16) - f32(1) for level in range(16)]
        assert HashGridSpec(per_level_scale=growth).scales == tuple(float(e) for e in expected)


def test_nerfstudio_scales():
    """floor(base * growth^level) in float32, e.g. 16 to 1024 in 16 levels."""
    spec = HashGridSpec(max_resolution=1024, mode="nerfstudio")
    growth = np.exp((np.log(1024) - np.log(16)) / 15)
    assert list(spec.scales) == torch.floor(16 * float(growth) ** torch.arange(16)).tolist()
    assert all(level.hashed and level.entries == 2**19 for level in spec.levels)


def test_levels_tile_the_table():
    spec = HashGridSpec(max_resolution=2048)
    offset = 0
    for level in spec.levels:
        assert level.offset == offset and level.entries % 8 == 0
        assert level.hashed == (level.resolution**3 > 2**19)
        offset += level.entries
    assert spec.levels[0].resolution == 16 and spec.levels[-1].resolution == 2048


def test_tiled_levels_are_no_larger_than_the_coarsest():
    """tiny-cuda-nn's TiledGrid: base_resolution^D entries at most."""
    assert all(level.entries <= 16**3 for level in HashGridSpec(grid_type="tiled").levels)


# --------------------------------------------------------------------------------------- formulas, point by point


def tcnn_point(x: list[np.float32], table: np.ndarray, spec: HashGridSpec) -> list[float]:
    """One point through tiny-cuda-nn's kernel_grid, in scalar Python."""
    out: list[float] = []
    offset = 0
    dims = spec.n_input_dims
    for level in range(spec.n_levels):
        log2_scale = np.float32(math.log2(np.float32(spec.per_level_scale)))
        scale = np.float32(float(np.float32(2 ** float(np.float32(level) * log2_scale))) * spec.base_resolution - 1)
        resolution = math.ceil(scale) + 1
        size = -(-(resolution**dims) // 8) * 8
        if spec.grid_type == "hash":
            size = min(size, 2**spec.log2_hashmap_size)
        elif spec.grid_type == "tiled":
            size = min(size, spec.base_resolution**dims)
        position = [np.float32(float(scale) * float(v) + 0.5) for v in x]  # a fused multiply-add: rounded once
        cell = [math.floor(p) for p in position]
        frac = [float(np.float32(p - np.float32(g))) for p, g in zip(position, cell, strict=True)]
        total = np.zeros(spec.n_features_per_level)
        for corner in itertools.product((0, 1), repeat=dims):
            g = [(c + b) % 2**32 for c, b in zip(cell, corner, strict=True)]
            weight = math.prod(f if b else 1 - f for f, b in zip(frac, corner, strict=True))
            stride, index = 1, 0
            for d in range(dims):
                if stride > size:
                    break
                index += g[d] * stride
                stride *= resolution
            if spec.grid_type == "hash" and stride > size:
                primes = (1, 2654435761, 805459861, 3674653429)
                index = 0
                for d in range(dims):
                    index ^= g[d] * primes[d] % 2**32
            total += weight * table[offset + index % 2**32 % size]
        out += total.tolist()
        offset += size
    return out


@pytest.mark.parametrize("grid_type", GRID_TYPES)
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_tcnn_formula(dims, grid_type, device):
    spec = small(n_input_dims=dims, grid_type=grid_type, per_level_scale=1.4)
    x, table, _ = draw(spec, n=20, device=device)
    x[0], x[1] = 0.0, 1.0
    got = fastvfx.hashgrid(x, table, spec).cpu().double()
    for i in range(len(x)):
        expected = tcnn_point([np.float32(v) for v in x[i].tolist()], table.cpu().double().numpy(), spec)
        assert torch.allclose(got[i], torch.tensor(expected, dtype=torch.float64), atol=3e-5), i


def test_torch_ngp_formula(device):
    """Strides of resolution + 1 and zero outside the cube; one point, one dense level, worked out by hand."""
    spec = HashGridSpec(n_input_dims=2, n_levels=1, n_features_per_level=1, base_resolution=4, mode="torch_ngp")
    table = torch.arange(spec.n_entries, dtype=torch.float32, device=device)[:, None]
    assert spec.n_entries == 32  # (4 + 1)^2, rounded up to 8
    x = torch.tensor([[0.5, 0.25], [1.1, 0.5], [0.5, -0.1]], device=device)
    # position = 3 x + 0.5 = (2, 1.25): entry 2 + 5 * 1 and one row of 5 above, weights 0.75 and 0.25
    assert torch.allclose(fastvfx.hashgrid(x, table, spec).flatten().cpu(), torch.tensor([7 + 0.25 * 5, 0.0, 0.0]))


def test_nerfstudio_formula(device):
    """x * scale without a shift, hashed even where the grid would fit."""
    spec = HashGridSpec(
        n_input_dims=2, n_levels=1, n_features_per_level=1, base_resolution=4, log2_hashmap_size=6, mode="nerfstudio"
    )
    table = torch.arange(spec.n_entries, dtype=torch.float32, device=device)[:, None]
    x = torch.tensor([[0.25, 0.5]], device=device)  # lattice point (1, 2) exactly
    expected = (1 ^ (2 * 2654435761)) % 64
    assert fastvfx.hashgrid(x, table, spec).item() == expected


def test_dense_grid_is_grid_sample(device):
    """A dense level is torch.nn.functional.grid_sample of the lattice, first axis fastest."""
    spec = HashGridSpec(n_levels=1, n_features_per_level=4, base_resolution=8, grid_type="dense")
    x, table, _ = draw(spec, n=200, device=device)
    volume = table[: 8**3].view(8, 8, 8, 4).permute(3, 0, 1, 2)[None]  # (1, features, z, y, x)
    x = 0.1 + 0.8 * x  # where no coordinate wraps
    centre = (7 * x + 0.5) / 7 * 2 - 1  # align_corners: -1 and 1 are the first and last lattice point
    expected = torch.nn.functional.grid_sample(volume, centre.view(1, -1, 1, 1, 3), align_corners=True)
    assert torch.allclose(fastvfx.hashgrid(x, table, spec), expected[0, :, :, 0, 0].T, atol=1e-5)


@pytest.fixture
def drjit_llvm():
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/llvm-19/lib", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"):
        for library in sorted(Path(folder).glob("libLLVM*.so*"), reverse=True):
            os.environ.setdefault("DRJIT_LIBLLVM_PATH", str(library))
    drjit = pytest.importorskip("drjit", reason="drjit is not installed")
    pytest.importorskip("drjit.hashgrid", reason="this drjit has no hash grid")
    if not drjit.has_backend(drjit.JitBackend.LLVM):
        pytest.skip("drjit finds no libLLVM: install one or set DRJIT_LIBLLVM_PATH")
    return drjit


@pytest.mark.parametrize("dims", [2, 3])
def test_drjit_agrees(drjit_llvm, dims):
    """Dr.Jit's HashGridEncoding(torchngp_compat=True): encoding and gradient of the table."""
    from drjit.hashgrid import HashGridEncoding
    from drjit.llvm.ad import Float

    spec = HashGridSpec(n_input_dims=dims, n_levels=8, log2_hashmap_size=12, base_resolution=16)
    x, table, grad = draw(spec, n=500)
    theirs = HashGridEncoding(
        Float, dims, n_levels=8, n_features_per_level=2, hashmap_size=2**12, base_resolution=16, torchngp_compat=True
    )
    assert theirs.n_params == table.numel()
    theirs.data = Float(table.flatten().numpy())
    drjit_llvm.enable_grad(theirs.data)
    encoded = theirs([Float(column.contiguous().numpy()) for column in x.T])
    loss = sum(e * Float(g.contiguous().numpy()) for e, g in zip(encoded, grad.T, strict=True))
    drjit_llvm.backward(drjit_llvm.sum(loss))
    out, _, grad_table = run(fastvfx.hashgrid, x, table, grad, spec)
    expected = torch.stack([torch.from_numpy(np.array(e)) for e in encoded], 1)
    assert torch.allclose(out, expected, atol=2e-4)  # their positions are rounded differently
    expected_gradient = torch.from_numpy(np.array(drjit_llvm.grad(theirs.data))).view_as(grad_table)
    assert torch.allclose(grad_table, expected_gradient, atol=2e-4)


# ---------------------------------------------------------------------------------------------- against float64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep", "nearest"])
@pytest.mark.parametrize("mode", MODES)
def test_agrees_with_float64(mode, interpolation, dtype, device):
    spec = small(mode=mode, interpolation=interpolation)
    check(spec, *draw(spec, dtype, device=device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_dimensions_and_features(dims, features, dtype, device):
    spec = small(n_input_dims=dims, n_features_per_level=features)
    check(spec, *draw(spec, dtype, device=device))


@pytest.mark.parametrize("grid_type", GRID_TYPES)
@pytest.mark.parametrize("mode", ["tcnn", "torch_ngp"])
def test_grid_types(mode, grid_type, device):
    spec = small(mode=mode, grid_type=grid_type, interpolation="smoothstep")
    check(spec, *draw(spec, device=device))


@pytest.mark.parametrize("n", [1, 3, 5, 63, 64, 65, 1000, 16383, 16384, 40001], ids=str)
@pytest.mark.parametrize("features", [1, 2, 8])
def test_any_number_of_points(n, features, device):
    """Few points go through the CPU kernel block by block, many level by level."""
    spec = small(n_features_per_level=features, n_levels=9 if n < 20000 else 17, per_level_scale=1.25)
    check(spec, *draw(spec, n=n, device=device))


def test_levels_that_are_copied_first(device):
    """Levels of half a MiB and more, read often enough to be copied into the cache."""
    spec = HashGridSpec(n_levels=3, log2_hashmap_size=17, base_resolution=40, per_level_scale=2.0)
    check(spec, *draw(spec, n=70000, device=device))


@native
@pytest.mark.parametrize("features", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_set_levels(isa, dtype, features):
    spec = small(n_features_per_level=features, interpolation="smoothstep")
    check(spec, *draw(spec, dtype, n=333))


@native
@pytest.mark.parametrize("n_levels", [1, 3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_same_for_any_number_of_threads(n_levels, dtype, one_thread_and_many):
    """One level is divided among threads by entries, many levels are dealt out whole."""
    spec = small(n_levels=n_levels, per_level_scale=1.2, base_resolution=9, log2_hashmap_size=12)
    x, table, grad = draw(spec, dtype, n=20000)
    results = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        results.append(run(fastvfx.hashgrid, x, table, grad, spec))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_directions_of_gradients(device):
    spec = small()
    x, table, grad = draw(spec, device=device)
    got = run(fastvfx.hashgrid, x, table, grad, spec)
    exact = run(reference, x.double(), table.double(), grad, spec)
    for name, g, e in zip(("grad_x", "grad_table"), got[1:], exact[1:], strict=True):
        assert_same_direction(g, e, name)


# ---------------------------------------------------------------------------------------------- identities


def test_adjoint(device):
    """<grad, encode(table)> = <grad_table, table>: the encoding is linear in the table."""
    spec = small()
    x, table, grad = draw(spec, torch.float64, device=device)
    out, _, grad_table = run(fastvfx.hashgrid, x, table, grad, spec)
    assert torch.allclose((grad * out).sum(), (grad_table * table).sum(), rtol=1e-12)


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep", "nearest"])
def test_a_constant_table_gives_a_constant(interpolation, device):
    spec = small(interpolation=interpolation)
    x, table, grad = draw(spec, device=device)
    out, grad_x, _ = run(fastvfx.hashgrid, x, torch.full_like(table, 0.75), grad, spec)
    assert torch.allclose(out, torch.full_like(out, 0.75), atol=1e-6)
    assert grad_x.abs().max() < 1e-3 * grad.abs().max() * max(spec.scales)


# ---------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep", "nearest"])
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_gradcheck_and_gradgradcheck(dims, interpolation):
    spec = small(n_input_dims=dims, n_levels=2, log2_hashmap_size=4, base_resolution=2, interpolation=interpolation)
    x, table, _ = draw(spec, torch.float64, n=4)
    x, table = x.double().requires_grad_(), table.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: fastvfx.hashgrid(x, t, spec), (x, table))
    assert torch.autograd.gradgradcheck(lambda x, t: fastvfx.hashgrid(x, t, spec), (x, table))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("n", [123, 20000])
def test_normal_of_a_distance_field_trains_its_table(interpolation, dtype, n, device):
    """An eikonal loss: its gradient with respect to table and x passes through the gradient with respect to x."""
    spec = small(interpolation=interpolation, per_level_scale=1.3, n_levels=3)
    x, table, _ = draw(spec, dtype, n=n, device=device)

    def loss_gradients(function, x, table):
        leaves = [t.detach().clone().requires_grad_() for t in (x, table)]
        weights = torch.linspace(0.5, 1, spec.n_output_dims, device=x.device, dtype=table.dtype)
        (normal,) = torch.autograd.grad((function(*leaves, spec) * weights).sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(((normal.norm(dim=-1) - 1) ** 2).mean(), leaves)

    got = loss_gradients(fastvfx.hashgrid, x, table)
    same = loss_gradients(reference, x, table)
    exact = loss_gradients(reference, x.double(), table.double())
    for name, g, s, e in zip(("grad_x", "grad_table"), got, same, exact, strict=True):
        assert_as_good_as_torch(g, s, e, name, floor=2)  # two sums over the points, one inside the other


@pytest.mark.parametrize("wanted", ["x", "table"])
def test_only_the_gradients_that_are_asked_for(wanted, device):
    spec = small()
    x, table, grad = draw(spec, device=device)
    everything = run(fastvfx.hashgrid, x, table, grad, spec)
    leaf = (x if wanted == "x" else table).requires_grad_()
    (got,) = torch.autograd.grad(fastvfx.hashgrid(x, table, spec), leaf, grad)
    assert torch.equal(got, everything[1 if wanted == "x" else 2])


def test_16_bit_points_get_16_bit_gradients(device):
    spec = small()
    x, table, grad = draw(spec, device=device)
    out, grad_x, grad_table = run(fastvfx.hashgrid, x.half(), table, grad, spec)
    assert (out.dtype, grad_x.dtype, grad_table.dtype) == (torch.float32, torch.float16, torch.float32)
    assert torch.equal(out, fastvfx.hashgrid(x.half().float(), table, spec))


def test_a_16_bit_table_sums_its_gradient_in_float32(device):
    """4096 times 2^-12 into one entry: in float16 the sum would stop growing at 1/2."""
    spec = HashGridSpec(n_input_dims=1, n_levels=1, n_features_per_level=2, base_resolution=2, interpolation="nearest")
    table = torch.zeros(spec.n_entries, 2, dtype=torch.float16, device=device, requires_grad=True)
    x = torch.full((4096, 1), 0.25, device=device)
    out = fastvfx.hashgrid(x, table, spec)
    out.backward(torch.full_like(out, 2.0**-12))
    assert table.grad is not None and table.grad[0].tolist() == [1.0, 1.0]


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
