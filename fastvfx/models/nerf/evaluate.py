"""How good a model is: PSNR and SSIM on views that it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...data import PosedImages, over_background, write_image
from ...metrics import psnr, ssim
from .renderer import Nerf

# Of a view, for its PSNR to mean something.
_LEAST_PIXELS = 256


@dataclass(frozen=True)
class ViewScore:
    """One view."""

    name: str
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Evaluation:
    """All views of a split; the scores are means over views.

    Attributes:
        views: each view's own.
        psnr: dB.
        ssim: with the 11-pixel Gaussian window.
        seconds: spent on rendering.
        rays: that were rendered.
    """

    views: list[ViewScore]
    psnr: float
    ssim: float
    seconds: float
    rays: int


def evaluate(
    model: Nerf,
    data: PosedImages,
    background: Tensor,
    *,
    folder: Path | None = None,
    on_view: Callable[[int], None] | None = None,
) -> Evaluation:
    """Render every view of ``data`` and compare.

    Args:
        model: the scene.
        data: views with the truth, on the device of the model.
        background: (3,) behind the scene, and behind the truth where that has an alpha channel.
        folder: where to write each view: ``NNN_render.png``, ``NNN_truth.png``, ``NNN_depth.png``.
        on_view: called with the number of views done, after each.
    """
    scores, seconds, rays = [], 0.0, 0
    for i in range(len(data)):
        truth = over_background(data.image(i), background)
        start = time.perf_counter()
        output = model.image(data.cameras, i, background)
        picture = output.rgb.clamp(0, 1)
        score = ViewScore(data.names[i], float(psnr(picture, truth)), float(_ssim(picture, truth)))
        seconds += time.perf_counter() - start
        rays += truth.shape[0] * truth.shape[1]
        scores.append(score)
        if folder is not None:
            write_image(folder / f"{i:03d}_render.png", picture)
            write_image(folder / f"{i:03d}_truth.png", truth)
            write_image(folder / f"{i:03d}_depth.png", depth_picture(output.depth, output.opacity))
        if on_view is not None:
            on_view(i + 1)
    n = len(scores)
    return Evaluation(scores, sum(s.psnr for s in scores) / n, sum(s.ssim for s in scores) / n, seconds, rays)


def _ssim(picture: Tensor, truth: Tensor) -> Tensor:
    if min(picture.shape[:2]) < 11:  # smaller than the window
        return torch.tensor(float("nan"))
    return ssim(picture, truth)


def depth_picture(depth: Tensor, opacity: Tensor) -> Tensor:
    """(H, W) depths as grey, near bright; black where there is nothing."""
    solid = opacity > 0.5
    if not bool(solid.any()):
        return torch.zeros_like(depth)
    near, far = torch.quantile(depth[solid], torch.tensor([0.01, 0.99], device=depth.device))
    grey = 1 - 0.85 * ((depth - near) / (far - near).clamp(min=1e-6)).clamp(0, 1)
    return torch.where(solid, grey, 0)


class Probe:
    """A quick estimate of :attr:`Evaluation.psnr` during training, from a fixed sample of the pixels of held-out views.

    Args:
        data: the views.
        background: as in :func:`evaluate`.
        n_pixels: how many in all, spread evenly over each view; no view gets fewer than 256 of its pixels, so that
            of very many views only some are looked at.
    """

    def __init__(self, data: PosedImages, background: Tensor, n_pixels: int = 8192) -> None:
        n_views = min(len(data), max(1, n_pixels // _LEAST_PIXELS))
        views = torch.linspace(0, len(data) - 1, n_views, dtype=torch.float64).round().long().tolist()
        indices, self.counts = [], []
        for view in views:
            first, end = int(data.starts[view]), int(data.starts[view + 1])
            count = min(n_pixels // n_views, end - first)
            indices.append(torch.linspace(first, end - 1, count, dtype=torch.float64).long())
            self.counts.append(count)
        rays = data.rays_at(torch.cat(indices).to(data.pixels.device))
        self.origins, self.directions = rays.origins, rays.directions  # (n_pixels, 3), view after view
        self.truth = over_background(rays.colors, background)
        self.background = background

    def __call__(self, model: Nerf) -> float:
        """dB, mean over views."""
        parts = [output.rgb for output in model.render(self.origins, self.directions, self.background)]
        pairs = zip(torch.cat(parts).clamp(0, 1).split(self.counts), self.truth.split(self.counts), strict=True)
        scores = [float(psnr(picture, truth)) for picture, truth in pairs]
        return sum(scores) / len(scores)
