"""Progressive growing of GANs: a pair of networks that is trained from 4x4 pixels up.

>>> from fastvfx.models.pggan import Discriminator, Generator, GrowthSchedule
>>> generator, discriminator = Generator(), Discriminator()
>>> schedule = GrowthSchedule(img_resolution=256)
>>> generator.growth = discriminator.growth = growth = schedule.at(images_seen)
>>> fake, real = discriminator(generator(z)), discriminator(growth.images(photos))
"""

from .config import DiscriminatorConfig, GeneratorConfig
from .discriminator import Discriminator
from .generator import Generator
from .growth import Growth, GrowthSchedule

__all__ = ["Discriminator", "DiscriminatorConfig", "Generator", "GeneratorConfig", "Growth", "GrowthSchedule"]
