"""DCGAN's generator and the spectrally normalised discriminator."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastvfx.models.dcgan import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig

CONFIG = GeneratorConfig(z_dim=8, img_resolution=16, channel_base=128, channel_max=16)
D_CONFIG = DiscriminatorConfig(img_resolution=16, channel_base=128, channel_max=16)


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [layer.weight for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("resolution", [8, 16, 32])
@pytest.mark.parametrize("normalization", ["spectral", "batch", "none"])
def test_images_and_logits(resolution: int, normalization: str) -> None:
    generator = Generator(replace(CONFIG, img_resolution=resolution))
    images = generator(torch.randn(4, 8))
    assert images.shape == (4, 3, resolution, resolution) and images.abs().max() <= 1
    config = replace(D_CONFIG, img_resolution=resolution, normalization=normalization)  # type: ignore[arg-type]
    logits = Discriminator(config)(images)
    assert logits.shape == (4, 1)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in generator.parameters())


def test_weights_have_a_spectral_norm_of_one() -> None:
    net = Discriminator(D_CONFIG)
    for _ in range(300):  # power iteration is slow where two singular values are close
        net(torch.randn(1, 3, 16, 16))
    norms = [torch.linalg.matrix_norm(w.flatten(1), 2).item() for w in weights(net)]
    assert norms == pytest.approx([1.0] * len(norms), rel=5e-3)


def test_only_training_moves_the_estimates() -> None:
    net = Discriminator(D_CONFIG)
    net(torch.randn(1, 3, 16, 16))
    net.eval()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    net(torch.randn(1, 3, 16, 16))
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


def test_penalties_can_be_differentiated() -> None:
    """The gradient's norm, differentiated through the spectral norm, against central differences in float64."""
    net = Discriminator(D_CONFIG).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)

    def penalty(net: Discriminator) -> torch.Tensor:
        (grad,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return grad.square().sum()

    step = [torch.randn_like(p) * p.abs().mean() for p in net.parameters()]
    grads = torch.autograd.grad(penalty(net), list(net.parameters()), allow_unused=True)
    slope = sum((g * d).sum().item() for g, d in zip(grads, step, strict=True) if g is not None)
    values = []
    for by in (1e-5, -1e-5):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), step, strict=True):
                p.add_(by * d)
        values.append(penalty(moved).item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_states_and_configs_travel() -> None:
    net = Discriminator(D_CONFIG)
    net(torch.randn(1, 3, 16, 16))
    net.eval()
    other = Discriminator(DiscriminatorConfig.from_dict(json.loads(json.dumps(D_CONFIG.to_dict())))).eval()
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(other(x), net(x))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"img of shape \(N, 3, 16, 16\)"):
        Discriminator(D_CONFIG)(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"z of shape \(N, 8\)"):
        Generator(CONFIG)(torch.randn(1, 7))
    with pytest.raises(ValueError, match="c to be None"):
        Generator(CONFIG)(torch.randn(1, 8), torch.eye(1))
    with pytest.raises(ValueError, match="one of spectral, batch, none, got 'layer'"):
        Discriminator(replace(D_CONFIG, normalization="layer"))  # type: ignore[arg-type]
