"""The first StyleGAN: styles by instance normalisation, grown from small images up.

The discriminator is that of progressive growing with a smoother filter:

>>> from fastvfx.models import pggan
>>> from fastvfx.models.stylegan1 import Generator, GeneratorConfig
>>> generator = Generator(GeneratorConfig(img_resolution=64))
>>> discriminator = pggan.Discriminator(pggan.DiscriminatorConfig(img_resolution=64, resample_filter=(1, 2, 1)))
>>> generator.growth = discriminator.growth = pggan.Growth(16, alpha=0.3)
>>> logits = discriminator(generator(torch.randn(4, 512)))  # (4, 1)
"""

from .config import GeneratorConfig, SynthesisConfig
from .generator import Generator
from .synthesis import SynthesisBlock, SynthesisNetwork, adaptive_instance_norm

__all__ = [
    "Generator",
    "GeneratorConfig",
    "SynthesisBlock",
    "SynthesisConfig",
    "SynthesisNetwork",
    "adaptive_instance_norm",
]
