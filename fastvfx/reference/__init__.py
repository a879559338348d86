"""Every operator in plain PyTorch: the fallback where no kernel was built, and the oracle of the tests."""

from .aabb import ray_aabb_intersect
from .attention import attention
from .bias_act import bias_act, scaled_bias_act
from .composite import composite
from .conv2d_resample import conv2d_resample
from .filtered_lrelu import filtered_lrelu
from .frequency import frequency
from .grid_sample import grid_sample
from .hashgrid import hashgrid
from .march import march
from .minibatch_stddev import minibatch_stddev
from .mlp import mlp
from .modulated_conv2d import modulated_conv2d
from .occupancy import pack_bits, unpack_bits
from .spherical_harmonics import spherical_harmonics
from .upfirdn2d import upfirdn2d

__all__ = [
    "attention",
    "bias_act",
    "composite",
    "conv2d_resample",
    "filtered_lrelu",
    "frequency",
    "grid_sample",
    "hashgrid",
    "march",
    "minibatch_stddev",
    "mlp",
    "modulated_conv2d",
    "pack_bits",
    "ray_aabb_intersect",
    "scaled_bias_act",
    "spherical_harmonics",
    "unpack_bits",
    "upfirdn2d",
]
