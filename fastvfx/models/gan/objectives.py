"""What one update of a network minimises: the terms of a :class:`LossConfig`, evaluated on a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .config import LossConfig
from .losses import PathLength, between, discriminator_loss, drift, generator_loss, gradient_penalty
from .networks import has_styles, mix_styles

#: Images, and labels or None, to logits (N, 1); augmentation included.
Judge = Callable[[Tensor, Tensor | None], Tensor]
Terms = dict[str, Tensor]


def generate(
    generator: Any, z: Tensor, c: Tensor | None, mixing: float = 0.0, update_averages: bool = False, **options: Any
) -> Tensor:
    """Images from latents, as in training.

    Args:
        generator: of any family.
        z, c: latents (N, z_dim); labels (N, c_dim) or ``None``.
        mixing: probability of style mixing.
        update_averages: let StyleGANs take their styles into the average of w.
        options: of generators that grow.
    """
    if not has_styles(generator):
        return generator(z, c, **options)
    ws = generator.mapping(z, c, update_emas=update_averages)
    if mixing > 0:
        ws = mix_styles(generator, ws, torch.randn_like(z), c, mixing)
    return generator.synthesis(ws, update_emas=update_averages)


def discriminator_terms(
    loss: LossConfig, judge: Judge, real: Tensor, fake: Tensor, real_c: Tensor | None, fake_c: Tensor | None
) -> tuple[Terms, Tensor]:
    """The terms of every step.

    Args:
        loss: their weights.
        judge: the discriminator.
        real, fake: images (N, C, H, W); the generated ones without a graph behind them.
        real_c, fake_c: their labels.

    Returns:
        Weighted terms, to be summed, and the logits of photographs.
    """
    every_step = loss.discriminator_every == 1
    real_in = real.detach().requires_grad_(every_step and loss.r1_gamma > 0)
    fake_in = fake.detach().requires_grad_(every_step and loss.r2_gamma > 0)
    real_logits, fake_logits = judge(real_in, real_c), judge(fake_in, fake_c)
    terms = {"loss_d": discriminator_loss(loss.kind, real_logits, fake_logits)}
    if loss.drift > 0:
        terms["drift"] = loss.drift * drift(real_logits)
    if real_in.requires_grad:
        terms["r1"] = loss.r1_gamma / 2 * gradient_penalty(real_logits, real_in)
    if fake_in.requires_grad:
        terms["r2"] = loss.r2_gamma / 2 * gradient_penalty(fake_logits, fake_in)
    if loss.gradient_penalty > 0:
        middle = between(real, fake)
        # Gulrajani et al. leave open what the label of an image in between is: it is that of its photograph.
        terms["gradient_penalty"] = loss.gradient_penalty * gradient_penalty(judge(middle, real_c), middle, target=1)
    return terms, real_logits


def discriminator_penalties(
    loss: LossConfig, judge: Judge, real: Tensor, fake: Tensor | None, real_c: Tensor | None, fake_c: Tensor | None
) -> Terms:
    """The terms of every ``loss.discriminator_every``-th step, as many times as heavy. Arguments as above."""
    terms = {}
    if loss.r1_gamma > 0:
        real = real.detach().requires_grad_()
        terms["r1"] = loss.r1_gamma / 2 * gradient_penalty(judge(real, real_c), real)
    if loss.r2_gamma > 0 and fake is not None:
        fake = fake.detach().requires_grad_()
        terms["r2"] = loss.r2_gamma / 2 * gradient_penalty(judge(fake, fake_c), fake)
    return {name: term * loss.discriminator_every for name, term in terms.items()}


def generator_terms(
    loss: LossConfig, judge: Judge, fake: Tensor, fake_c: Tensor | None, real: Tensor | None, real_c: Tensor | None
) -> Terms:
    """The adversarial term; photographs are for relativistic losses only."""
    real_logits = None
    if loss.kind == "relativistic" and real is not None:
        with torch.no_grad():
            real_logits = judge(real, real_c)
    return {"loss_g": generator_loss(loss.kind, judge(fake, fake_c), real_logits)}


def path_length_terms(loss: LossConfig, generator: Any, path_length: PathLength, z: Tensor, c: Tensor | None) -> Terms:
    """The penalty of every ``loss.generator_every``-th step, as many times as heavy.

    Args:
        loss: its weight.
        generator: one with styles.
        path_length: keeps the average.
        z, c: latents and labels of a whole batch, of which a part is used.
    """
    n = max(1, len(z) // loss.path_length_shrink)
    z, c = z[:n], None if c is None else c[:n]
    ws = generator.mapping(z, c)
    if loss.style_mixing > 0:
        ws = mix_styles(generator, ws, torch.randn_like(z), c, loss.style_mixing)
    penalty = path_length(generator.synthesis(ws), ws)
    return {"path_length": loss.path_length * loss.generator_every * penalty}


class frozen:
    """``with frozen(network):`` its parameters get no gradients, which saves computing them."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = [p for p in network.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.parameters:
            p.requires_grad_(False)

    def __exit__(self, *exc: object) -> None:
        for p in self.parameters:
            p.requires_grad_(True)
