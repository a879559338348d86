"""``frequency``: the layout of each project, precision at high frequencies, and what every operator promises."""

from __future__ import annotations

import math

import pytest
import torch
from marks import native
from oracle import assert_as_good_as_torch, assert_same_direction
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastvfx
from fastvfx.reference import frequency as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
MODES = ["tcnn", "torch_ngp", "nerfstudio", "nerf"]
BACKENDS = [pytest.param("native", marks=native), "reference"]


def column_names(mode: str, dims: int, n: int, include_input: bool) -> list[tuple]:
    """Each project's order, spelled out: ("x", d) or ("sin" or "cos", d, f)."""
    if mode == "tcnn":
        waves = [(wave, d, f) for d in range(dims) for f in range(n) for wave in ("sin", "cos")]
    elif mode == "nerfstudio":
        waves = [(wave, d, f) for wave in ("sin", "cos") for d in range(dims) for f in range(n)]
    else:
        waves = [(wave, d, f) for f in range(n) for wave in ("sin", "cos") for d in range(dims)]
    inputs = [("x", d) for d in range(dims)] if include_input else []
    return waves + inputs if mode == "nerfstudio" else inputs + waves


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("include_input", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_columns_are_in_the_order_of_the_project(mode: str, include_input: bool, backend: str) -> None:
    x = torch.rand(7, 3, dtype=torch.float64) * 2 - 1
    with fastvfx.backend(backend):
        out = fastvfx.frequency(x, 4, mode=mode, include_input=include_input)
    names = column_names(mode, 3, 4, include_input)
    assert out.shape == (7, len(names))
    factor = {"tcnn": math.pi, "nerfstudio": 2 * math.pi}.get(mode, 1.0)
    for column, (kind, d, *f) in enumerate(names):
        angle = x[:, d] * factor * 2 ** f[0] if f else x[:, d]
        expected = {"x": angle, "sin": angle.sin(), "cos": angle.cos()}[kind]
        torch.testing.assert_close(out[:, column], expected, atol=1e-13, rtol=0, msg=f"column {column}, {kind}")


@pytest.mark.parametrize(("mode", "includes"), [("tcnn", 0), ("torch_ngp", 1), ("nerfstudio", 0), ("nerf", 1)])
def test_the_input_is_included_as_the_project_does(mode: str, includes: int) -> None:
    assert fastvfx.frequency(torch.rand(2, 3), 5, mode=mode).shape == (2, 3 * (10 + includes))


@native
@pytest.mark.parametrize("mode", MODES)
def test_high_frequencies_are_as_precise_as_low_ones(mode: str, isa: str, device: str) -> None:
    """float64 is exact enough as the oracle here: 2^15 x has 39 bits. torch's float32 loses up to 1e-3."""
    x = ((torch.rand(4000, 3) * 2 - 1) * 4).to(device)
    with fastvfx.backend("reference"):
        exact = fastvfx.frequency(x.double(), 16, mode=mode)
    error = (fastvfx.frequency(x, 16, mode=mode).double() - exact).abs().max().item()
    assert error < 1.5 * 2**-23


@native
def test_large_coordinates_keep_their_precision(isa: str, device: str) -> None:
    """In units of pi a float beyond 2^24 is an even number: exactly a whole number of turns."""
    x = torch.tensor([[1e10], [-3.4e20], [2.0**24 - 1], [100000.25]], device=device)
    out = fastvfx.frequency(x, 1, mode="tcnn")
    s = math.sqrt(0.5)
    expected = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, -1.0], [s, s]], device=device)
    torch.testing.assert_close(out, expected, atol=6e-8, rtol=0)


@native
def test_quarter_turns_are_exact(isa: str, device: str) -> None:
    x = torch.tensor([[0.0], [0.5], [1.0], [1.5], [2.0], [-0.5], [-1.0]], device=device)
    expected = [[0, 1], [1, 0], [0, -1], [-1, 0], [0, 1], [-1, 0], [0, -1]]
    assert torch.equal(fastvfx.frequency(x, 1), torch.tensor(expected, dtype=torch.float32, device=device))


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [(123, 3, 10), (50, 1, 1), (5, 7, 4)], ids=str)
def test_forward_and_gradients_are_as_good_as_torch(
    dtype: torch.dtype, mode: str, sizes: tuple[int, int, int], isa: str, device: str
) -> None:
    n, dims, n_frequencies = sizes
    x = (torch.rand(n, dims, device=device) * 2 - 1).to(dtype)
    g = torch.randn_like(fastvfx.frequency(x, n_frequencies, mode=mode))
    v = torch.randn_like(x)
    include = mode in ("torch_ngp", "nerf")

    def run(function, x, g, v):
        x, g = x.detach().clone().requires_grad_(), g.detach().clone().requires_grad_()
        out = function(x)
        (grad,) = torch.autograd.grad(out, x, g, create_graph=True)
        return out, grad, *torch.autograd.grad(grad, (x, g), v)

    def formula(x: Tensor) -> Tensor:
        return reference(x, n_frequencies, mode, include)

    got = run(lambda x: fastvfx.frequency(x, n_frequencies, mode=mode), x, g, v)
    exact = run(formula, x.double(), g.double(), v.double())
    same = run(formula, x, g, v)
    # The oracle rounds 2^f pi x to float64; the kernel does not, so in float64 they differ by that.
    floor = 2.0**n_frequencies if dtype is torch.float64 else 1.0
    for what, a, b, c in zip(("out", "grad", "second", "grad_grad"), got, same, exact, strict=True):
        assert a.dtype is dtype
        assert_as_good_as_torch(a, b, c, what, floor)
    if dtype is torch.float32:
        assert_same_direction(got[1], exact[1], "grad")
        assert_same_direction(got[2], exact[2], "second")


@native
@pytest.mark.parametrize("include_input", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode: str, include_input: bool, device: str) -> None:
    x = torch.rand(3, 2, dtype=torch.float64, device=device).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return fastvfx.frequency(x, 3, mode=mode, include_input=include_input)

    assert gradcheck(function, x)
    assert gradgradcheck(function, x)


@native
def test_third_derivative_matches_the_formula() -> None:
    x = torch.rand(4, 2, dtype=torch.float64).requires_grad_()

    def third(function):
        (g,) = torch.autograd.grad(function(x).pow(3).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(h.pow(2).sum(), x)[0]

    torch.testing.assert_close(third(lambda x: fastvfx.frequency(x, 2)), third(lambda x: reference(x, 2)))


@native
@pytest.mark.parametrize("n", [0, 1, 5, 16, 17, 123, 4099])
def test_any_number_of_points(n: int, device: str) -> None:
    """Inside a larger batch and alone a point gives the same bits: nothing leaks between lanes."""
    x = torch.rand(4099, 3, device=device)
    whole = fastvfx.frequency(x, 5)
    assert torch.equal(fastvfx.frequency(x[:n], 5), whole[:n])


@native
@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0, 3), (2, 5, 1), (2, 3, 4, 5), (3, 700)], ids=str)
def test_any_batch_shape(shape: tuple[int, ...], device: str) -> None:
    x = torch.randn(shape, device=device).requires_grad_()
    out = fastvfx.frequency(x, 6)
    assert out.shape == (*shape[:-1], shape[-1] * 12)
    torch.testing.assert_close(out, reference(x, 6), atol=2e-4, rtol=0)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.shape == x.shape and grad.isfinite().all()


@native
def test_strided_coordinates(device: str) -> None:
    x = torch.rand(3, 40, device=device).T[::2].requires_grad_()
    assert not x.is_contiguous()
    out = fastvfx.frequency(x, 4)
    assert torch.equal(out, fastvfx.frequency(x.contiguous(), 4))
    grad_out = torch.randn(24, 20, device=device).T
    (grad,) = torch.autograd.grad(out, x, grad_out)
    (expected,) = torch.autograd.grad(reference(x, 4), x, grad_out)
    torch.testing.assert_close(grad, expected, atol=1e-4, rtol=1e-4)


@native
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_bad_coordinate_stays_in_its_row(bad: float, mode: str, isa: str, device: str) -> None:
    x = torch.rand(40, 3, device=device)
    clean = fastvfx.frequency(x, 4, mode=mode)
    x[7, 1] = bad
    x.requires_grad_()
    out = fastvfx.frequency(x, 4, mode=mode)
    others = torch.arange(40, device=device) != 7
    assert torch.equal(out[others], clean[others])
    assert torch.equal(out[7].isnan(), reference(x, 4, mode, mode in ("torch_ngp", "nerf"))[7].isnan())
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad[others].isfinite().all() and grad[7, 1].isnan()


@native
@pytest.mark.parametrize("mode", MODES)
def test_threads_and_levels_agree(mode: str, isa: str, one_thread_and_many: list[int]) -> None:
    x = torch.rand(20011, 3).requires_grad_()
    results = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        out = fastvfx.frequency(x, 8, mode=mode)
        results.append((out.detach(), torch.autograd.grad(out.square().sum(), x)[0]))
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(grad, results[0][1])
    exact = reference(x.detach().double(), 8, mode, mode in ("torch_ngp", "nerf"))
    torch.testing.assert_close(results[0][0], exact.float(), atol=2e-7, rtol=0)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [0, 1, 2])
def test_opcheck(dtype: torch.dtype, layout: int, device: str) -> None:
    ops = torch.ops.fastvfx
    x, g, v = (torch.randn(7, c, device=device).to(dtype) for c in (3, 27, 3))
    torch.library.opcheck(ops.frequency_fwd.default, (x, 4, layout, True))
    torch.library.opcheck(ops.frequency_bwd.default, (x, g, 4, layout, True))
    torch.library.opcheck(ops.frequency_bwd_bwd.default, (x, g, v, 4, layout, True))


@native
def test_compiles_to_one_graph(device: str) -> None:
    encode = fastvfx.Frequency(3, 6).to(device)
    compiled = torch.compile(lambda x: encode(x * 1.0).square().sum(-1), fullgraph=True)
    x = torch.rand(64, 3, device=device).requires_grad_()
    torch.testing.assert_close(compiled(x), encode(x).square().sum(-1))
    (grad,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(encode(x).square().sum(), x)
    torch.testing.assert_close(grad, expected)


@native
def test_runs_on_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(6, 2, 3, requires_grad=True)
        out = fastvfx.frequency(x, 3, mode="nerf")
        assert out.shape == (6, 2, 21)
        assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


def test_module_says_its_sizes() -> None:
    encode = fastvfx.Frequency(2, n_frequencies=5, mode="nerfstudio", include_input=True)
    assert (encode.n_input_dims, encode.n_output_dims) == (2, 22)
    assert not list(encode.parameters()) and not encode.state_dict()
    x = torch.rand(9, 2)
    assert torch.equal(encode(x), fastvfx.frequency(x, 5, mode="nerfstudio", include_input=True))
    assert "n_frequencies=5" in repr(encode)
    assert fastvfx.Frequency(3).n_output_dims == 72


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], 4), TypeError, "expected x to be a torch.Tensor, got list"),
        ((torch.ones(2, 3, dtype=torch.int64), 4), TypeError, "expected x of dtype float32, .* got torch.int64"),
        ((torch.tensor(1.0), 4), ValueError, r"expected x of shape \(..., n_dims\) with n_dims >= 1, got \(\)"),
        ((torch.ones(2, 0), 4), ValueError, r"expected x of shape \(..., n_dims\) with n_dims >= 1, got \(2, 0\)"),
        ((torch.ones(2, 3), 0), ValueError, "expected n_frequencies from 1 to 32, got 0"),
        ((torch.ones(2, 3), 33), ValueError, "expected n_frequencies from 1 to 32, got 33"),
        ((torch.ones(2, 3), 4.0), TypeError, "expected n_frequencies to be an int, got float"),
        ((torch.ones(1, 1 << 16), 32), ValueError, "expected at most 1048576 output columns, got 4194304"),
    ],
    ids=["list", "int dtype", "scalar", "no dims", "0", "33", "4.0", "too wide"],
)
def test_bad_input_is_named(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"fastvfx.frequency: {message}"):
        fastvfx.frequency(*arguments)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"fastvfx.frequency: expected mode to be one of tcnn, .*, got 'jax'"):
        fastvfx.frequency(torch.ones(2, 3), mode="jax")
    with pytest.raises(ValueError, match=r"fastvfx\.Frequency: expected mode to be one of"):
        fastvfx.Frequency(3, mode="jax")
    with pytest.raises(ValueError, match=r"fastvfx\.Frequency: expected n_input_dims >= 1, got 0"):
        fastvfx.Frequency(0)
    with pytest.raises(ValueError, match=r"fastvfx.Frequency: expected x of .* n_input_dims=3, got \(2, 4\)"):
        fastvfx.Frequency(3)(torch.ones(2, 4))
