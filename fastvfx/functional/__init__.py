"""Every public operator, as functions of tensors. The modules of ``fastvfx`` are these with parameters."""

from .aabb import ray_aabb_intersect
from .composite import CompositeOutput, composite, composite_alphas
from .frequency import frequency
from .hashgrid import hashgrid
from .march import RaySamples, march_rays, prune_samples
from .mlp import mlp
from .occupancy import pack_bits, unpack_bits
from .spherical_harmonics import spherical_harmonics

__all__ = [
    "CompositeOutput",
    "RaySamples",
    "composite",
    "composite_alphas",
    "frequency",
    "hashgrid",
    "march_rays",
    "mlp",
    "pack_bits",
    "prune_samples",
    "ray_aabb_intersect",
    "spherical_harmonics",
    "unpack_bits",
]
