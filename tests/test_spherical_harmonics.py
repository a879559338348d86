"""``spherical_harmonics``: scipy on the sphere, the PyTorch formula off it, and what every operator promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from marks import native
from oracle import assert_as_good_as_torch, assert_same_direction
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastvfx
from fastvfx import _ext
from fastvfx.reference import spherical_harmonics as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
DEGREES = range(1, 9)


def directions(n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    d = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (d / d.norm(dim=-1, keepdim=True)).to(dtype)


def scipy_basis(dirs: Tensor, degree: int) -> np.ndarray:
    """The real basis with all signs positive, from scipy's complex one (which has the factor (-1)^m)."""
    from scipy.special import sph_harm_y

    x, y, z = dirs.double().numpy().T
    theta, phi = np.arccos(np.clip(z, -1, 1)), np.arctan2(y, x)
    columns = []
    for l in range(degree):
        for m in range(-l, l + 1):
            complex_value = (-1) ** abs(m) * sph_harm_y(l, abs(m), theta, phi)
            if m == 0:
                columns.append(complex_value.real)
            else:
                columns.append(math.sqrt(2) * (complex_value.real if m > 0 else complex_value.imag))
    return np.stack(columns, -1)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_agrees_with_scipy_on_the_unit_sphere(degree: int, backend: str) -> None:
    if backend == "native" and _ext._C is None:
        pytest.skip("the native module was not built")
    dirs = directions(257)
    with fastvfx.backend(backend):
        got = fastvfx.spherical_harmonics(dirs, degree, mode="nerfstudio")
    np.testing.assert_allclose(got.numpy(), scipy_basis(dirs, degree), atol=2e-13)


@pytest.mark.parametrize("mode", ["tcnn", "torch_ngp"])
def test_tcnn_and_torch_ngp_have_the_sign_of_condon_and_shortley(mode: str) -> None:
    dirs = directions(33)
    signs = torch.tensor([(-1.0) ** m for l in range(8) for m in range(-l, l + 1)], dtype=torch.float64)
    expected = fastvfx.spherical_harmonics(dirs, 8, mode="nerfstudio") * signs
    assert torch.equal(fastvfx.spherical_harmonics(dirs, 8, mode=mode), expected)


def test_order_one_reads_minus_y_z_minus_x() -> None:
    out = fastvfx.spherical_harmonics(torch.tensor([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]]), 2, mode="tcnn")
    c = 0.48860251190291987  # sqrt(3 / 4 pi)
    torch.testing.assert_close(out[:, 1:], torch.tensor([[0.0, 0.8 * c, -0.6 * c], [-c, 0.0, 0.0]]))


def test_off_the_sphere_it_is_the_polynomial() -> None:
    """Values of the polynomials that the peers evaluate, at a point of length 1.87, by hand."""
    x, y, z = 0.5, -1.0, 1.5
    out = fastvfx.spherical_harmonics(torch.tensor([[x, y, z]], dtype=torch.float64), 4, mode="nerfstudio")[0]
    by_hand = {
        4: math.sqrt(15 / (4 * math.pi)) * x * y,
        6: math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1),
        9: math.sqrt(35 / (32 * math.pi)) * y * (3 * x * x - y * y),
        12: math.sqrt(7 / (16 * math.pi)) * z * (5 * z * z - 3),
        13: math.sqrt(21 / (32 * math.pi)) * x * (5 * z * z - 1),
    }
    for column, value in by_hand.items():
        assert out[column].item() == pytest.approx(value, rel=1e-14), column


def test_columns_are_orthonormal() -> None:
    """Gauss-Legendre in z times the trapezoid rule in the angle integrates products up to degree 8 exactly."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    phi = 2 * math.pi * np.arange(24) / 24
    z, phi_grid = np.meshgrid(nodes, phi, indexing="ij")
    s = np.sqrt(1 - z * z)
    dirs = torch.tensor(np.stack([s * np.cos(phi_grid), s * np.sin(phi_grid), z], -1))  # (12, 24, 3)
    out = fastvfx.spherical_harmonics(dirs, 8).reshape(-1, 64)
    weight = torch.tensor(weights)[:, None].expand(12, 24).reshape(-1) * (2 * math.pi / 24)
    gram = out.T @ (weight[:, None] * out)
    torch.testing.assert_close(gram, torch.eye(64, dtype=torch.float64), atol=1e-13, rtol=0)


def test_unit_range_stands_for_twice_the_input_minus_one() -> None:
    dirs = directions(50)
    unit = fastvfx.spherical_harmonics((dirs + 1) / 2, 5, input_range="unit")
    torch.testing.assert_close(unit, fastvfx.spherical_harmonics(dirs, 5), atol=1e-14, rtol=0)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("degree", DEGREES)
def test_forward_and_gradients_are_as_good_as_torch(dtype: torch.dtype, degree: int, device: str, isa: str) -> None:
    dirs = directions(123, dtype).to(device).requires_grad_()
    g = torch.randn(123, degree**2, device=device).to(dtype)
    v = torch.randn(123, 3, device=device).to(dtype)

    def run(function, dirs, g, v):
        leaf = dirs.detach().clone().requires_grad_()
        g = g.clone().requires_grad_()
        out = function(leaf)
        (grad,) = torch.autograd.grad(out, leaf, g, create_graph=True)
        second, grad_grad = torch.autograd.grad(grad, (leaf, g), v, allow_unused=True, materialize_grads=True)
        return out, grad, second, grad_grad

    def formula(d):
        return reference(d, degree, True, False)

    got = run(lambda d: fastvfx.spherical_harmonics(d, degree), dirs, g, v)
    exact = run(formula, dirs.double(), g.double(), v.double())
    same = run(formula, dirs, g, v)
    for what, a, b, c in zip(("out", "grad", "second", "grad_grad"), got, same, exact, strict=True):
        assert a.dtype is dtype
        assert_as_good_as_torch(a, b, c, what)
    if degree > 1 and dtype is torch.float32:
        assert_same_direction(got[1], exact[1], "grad")


@native
@pytest.mark.parametrize("degree", [1, 2, 4, 8])
@pytest.mark.parametrize("options", [("tcnn", "signed"), ("tcnn", "unit"), ("nerfstudio", "signed")], ids=str)
def test_gradcheck(degree: int, options: tuple[str, str], device: str) -> None:
    dirs = directions(5).to(device).requires_grad_()

    def function(d):
        return fastvfx.spherical_harmonics(d, degree, mode=options[0], input_range=options[1])

    assert gradcheck(function, dirs)
    assert gradgradcheck(function, dirs)


@native
def test_third_derivative_matches_the_formula() -> None:
    dirs = directions(4).requires_grad_()

    def third(function):
        (g,) = torch.autograd.grad(function(dirs).pow(2).sum(), dirs, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), dirs, create_graph=True)
        return torch.autograd.grad(h.pow(2).sum(), dirs)[0]

    got, exact = third(lambda d: fastvfx.spherical_harmonics(d, 4)), third(lambda d: reference(d, 4))
    torch.testing.assert_close(got, exact)


@native
@pytest.mark.parametrize("n", [0, 1, 5, 16, 17, 123, 4099])
def test_any_number_of_directions(n: int, device: str) -> None:
    """Inside a larger batch and alone a direction gives the same bits: nothing leaks between lanes."""
    dirs = directions(4099, torch.float32).to(device)
    whole = fastvfx.spherical_harmonics(dirs, 4)
    assert torch.equal(fastvfx.spherical_harmonics(dirs[:n], 4), whole[:n])


@native
@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0, 3), (2, 5, 3), (2, 3, 4, 3)], ids=str)
def test_any_batch_shape(shape: tuple[int, ...], device: str) -> None:
    dirs = torch.randn(shape, device=device).requires_grad_()
    out = fastvfx.spherical_harmonics(dirs, 3)
    assert out.shape == (*shape[:-1], 9)
    torch.testing.assert_close(out, reference(dirs, 3))
    (grad,) = torch.autograd.grad(out.sum(), dirs)
    assert grad.shape == dirs.shape and grad.isfinite().all()


@native
def test_strided_directions(device: str) -> None:
    base = torch.randn(3, 40, device=device)
    dirs = base.T[::2].requires_grad_()
    assert not dirs.is_contiguous()
    out = fastvfx.spherical_harmonics(dirs, 4)
    torch.testing.assert_close(out, reference(dirs.contiguous(), 4))
    grad_out = torch.randn(16, 20, device=device).T
    (grad,) = torch.autograd.grad(out, dirs, grad_out)
    (expected,) = torch.autograd.grad(reference(dirs, 4), dirs, grad_out)
    torch.testing.assert_close(grad, expected)


@native
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_a_bad_direction_stays_in_its_row(bad: float, device: str) -> None:
    dirs = directions(40, torch.float32).to(device)
    clean = fastvfx.spherical_harmonics(dirs, 4)
    dirs[7, 1] = bad
    dirs.requires_grad_()
    out = fastvfx.spherical_harmonics(dirs, 4)
    others = torch.arange(40, device=device) != 7
    assert torch.equal(out[others], clean[others])
    assert not out[7].isfinite().all()
    (grad,) = torch.autograd.grad(out.sum(), dirs)
    assert grad[others].isfinite().all()


@native
@pytest.mark.parametrize("degree", [1, 3, 4, 8])
def test_threads_and_levels_agree(degree: int, isa: str, one_thread_and_many: list[int]) -> None:
    dirs = directions(5003, torch.float32).requires_grad_()
    results = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        out = fastvfx.spherical_harmonics(dirs, degree)
        results.append((out.detach(), torch.autograd.grad(out.square().sum(), dirs)[0]))
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(grad, results[0][1])
    torch.testing.assert_close(results[0][0], reference(dirs.detach().double(), degree).float(), atol=2e-6, rtol=2e-6)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype, device: str) -> None:
    ops = torch.ops.fastvfx
    dirs, g, v = (torch.randn(7, c, device=device).to(dtype) for c in (3, 16, 3))
    torch.library.opcheck(ops.spherical_harmonics_fwd.default, (dirs, 4, True, False))
    torch.library.opcheck(ops.spherical_harmonics_bwd.default, (dirs, g, 4, True, True))
    torch.library.opcheck(ops.spherical_harmonics_bwd_bwd.default, (dirs, g, v, 4, False, False))


@native
def test_compiles_to_one_graph(device: str) -> None:
    encode = fastvfx.SphericalHarmonics(4).to(device)
    compiled = torch.compile(lambda d: encode(d * 1.0).square().sum(-1), fullgraph=True)
    dirs = directions(64, torch.float32).to(device).requires_grad_()
    torch.testing.assert_close(compiled(dirs), encode(dirs).square().sum(-1))
    (grad,) = torch.autograd.grad(compiled(dirs).sum(), dirs)
    (expected,) = torch.autograd.grad(encode(dirs).square().sum(), dirs)
    torch.testing.assert_close(grad, expected)


@native
def test_runs_on_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        dirs = torch.empty(6, 2, 3, requires_grad=True)
        out = fastvfx.spherical_harmonics(dirs, 3)
        assert out.shape == (6, 2, 9)
        assert torch.autograd.grad(out.sum(), dirs)[0].shape == dirs.shape


def test_module_says_its_sizes() -> None:
    encode = fastvfx.SphericalHarmonics(degree=5, mode="nerfstudio", input_range="unit")
    assert (encode.n_input_dims, encode.n_output_dims) == (3, 25)
    assert not list(encode.parameters()) and not encode.state_dict()
    dirs = torch.rand(9, 3)
    expected = fastvfx.spherical_harmonics(dirs, 5, mode="nerfstudio", input_range="unit")
    assert torch.equal(encode(dirs), expected)
    assert "degree=5" in repr(encode)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0, 0.0, 0.0], 4), TypeError, "expected dirs to be a torch.Tensor, got list"),
        ((torch.ones(2, 3, dtype=torch.int32), 4), TypeError, "expected dirs of dtype float32, .* got torch.int32"),
        ((torch.ones(2, 4), 4), ValueError, r"expected dirs of shape \(..., 3\), got \(2, 4\)"),
        ((torch.tensor(1.0), 4), ValueError, r"expected dirs of shape \(..., 3\), got \(\)"),
        ((torch.ones(2, 3), 0), ValueError, "expected degree from 1 to 8, got 0"),
        ((torch.ones(2, 3), 9), ValueError, "expected degree from 1 to 8, got 9"),
        ((torch.ones(2, 3), 4.0), TypeError, "expected degree to be an int, got float"),
    ],
    ids=["list", "int dtype", "last size", "scalar", "degree 0", "degree 9", "degree 4.0"],
)
def test_bad_input_is_named(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"fastvfx.spherical_harmonics: {message}"):
        fastvfx.spherical_harmonics(*arguments)


@pytest.mark.parametrize("options", [{"mode": "svox"}, {"input_range": "01"}], ids=str)
def test_bad_options_are_named(options: dict[str, str]) -> None:
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"fastvfx.spherical_harmonics: expected {name} to be"):
        fastvfx.spherical_harmonics(torch.ones(2, 3), 4, **options)
    with pytest.raises(ValueError, match=f"fastvfx.SphericalHarmonics: expected {name} to be"):
        fastvfx.SphericalHarmonics(4, **options)
