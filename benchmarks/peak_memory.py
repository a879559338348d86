"""Peak memory of training StyleGAN2's layers, beside the same modules on plain PyTorch.

python benchmarks/peak_memory.py

Each figure is the highest resident size of a process of its own, above what it was once parameters and inputs were
made and a step on small images had warmed everything up. Linux only: it reads /proc/self/status.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from pathlib import Path

import plain_stylegan
import torch
from torch import Tensor, nn

import fastvfx

VARIANTS = {
    "fastvfx": contextlib.nullcontext,
    "plain, scaled": lambda: plain_stylegan.plain(fused=False),
    "plain, per image": lambda: plain_stylegan.plain(fused=True),
}
STEPS = ("step", "path length")


class Layers(nn.Module):
    """Two blocks: each upsamples and convolves once more."""

    def __init__(self, channels: int, resolution: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            fastvfx.SynthesisLayer(channels, channels, 64, resolution * (2 if i < 2 else 4), up=2 - i % 2, clamp=256.0)
            for i in range(4)
        )

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, w)
        return x


def train(layers: Layers, x: Tensor, w: Tensor, step: str) -> None:
    y = layers(x, w)
    loss = y.float().square().mean()
    if step == "path length":
        (gradient,) = torch.autograd.grad((y.float() / y[0].numel() ** 0.5).sum(), w, create_graph=True)
        loss = gradient.square().sum()
    loss.backward()


def status(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(variant: str, step: str, dtype: torch.dtype, channels: int, resolution: int, n: int) -> float:
    """MiB."""
    torch.manual_seed(0)
    layers = Layers(channels, resolution)
    with VARIANTS[variant]():
        train(layers, torch.randn(1, channels, 4, 4).to(dtype), torch.randn(1, 64).requires_grad_(), step)
        layers.zero_grad(set_to_none=False)
        x, w = torch.randn(n, channels, resolution, resolution).to(dtype), torch.randn(n, 64).requires_grad_()
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        train(layers, x, w, step)
        return (status("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--resolution", type=int, default=32, help="of the first layer's input")
    parser.add_argument("-n", type=int, default=8, help="images")
    parser.add_argument("--one", nargs=3, metavar=("VARIANT", "STEP", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        variant, step, dtype = args.one
        print(measure(variant, step, getattr(torch, dtype), args.channels, args.resolution, args.n))
        return
    print(f"MiB above parameters and inputs: {args.n} images, {args.channels} channels, from {args.resolution} pixels")
    print(f"{'':28}" + "".join(f"{v:>18}" for v in VARIANTS))
    for dtype in ("float32", "bfloat16"):
        for step in STEPS:
            row = []
            for variant in VARIANTS:
                again = [sys.executable, __file__, *sys.argv[1:], "--one", variant, step, dtype]
                row.append(float(subprocess.run(again, capture_output=True, text=True, check=True).stdout))
            print(f"{dtype + ', ' + step:28}" + "".join(f"{r:>18.0f}" for r in row), flush=True)


if __name__ == "__main__":
    main()
