"""Augmentation that a discriminator sees and a generator does not learn.

(Karras et al., "Training Generative Adversarial Networks with Limited Data" (ADA), 2020, appendix B.)
Photographs and generated images go through the same random, differentiable changes. As long as each of them is skipped
often enough, the generator can only match photographs as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...functional import downsample2d, grid_sample, setup_filter, upsample2d
from .._config import Config

# Low-pass of the "sym6" wavelet (Daubechies, Ten Lectures on Wavelets, table 6.3), whose even shifts are orthonormal:
# up- and downsampling by it, with nothing in between, gives back the image.
_SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
_CENTER = sum(k * h for k, h in enumerate(_SYM6)) / sum(_SYM6) - 5.5  # of its mass, in taps from its middle
_RIM = 3  # pixels around the image that the filter reaches, which is 12 taps at twice the resolution


@dataclass(frozen=True)
class AugmentConfig(Config):
    """Which changes are made, how often, and what decides that. The defaults are ADA's "bgc".

    Attributes:
        p: of each change, at first; fixed if ``target`` is ``None``.
        target: adapt p so that E[sign D(x)] over photographs becomes this.
        every: steps between adaptations.
        kimg: thousands of images in which p could go from 0 to 1.
        xflip, rotate90, xint: exact ones: mirror, quarter turns, shifts by up to ``xint_max`` of the size.
        scale, rotate, aniso, xfrac: resampled ones: zoom, turn, stretch, shift.
        brightness, contrast, lumaflip, hue, saturation: changes of colour.
        xint_max, scale_std, aniso_std, xfrac_std, brightness_std, contrast_std, saturation_std: their strength; of
            zoom, stretch, contrast and saturation in octaves.

    Each of the changes has a factor that multiplies p; 0 leaves it out.
    """

    p: float = 0.0
    target: float | None = 0.6
    every: int = 4
    kimg: float = 500.0
    xflip: float = 1.0
    rotate90: float = 1.0
    xint: float = 1.0
    scale: float = 1.0
    rotate: float = 1.0
    aniso: float = 1.0
    xfrac: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0
    lumaflip: float = 1.0
    hue: float = 1.0
    saturation: float = 1.0
    xint_max: float = 0.125
    scale_std: float = 0.2
    aniso_std: float = 0.2
    xfrac_std: float = 0.125
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    saturation_std: float = 1.0


class Augment(nn.Module):
    """The changes, image by image at random from torch's generator of the CPU, with probability ``p`` each.

    Differentiable in the images to any order.

    Attributes:
        p: the probability, a number that :class:`AdaptiveProbability` changes.

    >>> augment = Augment(AugmentConfig(p=0.5))
    >>> logits = discriminator(augment(images))
    """

    filter: Tensor

    def __init__(self, config: AugmentConfig | None = None) -> None:
        super().__init__()
        self.config = AugmentConfig() if config is None else config
        self.p = self.config.p
        self.register_buffer("filter", setup_filter(_SYM6), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in about [-1, 1] to the same, changed.

        Raises:
            ValueError: no such shape.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(
                f"fastvfx.models.gan.Augment: expected images of shape (N, 3, H, W), got {tuple(images.shape)}"
            )
        if self.p == 0:
            return images
        config, p = self.config, self.p
        n, _, height, width = images.shape
        mirrored = _sometimes(torch.randint(2, (n,)), p * config.xflip, 0)
        quarters = _sometimes(torch.randint(4, (n,)), p * config.rotate90, 0)
        moved = turn(images, mirrored == 1, quarters.long())
        moved = warp(moved, geometry(config, p, n, height, width), self.filter)
        return recolor(moved, colors(config, p, n))


class AdaptiveProbability:
    """Moves p so that the discriminator stays as sure of photographs as it should be.

    r = E[sign D(x)] is 1 where it is right about all of them, a sign that it knows them by heart. Every
    ``config.every`` steps p goes up or down by as much as its images are of ``config.kimg`` thousand.

    Attributes:
        sign_sum, count: of the logits since the last change.
        r: at the last change.
    """

    def __init__(self, augment: Augment) -> None:
        self.augment = augment
        self.sign_sum: Tensor | float = 0.0
        self.count = 0
        self.r = float("nan")

    def observe(self, real_logits: Tensor) -> None:
        """Take the logits of photographs, (N, 1), into account."""
        self.sign_sum = self.sign_sum + real_logits.detach().float().sign().sum()
        self.count += real_logits.numel()

    def update(self, images: int) -> None:
        """Change p for the ``images`` that were shown since the last change. On a GPU, this waits for it."""
        config = self.augment.config
        if config.target is None or self.count == 0:
            return
        self.r = float(self.sign_sum) / self.count
        direction = float(self.r > config.target) - float(self.r < config.target)
        self.augment.p = min(max(self.augment.p + direction * images / (config.kimg * 1000), 0.0), 1.0)
        self.sign_sum, self.count = 0.0, 0

    def state(self) -> dict[str, float]:
        """For JSON: what to go on from."""
        return {"p": self.augment.p, "sign_sum": float(self.sign_sum), "count": self.count, "r": self.r}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self.augment.p = state["p"]
        self.sign_sum, self.count, self.r = state["sign_sum"], state["count"], state["r"]


# --- geometry -------------------------------------------------------------------------------------------------------


def turn(images: Tensor, mirrored: Tensor, quarters: Tensor) -> Tensor:
    """Mirror images left to right where ``mirrored`` (N,), then turn them by ``quarters`` (N,) of a circle. Exact.

    Raises:
        ValueError: quarter turns of images that are not square.
    """
    odd = quarters % 2 == 1
    if images.shape[2] != images.shape[3] and bool(odd.any()):
        raise ValueError(
            f"fastvfx.models.gan.Augment: expected square images for quarter turns, got {tuple(images.shape)}; "
            "rotate90=0 leaves them out"
        )

    def where(choice: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(choice.to(images.device, non_blocking=True).view(-1, 1, 1, 1), a, b)

    x = where(mirrored, images.flip(3), images)
    if bool(odd.any()):
        x = where(odd, x.rot90(1, (2, 3)), x)
    return where(quarters >= 2, x.flip((2, 3)), x)


def geometry(config: AugmentConfig, p: float, n: int, height: int, width: int) -> Tensor:
    """For each image the matrix from places in the new image to places in the old: (N, 3, 3) float32 on the CPU.

    Places are in pixels, (x, y, 1), from the middle of the image.
    """
    size = torch.tensor([width, height], dtype=torch.float32)
    back = torch.eye(3).expand(n, 3, 3)

    # Each change comes behind those before it, so its inverse is the first to be met on the way back.
    shift = _sometimes((torch.rand(n, 2) * 2 - 1) * config.xint_max, p * config.xint, 0)
    back = back @ _translation(-(shift * size).round())

    zoom = _sometimes(torch.exp2(torch.randn(n) * config.scale_std), p * config.scale, 1)
    back = back @ _scaling(1 / zoom, 1 / zoom)
    # A turn in front of the stretch and one behind: either happens so often that both together have probability p.
    p_turn = 1 - math.sqrt(max(1 - p * config.rotate, 0.0))
    back = back @ _rotation(-_sometimes((torch.rand(n) * 2 - 1) * math.pi, p_turn, 0))
    stretch = _sometimes(torch.exp2(torch.randn(n) * config.aniso_std), p * config.aniso, 1)
    back = back @ _scaling(1 / stretch, stretch)
    back = back @ _rotation(-_sometimes((torch.rand(n) * 2 - 1) * math.pi, p_turn, 0))
    shift = _sometimes(torch.randn(n, 2) * config.xfrac_std, p * config.xfrac, 0)
    return back @ _translation(-shift * size)


def warp(images: Tensor, back: Tensor, low_pass: Tensor) -> Tensor:
    """Resample images at twice their resolution, with their mirror image around them.

    Args:
        images: (N, C, H, W).
        back: of :func:`geometry`, on the CPU.
        low_pass: filter of both changes of resolution, with an even number of taps up to 12.

    Returns:
        (N, C, H, W).
    """
    if torch.equal(back, torch.eye(3).expand_as(back)):
        return images
    n, channels, height, width = images.shape
    out = torch.tensor([width + 2 * _RIM, height + 2 * _RIM], dtype=torch.float32)
    corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [-1, 1, 1], [1, 1, 1]]) * F.pad(out / 2, (0, 1), value=1)
    reached = (back @ corners.T)[:, :2].abs().amax((0, 2)).tolist()  # x and y farthest from the middle, in pixels
    # As far as mirrored pixels are needed and there are any; beyond, they are mirrored again.
    pad_x, pad_y = (
        min(max(math.ceil(far - size / 2) + 1, 0) + _RIM, size - 1)
        for far, size in zip(reached, (width, height), strict=True)
    )
    x = F.pad(images, (pad_x, pad_x, pad_y, pad_y), mode="reflect")
    x = upsample2d(x, low_pass, padding=-2 * _RIM)  # without the rim, which has seen zeros around the image

    # From the new image to the old one, both at twice the resolution and in grid_sample's units, half their size.
    size_in = torch.tensor([x.shape[3], x.shape[2], 2.0])
    size_out = torch.cat([2 * out, torch.tensor([2.0])])
    doubled = back * torch.tensor([[1.0, 1, 2], [1, 1, 2], [1, 1, 1]])
    # The filter is not quite symmetric: doubled images are a little off their place, and halving expects them there.
    off = _CENTER * torch.ones(1, 2)
    theta = _translation(off) @ doubled @ _translation(-off) * size_out / size_in[:, None]
    theta = theta[:, :2].to(device=images.device, dtype=images.dtype, non_blocking=True)
    grid = F.affine_grid(theta, [n, channels, 2 * (height + 2 * _RIM), 2 * (width + 2 * _RIM)], align_corners=False)
    x = grid_sample(x, grid, padding_mode="reflection")
    return downsample2d(x, low_pass, padding=-2 * _RIM, flip_filter=True)


def _sometimes(values: Tensor, p: float, otherwise: float) -> Tensor:
    """Each row of ``values`` with probability ``p``, else ``otherwise``."""
    happens = torch.rand(len(values)) < p
    return torch.where(happens.view(-1, *[1] * (values.dim() - 1)), values.float(), otherwise)


def _matrices(rows: list[list[Tensor | float]], n: int) -> Tensor:
    """(N, k, k) from entries that are (N,) or numbers."""
    return torch.stack([torch.stack([torch.as_tensor(v).float().expand(n) for v in row], -1) for row in rows], -2)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return _matrices([[x, 0, 0], [0, y, 0], [0, 0, 1]], len(x))


def _rotation(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return _matrices([[c, -s, 0], [s, c, 0], [0, 0, 1]], len(angle))


def _translation(by: Tensor) -> Tensor:
    return _matrices([[1, 0, by[:, 0]], [0, 1, by[:, 1]], [0, 0, 1]], len(by))


# --- colour ---------------------------------------------------------------------------------------------------------


def colors(config: AugmentConfig, p: float, n: int) -> Tensor:
    """For each image the matrix that acts on (r, g, b, 1): (N, 4, 4) float32 on the CPU."""
    gray = torch.full((3,), 1 / math.sqrt(3))
    along = torch.zeros(4, 4)
    along[:3, :3] = torch.outer(gray, gray)  # projection on the axis of greys
    across = torch.diag(torch.tensor([1.0, 1, 1, 0])) - along
    one = torch.diag(torch.tensor([0.0, 0, 0, 1]))

    brightness = _sometimes(torch.randn(n) * config.brightness_std, p * config.brightness, 0)
    change = _matrices([[1, 0, 0, brightness], [0, 1, 0, brightness], [0, 0, 1, brightness], [0, 0, 0, 1]], n)
    contrast = _sometimes(torch.exp2(torch.randn(n) * config.contrast_std), p * config.contrast, 1)
    change = (contrast[:, None, None] * (along + across) + one) @ change
    flip = _sometimes(torch.randint(2, (n,)), p * config.lumaflip, 0)
    change = (torch.eye(4) - 2 * flip[:, None, None] * along) @ change
    angle = _sometimes((torch.rand(n) * 2 - 1) * math.pi, p * config.hue, 0)[:, None, None]
    quarter = torch.zeros(4, 4)  # v -> gray x v, a quarter turn of what lies across
    quarter[:3, :3] = torch.linalg.cross(gray.expand(3, 3), torch.eye(3)).T
    change = (along + one + angle.cos() * across + angle.sin() * quarter) @ change
    saturation = _sometimes(torch.exp2(torch.randn(n) * config.saturation_std), p * config.saturation, 1)
    return (along + one + saturation[:, None, None] * across) @ change


def recolor(images: Tensor, change: Tensor) -> Tensor:
    """Apply matrices of :func:`colors` to the pixels of (N, 3, H, W)."""
    change = change.to(device=images.device, dtype=images.dtype, non_blocking=True)
    return (change[:, :3, :3] @ images.flatten(2) + change[:, :3, 3:]).reshape(images.shape)
