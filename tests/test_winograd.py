"""Winograd's convolutions on the CPU: in float32, for 3 x 3 taps, where few zeros make channels multiples of 16."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from marks import native
from torch import Tensor

import fastvfx
from fastvfx._ops import _winograd as winograd
from fastvfx._ops._torch_conv2d import Geometry
from fastvfx.functional import setup_filter
from fastvfx.functional.scaled_conv2d import scaled_conv2d
from fastvfx.reference.conv2d_resample import conv2d_resample as resample_reference
from fastvfx.reference.modulated_conv2d import modulated_conv2d as modulated_reference

pytestmark = native

LAST = torch.channels_last
#: Of the norm: twice what the transforms cost at the most in float32, whose products round at 6e-8.
TOLERANCE = 3e-6


def off(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


def images(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, height, width, generator=generator)


CASES = {
    "one tile": (1, 16, 16, 4, 4),
    "borders inside tiles": (2, 32, 48, 9, 13),
    "one pixel": (3, 16, 32, 1, 1),
    "several blocks of channels": (1, 144, 80, 6, 10),
    "several runs of tiles": (2, 16, 64, 64, 37),
    "weights that are not kept": (1, 384, 448, 31, 30),
    "channels of StyleGAN3": (1, 181, 203, 9, 11),
    "zeros on one side": (2, 64, 61, 6, 5),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("flip", [False, True], ids=["correlates", "convolves"])
@pytest.mark.parametrize("padding", [(1, 1), (0, 2)], ids=["same size", "other sizes"])
def test_values(case, flip, padding):
    n, channels, out, height, width = case
    if height + 2 * padding[0] < 3:
        pytest.skip("no output")
    x, w, s = images(n, channels, height, width), images(out, channels, 3, 3, 1), images(n, channels, 1, 1, 2)
    exact = F.conv2d((x * s).double(), (w.flip([2, 3]) if flip else w).double(), padding=padding)
    geometry = Geometry(padding=padding, flip=flip)
    for layout in (torch.contiguous_format, LAST):
        y = scaled_conv2d(x.contiguous(memory_format=layout), s.flatten(1), w, geometry)
        assert y.shape == exact.shape and y.is_contiguous(memory_format=layout)
        assert off(y, exact) < TOLERANCE


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_image_gradient(case):
    n, channels, out, height, width = case
    w, g = images(out, channels, 3, 3, 1), images(n, out, height, width, 3)
    exact = F.conv_transpose2d(g.double(), w.double(), padding=1)
    got = winograd.dgrad(g, w, Geometry(padding=(1, 1)), (height, width))
    assert got is not None and off(got, exact) < TOLERANCE


def test_gradients_of_every_input():
    inputs = [images(2, 32, 7, 9).requires_grad_(), images(2, 32, 1, 1, 2).flatten(1).requires_grad_()]
    inputs.append(images(16, 32, 3, 3, 1).requires_grad_())
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    incoming = images(2, 16, 7, 9, 4)

    def gradients(tensors: list[Tensor], g: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(scaled_conv2d(*tensors, Geometry(padding=(1, 1))), tensors, g)

    for got, exact in zip(gradients(inputs, incoming), gradients(exact_inputs, incoming.double()), strict=True):
        assert off(got, exact) < TOLERANCE


FILTERS = {
    "1 3 3 1": setup_filter([1, 3, 3, 1]),
    "one axis": setup_filter([1.0, 3, 3, 1], separable=True),
    "lopsided": setup_filter([4.0, 3, 2, 1]),
    "different axes": torch.outer(torch.tensor([1.0, 2, 3]), torch.tensor([-1.0, 1, 4, 2])),
    "no product": torch.tensor([[1.0, 2], [3, 5]]),
    "six taps": setup_filter([1, 2, 3, 3, 2, 1]),
    "none": None,
}


@pytest.mark.parametrize("f", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("flip_weight", [False, True], ids=["convolves", "correlates"])
@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 0, 0, 0), (3, 2, 1, 4)], ids=str)
def test_upsampling(f, flip_weight, padding):
    """Also what the kernel does not take: the values are the same."""
    x, w = images(2, 16, 6, 7), images(32, 16, 3, 3, 1)
    styles, noise, bias = images(2, 16, 1, 1, 2).flatten(1), images(1, 1, 1, 1, 3), images(1, 32, 1, 1, 4).flatten()
    x = x.contiguous(memory_format=LAST)
    with torch.no_grad():
        y = fastvfx.modulated_conv2d(
            x, w, styles, noise=noise, bias=bias, up=2, padding=padding, resample_filter=f, flip_weight=flip_weight,
            act="lrelu", clamp=2.0,
        )  # fmt: skip
    exact = modulated_reference(
        x.double(), w.double(), styles.double(), noise.double(), bias.double(), 2, 1, padding, f, True, flip_weight,
        False, None, "lrelu", None, None, 2.0,
    )  # fmt: skip
    assert y.shape == exact.shape and y.is_contiguous(memory_format=LAST)
    assert off(y, exact) < TOLERANCE


def test_upsampling_by_the_kernel():
    """Of the filter of StyleGAN2, it is the kernel that upsamples."""
    x, w, f = images(1, 32, 8, 8), images(16, 32, 3, 3, 1), FILTERS["1 3 3 1"]
    y = winograd.upsampled(x, None, w, f, (3, 3), (16, 16), True, winograd.NOTHING)
    exact = resample_reference(x.double(), w.double(), f.double(), 2, 1, (1, 1, 1, 1), 1, False, False)
    assert y is not None and off(y, exact) < TOLERANCE


@pytest.mark.parametrize("act", ["linear", "lrelu", "swish"])
@pytest.mark.parametrize("noise_images", [0, 1, 2])
@pytest.mark.parametrize("channels, out", [(16, 32), (29, 57)], ids=str)
def test_what_follows_in_the_same_pass(channels, out, act, noise_images):
    x, w, styles = images(2, channels, 9, 6), images(out, channels, 3, 3, 1), images(2, channels, 1, 1, 2).flatten(1)
    bias = images(1, out, 1, 1, 4).flatten()
    noise = images(noise_images, 1, 9, 6, 3) if noise_images else None
    wide = [t if t is None else t.double() for t in (x, w, styles, noise, bias)]
    exact = modulated_reference(
        *wide, 1, 1, (1, 1, 1, 1), None, True, True, False, None, act, None, 1.5, 3.0
    )  # fmt: skip
    y = fastvfx.modulated_conv2d(
        x, w, styles, noise=noise, bias=bias, padding=1, act=act, gain=1.5, clamp=3.0
    )  # fmt: skip
    assert off(y, exact) < TOLERANCE


def test_scales_that_all_images_share():
    x, w, styles = images(2, 16, 5, 6), images(16, 16, 3, 3, 1), images(2, 16, 1, 1, 2).flatten(1)
    exact = modulated_reference(
        x.double(), w.double(), styles.double(), None, None, 1, 1, (1, 1, 1, 1), None, False, True, True, None,
        "linear", None, None, None,
    )  # fmt: skip
    y = fastvfx.modulated_conv2d(x, w, styles, padding=1, demodulate=False, normalize=True)
    assert off(y, exact) < TOLERANCE


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("where", ["x", "w"])
def test_no_number_reaches_what_it_does_not_meet(bad, where):
    """A transform would spread it over a tile; such images are convolved by definition."""
    x, w = images(1, 16, 12, 12), images(16, 16, 3, 3, 1)
    (x if where == "x" else w)[0, 3, 1, 1] = bad
    expected = F.conv2d(x, w, padding=1).isfinite()
    y = scaled_conv2d(x, None, w, Geometry(padding=(1, 1)))
    assert torch.equal(y.isfinite(), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_results(threads):
    x, w = images(1, 32, 40, 40), images(48, 32, 3, 3, 1)
    before = torch.get_num_threads()
    expected = scaled_conv2d(x, None, w, Geometry(padding=(1, 1)))
    try:
        torch.set_num_threads(threads)
        again = scaled_conv2d(x, None, w, Geometry(padding=(1, 1)))
    finally:
        torch.set_num_threads(before)
    assert off(again, expected.double()) < TOLERANCE


def test_every_level(isa):
    x, w = images(1, 48, 11, 10), images(32, 48, 3, 3, 1)
    exact = F.conv2d(x.double(), w.double(), padding=1)
    assert off(scaled_conv2d(x, None, w, Geometry(padding=(1, 1))), exact) < TOLERANCE


def test_operator_of_upsampling():
    x, w, f = images(1, 16, 5, 6), images(16, 16, 3, 3, 1), FILTERS["1 3 3 1"]
    arguments = (x, None, w, f, (10, 12), (3, 3), True, None, None, None, 0, 0.0, 1.0, None)
    torch.library.opcheck(torch.ops.fastvfx.conv2d_up_fwd.default, arguments)
