"""``upfirdn2d`` and its relatives: against float64, against SciPy, gradients of any order to images and filters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from marks import native
from oracle import assert_as_good_as_torch, assert_same_direction
from scipy import signal
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

import fastvfx
from fastvfx.functional import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from fastvfx.reference.upfirdn2d import upfirdn2d as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BACKENDS = [pytest.param("native", marks=native), "reference"]
FORMATS = {"planes": torch.contiguous_format, "channels last": torch.channels_last}
formats = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)

SMOOTH = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
LANCZOS = torch.tensor([1.0, -3, 7, 15, 21, 28, 28, 21, 15, 7, -3, 1]) / 134
FULL = torch.tensor([[0.5, -1.0, 2.0], [1.5, 3.0, 0.25]])  # of rank two

# Filter; up (x, y); down (x, y); padding (left, right, top, bottom); flip; gain.
CASES: dict[str, tuple] = {
    "up 2": (SMOOTH, (2, 2), (1, 1), (2, 1, 2, 1), False, 4.0),
    "down 2": (SMOOTH, (1, 1), (2, 2), (1, 1, 1, 1), False, 1.0),
    "filter": (SMOOTH, (1, 1), (1, 1), (2, 1, 2, 1), True, 1.0),
    "12 taps up 2": (LANCZOS, (2, 2), (1, 1), (6, 5, 6, 5), False, 4.0),
    "12 taps down 4": (LANCZOS, (1, 1), (4, 4), (4, 4, 4, 4), True, 1.0),
    "24 taps up 4": (torch.cat([LANCZOS, -LANCZOS]), (4, 4), (1, 1), (12, 11, 12, 11), False, 16.0),
    "rank two": (FULL, (1, 1), (1, 1), (1, 1, 1, 0), False, -0.5),
    "rank two, odd factors": (FULL, (3, 2), (2, 5), (4, 0, -1, 6), True, 2.0),
    "up 6 down 4": (LANCZOS, (6, 6), (4, 4), (5, 7, 6, 6), False, 1.0),
    "fewer taps than up": (torch.tensor([2.0, 1.0]), (5, 3), (1, 1), (3, 1, 0, 2), False, 1.0),
    "crop": (SMOOTH, (2, 1), (1, 1), (-3, -2, -1, -4), False, 1.0),
    "1 tap": (torch.tensor([[2.0]]), (2, 3), (1, 2), (0, 0, 0, 0), False, 1.0),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def images(*shape: int, dtype: torch.dtype = torch.float32, memory_format: Any = torch.contiguous_format) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)


def on(device: str, case: tuple) -> tuple:
    return case[0].to(device), *case[1:]


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(2, 3, 17, 37), (1, 20, 9, 13)], ids=str)
@formats
@cases
def test_forward_and_gradients_are_as_good_as_torch(
    case: tuple, memory_format: Any, size: tuple[int, ...], dtype: torch.dtype, isa: str, device: str
) -> None:
    f, *options = on(device, case)
    x = images(*size, dtype=dtype, memory_format=memory_format).to(device)
    g = torch.randn_like(upfirdn2d(x, f, *options))

    def run(function: Any, x: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        x, f = x.detach().requires_grad_(), f.detach().clone().requires_grad_()
        out = function(x, f, *options)
        return out, *grad(out, (x, f), g)

    got, same = run(upfirdn2d, x, f, g), run(reference, x, f, g)
    exact = run(reference, x.double(), f.double(), g.double())
    for what, a, b, c in zip(("out", "grad_x", "grad_f"), got, same, exact, strict=True):
        assert a.dtype is (f.dtype if what == "grad_f" else dtype)
        assert_as_good_as_torch(a, b, c, what)
    if dtype is torch.float32:
        assert_same_direction(got[1], exact[1], "grad_x")
        assert_same_direction(got[2], exact[2], "grad_f")
    assert got[0].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("backend", BACKENDS)
@cases
def test_equals_scipy(case: tuple, backend: str) -> None:
    """scipy.signal.upfirdn pads nothing and keeps the tail: on an image padded by hand, cut to the valid part."""
    f, (up_x, up_y), (down_x, down_y), (left, right, top, bottom), flip, gain = case
    x = torch.randn(9, 11, dtype=torch.float64)
    f = f.double()
    with fastvfx.backend(backend):
        got = upfirdn2d(x[None, None], f, (up_x, up_y), (down_x, down_y), (left, right, top, bottom), flip, gain)

    def stuffed_and_padded(a: np.ndarray, up: int, front: int, back: int, axis: int) -> np.ndarray:
        out = np.zeros([n * up if i == axis else n for i, n in enumerate(a.shape)])
        out[(slice(None, None, up), slice(None)) if axis == 0 else (slice(None), slice(None, None, up))] = a
        pads = [(max(front, 0), max(back, 0)) if i == axis else (0, 0) for i in range(2)]
        out = np.pad(out, pads)
        keep = slice(max(-front, 0), out.shape[axis] - max(-back, 0))
        return out[(keep, slice(None)) if axis == 0 else (slice(None), keep)]

    z = stuffed_and_padded(stuffed_and_padded(x.numpy(), up_x, left, right, 1), up_y, top, bottom, 0)
    if f.dim() == 1:
        taps = f.numpy()[::-1] if flip else f.numpy()
        for axis in (0, 1):
            n = z.shape[axis] - len(taps) + 1
            z = signal.upfirdn(taps, z, axis=axis).take(range(len(taps) - 1, len(taps) - 1 + n), axis=axis)
    else:
        z = signal.convolve2d(z, f.numpy()[::-1, ::-1] if flip else f.numpy(), mode="valid")
    expected = gain * z[::down_y, ::down_x]
    exact = torch.from_numpy(expected)
    assert_as_good_as_torch(got[0, 0], exact, exact, "out")


def test_scipy_up_and_down_at_once() -> None:
    x, taps = torch.randn(50, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    expected = signal.upfirdn(taps.numpy(), x.numpy(), up=3, down=2)
    got = upfirdn2d(x[None, None, None], taps[None], up=(3, 1), down=(2, 1), padding=(8, 8 - 2, 0, 0))
    torch.testing.assert_close(got[0, 0, 0], torch.from_numpy(expected[: got.shape[-1]]))
    assert len(expected) - got.shape[-1] in (0, 1)


@native
@formats
@cases
def test_gradcheck(case: tuple, memory_format: Any, device: str) -> None:
    f, *options = case
    x = images(1, 2, 9, 5, dtype=torch.float64, memory_format=memory_format).to(device).requires_grad_()
    f = f.double().to(device).requires_grad_()
    assert gradcheck(lambda x, f: upfirdn2d(x, f, *options), (x, f))
    assert gradgradcheck(lambda x, f: upfirdn2d(x, f, *options), (x, f))


@native
@cases
def test_third_derivative_matches_the_formula(case: tuple, device: str) -> None:
    f, *options = case

    def third(function: Any) -> tuple[Tensor, ...]:
        x = torch.linspace(-1, 1, 2 * 9 * 7, dtype=torch.float64, device=device).reshape(1, 2, 9, 7).requires_grad_()
        taps = f.double().to(device).requires_grad_()
        first = grad(function(x, taps, *options).pow(3).sum(), (x, taps), create_graph=True)
        second = grad(sum(g.square().sum() for g in first), (x, taps), create_graph=True)
        return grad(sum(g.square().sum() for g in second), (x, taps))

    for got, expected in zip(third(upfirdn2d), third(reference), strict=True):
        assert_as_good_as_torch(got, expected, expected, "third derivative", floor=4.0)


@native
@formats
@cases
def test_gradients_are_adjoint(case: tuple, memory_format: Any, isa: str, device: str) -> None:
    """<A x, y> = <x, A' y>, and the same for the filter, with sums in float64."""
    f, *options = on(device, case)
    x = images(2, 5, 19, 23, memory_format=memory_format).to(device).requires_grad_()
    f = f.clone().requires_grad_()
    out = upfirdn2d(x, f, *options)
    y = torch.randn_like(out)
    to_x, to_f = grad(out, (x, f), y)

    def inner(a: Tensor, b: Tensor) -> float:
        return (a.double() * b.double()).sum().item()

    product, size = inner(out, y), (out.double().norm() * y.double().norm()).item()
    assert abs(product - inner(x, to_x)) < 1e-6 * size
    degree = f.dim() % 2 + 1  # the result is quadratic in a filter that is applied twice
    assert abs(degree * product - inner(f, to_f)) < 1e-6 * size


@native
@formats
@pytest.mark.parametrize("channels", [1, 3, 8, 15, 16, 17, 64, 130])
@pytest.mark.parametrize("case", ["up 2", "12 taps down 4", "rank two"])
def test_any_number_of_channels(case: str, channels: int, memory_format: Any, isa: str, device: str) -> None:
    f, *options = on(device, CASES[case])
    x = images(2, channels, 9, 14, memory_format=memory_format).to(device)
    exact = reference(x.double(), f.double(), *options)
    assert_as_good_as_torch(upfirdn2d(x, f, *options), reference(x, f, *options), exact, "out")


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["up 2", "down 2", "rank two", "up 6 down 4"])
@pytest.mark.parametrize("size", [(1, 2, 3, 9001), (1, 2, 700, 5), (1, 300, 40, 41), (40, 3, 8, 8)], ids=str)
@formats
def test_any_size_on_any_threads(
    memory_format: Any, size: tuple, case: str, dtype: torch.dtype, one_thread_and_many: list[int]
) -> None:
    """Wider than a tile, taller than a task, several images a task: the same bits on any number of threads."""
    f, *options = CASES[case]
    x = images(*size, dtype=dtype, memory_format=memory_format).requires_grad_()
    f = f.clone().requires_grad_()
    results = []
    for threads in one_thread_and_many:
        torch.set_num_threads(threads)
        out = upfirdn2d(x, f, *options)
        results.append((out, *grad(out.float().square().sum(), (x, f))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    assert_as_good_as_torch(
        results[0][0], reference(x, f, *options), reference(x.double(), f.double(), *options), "out"
    )


@native
def test_large_results_are_streamed_right(isa: str) -> None:
    """Past the caches, with rows that begin and end between cache lines."""
    for dtype in (torch.float32, torch.bfloat16):
        for memory_format in FORMATS.values():
            x = images(1, 5, 700, 701, dtype=dtype, memory_format=memory_format)
            options = ((2, 2), (1, 1), (2, 2, 2, 1), False, 4.0)
            got, exact = upfirdn2d(x, SMOOTH, *options), reference(x.float(), SMOOTH, *options)
            assert got.nbytes > 8 << 20
            assert torch.equal(got, exact.to(dtype)) or (got.float() - exact).abs().max() < (
                2e-5 if dtype is torch.float32 else 0.05
            )


@native
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (0, 0, 4, 4)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batches_and_no_channels(shape: tuple[int, ...], backend: str, device: str) -> None:
    x = torch.zeros(shape, device=device, requires_grad=True)
    f = SMOOTH.to(device).requires_grad_()
    with fastvfx.backend(backend):
        out = upsample2d(x, f)
        assert out.shape == (*shape[:2], 2 * shape[2], 2 * shape[3])
        to_x, to_f = grad(out.sum(), (x, f), allow_unused=True)
    assert to_x.shape == shape
    assert to_f is None or not to_f.any()


@native
def test_a_filter_larger_than_the_image(isa: str, device: str) -> None:
    f = torch.randn(31, 40, device=device)
    x = torch.randn(2, 3, 4, 5, device=device).requires_grad_()
    padding = (39, 39, 30, 30)
    out = upfirdn2d(x, f, padding=padding)
    assert out.shape == (2, 3, 34, 44)
    assert_as_good_as_torch(
        out, reference(x, f, padding=padding), reference(x.double(), f.double(), padding=padding), "out"
    )
    (got,) = grad(out.square().sum(), x)
    (same,) = grad(reference(x, f, padding=padding).square().sum(), x)
    wide = x.detach().double().requires_grad_()
    (exact,) = grad(reference(wide, f.double(), padding=padding).square().sum(), wide)
    assert_as_good_as_torch(got, same, exact, "grad_x")


@native
def test_padding_and_cropping_beyond_the_image(isa: str, device: str) -> None:
    x = torch.randn(1, 2, 6, 6, device=device).requires_grad_()
    f = SMOOTH.to(device)
    beyond = upfirdn2d(x, f, padding=(-10, 30, 3, 3))  # everything to the left is cropped, zeros follow
    assert beyond.shape == (1, 2, 9, 23) and not beyond.any()
    assert not grad(beyond.sum(), x)[0].any()
    assert not upfirdn2d(x, f, padding=(40, -10, 20, -7)).any()


@native
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@formats
@cases
def test_a_bad_pixel_stays_under_the_filter(case: tuple, memory_format: Any, bad: float, isa: str, device: str) -> None:
    f, *options = on(device, case)
    x = images(2, 3, 14, 15, memory_format=memory_format).to(device)
    clean = upfirdn2d(x, f, *options)
    x[1, 2, 6, 7] = bad
    got = upfirdn2d(x, f, *options)
    touched = (
        upfirdn2d(
            torch.zeros_like(x).index_put_([torch.tensor(i) for i in (1, 2, 6, 7)], torch.tensor(1.0, device=device)),
            f.abs() + 1,
            *options,
        )
        != 0
    )
    assert torch.equal(got[~touched], clean[~touched])
    assert not got[touched].isfinite().any()


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_images(dtype: torch.dtype, device: str) -> None:
    base = torch.randn(4, 6, 20, 22, device=device).to(dtype)
    f = SMOOTH.to(device)
    for x in (
        base[::2, 1::2, ::3, 1::2],
        base.transpose(2, 3),
        base[:, :, :, :1].expand(4, 6, 20, 9),
        base.permute(2, 1, 0, 3),
    ):
        x = x.detach().requires_grad_()
        out = upsample2d(x, f)
        assert torch.equal(out, upsample2d(x.contiguous(), f))
        g = torch.randn(out.shape[::-1], device=device).to(dtype).permute(3, 2, 1, 0)
        assert torch.equal(grad(out, x, g, retain_graph=True)[0], grad(out, x, g.contiguous())[0])


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@formats
def test_opcheck(memory_format: Any, dtype: torch.dtype, device: str) -> None:
    x = images(2, 3, 8, 6, dtype=dtype, memory_format=memory_format).to(device)
    accumulate = torch.float64 if dtype is torch.float64 else torch.float32
    for f in (SMOOTH, LANCZOS[:4]):
        f = f.to(device, accumulate)
        torch.library.opcheck(
            torch.ops.fastvfx.upfirdn2d_fwd.default, (x, f, [16, 12], [2, 2], [1, 1], [2, 2], False, 4.0)
        )
    g = images(2, 3, 16, 12, dtype=dtype, memory_format=memory_format).to(device)
    torch.library.opcheck(torch.ops.fastvfx.upfirdn2d_bwd_f.default, (x, g, [4, 4], [2, 2], [1, 1], [2, 2], False, 4.0))


@native
@formats
def test_compiles_to_one_graph(memory_format: Any, device: str) -> None:
    f = SMOOTH.to(device).requires_grad_()

    def function(x: Tensor, f: Tensor) -> Tensor:
        return downsample2d(upsample2d(x * 1.0, f).square(), f).sum(1)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x = images(2, 3, 10, 12, memory_format=memory_format).to(device).requires_grad_()
    torch.testing.assert_close(compiled(x, f), function(x, f))
    for got, expected in zip(grad(compiled(x, f).sum(), (x, f)), grad(function(x, f).sum(), (x, f)), strict=True):
        torch.testing.assert_close(got, expected)


@native
def test_compiles_with_dynamic_shapes(device: str) -> None:
    f, counted = SMOOTH.to(device), torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: upsample2d(x, f), fullgraph=True, dynamic=True, backend=counted)
    for n, size in ((2, 8), (3, 11), (5, 20)):
        x = torch.randn(n, 4, size, size + 3, device=device)
        torch.testing.assert_close(compiled(x), upsample2d(x, f))
    assert counted.frame_count == 1


@native
@formats
def test_runs_on_fake_tensors(memory_format: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(2, 3, 8, 9).contiguous(memory_format=memory_format).requires_grad_()
        f = torch.empty(4, 4, requires_grad=True)
        out = upsample2d(x, f)
        assert out.shape == (2, 3, 16, 18) and out.is_contiguous(memory_format=memory_format)
        to_x, to_f = grad(out.sum(), (x, f))
        assert to_x.shape == x.shape and to_f.shape == f.shape


def test_relatives_are_centred_and_keep_brightness() -> None:
    x = torch.ones(1, 1, 24, 28)
    for f in (setup_filter([1, 3, 3, 1]), setup_filter([1, 2, 1]), setup_filter(torch.ones(12))):
        assert filter2d(x, f).shape == x.shape
        up = upsample2d(x, f, up=(2, 1))
        assert up.shape == (1, 1, 24, 56)
        assert downsample2d(x, f, down=2).shape == (1, 1, 12, 14)
        assert up[0, 0, 12, 28].item() == pytest.approx(1, abs=1e-5)
        assert downsample2d(x, f, down=2)[0, 0, 6, 7].item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(upfirdn2d(x, None, up=2)[0, 0, :2, :2], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_setup_filter() -> None:
    torch.testing.assert_close(setup_filter([1, 3, 3, 1]), SMOOTH)
    assert setup_filter(torch.arange(1.0, 9)).shape == (8,) and setup_filter(None).shape == (1, 1)
    assert setup_filter([[1, 2], [3, 4]], normalize=False, flip_filter=True, gain=2).tolist() == [[8, 6], [4, 2]]
    with pytest.raises(ValueError, match=r"fastvfx\.setup_filter: expected f with 1 or 2 dimensions and taps"):
        setup_filter([])
    with pytest.raises(ValueError, match=r"fastvfx\.setup_filter: expected a 1-D f with separable=True"):
        setup_filter([[1.0]], separable=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], SMOOTH), TypeError, "expected x to be a torch.Tensor, got list"),
        ((torch.ones(1, 1, 8, 8, dtype=torch.int64), SMOOTH), TypeError, "expected x of dtype .* got torch.int64"),
        ((torch.ones(3, 8, 8), SMOOTH), ValueError, r"expected x of shape \(N, C, H, W\), got \(3, 8, 8\)"),
        ((torch.ones(1, 1, 8, 8), torch.ones(1, 2, 2)), ValueError, r"expected f of shape \(taps,\) or"),
        ((torch.ones(1, 1, 8, 8), torch.ones(0)), ValueError, r"expected f of shape .* got \(0,\)"),
        ((torch.ones(1, 1, 8, 8), torch.ones(2, 2, dtype=torch.int32)), TypeError, "expected f of dtype"),
        ((torch.ones(1, 1, 8, 8), torch.ones(2, 2).to("meta")), ValueError, "expected f on cpu like x, got it on meta"),
        ((torch.ones(1, 1, 8, 8), SMOOTH, 0), ValueError, "expected up of at least 1, got 0"),
        ((torch.ones(1, 1, 8, 8), SMOOTH, 2.0), TypeError, "expected up to be an int or two of them"),
        ((torch.ones(1, 1, 8, 8), SMOOTH, 1, (1, 2, 3)), TypeError, "expected down to be an int or two of them"),
        ((torch.ones(1, 1, 8, 8), SMOOTH, 1, 1, (1, 2, 3)), TypeError, "expected padding to be an int, two of them"),
        ((torch.ones(1, 1, 8, 8), SMOOTH, 1, 1, -3), ValueError, "expected an image of at least 4x4 pixels.* got 2x2"),
        ((torch.ones(1, 1, 3, 8), SMOOTH), ValueError, "expected an image of at least 4x4 pixels, .* got 3x8 from x"),
    ],
    ids=["list", "int", "3-D", "3-D f", "no taps", "int f", "device", "up 0", "up 2.0", "down", "pad", "crop", "small"],
)
def test_bad_input_is_named(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"fastvfx.upfirdn2d: {message}"):
        upfirdn2d(*arguments)
