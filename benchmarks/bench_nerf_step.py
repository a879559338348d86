"""A whole training step of the NeRF: march, hash grid, both networks, compositing, all gradients, Adam."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import COMPILED, EAGER, OURS, CheckFailed, Race, Workload, compiled, error
from torch import Tensor

import fastvfx
from fastvfx.data import load_transforms
from fastvfx.models.nerf import NerfConfig, Trainer

SCENE = Path(__file__).resolve().parents[1] / "examples" / "still_life"

# Of the loss and of each gradient. Samples whose light is just at the limit of pruning may fall on either side.
TOLERANCE = 2e-2


def prepare(device: str, small: bool, samples: int, warmup: int = 32) -> Race:
    """Rays of the still life after a short training, as many as have ``samples`` samples; the same in every call."""
    samples, warmup = (1 << 9, 1) if small else (samples, warmup)
    data = load_transforms(SCENE, "train", downscale=4)
    config = NerfConfig.for_bounds(data.bounds)
    config = replace(config, train=replace(config.train, target_samples=samples, max_rays=samples))
    trainer = Trainer(data, config, device=device)
    for _ in range(warmup):
        trainer.train_step()

    generator = torch.Generator(device).manual_seed(1)
    pool = trainer.data.sample_rays(samples, generator)
    counts = trainer.model.march(pool.origins, pool.directions, 1).offsets
    n_rays = max(1, int((counts <= samples).sum()) - 1)
    batch = trainer.data.sample_rays(n_rays, torch.Generator(device).manual_seed(1))
    background = torch.rand((n_rays, 3), generator=generator, device=device)
    n = int(trainer.model.march(batch.origins, batch.directions, 1).offsets[-1])
    # Every call is to do the same work, so Adam runs with a learning rate of zero.
    trainer.config = replace(config, train=replace(config.train, learning_rate=1e-30, final_learning_rate=1e-30))
    eager_rays = trainer.model.training_rays

    def step(backend: Any, rays: Any, _: int) -> list[Tensor]:
        with fastvfx.backend(backend):
            trainer.model.training_rays = rays  # type: ignore[method-assign]
            loss, _ = trainer.optimise(batch, background, 1)
            return [loss, *(p.grad for p in trainer.model.field.parameters() if p.grad is not None)]

    calls = {
        OURS: partial(step, "native", eager_rays),
        EAGER: partial(step, "reference", eager_rays),
    }
    if not small:  # compiling takes a minute whatever the shape
        calls[COMPILED] = partial(step, "reference", compiled(eager_rays))

    def check() -> dict[str, float]:
        exact = [x.clone() for x in calls[EAGER](0)]
        errors = {}
        for name, call in calls.items():
            errors[name] = max(error(call(0), exact))
            if not errors[name] <= TOLERANCE:
                raise CheckFailed(f"{name}: the loss or a gradient is off by {errors[name]:.3g}, allowed {TOLERANCE:g}")
        return errors

    return Race(
        calls[OURS],
        {name: call for name, call in calls.items() if name != OURS},
        check,
        f"{n} samples in {n_rays} rays, {sum(p.numel() for p in trainer.model.parameters())} parameters",
        n,
        "sample",
    )


WORKLOADS = [Workload("NeRF", "training step, 64k samples", "step", partial(prepare, samples=1 << 16), 10.0)]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def bench_nerf_step(workload, versus):
    versus(workload)
