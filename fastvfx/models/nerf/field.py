"""The radiance field: positions and directions in, densities and colours out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ... import MLP, HashGrid, SphericalHarmonics
from ...data import SceneBounds
from .config import FieldConfig

# exp(15) per scene unit is opaque within any step; beyond it float32 would only overflow.
_LARGEST_LOG_DENSITY = 15.0


class RadianceField(nn.Module):
    """Density and view-dependent colour of every point, after instant-ngp (Müller et al. 2022).

    A hash grid feeds a small network, whose first output is the logarithm of the density. All its outputs go with the
    spherical harmonics of the direction into a second network, which gives the colour.

    Args:
        config: sizes.
        bounds: the boxes of the scene; positions are in its coordinates.
        seed: of the initial parameters.
    """

    half_size: Tensor

    def __init__(self, config: FieldConfig, bounds: SceneBounds, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        inner = torch.tensor(bounds.aabb[3:])
        outer = torch.tensor(bounds.outer_aabb[3:])
        self.outermost = 2.0 ** (bounds.levels - 1)  # in halves of the innermost box
        self.register_buffer("half_size", inner if config.contract else outer, persistent=False)
        self.grid = HashGrid(
            n_input_dims=3,
            n_levels=config.n_levels,
            n_features_per_level=config.n_features_per_level,
            log2_hashmap_size=config.log2_hashmap_size,
            base_resolution=config.base_resolution,
            max_resolution=config.max_resolution,
            seed=seed,
        )
        self.directions = SphericalHarmonics(degree=config.sh_degree)
        self.density_net = MLP(
            config.n_levels * config.n_features_per_level,
            config.features,
            n_neurons=config.hidden,
            n_hidden_layers=config.density_layers,
            seed=seed + 1,
        )
        self.color_net = MLP(
            config.features + config.sh_degree**2,
            3,
            n_neurons=config.hidden,
            n_hidden_layers=config.color_layers,
            output_activation="Sigmoid",
            seed=seed + 2,
        )

    def to_unit(self, x: Tensor) -> Tensor:
        """(N, 3) scene coordinates to the grid's unit cube."""
        if not self.config.contract or self.outermost == 1.0:
            return torch.addcmul(torch.full_like(self.half_size, 0.5), x, 0.5 / self.half_size)
        u = x / self.half_size
        # Outside the innermost box the largest coordinate r becomes 2 - 1/r, on the same ray from the centre.
        r = u.abs().amax(-1, keepdim=True).clamp_(min=1.0)
        inverse = r.reciprocal_()
        widest = 2.0 - 1.0 / self.outermost
        return (u * ((2.0 - inverse) * inverse * (0.5 / widest))).add_(0.5)

    def geometry(self, x: Tensor) -> Tensor:
        """(N, 3) scene coordinates to (N, features), the logarithm of the density first."""
        return self.density_net(self.grid(self.to_unit(x)))

    def density_of(self, features: Tensor) -> Tensor:
        """(N, features) to (N,) densities per scene unit."""
        return _density(features[:, 0], self.config.density_bias)

    def density(self, x: Tensor) -> Tensor:
        """(N, 3) scene coordinates to (N,) densities per scene unit."""
        return self.density_of(self.geometry(x))

    def color(self, features: Tensor, directions: Tensor, ray_indices: Tensor) -> Tensor:
        """(N, features), (R, 3) unit directions and the ray of each sample (N,) to colours (N, 3)."""
        return self.color_net(_with_directions(features, self.directions(directions), ray_indices))

    def forward(self, x: Tensor, directions: Tensor, ray_indices: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,) and colour (N, 3) of samples, arguments as above."""
        sigmas, inputs = _Split.apply(
            self.geometry(x), self.directions(directions), ray_indices, self.config.density_bias
        )
        return sigmas, self.color_net(inputs)


def _density(raw: Tensor, bias: float) -> Tensor:
    return torch.exp((raw + bias).clamp_(max=_LARGEST_LOG_DENSITY))


def _with_directions(features: Tensor, directions: Tensor, ray_indices: Tensor) -> Tensor:
    """(N, F) beside the row of each sample's ray in (R, D): (N, F + D). Whole rows at a time, which indexing is not."""
    return torch.cat([features, directions.index_select(0, ray_indices)], 1)


class _Split(torch.autograd.Function):
    """Output of the density network (N, F) to densities (N,) and, with the directions' (R, D), the colour's input.

    One function, because slicing and concatenating under autograd would write every sample's features five times.
    The gradient of the density is not cut off where it was clamped, so that it can come back.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, directions: Tensor, ray_indices: Tensor, bias: float
    ) -> tuple[Tensor, Tensor]:
        sigmas = _density(features[:, 0], bias)
        ctx.save_for_backward(sigmas)
        ctx.width = features.shape[1]
        return sigmas, _with_directions(features, directions, ray_indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sigmas: Tensor, grad_inputs: Tensor) -> tuple[Tensor, None, None, None]:
        (sigmas,) = ctx.saved_tensors
        grad = grad_inputs[:, : ctx.width].contiguous()
        grad[:, 0].addcmul_(grad_sigmas, sigmas)
        return grad, None, None, None
