"""``op.conv2d_gradfix``: the same switch as NVlabs'."""

from ..torch_utils.ops.conv2d_gradfix import conv2d, conv_transpose2d, no_weight_gradients

__all__ = ["conv2d", "conv_transpose2d", "no_weight_gradients"]
