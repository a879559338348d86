"""Every operator in plain PyTorch: the fallback where no kernel was built, and the oracle of the tests."""

from .aabb import ray_aabb_intersect
from .composite import composite
from .frequency import frequency
from .hashgrid import hashgrid
from .march import march
from .mlp import mlp
from .occupancy import pack_bits, unpack_bits
from .spherical_harmonics import spherical_harmonics

__all__ = [
    "composite",
    "frequency",
    "hashgrid",
    "march",
    "mlp",
    "pack_bits",
    "ray_aabb_intersect",
    "spherical_harmonics",
    "unpack_bits",
]
