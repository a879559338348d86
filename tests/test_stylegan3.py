"""StyleGAN3: the published schedule and names, scipy's filters, a second formula for a layer, and its symmetries."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import scipy.signal
import scipy.special
import torch
import torch.nn.functional as F
from oracle import assert_as_good_as_torch
from torch import Tensor

from fastvfx.models.stylegan2 import MappingConfig
from fastvfx.models.stylegan3 import (
    Generator,
    GeneratorConfig,
    SynthesisConfig,
    SynthesisLayer,
    lowpass_filter,
    signals,
)

T = SynthesisConfig(channel_base=256, channel_max=12, num_layers=4)
R = replace(T, conv_kernel=1, use_radial_filters=True)
CONFIG = GeneratorConfig(8, 0, 12, 32, 3, MappingConfig(num_layers=2), T)
BOTH = pytest.mark.parametrize("kind", [T, R], ids=["T", "R"])


def generator(kind: SynthesisConfig = T, **changes: object) -> Generator:
    """With biases, averages and magnitudes that are not what they start as."""
    net = Generator(replace(CONFIG, synthesis=kind, **changes))  # type: ignore[arg-type]
    with torch.no_grad():
        net.mapping.w_avg.normal_(std=0.3)
        for layer in net.synthesis.layers():
            layer.bias.normal_(std=0.3)
            layer.magnitude_ema.uniform_(0.5, 2)
        net.synthesis.input.affine.weight.normal_(std=0.3)
    return net


# --- the published networks -------------------------------------------------------------------------------------------


def test_schedule_of_the_published_generator() -> None:
    """FFHQ at 1024x1024: sizes and channels as in the names of the layers, rates from 16 to 1024."""
    steps = signals(1024, 3, SynthesisConfig())
    assert [s.size for s in steps] == [36, 36, 52, 52, 84, 148, 148, 276, 276, 532, 1044, 1044, 1044, 1024, 1024]
    assert [s.channels for s in steps] == [512] * 7 + [323, 203, 128, 81, 51, 32, 32, 3]
    assert [s.rate for s in steps] == [16, 16, 32, 32, 64, 128, 128, 256, 256, 512, 1024, 1024, 1024, 1024, 1024]
    assert steps[0].cutoff == 2
    assert steps[12].cutoff == steps[14].cutoff == 512


def test_sizes_of_the_published_generators() -> None:
    """22.3 million parameters of T (the paper's appendix), and the published weights of R at 1024x1024."""
    with torch.device("meta"):
        t, r = Generator(GeneratorConfig(img_resolution=1024)), Generator(GeneratorConfig.config_r(1024))
    assert sum(p.numel() for p in t.parameters()) == 22_313_167
    assert sum(p.numel() for p in r.parameters()) == 15_093_151
    assert r.synthesis.layer_names[7] == "L7_276_645"
    assert t.num_ws == r.num_ws == 16


def test_names_and_shapes() -> None:
    state = generator(replace(R, num_layers=2, num_critical=1), img_resolution=16, c_dim=5).state_dict()
    expected = {
        "mapping.embed.weight": (12, 5),
        "mapping.embed.bias": (12,),
        "mapping.fc0.weight": (12, 20),
        "mapping.fc0.bias": (12,),
        "mapping.fc1.weight": (12, 12),
        "mapping.fc1.bias": (12,),
        "mapping.w_avg": (12,),
        "synthesis.input.weight": (12, 12),
        "synthesis.input.transform": (3, 3),
        "synthesis.input.freqs": (12, 2),
        "synthesis.input.phases": (12,),
        "synthesis.input.affine.weight": (4, 12),
        "synthesis.input.affine.bias": (4,),
    }
    for name, out in {"L0_36_12": 12, "L1_16_12": 12, "L2_16_3": 3}.items():
        shapes = {"affine.weight": (12, 12), "affine.bias": (12,), "weight": (out, 12, 1, 1), "bias": (out,)}
        expected |= {f"synthesis.{name}.{key}": shape for key, shape in shapes.items()}
        expected[f"synthesis.{name}.magnitude_ema"] = ()
    expected["synthesis.L0_36_12.up_filter"] = expected["synthesis.L1_16_12.up_filter"] = (12,)
    expected["synthesis.L0_36_12.down_filter"] = (12, 12)
    expected["synthesis.L1_16_12.down_filter"] = (12,)  # critically sampled
    assert {name: tuple(x.shape) for name, x in state.items()} == expected


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps, cutoff, width, rate", [(12, 2.0, 12.0, 32), (24, 20.3, 30.0, 256), (13, 5.0, 2.5, 64)])
def test_filters_are_scipys(taps: int, cutoff: float, width: float, rate: float) -> None:
    expected = torch.as_tensor(scipy.signal.firwin(taps, cutoff, width=width, fs=rate), dtype=torch.float32)
    torch.testing.assert_close(lowpass_filter(taps, cutoff, width, rate), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("taps", [12, 13], ids=["even", "odd, with a tap at the pole"])
def test_radial_filters_are_jincs(taps: int) -> None:
    cutoff, width, rate = 9.0, 10.0, 64.0
    window = scipy.signal.firwin(taps, cutoff, width=width, fs=rate)
    x = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    window = torch.from_numpy(window) / torch.sinc(2 * cutoff * x)  # what is left of the 1-D filter is the window
    r = torch.hypot(x[:, None], x).clamp_min(1e-9)
    expected = torch.from_numpy(scipy.special.j1(2 * math.pi * cutoff * r.numpy())) / r * torch.outer(window, window)
    got = lowpass_filter(taps, cutoff, width, rate, radial=True)
    torch.testing.assert_close(got, (expected / expected.sum()).float(), rtol=1e-5, atol=1e-8)


def test_filters_stop_what_they_should() -> None:
    """The spectrum: 1 at 0, a half at the cutoff, nothing from the end of the transition band on; alike in all
    directions if radial."""
    taps, cutoff, width, rate = 48, 8.0, 6.0, 64
    f = lowpass_filter(taps, cutoff, width, rate, radial=True)
    assert f is not None
    spectrum = torch.fft.fft2(f.double(), s=(640, 640)).abs()  # bins of 0.1
    assert spectrum[0, 0] == pytest.approx(1, abs=1e-6)
    assert spectrum[0, 80] == pytest.approx(0.5, abs=0.05)
    assert spectrum[0, 115:320].max() < 1e-3
    diagonal = round(80 / math.sqrt(2))
    assert spectrum[diagonal, diagonal] == pytest.approx(0.5, abs=0.06)  # 0.9 if separable
    assert lowpass_filter(1, cutoff, width, rate) is None


# --- values -----------------------------------------------------------------------------------------------------------


def layer_formula(layer: SynthesisLayer, x: Tensor, w: Tensor) -> Tensor:
    """The layer, image by image with weights of its own, and the filters as plain convolutions cropped around the
    centre, where the padding has to put them."""
    s = w @ layer.affine.weight.T / math.sqrt(w.shape[1]) + layer.affine.bias
    s = s / s.square().mean().sqrt()
    weight = layer.weight / layer.weight.square().mean([1, 2, 3], keepdim=True).sqrt()
    images = []
    for x_one, s_one in zip(x, s, strict=True):
        own = weight * s_one[:, None, None]
        own = own / (own.square().sum([1, 2, 3], keepdim=True) + 1e-8).sqrt() / layer.magnitude_ema.sqrt()
        images.append(F.conv2d(x_one[None], own, padding=layer.kernel_size - 1))
    y = torch.cat(images) + layer.bias[:, None, None]

    def kernel(f: Tensor | None) -> Tensor:
        assert f is not None
        f = torch.outer(f, f) if f.dim() == 1 else f
        return f.expand(y.shape[1], 1, *f.shape)

    up, down = kernel(layer.up_filter), kernel(layer.down_filter)
    y = F.conv_transpose2d(y, up * layer.up**2, stride=layer.up, groups=y.shape[1])
    wanted = (layer.after.size - 1) * layer.down + down.shape[-1]
    crop = (y.shape[-1] - wanted) // 2
    assert y.shape[-1] - 2 * crop == wanted
    y = y[..., crop : crop + wanted, crop : crop + wanted]
    y = (F.leaky_relu(y, 0.2) * math.sqrt(2)).clamp(-256, 256)
    return F.conv2d(y, down, stride=layer.down, groups=y.shape[1])


@BOTH
def test_layers_match_the_papers_formula(kind: SynthesisConfig) -> None:
    net = generator(kind).double()
    for layer in net.synthesis.layers()[:-1]:
        size = layer.before.size
        x = torch.randn(2, layer.before.channels, size, size, dtype=torch.float64)
        w = torch.randn(2, 12, dtype=torch.float64)
        exact = layer_formula(layer, x, w)
        assert_as_good_as_torch(layer(x, w), exact, exact, "layer", floor=10.0)


def test_colours_are_a_plain_linear_map() -> None:
    layer = generator().synthesis.layers()[-1].double()
    channels = layer.before.channels
    x, w = torch.randn(2, channels, 32, 32, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)
    s = layer.affine(w) / math.sqrt(channels) / layer.magnitude_ema.sqrt()
    expected = torch.einsum("oi,ni,nihw->nohw", layer.weight[:, :, 0, 0], s, x) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x, w), expected)


def test_input_waves() -> None:
    """Each of them, at each pixel, from its definition, under a user's transformation and an identity style."""
    source = generator().synthesis.input.double()
    with torch.no_grad():
        source.affine.weight.zero_()
        source.weight.copy_(torch.eye(12) * math.sqrt(12))
        source.transform.copy_(torch.tensor([[1.2, 0.3, 0.1], [-0.2, 0.9, -0.4], [0, 0, 1]]))
    got = source(torch.randn(1, 12, dtype=torch.float64))[0]
    size, rate = source.signal.size, source.signal.rate
    for row, column in [(0, 0), (7, 30), (size - 1, 4)]:
        p = torch.tensor([(column + 0.5 - size / 2) / rate, (row + 0.5 - size / 2) / rate, 1], dtype=torch.float64)
        moved = (source.transform @ p)[:2]
        expected = torch.sin(2 * math.pi * (source.freqs @ moved + source.phases))
        inside = (source.freqs @ source.transform[:2, :2]).norm(dim=1) <= source.signal.cutoff
        assert inside.any()
        torch.testing.assert_close(got[inside, row, column], expected[inside])


def test_waves_beyond_the_band_fade() -> None:
    source = generator().synthesis.input
    source.transform.copy_(torch.diag(torch.tensor([1e3, 1e3, 1.0])))
    assert source(torch.randn(1, 12)).abs().max() == 0


# --- symmetries -------------------------------------------------------------------------------------------------------


def psnr(x: Tensor, y: Tensor) -> float:
    x, y = x.detach(), y.detach()
    return 10 * math.log10((x.max() - x.min()).square() / (x - y).square().mean())


@BOTH
@pytest.mark.parametrize("pixels", [1, 5])
def test_shifting_the_input_shifts_the_image(kind: SynthesisConfig, pixels: int) -> None:
    """Equivariance to translation, by pixels of the image: fractions of pixels for most of the layers."""
    net = generator(kind).double()
    z = torch.randn(1, 8, dtype=torch.float64)
    net.synthesis.input.affine.weight.data.zero_()  # in front of the user's transformation there is the style's
    image = net(z)
    net.synthesis.input.transform[0, 2] = pixels / 32
    assert psnr(image[..., pixels:], net(z)[..., :-pixels]) > 60


def test_mirroring_the_input_mirrors_the_image() -> None:
    """With 1x1 convolutions to the last digit: no layer is off by a pixel. 3x3 kernels are mirrored as well."""
    for kind in (T, R):
        net = generator(kind).double()
        net.synthesis.input.affine.weight.data.zero_()
        z = torch.randn(1, 8, dtype=torch.float64)
        image = net(z)
        net.synthesis.input.transform[0, 0] = -1
        for layer in net.synthesis.layers():
            layer.weight.data = layer.weight.data.flip(3)
        torch.testing.assert_close(net(z), image.flip(3), rtol=1e-10, atol=1e-10)


def test_a_quarter_turn_of_the_input_turns_the_image_of_r() -> None:
    net = generator(R).double()
    net.synthesis.input.affine.weight.data.zero_()
    z = torch.randn(1, 8, dtype=torch.float64)
    image = net(z)
    net.synthesis.input.transform[:2, :2] = torch.tensor([[0.0, 1], [-1, 0]])
    turned = [image.rot90(k, [2, 3]) for k in (1, -1)]
    assert min((net(z) - t).abs().max() for t in turned) < 1e-10


# --- averages, precision, derivatives ---------------------------------------------------------------------------------


def test_averages_move_when_asked_only() -> None:
    net = generator()
    z = torch.randn(4, 8)
    before = {name: x.clone() for name, x in net.named_buffers()}
    net(z)
    assert all(torch.equal(x, before[name]) for name, x in net.named_buffers())
    net(z, update_emas=True)
    moved = {name.rpartition(".")[2] for name, x in net.named_buffers() if not torch.equal(x, before[name])}
    assert moved == {"w_avg", "magnitude_ema"}


def test_magnitudes_settle_where_layers_see_unit_inputs() -> None:
    layer = generator(replace(T, magnitude_ema_beta=0.5)).synthesis.layers()[0]
    x = 3 * torch.randn(2, 12, 36, 36)
    for _ in range(30):
        layer(x, torch.randn(2, 12), update_emas=True)
    torch.testing.assert_close(layer.magnitude_ema, x.square().mean())


def test_layers_in_bfloat16_come_close() -> None:
    net = generator(replace(T, num_half_res=1, half_dtype="bfloat16"))
    assert [layer.half_dtype for layer in net.synthesis.layers()] == [None, *["bfloat16"] * 4]
    z = torch.randn(2, 8)
    image, exact = net(z), net(z, force_fp32=True)
    assert image.dtype == torch.float32
    assert 0 < (image - exact).norm() / exact.norm() < 0.05


@BOTH
def test_gradients_reach_every_parameter(kind: SynthesisConfig) -> None:
    net = generator(kind)
    net(torch.randn(2, 8)).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_gradient_is_that_of_the_image() -> None:
    """Along a random direction of all parameters, against central differences in float64."""
    net = generator(replace(T, num_layers=2, num_critical=1), img_resolution=16).double()
    z = torch.randn(2, 8, dtype=torch.float64)
    parameters = list(net.parameters())
    step = [torch.randn_like(p) for p in parameters]
    grads = torch.autograd.grad(net(z).square().sum(), parameters)
    slope = sum((g * d).sum().item() for g, d in zip(grads, step, strict=True))
    values = []
    for by in (1e-6, -1e-6):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), step, strict=True):
                p.add_(by * d)
            values.append(moved(z).square().sum().item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


# --- what a project does with a network -------------------------------------------------------------------------------


def test_copies_and_states_make_the_same_images() -> None:
    net = generator(R)
    z = torch.randn(2, 8)
    image = net(z)
    assert torch.equal(copy.deepcopy(net)(z), image)
    other = Generator(net.config)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(z), image)


@pytest.mark.parametrize("config", [CONFIG, GeneratorConfig.config_r(64)], ids=["T", "R"])
def test_configs_survive_json(config: GeneratorConfig) -> None:
    assert GeneratorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_compiles_whole() -> None:
    network = generator(replace(T, num_layers=2, num_critical=1), img_resolution=16).synthesis
    ws = torch.randn(2, 4, 12)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ws), network(ws))


def test_signals_run_from_layer_to_layer() -> None:
    layers = generator().synthesis.layers()
    assert all(one.after == next_one.before for one, next_one in pairwise(layers))
    assert all(f"L{k}_{layer.after.size}" in generator().synthesis.layer_names[k] for k, layer in enumerate(layers))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: generator(img_resolution=24), "power of two from 8, got 24"),
        (lambda: generator(replace(T, num_critical=4)), "num_critical from 0 to below num_layers"),
        (lambda: generator().synthesis(torch.randn(2, 5, 12)), r"ws of shape \(N, 6, 12\), got \(2, 5, 12\)"),
        (lambda: generator()(torch.randn(2, 7)), r"z of shape \(N, 8\)"),
    ],
)
def test_says_what_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
