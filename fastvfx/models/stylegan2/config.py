"""Shapes of the networks of StyleGAN2, as plain dataclasses that go into a checkpoint as JSON.

Names are those of NVIDIA's PyTorch release where it has one for the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .._config import Config
from .._precision import Half

Architecture = Literal["orig", "skip", "resnet"]


@dataclass(frozen=True)
class MappingConfig(Config):
    """From latents to styles.

    Attributes:
        num_layers: fully connected layers.
        embed_features: width of the embedding of the label; ``None`` for that of the output.
        layer_features: width between the layers; ``None`` for that of the output.
        activation: of :func:`fastvfx.bias_act`.
        lr_multiplier: learning rate relative to the other layers.
        w_avg_beta: decay of the moving average of w, per step; ``None`` keeps no average.
    """

    num_layers: int = 8
    embed_features: int | None = None
    layer_features: int | None = None
    activation: str = "lrelu"
    lr_multiplier: float = 0.01
    w_avg_beta: float | None = 0.998


@dataclass(frozen=True)
class SynthesisConfig(Config):
    """From styles to images.

    Attributes:
        architecture: how the image leaves the network: at the end (``"orig"``), summed up over resolutions
            (``"skip"``), or at the end of residual blocks (``"resnet"``).
        channel_base, channel_max: a layer at resolution r has ``min(channel_base // r, channel_max)`` channels.
        num_half_res: the highest so many resolutions are computed in ``half_dtype``.
        half_dtype: ``"float16"`` (GPUs only; on a CPU these blocks stay float32) or ``"bfloat16"``.
        conv_clamp: activations are limited to [-conv_clamp, conv_clamp]; ``None`` leaves them.
        resample_filter: taps of the low-pass filter of up- and downsampling.
        kernel_size: of the convolutions.
        activation: of :func:`fastvfx.bias_act`.
        use_noise: add noise to every layer.
    """

    architecture: Architecture = "skip"
    channel_base: int = 32768
    channel_max: int = 512
    num_half_res: int = 0
    half_dtype: Half = "float16"
    conv_clamp: float | None = 256
    resample_filter: tuple[float, ...] = (1, 3, 3, 1)
    kernel_size: int = 3
    activation: str = "lrelu"
    use_noise: bool = True


@dataclass(frozen=True)
class GeneratorConfig(Config):
    """All of a generator.

    Attributes:
        z_dim, c_dim, w_dim: dimensions of latents, of labels (0 for none) and of styles.
        img_resolution: a power of two from 4.
        img_channels: of the images.
        mapping, synthesis: of its two halves.
    """

    z_dim: int = 512
    c_dim: int = 0
    w_dim: int = 512
    img_resolution: int = 256
    img_channels: int = 3
    mapping: MappingConfig = field(default_factory=MappingConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)


@dataclass(frozen=True)
class DiscriminatorConfig(Config):
    """All of a discriminator; see :class:`SynthesisConfig` for what both have.

    Attributes:
        c_dim: dimension of labels, 0 for none.
        img_resolution: a power of two from 8.
        img_channels: of the images.
        architecture: the image enters at the first block (``"orig"``), at all of them (``"skip"``), or at the first of
            residual ones (``"resnet"``).
        cmap_dim: dimension that labels are mapped to; ``None`` for the channels at 4x4.
        mapping: of the network that does it.
        mbstd_group_size, mbstd_num_channels: of :class:`fastvfx.MinibatchStddev`; 0 channels leave it out.
        freeze_layers: the first so many layers, counted from the image, are not trained (Freeze-D).
    """

    c_dim: int = 0
    img_resolution: int = 256
    img_channels: int = 3
    architecture: Architecture = "resnet"
    channel_base: int = 32768
    channel_max: int = 512
    num_half_res: int = 0
    half_dtype: Half = "float16"
    conv_clamp: float | None = 256
    resample_filter: tuple[float, ...] = (1, 3, 3, 1)
    activation: str = "lrelu"
    cmap_dim: int | None = None
    mapping: MappingConfig = field(default_factory=lambda: MappingConfig(w_avg_beta=None))
    mbstd_group_size: int | None = 4
    mbstd_num_channels: int = 1
    freeze_layers: int = 0


def resolutions(img_resolution: int, smallest: int) -> list[int]:
    """Powers of two from 4 to ``img_resolution``.

    Raises:
        ValueError: the last is none of them, or below ``smallest``.
    """
    if img_resolution < smallest or img_resolution & (img_resolution - 1):
        raise ValueError(
            f"fastvfx.stylegan2: expected img_resolution to be a power of two from {smallest}, got {img_resolution}"
        )
    return [1 << k for k in range(2, img_resolution.bit_length())]


def half_above(img_resolution: int, num_half_res: int) -> int:
    """The lowest resolution that is computed in 16 bits; 4x4 never is."""
    return max(2 * img_resolution >> num_half_res, 8)
