"""Resampling of feature maps as in StyleGAN2 (a 4 x 4 filter) and StyleGAN3 (12 taps along each axis)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import Race, Workload, against_torch
from plain_stylegan import upfirdn2d as plain
from torch import Tensor

from fastvfx.functional import setup_filter, upfirdn2d

TAPS = {4: [1.0, 3, 3, 1], 12: [1.0, 2, 4, 7, 10, 12, 12, 10, 7, 4, 2, 1]}
STRIDED = "strided convolution"


def strided(x: Tensor, f: Tensor, up: int, down: int, padding: list[int], gain: float) -> Tensor:
    """The convolution that skips zeros or dropped pixels itself: transposed to go up, strided to go down."""
    c = x.shape[1]
    taps = f.shape[0]
    f = (f * gain ** (f.dim() / 2)).to(x.dtype)
    if up == 1:
        x, f = F.pad(x, padding), f.flip(list(range(f.dim())))
        if f.dim() == 2:
            return F.conv2d(x, f.expand(c, 1, -1, -1), stride=down, groups=c)
        x = F.conv2d(x, f[:, None].expand(c, 1, -1, -1), stride=(down, 1), groups=c)
        return F.conv2d(x, f[None].expand(c, 1, -1, -1), stride=(1, down), groups=c)
    # The result of a transposed convolution starts `taps - 1` pixels before that of ours, without padding.
    if f.dim() == 2:
        x = F.conv_transpose2d(x, f.expand(c, 1, -1, -1), stride=up, groups=c)
    else:
        x = F.conv_transpose2d(x, f[:, None].expand(c, 1, -1, -1), stride=(up, 1), groups=c)
        x = F.conv_transpose2d(x, f[None].expand(c, 1, -1, -1), stride=(1, up), groups=c)
    left, right, top, bottom = (p - taps + 1 for p in padding)
    return F.pad(x, [left, right + up - 1, top, bottom + up - 1])


def prepare(
    device: str,
    small: bool,
    direction: str,
    taps: int,
    up: int = 1,
    down: int = 1,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    n: int = 4,
) -> Race:
    """(n, 64, 256, 256), the gradient to the images."""
    n, channels, size = (1, 5, 16) if small else (n, 64, 256)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(n, channels, size, size).to(dtype).contiguous(memory_format=memory_format)
    f = setup_filter(TAPS[taps])
    before, after = (taps + up - 1) // 2 if up > 1 else (taps - down + 1) // 2, (taps - max(up, down)) // 2
    padding, gain = [before, after, before, after], float(up * up)

    def ours(x: Tensor, f: Tensor) -> Tensor:
        return upfirdn2d(x, f, up, down, padding, gain=gain)

    def formula(x: Tensor, f: Tensor) -> Tensor:
        return plain(x, f, up, down, padding, gain=gain)

    def without_zeros(x: Tensor, f: Tensor) -> Tensor:
        return strided(x, f, up, down, padding, gain)

    # The images are read and those of the result written; the backward reads and writes gradients of their size.
    pixels = n * channels * size * size
    n_bytes = dtype.itemsize * (pixels + pixels * up * up // (down * down))
    return against_torch(
        ours,
        formula,
        [x.to(device), f.to(device)],
        device=device,
        grad=() if direction == "fwd" else (0,),
        items=pixels,
        item="pixel",
        shape=f"{n}x{channels}x{size}x{size} {str(dtype).removeprefix('torch.')}"
        + (", channels last" if channels_last else "")
        + f", {taps} taps, up {up}, down {down}",
        n_bytes=n_bytes if direction == "fwd" else 2 * n_bytes,
        also={STRIDED: without_zeros},
    )


CASES: dict[str, dict[str, Any]] = {
    "up 2": {"taps": 4, "up": 2},
    "down 2": {"taps": 4, "down": 2},
    "up 2, channels last": {"taps": 4, "up": 2, "channels_last": True},
    "down 2, channels last": {"taps": 4, "down": 2, "channels_last": True},
    "up 2, bf16": {"taps": 4, "up": 2, "dtype": torch.bfloat16},
    "down 2, bf16": {"taps": 4, "down": 2, "dtype": torch.bfloat16},
    "up 2, 12 taps": {"taps": 12, "up": 2, "n": 1},
    "down 2, 12 taps": {"taps": 12, "down": 2, "n": 1},
}
TARGETS = {"up 2": {"fwd": 12.0, "fwd+bwd": 5.0}, "down 2": {"fwd": 7.0, "fwd+bwd": 5.0}}
WORKLOADS = [
    Workload(
        "upfirdn2d",
        case,
        direction,
        partial(prepare, direction=direction, **sizes),
        target=TARGETS.get(case, {}).get(direction),
    )
    for case, sizes in CASES.items()
    for direction in ("fwd", "fwd+bwd")
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_upfirdn2d(workload, versus):
    versus(workload)
