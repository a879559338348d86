"""Bias, leaky ReLU, gain and clamp behind a convolution of StyleGAN2, against what NVlabs falls back to in PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import plain_stylegan
import pytest
import torch
from harness import Race, Workload, against_torch
from torch import Tensor

import fastvfx

OPTIONS: dict[str, Any] = {"act": "lrelu", "clamp": 256.0}


def prepare(
    device: str,
    small: bool,
    shape: tuple[int, int, int, int],
    direction: str,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> Race:
    """Gradients to images and bias."""
    n, channels, height, width = (2, 3, 9, 7) if small else shape
    x = torch.randn(n, channels, height, width).to(device, dtype).contiguous(memory_format=layout)
    b = torch.randn(channels).to(device, dtype)

    def ours(x: Tensor, b: Tensor) -> Tensor:
        return fastvfx.bias_act(x, b, **OPTIONS)

    def formula(x: Tensor, b: Tensor) -> Tensor:
        return plain_stylegan.bias_act(x, b, **OPTIONS)

    # x is read and y written; backwards y and its gradient are read and that of x is written.
    forward, backward = 2 * x.nbytes, 3 * x.nbytes
    named = "channels_last" if layout is torch.channels_last else "contiguous"
    return against_torch(
        ours,
        formula,
        [x, b],
        device=device,
        grad=() if direction == "fwd" else (0, 1),
        items=x.numel(),
        item="element",
        shape=f"{[n, channels, height, width]}, {named}, lrelu, clamp, {str(dtype).removeprefix('torch.')}",
        n_bytes=forward if direction == "fwd" else forward + backward,
    )


LARGE, DEEP = (4, 64, 256, 256), (8, 512, 32, 32)
CASES: dict[str, dict[str, Any]] = {
    "64 channels, 256": {"shape": LARGE},
    "512 channels, 32": {"shape": DEEP},
    "64 channels, 256, channels_last": {"shape": LARGE, "layout": torch.channels_last},
    "64 channels, 256, bf16, channels_last": {
        "shape": LARGE,
        "dtype": torch.bfloat16,
        "layout": torch.channels_last,
    },
}
WORKLOADS = [
    Workload("bias_act", case, direction, partial(prepare, direction=direction, **sizes), target)
    for case, sizes in CASES.items()
    for direction, target in (("fwd", 6.0), ("fwd+bwd", 5.0))
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_bias_act(workload, versus):
    versus(workload)
