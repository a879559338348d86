"""Shapes of the generator of the first StyleGAN, as plain dataclasses that go into a checkpoint as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from .._config import Config
from ..stylegan2.config import MappingConfig


@dataclass(frozen=True)
class SynthesisConfig(Config):
    """From styles to images.

    Attributes:
        channel_base, channel_max: a layer at resolution r has ``min(channel_base // r, channel_max)`` channels.
        resample_filter: taps of the low-pass filter of upsampling.
        activation: of :func:`fastvfx.bias_act`.
        use_noise: add noise to every layer.
    """

    channel_base: int = 16384
    channel_max: int = 512
    resample_filter: tuple[float, ...] = (1, 2, 1)
    activation: str = "lrelu"
    use_noise: bool = True


@dataclass(frozen=True)
class GeneratorConfig(Config):
    """All of a generator.

    Attributes:
        z_dim, c_dim, w_dim: dimensions of latents, of labels (0 for none) and of styles.
        img_resolution: a power of two from 8, fully grown.
        img_channels: of the images.
        mapping, synthesis: of its two halves.
    """

    z_dim: int = 512
    c_dim: int = 0
    w_dim: int = 512
    img_resolution: int = 256
    img_channels: int = 3
    mapping: MappingConfig = field(default_factory=lambda: MappingConfig(w_avg_beta=0.995))
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
