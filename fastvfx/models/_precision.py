"""Which dtype a block of a network computes in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Half = Literal["float16", "bfloat16"]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def block_dtype(weight: Tensor, half: Half | None, force_fp32: bool) -> torch.dtype:
    """The 16-bit type asked for, or that of the weights.

    float16 is for GPUs: processors gain nothing from it, and the published networks, trained with it, are run there in
    float32. bfloat16 counts everywhere.
    """
    if half is None or force_fp32 or (half == "float16" and weight.device.type == "cpu"):
        return weight.dtype
    return _DTYPES[half]
