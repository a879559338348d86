"""Every public operator, as functions of tensors. The modules of ``fastvfx`` are these with parameters."""

from .aabb import ray_aabb_intersect
from .attention import spatiotemporal_attention
from .bias_act import bias_act
from .composite import CompositeOutput, composite, composite_alphas
from .conv2d_resample import conv2d_resample
from .filtered_lrelu import filtered_lrelu
from .frequency import frequency
from .grid_sample import grid_sample
from .hashgrid import hashgrid
from .march import RaySamples, march_rays, prune_samples
from .merge_attentions import merge_attentions
from .minibatch_stddev import minibatch_stddev
from .mlp import mlp
from .modulated_conv2d import modulated_conv2d
from .occupancy import pack_bits, unpack_bits
from .rotary import rotary_3d
from .scaled_dot_product_attention import scaled_dot_product_attention
from .spherical_harmonics import spherical_harmonics
from .upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "CompositeOutput",
    "RaySamples",
    "bias_act",
    "composite",
    "composite_alphas",
    "conv2d_resample",
    "downsample2d",
    "filter2d",
    "filtered_lrelu",
    "frequency",
    "grid_sample",
    "hashgrid",
    "march_rays",
    "merge_attentions",
    "minibatch_stddev",
    "mlp",
    "modulated_conv2d",
    "pack_bits",
    "prune_samples",
    "ray_aabb_intersect",
    "rotary_3d",
    "scaled_dot_product_attention",
    "setup_filter",
    "spatiotemporal_attention",
    "spherical_harmonics",
    "unpack_bits",
    "upfirdn2d",
    "upsample2d",
]
