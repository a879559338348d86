"""PixelNorm and MinibatchStddev against their formulas, image by image."""

from __future__ import annotations

import pytest
import torch

from fastvfx import MinibatchStddev, PixelNorm


@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 4, 3), (0, 5, 4, 3)], ids=str)
def test_pixels_have_a_mean_square_of_one(shape: tuple[int, ...]) -> None:
    x = 5 * torch.randn(shape, dtype=torch.float64)
    y = PixelNorm()(x)
    torch.testing.assert_close(y, x / x.square().mean(1, keepdim=True).sqrt(), rtol=1e-7, atol=0)


def test_dark_pixels_stay_dark() -> None:
    assert torch.equal(PixelNorm()(torch.zeros(1, 3, 2, 2)), torch.zeros(1, 3, 2, 2))


def test_bright_float16_does_not_overflow() -> None:
    y = PixelNorm()(torch.full((1, 4), 300.0, dtype=torch.float16))  # 300^2 is infinite in float16
    torch.testing.assert_close(y, torch.ones(1, 4, dtype=torch.float16))


@pytest.mark.parametrize("group_size, group", [(4, 4), (2, 2), (None, 8), (16, 8)])
def test_every_group_gets_its_own_deviation(group_size: int | None, group: int) -> None:
    n, num_channels = 8, 2
    x = torch.randn(n, 6, 3, 2, dtype=torch.float64)
    y = MinibatchStddev(group_size, num_channels)(x)
    assert torch.equal(y[:, :6], x)
    for image in range(n):
        members = x[image % (n // group) :: n // group]  # (group, 6, 3, 2)
        assert len(members) == group
        deviation = (members.var(0, correction=0) + 1e-8).sqrt()
        for k in range(num_channels):
            expected = deviation[3 * k : 3 * k + 3].mean()
            torch.testing.assert_close(y[image, 6 + k], expected.expand(3, 2))


def test_equal_images_have_finite_gradients() -> None:
    x = torch.ones(4, 2, 3, 3, requires_grad=True)
    MinibatchStddev()(x)[:, 2].sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_groups_must_fit() -> None:
    with pytest.raises(ValueError, match="multiple of group_size=4"):
        MinibatchStddev()(torch.randn(6, 2, 3, 3))
    with pytest.raises(ValueError, match="multiple of num_channels=3"):
        MinibatchStddev(4, 3)(torch.randn(4, 4, 3, 3))
