"""The modules of StyleGAN's layers: what their state dicts hold, and that they compute the published formulas.

Oracle: the layers' formulas with a weight per image, spelled out in float64.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastvfx
from fastvfx.functional import setup_filter
from fastvfx.reference.upfirdn2d import upfirdn2d


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_state_dicts_are_those_of_stylegan2_ada_pytorch() -> None:
    assert shapes(fastvfx.EqualizedLinear(5, 7)) == {"weight": (7, 5), "bias": (7,)}
    assert shapes(fastvfx.EqualizedConv2d(5, 7, 3, bias=False)) == {"weight": (7, 5, 3, 3), "resample_filter": (4, 4)}
    affine = {"affine.weight": (5, 9), "affine.bias": (5,)}
    assert shapes(fastvfx.SynthesisLayer(5, 7, w_dim=9, resolution=16)) == {
        **affine,
        "weight": (7, 5, 3, 3),
        "noise_strength": (),
        "bias": (7,),
        "resample_filter": (4, 4),
        "noise_const": (16, 16),
    }
    assert shapes(fastvfx.ToRGB(5, 3, w_dim=9)) == {**affine, "weight": (3, 5, 1, 1), "bias": (3,)}


def per_image(x: Tensor, weight: Tensor, styles: Tensor, up: int, demodulate: bool) -> Tensor:
    """A grouped convolution with a weight per image, as the paper's authors run it, that keeps the size."""
    w = weight[None] * styles[:, None, :, None, None]  # (N, O, I, k, k)
    if demodulate:
        w = w * (w.square().sum([2, 3, 4], keepdim=True) + 1e-8).rsqrt()
    n, out_channels, in_channels, k, _ = w.shape
    f, pad = (None, k // 2) if up == 1 else (setup_filter([1, 3, 3, 1]).to(x), k // 2)
    if up > 1:  # the weight convolves, and the image keeps its size but for the factor
        x = upfirdn2d(x, f, (up, up), padding=(pad + 2, pad + 1, pad + 2, pad + 1), gain=up**2)
        w, pad = w.flip([3, 4]), 0
    x = x.reshape(1, n * in_channels, *x.shape[2:])
    y = F.conv2d(x, w.reshape(-1, in_channels, k, k), padding=pad, groups=n)
    return y.reshape(n, out_channels, *y.shape[2:])


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("noise_mode", ["const", "none"])
def test_synthesis_layer_is_the_published_formula(noise_mode: str, up: int) -> None:
    layer = fastvfx.SynthesisLayer(5, 7, w_dim=9, resolution=8, up=up, clamp=1.5).double()
    with torch.no_grad():
        layer.noise_strength.fill_(0.3)
        layer.bias.normal_()
    x, w = torch.randn(3, 5, 8 // up, 8 // up).double(), torch.randn(3, 9).double()
    gain = math.sqrt(0.5)
    styles = w @ layer.affine.weight.T / 3 + layer.affine.bias
    z = per_image(x, layer.weight, styles, up, True)
    if noise_mode == "const":
        z = z + layer.noise_const * 0.3
    expected = F.leaky_relu(z + layer.bias[:, None, None], 0.2) * math.sqrt(2) * gain
    limit = 1.5 * gain
    assert (expected.abs() > limit).any()
    torch.testing.assert_close(layer(x, w, noise_mode, gain=gain), expected.clamp(-limit, limit))


def test_random_noise_differs_from_call_to_call_and_starts_at_nothing() -> None:
    layer = fastvfx.SynthesisLayer(4, 4, w_dim=4, resolution=8)
    x, w = torch.randn(2, 4, 8, 12), torch.randn(2, 4)  # noise takes the size of the image
    assert torch.equal(layer(x, w), layer(x, w, "none"))
    with torch.no_grad():
        layer.noise_strength.fill_(1.0)
    first, second = layer(x, w), layer(x, w)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0] - layer(x, w, "none")[0], first[1] - layer(x, w, "none")[1])


def test_layers_without_noise_have_none() -> None:
    layer = fastvfx.SynthesisLayer(4, 4, w_dim=4, resolution=8, use_noise=False)
    assert "noise_strength" not in shapes(layer) and "noise_const" not in shapes(layer)
    x, w = torch.randn(2, 4, 8, 8), torch.randn(2, 4)
    assert torch.equal(layer(x, w, "random"), layer(x, w, "none"))


def test_to_rgb_is_the_published_formula() -> None:
    layer = fastvfx.ToRGB(16, 3, w_dim=9, clamp=0.8).double()
    x, w = torch.randn(3, 16, 5, 6).double(), torch.randn(3, 9).double()
    styles = (w @ layer.affine.weight.T / 3 + layer.affine.bias) / 4
    expected = per_image(x, layer.weight, styles, 1, False)
    torch.testing.assert_close(layer(x, w), expected.clamp(-0.8, 0.8))


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_equalized_conv_is_the_published_formula(kernel_size: int, up: int, down: int) -> None:
    layer = fastvfx.EqualizedConv2d(5, 7, kernel_size, act="lrelu", up=up, down=down, clamp=1.0).double()
    with torch.no_grad():
        layer.bias.normal_()
    x = torch.randn(2, 5, 8, 12).double()
    f, p = setup_filter([1, 3, 3, 1]).double(), kernel_size // 2
    weight = layer.weight / math.sqrt(5 * kernel_size**2)
    if up == 2:  # all padding is in front of the first filter
        z = F.conv2d(upfirdn2d(x, f, (2, 2), padding=(p + 2, p + 1, p + 2, p + 1), gain=4), weight.flip([2, 3]))
    elif down == 2:
        z = upfirdn2d(F.conv2d(F.pad(x, [p + 1] * 4), weight), f, down=(2, 2))
    else:
        z = F.conv2d(x, weight, padding=p)
    expected = F.leaky_relu(z + layer.bias[:, None, None], 0.2) * math.sqrt(2) * 0.5
    torch.testing.assert_close(layer(x, gain=0.5), expected.clamp(-0.5, 0.5))
    assert layer(x).shape == (2, 7, 8 * up // down, 12 * up // down)


@pytest.mark.parametrize("act", ["linear", "lrelu"])
def test_equalized_linear_does_not_depend_on_the_learning_rate(act: str) -> None:
    torch.manual_seed(1)
    slow = fastvfx.EqualizedLinear(64, 32, act=act, lr_multiplier=0.01, bias_init=0.5)
    torch.manual_seed(1)
    fast = fastvfx.EqualizedLinear(64, 32, act=act, bias_init=0.5)
    x = torch.randn(3, 5, 64)
    torch.testing.assert_close(slow(x), fast(x))
    torch.testing.assert_close(slow.weight, fast.weight * 100)
    z = F.linear(x, fast.weight / 8, fast.bias)
    torch.testing.assert_close(fast(x), z if act == "linear" else F.leaky_relu(z, 0.2) * math.sqrt(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_images_of_16_bits_keep_their_dtype(dtype: torch.dtype) -> None:
    layer = fastvfx.SynthesisLayer(8, 8, w_dim=4, resolution=16, up=2, clamp=256)
    x, w = torch.randn(2, 8, 8, 8), torch.randn(2, 4)
    y = layer(x.to(dtype), w, "none")
    assert y.dtype is dtype
    # To the bit: how exact the operator is, its own tests say.
    operator = fastvfx.modulated_conv2d(
        x.to(dtype), layer.weight, layer.affine(w), bias=layer.bias, up=2, padding=1,
        resample_filter=layer.resample_filter, flip_weight=False, act="lrelu", clamp=256,
    )  # fmt: skip
    assert torch.equal(y, operator)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"fastvfx.SynthesisLayer: expected an odd kernel_size, got 4"):
        fastvfx.SynthesisLayer(4, 4, 4, 8, kernel_size=4)
    with pytest.raises(ValueError, match=r"fastvfx.EqualizedConv2d: expected act to be one of linear, relu"):
        fastvfx.EqualizedConv2d(4, 4, 3, act="lelu")
    layer = fastvfx.SynthesisLayer(4, 4, 4, 8)
    with pytest.raises(ValueError, match=r"expected noise_mode to be one of random, const, none, got 'constant'"):
        layer(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4), "constant")
    with pytest.raises(ValueError, match=r"fastvfx.modulated_conv2d: expected noise .*8, 16.*got \(8, 8\)"):
        layer(torch.zeros(1, 4, 8, 16), torch.zeros(1, 4), "const")
