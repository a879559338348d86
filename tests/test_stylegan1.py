"""The first StyleGAN: its published size, a second formula for its images, growth, styles, derivatives."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvfx.models.gan.networks import mix_styles
from fastvfx.models.pggan import Growth
from fastvfx.models.stylegan1 import Generator, GeneratorConfig, SynthesisConfig, adaptive_instance_norm
from fastvfx.models.stylegan2 import MappingConfig

CONFIG = GeneratorConfig(8, 0, 12, 16, 3, MappingConfig(num_layers=2), SynthesisConfig(channel_base=64, channel_max=8))
STATES = [Growth(4), Growth(8, 0.25), Growth(8), Growth(16, 0.5), Growth(16)]


def stirred(config: GeneratorConfig = CONFIG) -> Generator:
    """Biases and noise strengths start at 0, the constant at 1, and would hide mistakes."""
    generator = Generator(config).double()
    with torch.no_grad():
        for name, x in generator.named_parameters():
            if name.endswith(("bias", "noise_strength", "const")):
                x.add_(0.3 * torch.randn_like(x))
    return generator


def test_size_of_the_published_network() -> None:
    """26.2 million parameters at 1024x1024 (section 2 of the paper)."""
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(img_resolution=1024))
    at_one_time = [p for name, p in generator.named_parameters() if "rgb" not in name or "rgb1024" in name]
    assert sum(p.numel() for p in at_one_time) == pytest.approx(26.2e6, rel=2e-3)
    assert generator.num_ws == 18


def test_instance_norm() -> None:
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    scale, shift = torch.randn(2, 2, 3, dtype=torch.float64)
    y = adaptive_instance_norm(x, scale, shift)
    torch.testing.assert_close(y.mean((2, 3)), shift)
    torch.testing.assert_close(y.std((2, 3), correction=0), scale.abs())
    expected = F.instance_norm(x, eps=1e-8) * scale[..., None, None] + shift[..., None, None]
    torch.testing.assert_close(y, expected)
    constant = torch.full((1, 1, 3, 3), 7.0)
    assert torch.equal(adaptive_instance_norm(constant, torch.ones(1, 1), torch.ones(1, 1)), torch.ones(1, 1, 3, 3))


def by_hand(generator: Generator, ws: Tensor) -> Tensor:
    """The images of constant noise, from torch's own convolutions, blur and normalisation."""
    p = dict(generator.synthesis.named_parameters()) | dict(generator.synthesis.named_buffers())
    blur = torch.tensor([1.0, 2, 1], dtype=torch.float64)
    blur = (blur[:, None] * blur / 16).expand(p["b4.const"].shape[1], 1, 3, 3)

    def conv(x: Tensor, name: str) -> Tensor:
        w = p[name]
        return F.conv2d(x, w / w[0].numel() ** 0.5, padding=w.shape[2] // 2)

    def styled(x: Tensor, name: str, w: Tensor) -> Tensor:
        x = x + p[name + ".noise_const"] * p[name + ".noise_strength"][:, None, None] + p[name + ".bias"][:, None, None]
        weight = p[name + ".affine.weight"]
        scale, shift = (w @ weight.T / weight.shape[1] ** 0.5 + p[name + ".affine.bias"]).chunk(2, 1)
        x = F.instance_norm(F.leaky_relu(x, 0.2) * 2**0.5, eps=1e-8)
        return x * (scale + 1)[..., None, None] + shift[..., None, None]

    x = styled(p["b4.const"].expand(len(ws), -1, -1, -1), "b4.style0", ws[:, 0])
    x = styled(conv(x, "b4.conv1.weight"), "b4.style1", ws[:, 1])
    for k, r in enumerate((8, 16)):
        w = p[f"b{r}.conv0.weight"]
        # Zeros between the pixels, the convolution (the kernel as it is: convolved, not correlated), the blur.
        sparse = F.conv_transpose2d(x, (w / w[0].numel() ** 0.5).transpose(0, 1), stride=2)
        x = F.conv2d(sparse, 4 * blur[: w.shape[0]], groups=w.shape[0], padding=1)[..., :-1, :-1]
        x = styled(x, f"b{r}.style0", ws[:, 2 * k + 2])
        x = styled(conv(x, f"b{r}.conv1.weight"), f"b{r}.style1", ws[:, 2 * k + 3])
    return conv(x, "rgb16.weight") + p["rgb16.bias"][:, None, None]


def test_images_by_a_second_formula() -> None:
    generator = stirred()
    ws = torch.randn(2, generator.num_ws, 12, dtype=torch.float64)
    torch.testing.assert_close(generator.synthesis(ws, noise_mode="const"), by_hand(generator, ws))


@pytest.mark.parametrize("growth", STATES, ids=str)
def test_every_state_trains_its_own_layers(growth: Growth) -> None:
    generator = stirred()
    generator.growth = growth
    images = generator(torch.randn(4, 8))
    assert images.shape == (4, 3, growth.resolution, growth.resolution)
    images.square().sum().backward()
    rgbs = {growth.resolution, growth.resolution // 2} if growth.fades else {growth.resolution}
    trained = {name.split(".")[0] for name, p in generator.synthesis.named_parameters() if p.grad is not None}
    assert trained == {f"b{r}" for r in (4, 8, 16) if r <= growth.resolution} | {f"rgb{r}" for r in rgbs}
    assert all(p.grad is not None and p.grad.any() for p in generator.mapping.parameters())


def test_new_layers_come_in_gradually() -> None:
    generator = stirred()
    ws = torch.randn(2, generator.num_ws, 12)
    images = {}
    for growth in (Growth(8), Growth(16, 0.0), Growth(16, 0.25), Growth(16)):
        generator.growth = growth
        images[growth] = generator.synthesis(ws, noise_mode="const")
    nothing, part, whole = (images[Growth(16, a)] for a in (0.0, 0.25, 1.0))
    torch.testing.assert_close(nothing, F.interpolate(images[Growth(8)], scale_factor=2))
    torch.testing.assert_close(part, 0.75 * nothing + 0.25 * whole)


def test_styles_are_mixed_where_they_count() -> None:
    """Styles of layers to come would not change the image."""
    generator = Generator(CONFIG)
    generator.growth = Growth(8)
    assert generator.styles_in_use == 4
    z = torch.randn(64, 8)
    ws = generator.mapping(z)
    mixed = mix_styles(generator, ws, -z, None, 1.0)
    starts = {int(row.int().argmax()) for row in (mixed == generator.mapping(-z)).all(2)}
    assert starts == {1, 2, 3}
    generator.growth = Growth(16)
    assert generator.styles_in_use == generator.num_ws == 6


def test_noise() -> None:
    generator = stirred()
    ws = torch.randn(2, generator.num_ws, 12)
    assert torch.equal(generator.synthesis(ws, "const"), generator.synthesis(ws, "const"))
    assert not torch.equal(generator.synthesis(ws, "random"), generator.synthesis(ws, "random"))
    assert not torch.equal(generator.synthesis(ws, "none"), generator.synthesis(ws, "const"))
    silent = stirred(replace(CONFIG, synthesis=replace(CONFIG.synthesis, use_noise=False)))
    assert torch.equal(silent.synthesis(ws, "random"), silent.synthesis(ws, "none"))


def test_path_lengths_can_be_differentiated() -> None:
    """A penalty of the gradient to styles, against central differences along a random direction."""
    generator = stirred()
    ws = torch.randn(2, generator.num_ws, 12, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def penalty(net: Generator) -> Tensor:
        images = net.synthesis(ws, noise_mode="const")
        (grad,) = torch.autograd.grad((images * direction).sum(), ws, create_graph=True)
        return grad.square().sum()

    names, parameters = zip(*generator.synthesis.named_parameters(), strict=True)
    grads = torch.autograd.grad(penalty(generator), parameters, allow_unused=True)
    step = [torch.randn_like(p) for p in parameters]
    slope = sum((g * d).sum().item() for g, d in zip(grads, step, strict=True) if g is not None)
    values = []
    for by in (1e-6, -1e-6):
        moved = copy.deepcopy(generator)
        with torch.no_grad():
            for name, d in zip(names, step, strict=True):
                moved.synthesis.get_parameter(name).add_(by * d)
        values.append(penalty(moved).item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_states_and_configs_travel() -> None:
    generator = Generator(CONFIG)
    other = Generator(GeneratorConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))))
    other.load_state_dict(generator.state_dict())
    z = torch.randn(2, 8)
    assert torch.equal(other(z, noise_mode="const"), generator(z, noise_mode="const"))
    assert torch.equal(copy.deepcopy(generator)(z, noise_mode="const"), generator(z, noise_mode="const"))


def test_bad_arguments() -> None:
    generator = Generator(CONFIG)
    ws = torch.randn(2, 6, 12)
    with pytest.raises(ValueError, match=r"expected ws of shape \(N, 6, 12\), got \(2, 5, 12\)"):
        generator.synthesis(ws[:, :5])
    with pytest.raises(ValueError, match="expected noise_mode to be one of random, const, none, got 'loud'"):
        generator.synthesis(ws, "loud")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected img_resolution to be a power of two from 8, got 24"):
        Generator(replace(CONFIG, img_resolution=24))
    generator.growth = Growth(32)
    with pytest.raises(ValueError, match="expected a power of two from 4 to 16"):
        generator.synthesis(ws)
