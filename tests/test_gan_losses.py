"""Losses of generators and discriminators against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastvfx.models.gan.losses import (
    PathLength,
    between,
    clip_weights,
    discriminator_loss,
    drift,
    generator_loss,
    gradient_penalty,
    path_lengths,
)

REAL, FAKE = torch.tensor([[0.5], [2.0]]), torch.tensor([[-1.0], [0.25]])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("kind", "discriminator", "generator"),
    [
        (
            "logistic",
            (softplus(-0.5) + softplus(-2)) / 2 + (softplus(-1) + softplus(0.25)) / 2,
            (softplus(1) + softplus(-0.25)) / 2,
        ),
        ("wasserstein", -0.375 - 1.25, 0.375),
        ("hinge", (0.5 + 0) / 2 + (0 + 1.25) / 2, 0.375),
        ("relativistic", (softplus(-1.5) + softplus(-1.75)) / 2, (softplus(1.5) + softplus(1.75)) / 2),
    ],
)
def test_adversarial(kind: str, discriminator: float, generator: float) -> None:
    assert float(discriminator_loss(kind, REAL, FAKE)) == pytest.approx(discriminator, rel=1e-5)  # type: ignore[arg-type]
    assert float(generator_loss(kind, FAKE, REAL)) == pytest.approx(generator, rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["logistic", "relativistic"])
def test_large_logits_stay_finite(kind: str) -> None:
    real, fake = torch.tensor([-1e4]), torch.tensor([1e4])
    assert math.isfinite(float(discriminator_loss(kind, real, fake)))  # type: ignore[arg-type]


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"expected one of logistic, .*, got 'lsgan'"):
        discriminator_loss("lsgan", REAL, FAKE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'lsgan'"):
        generator_loss("lsgan", FAKE)  # type: ignore[arg-type]


def test_relativistic_wants_pairs() -> None:
    with pytest.raises(ValueError, match="as many photographs as generated images"):
        generator_loss("relativistic", FAKE)
    with pytest.raises(ValueError, match="as many photographs as generated images"):
        discriminator_loss("relativistic", REAL, FAKE[:1])


def test_drift() -> None:
    assert float(drift(REAL)) == pytest.approx((0.25 + 4) / 2)


def test_gradient_penalty_of_a_linear_discriminator() -> None:
    """D(x) = w·x has gradient w everywhere."""
    w = torch.tensor([3.0, -4.0], requires_grad=True)
    x = torch.randn(5, 2, requires_grad=True)
    assert gradient_penalty(x @ w, x).item() == pytest.approx(25)
    assert gradient_penalty(x @ w, x, target=1).item() == pytest.approx(16)
    gradient_penalty(x @ w, x).backward()
    assert torch.allclose(w.grad, 2 * w.detach())  # type: ignore[arg-type]


def test_gradient_penalty_of_a_quadratic_discriminator() -> None:
    """D(x) = |x|²/2 has gradient x."""
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = x.square().flatten(1).sum(1) / 2
    norms = x.detach().flatten(1).norm(dim=1)
    assert gradient_penalty(logits, x).item() == pytest.approx(norms.square().mean().item())
    assert gradient_penalty(logits, x, target=1).item() == pytest.approx((norms - 1).square().mean().item())


def test_gradient_penalty_where_the_gradient_is_zero() -> None:
    w = torch.zeros(2, requires_grad=True)
    x = torch.randn(5, 2, requires_grad=True)
    penalty = gradient_penalty(x @ w, x, target=1)
    penalty.backward()
    assert penalty.item() == 1 and bool(torch.isfinite(w.grad).all())  # type: ignore[arg-type]


def test_between_lies_on_the_line() -> None:
    real, fake = torch.ones(64, 3, 2, 2), torch.zeros(64, 3, 2, 2)
    x = between(real, fake)
    assert x.requires_grad and bool((x == x[:, :1, :1, :1]).all())
    assert 0 <= x.min().item() < 0.2 and 0.8 < x.max().item() <= 1


def test_clip_weights() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[5.0, float("nan")]]))
        layer.bias.fill_(-0.001)
    clip_weights(layer, 0.01)
    assert layer.weight[0, 0].item() == pytest.approx(0.01) and layer.bias.item() == pytest.approx(-0.001)
    assert math.isnan(layer.weight[0, 1].item())


def test_path_length_of_a_linear_generator() -> None:
    """y = A w repeated over layers: E l² = |A|² / (layers H W) for each layer's share, exactly on average."""
    layers, dim, size = 3, 4, 8
    a = torch.randn(3 * size * size, dim, dtype=torch.float64)
    ws = torch.randn(2000, layers, dim, dtype=torch.float64, requires_grad=True)
    images = (ws.sum(1) @ a.T).reshape(-1, 3, size, size)
    # ∂(y·n)/∂w of each layer is Aᵀ n, so l² = |Aᵀ n|² and its mean |A|² / (H W).
    squares = path_lengths(images, ws).square()
    assert squares.mean().item() == pytest.approx((a.square().sum() / size**2).item(), rel=0.05)


def test_path_length_average_follows() -> None:
    """With lengths that are always L: a after k steps is L (1 - 0.9^k), the penalty (L - a)²."""
    penalty = PathLength(decay=0.1).double()
    for k in range(1, 4):
        torch.manual_seed(0)
        ws = torch.ones(2, 1, 1, dtype=torch.float64, requires_grad=True)
        images = ws.reshape(2, 1, 1, 1) * torch.ones(2, 1, 4, 4, dtype=torch.float64)
        torch.manual_seed(0)
        length = path_lengths(images, ws).detach()
        torch.manual_seed(0)
        value = penalty(images, ws)
        assert penalty.mean.item() == pytest.approx(length.mean().item() * (1 - 0.9**k))
        assert value.item() == pytest.approx((length - penalty.mean).square().mean().item())


def test_path_length_reaches_the_weights() -> None:
    weight = torch.randn(3, 5, requires_grad=True)
    ws = torch.randn(2, 2, 5, requires_grad=True)
    images = (ws.mean(1) @ weight.T).tanh()[:, :, None, None].expand(2, 3, 4, 4)
    PathLength()(images, ws).backward()
    assert weight.grad is not None and float(weight.grad.abs().sum()) > 0
