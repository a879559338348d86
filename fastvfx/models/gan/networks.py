"""Which networks can be trained, and how those of all families are called alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import dcgan, pggan, stylegan1, stylegan2, stylegan3
from .._config import Config


class Family(NamedTuple):
    """A kind of network."""

    config: type[Config]
    module: Callable[[Any], nn.Module]


GENERATORS: dict[str, Family] = {
    "dcgan": Family(dcgan.GeneratorConfig, dcgan.Generator),
    "pggan": Family(pggan.GeneratorConfig, pggan.Generator),
    "stylegan1": Family(stylegan1.GeneratorConfig, stylegan1.Generator),
    "stylegan2": Family(stylegan2.GeneratorConfig, stylegan2.Generator),
    "stylegan3": Family(stylegan3.GeneratorConfig, stylegan3.Generator),
}
DISCRIMINATORS: dict[str, Family] = {
    "dcgan": Family(dcgan.DiscriminatorConfig, dcgan.Discriminator),
    "pggan": Family(pggan.DiscriminatorConfig, pggan.Discriminator),
    "stylegan2": Family(stylegan2.DiscriminatorConfig, stylegan2.Discriminator),
}


#: Configurations of networks with a ``growth``.
GROWING = (pggan.GeneratorConfig, pggan.DiscriminatorConfig, stylegan1.GeneratorConfig)


def build(families: Mapping[str, Family], config: Config) -> nn.Module:
    """The network that ``config`` describes."""
    return families[_name(families, config)].module(config)


def to_dict(families: Mapping[str, Family], config: Config) -> dict[str, Any]:
    """For JSON, with the name of the family."""
    return {"family": _name(families, config), **config.to_dict()}


def from_dict(families: Mapping[str, Family], values: dict[str, Any]) -> Config:
    """The inverse of :func:`to_dict`.

    Raises:
        ValueError: another family, or fields that this version does not know.
    """
    rest = dict(values)
    name = rest.pop("family", None)
    if name not in families:
        raise ValueError(f"expected a family among {', '.join(families)}, got {name!r}")
    return families[name].config.from_dict(rest)


def _name(families: Mapping[str, Family], config: Config) -> str:
    for name, family in families.items():
        if type(config) is family.config:
            return name
    raise TypeError(
        f"fastvfx.models.gan: expected a configuration of one of {', '.join(families)}, got {type(config).__name__}"
    )


def has_styles(generator: nn.Module) -> bool:
    """Whether a generator consists of a mapping network and a synthesis network, as StyleGANs do."""
    return hasattr(generator, "mapping") and hasattr(generator, "synthesis")


def mix_styles(generator: Any, ws: Tensor, z: Tensor, c: Tensor | None, probability: float) -> Tensor:
    """Replace the styles of each image's later layers, with that probability and from a random layer on, by those of z.

    (Karras et al., StyleGAN, 2019, section 3.1.)

    Args:
        generator: one with styles.
        ws: (N, num_ws, w_dim).
        z, c: latents and labels of the other styles, (N, z_dim) and (N, c_dim) or ``None``.
        probability: for each image.

    Returns:
        (N, num_ws, w_dim).
    """
    n, num_ws, _ = ws.shape
    layers = getattr(generator, "styles_in_use", num_ws)
    if layers < 2:
        return ws
    start = torch.randint(1, layers, (n, 1), device=ws.device)
    mixed = torch.rand((n, 1), device=ws.device) < probability
    later = torch.arange(num_ws, device=ws.device) >= start  # (N, num_ws)
    return torch.where((later & mixed)[..., None], generator.mapping(z, c), ws)
