"""How close a set of generated images is to a set of photographs, and how even the latent space is.

The distances compare features of images. Which network makes the features is part of a result's name, as in
``FD-random``. "FID" is the name of one particular network's distance, which nothing here computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: (N, D) float32 from images (N, 3, H, W) in [-1, 1].
Features = Callable[[Tensor], Tensor]


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of the Gaussians that fit two sets of features.

    .. math:: |\\mu_x - \\mu_y|^2 + Tr(S_x + S_y - 2 (S_x S_y)^{1/2})

    (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, equation 6.) The trace of the root is the sum
    of the singular values of S_x^{1/2} S_y^{1/2}: no root of a matrix that is not symmetric, and no complex rest.

    Args:
        x, y: (N, D) and (M, D); at least two of each. With fewer samples than D the covariances are singular, which
            is no problem here but biases the distance upwards.

    Returns:
        The distance, computed in float64.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    x, y = _checked("frechet_distance", x, y)
    difference = (x.mean(0) - y.mean(0)).square().sum()
    root_x, root_y = _covariance_root(x), _covariance_root(y)  # S = R Rᵀ
    # Tr (R_x R_xᵀ R_y R_yᵀ)^½ is the nuclear norm of R_xᵀ R_y.
    cross = torch.linalg.svdvals(root_x.T @ root_y).sum()
    distance = difference + root_x.square().sum() + root_y.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def kernel_distance(x: Tensor, y: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> float:
    """Kernel distance: an unbiased estimate of the squared maximum mean discrepancy with k(a, b) = (a·b / D + 1)³.

    (Bińkowski et al., "Demystifying MMD GANs", 2018, section 4.) The mean over random subsets; may be below zero.

    Args:
        x, y: (N, D) and (M, D); at least two of each.
        subsets: how many.
        subset_size: images of a subset, at most as many as there are.
        seed: of the choice of subsets.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    x, y = _checked("kernel_distance", x, y)
    size = min(subset_size, len(x), len(y))
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(subsets):
        a = x[torch.randperm(len(x), generator=generator)[:size].to(x.device)]
        b = y[torch.randperm(len(y), generator=generator)[:size].to(y.device)]
        same = _kernel(a, a), _kernel(b, b)
        inside = sum(float(k.sum() - k.diagonal().sum()) for k in same) / (size * (size - 1))
        total += inside - 2 * float(_kernel(a, b).mean())
    return total / subsets


def perceptual_path_length(
    synthesize: Callable[[Tensor], Tensor], ws: Tensor, distance: Callable[[Tensor, Tensor], Tensor], eps: float = 1e-4
) -> Tensor:
    """How fast the image changes along straight lines in w: E[d(G(lerp(w1, w2, t)), G(lerp(w1, w2, t + eps))) / eps²].

    (Karras et al., StyleGAN, 2019, section 4.1, in W, end points included.) It depends on the distance, so name that
    beside the number.

    Args:
        synthesize: images from styles; it must add the same noise at both calls.
        ws: (2 N, ...) styles, the lines go from each even one to the odd one behind it.
        distance: (N,) from two batches of images; quadratic in small differences, as LPIPS and
            :func:`feature_distance` are.
        eps: step along the line.

    Returns:
        (N,) lengths; their mean is the metric.
    """
    a, b = ws[0::2], ws[1::2]
    t = torch.rand((len(a), *[1] * (ws.dim() - 1)), dtype=ws.dtype, device=ws.device)
    near, far = synthesize(torch.lerp(a, b, t)), synthesize(torch.lerp(a, b, t + eps))
    return distance(near, far) / eps**2


def feature_distance(features: Features) -> Callable[[Tensor, Tensor], Tensor]:
    """Squared distance of the features of two images, per image: (N,)."""
    return lambda a, b: (features(a).double() - features(b).double()).square().sum(1)


def _covariance_root(x: Tensor) -> Tensor:
    """(D, min(N, D)): R with R Rᵀ the covariance."""
    root = (x - x.mean(0)).T / math.sqrt(len(x) - 1)  # (D, N)
    if len(x) <= x.shape[1]:
        return root
    values, vectors = torch.linalg.eigh(root @ root.T)
    return vectors * values.clamp(min=0).sqrt()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _checked(where: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"fastvfx.models.gan.{where}: expected x and y of shapes (N, D) and (M, D) with N and M of at least 2, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = x.double(), y.double()
    for name, value in (("x", x), ("y", y)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"fastvfx.models.gan.{where}: expected finite features, got NaN or infinity in {name}")
    return x, y
