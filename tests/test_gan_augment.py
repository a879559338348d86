"""Augmentation: what each change does to pixels, derivatives, and the probability that adapts."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from fastvfx.models.gan.augment import (
    AdaptiveProbability,
    Augment,
    AugmentConfig,
    colors,
    geometry,
    recolor,
    turn,
    warp,
)

CHANGES = [f.name for f in fields(AugmentConfig) if f.default == 1.0 and not f.name.endswith("_std")]


def only(*names: str, p: float = 1.0, **more: float) -> AugmentConfig:
    """A configuration in which nothing else happens."""
    return AugmentConfig(p=p, **({name: float(name in names) for name in CHANGES} | more))  # type: ignore[arg-type]


def filter_of(config: AugmentConfig | None = None) -> torch.Tensor:
    return Augment(config).filter


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(8, 3, 16, 16) * 2 - 1


def test_there_are_twelve_changes() -> None:
    assert len(CHANGES) == 12


def test_nothing_happens_at_zero(images: torch.Tensor) -> None:
    assert Augment()(images) is images


def test_the_filter_is_orthonormal() -> None:
    """Σ h = √2, Σ h_k h_{k+2m} = δ_m: what the name sym6 promises."""
    f = filter_of().double()  # normalised to a sum of 1, so h = √2 f
    h = math.sqrt(2) * f
    for m in range(6):
        expected = 1.0 if m == 0 else 0.0
        assert float((h[: len(h) - 2 * m] * h[2 * m :]).sum()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("mirrored", "quarters"), [(m, q) for m in (False, True) for q in range(4)])
def test_turn_is_exact(images: torch.Tensor, mirrored: bool, quarters: int) -> None:
    out = turn(images, torch.full((8,), mirrored), torch.full((8,), quarters))
    expected = (images.flip(3) if mirrored else images).rot90(quarters, (2, 3))
    assert torch.equal(out, expected)


def test_mirror_and_quarter_turns_reach_all_eight(images: torch.Tensor) -> None:
    one = images[:1].expand(256, -1, -1, -1)
    out = Augment(only("xflip", "rotate90"))(one)
    assert len({tuple(x.flatten().tolist()) for x in out}) == 8


def test_quarter_turns_want_squares() -> None:
    with pytest.raises(ValueError, match="expected square images for quarter turns"):
        Augment(only("rotate90"))(torch.zeros(64, 3, 8, 16))


def test_whole_pixels_shift_exactly(images: torch.Tensor) -> None:
    """Doubling and halving the resolution by an orthonormal filter gives back every pixel."""
    back = torch.eye(3).repeat(8, 1, 1)
    back[:, 0, 2], back[:, 1, 2] = -2, 3  # the new image's pixel (x, y) is the old one's (x - 2, y + 3)
    out = warp(images, back, filter_of())
    assert torch.allclose(out[:, :, :-3, 2:], images[:, :, 3:, :-2], atol=1e-5)


def test_integer_shifts_are_integers_and_small() -> None:
    back = geometry(only("xint"), 1.0, 1000, 16, 16)
    assert torch.equal(back[:, :2, 2], back[:, :2, 2].round()) and float(back[:, :2, 2].abs().max()) == 2


def test_rotation_agrees_with_an_image_that_can_be_rotated() -> None:
    """A smooth function of the place, turned and zoomed, is that function of the place the matrix names."""
    at = torch.arange(32) - 15.5
    y, x = torch.meshgrid(at, at, indexing="ij")
    place = torch.stack([x, y, torch.ones_like(x)])  # (3, H, W)

    def scene(p: torch.Tensor) -> torch.Tensor:
        return torch.sin(0.2 * p[0] + 0.1 * p[1])

    angle, zoom, shift = 0.4, 1.3, torch.tensor([1.3, -0.7])
    back = torch.eye(3)
    back[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / zoom
    back[:2, 2] = shift
    out = warp(scene(place).expand(1, 3, 32, 32), back[None], filter_of())[0, 0]
    expected = scene(torch.einsum("ij,jhw->ihw", back, place))
    inside = slice(8, 24)
    assert torch.allclose(out[inside, inside], expected[inside, inside], atol=0.003)


def test_far_shifts_mirror_instead_of_leaving_holes() -> None:
    back = torch.eye(3).repeat(1, 1, 1)
    back[:, 0, 2] = 70
    out = warp(torch.ones(1, 3, 16, 16), back, filter_of())
    assert torch.allclose(out, torch.ones(1, 3, 16, 16), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ("brightness", lambda m: torch.allclose(m[:, :3, :3], torch.eye(3).expand(64, 3, 3))),
        ("contrast", lambda m: bool((m[:, 0, 0] > 0).all()) and torch.allclose(m[:, 0, 1], torch.zeros(64), atol=1e-6)),
        # a mirror at the plane of equal luma, twice, is nothing
        ("lumaflip", lambda m: torch.allclose(m @ m, torch.eye(4).expand(64, 4, 4), atol=1e-6)),
        ("hue", lambda m: torch.allclose(torch.linalg.det(m), torch.ones(64), atol=1e-5)),
        ("saturation", lambda m: torch.allclose(m[:, :3, :3].sum(2), torch.ones(64, 3), atol=1e-5)),
    ],
)
def test_colors(change: str, holds) -> None:
    m = colors(only(change), 1.0, 64)
    assert holds(m) and torch.equal(m[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(64, 4))
    assert not torch.allclose(m, torch.eye(4).expand(64, 4, 4))


def test_hue_keeps_greys() -> None:
    gray = torch.full((4, 3, 2, 2), 0.3)
    assert torch.allclose(recolor(gray, colors(only("hue", "saturation"), 1.0, 4)), gray, atol=1e-6)


@pytest.mark.parametrize("change", CHANGES)
def test_how_often(change: str) -> None:
    """A change happens to p of the images, each on its own."""
    n, p = 4000, 0.3
    config = only(change, p=p)
    if change in ("xflip", "rotate90"):
        same = (Augment(config)(torch.rand(1, 3, 4, 4).expand(n, -1, -1, -1)) == 0).flatten(1)
        out = Augment(config)(torch.arange(48.0).reshape(1, 3, 4, 4).expand(n, -1, -1, -1))
        same = (out == out.new_tensor(range(48)).reshape(3, 4, 4)).flatten(1).all(1)
        p *= 0.5 if change == "xflip" else 0.75  # among the choices is to do nothing
    elif change in ("brightness", "contrast", "lumaflip", "hue", "saturation"):
        same = (colors(config, p, n) - torch.eye(4)).abs().flatten(1).amax(1) < 1e-6
        p *= 0.5 if change == "lumaflip" else 1
    else:
        same = (geometry(config, p, n, 256, 256) - torch.eye(3)).abs().flatten(1).amax(1) < 1e-6
    assert 1 - float(same.float().mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n) + 0.005)


def test_second_derivative() -> None:
    """What R1 of augmented images needs."""
    x = torch.rand(1, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    augment = Augment(AugmentConfig(p=0.8)).double()

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return augment(x).square().sum()

    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)


def test_colour_images_only() -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \(N, 3, H, W\)"):
        Augment()(torch.zeros(2, 1, 8, 8))


# --- adaptive probability -------------------------------------------------------------------------------------------


def test_probability_follows_the_sign() -> None:
    control = AdaptiveProbability(Augment(AugmentConfig(kimg=1)))
    control.observe(torch.tensor([[1.0], [2.0], [3.0], [-1.0]]))  # r = 0.5 < 0.6
    control.update(100)
    assert control.r == 0.5 and control.augment.p == 0
    control.observe(torch.ones(4, 1))
    control.update(100)
    assert control.r == 1 and control.augment.p == pytest.approx(0.1)
    for _ in range(20):
        control.observe(torch.ones(4, 1))
        control.update(100)
    assert control.augment.p == 1
    control.observe(-torch.ones(4, 1))
    control.update(250)
    assert control.augment.p == pytest.approx(0.75)


def test_fixed_probability() -> None:
    control = AdaptiveProbability(Augment(AugmentConfig(p=0.3, target=None)))
    control.observe(torch.ones(4, 1))
    control.update(10**6)
    assert control.augment.p == 0.3
