"""fastvfx.hashgrid and fastvfx.HashGrid.

Oracles: the PyTorch formula in float64 (fastvfx.reference.hashgrid), tiny-cuda-nn's and torch-ngp's formulas written
out point by point below, Dr.Jit's HashGridEncoding, and torch's grid_sample for dense grids.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hashgrid_cases import DTYPES, GRID_TYPES, MODES, check, draw, run, small
from marks import native
from oracle import assert_as_good_as_torch, assert_same_direction

import fastvfx
from fastvfx import HashGridSpec
from fastvfx.reference import hashgrid as reference

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
