"""Shapes of StyleGAN3's generators, as plain dataclasses that go into a checkpoint as JSON.

Names are those of NVIDIA's PyTorch release where it has one for the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .._config import Config
from .._precision import Half
from ..stylegan2 import MappingConfig


@dataclass(frozen=True)
class SynthesisConfig(Config):
    """From styles to images. Frequencies are in cycles, sampling rates in pixels, per width of the image.

    Attributes:
        channel_base, channel_max: a layer of cutoff f has ``min(channel_base / 2 / f, channel_max)`` channels.
        num_layers: between the Fourier features and the layer that makes colours.
        num_critical: the last so many of them are critically sampled.
        first_cutoff, first_stopband: of the first layer.
        last_stopband_rel: stopband of the last layer, relative to its cutoff, which is half of the resolution.
        margin_size: pixels around the image, in every layer but the last two.
        output_scale: factor of the image.
        num_half_res: layers that are sampled at one of the highest so many resolutions compute in ``half_dtype``.
        half_dtype: ``"float16"`` (GPUs only; on a CPU these layers stay float32) or ``"bfloat16"``.
        conv_kernel: size of the convolutions; 1 makes the network equivariant to rotation.
        filter_size: taps of the filters per pixel of the lower resolution.
        lrelu_upsampling: sampling rate of the nonlinearity, relative to the higher of the two beside it.
        use_radial_filters: downsample with radially symmetric filters, but in critically sampled layers.
        conv_clamp: activations are limited to [-conv_clamp, conv_clamp]; ``None`` leaves them.
        magnitude_ema_beta: decay of the moving average of the input's mean square, per step.
    """

    channel_base: int = 32768
    channel_max: int = 512
    num_layers: int = 14
    num_critical: int = 2
    first_cutoff: float = 2.0
    first_stopband: float = 2**2.1
    last_stopband_rel: float = 2**0.3
    margin_size: int = 10
    output_scale: float = 0.25
    num_half_res: int = 0
    half_dtype: Half = "float16"
    conv_kernel: int = 3
    filter_size: int = 6
    lrelu_upsampling: int = 2
    use_radial_filters: bool = False
    conv_clamp: float | None = 256
    magnitude_ema_beta: float = 0.999


@dataclass(frozen=True)
class GeneratorConfig(Config):
    """All of a generator. The defaults are the paper's config T; :meth:`config_r` is the other one.

    Attributes:
        z_dim, c_dim, w_dim: dimensions of latents, of labels (0 for none) and of styles.
        img_resolution: a power of two.
        img_channels: of the images.
        mapping, synthesis: of its two halves.
    """

    z_dim: int = 512
    c_dim: int = 0
    w_dim: int = 512
    img_resolution: int = 256
    img_channels: int = 3
    mapping: MappingConfig = field(default_factory=lambda: MappingConfig(num_layers=2))
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)

    @classmethod
    def config_r(cls, img_resolution: int = 256, channel_base: int = 32768, channel_max: int = 512) -> GeneratorConfig:
        """Equivariant to rotation too: 1x1 convolutions, radial filters, twice the channels that are asked for."""
        synthesis = SynthesisConfig(
            channel_base=2 * channel_base, channel_max=2 * channel_max, conv_kernel=1, use_radial_filters=True
        )
        return cls(img_resolution=img_resolution, synthesis=synthesis)
