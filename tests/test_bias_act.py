"""``bias_act`` and what follows a modulated convolution: nine activations, every layout, every order of derivative."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from marks import native
from oracle import assert_as_good_as_torch, assert_same_direction
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastvfx
from fastvfx.functional.bias_act import scaled_bias_act
from fastvfx.reference import bias_act as reference
from fastvfx.reference import scaled_bias_act as scaled_reference
from fastvfx.reference.bias_act import ACTIVATIONS

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
ACTS = list(ACTIVATIONS)
LAYOUTS = [torch.contiguous_format, torch.channels_last]
every_act = pytest.mark.parametrize("act", ACTS)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def coefficients(
    n: int, c: int, h: int, w: int, noise_images: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Scale (n, c), noise (noise_images, 1, h, w) and bias (c,)."""
    scale = torch.rand(n, c, dtype=dtype, device=device) + 0.5
    noise = torch.randn(noise_images, 1, h, w, dtype=dtype, device=device) if noise_images else None
    return scale, noise, torch.randn(c, dtype=dtype, device=device)


def two_derivatives(function, inputs: list[Tensor | None], seed: int = 3) -> list[Tensor]:
    """The result, gradients of every input, and gradients of those to the inputs and the incoming gradient."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    live = [t for t in leaves if t is not None]
    y = function(*leaves)
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)

    grad_y = draw(y).requires_grad_()
    first = torch.autograd.grad(y, live, grad_y, create_graph=True)
    targets = [*live, grad_y]
    second = torch.autograd.grad(first, targets, [draw(g) for g in first], allow_unused=True)
    return [y, *first, *(torch.zeros_like(t) if g is None else g for g, t in zip(second, targets, strict=True))]


def compare(function, formula, inputs: list[Tensor | None], what: str) -> None:
    got = two_derivatives(function, inputs)
    same = two_derivatives(formula, inputs)
    exact = two_derivatives(formula, [None if t is None else t.double() for t in inputs])
    for i, (a, b, c) in enumerate(zip(got, same, exact, strict=True)):
        assert a.dtype is b.dtype
        # A sum over many 16-bit results errs by their rounding; the formula keeps them in float32.
        assert_as_good_as_torch(a, b, c, f"{what}, result {i}", floor=4)


@native
@every_act
@pytest.mark.parametrize("clamp", [None, 0.7], ids=["open", "clamped"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["planar", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_two_derivatives_are_as_good_as_torch(
    dtype: torch.dtype, layout: torch.memory_format, clamp: float | None, act: str, isa: str, device: str
) -> None:
    x = (torch.randn(2, 5, 9, 13, device=device) * 1.5).to(dtype).contiguous(memory_format=layout)
    b = torch.randn(5, device=device).to(dtype)
    if clamp is not None and dtype in (torch.float16, torch.bfloat16):
        # Within rounding of the limit a stored result cannot tell on which side it was.
        y = reference(x.double(), b.double(), 1, act)
        x = torch.where((y.abs() - clamp).abs() < 0.01, torch.zeros_like(x), x)
    compare(
        lambda x, b: fastvfx.bias_act(x, b, act=act, clamp=clamp),
        lambda x, b: reference(x, b, 1, act, None, None, clamp),
        [x, b],
        f"{act} {layout}",
    )


@native
@pytest.mark.parametrize("act", ["linear", "lrelu", "softplus", "swish"])
@pytest.mark.parametrize("noise_images", [0, 1, 3])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["planar", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_and_noise(
    dtype: torch.dtype, layout: torch.memory_format, noise_images: int, act: str, device: str
) -> None:
    """Their gradients, and those of the gradients, with parameters in the type that the sums are taken in."""
    x = torch.randn(3, 6, 7, 5, device=device).to(dtype).contiguous(memory_format=layout)
    scale, noise, b = coefficients(3, 6, 7, 5, noise_images, wide(dtype), device)
    for inputs in ([x, scale, noise, b], [x, scale, noise, None], [x, None, noise, b]):
        compare(
            lambda *t: scaled_bias_act(*t, act, None, 1.3, 40.0),
            lambda *t: scaled_reference(*t, act, None, 1.3, 40.0),
            inputs,
            f"{act}, noise of {noise_images}",
        )


@native
@pytest.mark.parametrize("act", ["lrelu", "tanh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["planar", "channels_last"])
@pytest.mark.parametrize(
    "shape", [(2, 3, 70, 80), (1, 300, 5, 7), (2, 257, 3, 3), (1, 1, 1, 700), (3, 40, 1, 1), (1, 2, 190, 180)], ids=str
)
def test_sizes_around_blocks_and_tiles(
    shape: tuple[int, ...], layout: torch.memory_format, act: str, isa: str, device: str
) -> None:
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)
    scale, noise, b = coefficients(*shape, shape[0], torch.float32, device)
    compare(lambda *t: scaled_bias_act(*t, act), lambda *t: scaled_reference(*t, act), [x, scale, noise, b], str(shape))
    compare(lambda x, b: fastvfx.bias_act(x, b, act=act), lambda x, b: reference(x, b, 1, act), [x, b], str(shape))


@native
@pytest.mark.parametrize("shape", [(5,), (4, 6), (3, 4, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)], ids=str)
def test_the_bias_belongs_to_any_dimension(shape: tuple[int, ...], device: str) -> None:
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for dim in range(-len(shape), len(shape)):
        for layout in {torch.contiguous_format, layouts.get(len(shape), torch.contiguous_format)}:
            x = torch.randn(shape, dtype=torch.float64, device=device).contiguous(memory_format=layout).requires_grad_()
            b = torch.randn(shape[dim], dtype=torch.float64, device=device).requires_grad_()
            y = fastvfx.bias_act(x, b, dim=dim, act="lrelu")
            expected = reference(x, b, dim, "lrelu")
            assert y.is_contiguous(memory_format=layout)
            torch.testing.assert_close(y, expected)
            g = torch.randn_like(y)
            for a, e in zip(torch.autograd.grad(y, (x, b), g), torch.autograd.grad(expected, (x, b), g), strict=True):
                torch.testing.assert_close(a, e)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_act
def test_precision_over_all_magnitudes(act: str, dtype: torch.dtype, isa: str, device: str) -> None:
    """A few units in the last place wherever the result is not subnormal: torch's own formula is the yardstick only for
    the sum of the errors; here each value stands alone."""
    x = torch.cat([torch.logspace(-20, 1.9, 4000), torch.linspace(-90, 90, 4001)])
    x = torch.cat([x, -x]).to(device, dtype)
    exact = ACTIVATIONS[act].function(x.double(), 0.2)
    if act == "softplus":  # torch's turns linear at 20
        exact = torch.logaddexp(x.double(), torch.zeros_like(exact))
    y = fastvfx.bias_act(x, act=act, gain=1.0, alpha=0.2).double()
    info = torch.finfo(dtype)
    smallest = max(info.tiny, 1e-36)
    error = (y - exact).abs() / exact.abs().clamp_min(smallest)
    error = error[(exact.abs() < info.max) & (exact.abs() > smallest)]
    # selu and swish multiply two rounded numbers.
    assert error.max().item() <= (4 if wide(dtype) is dtype else 0.51) * info.eps


@native
@every_act
def test_gradcheck(act: str, device: str) -> None:
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64, device=device).requires_grad_()
    b = torch.randn(3, dtype=torch.float64, device=device).requires_grad_()

    def function(x: Tensor, b: Tensor) -> Tensor:
        return fastvfx.bias_act(x, b, act=act, alpha=0.3, gain=1.7, clamp=2.0)

    assert gradcheck(function, (x, b))
    assert gradgradcheck(function, (x, b))


@native
@pytest.mark.parametrize("act", ["lrelu", "sigmoid", "swish"])
@pytest.mark.parametrize("noise_images", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["planar", "channels_last"])
def test_gradcheck_of_scale_and_noise(layout: torch.memory_format, noise_images: int, act: str, device: str) -> None:
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, device=device).contiguous(memory_format=layout).requires_grad_()
    inputs = (x, *(t.requires_grad_() for t in coefficients(2, 3, 2, 2, noise_images, torch.float64, device)))
    assert gradcheck(lambda *t: scaled_bias_act(*t, act, None, None, 3.0), inputs)
    assert gradgradcheck(lambda *t: scaled_bias_act(*t, act, None, None, 3.0), inputs)


@native
@pytest.mark.parametrize("wanted", [w for w in itertools.product([False, True], repeat=4) if any(w)], ids=str)
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_any_subset_of_gradients(act: str, wanted: tuple[bool, ...], device: str) -> None:
    """None is computed that nobody asked for, and those that were asked for do not depend on the others."""
    inputs = [torch.randn(2, 3, 4, 5, device=device), *coefficients(2, 3, 4, 5, 1, torch.float32, device)]

    def gradients(requires: tuple[bool, ...]) -> list[Tensor | None]:
        leaves = [t.detach().clone().requires_grad_(r) for t, r in zip(inputs, requires, strict=True)]
        scaled_bias_act(*leaves, act).square().sum().backward()
        return [t.grad for t in leaves]

    for w, got, expected in zip(wanted, gradients(wanted), gradients((True,) * 4), strict=True):
        assert (got is not None) == w
        if w:
            torch.testing.assert_close(got, expected)


@native
@every_act
def test_third_derivative_matches_the_formula(act: str) -> None:
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64).requires_grad_()
    rest = [t.requires_grad_() for t in coefficients(2, 3, 2, 2, 1, torch.float64)]

    def third(function) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(function(x, *rest, act).pow(3).sum(), (x, *rest), create_graph=True)
        seconds = torch.autograd.grad(sum(g.pow(2).sum() for g in gradients), (x, *rest), create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in seconds), (x, *rest))

    for got, expected in zip(third(scaled_bias_act), third(scaled_reference), strict=True):
        torch.testing.assert_close(got, expected)


@native
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 2.0])
def test_any_slope_of_lrelu(alpha: float, device: str) -> None:
    """With a negative one the sign of the input is not that of the result."""
    x = torch.randn(3, 4, 5, dtype=torch.float64, device=device).requires_grad_()
    y, expected = fastvfx.bias_act(x, act="lrelu", alpha=alpha), reference(x, act="lrelu", alpha=alpha)
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, g), torch.autograd.grad(expected, x, g))


@native
@pytest.mark.parametrize("gain", [0.0, -1.5])
@every_act
def test_any_gain(act: str, gain: float, device: str) -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64, device=device)
    compare(
        lambda x: fastvfx.bias_act(x, act=act, gain=gain, clamp=1.0),
        lambda x: reference(x, None, 1, act, None, gain, 1.0),
        [x],
        f"{act}, gain {gain}",
    )


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_slope_at_the_corners(dtype: torch.dtype, device: str) -> None:
    """1 strictly inside of the clamp and 0 on it, in what is stored: 362 is bfloat16's 256 sqrt(2)."""
    x = torch.tensor([0.0, -0.0, 300.0, -300.0, 1e4, 1.0, -1.0], device=device).to(dtype).requires_grad_()
    (grad,) = torch.autograd.grad(fastvfx.bias_act(x, act="lrelu", dim=0, clamp=256 * math.sqrt(2)).sum(), x)
    one, alpha = math.sqrt(2), 0.2 * math.sqrt(2)
    expected = torch.tensor([alpha, alpha, 0, alpha, 0, one, alpha], device=device, dtype=torch.float64)
    # One rounding of the product, to what the gradient is stored in.
    torch.testing.assert_close(grad, expected.to(dtype), atol=0, rtol=torch.finfo(dtype).eps)


@native
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("clamp", [None, 0.5, 256.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_act
def test_what_is_not_finite_stays_where_it_is(
    act: str, dtype: torch.dtype, clamp: float | None, bad: float, isa: str, device: str
) -> None:
    x = torch.randn(2, 5, 41, device=device).to(dtype)
    clean = fastvfx.bias_act(x, act=act, clamp=clamp)
    x[1, 2, 35] = bad
    x.requires_grad_()
    y = fastvfx.bias_act(x, act=act, clamp=clamp)
    expected = reference(x, None, 1, act, None, None, clamp)
    others = torch.ones_like(x, dtype=torch.bool)
    others[1, 2, 35] = False
    assert torch.equal(y[others], clean[others])
    assert torch.equal(y[1, 2, 35].isnan(), expected[1, 2, 35].isnan())
    assert y[1, 2, 35].isnan() or y[1, 2, 35] == expected[1, 2, 35]
    assert y[1, 2, 35].isnan() or not math.isnan(bad)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad[others].isfinite().all()


@native
@pytest.mark.parametrize("layout", LAYOUTS, ids=["planar", "channels_last"])
def test_threads_do_not_change_a_bit(layout: torch.memory_format, isa: str, one_thread_and_many: list[int]) -> None:
    x = torch.randn(3, 24, 61, 67).contiguous(memory_format=layout)
    inputs = [x, *coefficients(3, 24, 61, 67, 3, torch.float32)]
    results = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        results.append(two_derivatives(lambda *t: scaled_bias_act(*t, "lrelu", None, None, 2.0), inputs))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["planar", "channels_last"])
def test_large_results_pass_the_caches(layout: torch.memory_format, dtype: torch.dtype, isa: str) -> None:
    """From 24 MiB on stores are others, and of a tensor that does not begin on a cache line some are not."""
    x = torch.randn(1, 13, 1000, 1001).to(dtype).contiguous(memory_format=layout)
    b = torch.randn(13)
    y = fastvfx.bias_act(x, b, act="lrelu", clamp=1.0)
    part = slice(500, 600)
    expected = reference(x[:, :, part], b, 1, "lrelu", None, None, 1.0)
    torch.testing.assert_close(y[:, :, part], expected, atol=0, rtol=1e-2 if dtype is torch.bfloat16 else 1e-6)
    assert y.isfinite().all() and y.stride() == x.stride()


@native
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty(shape: tuple[int, ...], device: str) -> None:
    x = torch.randn(shape, device=device).requires_grad_()
    inputs = [x, *(t.requires_grad_() for t in coefficients(*shape, max(shape[0], 1), torch.float32, device))]
    y = scaled_bias_act(*inputs, "lrelu")
    assert y.shape == shape
    for g, t in zip(torch.autograd.grad(y.sum(), inputs), inputs, strict=True):
        assert g.shape == t.shape and not g.any()


@native
def test_strided_inputs_and_gradients(device: str) -> None:
    x = torch.randn(5, 8, 6, device=device).permute(2, 0, 1)[::2].requires_grad_()
    b = torch.randn(10, device=device)[::2].requires_grad_()
    y, expected = fastvfx.bias_act(x, b, act="lrelu"), reference(x, b, 1, "lrelu")
    torch.testing.assert_close(y, expected)
    for g in (torch.randn(5, 3, 8, device=device).transpose(0, 1), torch.ones((), device=device).expand(y.shape)):
        got, wanted = torch.autograd.grad(y, (x, b), g, retain_graph=True), None
        wanted = torch.autograd.grad(expected, (x, b), g, retain_graph=True)
        torch.testing.assert_close(got, wanted)


@native
def test_a_channels_last_result_takes_a_planar_gradient(device: str) -> None:
    x = torch.randn(2, 6, 5, 4, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    y, g = fastvfx.bias_act(x, act="tanh"), torch.randn(2, 6, 5, 4, device=device)
    (grad,) = torch.autograd.grad(y, x, g)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(grad, torch.autograd.grad(reference(x, act="tanh"), x, g)[0])


@native
def test_gradients_keep_their_direction_and_zeros(device: str) -> None:
    x = torch.randn(2, 8, 30, 30, device=device).requires_grad_()
    g = torch.randn_like(x)
    (grad,) = torch.autograd.grad(fastvfx.bias_act(x, act="relu", clamp=1.0), x, g)
    (exact,) = torch.autograd.grad(reference(x, act="relu", clamp=1.0), x, g)
    assert_same_direction(grad, exact, "grad")


@native
def test_keeps_no_more_than_the_result(device: str) -> None:
    """The result is kept by the next layer anyway; the input is not."""

    def kept(act: str, clamp: float | None = None) -> list[str]:
        x = torch.randn(2, 3, 4, 4, device=device).requires_grad_()
        names: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: names.append(t) or t, lambda t: t):
            y = fastvfx.bias_act(x, torch.randn(3, device=device), act=act, clamp=clamp)
        return ["x" if t.data_ptr() == x.data_ptr() else "y" if t.data_ptr() == y.data_ptr() else "b" for t in names]

    assert kept("linear") == []
    assert kept("linear", 1.0) == kept("lrelu") == kept("softplus") == ["y"]
    assert kept("swish") == ["x", "b"]


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", [0, 2, 3, 8])
def test_opcheck(act: int, dtype: torch.dtype, device: str) -> None:
    ops, w = torch.ops.fastvfx, wide(dtype)
    x, g, v = (torch.randn(2, 3, 4, 5, device=device).to(dtype) for _ in range(3))
    scale, noise, b = coefficients(2, 3, 4, 5, 2, w, device)
    options = (1, act, 0.2, 1.5, 1.0)
    y = ops.bias_act_fwd(x, scale, noise, b, *options)
    torch.library.opcheck(ops.bias_act_fwd.default, (x, scale, noise, b, *options))
    torch.library.opcheck(ops.bias_act_bwd.default, (g, y, x, scale, noise, b, *options, True, 2, True))
    torch.library.opcheck(ops.bias_act_bwd.default, (g, y, x, None, None, b, *options, False, 0, False))
    incoming = (scale, noise, b)
    torch.library.opcheck(ops.bias_act_bwd_bwd.default, (g, v, y, x, scale, noise, b, *incoming, *options, True, True))
    torch.library.opcheck(
        ops.bias_act_bwd_bwd.default, (g, v, y, x, None, None, b, None, None, None, *options, False, False)
    )


@native
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["planar", "channels_last"])
def test_compiles_to_one_graph(layout: torch.memory_format, dynamic: bool, device: str) -> None:
    def function(x: Tensor, b: Tensor) -> Tensor:
        return fastvfx.bias_act(x * 1.0, b, act="lrelu", clamp=0.9).square().sum((2, 3))

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for size in (8, 11) if dynamic else (8,):
        x = torch.randn(2, 6, size, size + 1, device=device).contiguous(memory_format=layout).requires_grad_()
        b = torch.randn(6, device=device).requires_grad_()
        torch.testing.assert_close(compiled(x, b), function(x, b))
        got, expected = (torch.autograd.grad(f(x, b).sum(), (x, b)) for f in (compiled, function))
        torch.testing.assert_close(got, expected)


@native
def test_runs_on_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(6, 2, 3, 5, requires_grad=True).contiguous(memory_format=torch.channels_last)
        rest = (torch.empty(6, 2), torch.empty(1, 1, 3, 5), torch.empty(2))
        rest = tuple(t.requires_grad_() for t in rest)
        y = scaled_bias_act(x, *rest, "swish")
        assert y.shape == x.shape and y.stride() == x.stride()
        gradients = torch.autograd.grad(y.sum(), (x, *rest), create_graph=True)
        assert [g.shape for g in gradients] == [t.shape for t in (x, *rest)]
        assert torch.autograd.grad(gradients[0].sum(), rest[0])[0].shape == (6, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0],), TypeError, "expected x to be a torch.Tensor, got list"),
        ((torch.ones(2, 3, dtype=torch.int64),), TypeError, "expected x of dtype float32, .* got torch.int64"),
        ((torch.ones(2, 3), 1.0), TypeError, "expected b to be a torch.Tensor, got float"),
        ((torch.ones(2, 3), torch.ones(2)), ValueError, r"expected b of shape \(x.shape\[dim\],\) with dim=1 and x of"),
        ((torch.ones(2, 3), torch.ones(3, 1)), ValueError, r"expected b of shape .*, got \(3, 1\)"),
        ((torch.ones(2, 3), torch.ones(3), 2), ValueError, r"expected dim to be a dimension of x of shape \(2, 3\)"),
        ((torch.ones(2), None, 0, "gelu"), ValueError, "expected act to be one of linear, relu, .*, got 'gelu'"),
        ((torch.ones(2), None, 0, "lrelu", math.nan), ValueError, "expected alpha to be a finite number, got nan"),
        ((torch.ones(2), None, 0, "relu", None, math.inf), ValueError, "expected gain to be a finite number, got inf"),
        ((torch.ones(2), None, 0, "relu", None, None, -1), ValueError, "expected clamp to be None or at least 0, got"),
        ((torch.ones(2), None, 0, "relu", None, None, math.nan), ValueError, "expected clamp to be None or at least"),
    ],
    ids=["list", "int", "float b", "wrong b", "2-D b", "dim", "act", "alpha", "gain", "clamp", "nan clamp"],
)
def test_bad_input_is_named(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"fastvfx.bias_act: {message}"):
        fastvfx.bias_act(*arguments)
