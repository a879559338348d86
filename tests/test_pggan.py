"""Progressive growing: what every state computes, when it changes, and that growth is smooth."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastvfx.models.pggan import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    Growth,
    GrowthSchedule,
)

CONFIG = GeneratorConfig(z_dim=8, img_resolution=16, channel_base=64, channel_max=8)
D_CONFIG = DiscriminatorConfig(img_resolution=16, channel_base=64, channel_max=8)
STATES = [Growth(4), Growth(8, 0.0), Growth(8, 0.25), Growth(8), Growth(16, 0.5), Growth(16)]


def pair(growth: Growth) -> tuple[Generator, Discriminator]:
    generator, discriminator = Generator(CONFIG), Discriminator(D_CONFIG)
    generator.growth = discriminator.growth = growth
    return generator, discriminator


# --- networks ---------------------------------------------------------------------------------------------------------


def test_sizes_of_the_published_networks() -> None:
    """23.1 million parameters each at 1024x1024 (table 2 of the paper)."""
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(img_resolution=1024))
        discriminator = Discriminator(DiscriminatorConfig(img_resolution=1024))
    at_one_time = [p for name, p in generator.named_parameters() if "rgb" not in name or "rgb1024" in name]
    assert sum(p.numel() for p in at_one_time) == pytest.approx(23.1e6, rel=2e-3)
    at_one_time = [p for name, p in discriminator.named_parameters() if "rgb" not in name or "rgb1024" in name]
    assert sum(p.numel() for p in at_one_time) == pytest.approx(23.1e6, rel=2e-3)


@pytest.mark.parametrize("growth", STATES, ids=str)
def test_every_state_trains_its_own_layers(growth: Growth) -> None:
    generator, discriminator = pair(growth)
    images = generator(torch.randn(4, 8))
    assert images.shape == (4, 3, growth.resolution, growth.resolution)
    logits = discriminator(images)
    assert logits.shape == (4, 1)
    logits.sum().backward()
    rgbs = {growth.resolution, growth.resolution // 2} if growth.fades else {growth.resolution}
    for net in (generator, discriminator):
        trained = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
        blocks = {f"b{r}" for r in (4, 8, 16) if r <= growth.resolution}
        assert trained == blocks | {f"rgb{r}" for r in rgbs}


def test_new_layers_come_in_gradually() -> None:
    """At alpha 0 the image is the smaller one, enlarged; in between it is a blend of the two ends."""
    generator, _ = pair(Growth(8))
    z = torch.randn(2, 8)
    small = generator(z)
    generator.growth = Growth(16, 0.0)
    nothing = generator(z)
    torch.testing.assert_close(nothing, F.interpolate(small, scale_factor=2))
    generator.growth = Growth(16)
    full = generator(z)
    generator.growth = Growth(16, 0.25)
    torch.testing.assert_close(generator(z), 0.75 * nothing + 0.25 * full)


def test_verdicts_do_not_jump_when_the_discriminator_grows() -> None:
    _, discriminator = pair(Growth(8))
    images = torch.randn(4, 3, 8, 8)
    before = discriminator(images)
    discriminator.growth = Growth(16, 0.0)
    torch.testing.assert_close(discriminator(F.interpolate(images, scale_factor=2)), before)


def test_pixels_are_normalised() -> None:
    generator, _ = pair(Growth(16))
    x = generator.get_submodule("b8")(generator.get_submodule("b4")(torch.randn(2, 8)))
    torch.testing.assert_close(x.square().mean(1), torch.ones(2, 8, 8), rtol=1e-3, atol=1e-3)
    z = torch.randn(2, 8)
    torch.testing.assert_close(generator(z), generator(10 * z), rtol=1e-4, atol=1e-5)


def test_smoother_filters() -> None:
    taps = {"resample_filter": (1, 2, 1)}
    generator, discriminator = Generator(replace(CONFIG, **taps)), Discriminator(replace(D_CONFIG, **taps))
    assert discriminator(generator(torch.randn(4, 8))).shape == (4, 1)


def test_penalties_can_be_differentiated() -> None:
    """The gradient penalty of WGAN-GP, against central differences along a random direction, in float64."""
    _, discriminator = pair(Growth(16, 0.5))
    discriminator.double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)

    def penalty(net: Discriminator) -> torch.Tensor:
        (grad,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return (grad.flatten(1).norm(dim=1) - 1).square().sum()

    step = [torch.randn_like(p) for p in discriminator.parameters()]
    grads = torch.autograd.grad(penalty(discriminator), list(discriminator.parameters()), allow_unused=True)
    slope = sum((g * d).sum().item() for g, d in zip(grads, step, strict=True) if g is not None)
    values = []
    for by in (1e-6, -1e-6):
        moved = copy.deepcopy(discriminator)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), step, strict=True):
                p.add_(by * d)
        values.append(penalty(moved).item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_states_and_configs_travel() -> None:
    generator, _ = pair(Growth(16))
    other = Generator(GeneratorConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))))
    other.load_state_dict(generator.state_dict())
    z = torch.randn(2, 8)
    assert torch.equal(other(z), generator(z))
    assert torch.equal(copy.deepcopy(generator)(z), generator(z))


# --- growth -----------------------------------------------------------------------------------------------------------


def test_schedule() -> None:
    """A hundred images at each resolution, and fifty between them."""
    schedule = GrowthSchedule(16, stable_images=100, fade_images=50)
    expected = {
        0: Growth(4),
        99: Growth(4),
        100: Growth(8, 0.0),
        125: Growth(8, 0.5),
        150: Growth(8),
        249: Growth(8),
        275: Growth(16, 0.5),
        300: Growth(16),
        10_000: Growth(16),
    }
    assert {images: schedule.at(images) for images in expected} == expected
    assert schedule.grown_after == 300
    assert GrowthSchedule(16, 8, 100, 0).at(100) == Growth(16)


def test_photographs_are_seen_as_the_state_can_make_them() -> None:
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(Growth(4).images(x), F.avg_pool2d(x, 4))
    torch.testing.assert_close(Growth(16).images(x), x)
    coarse = F.interpolate(F.avg_pool2d(x, 4), scale_factor=2)
    torch.testing.assert_close(Growth(8, 0.0).images(x), coarse)
    torch.testing.assert_close(Growth(8, 0.75).images(x), 0.25 * coarse + 0.75 * F.avg_pool2d(x, 2))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: pair(Growth(32))[0](torch.randn(1, 8)), "power of two from 4 to 16"),
        (lambda: pair(Growth(8, 1.5))[0](torch.randn(1, 8)), r"alpha in \[0, 1\]"),
        (lambda: pair(Growth(8))[1](torch.randn(4, 3, 16, 16)), r"img of shape \(N, 3, 8, 8\)"),
        (lambda: pair(Growth(8))[0](torch.randn(4, 9)), r"z of shape \(N, 8\)"),
        (lambda: pair(Growth(8))[0](torch.randn(4, 8), torch.eye(4)), "c to be None"),
        (lambda: Growth(8).images(torch.randn(1, 3, 12, 12)), "square images"),
        (lambda: GrowthSchedule(16, stable_images=0, fade_images=0), "not both 0"),
        (lambda: GrowthSchedule(24), "power of two"),
    ],
)
def test_says_what_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
