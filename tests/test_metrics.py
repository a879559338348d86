"""PSNR and SSIM. Oracle: scikit-image."""

from __future__ import annotations

import math

import pytest
import torch

from fastvfx.metrics import psnr, ssim


def images(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.rand(*shape, dtype=dtype)
    return (target + 0.1 * torch.randn(*shape, dtype=dtype)).clamp(0, 1), target


@pytest.mark.parametrize("data_range", [1.0, 255.0], ids=["unit", "bytes"])
@pytest.mark.parametrize("shape", [(11, 11, 1), (23, 40, 3), (64, 17, 4)], ids=str)
def test_both_agree_with_skimage(shape: tuple[int, ...], data_range: float) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    pred, target = (x * data_range for x in images(*shape))
    expected = metrics.structural_similarity(
        target.numpy(),
        pred.numpy(),
        data_range=data_range,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1,
    )
    assert float(ssim(pred, target, data_range)) == pytest.approx(expected, abs=1e-12)
    expected = metrics.peak_signal_noise_ratio(target.numpy(), pred.numpy(), data_range=data_range)
    assert float(psnr(pred, target, data_range)) == pytest.approx(expected, abs=1e-10)


def test_ssim_agrees_with_skimage_with_other_constants() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    pred, target = images(30, 31, 3)
    # scikit-image takes the radius from sigma: int(3.5 * 2 + 0.5) = 7.
    expected = metrics.structural_similarity(
        target.numpy(),
        pred.numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=2.0,
        use_sample_covariance=False,
        channel_axis=-1,
        K1=0.02,
        K2=0.05,
    )
    assert float(ssim(pred, target, window_size=15, sigma=2.0, k1=0.02, k2=0.05)) == pytest.approx(expected, abs=1e-12)


def test_known_psnr() -> None:
    assert float(psnr(torch.full((5,), 0.6), torch.full((5,), 0.5))) == pytest.approx(20.0, abs=1e-4)


def test_equal_images() -> None:
    x = torch.rand(12, 13, 3)
    assert float(psnr(x, x)) == math.inf
    assert float(ssim(x, x)) == pytest.approx(1.0, abs=1e-6)


def test_a_batch_scores_the_mean_of_its_images() -> None:
    pred, target = images(3, 20, 21, 3)
    one_by_one = torch.stack([ssim(p, t) for p, t in zip(pred, target, strict=True)])
    torch.testing.assert_close(ssim(pred, target), one_by_one.mean())


@pytest.mark.parametrize("metric", [psnr, ssim], ids=["psnr", "ssim"])
def test_gradients(metric) -> None:
    pred, target = images(11, 12, 1)
    assert torch.autograd.gradcheck(lambda x: metric(x, target), pred.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_are_stored_and_not_computed_with(dtype: torch.dtype) -> None:
    pred, target = (x.to(dtype) for x in images(20, 20, 3))
    for metric in (psnr, ssim):
        value = metric(pred, target)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), metric(pred.double(), target.double()), atol=1e-4, rtol=1e-5)


def test_strided_images_are_read_in_place() -> None:
    pred, target = images(3, 20, 21)
    moved = (pred.permute(1, 2, 0), target.permute(1, 2, 0))
    torch.testing.assert_close(ssim(*moved), ssim(moved[0].contiguous(), moved[1].contiguous()))


@pytest.mark.parametrize("metric", [psnr, ssim], ids=["psnr", "ssim"])
@pytest.mark.parametrize(
    ("pred", "target", "data_range", "error", "message"),
    [
        (torch.zeros(12, 12, 3), torch.zeros(12, 12, 4), 1.0, ValueError, r"same shape, got \(12, 12, 3\) and"),
        (torch.zeros(0, 12, 3), torch.zeros(0, 12, 3), 1.0, ValueError, "at least one element"),
        (torch.zeros(12, 12, 3).byte(), torch.zeros(12, 12, 3), 1.0, TypeError, "pred .* got torch.uint8"),
        (torch.zeros(12, 12, 3), [0.0], 1.0, TypeError, "target .* got list"),
        (torch.zeros(12, 12, 3), torch.zeros(12, 12, 3), 0.0, ValueError, "data_range > 0, got 0"),
        (torch.zeros(12, 12, 3), torch.zeros(12, 12, 3, device="meta"), 1.0, ValueError, "on cpu, target on meta"),
    ],
    ids=["shape", "empty", "bytes", "list", "range", "device"],
)
def test_bad_input(metric, pred, target, data_range, error, message) -> None:
    with pytest.raises(error, match=rf"fastvfx\.metrics\.{metric.__name__}: .*{message}"):
        metric(pred, target, data_range)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((10, 12, 3), {}, r"H and W at least 11, got \(10, 12, 3\)"),
        ((12, 12), {}, r"\(\.\.\., H, W, C\)"),
        ((12, 12, 3), {"window_size": 4}, "odd, positive window_size, got 4"),
        ((12, 12, 3), {"sigma": 0.0}, "sigma > 0, got 0"),
    ],
    ids=["small", "rank", "even", "sigma"],
)
def test_bad_windows(shape: tuple[int, ...], options: dict, message: str) -> None:
    x = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        ssim(x, x, **options)
