"""``torch_utils.ops.conv2d_resample``."""

from ....functional import conv2d_resample

__all__ = ["conv2d_resample"]
