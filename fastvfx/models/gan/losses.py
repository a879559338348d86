"""What generators and discriminators minimise, as functions of logits, images and styles.

D(x) are the logits of photographs, D(y) those of generated images y = G(z), both (N, 1) or (N,). Means are over N.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Adversarial = Literal["logistic", "wasserstein", "hinge", "relativistic"]


def discriminator_loss(kind: Adversarial, real: Tensor, fake: Tensor) -> Tensor:
    """The adversarial loss of a discriminator.

    - ``"logistic"``: softplus(-D(x)) + softplus(D(y)) (Goodfellow et al. 2014, with logits)
    - ``"wasserstein"``: D(y) - D(x), for critics that are Lipschitz (Arjovsky, Chintala, Bottou 2017, algorithm 1)
    - ``"hinge"``: max(0, 1 - D(x)) + max(0, 1 + D(y)) (Miyato et al., "Spectral Normalization", 2018, equation 16)
    - ``"relativistic"``: softplus(-(D(x) - D(y))), images paired in the order of the batch (Huang et al.,
      "The GAN is dead; long live the GAN!" (R3GAN), 2024, equation 2)

    Args:
        kind: one of those.
        real, fake: logits; of the same shape where they are paired.

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown kind, or logits that can't be paired.
    """
    if kind == "logistic":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if kind == "wasserstein":
        return fake.mean() - real.mean()
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "relativistic":
        return F.softplus(_paired(fake, real)).mean()
    raise _unknown("discriminator_loss", kind)


def generator_loss(kind: Adversarial, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """The adversarial loss of a generator.

    - ``"logistic"``: softplus(-D(y)), the one that does not saturate
    - ``"wasserstein"`` and ``"hinge"``: -D(y)
    - ``"relativistic"``: softplus(-(D(y) - D(x)))

    Sources as in :func:`discriminator_loss`.

    Args:
        kind: one of those.
        fake: logits of generated images.
        real: logits of photographs, for ``"relativistic"`` only.

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown kind, or logits that can't be paired.
    """
    if kind == "logistic":
        return F.softplus(-fake).mean()
    if kind in ("wasserstein", "hinge"):
        return -fake.mean()
    if kind == "relativistic":
        return F.softplus(_paired(real, fake)).mean()
    raise _unknown("generator_loss", kind)


def drift(real: Tensor) -> Tensor:
    """E[D(x)²]: keeps the logits of a Wasserstein critic, which may all be shifted alike, near zero.

    (Karras et al., "Progressive Growing of GANs", 2018, appendix A.1; weight 0.001 there.)
    """
    return real.square().mean()


def gradient_penalty(logits: Tensor, images: Tensor, target: float = 0.0) -> Tensor:
    """E[(|∂D/∂x| - target)²], differentiable.

    With target 0, of photographs this is R1, of generated images R2 (Mescheder, Geiger, Nowozin, "Which Training
    Methods for GANs do actually Converge?", 2018, equations 9 and 10; weight gamma/2). With target 1, of images between
    the two, it is that of WGAN-GP (Gulrajani et al. 2017, equation 3; weight 10).

    Args:
        logits: of ``images``; each must depend on its own image only, but for statistics over the batch.
        images: (N, ...), requires a gradient.
        target: norm that the gradient shall have.

    Returns:
        A scalar.
    """
    (grad,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    if target == 0:
        return grad.square().flatten(1).sum(1).mean()
    # vector_norm has a gradient at zero; the root of a sum of squares has not.
    return (torch.linalg.vector_norm(grad.flatten(1), dim=1) - target).square().mean()


def between(real: Tensor, fake: Tensor) -> Tensor:
    """u x + (1 - u) y with u ~ U(0, 1) for each pair of images; requires a gradient (Gulrajani et al. 2017)."""
    u = torch.rand((len(real), *[1] * (real.dim() - 1)), dtype=real.dtype, device=real.device)
    return torch.lerp(fake.detach(), real.detach(), u).requires_grad_()


def clip_weights(module: nn.Module, limit: float) -> None:
    """Force every parameter into [-limit, limit] (Arjovsky, Chintala, Bottou 2017, algorithm 1; limit 0.01 there).

    NaN stays NaN.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.clamp_(-limit, limit)


class PathLength(nn.Module):
    """E[(l - a)²] with l = |Jᵀ n| and a its moving average: equal steps in w make equal steps in the image.

    n is noise of variance 1 / (H W), so that l does not depend on the resolution. |·| is the root of the mean over
    the layers of the squared norm of ∂(y·n)/∂w (Karras et al., StyleGAN2, 2020, equation 4; weight 2).

    Args:
        decay: how much of a comes from the current batch.

    Attributes:
        mean: a.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: Tensor, ws: Tensor) -> Tensor:
        """The penalty, a scalar, and a step of the average.

        Args:
            images: (N, C, H, W), made from ``ws``.
            ws: (N, layers, w_dim).
        """
        lengths = path_lengths(images, ws)
        with torch.no_grad():
            self.mean.lerp_(lengths.mean().to(self.mean.dtype), self.decay)
        return (lengths - self.mean.clone()).square().mean()


def path_lengths(images: Tensor, ws: Tensor) -> Tensor:
    """l of :class:`PathLength`, (N,), differentiable."""
    noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
    (grad,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)  # (N, layers, w_dim)
    return torch.linalg.vector_norm(grad.flatten(1), dim=1) / math.sqrt(ws.shape[1])


def _paired(a: Tensor | None, b: Tensor) -> Tensor:
    if a is None or a.shape != b.shape:
        got = "none" if a is None else f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"fastvfx.models.gan: expected logits of as many photographs as generated images, got {got}")
    return a - b


def _unknown(where: str, kind: str) -> ValueError:
    return ValueError(f"fastvfx.models.gan.{where}: expected one of {', '.join(get_args(Adversarial))}, got {kind!r}")
