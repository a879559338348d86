"""PixelNorm and MinibatchStddev against their formulas, image by image."""

from __future__ import annotations

import pytest
import torch

from fastvfx import MinibatchStddev, PixelNorm
from fastvfx.functional import minibatch_stddev


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


def test_the_module_is_the_function() -> None:
    x = torch.randn(8, 6, 3, 2)
    assert torch.equal(MinibatchStddev(2, 3)(x), minibatch_stddev(x, 2, 3))
    assert "group_size=2, num_channels=3" in repr(MinibatchStddev(2, 3))
