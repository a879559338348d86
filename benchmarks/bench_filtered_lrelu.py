"""The nonlinearity of StyleGAN3: layers of T at 256x256 images, and a filter of R that is no product of two."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from harness import Race, Workload, against_torch
from plain_stylegan import filtered_lrelu as plain
from torch import Tensor

from fastvfx.functional import filtered_lrelu
from fastvfx.models.stylegan3.filters import lowpass_filter


def prepare(
    device: str,
    small: bool,
    direction: str,
    up: int,
    down: int,
    size: int = 276,
    channels: int = 128,
    radial: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Race:
    """(1, channels, size, size), six taps for each factor; gradients to images and bias."""
    channels, size = (3, 20) if small else (channels, size)
    fu = lowpass_filter(6 * up, 0.25, 0.2, float(up), radial)
    fd = lowpass_filter(6 * down, 0.25, 0.2, float(down), radial)
    assert fu is not None and fd is not None
    before = (6 * up + 6 * down - 2) // 2
    padding = [before, before - 1, before, before - 1]
    options: dict[str, Any] = {"up": up, "down": down, "padding": padding, "clamp": 256.0}
    inputs = [torch.randn(1, channels, size, size).to(dtype), fu, fd, torch.randn(channels).to(dtype)]

    def ours(x: Tensor, fu: Tensor, fd: Tensor, b: Tensor) -> Tensor:
        return filtered_lrelu(x, fu, fd, b, **options)

    def formula(x: Tensor, fu: Tensor, fd: Tensor, b: Tensor) -> Tensor:
        return plain(x, fu, fd, b, **options)

    pixels = channels * size * size
    between = pixels * up * up
    # Polyphase: of an upsampling filter only every up-th tap meets a pixel, along each axis if it is a product.
    if radial:
        flops = 2 * between * 36 + 2 * between // down**2 * (6 * down) ** 2
    else:
        flops = 2 * 6 * (pixels * up + between) + 2 * 6 * down * (between // down + between // down**2)
    return against_torch(
        ours,
        formula,
        [x.to(device) for x in inputs],
        device=device,
        grad=() if direction == "fwd" else (0, 3),
        items=pixels,
        item="pixel",
        shape=f"1x{channels}x{size}x{size} {str(dtype).removeprefix('torch.')}, up {up}, down {down}"
        + (", radial" if radial else ""),
        n_bytes=dtype.itemsize * (pixels + between // down**2) * (1 if direction == "fwd" else 2),
        flops=flops * (1 if direction == "fwd" else 2),
    )


CASES: dict[str, dict[str, Any]] = {
    "up 2 down 2": {"up": 2, "down": 2},
    "up 2 down 2, bf16": {"up": 2, "down": 2, "dtype": torch.bfloat16},
    "up 4 down 2": {"up": 4, "down": 2, "size": 148},
    "up 2 down 2, radial": {"up": 2, "down": 2, "size": 148, "channels": 32, "radial": True},
}
TARGETS = {"up 2 down 2": {"fwd": 25.0, "fwd+bwd": 5.0}}
WORKLOADS = [
    Workload(
        "filtered_lrelu",
        case,
        direction,
        partial(prepare, direction=direction, **sizes),
        TARGETS.get(case, {}).get(direction),
    )
    for case, sizes in CASES.items()
    for direction in ("fwd", "fwd+bwd")
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_filtered_lrelu(workload, versus):
    versus(workload)
