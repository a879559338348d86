"""Every number of the model and of its training, as plain dataclasses that go into a checkpoint as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ...data import SceneBounds

Loss = Literal["huber", "mse"]


@dataclass(frozen=True)
class FieldConfig:
    """Shape of a :class:`RadianceField`; the defaults are sized for a processor's caches.

    Attributes:
        n_levels, n_features_per_level, log2_hashmap_size, base_resolution, max_resolution: of the hash grid.
        hidden: width of both networks.
        density_layers, color_layers: hidden layers of the network of the density and of that of the colour.
        features: what the density network hands to the colour network, the raw density included.
        sh_degree: directions enter as this many bands of spherical harmonics.
        density_bias: added to the raw density before it is exponentiated; sets how thick the fog is at first.
        contract: draw space outside the innermost box together (Mip-NeRF 360), so that a background of any size
            shares the grid with the foreground.
    """

    n_levels: int = 12
    n_features_per_level: int = 2
    log2_hashmap_size: int = 16
    base_resolution: int = 16
    max_resolution: int = 512
    hidden: int = 32
    density_layers: int = 1
    color_layers: int = 1
    features: int = 16
    sh_degree: int = 4
    density_bias: float = 0.0
    contract: bool = False


@dataclass(frozen=True)
class MarchConfig:
    """Where samples lie on a ray. Lengths are in scene units: the innermost box is 2 long.

    Attributes:
        step_size: length of a sample, and with ``cone_angle`` the shortest.
        cone_angle: samples grow in proportion to the distance; 0 keeps them all alike.
        near: no samples closer to the camera than this.
        early_stop_eps: a ray ends where less light than this comes through.
        grid_resolution: cells of the occupancy grid along an axis, per level.
        occupancy_threshold: a cell whose opacity over one step is below this is empty.
    """

    step_size: float = 2 * 3**0.5 / 384
    cone_angle: float = 0.0
    near: float = 0.0
    early_stop_eps: float = 1e-4
    grid_resolution: int = 64
    occupancy_threshold: float = 0.01


@dataclass(frozen=True)
class TrainConfig:
    """How the model is fitted.

    Attributes:
        target_samples: the number of rays of a step follows from how many samples it should have.
        max_rays: upper bound of that number.
        learning_rate, final_learning_rate: at the start and, by exponential decay, at the end.
        betas, eps: of Adam.
        loss: ``"huber"`` or ``"mse"`` between the pixels of a step.
        huber_delta: where the Huber loss turns from square to linear.
        random_background: put every training ray before a colour of its own, so that the model can't hide in it;
            where the images have no alpha, this asks for opacity.
        opacity_weight: of the entropy of the rays' opacities, which drives them to 0 or 1.
        distortion_weight: of Mip-NeRF 360's distortion loss, which pulls samples of a ray together.
        prune: find the samples behind which no light comes through by a first pass, and give only the others colours
            and gradients. Pays where less than half of them are lit.
        occupancy_start: for so many steps nothing counts as empty: the first fog is thinner than what it clears up to.
        occupancy_every: from then on, steps between updates of the occupancy grid.
        occupancy_warmup: for so many steps all its cells are visited.
        seed: of everything random.
    """

    target_samples: int = 1 << 15
    max_rays: int = 1 << 14
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-15
    loss: Loss = "huber"
    huber_delta: float = 0.1
    random_background: bool = True
    opacity_weight: float = 0.0
    distortion_weight: float = 0.0
    prune: bool = False
    occupancy_start: int = 96
    occupancy_every: int = 32
    occupancy_warmup: int = 256
    seed: int = 0


@dataclass(frozen=True)
class NerfConfig:
    """All of it."""

    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    march: MarchConfig = dataclasses.field(default_factory=MarchConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    @classmethod
    def for_bounds(cls, bounds: SceneBounds, seed: int = 0) -> NerfConfig:
        """The settings that suit a capture: one box around an object, or a scene with a background."""
        if bounds.unbounded:
            return cls(
                FieldConfig(contract=True),
                MarchConfig(step_size=0.02, cone_angle=1 / 96, near=bounds.near, occupancy_threshold=0.06),
                TrainConfig(seed=seed),
            )
        return cls(FieldConfig(), MarchConfig(near=bounds.near), TrainConfig(seed=seed))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NerfConfig:
        """The inverse of :meth:`to_dict`, after a trip through JSON too.

        Raises:
            ValueError: names or values that this version does not know.
        """
        try:
            train = dict(values["train"])
            train["betas"] = tuple(train["betas"])
            return cls(
                _build(FieldConfig, values["field"]), _build(MarchConfig, values["march"]), _build(TrainConfig, train)
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a configuration of this version: {error}") from error


def _build(kind: type, values: dict[str, Any]) -> Any:
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise TypeError(f"unknown {', '.join(sorted(unknown))} in {kind.__name__}")
    return kind(**values)
