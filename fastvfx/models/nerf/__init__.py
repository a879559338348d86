"""NeRF: a scene learned from photographs with known cameras.

>>> from fastvfx.data import load_transforms
>>> from fastvfx.models.nerf import Trainer
>>> trainer = Trainer(load_transforms("examples/still_life"))
>>> trainer.fit(max_seconds=60)
>>> picture = trainer.model.image(trainer.data.cameras, 0, background=torch.ones(3)).rgb
"""

from .._training import Diverged
from ..checkpoint import CheckpointError
from .config import FieldConfig, MarchConfig, NerfConfig, TrainConfig
from .evaluate import Evaluation, Probe, ViewScore, evaluate
from .field import RadianceField
from .losses import color_loss, distortion_loss, opacity_entropy
from .renderer import Nerf
from .trainer import Progress, Scene, Trainer, load_scene

__all__ = [
    "CheckpointError",
    "Diverged",
    "Evaluation",
    "FieldConfig",
    "MarchConfig",
    "Nerf",
    "NerfConfig",
    "Probe",
    "Progress",
    "RadianceField",
    "Scene",
    "TrainConfig",
    "Trainer",
    "ViewScore",
    "color_loss",
    "distortion_loss",
    "evaluate",
    "load_scene",
    "opacity_entropy",
]
