"""StyleGAN2: images from noise, and what tells them from photographs.

>>> from fastvfx.models.stylegan2 import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
>>> generator = Generator(GeneratorConfig(img_resolution=64))
>>> discriminator = Discriminator(DiscriminatorConfig(img_resolution=64))
>>> logits = discriminator(generator(torch.randn(4, 512)))  # (4, 1)
"""

from .config import Architecture, DiscriminatorConfig, GeneratorConfig, MappingConfig, SynthesisConfig
from .discriminator import Discriminator, DiscriminatorBlock, DiscriminatorEpilogue
from .generator import Generator
from .mapping import MappingNetwork
from .rosinality import from_rosinality, to_rosinality
from .synthesis import SynthesisBlock, SynthesisNetwork
from .weights import average_w, load_discriminator, load_generator

__all__ = [
    "Architecture",
    "Discriminator",
    "DiscriminatorBlock",
    "DiscriminatorConfig",
    "DiscriminatorEpilogue",
    "Generator",
    "GeneratorConfig",
    "MappingConfig",
    "MappingNetwork",
    "SynthesisBlock",
    "SynthesisConfig",
    "SynthesisNetwork",
    "average_w",
    "from_rosinality",
    "load_discriminator",
    "load_generator",
    "to_rosinality",
]
