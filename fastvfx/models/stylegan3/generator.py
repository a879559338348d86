"""The generator: mapping and synthesis."""

from __future__ import annotations

from ..stylegan2.generator import StyleGenerator
from .config import GeneratorConfig
from .synthesis import SynthesisNetwork


class Generator(StyleGenerator):
    """StyleGAN3's generator, T or R. Its discriminator is :class:`fastvfx.models.stylegan2.Discriminator`.

    Parameters and buffers have the names and shapes of NVIDIA's PyTorch release, so that ``load_state_dict`` takes its
    weights; :mod:`fastvfx.models.stylegan3.weights` opens its files.

    Args:
        config: the shape of it.

    >>> generator = Generator(GeneratorConfig(img_resolution=64))
    >>> images = generator(torch.randn(4, 512), truncation_psi=0.7)  # (4, 3, 64, 64)
    """

    config: GeneratorConfig
    synthesis: SynthesisNetwork

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        config = GeneratorConfig() if config is None else config
        super().__init__(
            config, SynthesisNetwork(config.w_dim, config.img_resolution, config.img_channels, config.synthesis)
        )
