"""Modulated convolutions: scales around one convolution against a weight per image, and the penalties of training.

Baselines are StyleGAN2's two formulas in plain PyTorch: "scaled" multiplies the images around one convolution, as it is
trained ("torch eager" and "torch.compile"); "per image" makes a weight for each image and convolves in groups, as it
generates. Penalties are second derivatives, which torch.compile does not have.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import plain_stylegan
import pytest
import torch
from corners import moved_off_the_corner
from harness import Race, Workload, against_torch, compiled
from torch import Tensor

import fastvfx
from fastvfx.functional import setup_filter


def layer(
    function: Any, x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, noise: Tensor, up: int, act: str = "lrelu"
) -> Tensor:
    f = setup_filter([1, 3, 3, 1], x.device) if up > 1 else None
    return function(
        x, weight, styles, noise=noise, bias=bias, up=up, padding=1, resample_filter=f, flip_weight=up == 1,
        act=act, clamp=256.0,
    )  # fmt: skip


def penalised(layer: Any, wrt: int, x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, noise: Tensor) -> Tensor:
    """The gradient that a penalty is the norm of: by the images (R1) or by the styles (path length).

    Not the norm itself: in bfloat16 the error of one number is chance, and says nothing about either side.
    """
    y = layer(x, weight, styles, bias, noise)
    (gradient,) = torch.autograd.grad(y.sum(), (x, weight, styles)[wrt], create_graph=True)
    return gradient


def prepare(
    device: str, small: bool, sizes: tuple[int, int, int, int], up: int, dtype: torch.dtype, last: bool, what: str
) -> Race:
    n, channels, out, side = (2, 8, 8, 8) if small else sizes
    layout = torch.channels_last if last else torch.contiguous_format
    inputs = [
        torch.randn(n, channels, side, side, device=device).to(dtype).contiguous(memory_format=layout),
        torch.randn(out, channels, 3, 3, device=device),
        torch.rand(n, channels, device=device) + 0.5,
        torch.randn(out, device=device),
        torch.randn(n, 1, side * up, side * up, device=device),
    ]
    wide = [t.double() for t in inputs]
    plain = partial(plain_stylegan.modulated_conv2d, fused=False)
    inputs[3] = moved_off_the_corner(inputs[3], layer(plain, *wide, up=up, act="linear"))
    ours = partial(layer, fastvfx.modulated_conv2d, up=up)
    scaled = partial(layer, partial(plain_stylegan.modulated_conv2d, fused=False), up=up)
    per_image = partial(layer, plain_stylegan.modulated_conv2d, up=up)
    first_order = what in ("fwd", "fwd+bwd")
    grad: tuple[int, ...] = {"fwd": (), "fwd+bwd": (0, 1, 2, 3), "R1": (0, 1, 2), "path length": (0, 1, 2)}[what]
    also = {"per image": per_image}
    if first_order:
        also["per image, compiled"] = compiled(per_image)
    else:
        wrt = 0 if what == "R1" else 2
        ours, scaled = partial(penalised, ours, wrt), partial(penalised, scaled, wrt)
        also = {"per image": partial(penalised, per_image, wrt)}
    pixels = n * side * side
    return against_torch(
        ours,
        scaled,
        inputs,
        device=device,
        grad=grad,
        items=pixels * up * up,
        item="pixel",
        shape=f"{n} images of {side}x{side}, {channels} to {out} channels, up {up}, "
        f"{str(dtype).removeprefix('torch.')}, {'channels_last' if last else 'contiguous'}",
        flops=2 * pixels * channels * out * 9 * {"fwd": 1, "fwd+bwd": 3, "R1": 5, "path length": 8}[what],
        also=also,
        compile=first_order,
    )


SIZES = {"512 at 32": ((4, 512, 512, 32), 1), "256-128 at 64 up": ((4, 256, 128, 64), 2)}
DTYPES = {
    "fp32": (torch.float32, False, 1.1),
    "bf16": (torch.bfloat16, False, 2.0),
    "bf16 nhwc": (torch.bfloat16, True, 2.0),
}
WORKLOADS = [
    Workload(
        "modulated_conv2d", f"{case}, {name}", what,
        partial(prepare, sizes=sizes, up=up, dtype=dtype, last=last, what=what), target=target,
    )
    for case, (sizes, up) in SIZES.items()
    for name, (dtype, last, target) in DTYPES.items()
    for what in ("fwd", "fwd+bwd", "R1", "path length")
]  # fmt: skip


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_modulated_conv2d(workload, versus):
    versus(workload)
