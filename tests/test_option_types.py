"""Options of the wrong type: every operator names them instead of failing inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastvfx
from fastvfx import functional

IMAGES = torch.rand(2, 4, 6, 6)
POINTS = torch.rand(5, 3)
RAYS = (torch.zeros(5, 3), torch.ones(5, 3))
BOX = torch.tensor([[-1.0, -1, -1, 1, 1, 1]])
BITS = fastvfx.pack_bits(torch.ones(1, 4, 4, 4, dtype=torch.bool))
SAMPLES = (torch.rand(5), torch.rand(5, 3), torch.arange(5.0), torch.arange(5.0) + 1, torch.tensor([0, 5]))
TOKENS = (torch.rand(1, 2, 3, 4, 2, 8),) * 3
TEXT = (torch.rand(1, 2, 5, 8),) * 3

CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "bias_act": (fastvfx.bias_act, (IMAGES, torch.rand(4))),
    "composite": (fastvfx.composite, SAMPLES),
    "conv2d_resample": (functional.conv2d_resample, (IMAGES, torch.rand(4, 4, 3, 3))),
    "filtered_lrelu": (fastvfx.filtered_lrelu, (IMAGES,)),
    "frequency": (fastvfx.frequency, (POINTS,)),
    "grid_sample": (functional.grid_sample, (IMAGES, torch.rand(2, 3, 3, 2))),
    "march_rays": (fastvfx.march_rays, (*RAYS, BITS, BOX, 4)),
    "minibatch_stddev": (functional.minibatch_stddev, (IMAGES,)),
    "mlp": (fastvfx.mlp, (POINTS,)),
    "modulated_conv2d": (fastvfx.modulated_conv2d, (IMAGES, torch.rand(4, 4, 3, 3), torch.rand(2, 4))),
    "ray_aabb_intersect": (fastvfx.ray_aabb_intersect, (*RAYS, BOX)),
    "scaled_dot_product_attention": (functional.scaled_dot_product_attention, TEXT),
    "spatiotemporal_attention": (fastvfx.spatiotemporal_attention, TOKENS),
    "spherical_harmonics": (fastvfx.spherical_harmonics, (POINTS,)),
    "upfirdn2d": (fastvfx.upfirdn2d, (IMAGES, torch.rand(3))),
}
# What they cannot be called without.
REST: dict[str, dict[str, Any]] = {
    "frequency": {"n_frequencies": 2},
    "march_rays": {"step_size": 0.1},
    "mlp": {"weights": [torch.rand(2, 3)]},
    "spherical_harmonics": {"degree": 2},
}
WRONG: dict[str, dict[str, Any]] = {
    "bias_act": {"act": ["relu"], "alpha": "0.2", "gain": (1, 2), "clamp": "1", "dim": 1.0},
    "composite": {"depth": None, "depth_threshold": "a", "early_stop_eps": None, "padded": "no", "return_weights": 1},
    "conv2d_resample": {"up": 2.0, "groups": "1", "flip_weight": None, "flip_filter": 1},
    "filtered_lrelu": {"up": True, "down": None, "gain": None, "slope": "0.2", "clamp": [1], "flip_filter": 0},
    "frequency": {"n_frequencies": 2.0},
    "grid_sample": {"mode": ["bilinear"], "padding_mode": 0, "align_corners": 1},
    "march_rays": {"step_size": "a", "cone_angle": None, "near": "0", "jitter_seed": 0.5, "capacity": 2.0},
    "minibatch_stddev": {"group_size": "2", "num_channels": None},
    "mlp": {"weights": 3},
    "modulated_conv2d": {"up": 1.5, "demodulate": "yes", "normalize": None, "act": 3, "gain": [1.0]},
    "ray_aabb_intersect": {"near": None, "far": [1.0], "miss_value": "inf"},
    "scaled_dot_product_attention": {"dropout_p": None, "is_causal": 1, "scale": "a", "enable_gqa": None},
    "spatiotemporal_attention": {"scale": "a", "dropout": None, "seed": 0.5, "softcap": [1], "grid": 3, "bias": 0.1},
    "spherical_harmonics": {"degree": 2.5},
    "upfirdn2d": {"up": 1.5, "padding": "a", "flip_filter": None, "gain": "1"},
}
CASES = [(op, name, value) for op, options in WRONG.items() for name, value in options.items()]


@pytest.mark.parametrize(("op", "name", "value"), CASES, ids=lambda x: str(x))
def test_the_option_is_named(op: str, name: str, value: object) -> None:
    call, tensors = CALLS[op]
    with pytest.raises((TypeError, ValueError), match=rf"^fastvfx\.{op}: expected {name}\b.*, got "):
        call(*tensors, **{**REST.get(op, {}), name: value})


def test_the_calls_are_right_without_them() -> None:
    """So that what is refused above is the option."""
    for op, (call, tensors) in CALLS.items():
        call(*tensors, **REST.get(op, {}))
