"""``torch_utils.ops``: one module for each operator, with the signatures of NVlabs' StyleGAN2-ADA and StyleGAN3.

``impl="cuda"``, their default, takes the best kernel there is for the tensors' device; ``impl="ref"`` runs PyTorch.
What they allow and we do too: assertions of theirs are ``ValueError`` or ``TypeError`` here. What is new: bfloat16,
more than 2^31 elements, gradients of the filters, every order of derivative.
"""

from . import (
    bias_act,
    conv2d_gradfix,
    conv2d_resample,
    filtered_lrelu,
    fma,
    grid_sample_gradfix,
    upfirdn2d,
)

__all__ = [
    "bias_act",
    "conv2d_gradfix",
    "conv2d_resample",
    "filtered_lrelu",
    "fma",
    "grid_sample_gradfix",
    "upfirdn2d",
]
