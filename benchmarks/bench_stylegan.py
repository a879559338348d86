"""Whole networks of StyleGAN: synthesis of an image, and the R1 step of a discriminator.

The baseline is the same network on ``plain_stylegan``: what a project runs where no plugin was built, with a weight for
each image ("fused") and without.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import plain_stylegan
import pytest
import torch
from corners import moved_off_the_corner
from harness import COMPILED, EAGER, OURS, ROUNDING, CheckFailed, Race, Workload, compiled, error
from plain_stylegan import plain
from torch import Tensor, nn

from fastvfx.models import stylegan2, stylegan3

NOT_FUSED = "torch eager, not fused"
#: Seconds that torch.compile has for a network; the whole file is to be done in a few minutes.
COMPILATION = 100


class TookTooLong(BaseException):
    """No Exception: what compiles catches those."""


def ends_within(seconds: int, call: Callable[[], object]) -> bool:
    def stop(*_: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        call()
    except TookTooLong:
        return False
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return True


def keep_off_corners(model: nn.Module, images: Tensor) -> None:
    """Moves the biases of convolutions in front of a leaky ReLU, one layer after the other."""

    def bias_act(x: Tensor, b: Tensor | None = None, dim: int = 1, act: str = "linear", **options: Any) -> Tensor:
        if act == "lrelu" and isinstance(b, nn.Parameter):
            b.data = moved_off_the_corner(b.data, x + b.data[:, None, None])
        return plain_stylegan.bias_act(x, b, dim, act, **options)

    model.double()
    with torch.no_grad(), plain(False), patch("fastvfx.convolution.bias_act", bias_act):
        model(images.double())
    model.float()


def race(model: nn.Module, run: Callable[[], list[Tensor]], shape: str, compile: Callable[[], Any] | None) -> Race:
    """``run()`` on our operators against ``run()`` on plain ones; ``compile()`` returns ``run`` of a compiled model.

    The oracle is the plain network in float64; the rule that of ``against_torch``.
    """

    def on_plain(fused: bool, function: Callable[[], list[Tensor]], _: int) -> list[Tensor]:
        with plain(fused):
            return function()

    baselines = {EAGER: partial(on_plain, True, run), NOT_FUSED: partial(on_plain, False, run)}
    if compile is not None:
        compiled_call = partial(on_plain, False, compile())
        if ends_within(COMPILATION, lambda: compiled_call(0)):
            baselines[COMPILED] = compiled_call
    calls = {OURS: lambda _: run(), **baselines}

    def check() -> dict[str, float]:
        state = {name: x.clone() for name, x in model.state_dict().items()}
        model.double()
        exact = [x.clone() for x in on_plain(False, run, 0)]
        model.float().load_state_dict(state)
        by_torch = error(baselines[EAGER](0), exact)
        errors = {}
        for name, call in calls.items():
            each = error(call(0), exact)
            for i, (e, same) in enumerate(zip(each, by_torch, strict=True)):
                allowed = (1 if name == OURS else 10) * (2 * same + ROUNDING[torch.float32])
                if not e <= allowed:
                    raise CheckFailed(f"{name}: result {i} is off by {e:.3g}, allowed {allowed:.3g}")
            errors[name] = max(each)
        return errors

    return Race(calls[OURS], baselines, check, shape, 1, "call")


def synthesis(device: str, small: bool, make: Callable[[int, dict[str, Any]], nn.Module], size: int, n: int) -> Race:
    """Images from styles with constant noise, no gradients.

    torch.compile is a baseline where it is done with the network within a hundred seconds.
    """
    size = 32 if small else size
    widths = {"channel_base": 512, "channel_max": 16} if small else {}
    model = make(size, widths).to(device).requires_grad_(False)
    ws = torch.randn(n, model.num_ws, model.w_dim, device=device)

    def run(network: Callable[..., Tensor] = model.synthesis) -> list[Tensor]:
        with torch.no_grad():
            return [network(ws.to(next(model.parameters()).dtype), noise_mode="const")]

    return race(
        model,
        run,
        f"{n} image of {size}x{size}",
        None if small or size > 256 else lambda: partial(run, compiled(model.synthesis)),
    )


def style_gan_2(size: int, widths: dict[str, Any]) -> nn.Module:
    config = stylegan2.SynthesisConfig(**widths)
    return stylegan2.Generator(stylegan2.GeneratorConfig(img_resolution=size, synthesis=config))


def style_gan_3(size: int, widths: dict[str, Any]) -> nn.Module:
    config = stylegan3.SynthesisConfig(**widths)
    return stylegan3.Generator(stylegan3.GeneratorConfig(img_resolution=size, synthesis=config))


def r1(device: str, small: bool, n: int = 4) -> Race:
    """Gradients of the R1 penalty to all weights of a discriminator: forward, backward, and the backward of both.

    torch.compile has no second derivative, so there is no such baseline.
    """
    size = 32 if small else 256
    widths = {"channel_base": 512, "channel_max": 16} if small else {"channel_base": 16384}
    model = stylegan2.Discriminator(stylegan2.DiscriminatorConfig(img_resolution=size, **widths)).to(device)
    images = torch.rand(n, 3, size, size, device=device) * 2 - 1
    keep_off_corners(model, images)

    def run() -> list[Tensor]:
        real = images.to(next(model.parameters()).dtype).requires_grad_()
        logits = model(real)
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        penalty = gradient.square().sum([1, 2, 3]).mean()
        weights = [p for p in model.parameters() if p.dim() > 1]
        return [penalty.detach(), *torch.autograd.grad(penalty, weights)]

    return race(model, run, f"{n} images of {size}x{size}", None)


WORKLOADS = [
    Workload("StyleGAN2", "synthesis 256", "fwd", partial(synthesis, make=style_gan_2, size=256, n=1), 1.7),
    Workload("StyleGAN2", "synthesis 1024", "fwd", partial(synthesis, make=style_gan_2, size=1024, n=1), 1.9),
    Workload("StyleGAN3-T", "synthesis 256", "fwd", partial(synthesis, make=style_gan_3, size=256, n=1), 3.0),
    Workload("StyleGAN2", "R1 of a 256 discriminator", "step", r1, 2.0),
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_stylegan(workload, versus):
    versus(workload)
