"""What every layer of the synthesis network is sampled at: the paper's progression of frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import SynthesisConfig


@dataclass(frozen=True)
class Signal:
    """What runs between two layers. Frequencies in cycles, rates in pixels, per width of the image.

    Attributes:
        channels: number of them.
        size: width and height, the margin included.
        rate: sampling rate.
        cutoff: frequency that filters let through by half.
        half_width: of the transition band, which ends at ``cutoff + half_width``.
    """

    channels: int
    size: int
    rate: int
    cutoff: float
    half_width: float

    def __str__(self) -> str:
        return (
            f"{self.channels}x{self.size}x{self.size} at rate {self.rate}, cutoff {self.cutoff:.4g} "
            f"+- {self.half_width:.4g}"
        )


def signals(img_resolution: int, img_channels: int, config: SynthesisConfig) -> list[Signal]:
    """Behind each of the ``num_layers + 1`` layers; the first is that of the Fourier features as well.

    Cutoff and stopband grow geometrically up to the critically sampled layers (appendix C.1 of the paper, equations 8
    and 9, figure 4). A layer is sampled at the power of two that holds its stopband, at most at the resolution.

    Raises:
        ValueError: a resolution or numbers of layers that have no such progression.
    """
    if img_resolution < 8 or img_resolution & (img_resolution - 1):
        raise ValueError(
            f"fastvfx.stylegan3: expected img_resolution to be a power of two from 8, got {img_resolution}"
        )
    if not 0 <= config.num_critical < config.num_layers:
        raise ValueError(
            "fastvfx.stylegan3: expected num_critical from 0 to below num_layers, got "
            f"num_critical={config.num_critical}, num_layers={config.num_layers}"
        )
    last_cutoff = img_resolution / 2
    last_stopband = last_cutoff * config.last_stopband_rel
    result = []
    for layer in range(config.num_layers + 1):
        progress = min(layer / (config.num_layers - config.num_critical), 1.0)
        cutoff = config.first_cutoff * (last_cutoff / config.first_cutoff) ** progress
        stopband = config.first_stopband * (last_stopband / config.first_stopband) ** progress
        rate = 1 << math.ceil(math.log2(min(2 * stopband, img_resolution)))
        last = layer == config.num_layers
        channels = img_channels if last else round(min(config.channel_base / 2 / cutoff, config.channel_max))
        size = img_resolution if layer >= config.num_layers - 1 else rate + 2 * config.margin_size
        result.append(Signal(channels, size, rate, cutoff, max(stopband, rate / 2) - cutoff))
    return result
