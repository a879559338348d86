"""``conv2d_resample``: every order of the steps computes what the definition says.

Oracle: fastvfx.reference.conv2d_resample in float64, which takes the steps one after the other. The same dtype's error
is that of the definition with a convolution in that dtype.
"""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_as_good_as_torch, assert_same_direction
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import fastvfx
from fastvfx import conv2d_resample
from fastvfx._ops._torch_conv2d import Geometry, _spread_by_phases
from fastvfx.functional import setup_filter
from fastvfx.reference.conv2d_resample import conv2d_resample as reference
from fastvfx.reference.conv2d_resample import resampling_pads
from fastvfx.reference.upfirdn2d import upfirdn2d

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
FACTORS = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (1, 3)]


def in_steps(x: Tensor, w: Tensor, f: Tensor | None, up: int, down: int, padding, groups: int, flip_weight: bool):
    """The definition in the dtype of ``x`` throughout."""
    w = w.to(x.dtype) if flip_weight else w.to(x.dtype).flip([2, 3])
    pads = resampling_pads(f, up, down, padding)
    x = upfirdn2d(x, f if up > 1 else None, (up, up), padding=pads, gain=up**2)
    x = F.conv2d(x, w, groups=groups)
    return upfirdn2d(x, f, down=(down, down)) if down > 1 else x


def run(function, x: Tensor, w: Tensor, *options):
    leaves = [t.detach().clone().requires_grad_() for t in (x, w)]
    y = function(*leaves, *options)
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(x.dtype).to(y)
    return [y, *torch.autograd.grad(y, leaves, g)]


def check(x: Tensor, w: Tensor, f: Tensor | None, up=1, down=1, padding=(0, 0, 0, 0), groups=1, flip_weight=True):
    options = f, up, down, padding, groups, flip_weight
    got = run(conv2d_resample, x, w, *options)
    same = run(in_steps, x, w, *options)
    exact = run(reference, x.double(), w.double(), None if f is None else f.double(), *options[1:], False)
    for name, a, b, c in zip(("y", "grad_x", "grad_w"), got, same, exact, strict=True):
        assert_as_good_as_torch(a, b, c, name, floor=2.0)
    assert got[0].dtype is got[1].dtype is x.dtype and got[2].dtype is w.dtype
    if x.dtype is torch.float32:
        assert_same_direction(got[1], exact[1], "grad_x")
        assert_same_direction(got[2], exact[2], "grad_w")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("flip_weight", [True, False], ids=["correlate", "convolve"])
@pytest.mark.parametrize("factors", FACTORS, ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_agrees_with_the_definition(k: int, factors: tuple[int, int], flip_weight: bool, groups: int) -> None:
    up, down = factors
    filters = [None, setup_filter([1, 3, 3, 1]), setup_filter([1, 2, 3]), setup_filter([1, 2, 3, 1], separable=True)]
    paddings = [(0, 0, 0, 0), (k // 2,) * 4, (2, 1, 0, 3), (-1, 2, 1, -1)]
    x, w = torch.randn(2, 4, 11, 13).double(), torch.randn(6, 4 // groups, k, k).double()
    for f, padding in itertools.product(filters, paddings):
        check(x, w, f, up, down, padding, groups, flip_weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (1, 2)], ids=str)
def test_dtypes_and_layouts(factors: tuple[int, int], layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(2, 24, 9, 12).to(dtype).to(memory_format=layout)
    w = (torch.randn(20, 24, 3, 3) / 14).to(dtype)
    f = setup_filter([1, 3, 3, 1])
    check(x, w, f, *factors, (1, 1, 1, 1), flip_weight=factors[0] == 1)
    y = conv2d_resample(x, w, f, *factors, padding=1)
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("w_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factors", [(2, 1), (1, 2), (3, 1)], ids=str)
def test_many_channels_of_16_bits(factors: tuple[int, int], w_dtype: torch.dtype) -> None:
    """Enough of them for the strided convolutions that write their output phase by phase."""
    x, w = torch.randn(1, 100, 9, 8).bfloat16(), (torch.randn(104, 100, 3, 3) / 30).to(w_dtype)
    check(x, w, setup_filter([1, 3, 3, 1]), *factors, (1, 1, 1, 1))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [2, 3])
def test_phases_are_the_transposed_convolution(stride: int, k: int) -> None:
    x, w = torch.randn(2, 3, 5, 6).double(), torch.randn(3, 4, k, k + 1).double()
    for padding, extra in [((0, 0), 0), ((1, 0), 0), ((0, 1), stride - 1), ((1, 1), 1)]:
        if min(k, k + 1) - 2 * max(padding) + 4 * stride < 1:
            continue
        expected = F.conv_transpose2d(x, w, stride=stride, padding=padding, output_padding=extra)
        geometry = Geometry(stride, padding)
        got = _spread_by_phases(x, w, geometry, (expected.shape[2], expected.shape[3]))
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_gradcheck(k: int, factors: tuple[int, int]) -> None:
    x = torch.randn(2, 2, 4, 5).double().requires_grad_()
    w = torch.randn(2, 1, k, k).double().requires_grad_()
    f = torch.rand(3, 2).double().requires_grad_()

    def function(x: Tensor, w: Tensor, f: Tensor) -> Tensor:
        return conv2d_resample(x, w, f, *factors, padding=(1, 0, 1, 1), groups=2, flip_weight=False)

    assert gradcheck(function, (x, w, f))
    assert gradgradcheck(function, (x, w, f))


def test_third_derivative() -> None:
    x, w = torch.randn(1, 3, 6, 6).double().requires_grad_(), torch.randn(2, 3, 3, 3).double().requires_grad_()

    def third(function) -> list[Tensor]:
        y = function(x, w)
        first = torch.autograd.grad(y.pow(3).sum(), (x, w), create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), (x, w), create_graph=True)
        return list(torch.autograd.grad(sum(g.pow(2).sum() for g in second), (x, w)))

    f = setup_filter([1, 3, 3, 1]).double()
    got = third(lambda x, w: conv2d_resample(x, w, f, down=2, padding=1))
    expected = third(lambda x, w: reference(x, w, f, 1, 2, (1, 1, 1, 1), 1, True, False))
    for name, a, b in zip(("x", "w"), got, expected, strict=True):
        assert_as_good_as_torch(a, b, b, f"third derivative by {name}", floor=4.0)


class Convolutions(TorchDispatchMode):
    """Counts the gradients of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_gradients = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.weight_gradients += func is torch.ops.fastvfx.conv2d_wgrad.default
        return func(*args, **(kwargs or {}))


def test_a_gradient_that_is_not_asked_for_is_not_computed() -> None:
    """R1 takes the gradient of the image alone, though the weights require one too."""
    x, w = torch.randn(2, 4, 8, 8).requires_grad_(), torch.randn(4, 4, 3, 3).requires_grad_()
    y = conv2d_resample(conv2d_resample(x, w, padding=1), w, padding=1)
    with Convolutions() as count:
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        assert count.weight_gradients == 0
    (expected,) = torch.autograd.grad(F.conv2d(F.conv2d(x, w, padding=1), w, padding=1).square().sum(), x)
    torch.testing.assert_close(g, expected)
    with Convolutions() as count:
        g.square().sum().backward()
        assert count.weight_gradients == 4  # each convolution, forward and back
    assert w.grad is not None and x.grad is not None


def test_compiles_to_one_graph() -> None:
    f = setup_filter([1, 3, 3, 1])
    x, w = torch.randn(2, 8, 8, 8).requires_grad_(), torch.randn(8, 8, 3, 3).requires_grad_()

    def function(x: Tensor, w: Tensor) -> Tensor:
        return conv2d_resample(x, w, f, up=2, padding=1, flip_weight=False).square().sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w), function(x, w))
    got, expected = (torch.autograd.grad(run(x, w), (x, w)) for run in (compiled, function))
    torch.testing.assert_close(got, expected)


def test_runs_on_fake_tensors() -> None:
    with FakeTensorMode():
        x, w = torch.empty(2, 8, 8, 6, requires_grad=True), torch.empty(4, 8, 3, 3, requires_grad=True)
        f = torch.empty(4, 4)
        for factors, size in (((1, 1), (8, 6)), ((2, 1), (16, 12)), ((1, 2), (4, 3))):
            y = conv2d_resample(x, w, f, *factors, padding=1)
            assert y.shape == (2, 4, *size)
            assert [g.shape for g in torch.autograd.grad(y.sum(), (x, w))] == [x.shape, w.shape]


@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (1, 2)], ids=str)
def test_empty_batch(factors: tuple[int, int]) -> None:
    f, w = setup_filter([1, 3, 3, 1]), torch.randn(3, 4, 3, 3).requires_grad_()
    x = torch.randn(0, 4, 8, 8).requires_grad_()
    y = conv2d_resample(x, w, f, *factors, padding=1)
    assert y.shape == (0, 3, 8 * factors[0] // factors[1], 8 * factors[0] // factors[1])
    grad_x, grad_w = torch.autograd.grad(y.sum(), (x, w))
    assert grad_x.shape == x.shape and not grad_w.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bad_pixel_stays_in_its_neighbourhood(dtype: torch.dtype) -> None:
    x, w = torch.randn(3, 8, 12, 12).to(dtype), torch.randn(8, 8, 3, 3).to(dtype)
    x[1, 2, 3, 3] = float("nan")
    y = conv2d_resample(x, w, setup_filter([1, 3, 3, 1]), up=2, padding=1)
    assert y[[0, 2]].isfinite().all()
    assert y[1, :, 4:10, 4:10].isnan().any() and y[1, :, 14:, 14:].isfinite().all()


def test_reference_backend_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, f = torch.randn(2, 4, 8, 8), torch.randn(4, 4, 3, 3), setup_filter([1, 3, 3, 1])
    monkeypatch.setattr(sys.modules["fastvfx.functional.conv2d_resample"], "resampled", None)
    with fastvfx.backend("reference"):
        got = conv2d_resample(x, w, f, up=2, padding=1)
    assert torch.equal(got, reference(x, w, f, 2, 1, (1, 1, 1, 1), 1, True, False))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 8, 8)}, ValueError, r"expected x of shape \(N, C, H, W\), got \(4, 8, 8\)"),
        ({"w": torch.zeros(4, 3, 3, 3)}, ValueError, r"with I=4 .* groups=1, got \(4, 3, 3, 3\)"),
        ({"w": torch.zeros(3, 2, 3, 3), "groups": 2}, ValueError, r"O a multiple of groups=2, got \(3, 2, 3, 3\)"),
        ({"w": torch.zeros(4, 4, 3)}, ValueError, r"expected w of shape \(O, I / groups, kh, kw\), got \(4, 4, 3\)"),
        ({"w": torch.zeros(4, 4, 3, 3, dtype=torch.int32)}, TypeError, r"expected w of dtype float32.*int32"),
        ({"f": torch.zeros(2, 2, 2)}, ValueError, r"expected f of shape \(taps,\) or \(height, width\)"),
        ({"up": 0}, ValueError, r"expected up of at least 1, got 0"),
        ({"padding": (1, 2, 3)}, TypeError, r"expected padding to be an int, two of them"),
        ({"w": torch.zeros(4, 4, 9, 3)}, ValueError, r"expected an image not smaller than kernel and filter"),
        ({"padding": -4}, ValueError, r"expected an image not smaller than kernel and filter.*padding=\(-4, -4"),
        ({"f": torch.ones(20, 20), "up": 2, "padding": -8}, ValueError, r"a filter of 20 x 20 taps"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(2, 4, 8, 8), "w": torch.zeros(4, 4, 3, 3)} | change
    with pytest.raises(error, match="fastvfx.conv2d_resample: .*" + message):
        conv2d_resample(**arguments)
