"""Plain convolutional networks: DCGAN's generator, and a discriminator with spectral normalisation.

>>> from fastvfx.models.dcgan import Discriminator, Generator
>>> logits = Discriminator()(Generator()(torch.randn(4, 128)))  # (4, 1)
"""

from .config import DiscriminatorConfig, GeneratorConfig, Normalization
from .networks import Discriminator, Generator

__all__ = ["Discriminator", "DiscriminatorConfig", "Generator", "GeneratorConfig", "Normalization"]
