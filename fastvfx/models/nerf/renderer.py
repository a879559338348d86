"""The model: a radiance field with its occupancy grid, and how rays and pictures are rendered from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ... import OccupancyGrid, composite, prune_samples
from ...data import Cameras, SceneBounds
from ...functional import CompositeOutput, RaySamples
from .config import NerfConfig
from .field import RadianceField

# In pictures, samples that contribute less than this get no colour: forty of them change no 8-bit value.
_LEAST_WEIGHT = 3e-5
_RAYS_AT_ONCE = 1 << 12


class TrainingRays(NamedTuple):
    """A batch of rays as the trainer wants it."""

    output: CompositeOutput
    samples: RaySamples  #: that went through both networks
    n_marched: int  #: how many there were before pruning


class Nerf(nn.Module):
    """A scene: :class:`RadianceField` and the occupancy grid that says where it is worth asking.

    Args:
        config: all settings.
        bounds: the boxes of the scene.

    >>> model = Nerf(NerfConfig.for_bounds(data.bounds), data.bounds)
    >>> rgb = model(origins, directions, background=torch.ones(3)).rgb
    """

    def __init__(self, config: NerfConfig, bounds: SceneBounds) -> None:
        super().__init__()
        self.config = config
        self.bounds = bounds
        self.field = RadianceField(config.field, bounds, config.train.seed)
        self.occupancy = OccupancyGrid(bounds.aabb, resolution=config.march.grid_resolution, levels=bounds.levels)

    @property
    def device(self) -> torch.device:
        return self.field.half_size.device

    def march(self, origins: Tensor, directions: Tensor, seed: int | None = None) -> RaySamples:
        """Samples of rays (R, 3) in occupied space; jittered along the ray if there is a seed."""
        march = self.config.march
        return self.occupancy.march(
            origins,
            directions,
            near=march.near,
            step_size=march.step_size,
            cone_angle=march.cone_angle,
            jitter_seed=seed,
        )

    def update_occupancy(self, step: int, generator: torch.Generator) -> None:
        """Look again where there is something; does so every ``occupancy_every`` steps."""
        march, train = self.config.march, self.config.train
        if step < train.occupancy_start:
            if step == 0:
                self.occupancy.fill()
            return
        self.occupancy.update(
            step,
            lambda x: self.field.density(x) * march.step_size,
            occ_thre=march.occupancy_threshold,
            warmup_steps=train.occupancy_warmup,
            n=train.occupancy_every,
            generator=generator,
        )

    def forward(self, origins: Tensor, directions: Tensor, background: Tensor | None = None) -> CompositeOutput:
        """Colour, opacity and depth of rays, without gradients.

        Args:
            origins, directions: (R, 3) scene coordinates, unit directions.
            background: (3,) or (R, 3).
        """
        eps = self.config.march.early_stop_eps
        with torch.no_grad():
            samples = self.march(origins, directions)
            features = self.field.geometry(_positions(origins, directions, samples))
            sigmas = self.field.density_of(features)
            weights = composite(
                sigmas, sigmas[:, None], *_intervals(samples), early_stop_eps=eps, return_weights=True
            ).weights
            assert weights is not None
            seen = (weights > _LEAST_WEIGHT).nonzero()[:, 0]
            rgbs = sigmas.new_zeros((sigmas.shape[0], 3))
            rgbs[seen] = self.field.color(features[seen], directions, samples.ray_indices[seen])
            return composite(sigmas, rgbs, *_intervals(samples), background, early_stop_eps=eps)

    def training_rays(
        self, origins: Tensor, directions: Tensor, background: Tensor | None, seed: int, *, weights: bool = False
    ) -> TrainingRays:
        """Like calling the model, with gradients and with samples jittered by ``seed``.

        Where ``prune`` is set, a first pass finds the samples behind which no light comes through, and only the others
        get colours and gradients.
        """
        eps = self.config.march.early_stop_eps
        samples = self.march(origins, directions, seed)
        n_marched = samples.t_starts.shape[0]
        if self.config.train.prune:
            with torch.no_grad():
                sigmas = self.field.density(_positions(origins, directions, samples))
                light = composite(
                    sigmas, sigmas[:, None], *_intervals(samples), early_stop_eps=eps, return_transmittance=True
                ).transmittance
                assert light is not None
                samples = prune_samples(samples, light >= eps)
        x = _positions(origins, directions, samples)
        sigmas, rgbs = self.field(x, directions, samples.ray_indices)
        output = composite(sigmas, rgbs, *_intervals(samples), background, early_stop_eps=eps, return_weights=weights)
        return TrainingRays(output, samples, n_marched)

    def image(self, cameras: Cameras, index: int, background: Tensor | None = None) -> CompositeOutput:
        """The picture of one camera: outputs of shape (H, W, 3) and (H, W)."""
        origins, directions = cameras.image_rays(index)
        height, width = origins.shape[:2]
        parts = list(self.render(origins.reshape(-1, 3), directions.reshape(-1, 3), background))
        return CompositeOutput(
            torch.cat([p.rgb for p in parts]).reshape(height, width, 3),
            torch.cat([p.opacity for p in parts]).reshape(height, width),
            torch.cat([p.depth for p in parts]).reshape(height, width),
            None,
            None,
        )

    def render(
        self, origins: Tensor, directions: Tensor, background: Tensor | None = None
    ) -> Iterator[CompositeOutput]:
        """Any number of rays, a few thousand at a time."""
        for start in range(0, origins.shape[0], _RAYS_AT_ONCE):
            piece = slice(start, start + _RAYS_AT_ONCE)
            here = background[piece] if background is not None and background.dim() == 2 else background
            yield self(origins[piece], directions[piece], here)


def _intervals(samples: RaySamples) -> tuple[Tensor, Tensor, Tensor]:
    return samples.t_starts, samples.t_ends, samples.offsets


def _positions(origins: Tensor, directions: Tensor, samples: RaySamples) -> Tensor:
    """(N, 3) middles of the samples, scene coordinates."""
    t = (0.5 * (samples.t_starts + samples.t_ends))[:, None]
    ray = samples.ray_indices
    return torch.addcmul(origins.index_select(0, ray), directions.index_select(0, ray), t)
