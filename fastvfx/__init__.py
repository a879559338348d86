"""fastvfx: fast differentiable operators and models for neural visual effects.

Operators are functions of tensors (:mod:`fastvfx.functional`, the common ones also here), modules hold parameters,
models are built from both. ``fastvfx info`` on the command line says what was built and what will run.
"""

from . import _ops, functional, patterns  # noqa: F401  (registers torch.ops.fastvfx)
from ._backend import backend, get_backend
from .attention import ClassAttention, FrameCache, Rotary, SpatioTemporalAttention
from .attention_blocks import AttentionBlock, ClassBlock, DividedBlock, FactorisedBlock, WindowBlock
from .convolution import EqualizedConv2d, EqualizedLinear, ModulatedConv2d, SynthesisLayer, ToRGB
from .encoding import Frequency, HashGrid, SphericalHarmonics
from .functional import (
    bias_act,
    composite,
    composite_alphas,
    conv2d_resample,
    filtered_lrelu,
    frequency,
    hashgrid,
    march_rays,
    merge_attentions,
    mlp,
    modulated_conv2d,
    pack_bits,
    prune_samples,
    ray_aabb_intersect,
    rotary_3d,
    scaled_dot_product_attention,
    spatiotemporal_attention,
    spherical_harmonics,
    unpack_bits,
    upfirdn2d,
)
from .grid import GridLevel, HashGridSpec
from .network import MLP
from .normalization import MinibatchStddev, PixelNorm
from .rays import OccupancyGrid
from .render import VolumeRenderer

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "AttentionBlock",
    "ClassAttention",
    "ClassBlock",
    "DividedBlock",
    "EqualizedConv2d",
    "EqualizedLinear",
    "FactorisedBlock",
    "FrameCache",
    "Frequency",
    "GridLevel",
    "HashGrid",
    "HashGridSpec",
    "MinibatchStddev",
    "ModulatedConv2d",
    "OccupancyGrid",
    "PixelNorm",
    "Rotary",
    "SpatioTemporalAttention",
    "SphericalHarmonics",
    "SynthesisLayer",
    "ToRGB",
    "VolumeRenderer",
    "WindowBlock",
    "__version__",
    "backend",
    "bias_act",
    "composite",
    "composite_alphas",
    "conv2d_resample",
    "filtered_lrelu",
    "frequency",
    "functional",
    "get_backend",
    "hashgrid",
    "march_rays",
    "merge_attentions",
    "mlp",
    "modulated_conv2d",
    "pack_bits",
    "patterns",
    "prune_samples",
    "ray_aabb_intersect",
    "rotary_3d",
    "scaled_dot_product_attention",
    "spatiotemporal_attention",
    "spherical_harmonics",
    "unpack_bits",
    "upfirdn2d",
]
