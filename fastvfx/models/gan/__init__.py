"""Image generators, learned from photographs against a discriminator.

>>> from fastvfx.data import load_photos
>>> from fastvfx.models.gan import Trainer, preset
>>> photos = load_photos("flowers.zip", 64, mirror=True)
>>> trainer = Trainer(photos, preset("stylegan2-small", 64))
>>> trainer.fit(max_seconds=600)
>>> images = trainer.ema.network(torch.randn(16, 128), truncation_psi=0.7)  # (16, 3, 64, 64) in [-1, 1]
"""

from .._training import Diverged
from ..checkpoint import CheckpointError
from .augment import AdaptiveProbability, Augment, AugmentConfig
from .config import GanConfig, GrowConfig, LossConfig, OptimizerConfig, TrainConfig
from .ema import Ema
from .features import EfficientNetFeatures, RandomFeatures, feature_network
from .losses import (
    PathLength,
    between,
    clip_weights,
    discriminator_loss,
    drift,
    generator_loss,
    gradient_penalty,
    path_lengths,
)
from .metrics import feature_distance, frechet_distance, kernel_distance, perceptual_path_length
from .presets import Preset, preset
from .sample import Sampler, grid, load_sampler, picture
from .trainer import Trainer

__all__ = [
    "AdaptiveProbability",
    "Augment",
    "AugmentConfig",
    "CheckpointError",
    "Diverged",
    "EfficientNetFeatures",
    "Ema",
    "GanConfig",
    "GrowConfig",
    "LossConfig",
    "OptimizerConfig",
    "PathLength",
    "Preset",
    "RandomFeatures",
    "Sampler",
    "TrainConfig",
    "Trainer",
    "between",
    "clip_weights",
    "discriminator_loss",
    "drift",
    "feature_distance",
    "feature_network",
    "frechet_distance",
    "generator_loss",
    "gradient_penalty",
    "grid",
    "kernel_distance",
    "load_sampler",
    "path_lengths",
    "perceptual_path_length",
    "picture",
    "preset",
]
