"""The generator: mapping and synthesis."""

from __future__ import annotations

from ..pggan import Growth
from ..stylegan2.generator import StyleGenerator
from .config import GeneratorConfig
from .synthesis import SynthesisNetwork


class Generator(StyleGenerator):
    """StyleGAN's first generator (Karras et al., "A Style-Based Generator Architecture for Generative Adversarial
    Networks", 2019).

    Args:
        config: the shape of it.

    >>> generator = Generator(GeneratorConfig(img_resolution=64))
    >>> images = generator(torch.randn(4, 512), truncation_psi=0.7, truncation_cutoff=8)  # (4, 3, 64, 64)
    """

    config: GeneratorConfig
    synthesis: SynthesisNetwork

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        config = GeneratorConfig() if config is None else config
        super().__init__(
            config, SynthesisNetwork(config.w_dim, config.img_resolution, config.img_channels, config.synthesis)
        )

    @property
    def growth(self) -> Growth:
        """Which blocks take part; all, at first. The same as the discriminator's."""
        return self.synthesis.growth

    @growth.setter
    def growth(self, growth: Growth) -> None:
        self.synthesis.growth = growth

    @property
    def styles_in_use(self) -> int:
        """How many of the ``num_ws`` styles reach the image as far as it has grown."""
        return 2 * (self.growth.resolution.bit_length() - 2)
