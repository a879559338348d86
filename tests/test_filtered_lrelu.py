"""filtered_lrelu: values and gradients against the reference in float64, and everything that a caller may do to it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from marks import native
from oracle import assert_as_good_as_torch, assert_same_direction
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastvfx
from fastvfx import _ext
from fastvfx.functional import filtered_lrelu, setup_filter
from fastvfx.reference.filtered_lrelu import filtered_lrelu as reference
from fastvfx.reference.upfirdn2d import upfirdn2d

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def lowpass(taps: int, dims: int = 1) -> Tensor:
    """A smooth filter without symmetries, so that a mirrored one shows."""
    f = torch.hann_window(taps + 2)[1:-1] * torch.linspace(0.7, 1.3, taps)
    f = f / f.sum()
    return f if dims == 1 else torch.outer(f, f.flip(0)) + 0.01 * torch.randn(taps, taps)


#: name: (up, down, fu, fd, padding, size of x)
CASES = {
    "stylegan3-t": (2, 2, lowpass(12), lowpass(12), (9, 8, 9, 8), (20, 37)),
    "up4": (4, 2, lowpass(24), lowpass(12), (-5, 4, -6, 3), (21, 18)),
    "stylegan3-r": (2, 2, lowpass(12), lowpass(12, 2), (10, 9, 10, 9), (17, 20)),
    "up 2-D": (2, 2, lowpass(5, 2), lowpass(6), (3, 2, 1, 4), (13, 16)),
    "both 2-D": (4, 2, lowpass(8, 2), lowpass(3, 2), (4, 4, 4, 4), (9, 11)),
    "no filters": (1, 1, None, None, (0, 0, 0, 0), (7, 35)),
    "only up": (3, 1, lowpass(7), None, (2, 3, 1, 0), (11, 9)),
    "only down": (1, 3, None, lowpass(4), (2, 3, 1, 0), (26, 31)),
    "coprime": (5, 3, lowpass(11), lowpass(7), (4, 5, 6, 7), (8, 14)),
    "down more than taps": (2, 5, lowpass(3), lowpass(2), (3, 0, 0, 3), (19, 16)),
    "crop": (2, 1, lowpass(4), lowpass(3), (-7, -3, -4, -9), (18, 19)),
    "padding beyond": (2, 2, lowpass(6), lowpass(6), (40, 33, 5, 70), (4, 3)),
    "filters beyond": (2, 2, lowpass(31), lowpass(21), (30, 31, 29, 28), (5, 6)),
    "one pixel": (2, 2, lowpass(2), lowpass(2), (1, 0, 1, 0), (1, 1)),
}


def inputs(case: str, dtype: torch.dtype, device: str, n: int = 2, channels: int = 3) -> tuple[Tensor, Tensor, dict]:
    up, down, fu, fd, padding, size = CASES[case]
    x, b = torch.randn(n, channels, *size), torch.randn(channels) * 0.3
    to = partial(torch.Tensor.to, device=device)
    filters = {name: None if f is None else to(f) for name, f in (("fu", fu), ("fd", fd))}
    return to(x).to(dtype), to(b).to(dtype), {**filters, "up": up, "down": down, "padding": padding}


def formula(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, up: int, down: int, padding: tuple,
            gain: float = math.sqrt(2), slope: float = 0.2, clamp: float | None = None, flip_filter: bool = False
            ) -> Tensor:  # fmt: skip
    return reference(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter)


def derivatives(function, x: Tensor, b: Tensor, seed: int = 3) -> list[Tensor]:
    """y, the gradients in x and b, and the gradient of a weighted sum of those in the incoming one."""
    x, b = x.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
    y = function(x, b)
    draw = torch.Generator().manual_seed(seed)

    def like(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=draw).to(t.device, t.dtype)

    g = like(y).requires_grad_()
    grads = torch.autograd.grad(y, (x, b), g, create_graph=True)
    (grad_g,) = torch.autograd.grad(grads, g, [like(t) for t in grads])
    return [y.detach(), *(t.detach() for t in grads), grad_g]


def away_from_kinks(x: Tensor, b: Tensor, options: dict, clamp: float | None, gain: float, at_least: float) -> bool:
    """Whether no pixel between the filters is where the derivative jumps."""
    wide = x.double() + b.double()[None, :, None, None]
    up = options["up"]
    f = options["fu"]
    u = gain * upfirdn2d(wide, f, (up, up), (1, 1), options["padding"], options.get("flip_filter", False), up**2)
    u = u[u != 0]  # padding: its derivative is not looked at, or is 0
    limits = [0.0] if clamp is None else [0.0, clamp, -clamp / 0.2]
    return all(((u - limit).abs() > at_least).all() for limit in limits)


@native
@pytest.mark.parametrize("clamp", [None, 0.5], ids=["free", "clamped"])
@pytest.mark.parametrize("case", CASES)
def test_float64_agrees_with_the_formula(case: str, clamp: float | None, isa: str, device: str) -> None:
    x, b, options = inputs(case, torch.float64, device)
    got = derivatives(lambda x, b: filtered_lrelu(x, b=b, clamp=clamp, gain=1.1, **options), x, b)
    exact = derivatives(lambda x, b: formula(x, b=b, clamp=clamp, gain=1.1, **options), x, b)
    for what, a, e in zip(("y", "grad_x", "grad_b", "second"), got, exact, strict=True):
        torch.testing.assert_close(a, e, atol=1e-12, rtol=1e-12, msg=lambda m, what=what: f"{what}: {m}")


@native
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("case", ["stylegan3-t", "up4", "stylegan3-r", "both 2-D", "coprime"])
def test_values_and_gradients_are_as_good_as_torch(case: str, dtype: torch.dtype, isa: str, device: str) -> None:
    x, b, options = inputs(case, dtype, device)
    for seed in range(50):  # where rounding decides on which side of a kink a pixel is, two results are right
        torch.manual_seed(seed)
        x, b = torch.randn_like(x), torch.randn_like(b)
        if away_from_kinks(x, b, options, 4.0, math.sqrt(2), 2e-6):
            break
    got = derivatives(lambda x, b: filtered_lrelu(x, b=b, clamp=4.0, **options), x, b)
    exact = derivatives(lambda x, b: formula(x, b=b, clamp=4.0, **options), x.double(), b.double())
    same = derivatives(lambda x, b: formula(x, b=b, clamp=4.0, **options), x, b)
    for what, a, s, e in zip(("y", "grad_x", "grad_b", "second"), got, same, exact, strict=True):
        assert a.dtype is dtype
        # The second derivative passes through two roundings to 16 bits, of the first gradients' incoming tensors too.
        assert_as_good_as_torch(a, s, e, what, 2.0 if what == "second" else 1.0)
    if dtype is torch.float32:
        assert_same_direction(got[1], exact[1], "grad_x")


@native
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("clamp", [None, 32.125], ids=["free", "clamped"])
@pytest.mark.parametrize("shape", [(1, 16, 150, 21), (2, 18, 11, 45)], ids=str)
@pytest.mark.parametrize("up, down", [(2, 2), (4, 2), (2, 4)], ids=str)
def test_exact_in_small_numbers(
    up: int, down: int, shape: tuple[int, ...], clamp: float | None, dtype: torch.dtype, isa: str, device: str
) -> None:
    """Filters of StyleGAN3's lengths, for which there are kernels of their own where planes are many.

    No sum of these numbers is rounded before it is stored, so that no kink hides a wrong pixel.
    """

    def integers(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape).to(device, dtype)

    fu, fd = (torch.randint(1, 3, (6 * k,)) * (torch.randint(0, 2, (6 * k,)) - 0.5) for k in (up, down))
    for padding in ((6 * up + 3, 5 * down, 6 * up + 2, 5 * down + 1), (-2, 24, 33, -1)):
        x, b = integers(*shape), integers(shape[1])
        options = {"fu": fu.to(device), "fd": fd.to(device), "up": up, "down": down, "padding": padding}
        options |= {"clamp": clamp, "slope": 0.25, "gain": 1.0}

        def results(function, x: Tensor, b: Tensor, g: Tensor | None, directions: list[Tensor], options=options):
            x, b = x.clone().requires_grad_(), b.clone().requires_grad_()
            y = function(x, b=b, **options)
            g = (integers(*y.shape) if g is None else g.to(y.dtype)).requires_grad_()
            grads = torch.autograd.grad(y, (x, b), g, create_graph=True)
            (second,) = torch.autograd.grad(grads, g, [d.to(y.dtype) for d in directions])
            return [y.detach(), grads[0].detach(), second, grads[1].detach()], g.detach()

        directions = [integers(*shape), integers(shape[1])]
        got, g = results(filtered_lrelu, x, b, None, directions)
        exact, _ = results(formula, x.double(), b.double(), g, directions)
        for what, a, e in zip(("y", "grad_x", "second", "grad_b"), got, exact, strict=True):
            torch.testing.assert_close(a, e.to(dtype), atol=0, rtol=0, msg=lambda m, what=what: f"{what}: {m}")


@native
@pytest.mark.parametrize("slope", [-0.5, 0.0, 1.0, 1.7], ids=str)
@pytest.mark.parametrize("flip", [False, True], ids=["convolve", "correlate"])
@pytest.mark.parametrize("case", ["stylegan3-t", "both 2-D"])
def test_any_slope_and_orientation(case: str, flip: bool, slope: float, isa: str, device: str) -> None:
    x, b, options = inputs(case, torch.float64, device)
    options |= {"slope": slope, "flip_filter": flip, "clamp": 0.8}
    got = derivatives(lambda x, b: filtered_lrelu(x, b=b, **options), x, b)
    exact = derivatives(lambda x, b: formula(x, b=b, **options), x, b)
    for a, e in zip(got, exact, strict=True):
        torch.testing.assert_close(a, e, atol=1e-12, rtol=1e-12)


@native
@pytest.mark.parametrize("clamp", [None, 0.5], ids=["free", "clamped"])
@pytest.mark.parametrize("case", ["stylegan3-t", "up4", "stylegan3-r", "coprime", "crop"])
def test_gradcheck(case: str, clamp: float | None, device: str) -> None:
    x, b, options = inputs(case, torch.float64, device, 1, 2)
    if case != "crop":
        x = x[:, :, :10, :9]
    for seed in range(100):
        torch.manual_seed(seed)
        x, b = torch.randn_like(x), torch.randn_like(b)
        if away_from_kinks(x, b, options, clamp, 1.0, 2e-5):
            break
    else:
        pytest.fail("no random image keeps away from the kinks")

    def function(x: Tensor, b: Tensor) -> Tensor:
        return filtered_lrelu(x, b=b, clamp=clamp, gain=1.0, **options)

    x.requires_grad_(), b.requires_grad_()
    assert gradcheck(function, (x, b), fast_mode=True)
    assert gradgradcheck(function, (x, b), fast_mode=True)


@native
def test_gradcheck_of_filters(device: str) -> None:
    x, b, options = inputs("up 2-D", torch.float64, device, 1, 2)
    fu, fd = (options.pop(name).double() * 3 for name in ("fu", "fd"))
    for seed in range(100):
        torch.manual_seed(seed)
        x = torch.randn_like(x)
        if away_from_kinks(x, b, options | {"fu": fu}, 2.0, 1.0, 1e-4):
            break
    leaves = [t.requires_grad_() for t in (x, b, fu, fd)]

    def function(x: Tensor, b: Tensor, fu: Tensor, fd: Tensor) -> Tensor:
        return filtered_lrelu(x, fu, fd, b, clamp=2.0, gain=1.0, **options)

    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


@native
def test_third_derivative_matches_the_formula(device: str) -> None:
    x, b, options = inputs("stylegan3-t", torch.float64, device, 1, 2)

    def third(function) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()]
        value = function(*leaves).pow(3).sum()
        for _ in range(2):
            value = sum(g.pow(2).sum() for g in torch.autograd.grad(value, leaves, create_graph=True))
        return list(torch.autograd.grad(value, leaves))

    got = third(lambda x, b: filtered_lrelu(x, b=b, clamp=1.0, **options))
    for a, e in zip(got, third(lambda x, b: formula(x, b=b, clamp=1.0, **options)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-8)


@native
def test_the_gradient_is_the_adjoint(isa: str, device: str) -> None:
    """<J v, g> = <v, J^T g> for the derivative J at one point."""
    x, b, options = inputs("up4", torch.float64, device)
    x.requires_grad_()
    y = filtered_lrelu(x, b=b, clamp=0.7, **options)
    v, g = torch.randn_like(x), torch.randn_like(y).requires_grad_()
    (grad_x,) = torch.autograd.grad(y, x, g, create_graph=True)
    (forward,) = torch.autograd.grad(grad_x, g, v)
    torch.testing.assert_close((forward * g).sum(), (v * grad_x).sum())


@native
def test_keeps_bits_and_not_x(device: str) -> None:
    x, b, options = inputs("stylegan3-t", torch.float32, device)
    x.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = filtered_lrelu(x, b=b, clamp=256.0, **options)
    middle = x.shape[0] * x.shape[1] * (2 * y.shape[2] + 12) * (2 * y.shape[3] + 12 + 32)
    assert max(t.nbytes for t in kept) <= middle // 4 + 16


@native
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8)], ids=str)
def test_no_images(shape: tuple[int, ...], device: str) -> None:
    x = torch.randn(shape, device=device).requires_grad_()
    b = torch.zeros(shape[1], device=device).requires_grad_()
    f = setup_filter([1, 3, 3, 1], device=device)
    y = filtered_lrelu(x, f, f, b, up=2, down=2, padding=3)
    assert y.shape == (*shape[:2], 8, 8)
    grads = torch.autograd.grad(y.sum(), (x, b))
    assert grads[0].shape == x.shape and torch.equal(grads[1], torch.zeros_like(b))


@native
@pytest.mark.parametrize("width", [1, 3, 7, 15, 16, 17, 31, 33, 64, 65, 130])
def test_any_width(width: int, isa: str, device: str) -> None:
    f = lowpass(6).to(device)
    x = torch.randn(1, 2, 9, width, dtype=torch.float64, device=device)
    b = torch.randn(2, dtype=torch.float64, device=device)
    options = {"fu": f, "fd": f, "up": 2, "down": 2, "padding": (5, 4, 5, 4), "clamp": 1.0}
    got = derivatives(lambda x, b: filtered_lrelu(x, b=b, **options), x, b)
    exact = derivatives(lambda x, b: formula(x, b=b, **options), x, b)
    for a, e in zip(got, exact, strict=True):
        torch.testing.assert_close(a, e, atol=1e-12, rtol=1e-12)


@native
@pytest.mark.parametrize("planes", [1, 3, 70])
def test_threads_change_nothing(planes: int, isa: str, one_thread_and_many: list[int]) -> None:
    f = lowpass(12)
    x, b = torch.randn(1, planes, 150, 20), torch.randn(planes)
    results = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        results.append(derivatives(lambda x, b: filtered_lrelu(x, f, f, b, 2, 2, (9, 8, 9, 8), clamp=1.0), x, b))
    for result in results[1:]:
        assert all(torch.equal(a, e) for a, e in zip(result, results[0], strict=True))


@native
def test_levels_read_each_others_masks() -> None:
    """The slopes that one instruction set wrote mean the same to another."""
    assert _ext._C is not None
    before = _ext._C.active_isa()
    x, b, options = inputs("up4", torch.float64, "cpu")
    x.requires_grad_()
    g, gradients = None, []
    for isa in ("x86-64-v2", before):
        _ext._C.set_isa(before)
        y = filtered_lrelu(x, b=b, clamp=0.5, **options)
        g = torch.randn_like(y) if g is None else g
        _ext._C.set_isa(isa)
        gradients.append(torch.autograd.grad(y, x, g)[0])
    _ext._C.set_isa(before)
    torch.testing.assert_close(gradients[0], gradients[1])


@native
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("case", ["stylegan3-t", "stylegan3-r", "coprime", "up 2-D"])
def test_a_bad_pixel_stays_in_its_footprint(case: str, bad: float, isa: str, device: str) -> None:
    x, b, options = inputs(case, torch.float32, device)
    clean = filtered_lrelu(x, b=b, **options)
    x[1, 2, 4, 5] = bad
    y, expected = filtered_lrelu(x, b=b, **options), formula(x, b=b, **options)
    touched = ~expected.isfinite()
    assert touched.any() and not touched.all()
    assert torch.equal(y.isfinite(), ~touched)
    assert torch.equal(y[~touched], clean[~touched])
    assert torch.equal(
        filtered_lrelu(x, b=b, clamp=1.0, **options).isnan(), formula(x, b=b, clamp=1.0, **options).isnan()
    )


@native
def test_a_bad_gradient_stays_in_its_footprint(isa: str, device: str) -> None:
    x, b, options = inputs("stylegan3-t", torch.float32, device)
    x.requires_grad_()
    y = filtered_lrelu(x, b=b, clamp=1.0, **options)
    g = torch.randn_like(y)
    g[0, 1, 3, 7] = math.nan
    (got,) = torch.autograd.grad(y, x, g)
    (expected,) = torch.autograd.grad(formula(x, b=b, clamp=1.0, **options), x, g)
    assert expected.isnan().any() and torch.equal(got.isnan(), expected.isnan())


@native
def test_memory_formats(device: str) -> None:
    x, b, options = inputs("stylegan3-t", torch.float32, device)
    y = filtered_lrelu(x, b=b, **options)
    last = filtered_lrelu(x.to(memory_format=torch.channels_last), b=b, **options)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, y)
    wide = torch.randn(*x.shape[:3], 2 * x.shape[3], device=device)
    strided = wide[..., ::2].requires_grad_()
    y = filtered_lrelu(strided, b=b, **options)
    assert torch.equal(y, filtered_lrelu(strided.contiguous(), b=b, **options))
    (grad,) = torch.autograd.grad(y, strided, torch.ones_like(y).expand_as(y))
    (expected,) = torch.autograd.grad(formula(strided, b=b, **options), strided, torch.ones_like(y))
    torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-4)


@native
@pytest.mark.parametrize("b_dtype", [torch.float32, torch.float64], ids=str)
def test_gradient_of_the_bias_has_its_dtype(b_dtype: torch.dtype, device: str) -> None:
    x, b, options = inputs("stylegan3-t", torch.bfloat16, device)
    b = b.to(b_dtype).requires_grad_()
    (grad,) = torch.autograd.grad(filtered_lrelu(x, b=b, **options).sum(), b)
    (expected,) = torch.autograd.grad(formula(x, b=b, **options).sum(), b)
    assert grad.dtype is b_dtype
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-2)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clamp", [None, 0.5], ids=["free", "clamped"])
def test_opcheck(dtype: torch.dtype, clamp: float | None, device: str) -> None:
    ops = torch.ops.fastvfx
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x, b = torch.randn(2, 3, 9, 10).to(device, dtype), torch.randn(3).to(device, wide)
    f = lowpass(6).to(device, wide)
    act = (1.4, 0.2, clamp, False)
    torch.library.opcheck(ops.filtered_lrelu_fwd.default, (x, b, f, f, 2, 2, 5, 4, 5, 4, *act, False))
    y, mask = ops.filtered_lrelu_fwd(x, b, f, f, 2, 2, 5, 4, 5, 4, *act, True)
    sides = (mask, f, f, 2, 2, 5, 5)
    torch.library.opcheck(ops.filtered_lrelu_jvp.default, (x, b, *sides, *y.shape[2:], *act))
    torch.library.opcheck(ops.filtered_lrelu_bwd.default, (y, *sides, *x.shape[2:], *act, True))
    # The bits behind a row of the mask are anything, so that its values cannot be compared.
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.filtered_lrelu_fwd.default, (x, b, f, f, 2, 2, 5, 4, 5, 4, *act, True), test_utils=utils)


@native
def test_compiles_without_filters(device: str) -> None:
    x = torch.randn(2, 3, 8, 8, device=device, requires_grad=True)
    compiled = torch.compile(filtered_lrelu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), filtered_lrelu(x))


@native
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_to_one_graph(dynamic: bool, device: str) -> None:
    f = lowpass(12).to(device)

    def function(x: Tensor, b: Tensor) -> Tensor:
        return filtered_lrelu(x * 1.0, f, f, b, up=2, down=2, padding=(9, 8, 9, 8), clamp=1.0).square()

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (12, 19) if dynamic else (12,):
        x = torch.randn(2, 3, size, size + 1, device=device).requires_grad_()
        b = torch.randn(3, device=device).requires_grad_()
        torch.testing.assert_close(compiled(x, b), function(x, b))
        got = torch.autograd.grad(compiled(x, b).sum(), (x, b))
        for a, e in zip(got, torch.autograd.grad(function(x, b).sum(), (x, b)), strict=True):
            torch.testing.assert_close(a, e)


@native
def test_runs_on_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, b = torch.empty(2, 3, 9, 10, requires_grad=True), torch.empty(3, requires_grad=True)
        y = filtered_lrelu(x, torch.empty(4), torch.empty(6, 6), b, up=2, down=2, padding=4, clamp=1.0)
        assert y.shape == (2, 3, 9, 10)
        assert [g.shape for g in torch.autograd.grad(y.sum(), (x, b))] == [x.shape, b.shape]


def test_the_steps_one_by_one() -> None:
    """The definition, spelled out: bias, zeros between and around, filter, gain, leaky ReLU, clamp, filter, drop."""
    x, b, f = torch.randn(1, 1, 3, 4, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64), [0.2, 0.5, 0.3]
    between = torch.zeros(6, 8, dtype=torch.float64)
    between[::2, ::2] = x[0, 0] + 0.5
    padded = torch.nn.functional.pad(between, (2, 1, 2, 1))
    fu = torch.outer(*[torch.tensor(f, dtype=torch.float64)] * 2)

    def convolved(image: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(image[None, None], fu.flip(0, 1)[None, None])[0, 0]

    u = convolved(padded) * 4 * 1.3
    expected = convolved(torch.where(u < 0, u * 0.1, u).clamp(-0.9, 0.9))[::2, ::2]
    taps = torch.tensor(f, dtype=torch.float64)
    y = filtered_lrelu(x, taps, taps, b, 2, 2, (2, 1, 2, 1), 1.3, 0.1, 0.9)
    torch.testing.assert_close(y[0, 0], expected)


F4 = torch.ones(4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "expected x to be a torch.Tensor, got list"),
        ({"x": torch.ones(3, 8, 8)}, ValueError, r"expected x of shape \(N, C, H, W\), got \(3, 8, 8\)"),
        ({"x": torch.ones(1, 3, 8, 8).int()}, TypeError, "expected x of dtype float32, .* got torch.int32"),
        ({"fu": torch.ones(1, 2, 3)}, ValueError, r"expected fu of shape \(taps,\) or \(height, width\), got"),
        ({"fd": torch.ones(0)}, ValueError, r"expected fd of shape \(taps,\) or \(height, width\), got \(0,\)"),
        ({"b": torch.ones(4)}, ValueError, r"expected b of shape \(C,\) with C=3, got \(4,\)"),
        ({"up": 0}, ValueError, "expected up of at least 1, got 0"),
        ({"down": 1.5}, TypeError, "expected down to be an int"),
        ({"padding": (1, 2, 3)}, TypeError, "expected padding to be an int, two of them"),
        ({"padding": -3}, ValueError, "expected an image of at least 7x7 pixels, the sizes of fu and fd, .* got 2x2"),
        ({"gain": math.nan}, ValueError, "expected gain to be a finite number, got nan"),
        ({"slope": math.inf}, ValueError, "expected slope to be a finite number, got inf"),
        ({"clamp": -1.0}, ValueError, "expected clamp to be None or at least 0, got -1.0"),
        ({"clamp": math.nan}, ValueError, "expected clamp to be None or at least 0, got nan"),
    ],
    ids=lambda v: str(next(iter(v))) if isinstance(v, dict) else "",
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"x": torch.ones(1, 3, 8, 8), "fu": F4, "fd": F4, "b": torch.ones(3), **change}
    with pytest.raises(error, match=f"fastvfx.filtered_lrelu: {message}"):
        filtered_lrelu(**arguments)


@native
def test_backends_agree_where_there_is_no_kernel(device: str) -> None:
    """Factors of more than 64 phases run on the formula."""
    x = torch.randn(1, 1, 9, 9, device=device)
    f = lowpass(13).to(device)
    y = filtered_lrelu(x, f, f, up=13, down=11, padding=6)
    with fastvfx.backend("reference"):
        torch.testing.assert_close(y, filtered_lrelu(x, f, f, up=13, down=11, padding=6))
