"""Generator and discriminator, of torch's own layers."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ... import _check
from ..stylegan2.config import resolutions
from .config import DiscriminatorConfig, GeneratorConfig, Normalization


class Generator(nn.Module):
    """Latents to images through transposed convolutions, batch normalisation and ReLU.

    (Radford et al., "Unsupervised Representation Learning with Deep Convolutional GANs", 2016, as the generator of
    Miyato et al. 2018, table 3.)

    Args:
        config: the shape of it.

    >>> images = Generator()(torch.randn(4, 128))  # (4, 3, 64, 64), in [-1, 1]
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = GeneratorConfig() if config is None else config
        self.z_dim, self.c_dim = config.z_dim, 0
        self.img_resolution, self.img_channels = config.img_resolution, config.img_channels
        first, *widths = (
            min(config.channel_base // r, config.channel_max) for r in resolutions(config.img_resolution, smallest=8)
        )
        layers: list[nn.Module] = [
            nn.Linear(config.z_dim, first * 4 * 4),
            nn.Unflatten(1, (first, 4, 4)),
            nn.BatchNorm2d(first),
            nn.ReLU(),
        ]
        in_channels = first
        for width in widths:
            layers += [nn.ConvTranspose2d(in_channels, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            in_channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(in_channels, config.img_channels, 3, padding=1), nn.Tanh())
        self.apply(_dcgan_weights)

    def forward(self, z: Tensor, c: None = None) -> Tensor:
        """Latents (N, z_dim) to images (N, img_channels, img_resolution, img_resolution) in [-1, 1].

        Raises:
            ValueError: latents of another shape, or labels, which there are none of.
        """
        op = "dcgan.Generator"
        _no_labels(op, c)
        _check.is_float(op, z=z)
        _check.has_shape(op, "z", z, (len(z), self.z_dim), lambda: f"(N, {self.z_dim})")
        return self.layers(z)


class Discriminator(nn.Module):
    """Images to logits through convolutions and leaky ReLU, spectrally normalised at first choice.

    (Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018, table 3.) In training mode every
    call improves the estimates of the spectral norms by one step of power iteration, evaluation leaves them.

    Args:
        config: the shape of it.

    >>> logits = Discriminator()(torch.randn(4, 3, 64, 64))  # (4, 1)
    """

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = DiscriminatorConfig() if config is None else config
        if config.normalization not in get_args(Normalization):
            raise ValueError(
                f"fastvfx.dcgan.Discriminator: expected normalization to be one of "
                f"{', '.join(get_args(Normalization))}, got {config.normalization!r}"
            )
        self.c_dim, self.img_resolution, self.img_channels = 0, config.img_resolution, config.img_channels
        *widths, last = (
            min(config.channel_base // r, config.channel_max)
            for r in reversed(resolutions(config.img_resolution, smallest=8))
        )
        layers: list[nn.Module] = []
        in_channels = config.img_channels
        for width, below in zip(widths, [*widths[1:], last], strict=True):
            layers += self._step(nn.Conv2d(in_channels, width, 3, 1, 1), normalized=bool(layers))
            layers += self._step(nn.Conv2d(width, below, 4, 2, 1), normalized=True)
            in_channels = below
        layers += self._step(nn.Conv2d(last, last, 3, 1, 1), normalized=True)
        layers += [nn.Flatten(), nn.Linear(last * 4 * 4, 1)]
        self.layers = nn.Sequential(*layers)
        self.apply(_dcgan_weights)
        if config.normalization == "spectral":
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    spectral_norm(layer)

    def _step(self, conv: nn.Conv2d, normalized: bool) -> list[nn.Module]:
        batch_norm = [nn.BatchNorm2d(conv.out_channels)] if normalized and self.config.normalization == "batch" else []
        return [conv, *batch_norm, nn.LeakyReLU(self.config.slope)]

    def forward(self, img: Tensor, c: None = None) -> Tensor:
        """Images (N, img_channels, img_resolution, img_resolution) to logits (N, 1).

        Raises:
            ValueError: images of another shape, or labels, which there are none of.
        """
        op = "dcgan.Discriminator"
        _no_labels(op, c)
        size, channels = self.img_resolution, self.img_channels
        _check.is_float(op, img=img)
        _check.has_shape(op, "img", img, (len(img), channels, size, size), lambda: f"(N, {channels}, {size}, {size})")
        return self.layers(img)


def _no_labels(op: str, c: object) -> None:
    if c is not None:
        raise ValueError(f"fastvfx.{op}: expected c to be None, as there are no labels, got {type(c).__name__}")


def _dcgan_weights(module: nn.Module) -> None:
    """The paper's first weights: N(0, 0.02), and N(1, 0.02) for the scales of batch normalisation."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
