"""Image quality: PSNR and SSIM, differentiable, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["psnr", "ssim"]


def _check_pair(name: str, pred: Tensor, target: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    for label, x in (("pred", pred), ("target", target)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"fastvfx.metrics.{name}: expected {label} to be a floating-point tensor, got {found}")
    if pred.shape != target.shape:
        raise ValueError(
            f"fastvfx.metrics.{name}: expected pred and target of the same shape, "
            f"got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    if pred.device != target.device:
        raise ValueError(f"fastvfx.metrics.{name}: pred is on {pred.device}, target on {target.device}")
    if pred.numel() == 0:
        raise ValueError(f"fastvfx.metrics.{name}: expected at least one element, got shape {tuple(pred.shape)}")
    if not data_range > 0:
        raise ValueError(f"fastvfx.metrics.{name}: expected data_range > 0, got {data_range}")
    # 16-bit storage is too coarse for squared differences.
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    return pred.to(dtype), target.to(dtype)


def psnr(pred: Tensor, target: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB over all elements: ``10 log10(data_range² / mean((pred - target)²))``.

    Args:
        pred, target: floating-point tensors of the same shape (any shape).
        data_range: the largest value that a channel can take (1.0 for images in [0, 1]).

    Returns:
        A scalar tensor, ``inf`` where the two are equal. The score of a set of images is usually the mean of the scores
        of its images, not the score of all pixels together.

    Raises:
        TypeError, ValueError: not floating point, shapes or devices that differ, no elements, ``data_range <= 0``.
    """
    pred, target = _check_pair("psnr", pred, target, data_range)
    return 10.0 * torch.log10(data_range**2 / (pred - target).square().mean())


def ssim(
    pred: Tensor,
    target: Tensor,
    data_range: float = 1.0,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """Mean structural similarity with a Gaussian window.

    ``(2 μx μy + C1)(2 σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2))`` with ``C1 = (k1 L)²``, ``C2 = (k2 L)²``,
    L = ``data_range``, averaged over all windows that lie inside the image and over the channels
    (Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, IEEE TIP 13(4), 2004). The defaults are those of the
    paper, and the result is that of scikit-image with ``gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False``.

    Args:
        pred, target: (..., H, W, C) floating point, same shape; H and W at least ``window_size``.
        data_range: the largest value that a channel can take (1.0 for images in [0, 1]).
        window_size: odd width of the window in pixels.
        sigma: standard deviation of the Gaussian in pixels.
        k1, k2: the stabilising constants.

    Returns:
        A scalar tensor; 1 where the two are equal.

    Raises:
        TypeError, ValueError: as `psnr`, and images smaller than the window or fewer than three dimensions.
    """
    pred, target = _check_pair("ssim", pred, target, data_range)
    if window_size < 1 or window_size % 2 == 0:
        raise ValueError(f"fastvfx.metrics.ssim: expected an odd, positive window_size, got {window_size}")
    if not sigma > 0:
        raise ValueError(f"fastvfx.metrics.ssim: expected sigma > 0, got {sigma}")
    if pred.ndim < 3 or min(pred.shape[-3:-1]) < window_size:
        raise ValueError(
            f"fastvfx.metrics.ssim: expected images of shape (..., H, W, C) with H and W at least {window_size}, "
            f"got {tuple(pred.shape)}"
        )
    h, w, _ = pred.shape[-3:]
    x = pred.movedim(-1, -3).reshape(-1, 1, h, w)  # (B*C, 1, H, W)
    y = target.movedim(-1, -3).reshape(-1, 1, h, w)

    at = torch.arange(window_size, dtype=x.dtype, device=x.device) - (window_size - 1) / 2
    window = torch.exp(-0.5 * (at / sigma).square())
    window = window / window.sum()
    maps = torch.cat([x, y, x * x, y * y, x * y])
    maps = F.conv2d(F.conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mx, my, xx, yy, xy = maps.chunk(5)

    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    numerator = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    denominator = (mx * mx + my * my + c1) * ((xx - mx * mx) + (yy - my * my) + c2)
    return (numerator / denominator).mean()
