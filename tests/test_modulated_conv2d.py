"""``modulated_conv2d``: StyleGAN2's and StyleGAN3's forms, any derivative, and nothing kept that can be computed again.

Oracle: a grouped convolution with a weight per image, written out here, in float64; the same dtype's error is that of
the same formula run in the dtype of the images.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_as_good_as_torch, assert_same_direction
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import fastvfx
from fastvfx import modulated_conv2d
from fastvfx.functional import setup_filter
from fastvfx.reference.bias_act import bias_act
from fastvfx.reference.conv2d_resample import resampling_pads
from fastvfx.reference.upfirdn2d import upfirdn2d

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAMES = ("x", "weight", "styles", "noise", "bias", "input_gain")


def per_image(
    x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor | None = None, bias: Tensor | None = None,
    input_gain: Tensor | None = None, *, up: int = 1, down: int = 1, padding: int = 0, resample_filter: Any = None,
    demodulate: bool = True, flip_weight: bool = True, normalize: bool = False, act: str = "linear",
    gain: float | None = None, clamp: float | None = None, grouped: bool = True,
) -> Tensor:  # fmt: skip
    """``grouped=False`` scales the images around one convolution instead, in the dtype of the images."""
    n, channels = x.shape[:2]
    if normalize:
        weight = weight / weight.square().mean([1, 2, 3], keepdim=True).sqrt()
        styles = styles / styles.square().mean().sqrt()
    w = weight[None] * styles[:, None, :, None, None]  # (N, O, I, k, k)
    if demodulate:
        w = w / (w.square().sum([2, 3, 4], keepdim=True) + 1e-8).sqrt()
    if input_gain is not None:
        w = w * input_gain.expand(n, channels)[:, None, :, None, None]
    if not grouped:
        scaled = weight[None] * styles[:, None, :, None, None]
        d = (scaled.square().sum([2, 3, 4]) + 1e-8).rsqrt() if demodulate else torch.ones(n, weight.shape[0])
        s = styles if input_gain is None else styles * input_gain
        x, w = x * s.to(x.dtype)[:, :, None, None], weight.to(x.dtype)
    if not flip_weight:
        w = w.flip([-2, -1])
    pads = resampling_pads(resample_filter, up, down, (padding,) * 4)
    x = upfirdn2d(x, resample_filter if up > 1 else None, (up, up), padding=pads, gain=up**2)
    if grouped:
        x = x.reshape(1, n * channels, *x.shape[2:])
        y = F.conv2d(x, w.reshape(-1, *w.shape[2:]).to(x.dtype), groups=n)
        y = y.reshape(n, -1, *y.shape[2:])
    else:
        y = F.conv2d(x, w) * d.to(x.dtype)[:, :, None, None]
    if down > 1:
        y = upfirdn2d(y, resample_filter, down=(down, down))
    if noise is not None:
        y = y + noise.to(y.dtype)
    return bias_act(y, bias, 1, act, None, gain, clamp)


def ours(x, weight, styles, noise=None, bias=None, input_gain=None, **options) -> Tensor:
    return modulated_conv2d(x, weight, styles, noise=noise, bias=bias, input_gain=input_gain, **options)


STYLEGAN2 = {"padding": 1, "act": "lrelu", "clamp": 2.0}
FORMS: dict[str, dict[str, Any]] = {
    "stylegan2": STYLEGAN2,
    "stylegan2-up": {**STYLEGAN2, "up": 2, "flip_weight": False, "resample_filter": setup_filter([1, 3, 3, 1])},
    "stylegan2-down": {**STYLEGAN2, "down": 2, "resample_filter": setup_filter([1, 3, 3, 1])},
    "to-rgb": {"demodulate": False, "clamp": 1.0},
    "stylegan3": {"padding": 2, "normalize": True},
    "stylegan3-rgb": {"normalize": True, "demodulate": False},
}


def arguments(form: str, dtype: torch.dtype, n=3, channels=10, out=7, size=(9, 8)) -> list[Tensor]:
    """x in ``dtype``, parameters in float32 (float64 for float64): weight, styles, noise, bias, input_gain."""
    options = FORMS[form]
    k = 1 if "rgb" in form else 3
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x = torch.randn(n, channels, *size)
    weight = torch.randn(out, channels, k, k) / (channels * k * k) ** 0.5
    styles = torch.rand(n, channels) + 0.5
    result = [x, weight, styles]
    height, width = per_image(*result, **options).shape[2:]
    result += [torch.randn(n, 1, height, width), torch.randn(out)]
    if "stylegan3" in form:
        result.append(torch.rand(channels) + 0.5)
    return [result[0].to(dtype), *(t.to(wide) for t in result[1:])]


def run(function, tensors: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """y and the gradients of everything."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves, **options)
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(tensors[0].dtype).to(y)
    return [y, *torch.autograd.grad(y, leaves, g)]


def wide(tensors: list[Tensor], options: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    f = options.get("resample_filter")
    return [t.double() for t in tensors], options | ({} if f is None else {"resample_filter": f.double()})


def same_dtype(x: Tensor):
    """torch's formula that the error is measured against: bfloat16 is usually trained with the scales around."""
    return partial(per_image, grouped=x.dtype is not torch.bfloat16)


def check(tensors: list[Tensor], options: dict[str, Any]) -> None:
    if tensors[0].dtype in (torch.float16, torch.bfloat16):
        # A rounding takes a pixel from one side of a kink to the other, and a gradient with it: no measure of error.
        options = options | {"clamp": None, "act": "swish" if "act" in options else "linear"}
    got, same = run(ours, tensors, options), run(same_dtype(tensors[0]), tensors, options)
    exact = run(per_image, *wide(tensors, options))
    for name, a, b, c, t in zip(("y", *NAMES), got, same, exact, [tensors[0], *tensors], strict=False):
        assert a.dtype is t.dtype, name
        assert_as_good_as_torch(a, b, c, name, floor=4.0)
        if got[0].dtype is torch.float32 and a.numel() > 1:
            assert_same_direction(a, c, name)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", list(FORMS))
def test_agrees_with_a_weight_per_image(form: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    tensors = arguments(form, dtype)
    tensors[0] = tensors[0].to(memory_format=layout)
    check(tensors, FORMS[form])
    assert ours(*tensors, **FORMS[form]).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("flip_weight", [True, False], ids=["correlate", "convolve"])
@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_kernel_sizes_and_factors(k: int, factors: tuple[int, int], flip_weight: bool) -> None:
    f = setup_filter([1, 3, 3, 1])
    tensors = [torch.randn(2, 5, 8, 7), torch.randn(4, 5, k, k), torch.randn(2, 5)]
    up, down = factors
    check(tensors, {"up": up, "down": down, "padding": k // 2, "resample_filter": f, "flip_weight": flip_weight})


@pytest.mark.parametrize("form", ["stylegan2-up", "stylegan2-down", "stylegan2"])
def test_many_channels_of_16_bits(form: str) -> None:
    check(arguments(form, torch.bfloat16, 2, 100, 112), FORMS[form])


@pytest.mark.parametrize("shape", [(), (10,), (3, 10)], ids=str)
def test_input_gain_is_not_seen_by_demodulation(shape: tuple[int, ...]) -> None:
    tensors = arguments("stylegan3", torch.float32)
    tensors[5] = torch.rand(shape) + 0.5
    check(tensors, FORMS["stylegan3"])


@pytest.mark.parametrize("shape", [(), (1,), (9, 8), (1, 8), (1, 9, 1), (3, 1, 1, 1), (1, 1, 9, 8)], ids=str)
def test_noise_is_broadcast(shape: tuple[int, ...]) -> None:
    tensors = arguments("stylegan2", torch.float32)
    tensors[3] = torch.randn(shape)
    check(tensors, FORMS["stylegan2"])


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"])
def test_activations(act: str) -> None:
    check(arguments("stylegan2", torch.float32), {"padding": 1, "act": act, "gain": 1.5, "clamp": 1.0})


@pytest.mark.parametrize("form", list(FORMS))
def test_gradcheck(form: str) -> None:
    tensors = arguments(form, torch.float64, 2, 3, 2, (4, 3))
    options = {k: v for k, v in FORMS[form].items() if k != "resample_filter"}
    inputs = [t.requires_grad_() for t in tensors]
    f = setup_filter([1.0, 3, 2]).double().requires_grad_()
    names = NAMES[: len(inputs)]

    def function(*inputs: Tensor) -> Tensor:
        named = dict(zip(names, inputs, strict=False))
        return modulated_conv2d(**named, **options, resample_filter=inputs[-1] if resampled else None)

    resampled = "resample_filter" in FORMS[form]
    if resampled:
        tensors[3] = torch.randn(1).double().requires_grad_()  # the size of the result is another with this filter
        inputs = [*tensors, f]
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def penalties(function, x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, options: dict) -> list[Tensor]:
    """Gradients of StyleGAN2's two penalties: on the derivative by the image, and on that by the styles."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, styles, bias)]
    results = []
    for wrt in (0, 2):
        y = function(leaves[0], leaves[1], leaves[2], None, leaves[3], **options)
        generator = torch.Generator().manual_seed(2)
        direction = torch.randn(y.shape, generator=generator).to(y)
        (g,) = torch.autograd.grad((y * direction).sum(), leaves[wrt], create_graph=True)
        results += torch.autograd.grad(g.square().sum().sqrt(), leaves, allow_unused=True)
    return [torch.zeros(()) if r is None else r for r in results]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["stylegan2", "stylegan2-up"])
def test_penalties_agree_with_float64(form: str, dtype: torch.dtype) -> None:
    x, weight, styles, _, bias = arguments(form, dtype)
    options = FORMS[form] | ({} if dtype is torch.float32 else {"clamp": None, "act": "swish"})
    got = penalties(ours, x, weight, styles, bias, options)
    same = penalties(same_dtype(x), x, weight, styles, bias, options)
    tensors, double = wide([x, weight, styles, bias], options)
    exact = penalties(per_image, *tensors, double)
    names = [f"{by} of the gradient by {wrt}" for wrt in ("x", "styles") for by in ("x", "weight", "styles", "bias")]
    for name, a, b, c in zip(names, got, same, exact, strict=True):
        assert_as_good_as_torch(a, b, c, name, floor=4.0 if dtype is torch.float32 else 8.0)


def test_third_derivative() -> None:
    tensors = [t.requires_grad_() for t in arguments("stylegan2-up", torch.float64, 2, 3, 2, (4, 4))]
    options = wide([], FORMS["stylegan2-up"])[1]

    def third(function) -> list[Tensor]:
        y = function(*tensors, **options)
        first = torch.autograd.grad(y.pow(3).sum(), tensors[:3], create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), tensors[:3], create_graph=True)
        return list(torch.autograd.grad(sum(g.pow(2).sum() for g in second), tensors))

    for a, b in zip(third(ours), third(per_image), strict=True):
        assert_as_good_as_torch(a, b, b, "third derivative", floor=4.0)


def test_only_inputs_and_the_convolution_are_kept() -> None:
    """For the backward: x, weight, styles and what the epilogue differentiates, at most half of the usual formula."""
    tensors = [t.requires_grad_() for t in arguments("stylegan2", torch.float32, 2, 16, 16, (64, 64))]
    inputs = {t.untyped_storage().data_ptr() for t in tensors}

    def kept(function) -> int:
        """Bytes that the graph holds besides its inputs."""
        storages: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = function(*tensors, **STYLEGAN2)
        own = y.untyped_storage().data_ptr()
        return sum(n for p, n in storages.items() if p not in inputs and p != own)

    image = 2 * 16 * 64 * 64 * 4
    assert kept(ours) < 1.3 * image
    assert kept(ours) < kept(per_image) / 2


def test_nothing_overflows_that_is_in_range_in_the_result() -> None:
    """float16 images, styles and weights whose products are beyond it."""
    x, weight = torch.full((1, 64, 8, 8), 3e4).half(), torch.full((8, 64, 3, 3), 3e3)
    y = modulated_conv2d(x, weight, torch.full((1, 64), 5e3), padding=1)
    assert y.dtype is torch.float16 and y.isinf().all()  # 24 x: too large
    y = modulated_conv2d(x, weight, torch.full((1, 64), 5e3), padding=1, gain=1e-3)
    torch.testing.assert_close(y[0, :, 4, 4].float(), torch.full((8,), 3e4 * 24e-3), rtol=1e-3, atol=0)
    small = torch.full((1, 64), 1e-6)
    y = modulated_conv2d(x / 1e4, weight / 1e5, small, padding=1)
    expected = per_image(x.double() / 1e4, weight.double() / 1e5, small.double(), padding=1)
    torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=0)


def test_compiles_to_one_graph() -> None:
    options = FORMS["stylegan2-up"]
    tensors = [t.requires_grad_() for t in arguments("stylegan2-up", torch.float32)]
    compiled = torch.compile(lambda *tensors: ours(*tensors, **options).square(), fullgraph=True, backend="aot_eager")
    expected = ours(*tensors, **options).square()
    torch.testing.assert_close(compiled(*tensors), expected)
    got = torch.autograd.grad(compiled(*tensors).sum(), tensors)
    for a, b in zip(got, torch.autograd.grad(expected.sum(), tensors), strict=True):
        assert_as_good_as_torch(a, b.double(), b.double(), "compiled gradient")  # the same kernels


@pytest.mark.parametrize("form", list(FORMS))
def test_runs_on_fake_tensors(form: str) -> None:
    expected = ours(*arguments(form, torch.float32), **FORMS[form])
    shapes = [t.shape for t in arguments(form, torch.float32)]
    with FakeTensorMode():
        tensors = [torch.empty(shape, requires_grad=True) for shape in shapes]
        options = FORMS[form] | ({"resample_filter": torch.empty(4, 4)} if "resample_filter" in FORMS[form] else {})
        y = ours(*tensors, **options)
        assert y.shape == expected.shape
        assert [g.shape for g in torch.autograd.grad(y.sum(), tensors)] == shapes


@pytest.mark.parametrize("form", ["stylegan2", "stylegan2-up", "to-rgb"])
def test_empty_batch(form: str) -> None:
    tensors = [t.requires_grad_() for t in arguments(form, torch.float32)]
    expected = ours(*tensors, **FORMS[form])
    empty = [t[:0] if i in (0, 2, 3) else t for i, t in enumerate(tensors)]
    y = ours(*empty, **FORMS[form])
    assert y.shape == expected[:0].shape
    assert not torch.autograd.grad(y.sum(), tensors[1])[0].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("which", [0, 2, 3], ids=["x", "styles", "noise"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bad_number_stays_in_its_image(dtype: torch.dtype, which: int, bad: float) -> None:
    tensors = arguments("stylegan2", dtype)
    tensors[which].view(3, -1)[1, 2] = bad
    leaves = [t.requires_grad_() for t in tensors]
    y = ours(*leaves, padding=1, act="lrelu")
    assert y[[0, 2]].isfinite().all() and not y[1].isfinite().all()
    grad_x, grad_styles = torch.autograd.grad(y.sum(), [leaves[0], leaves[2]])
    assert grad_x[[0, 2]].isfinite().all() and grad_styles[[0, 2]].isfinite().all()


def test_images_are_independent() -> None:
    tensors = arguments("stylegan2-up", torch.float32)
    whole = ours(*tensors, **FORMS["stylegan2-up"])
    alone = ours(*(t[1:2] if i in (0, 2, 3) else t for i, t in enumerate(tensors)), **FORMS["stylegan2-up"])
    assert_as_good_as_torch(alone, whole[1:2], whole[1:2].double(), "one of three images")


@pytest.mark.parametrize("form", list(FORMS))
def test_reference_agrees(form: str) -> None:
    tensors, options = arguments(form, torch.float64), wide([], FORMS[form])[1]
    with fastvfx.backend("reference"):
        got = run(ours, tensors, options)
    for name, a, b in zip(("y", *NAMES), got, run(per_image, tensors, options), strict=False):
        torch.testing.assert_close(a, b, msg=name)


BASE = {"x": torch.zeros(2, 4, 8, 8), "weight": torch.zeros(3, 4, 3, 3), "styles": torch.zeros(2, 4), "padding": 1}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": torch.zeros(2, 5, 8, 8)},
            ValueError,
            r"expected weight of shape \(O, I, kh, kw\) with I=5, none of them 0, got \(3, 4",
        ),
        ({"x": [1.0]}, TypeError, r"expected x to be a torch.Tensor, got list"),
        ({"weight": torch.zeros(3, 4)}, ValueError, r"expected weight of shape .*got \(3, 4\)"),
        ({"weight": torch.zeros(3, 4, 3, 3, dtype=torch.int8)}, TypeError, r"expected weight of dtype float32.*int8"),
        ({"styles": torch.zeros(3, 4)}, ValueError, r"expected styles of shape \(N, I\) with N=2, I=4, got \(3, 4\)"),
        ({"bias": torch.zeros(4)}, ValueError, r"expected bias of shape \(O,\) with O=3, got \(4,\)"),
        ({"input_gain": torch.zeros(3)}, ValueError, r"expected input_gain to be a scalar or .* I=4, got \(3,\)"),
        ({"noise": torch.zeros(2, 3, 8, 8)}, ValueError, r"broadcasts to .* = \(2, 1, 8, 8\), got \(2, 3, 8, 8\)"),
        ({"noise": torch.zeros(8, 8), "up": 2}, ValueError, r"broadcasts to .* = \(2, 1, 16, 16\), got \(8, 8\)"),
        ({"noise": torch.zeros(1, 2, 1, 8, 8)}, ValueError, r"broadcasts to .* got \(1, 2, 1, 8, 8\)"),
        ({"act": "gelu"}, ValueError, r"expected act to be one of linear, relu, .*got 'gelu'"),
        ({"clamp": -1.0}, ValueError, r"expected clamp to be None or at least 0, got -1.0"),
        ({"gain": math.inf}, ValueError, r"expected gain to be a finite number, got inf"),
        ({"padding": -4}, ValueError, r"expected an image not smaller than kernel and filter"),
        ({"resample_filter": torch.ones(40, 40), "down": 2, "padding": -9}, ValueError, r"a filter of 40 x 40 taps"),
        ({"resample_filter": torch.ones(0)}, ValueError, r"expected resample_filter of shape \(taps,\)"),
        ({"up": True}, TypeError, r"expected up to be an int"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="fastvfx.modulated_conv2d: .*" + message):
        modulated_conv2d(**{**BASE, **change})


@pytest.mark.parametrize("name", ["weight", "styles", "bias", "noise"])
def test_devices_must_be_one(name: str) -> None:
    tensors = BASE | {"bias": torch.zeros(3), "noise": torch.zeros(8, 8)}
    with pytest.raises(ValueError, match=f"fastvfx.modulated_conv2d: expected {name} on cpu like x, got it on meta"):
        modulated_conv2d(**{**tensors, name: tensors[name].to("meta")})


OPERATOR = {
    "plain": (1, 1, 1, False, False),
    "down": (2, 0, 1, False, True),
    "up": (2, 0, 0, True, False),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", list(OPERATOR))
def test_opcheck(geometry: str, dtype: torch.dtype) -> None:
    """The three convolutions that everything is made of, with the factors around them and without."""
    ops, (*numbers, transposed, flip) = torch.ops.fastvfx, OPERATOR[geometry]
    where = (*numbers, transposed, flip, 1)
    single = torch.float64 if dtype is torch.float64 else torch.float32
    x, w = torch.randn(2, 5, 6, 7).to(dtype), torch.randn(4, 5, 3, 3).to(single)
    s, scale, bias = (torch.rand(shape).to(single) for shape in ((2, 5), (2, 4), (4,)))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=layout)
        bare = (None, None, None, 0, 0.0, 1.0, None, False)
        g = ops.conv2d_fwd(x, s, w, *bare, *where)
        finish = (scale, torch.rand(2, 1, *g.shape[2:]).to(single), bias, 2, 0.2, 1.5, 1.0, True)
        for factor in (None, s):
            torch.library.opcheck(ops.conv2d_fwd.default, (x, factor, w, *bare, *where))
            torch.library.opcheck(ops.conv2d_fwd.default, (x, factor, w, *finish, *where))
            torch.library.opcheck(ops.conv2d_wgrad.default, (x, factor, g, list(w.shape), *where))
        torch.library.opcheck(ops.conv2d_dgrad.default, (g, w, 6, 7, *where))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_operator_does_all_of_it(dtype: torch.dtype) -> None:
    """As it is called on a GPU where no gradient is asked for."""
    single = torch.float64 if dtype is torch.float64 else torch.float32
    x, w, s, noise, bias = (t.to(single) for t in arguments("stylegan2", dtype)[:5])
    x, scale = x.to(dtype), torch.rand(3, 7).to(single)
    code = fastvfx._ops.bias_act.ACTIVATION["lrelu"]
    got = torch.ops.fastvfx.conv2d_fwd(
        x, s, w, scale, noise, bias, code, 0.2, 1.5, 2.0, True, 1, 1, 1, False, False, 1
    )  # fmt: skip
    y = F.conv2d(x.double() * s.double()[:, :, None, None], w.double(), padding=1) * scale[:, :, None, None] + noise
    expected = bias_act(y, bias, 1, "lrelu", 0.2, 1.5, 2.0)
    assert got.dtype is dtype
    assert_as_good_as_torch(got, expected.to(dtype), expected, "y", floor=2.0)
