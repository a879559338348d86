"""Registration of every operator as ``torch.ops.fastvfx.*``."""

from . import (
    aabb,
    attention,
    composite,
    conv2d,
    filtered_lrelu,
    frequency,
    hashgrid,
    march,
    mlp,
    occupancy,
    spherical_harmonics,
    square_sums,
    upfirdn2d,
)

__all__ = [
    "aabb",
    "attention",
    "composite",
    "conv2d",
    "filtered_lrelu",
    "frequency",
    "hashgrid",
    "march",
    "mlp",
    "occupancy",
    "spherical_harmonics",
    "square_sums",
    "upfirdn2d",
]
