"""StyleGAN3: images from noise, whose details move with what they belong to.

>>> from fastvfx.models.stylegan3 import Generator, GeneratorConfig
>>> generator = Generator(GeneratorConfig.config_r(img_resolution=64))
>>> images = generator(torch.randn(4, 512))  # (4, 3, 64, 64)
"""

from .config import GeneratorConfig, SynthesisConfig
from .filters import lowpass_filter
from .fourier import SynthesisInput
from .generator import Generator
from .schedule import Signal, signals
from .synthesis import SynthesisLayer, SynthesisNetwork
from .weights import load_generator

__all__ = [
    "Generator",
    "GeneratorConfig",
    "Signal",
    "SynthesisConfig",
    "SynthesisInput",
    "SynthesisLayer",
    "SynthesisNetwork",
    "load_generator",
    "lowpass_filter",
    "signals",
]
